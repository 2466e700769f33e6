"""Which setting is at fault, where a library only says that something is."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .student_checks import one_line

_SIZES = (1, 2, 4, 8, 16)
"""Tried in place of a size whose default does not fit the other settings either."""


def culprits(make: Callable[[dict[str, Any]], Any], given: Mapping[str, Any], *, fixed: str = "") -> list[str]:
    """The settings that `make` fails over: left out, or with another size, each of them alone lets it pass.

    Args:
        make: Builds something from settings, and raises anything.
        given: The settings.
        fixed: A setting that is needed as it is.

    Returns:
        Their names. None if it does not fail, or if it fails over more than one.
    """
    if _passes(make, given):
        return []
    keys = [key for key in given if key != fixed]
    return [key for key in keys if any(_passes(make, other) for other in _without(given, key))]


def _without(given: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    rest = {name: value for name, value in given.items() if name != key}
    yield rest
    if type(given[key]) is int:
        yield from ({**rest, key: size} for size in _SIZES)


def _passes(make: Callable[[dict[str, Any]], Any], settings: Mapping[str, Any]) -> bool:
    try:
        make(dict(settings))
    except Exception:  # noqa: BLE001 - what it says was said already
        return False
    return True


def blamed(path: str, keys: list[str], given: Mapping[str, Any], error: Exception) -> str:
    """The problem in words, at the setting at fault where there is one.

    Args:
        path: Of the section.
        keys: What `culprits` found.
        given: The settings.
        error: What the library said.
    """
    said = f"there is no {error}" if isinstance(error, KeyError) else one_line(error).rstrip(".")
    if not keys:
        return f"{path}: these settings make no model that reads the data ({said})."
    first, *others = keys
    if not others:
        return f"{path}.{first}: {given[first]!r} makes no model that reads the data ({said})."
    beside = ", ".join(f"{key}={given[key]!r}" for key in others)
    return (
        f"{path}.{first}: {given[first]!r} does not go together with {beside}, so there is no model that reads the "
        f"data ({said}). Change one of them."
    )

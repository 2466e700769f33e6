"""Whether a cache is of this teacher, these classes and these inputs; what differs, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .encoding import DTYPES

NOT_COMPARED = ("format", "versions", "teacher.name", "teacher.path")
"""Where a teacher lies may change, its weights not."""

_NAMES = {"encoding.dtype": "dtype", "encoding.top_k": "top_k"}


def check_settings(*, dtype: Any, top_k: Any, views: Any) -> None:
    """Refuse settings that cannot be.

    Raises:
        ValueError: One of them.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`TeacherCache(dtype={dtype!r})` must be one of {', '.join(DTYPES)}: logits are so rounded.")
    for name, value in (("top_k", top_k), ("views", views)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"`TeacherCache({name}={value!r})` must be a positive integer, or None.")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a cache says otherwise than `now`; what either does not say is passed over."""
    old, new = _flat(then), _flat(now)
    wrong = []
    for name, value in old.items():
        other = new.get(name)
        is_said = name in new and name not in NOT_COMPARED and name != "classes"
        if is_said and value != other and (None not in (value, other) or name == "encoding.top_k"):
            wrong.append(f"{_NAMES.get(name, name)} {_short(value)} (now: {_short(other)})")
    if "classes" in new and old.get("classes") != new["classes"]:
        wrong.append(_other_classes(old["classes"], new["classes"]))
    is_known_by_name = old.get("teacher.weights") is None and old.get("teacher.files") is None
    if is_known_by_name and "teacher.name" in new and old.get("teacher.name") != new["teacher.name"]:
        wrong.append(f"teacher {_short(old.get('teacher.name'))} (now: {_short(new['teacher.name'])})")
    if new.get("features") is not None and old.get("features") is None:
        wrong.append(f"no pooled features (now needed: {new['features']} numbers per row)")
    return wrong


def _other_classes(then: Sequence[Any], now: Sequence[Any]) -> str:
    if len(then) != len(now):
        return f"{len(then)} classes (now: {len(now)})"
    place = next(i for i, (old, new) in enumerate(zip(then, now, strict=True)) if old != new)
    return f"class {place} as {then[place]!r} (now: {now[place]!r})"


def refuse_other(folder: Path, manifest: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a cache that is not of what is asked for.

    Raises:
        ValueError: With everything that differs.
    """
    wrong = differences(manifest, now)
    if wrong:
        raise ValueError(
            f"`TeacherCache({str(folder)!r})` was made with {'; '.join(wrong)}: its answers are not those that would "
            "be given now. Name another folder, which is then filled, or go back to what it was made with."
        )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"

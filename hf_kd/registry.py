"""Strict construction of named components from plain mappings; every problem has a path and, where near, a suggestion.

A table is a literal dict, name -> class. `build` turns `{"name": "dtkd", "temperature": 4.0}` into an instance and
refuses unknown names and arguments, listing all problems of a level at once.
"""

import difflib
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(ValueError):
    """One or more problems in a configuration, each a `path: problem` line.

    Args:
        problems: The lines, in reading order. What would break a line or steer a terminal is escaped, and what no one
            would read to its end is shortened: they quote values as they were given.
    """

    def __init__(self, problems: Iterable[str]):
        self.problems = [printable(line) for line in problems]
        super().__init__("\n".join(self.problems))


LONGEST_WORD, LONGEST_LINE = 300, 2000


def printable(text: str) -> str:
    """`text` on one line: control characters as Python writes them, and what is very long without its middle."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    shown = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:100]}...{word[0][-50:]}", shown)
    return shown if len(shown) <= LONGEST_LINE else f"{shown[: LONGEST_LINE - 500]} ... {shown[-400:]}"


def nearest(name: Any, options: Iterable[str]) -> str | None:
    """The option that `name` is probably a misspelling of; None if there is none."""
    near = difflib.get_close_matches(str(name), sorted(options), n=1, cutoff=0.5)
    return near[0] if near else None


def suggestion(name: Any, options: Iterable[str], available: str | None = None) -> str:
    """`" Did you mean 'x'? Available: …"`, as a tail for an error about `name`.

    Args:
        name: What was given.
        options: What could have been.
        available: The options as they are to be listed; None for their names in order.
    """
    options = sorted(options)
    near = nearest(name, options)
    hint = f" Did you mean {near!r}?" if near else ""
    return f"{hint} Available: {available or ', '.join(options) or 'none'}."


def prefixed(path: str, error: Exception) -> list[str]:
    """The problems of `error`, each under `path`."""
    if isinstance(error, ConfigError):
        return [f"{path}.{line}" if path else line for line in error.problems]
    return [f"{path}: {error}" if path else str(error)]


def accepted_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters, in order."""
    parameters = inspect.signature(cls).parameters
    return {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def argument_problems(cls: type, kwargs: Mapping[str, Any], path: str, label: str) -> list[str]:
    """Unknown and missing constructor arguments of `cls`, as `path: problem` lines."""
    accepted = accepted_arguments(cls)
    dot = f"{path}." if path else ""
    problems = [
        f"{dot}{key}: unknown argument of {label}.{suggestion(key, accepted)}" for key in kwargs if key not in accepted
    ]
    missing = [name for name, p in accepted.items() if p.default is p.empty and name not in kwargs]
    return problems + [f"{dot}{name}: {label} needs this argument." for name in missing]


def build(
    table: Mapping[str, type], spec: Any, path: str = "", *, kind: str, context: Mapping[str, Any] | None = None
) -> Any:
    """Build the component that `spec` describes.

    Args:
        table: Name -> class.
        spec: A name, or a mapping with `name` and constructor arguments.
        path: Where `spec` stands in the configuration, for the error lines.
        kind: What the table holds, in words, e.g. `"temperature strategy"`.
        context: Arguments given to every class whose constructor accepts them and whose spec does not set them
            (`num_labels`).

    Raises:
        ConfigError: Unknown name, unknown or missing argument, or an argument the class refuses.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    at = f"{path}: " if path else ""
    if not isinstance(spec, Mapping):
        problem = f"expected the name of a {kind} or a mapping with `name`, got {spec!r}."
        raise ConfigError([f"{at}{problem}{suggestion('', table)}"])
    if "name" not in spec:
        raise ConfigError([f"{at}a {kind} needs a `name`.{suggestion('', table)}"])
    name = spec["name"]
    if not isinstance(name, str) or name not in table:
        raise ConfigError([f"{path + '.' if path else ''}name: unknown {kind} {name!r}.{suggestion(name, table)}"])
    cls = table[name]
    kwargs = {str(key): value for key, value in spec.items() if key != "name"}
    for key, value in (context or {}).items():
        if key in accepted_arguments(cls) and value is not None:
            kwargs.setdefault(key, value)
    problems = argument_problems(cls, kwargs, path, f"{kind} {name!r}")
    if problems:
        raise ConfigError(problems)
    try:
        return cls(**kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(prefixed(path, error)) from error


def check_number(
    owner: str,
    name: str,
    value: Any,
    why: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    whole: bool = False,
    expected: str | None = None,
) -> float:
    """`value` as a float if it is a finite number in the interval; else an error that says who, what and why.

    Raises:
        TypeError: Not a number (bools and strings are not).
        ValueError: NaN, infinite or outside the interval; a fraction where `whole` asks for none.
    """
    if whole and expected is None:
        expected = f"a whole number >= {low:g}"
    if expected is None:
        expected = "a finite number"
        if low == 0 and low_open:
            expected = "a positive finite number" if high == math.inf else f"in (0, {high:g}]"
        elif low > -math.inf and high == math.inf:
            expected = f"a finite number >= {low:g}"
        elif low > -math.inf:
            expected = f"in [{low:g}, {high:g}]"
    message = f"`{owner}({name}=...)` must be {expected}, got {value!r}: {why}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(message)
    outside = not math.isfinite(value) or value < low or value > high or (low_open and value == low)
    if outside or (whole and value != int(value)):
        raise ValueError(message)
    return float(value)


def check_flag(owner: str, name: str, value: Any, why: str) -> bool:
    """`value` if it is a bool; else an error: the string "false" would otherwise switch the option on.

    Raises:
        TypeError: Not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{owner}({name}=...)` must be True or False, got {value!r}: {why}")
    return value

"""A space of hyperparameters in plain mappings: read strictly, drawn from by Optuna, walked at its corners."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .registry import ConfigError, suggestion

_RANGE, _CHOICES = ("low", "high", "log", "step", "when"), ("choices", "when")
_FORM = "Write {low: 1e-5, high: 1e-3, log: true}, or {choices: [kd, dtkd]}."

MOST_COMBINATIONS = 64
"""Of choices, that are walked in full; beyond, each choice is tried beside the first ones of the others."""


def import_optuna(who: str) -> Any:
    """Optuna, which is an extra.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            f"`{who}` draws its trials with Optuna, which is not installed. Install it: pip install 'hf_kd[tune]'."
        ) from error
    return optuna


@dataclass(frozen=True)
class Parameter:
    """One dimension: a range of numbers, or a list of values.

    Args:
        low: The least value; None for a list.
        high: The greatest value, itself included.
        log: Draw evenly over orders of magnitude.
        step: Draw multiples of this, from `low` on.
        choices: The values of a list.
        when: Only drawn where these other parameters have one of these values.
    """

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Any, ...] | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def labels(self) -> list[Any]:
        """What Optuna calls the values of a list: it stores plain ones, and mappings as their JSON."""
        if all(value is None or isinstance(value, (bool, int, float, str)) for value in self.choices):
            return list(self.choices)
        return [json.dumps(value, sort_keys=True) for value in self.choices]

    def suggest(self, name: str, trial: Any) -> Any:
        """What `trial` draws."""
        if self.choices is not None:
            labels = self.labels
            # looked up by type too: 1, 1.0 and true are one key to Python and three choices to a method
            drawn = trial.suggest_categorical(name, labels)
            places = [i for i, label in enumerate(labels) if label == drawn and type(label) is type(drawn)]
            return self.choices[places[0]]
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log, step=self.step or 1)
        return trial.suggest_float(name, self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all when the space is checked."""
        return self.choices if self.choices is not None else (self.low, self.high)


class SearchSpace:
    """Named parameters, some of them only where others have certain values.

    A parameter is ``{low, high}`` with ``log`` or ``step`` where wanted, or ``{choices: […]}``. Two whole numbers as
    ends give whole numbers; write ``1.0`` to have those between. ``when: {method.name: ctkd}`` draws it only in trials
    with that choice.

    Args:
        parameters: `{path: parameter}`.
        label: Where the mapping stands, for the error lines.

    Raises:
        ConfigError: Every problem found, each with its path.

    Example:
        >>> space = SearchSpace({"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}})
        >>> list(space.corners())
        [{'learning_rate': 1e-05}, {'learning_rate': 0.001}]
    """

    def __init__(self, parameters: Mapping[str, Any], label: str = "parameters"):
        problems: list[str] = []
        self.parameters: dict[str, Parameter] = {}
        if not isinstance(parameters, Mapping) or not parameters:
            got = f", got {parameters!r}" if parameters else ""
            raise ConfigError([f"{label}: expected what to search, by path{got}. {_FORM}"])
        for name, spec in parameters.items():
            found = _problems(spec)
            problems += [f"{label}.{name}{line}" for line in found]
            if not found:
                self.parameters[str(name)] = _parameter(spec)
        for name, parameter in self.parameters.items():
            problems += [f"{label}.{name}.when{line}" for line in self._condition_problems(name, parameter)]
        if problems:
            raise ConfigError(problems)

    def _condition_problems(self, name: str, parameter: Parameter) -> list[str]:
        free = [
            other for other, p in self.parameters.items() if p.choices is not None and not p.when and other != name
        ]
        problems = []
        for other, values in parameter.when.items():
            if other not in free:
                hint = suggestion(other, free)
                problems.append(f".{other}: is no parameter with choices and without conditions of its own.{hint}")
                continue
            choices = self.parameters[other].choices
            unknown = [value for value in values if value not in choices]
            if unknown:
                problems.append(
                    f".{other}: {unknown[0]!r} is none of its choices.{suggestion(unknown[0], map(str, choices))}"
                )
        return problems

    def resolve(self, pick: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        """A value for each parameter that applies, in the order of the space."""
        values = {name: pick(name, p) for name, p in self.parameters.items() if not p.when}
        for name, parameter in self.parameters.items():
            if parameter.when and all(values[other] in wanted for other, wanted in parameter.when.items()):
                values[name] = pick(name, parameter)
        return {name: values[name] for name in self.parameters if name in values}

    def suggest(self, trial: Any) -> dict[str, Any]:
        """What an Optuna `trial` draws: the space as a function, which is what `hp_space` takes."""
        return self.resolve(lambda name, parameter: parameter.suggest(name, trial))

    def corners(self) -> Iterator[dict[str, Any]]:
        """Combinations at the ends of all ranges: what is wrong with a space shows at one of them."""
        listed = {name: p.choices for name, p in self.parameters.items() if p.choices is not None}
        seen = []
        for chosen in _combinations(listed):
            for end in (0, -1):
                values = self.resolve(lambda name, p, c=chosen, e=end: c[name] if name in c else p.ends()[e])
                if values not in seen:
                    seen.append(values)
                    yield values


def _combinations(listed: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    if math.prod(map(len, listed.values())) <= MOST_COMBINATIONS:
        yield from (dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values()))
        return
    first = {name: values[0] for name, values in listed.items()}
    yield first
    yield from ({**first, name: value} for name, values in listed.items() for value in values[1:])


def _parameter(spec: Mapping[str, Any]) -> Parameter:
    when = {str(k): tuple(v) if isinstance(v, list) else (v,) for k, v in (spec.get("when") or {}).items()}
    if "choices" in spec:
        return Parameter(choices=tuple(spec["choices"]), when=when)
    return Parameter(spec["low"], spec["high"], spec.get("log", False), spec.get("step"), when=when)


def _problems(spec: Any) -> list[str]:
    """What is wrong with one parameter, as ends of lines that begin with its path."""
    if not isinstance(spec, Mapping) or not ({"low", "high", "choices"} & set(spec)):
        return [f": expected a range or choices, got {spec!r}. {_FORM}"]
    if "choices" in spec and {"low", "high"} & set(spec):
        return [f": has both a range and choices, got {dict(spec)!r}. {_FORM}"]
    known = _CHOICES if "choices" in spec else _RANGE
    problems = [f".{key}: unknown key.{suggestion(key, known)}" for key in spec if key not in known]
    if not isinstance(spec.get("when") or {}, Mapping):
        problems.append(f".when: expected a mapping such as {{method.name: ctkd}}, got {spec['when']!r}.")
    return problems + (_list_problems(spec["choices"]) if "choices" in spec else _range_problems(spec))


def _list_problems(choices: Any) -> list[str]:
    if not isinstance(choices, (list, tuple)) or not choices:
        return [f".choices: expected a list of at least one value, got {choices!r}."]
    try:
        texts = [json.dumps(value, sort_keys=True) for value in choices]
    except TypeError:
        return [f".choices: expected numbers, names, true, false, null, or mappings of these, got {choices!r}."]
    twice = sorted({text for text in texts if texts.count(text) > 1})
    return [f".choices: {twice[0]} stands there twice. Keep one."] if twice else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _range_problems(spec: Mapping[str, Any]) -> list[str]:
    problems = [f".{key}: a range needs this end." for key in ("low", "high") if key not in spec]
    for key in ("low", "high", "step"):
        if key in spec and not (_is_number(spec[key]) or (key == "step" and spec[key] is None)):
            problems.append(f".{key}: expected a finite number, got {spec[key]!r} ({type(spec[key]).__name__}).")
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        problems.append(f".log: expected true or false, got {log!r}.")
    if problems:
        return problems
    low, high = spec["low"], spec["high"]
    if low >= high:
        return [f": low ({low!r}) must be below high ({high!r}), else there is nothing to search."]
    if log and low <= 0:
        return [f".low: must be positive to be drawn evenly over orders of magnitude (log), got {low!r}."]
    if step is None:
        return []
    if log:
        return [".step: does not go with log. Keep one of them."]
    if step <= 0 or (isinstance(low, int) and isinstance(high, int) and not isinstance(step, int)):
        return [f".step: expected a positive number, whole where both ends are, got {step!r}."]
    count = (high - low) / step
    if round(count) < 1 or abs(count - round(count)) > 1e-9 * max(1.0, count):
        return [f".step: {step!r} does not lead from {low!r} to {high!r}, so that {high!r} would never be drawn."]
    return []

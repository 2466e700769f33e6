"""From the name of a method to its objective."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ..losses import LOSSES, DistillationLoss, as_loss
from ..objective import DistillationObjective
from ..registry import ConfigError, accepted_arguments, check_flag, check_number, prefixed, suggestion
from ..temperatures import TEMPERATURES, TemperatureStrategy, WrappedTemperature, as_strategy
from .base import STRATEGYS_OWN, Method
from .table import METHODS

COMMON_PARAMETERS = ("ce_weight", "kd_weight", "warmup", "warmup_epochs", "task_serialization", "temperature")
"""What methods take: both weights, the warm-up of the distillation weight, whether a learned layer stands between the
distilled and the classified logits, and (those that have one) the temperature strategy."""

_RIVALS = (("temperature", "gamma"), ("warmup", "warmup_epochs"), ("curriculum", "curriculum_epochs"))
_RIVALS += (("first_phase", "first_phase_epochs"),)
_SHARES = ("warmup", "curriculum", "first_phase")


def get_method(name: str) -> Method:
    """The entry of the table.

    Raises:
        ConfigError: Unknown name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError([f"name: unknown method {name!r}.{suggestion(name, METHODS)}"])
    return METHODS[name]


def method_settings(name: str, benchmark: str | None = None, pair: str | None = None) -> dict[str, Any]:
    """The hyperparameters of a method: its default, or the paper's for `benchmark` and `pair`.

    Raises:
        ConfigError: Unknown method, benchmark or pair, or a paper that published no such setting.
    """
    method = get_method(name)
    if benchmark is None:
        if pair is not None:
            raise ConfigError([f"pair: {pair!r} needs a `benchmark`.{suggestion('', method.pairs)}"])
        return _copied(method.default.values)
    if not isinstance(benchmark, str) or benchmark not in method.benchmarks:
        problem = f"no setting of {name!r} is published for {benchmark!r}; leave it out for the generic default."
        raise ConfigError([f"benchmark: {problem}{suggestion(benchmark, method.benchmarks)}"])
    values = {**_without_schedules(method.default.values), **method.benchmarks[benchmark].values}
    pairs = method.pairs.get(benchmark, {})
    if pair is not None:
        if not pairs:
            problem = f"{name!r} has one setting for all pairs of {benchmark!r}, and got {pair!r}. Leave it out."
            raise ConfigError([f"pair: {problem}"])
        if pair not in pairs:
            raise ConfigError([f"pair: no setting of {name!r} is published for {pair!r}.{suggestion(pair, pairs)}"])
        values = _merge(values, pairs[pair].values)
    return _copied(values)


def _copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """The table's values as the caller's own: sets of temperatures as lists, like those of a configuration."""
    return {key: list(value) if isinstance(value, tuple) else copy.deepcopy(value) for key, value in values.items()}


def _without_schedules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Benchmark settings state schedules in epochs; the default's shares of the run must not linger beside them."""
    return {key: value for key, value in values.items() if key not in _SHARES}


def _merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides win; two spellings of one thing (temperature/gamma, share/epochs) replace each other."""
    merged = dict(values)
    for one, other in _RIVALS:
        if one in values and other in values:  # not two spellings: NKD's gamma is a weight
            continue
        for key, rival in ((one, other), (other, one)):
            if overrides.get(key) is not None and rival not in overrides:
                merged.pop(rival, None)
    return {**merged, **overrides}


def build_objective(
    name: str,
    *,
    num_labels: int | None = None,
    benchmark: str | None = None,
    pair: str | None = None,
    **overrides: Any,
) -> DistillationObjective:
    """The objective of a published method.

    Args:
        name: A key of `METHODS`.
        num_labels: Classes; needed by strategies with a network (`ctkd_instance`).
        benchmark: `"cifar100"` or `"imagenet"` for the paper's settings; None for the generic default.
        pair: `"teacher-student"`, e.g. `"resnet56-resnet20"`, where the paper tunes per pair.
        **overrides: Any of `COMMON_PARAMETERS`, the method's own parameters, those of its losses, and those of its
            strategy, flat (`gamma=0.1`) or nested (`temperature={"gamma": 0.1}`). A `temperature` with another `name`
            plugs that strategy into the method; a list of temperatures is the sum over them.

    Raises:
        ConfigError: Unknown names or values a component refuses; all problems of a level at once, each with its path.

    Example:
        >>> build_objective("wttm", num_labels=100, benchmark="cifar100", pair="vgg13-vgg8").kd_weight
        2.25
        >>> objective = build_objective("dkd", temperature={"name": "standardized"}, alpha=9.0, beta=72.0)
        >>> objective.losses[0].temperature.name
        'standardized'
    """
    return _compose(get_method(name), resolved_settings(name, benchmark, pair, **overrides), num_labels)


def resolved_settings(
    name: str, benchmark: str | None = None, pair: str | None = None, **overrides: Any
) -> dict[str, Any]:
    """What `build_objective` would use: the table's values with `overrides` checked, brought to one form and merged.

    Raises:
        ConfigError: As `build_objective`, as far as names go.
    """
    flat = _flatten(name, get_method(name), overrides)
    return _merge(method_settings(name, benchmark, pair), flat)


def plugs_in(method: Method, temperature: Any) -> bool:
    """Whether `temperature`, or one of a list, puts another strategy into the place of the method's own.

    A strategy that is built around another one takes it in instead: `temperature="ctkd"` of logit standardisation is
    CTKD on standardised logits.
    """
    if isinstance(temperature, (list, tuple)):
        return any(plugs_in(method, entry) for entry in temperature)
    if method.strategy is None:
        return False
    name = temperature.get("name") if isinstance(temperature, Mapping) else temperature
    own = TEMPERATURES[method.strategy]
    if isinstance(temperature, TemperatureStrategy):
        return isinstance(temperature, own) or not issubclass(own, WrappedTemperature)
    if temperature is None or name is None or name == method.strategy or issubclass(own, WrappedTemperature):
        return False
    return not (isinstance(name, (int, float)) and "temperature" in accepted_arguments(own))


# ---------------------------------------------------------------------------------------------------------------------
# Overrides
# ---------------------------------------------------------------------------------------------------------------------


def _flatten(name: str, method: Method, overrides: dict[str, Any]) -> dict[str, Any]:
    """Check the names of `overrides` and bring `temperature={...}` of the method's own strategy to the flat form."""
    problems = _unknown(name, method, overrides)
    if method.strategy is not None and "temperature" in overrides:
        overrides, more = _flat_temperature(name, method, overrides)
        problems += more
    if problems:
        raise ConfigError(problems)
    return overrides


def _flat_temperature(name: str, method: Method, overrides: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`overrides` with what `temperature` says about the method's own strategy beside it, and what is wrong in it."""
    temperature = overrides["temperature"]
    others = {key: value for key, value in overrides.items() if key != "temperature"}
    plugged = temperature.get("name") if isinstance(temperature, Mapping) else temperature
    if isinstance(temperature, Mapping) and plugged in (None, method.strategy):
        nested = {key: value for key, value in temperature.items() if key != "name"}
        return {**others, **nested}, _nested_problems(method, nested, overrides)
    if isinstance(plugged, str) and plugged == method.strategy:
        return others, []
    if not plugs_in(method, temperature):
        return overrides, []
    refused = _refused_guests(name, method, temperature)
    kind = temperature if isinstance(temperature, (list, tuple)) else _kind(temperature)
    return overrides, refused or [
        f"{key}: belongs to temperature strategy {method.strategy!r}, which `temperature` replaces by "
        f"{kind!r}. Set it inside `temperature`."
        for key in method.strategy_arguments
        if key in others
    ]


def _unknown(name: str, method: Method, overrides: Mapping[str, Any]) -> list[str]:
    known = {*COMMON_PARAMETERS, *method.parameters, *method.strategy_arguments}
    problems = []
    if method.strategy is None and "temperature" not in method.parameters:
        known.discard("temperature")
        if "temperature" in overrides:
            losses = ", ".join(dict.fromkeys(spec["name"] for _, spec in method.losses))
            problems = [f"temperature: method {name!r} has none, its losses ({losses}) do not take one. Leave it out."]
    return problems + [
        f"{key}: unknown parameter of method {name!r}.{suggestion(key, known)}"
        for key in overrides
        if key not in known and not (key == "temperature" and problems)
    ]


def _nested_problems(method: Method, nested: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    arguments = method.strategy_arguments
    problems = [
        f"temperature.{key}: unknown argument of temperature strategy {method.strategy!r}.{suggestion(key, arguments)}"
        for key in nested
        if key not in arguments
    ]
    return problems + [
        f"temperature.{key}: set twice, {value!r} here and {overrides[key]!r} beside `temperature`. Keep one."
        for key, value in nested.items()
        if key in overrides and key in arguments and key != "temperature"
    ]


def _kind(temperature: Any) -> Any:
    """What a temperature calls itself: the name of its strategy, or the number."""
    named = temperature.get("name") if isinstance(temperature, Mapping) else temperature
    return named.name if isinstance(named, TemperatureStrategy) else named


def _refused_guests(name: str, method: Method, temperature: Any) -> list[str]:
    """Strategies that would make another method of this one, which is a strategy itself."""
    entries = list(temperature) if isinstance(temperature, (list, tuple)) else [temperature]
    if method.hosts is None:
        return []
    return [
        f"temperature: method {name!r} is its own temperature strategy, {method.strategy!r}, and got {_kind(entry)!r}."
        f" Set that strategy's arguments ({', '.join(method.strategy_arguments)}), or use method 'kd' with this "
        "temperature."
        for entry in entries
        if plugs_in(method, entry) and _kind(entry) not in (*method.hosts, method.strategy)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Composition
# ---------------------------------------------------------------------------------------------------------------------


def _compose(method: Method, values: dict[str, Any], num_labels: int | None) -> DistillationObjective:
    frame = {key: values.pop(key) for key in ("ce_weight", "kd_weight", "warmup", "warmup_epochs") if key in values}
    try:
        why = "it decides whether a learned layer stands between the distilled and the classified logits."
        if check_flag("build_objective", "task_serialization", values.pop("task_serialization", False), why):
            frame["task_serialization"] = True
        arguments = {key: values.pop(key) for key in method.parameters if key in values}
        why = "it multiplies a loss that is minimised. Pass 0.0 to switch that part off."
        for name in method.weights:
            check_number("build_objective", name, arguments.get(name), why, low=0.0)
        losses = [
            (arguments.get(weight, weight), loss)
            for strategy in _strategies(method, values, num_labels)
            for weight, loss in _losses(method, arguments, strategy, num_labels)
        ]
        return DistillationObjective(losses, **{"kd_weight": 1.0, **frame})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError([str(error)]) from error


def _strategies(method: Method, values: Mapping[str, Any], num_labels: int | None) -> list[TemperatureStrategy | None]:
    """The strategy, or one per entry of a list of temperatures; a single None without one."""
    if method.strategy is None:
        return [None]
    given = values.get("temperature")
    if not isinstance(given, (list, tuple)):
        return [as_strategy(_spec(method, values, given), "temperature", num_labels=num_labels)]
    problems, strategies = [], []
    if not given:
        problem = "an empty list stands for no loss at all. Give one temperature, or a list such as [4, 3, 5, 2, 6]."
        problems = [f"temperature: {problem}"]
    for index, entry in enumerate(given):
        try:
            spec = _spec(method, values, entry)
            strategies.append(as_strategy(spec, f"temperature.{index}", num_labels=num_labels))
        except ConfigError as error:
            problems += error.problems
        except (TypeError, ValueError) as error:
            problems += prefixed(f"temperature.{index}", error)
    if problems:
        raise ConfigError(problems)
    return strategies


def _spec(method: Method, values: Mapping[str, Any], temperature: Any) -> Any:
    """What stands for the strategy: the plugged one, or the method's own with its arguments."""
    if plugs_in(method, temperature):
        return temperature
    own = {**values, "temperature": temperature} if "temperature" in values else values
    return {"name": method.strategy, **own}


def _losses(
    method: Method, arguments: Mapping[str, Any], strategy: TemperatureStrategy | None, num_labels: int | None
) -> Iterator[tuple[float | str, DistillationLoss]]:
    """The method's losses over one strategy. Each has its own copy: a shared one could not be saved."""
    taken = False
    for weight, spec in method.losses:
        loss = LOSSES[spec["name"]]
        accepted = accepted_arguments(loss)
        filled = {key: value for key, value in arguments.items() if key in accepted}
        if strategy is not None and loss.uses_temperature:
            if spec.get("temperature") is STRATEGYS_OWN:
                filled["temperature"] = strategy.temperature
            else:
                filled["temperature"] = copy.deepcopy(strategy) if taken else strategy
                taken = True
        yield weight, as_loss({**spec, **filled}, "", num_labels=num_labels)

"""From the name of a method to its objective."""

from collections.abc import Mapping
from typing import Any

from ..losses import KDLoss, as_loss
from ..objective import DistillationObjective
from ..registry import ConfigError, accepted_arguments, suggestion
from ..temperatures import TEMPERATURES, TemperatureStrategy, WrappedTemperature, as_strategy
from .base import Method
from .table import METHODS

COMMON_PARAMETERS = ("ce_weight", "kd_weight", "warmup", "warmup_epochs", "temperature")
"""What every method takes: both weights, the warm-up of the distillation weight, and the temperature strategy."""


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
        return dict(method.default.values)
    if benchmark not in method.benchmarks:
        problem = f"no setting of {name!r} is published for {benchmark!r}; leave it out for the generic default."
        raise ConfigError([f"benchmark: {problem}{suggestion(benchmark, method.benchmarks)}"])
    values = {**_without_schedules(method.default.values), **method.benchmarks[benchmark].values}
    pairs = method.pairs.get(benchmark, {})
    if pair is not None and pairs:
        if pair not in pairs:
            raise ConfigError([f"pair: no setting of {name!r} is published for {pair!r}.{suggestion(pair, pairs)}"])
        values = _merge(values, pairs[pair].values)
    return values


def _without_schedules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Benchmark settings state schedules in epochs; the default's shares of the run must not linger beside them."""
    return {key: value for key, value in values.items() if key not in ("warmup", "curriculum")}


def _merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides win; two spellings of one thing (temperature/gamma, share/epochs) replace each other."""
    merged = dict(values)
    for one, other in (("temperature", "gamma"), ("warmup", "warmup_epochs"), ("curriculum", "curriculum_epochs")):
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
        **overrides: `ce_weight`, `kd_weight`, `warmup`, `warmup_epochs`, the method's own parameters, and the
            parameters of its strategy, flat (`gamma=0.1`) or nested (`temperature={"gamma": 0.1}`). A `temperature`
            with another `name` plugs that strategy into the method.

    Raises:
        ConfigError: Unknown names or values a component refuses; all problems of a level at once, each with its path.

    Example:
        >>> build_objective("wttm", num_labels=100, benchmark="cifar100", pair="vgg13-vgg8").kd_weight
        2.25
    """
    return _compose(name, get_method(name), resolved_settings(name, benchmark, pair, **overrides), num_labels)


def resolved_settings(
    name: str, benchmark: str | None = None, pair: str | None = None, **overrides: Any
) -> dict[str, Any]:
    """What `build_objective` would use: the table's values with `overrides` checked, brought to one form and merged.

    Raises:
        ConfigError: As `build_objective`, as far as names go.
    """
    method = get_method(name)
    flat = _flatten(name, method, accepted_arguments(TEMPERATURES[method.strategy]), overrides)
    return _merge(method_settings(name, benchmark, pair), flat)


def plugs_in(method: Method, temperature: Any) -> bool:
    """Whether `temperature` puts another strategy into the place of the method's own.

    A strategy that is built around another one takes it in instead: `temperature="ctkd"` of logit standardisation is
    CTKD on standardised logits.
    """
    name = temperature.get("name") if isinstance(temperature, Mapping) else temperature
    own = TEMPERATURES[method.strategy]
    if isinstance(temperature, TemperatureStrategy):
        return isinstance(temperature, own) or not issubclass(own, WrappedTemperature)
    if temperature is None or name is None or name == method.strategy or issubclass(own, WrappedTemperature):
        return False
    return not (isinstance(name, (int, float)) and "temperature" in accepted_arguments(own))


def _flatten(name: str, method: Method, arguments: Mapping[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Check the names of `overrides` and bring `temperature={...}` of the method's own strategy to the flat form."""
    known = {*COMMON_PARAMETERS, *method.parameters, *arguments} - {"num_labels", "network"}
    problems = [
        f"{key}: unknown parameter of method {name!r}.{suggestion(key, known)}"
        for key in overrides
        if key not in known
    ]
    temperature = overrides.get("temperature")
    plugged = temperature.get("name") if isinstance(temperature, Mapping) else temperature
    if isinstance(temperature, Mapping) and plugged in (None, method.strategy):
        nested = {key: value for key, value in temperature.items() if key != "name"}
        problems += [
            f"temperature.{key}: unknown argument of temperature strategy {method.strategy!r}."
            f"{suggestion(key, arguments)}"
            for key in nested
            if key not in arguments
        ]
        problems += [
            f"temperature.{key}: set twice, {value!r} here and {overrides[key]!r} beside `temperature`. Keep one."
            for key, value in nested.items()
            if key in overrides and key in arguments and key != "temperature"
        ]
        overrides = {**{key: value for key, value in overrides.items() if key != "temperature"}, **nested}
    elif isinstance(plugged, str) and plugged == method.strategy:
        overrides = {key: value for key, value in overrides.items() if key != "temperature"}
    elif "temperature" in overrides and plugs_in(method, temperature):
        kind = plugged.name if isinstance(plugged, TemperatureStrategy) else plugged
        if method.hosts is not None and kind not in (*method.hosts, method.strategy):
            problems.append(
                f"temperature: method {name!r} is its own temperature strategy, {method.strategy!r}, and got {kind!r}."
                f" Set that strategy's arguments ({', '.join(arguments)}), or use method 'kd' with this temperature."
            )
        else:
            problems += [
                f"{key}: belongs to temperature strategy {method.strategy!r}, which `temperature` replaces by "
                f"{kind!r}. Set it inside `temperature`."
                for key in arguments
                if key in overrides and key != "temperature"
            ]
    if problems:
        raise ConfigError(problems)
    return overrides


def _compose(name: str, method: Method, values: dict[str, Any], num_labels: int | None) -> DistillationObjective:
    frame = {key: values.pop(key) for key in ("ce_weight", "kd_weight", "warmup", "warmup_epochs") if key in values}
    extra = {key: values.pop(key) for key in method.parameters if key in values}
    plugged = values.get("temperature")
    spec = plugged if plugs_in(method, plugged) else {"name": method.strategy, **values}
    try:
        strategy = as_strategy(spec, num_labels=num_labels)
        if name == "dtkd":
            losses = [(extra["alpha"], KDLoss(strategy)), (extra["beta"], KDLoss(strategy.temperature))]
        else:
            loss = {"name": method.loss, "sample_weight": method.sample_weight, "temperature": strategy, **extra}
            losses = [(1.0, as_loss(loss, "", num_labels=num_labels))]
        return DistillationObjective(losses, **{"kd_weight": 1.0, **frame})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError([str(error)]) from error

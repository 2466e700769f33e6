"""The published methods by name: composition, the papers' hyperparameters with their source, citation.

One literal table. A method is a mix of cross-entropy and distillation losses over a temperature strategy; its settings
are the generic default, the papers' per benchmark, and the papers' per teacher-student pair where they tune per pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .losses import KDLoss
from .objective import DistillationObjective
from .registry import ConfigError, accepted_arguments, suggestion
from .temperatures import TEMPERATURES, TemperatureStrategy, as_strategy


@dataclass(frozen=True)
class Setting:
    """Hyperparameters and the sentence, table or file they come from."""

    values: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Method:
    """A published method.

    Args:
        title: One line for tables.
        strategy: Registry key of its temperature strategy.
        formula: The objective, in plain text.
        paper: Citation in one line.
        url: Where to read it.
        default: What `build_objective` uses without a benchmark.
        benchmarks: The paper's values per benchmark.
        pairs: `benchmark -> "teacher-student" -> values`, where the paper tunes per pair.
        parameters: Parameters beyond the weights, the warm-up and the strategy's own.
        hosts: Other strategies that may be plugged in under this name; None for any.
        notes: What to know before use.
    """

    title: str
    strategy: str
    formula: str
    paper: str
    url: str
    default: Setting
    benchmarks: Mapping[str, Setting] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = ()
    notes: str = ""


_HINTON = ("Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network, 2015", "1503.02531")
_CTKD = ("Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023", "2211.16231")
_DTKD = ("Wei & Bai, Dynamic Temperature Knowledge Distillation, 2024", "2404.12711")
_TTM = ("Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024", "2402.11148")


def _url(arxiv: str) -> str:
    return f"https://huggingface.co/papers/{arxiv}"


def _transformed(source: str, **pairs: tuple[float, float]) -> dict[str, Setting]:
    """Gamma and beta per pair; keyword `a__b` stands for the pair `a-b`."""
    return {
        name.replace("__", "-"): Setting({"gamma": gamma, "kd_weight": beta}, source)
        for name, (gamma, beta) in pairs.items()
    }


_TTM_PAIRS = _transformed(
    "ICLR 2024 paper, Tables 8-9 (TTM): gamma, beta",
    wrn_40_2__wrn_16_2=(0.1, 101.0),
    wrn_40_2__wrn_40_1=(0.1, 76.0),
    resnet56__resnet20=(0.3, 7.0),
    resnet110__resnet20=(0.2, 8.0),
    resnet110__resnet32=(0.1, 33.0),
    resnet32x4__resnet8x4=(0.1, 100.0),
    vgg13__vgg8=(0.1, 45.0),
    vgg13__mobilenet_v2=(0.2, 16.0),
    resnet50__mobilenet_v2=(0.2, 20.0),
    resnet50__vgg8=(0.1, 70.0),
    resnet32x4__shufflenet_v1=(0.2, 12.0),
    resnet32x4__shufflenet_v2=(0.4, 40.0),
    wrn_40_2__shufflenet_v1=(0.3, 8.0),
)
_WTTM_PAIRS = _transformed(
    "ICLR 2024 paper, Tables 8-9 (WTTM): gamma, beta",
    wrn_40_2__wrn_16_2=(0.1, 4.0),
    wrn_40_2__wrn_40_1=(0.1, 3.0),
    resnet56__resnet20=(0.3, 1.5),
    resnet110__resnet20=(0.2, 2.0),
    resnet110__resnet32=(0.1, 1.5),
    resnet32x4__resnet8x4=(0.1, 3.0),
    vgg13__vgg8=(0.1, 2.25),
    vgg13__mobilenet_v2=(0.2, 3.0),
    resnet50__mobilenet_v2=(0.2, 5.0),
    resnet50__vgg8=(0.1, 2.0),
    resnet32x4__shufflenet_v1=(0.2, 1.4),
    resnet32x4__shufflenet_v2=(0.4, 16.0),
    wrn_40_2__shufflenet_v1=(0.3, 3.0),
)
_WTTM_IMAGENET = _transformed(
    "ICLR 2024 paper, Table 10: gamma, beta",
    resnet34__resnet18=(0.8, 1.6),
    resnet50__resnet18=(0.8, 1.6),
    resnet101__resnet18=(0.8, 1.6),
    resnet152__resnet18=(0.8, 1.6),
    resnet50__mobilenet_v1=(0.7, 3.5),
)


def _dtkd_pairs() -> dict[str, Setting]:
    source = "authors' code, configs per pair: alpha, beta"
    weights = {
        (1.0, 0.5): ("resnet56-resnet20", "resnet110-resnet32", "wrn_40_2-wrn_40_1"),
        (3.0, 1.0): (
            "resnet32x4-resnet8x4",
            "wrn_40_2-wrn_16_2",
            "vgg13-vgg8",
            "resnet32x4-shufflenet_v1",
            "resnet32x4-shufflenet_v2",
            "vgg13-mobilenet_v2",
        ),
        (2.0, 0.5): ("wrn_40_2-shufflenet_v1",),
        (3.0, 2.0): ("resnet50-mobilenet_v2",),
    }
    return {
        pair: Setting({"alpha": alpha, "beta": beta}, source)
        for (alpha, beta), pairs in weights.items()
        for pair in pairs
    }


_CTKD_BENCHMARKS = {
    "cifar100": Setting(
        {"ce_weight": 0.1, "kd_weight": 0.9, "curriculum_epochs": 10},
        "authors' code: CE .1, KL .9, 10 of 240 epochs; temperature in the student's SGD, lr .05, weight decay 5e-4",
    ),
    "imagenet": Setting(
        {"ce_weight": 1.0, "kd_weight": 1.0, "curriculum_epochs": 5},
        "authors' code: CE 1, KL 1, 5 of 120 epochs; temperature in the student's SGD, lr .1, weight decay 1e-4",
    ),
}

METHODS: dict[str, Method] = {
    "kd": Method(
        title="Knowledge distillation at a constant temperature",
        strategy="constant",
        formula="ce_weight·CE + kd_weight·T²·KL(p(T) ‖ q(T))",
        hosts=None,
        paper=_HINTON[0],
        url=_url(_HINTON[1]),
        default=Setting({"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}, "as on CIFAR-100"),
        benchmarks={
            "cifar100": Setting(
                {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}, "mdistiller's KD config: CE .1, KD .9, T 4"
            ),
            "imagenet": Setting(
                {"ce_weight": 0.5, "kd_weight": 0.5, "temperature": 1.0}, "mdistiller's KD config: CE .5, KD .5, T 1"
            ),
        },
    ),
    "kd_annealed": Method(
        title="Knowledge distillation at a scheduled temperature",
        strategy="linear",
        formula="ce_weight·CE + kd_weight·T(t)²·KL(p(T(t)) ‖ q(T(t)))",
        hosts=("cosine", "exponential"),
        paper=_HINTON[0],
        url=_url(_HINTON[1]),
        default=Setting(
            {"ce_weight": 0.1, "kd_weight": 0.9, "start": 4.0, "end": 1.0},
            "not in a paper: KD's weights, linear from T 4 to T 1",
        ),
        notes="The curve is any scheduled strategy: temperature={name: linear | cosine | exponential, start, end}.",
    ),
    "ctkd": Method(
        title="Curriculum temperature, one learned temperature",
        strategy="ctkd",
        formula="ce_weight·CE + kd_weight·τ²·KL(p(τ) ‖ q(τ)); τ ascends the second term",
        paper=_CTKD[0],
        url=_url(_CTKD[1]),
        default=Setting(
            {"ce_weight": 0.1, "kd_weight": 0.9, "curriculum": 10 / 240}, "as on CIFAR-100, curriculum as a share"
        ),
        benchmarks=_CTKD_BENCHMARKS,
        notes="The temperature is stepped by its own SGD: see temperature_learning_rate.",
    ),
    "ctkd_instance": Method(
        title="Curriculum temperature, one learned temperature per row (our network)",
        strategy="ctkd_instance",
        formula="ce_weight·CE + kd_weight·mean τ_i²·KL(p(τ_i) ‖ q(τ_i)); τ_i = f(p, q) ascends the second term",
        paper=_CTKD[0],
        url=_url(_CTKD[1]),
        default=Setting(
            {"ce_weight": 0.1, "kd_weight": 0.9, "curriculum": 10 / 240}, "as on CIFAR-100, curriculum as a share"
        ),
        benchmarks=_CTKD_BENCHMARKS,
        notes="The paper's network was never published; the architecture is ours.",
    ),
    "dtkd": Method(
        title="Dynamic temperatures of both sides",
        strategy="dtkd",
        formula="ce_weight·CE + kd_weight·w(t)·[alpha·T_t·T_s·KL(p(T_t) ‖ q(T_s)) + beta·τ²·KL(p(τ) ‖ q(τ))]",
        paper=_DTKD[0],
        url=_url(_DTKD[1]),
        default=Setting(
            {"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 4.0, "alpha": 3.0, "beta": 1.0, "warmup": 20 / 240},
            "authors' code, defaults; warm-up as a share",
        ),
        benchmarks={
            "cifar100": Setting(
                {"ce_weight": 1.0, "temperature": 4.0, "alpha": 3.0, "beta": 1.0, "warmup_epochs": 20},
                "authors' code, defaults: alpha 3, beta 1, CE 1, T 4, WARMUP 20 of 240 epochs",
            )
        },
        pairs={"cifar100": _dtkd_pairs()},
        parameters=("alpha", "beta"),
        notes="Not shift-invariant; guarded rows fall back to KD at τ. No ImageNet setting was published.",
    ),
    "ttm": Method(
        title="Transformed teacher matching",
        strategy="ttm",
        formula="ce_weight·CE + kd_weight·KL(p(T) ‖ q(1)), T = 1/gamma",
        paper=_TTM[0],
        url=_url(_TTM[1]),
        default=Setting(
            {"ce_weight": 1.0, "kd_weight": 36.0, "temperature": 4.0},
            "ICLR 2024 paper, Fig. 1: T 4 and beta 36, which Eq. 19 gives for KD's weight .9",
        ),
        benchmarks={
            "cifar100": Setting({"ce_weight": 1.0}, "ICLR 2024 paper, Eq. 2; gamma and beta are tuned per pair")
        },
        pairs={"cifar100": _TTM_PAIRS},
        notes="gamma and beta are tuned per pair in the paper.",
    ),
    "wttm": Method(
        title="Weighted transformed teacher matching",
        strategy="wttm",
        formula="ce_weight·CE + kd_weight·U(p)·KL(p(T) ‖ q(1)), U = Σ p^gamma, T = 1/gamma",
        paper=_TTM[0],
        url=_url(_TTM[1]),
        default=Setting(
            {"ce_weight": 1.0, "kd_weight": 3.0, "gamma": 0.2},
            "not in the paper as such: the medians over its 13 CIFAR-100 pairs (Tables 8-9)",
        ),
        benchmarks={
            "cifar100": Setting({"ce_weight": 1.0}, "ICLR 2024 paper, §4; gamma and beta are tuned per pair"),
            "imagenet": Setting({"ce_weight": 1.0}, "ICLR 2024 paper, §4; gamma and beta per pair, Table 10"),
        },
        pairs={"cifar100": _WTTM_PAIRS, "imagenet": _WTTM_IMAGENET},
        notes="gamma and beta are tuned per pair in the paper.",
    ),
}

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
    elif "temperature" in overrides and not (isinstance(plugged, (int, float)) and "temperature" in arguments):
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
    is_own = plugged is None or (isinstance(plugged, (int, float)) and not isinstance(plugged, bool))
    spec = {"name": method.strategy, **values} if is_own else plugged
    try:
        strategy = as_strategy(spec, num_labels=num_labels)
        losses = [(1.0, KDLoss(strategy))]
        if name == "dtkd":
            losses = [(extra["alpha"], KDLoss(strategy)), (extra["beta"], KDLoss(strategy.temperature))]
        return DistillationObjective(losses, **{"kd_weight": 1.0, **frame})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError([str(error)]) from error

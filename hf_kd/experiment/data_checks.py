"""What is wrong with a `data` section, before anything is read."""

from collections.abc import Mapping
from typing import Any

from ..data import BENCHMARKS, EMBEDDED, SPLITS
from ..data.augmentation import parse_augmentation, parse_mixing
from ..data.in_memory import DEVICE
from ..functional import REGRESSION, SINGLE_LABEL
from ..losses import PROBLEM_TYPES
from ..metrics import metrics_for
from ..objective import DistillationObjective
from ..registry import ConfigError, suggestion
from ..trainer.passes import check_whole_epochs
from ..training_args import BALANCED
from .student_checks import is_there


def data_problems(data: Any, training: Any = None, objective: DistillationObjective | None = None) -> list[str]:
    """Sources, columns, labels and metrics that cannot be, and draws and mixtures that do not go with the rest."""
    if not isinstance(data, Mapping):
        return []
    problems = _source_problems(data.get("name"), data.get("path"))
    columns = data.get("text_column")
    if isinstance(columns, list) and len(columns) != 2:
        problems.append(f"data.text_column: expected one column, or two for sentence pairs, got {columns!r}.")
    problems += _label_problems(data)
    problems += _augmentation_problems(data.get("augmentation")) or _mixing_problems(data, objective)
    problems += _sampling_problems(data, training)
    problems += _memory_problems(data, training)
    problems += _limit_problems(data.get("max_samples"))
    return problems + _streaming_problems(data, training, objective)


def _source_problems(name: Any, path: Any) -> list[str]:
    if name is None and path is None:
        return ["data: needs `name` (embedded, a benchmark, or on the Hub) or `path` (a local file or folder)."]
    if name is not None and path is not None and name not in BENCHMARKS:
        return [
            f"data.path: stands beside `name`, which is only for a local copy of a benchmark, and {name!r} is none."
            f"{suggestion(name, BENCHMARKS)} Remove one of them."
        ]
    if isinstance(path, str) and not is_there(path):
        return [f"data.path: there is no file or folder {path!r}."]
    if isinstance(name, str) and name.startswith("embedded/") and name not in EMBEDDED:
        return [f"data.name: unknown embedded set {name!r}.{suggestion(name, EMBEDDED)}"]
    return []


def _streaming_problems(data: Mapping[Any, Any], training: Any, objective: DistillationObjective | None) -> list[str]:
    if data.get("streaming") is not True:
        return []
    problems = [
        f"data.{key}: chooses among all rows, and with data.streaming they are not read beforehand. Remove one."
        for key in ("labelled", "drop_unlabelled", "class_weights", "sample_weight")
        if data.get(key)
    ]
    steps = training.get("max_steps") if isinstance(training, Mapping) else None
    if not isinstance(steps, int) or steps < 1:
        problems.append(
            "training.max_steps: is required with data.streaming, because how many rows an epoch has is not known. "
            "Give it, e.g. rows * epochs / batch size."
        )
    try:
        if objective is not None:
            check_whole_epochs(objective)
    except ValueError as error:
        problems.append(f"data.streaming: does not go with the schedule ({str(error).rstrip('.')}).")
    return problems


def _limit_problems(limits: Any) -> list[str]:
    """Rows to keep of splits that there are not, or fewer than one."""
    if isinstance(limits, int) and not isinstance(limits, bool):
        return [] if limits >= 1 else [f"data.max_samples: expected rows to keep, at least 1, got {limits}."]
    problems = []
    for split, limit in limits.items() if isinstance(limits, Mapping) else ():
        if split not in SPLITS:
            problems.append(f"data.max_samples.{split}: no such split.{suggestion(str(split), SPLITS)}")
        elif isinstance(limit, int) and limit < 1:
            problems.append(f"data.max_samples.{split}: expected rows to keep, at least 1, got {limit}.")
    return problems


def _memory_problems(data: Mapping[Any, Any], training: Any) -> list[str]:
    where, problems = data.get("in_memory"), []
    if where not in (True, DEVICE):
        return problems
    if data.get("streaming") is True:
        problems.append("data.in_memory: keeps all rows, and data.streaming none. Remove one.")
    workers = training.get("dataloader_num_workers") if isinstance(training, Mapping) else None
    if where == DEVICE and isinstance(workers, int) and workers > 0:
        problems.append(
            f"training.dataloader_num_workers: {workers} processes were to read rows that data.in_memory=device keeps "
            "where they cannot. Remove it: batches are made on the device."
        )
    return problems


def _augmentation_problems(spec: Any) -> list[str]:
    if not isinstance(spec, (str, Mapping)):
        return []  # none, or the structure check has said so
    try:
        parse_augmentation(spec)
    except ConfigError as error:
        return [f"data.{line}" for line in error.problems]
    return []


def _problem_type(data: Mapping[Any, Any]) -> Any:
    known = BENCHMARKS.get(data["name"]) if isinstance(data.get("name"), str) else None
    return data.get("problem_type") or (known.problem_type if known else PROBLEM_TYPES[0])


def _mixing_problems(data: Mapping[Any, Any], objective: DistillationObjective | None) -> list[str]:
    """Mixtures of two labels where a loss needs one."""
    spec = data.get("augmentation")
    mixing = parse_mixing(spec)
    if mixing is None:
        return []
    key = "data.augmentation." + next(name for name in ("mixup", "cutmix") if spec.get(name))
    needing = [] if objective is None else [loss.name for loss in objective.active_losses if loss.needs_labels]
    if needing:
        return [
            f"{key}: mixes labels, and the loss {', '.join(f'`{name}`' for name in needing)} treats the one labelled "
            "class of a row apart. Remove mixup and cutmix, or choose a method without labels in its distillation, "
            "such as kd."
        ]
    if _problem_type(data) == REGRESSION:
        return [f"{key}: mixes labels, and squared error is not linear in numbers. Remove mixup and cutmix."]
    return []


def _sampling_problems(data: Mapping[Any, Any], training: Any) -> list[str]:
    """Balanced draws where there are no classes to see, or where their weights balance them already."""
    key = "training.train_sampling_strategy"
    if not isinstance(training, Mapping) or training.get("train_sampling_strategy") != BALANCED:
        return []
    if data.get("streaming") is True:
        return [f"{key}: balanced draws from all rows, and with data.streaming they are not read beforehand."]
    if _problem_type(data) != SINGLE_LABEL:
        return [f"{key}: balanced needs one class per row, and data.problem_type is {_problem_type(data)}."]
    if data.get("class_weights") == BALANCED:
        return [
            f"{key}: balanced draws every class equally often, and data.class_weights=balanced weighs rare ones up as "
            "well: together they count twice over. Remove one of them."
        ]
    return []


def _label_problems(data: Mapping[Any, Any]) -> list[str]:
    """An unknown kind of labels, or metrics that do not go with it."""
    problem_type = _problem_type(data)
    if problem_type not in PROBLEM_TYPES:
        return [f"data.problem_type: unknown value {problem_type!r}.{suggestion(problem_type, PROBLEM_TYPES)}"]
    names = data.get("metrics")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []
    try:
        metrics_for(problem_type, None, names)
    except ValueError as error:
        return [f"data.metrics: {error}"]
    return []

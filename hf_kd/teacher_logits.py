"""What a teacher answers to every row, as a column of the data: afterwards no teacher is needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .data import SPLITS, Task
from .inputs import TEACHER_LOGITS
from .label_map import LabelMap
from .teacher import resolve_teacher

LOOKED_AT = 64


class ClassesOf(nn.Module):
    """Stands in for a student, of which only the classes are known."""

    def __init__(self, task: Task):
        super().__init__()
        self.config = PreTrainedConfig(**task.head)


def add_teacher_logits(
    task: Task,
    teacher: nn.Module | str | Callable[..., Any],
    *,
    label_map: LabelMap | Mapping[Any, Any] | str | PathLike | None = None,
    batch_size: int = 64,
    splits: Sequence[str] = ("train",),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Task:
    r"""Ask the teacher once about every row, and keep its logits beside the rows.

    A trainer whose data have the column ``teacher_logits`` distils from it and runs no teacher: for one that answers
    slowly, that is behind an API (pass any function), or that may not leave another machine (save the data with
    `save_to_disk`). It learns what it would from the live teacher, up to the rounding of differently composed batches.

    Args:
        task: The data. Its rows must be the same whenever they are read: a teacher sees each view of an augmented row
            anew, and stored logits would belong to another view.
        teacher: A classifier, its Hub id or path, or a function from the batch's columns to logits.
        label_map: Which of the teacher's classes is which of the data's, as in `DistillationTrainer`. None matches
            them by name. What is stored has the data's classes, in their order.
        batch_size: Rows per forward of the teacher.
        splits: Which splits get the column. ``validation`` and ``test`` need it for `evaluate_with_teacher`.
        on_progress: Told the split, the rows done and all its rows, after each forward.

    Returns:
        The task with the column in float32, one number per class in the order of `task.label_names`.

    Raises:
        ValueError: A split is unknown or has the column already, rows change from reading to reading, or the teacher
            does not fit, does not know all classes, or answers with another number of them or with NaN.

    Example:
        >>> task = add_teacher_logits(task, "outputs/teacher")  # doctest: +SKIP
        >>> DistillationTrainer(student, args, train_dataset=task.train, ...)  # doctest: +SKIP
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or isinstance(splits, str):
        raise ValueError(
            f"`add_teacher_logits(splits={splits!r})`: a task has the splits {', '.join(SPLITS)}. Pass some of them."
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`add_teacher_logits(batch_size={batch_size!r})` must be a positive integer. Pass e.g. 64.")
    frozen = resolve_teacher(teacher, ClassesOf(task), label_map)
    if frozen is None:
        raise ValueError("`add_teacher_logits(teacher=None)`: there is nobody to ask. Pass a model or a function.")
    if frozen.shared is not None:
        missing = frozen.label_map.unknown
        raise ValueError(
            f"`add_teacher_logits`: the teacher does not know {len(missing)} of the {task.num_labels} classes "
            f"({', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}), and the column has one number for each. "
            "Let it run during training, where distillation is over the classes that both know."
        )
    if "train" in splits and getattr(task.collator, "mixing", None) is not None:
        raise ValueError(
            "`add_teacher_logits`: the task's training batches are mixed (mixup, CutMix), and logits stored now would "
            "belong to the unmixed rows. Load the task without, or let the teacher run during training."
        )
    accelerator = Accelerator()
    done = {}
    for split in splits:
        rows = getattr(task, split)
        _check_rows(rows, split)
        parts = []
        for start in range(0, len(rows), batch_size):
            batch = task.collator([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
            batch = {k: v.to(accelerator.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            parts.append(_checked(frozen.logits(batch, accelerator), len(next(iter(batch.values()))), task))
            if on_progress is not None:
                on_progress(split, min(start + batch_size, len(rows)), len(rows))
        done[split] = with_logits(rows, torch.cat(parts).numpy())
    return replace(task, **done)


def _check_rows(rows: datasets.Dataset, split: str) -> None:
    """Refuse rows that hold logits already, or that are drawn anew at each reading."""
    if TEACHER_LOGITS in rows.column_names:
        raise ValueError(
            f"`add_teacher_logits`: the split {split!r} has a column `{TEACHER_LOGITS}` already, and which teacher "
            f"gave it is not known. Remove it first (`remove_columns`)."
        )
    for index in range(min(LOOKED_AT, len(rows))):
        first, second = rows[index], rows[index]
        changed = [name for name, value in first.items() if not _is_same(value, second[name])]
        if changed:
            raise ValueError(
                f"`add_teacher_logits`: the column `{changed[0]}` of the split {split!r} is another one each time it "
                "is read (random augmentation), so that logits stored now would belong to views the student never "
                "sees. Load the task without augmentation, or let the teacher run during training."
            )


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, (Tensor, np.ndarray)):
        return bool((torch.as_tensor(first) == torch.as_tensor(second)).all())
    return bool(first == second)


def _checked(logits: Tensor, count: int, task: Task) -> Tensor:
    if logits.shape != (count, task.num_labels):
        raise ValueError(
            f"`add_teacher_logits`: the teacher answered {count} rows with logits of shape {tuple(logits.shape)}; the "
            f"data have {task.num_labels} classes, in the order of `task.label_names`. Pass a teacher for them."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "`add_teacher_logits`: the teacher gave NaN or infinite logits, from which nothing can be learned. Check "
            "its inputs and precision (`dtype=float32`)."
        )
    return logits.float().cpu()


def with_logits(rows: datasets.Dataset, logits: np.ndarray) -> datasets.Dataset:
    """`rows` with the column, in the same format; a table in memory stays there."""
    layout = rows.format
    bare = rows.with_format(None)
    if bare._indices is not None:
        bare = bare.flatten_indices(keep_in_memory=not bare.cache_files)
    feature = datasets.List(datasets.Value("float32"), length=logits.shape[1])
    column = datasets.Dataset.from_dict(
        {TEACHER_LOGITS: list(logits)}, features=datasets.Features({TEACHER_LOGITS: feature})
    )
    made = datasets.concatenate_datasets([bare, column], axis=1)
    if layout["type"] == "custom":
        return made.with_transform(layout["format_kwargs"]["transform"], output_all_columns=True)
    if layout["type"] is None:
        return made
    names = layout["columns"]
    names = [*names, TEACHER_LOGITS] if len(names) < len(rows.column_names) else None
    every = layout["output_all_columns"]
    return made.with_format(layout["type"], columns=names, output_all_columns=every, **layout["format_kwargs"])

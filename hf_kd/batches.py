"""What losses look at: the rows of a batch, of all processes, and of the classes that both models know."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .functional import IGNORE_INDEX, labelled_rows, task_loss

EXTRAS_OF_ROWS = ("student_features", "teacher_features")
"""Those of `hf_kd.losses.EXTRAS` that hold one value, or vector, per row."""


class Batch(NamedTuple):
    """What the losses look at.

    Args:
        student_logits: `(batch, num_labels)`.
        teacher_logits: The same shape, or `(batch, shared)`; without gradient.
        labels: What `hf_kd.functional.task_loss` takes: `(batch,)`, -100 on unlabelled rows, for classes.
        extras: The further tensors that losses need, by name; see `hf_kd.losses.EXTRAS`.
    """

    student_logits: Tensor
    teacher_logits: Tensor | None = None
    labels: Tensor | None = None
    extras: Mapping[str, Tensor] = {}


class View(NamedTuple):
    """What one kind of loss is evaluated on, and what its sums are divided by.

    Args:
        batch: The rows of this batch.
        whole_batch: The counted rows of all processes.
        row_weight: `(batch,)` of 0 and 1; None if all rows count.
        own_rows: Rows of this batch that count.
        num_rows: Rows of the optimizer step.
        num_labelled: Labelled rows of the optimizer step.
    """

    batch: Batch
    whole_batch: Batch
    row_weight: Tensor | None
    own_rows: Tensor | float
    num_rows: Tensor | float
    num_labelled: Tensor | float


class MixedLabels(NamedTuple):
    r"""The second label of rows that are mixtures of two.

    Args:
        labels: Of the other members, as those of the first.
        share: `(batch,)`: \(\lambda\), how much of each row is its first member's, in [0, 1].
        label_weight: `(batch,)`: how much the second labels count; None for all alike.
    """

    labels: Tensor
    share: Tensor
    label_weight: Tensor | None = None


def label_parts(
    labels: Tensor, label_weight: Tensor | None = None, mixed: MixedLabels | None = None
) -> list[tuple[Tensor, Tensor | None]]:
    """Labels, and how much each counts in its row (None: once): one pair, or two of a mixture."""
    if mixed is None:
        return [(labels, label_weight)]
    first, second = mixed.share, 1 - mixed.share
    if label_weight is not None:
        if mixed.label_weight is None:
            raise ValueError(
                "`label_weight` of mixed rows says how much the first label counts, and nothing says it of the second "
                "one (`labels_mix`). Add a column `label_weight_mix`."
            )
        first, second = first * label_weight.to(first.device), second * mixed.label_weight.to(second.device)
    return [(labels, first), (mixed.labels, second)]


def parts_loss(logits: Tensor, parts: list, problem_type: str, label_smoothing: float) -> Tensor:
    """`task_loss` of each row, each label by its weight: `(batch,)`.

    Cross-entropy is linear in its target, so this is the cross-entropy with the mixed one.
    """
    total = None
    for labels, weight in parts:
        rows = task_loss(logits, labels, problem_type, label_smoothing)
        rows = rows if weight is None else rows * weight.to(rows)
        total = rows if total is None else total + rows
    return total


def parts_mass(parts: list, row_weight: Tensor | None, problem_type: str) -> Tensor:
    """What all labels that there are weigh together; their number, without weights."""
    total = 0.0
    for labels, weight in parts:
        mass = labelled_rows(labels, problem_type)
        mass = mass if weight is None else mass * weight.to(labels.device)
        total = total + (mass if row_weight is None else mass * row_weight.to(labels.device)).sum()
    return total


def counts_of(
    labels: Tensor | None, row_weight: Tensor | None, rows: int, problem_type: str
) -> tuple[Tensor | float, Tensor | float]:
    """Rows and labelled rows of one batch."""
    own_rows = rows if row_weight is None else row_weight.sum()
    if labels is None:
        return own_rows, 0
    labelled = labelled_rows(labels, problem_type)
    return own_rows, (labelled if row_weight is None else labelled * row_weight).sum()


def selected(batch: Batch, chosen: Tensor | None) -> Batch:
    """Some rows, `(batch,)` of bool; None for all."""
    if chosen is None:
        return batch
    extras = {k: v[chosen] if k in EXTRAS_OF_ROWS else v for k, v in batch.extras.items()}
    return Batch(*(None if part is None else part[chosen] for part in batch[:3]), extras)


class SharedClasses(nn.Module):
    """The student's classes that the teacher knows too.

    Distillation compares the two models over these alone, each side normalised over them. A row whose label is one of
    the others has nothing to do with the teacher's answer and is left to the cross-entropy; an unlabelled row may be
    any class and takes part.

    Args:
        classes: The ids of the shared classes, ascending.
        num_labels: All of the student's.
    """

    def __init__(self, classes: Sequence[int], num_labels: int):
        super().__init__()
        self.classes = tuple(classes)
        places = torch.full((num_labels,), IGNORE_INDEX)
        places[torch.tensor(classes)] = torch.arange(len(classes))
        self.register_buffer("index", torch.tensor(classes), persistent=False)
        self.register_buffer("places", places, persistent=False)

    def logits(self, student_logits: Tensor) -> Tensor:
        """The shared columns: `(batch, num_labels)` -> `(batch, shared)`."""
        return student_logits.index_select(-1, self.index.to(student_logits.device))

    def labels(self, labels: Tensor) -> Tensor:
        """Labels as the shared classes count: -100 for the others; of several labels per row, the shared ones."""
        if labels.dim() > 1:
            return labels.index_select(-1, self.index.to(labels.device))
        is_class = (labels >= 0) & (labels < len(self.places))
        return torch.where(is_class, self.places.to(labels.device)[torch.where(is_class, labels, 0).long()], labels)

    def taught(self, labels: Tensor) -> Tensor:
        """Which rows the teacher has a say on, `(batch,)`, bool: those not labelled with a class it does not know."""
        if labels.dim() > 1:
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return (labels == IGNORE_INDEX) | (self.labels(labels) != IGNORE_INDEX)

    def rows(self, labels: Tensor | None, row_weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Labels and row weights for losses that look at the teacher; rows it has no say on weigh nothing."""
        if labels is None:
            return labels, row_weight
        taught = self.taught(labels).float()
        return self.labels(labels), taught if row_weight is None else taught * row_weight

    def extra_repr(self) -> str:
        """The class ids, for `repr` and the manifest of a checkpoint."""
        return f"{list(self.classes)} of {len(self.places)}"


def known_labels(
    labels: Tensor | None, mixed: MixedLabels | None, shared: SharedClasses | None = None
) -> Tensor | None:
    """Labels as distillation may know them: none on mixed rows, but for a class that the teacher does not know.

    Such a row is left to the cross-entropy whichever of its members is of that class.
    """
    if labels is None or mixed is None:
        return labels
    is_whole = (mixed.share == 1).reshape(-1, *(1,) * (labels.dim() - 1))
    known = torch.where(is_whole, labels, IGNORE_INDEX)
    if shared is not None and labels.dim() == 1:
        for part, share in ((labels, mixed.share), (mixed.labels, 1 - mixed.share)):
            known = torch.where((share > 0) & ~shared.taught(part), part, known)
    return known


def taught_view(
    view: View,
    shared: SharedClasses,
    counts: tuple[Tensor | float, Tensor | float] | None,
    has_relations: bool,
    problem_type: str,
) -> View:
    """What is left of `view` for losses that look at the teacher.

    Args:
        view: All rows and classes.
        shared: The classes that the teacher knows.
        counts: Rows and labelled rows that are left, of the optimizer step; None for those of the batch.
        has_relations: Whether any loss looks at `view.whole_batch`.
        problem_type: What the labels are.
    """
    labels, row_weight = shared.rows(view.batch.labels, view.row_weight)
    batch = view.batch._replace(student_logits=shared.logits(view.batch.student_logits), labels=labels)
    whole = view.whole_batch
    if has_relations:  # choosing rows waits for the device
        whole_labels, taught = shared.rows(whole.labels, None)
        whole = whole._replace(student_logits=shared.logits(whole.student_logits), labels=whole_labels)
        if taught is not None and taught.any():  # else any rows will do: they weigh nothing
            whole = selected(whole, taught > 0)
    own = counts_of(labels, row_weight, len(batch.student_logits), problem_type)
    return View(batch, whole, row_weight, own[0], *(own if counts is None else counts))

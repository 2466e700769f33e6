"""What batch relations share: one value for all rows, and correlations and normalisations without singular points.

A batch relation compares rows with each other (which images are alike? how does one class vary over the batch?), so
its value is no mean of row values. What it sees decides what it teaches; both base classes below say how.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ..functional import upcast
from ..registry import check_number
from ..temperatures import Progress
from .base import DistillationLoss, LossOutput, check_pair
from .tempered import Temperature, TemperedLoss

EPSILON = 1e-8
"""Added to the denominators of correlations, as in the authors' codes; it belongs to the published values."""
SMALLEST_SPREAD = 1e-3
"""Below this share of its norm a vector's deviation from its mean has no direction worth dividing out."""
SMALLEST_NORM = 1e-3
"""Below this norm a vector of logits has no direction worth dividing out."""


class RelationLoss(TemperedLoss):
    r"""Abstract: \(w \, c \, R(v / T_t, z / T_s)\), one value per batch, over a strategy that treats all rows alike.

    A concrete relation defines `relation` and says in `compensate` whether its official form has the factor \(c\).

    **What it sees.** The trainer hands over the rows of all processes, one micro-batch of each at a time. With
    gradient accumulation a step's value is therefore the mean over micro-batches, weighted by their rows, which is
    *not* the relation of the whole batch: rows of different micro-batches are never compared. To accumulate is a
    compromise here; a larger `per_device_train_batch_size` is better. A batch of one row has no other row to be
    compared with, so what goes over columns or pairs teaches (almost) nothing there.

    Labels play no part, so unlabelled rows do.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments. One
            temperature for all rows: strategies with temperatures or weights per row are refused.
        compensate: Multiply by the strategy's compensation (\(T^2\) for one shared temperature).
        num_labels: For strategies given by name that need it, and to warn where two classes leave nothing to learn.

    Raises:
        TypeError: If `temperature` or `compensate` has the wrong type.
        ValueError: If the strategy cannot be built, or treats rows apart.
    """

    row_wise = False

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        r"""\(R\) and its parts, of raised and tempered logits: scalars, or one value per row if `row_wise`."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `relation`.")

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value for the whole batch, or one per row if `row_wise`."""
        batch = self.tempered(student_logits, teacher_logits, labels, progress)
        value, parts = self.relation(batch.teacher, batch.student)
        scale = batch.scale if self.compensate else batch.temperatures.weight
        if not self.row_wise:
            scale = scale.mean()  # of equal numbers: they may come expanded to one per row
        return LossOutput(
            scale * value, batch.temperatures, {key: (scale * part).detach() for key, part in parts.items()}
        )


class LogitRelationLoss(DistillationLoss):
    r"""Abstract: \(R(v, z)\), one value per batch, of the logits as they are: no softmax, no temperature.

    Not invariant to a constant added to a row's logits, which a softmax would ignore.

    **What it sees.** The trainer hands over the rows of all processes, one micro-batch of each at a time. With
    gradient accumulation a step's value is therefore the mean over micro-batches, weighted by their rows, which is
    *not* the relation of the whole batch: rows of different micro-batches are never compared. A batch of one row has
    no other row to be compared with, so it teaches (almost) nothing.

    Labels play no part, so unlabelled rows do.
    """

    row_wise = False
    shift_invariant = False

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        r"""\(R\) of raised logits: a scalar, or one value per row if `row_wise`."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `relation`.")

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value for the whole batch, or one per row if `row_wise`.

        Raises:
            ValueError: Logits do not match.
        """
        check_pair(type(self).__name__, student_logits, teacher_logits)
        return LossOutput(self.relation(upcast(teacher_logits), upcast(student_logits)))


class RowColumnLoss(RelationLoss):
    r"""Abstract: \(c \, [\beta (1 - \overline{s(Q_{i:}, P_{i:})}) + \gamma (1 - \overline{s(Q_{:k}, P_{:k})})]\).

    \(P = \mathrm{softmax}(v/T_t)\), \(Q = \mathrm{softmax}(z/T_s)\). A concrete loss defines the similarity \(s\) of
    two vectors. Row-wise with `gamma=0`, else a batch relation (see `RelationLoss`).

    Args:
        beta: Weight of the half over rows, >= 0.
        gamma: Weight of the half over columns, >= 0.
        temperature: As in `RelationLoss`; with `gamma=0` any strategy.
        compensate: As in `RelationLoss`.
        num_labels: As in `RelationLoss`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a weight is negative or both are 0, or the strategy cannot be built or treats rows apart.
    """

    halves: ClassVar[tuple[str, str]]
    """What the two parts are called."""

    def __init__(
        self, beta: float, gamma: float, temperature: Temperature, *, compensate: bool, num_labels: int | None = None
    ):
        owner, why = type(self).__name__, "it multiplies a loss that is minimised. Pass 0.0 to switch that half off."
        beta = check_number(owner, "beta", beta, why, low=0.0)
        gamma = check_number(owner, "gamma", gamma, why, low=0.0)
        if beta == 0 and gamma == 0:
            raise ValueError(
                f"`{owner}(beta=0, gamma=0)` switches both halves off, and nothing else has a gradient: nothing would "
                "be learned. Pass at least one positive weight."
            )
        self.row_wise = gamma == 0  # before the strategy is checked against it
        super().__init__(temperature, compensate=compensate, num_labels=num_labels)
        self.beta, self.gamma = beta, gamma

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        r"""\(s\) per row of two matrices, at most 1."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `similarity`.")

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Both halves, weighted; one that is switched off is not computed."""
        teacher, student = teacher_logits.softmax(-1), student_logits.softmax(-1)
        parts = {}
        if self.beta > 0:
            rows = 1 - self.similarity(student, teacher)
            parts[self.halves[0]] = rows if self.row_wise else rows.mean()
        if self.gamma > 0:
            parts[self.halves[1]] = (1 - self.similarity(student.mT, teacher.mT)).mean()
        weights = dict(zip(self.halves, (self.beta, self.gamma), strict=True))
        return torch.stack([weights[half] * part for half, part in parts.items()]).sum(0), parts

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"beta={self.beta}, gamma={self.gamma}, {super().extra_repr()}"


def pearson(first: Tensor, second: Tensor) -> Tensor:
    r"""Correlation per row, \(\langle \bar a, \bar b \rangle / (\Vert \bar a \Vert \Vert \bar b \Vert + 10^{-8})\).

    A row that is constant (up to `SMALLEST_SPREAD`) has no spread to divide by: its norm takes that place, without
    gradient. Its correlation is about 0 either way, and the gradient still points where it should, at an ordinary size
    instead of up to 1e8 times that.

    Shape:
        two `(rows, columns)` -> `(rows,)`.
    """
    deviations = [x - x.mean(-1, keepdim=True) for x in (first, second)]
    spreads = []
    for values, deviation in zip((first, second), deviations, strict=True):
        spread, size = _norm(deviation), _norm(values.detach())
        spreads.append(torch.where(spread.detach() < SMALLEST_SPREAD * size, size, spread))
    return (deviations[0] * deviations[1]).sum(-1) / (spreads[0] * spreads[1] + EPSILON)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    r"""Cosine per row, \(\langle a, b \rangle / (\Vert a \Vert \Vert b \Vert + 10^{-8})\).

    Shape:
        two `(rows, columns)` -> `(rows,)`.
    """
    return (first * second).sum(-1) / (_norm(first) * _norm(second) + EPSILON)


def directions(values: Tensor, *, smallest: float = SMALLEST_NORM, epsilon: float = 0.0) -> Tensor:
    r"""Rows divided by \(\Vert x \Vert + \epsilon\); one shorter than `smallest` stays as it is.

    The quotient's gradient grows like one over the norm: without bound for a head that starts at zero.

    Shape:
        `(rows, columns)` -> the same.
    """
    norms = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    return values / (torch.where(norms.detach() < smallest, 1.0, norms) + epsilon)


def gram(values: Tensor) -> Tensor:
    r"""\(X X^\top\), in the precision of `values` even under autocast, which would round products to half precision.

    Shape:
        `(rows, columns)` -> `(rows, rows)`.
    """
    with torch.autocast(values.device.type, enabled=False):
        return values @ values.mT


def gram_gap(first: Tensor, second: Tensor) -> Tensor:
    r"""\(\Vert A A^\top - B B^\top \Vert_F^2\), by whichever of `(rows, rows)` and `(columns, columns)` is smaller.

    With \(D = A - B\) and \(S = A + B\) the difference is \((D S^\top + S D^\top) / 2\), and its square
    \([\langle D^\top D, S^\top S \rangle + \mathrm{tr} (S^\top D)^2] / 2\): columns against columns, for as many rows
    as there may be classes. Every term has \(D\) twice, so that nothing large cancels where A and B are close, as it
    would in \(\Vert A^\top A \Vert^2 - 2 \Vert A^\top B \Vert^2 + \Vert B^\top B \Vert^2\).

    Shape:
        two `(rows, columns)` -> `()`.
    """
    if first.shape[0] <= first.shape[1]:
        return (gram(first) - gram(second)).square().sum()
    with torch.autocast(first.device.type, enabled=False):
        gap, both = first - second, first + second
        crossed = both.mT @ gap
        return ((gram(gap.mT) * gram(both.mT)).sum() + (crossed * crossed.mT).sum()) / 2


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=-1)

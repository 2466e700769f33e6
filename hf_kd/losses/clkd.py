"""CLKD: directions of logits, by row and by class, and the correlation of classes."""

from typing import Literal

from torch import Tensor

from .relations import LogitRelationLoss, directions, gram_gap

_READINGS = ("batch", "class")


class CLKDInstanceLoss(LogitRelationLoss):
    r"""\(\frac1K \sum_k (z_{ik}/\Vert z_i \Vert - v_{ik}/\Vert v_i \Vert)^2\) per row: the direction of its logits.

    Row-wise. A positive factor on a row's logits changes nothing; a constant added to them does, which a softmax would
    ignore.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, at most 4 / num_labels.

    Raises:
        ValueError: Logits do not match.

    References:
        Zhang et al., *Class-aware Information for Logit-based Knowledge Distillation*, 2022,
        https://huggingface.co/papers/2211.14773. Neither official code nor the paper's equations could be read; the
        formula is that of three re-implementations, which agree.
        Differs from them in: a row whose norm is below 1e-3 is not divided by it, so that the gradient stays finite.
    """

    name = "clkd_instance"
    row_wise = True
    is_divergence = False  # 0 for any multiple of the teacher's logits

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Squared difference of the rows' directions."""
        return _squares(teacher_logits, student_logits).mean(-1)


class CLKDClassLoss(LogitRelationLoss):
    r"""Mean of \((z_{ik}/\Vert z_{:k} \Vert - v_{ik}/\Vert v_{:k} \Vert)^2\): how each class's logit varies over rows.

    A batch relation, one value per batch: with gradient accumulation a column holds the rows of one micro-batch (of
    all processes) only, and the mean over micro-batches is not the value of the whole batch. In a batch of one row
    nothing but each logit's sign is left, which has no gradient. Columns share a length of 1, so twice the batch (each
    row double) is half the value.

    Shape:
        logits `(batch, num_labels)` -> loss `()`.

    Raises:
        ValueError: Logits do not match.

    References:
        Zhang et al., *Class-aware Information for Logit-based Knowledge Distillation*, 2022,
        https://huggingface.co/papers/2211.14773. Neither official code nor the paper's equations could be read; the
        formula is that of three re-implementations, which agree.
        Differs from them in: a column whose norm is below 1e-3 is not divided by it, so that the gradient stays
        finite.
    """

    name = "clkd_class"

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Squared difference of the columns' directions."""
        return _squares(teacher_logits.mT, student_logits.mT).mean()


class CLKDCorrelationLoss(LogitRelationLoss):
    r"""CLKD's class correlation loss. **Unsettled**: which formula is the paper's could not be found out.

    With \(\bar z\) the logits minus each class's mean over the batch,
    \(\frac{1}{K^2} \Vert M(z) - M(v) \Vert_F^2\), where

    - `reading="batch"`: \(M(z) = \bar z \bar z^\top / (K - 1)\), \(N \times N\): rows, summed over classes;
    - `reading="class"`: \(M(z) = \bar z^\top \bar z / (K - 1)\), \(K \times K\): classes, summed over rows.

    Re-implementations disagree: one has the first; one has the second without the square (kept here, so that the two
    readings have one scale); one normalises instead of centring and is not offered.

    A batch relation, one value per batch: with gradient accumulation the means are those of one micro-batch (of all
    processes), and the mean over micro-batches is not the value of the whole batch. In a batch of one row it is 0. It
    grows with the square of the batch and the fourth power of the logits.

    Args:
        reading: `"batch"` or `"class"`.

    Shape:
        logits `(batch, num_labels)` -> loss `()`.

    Raises:
        ValueError: If `reading` is neither, or logits do not match.

    References:
        Zhang et al., *Class-aware Information for Logit-based Knowledge Distillation*, 2022,
        https://huggingface.co/papers/2211.14773 (abstract only; no official code).
    """

    name = "clkd_correlation"

    def __init__(self, reading: Literal["batch", "class"] = "batch"):
        super().__init__()
        if reading not in _READINGS:
            raise ValueError(
                f"`CLKDCorrelationLoss(reading=...)` must be 'batch' or 'class', got {reading!r}: the formula is not "
                "settled, and these are the readings offered. See its documentation."
            )
        self.reading = reading

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Squared difference of the products of centred logits."""
        num_labels = teacher_logits.shape[-1]
        centred = [logits - logits.mean(0) for logits in (teacher_logits, student_logits)]
        if self.reading == "class":
            centred = [logits.mT for logits in centred]
        return gram_gap(*centred) / (num_labels * (num_labels - 1)) ** 2

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"reading={self.reading!r}, unsettled"


def _squares(first: Tensor, second: Tensor) -> Tensor:
    return (directions(first) - directions(second)).square()

"""MLKD: which rows are alike, and which classes go together, from products of the predictions."""

from torch import Tensor

from .relations import RelationLoss, gram_gap
from .tempered import Temperature


class _MLKDLoss(RelationLoss):
    def __init__(self, temperature: Temperature = 4.0, *, compensate: bool = False, num_labels: int | None = None):
        super().__init__(temperature, compensate=compensate, num_labels=num_labels)


class MLKDBatchLoss(_MLKDLoss):
    r"""\(\frac1N \Vert P P^\top - Q Q^\top \Vert_F^2\) over the \(N\) rows: which rows the teacher finds alike.

    \(P = \mathrm{softmax}(v/T_t)\), \(Q = \mathrm{softmax}(z/T_s)\), both \(N \times K\). A batch relation, one value
    per batch: it needs \(\min(N, K)^2\) numbers, grows with the batch (twice the batch, each row double: twice the
    value), and with gradient accumulation compares the rows of one micro-batch (of all processes) only; the mean over
    micro-batches is not the value of the whole batch. In a batch of one row only the norm of that row's probabilities
    is left.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments. The
            method sums this loss over the temperatures 4, 3, 5, 2 and 6.
        compensate: Multiply by the strategy's compensation. Off by default, as in the authors' code.
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)` -> loss `()`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the strategy cannot be built or treats rows apart, or logits do not match.

    References:
        Jin, Wang & Lin, *Multi-Level Logit Distillation*, CVPR 2023; `KD_ours.py` of
        https://github.com/Jin-Ying/Multi-Level-Logit-Distillation (the formula is the code's). There it is also
        multiplied by the share of rows the teacher is least sure of, which masks no row: a batch's mean was taken
        before.
    """

    name = "mlkd_batch"

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Products of rows."""
        return gram_gap(teacher_logits.softmax(-1), student_logits.softmax(-1)) / len(teacher_logits), {}


class MLKDClassLoss(_MLKDLoss):
    r"""\(\frac1K \Vert P^\top P - Q^\top Q \Vert_F^2\) over the \(K\) classes: which classes are predicted together.

    \(P = \mathrm{softmax}(v/T_t)\), \(Q = \mathrm{softmax}(z/T_s)\), both \(N \times K\). A batch relation, one value
    per batch: it needs \(\min(N, K)^2\) numbers, grows with the square of the batch, and with gradient accumulation
    sees the rows of one micro-batch (of all processes) only; the mean over micro-batches is not the value of the whole
    batch. In a batch of one row it compares the products of that row's probabilities with each other.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments. The
            method sums this loss over the temperatures 4, 3, 5, 2 and 6.
        compensate: Multiply by the strategy's compensation. Off by default, as in the authors' code.
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)` -> loss `()`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the strategy cannot be built or treats rows apart, or logits do not match.

    References:
        Jin, Wang & Lin, *Multi-Level Logit Distillation*, CVPR 2023; `KD_ours.py` of
        https://github.com/Jin-Ying/Multi-Level-Logit-Distillation (the formula is the code's). There it is also
        multiplied by the share of classes the teacher predicts least.
    """

    name = "mlkd_class"

    def relation(self, teacher_logits: Tensor, student_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Products of columns."""
        gap = gram_gap(teacher_logits.softmax(-1).mT, student_logits.softmax(-1).mT)
        return gap / teacher_logits.shape[-1], {}

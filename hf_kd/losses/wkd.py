"""WKD-L: the teacher's target class, and the cost of moving the student's other mass to where the teacher has it."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import cross_entropy
from ..memory import check_pairs
from ..registry import check_flag, check_number
from .base import warn_two_classes
from .tempered import LabelledLoss, Temperature, TemperedBatch

_LARGEST_EXPONENT = 60.0
"""Of `exp(-cost / regularization)`: exp(-60) leaves room above float32's smallest numbers, about exp(-87)."""
_MATRICES = 4
"""At a time, at most: costs, kernel, their product, and what one of them is made of."""


class WKDLoss(LabelledLoss):
    r"""\(w_i \, [-p_{iy} \ln q_{iy} + \lambda \, \mathrm{WD}(\hat q_i, \hat p_i)]\) per row.

    \(p, q\) are the untempered softmaxes, \(\hat p, \hat q\) those over the \(K - 1\) other classes at the strategy's
    temperatures. \(\mathrm{WD}(a, b) = \sum_{kl} F_{kl} C_{kl}\) is the price of moving the student's mass \(a\) to
    where the teacher's \(b\) lies, with \(F\) from `iterations` rounds of Sinkhorn's algorithm on
    \(e^{-C/\varepsilon}\): mass on a class *like* the right one costs less than mass on any other, which KL, class by
    class, cannot say.

    \(C_{kl} = 1 - e^{-\kappa (1 - \cos(W_k, W_l))}\) from the rows of the teacher's last linear layer, unless `cost`
    gives the matrix. \(\varepsilon > 0\) smears the transport, so the loss is not 0 where both sides agree.

    Args:
        weight: \(\lambda\), weight of the transport cost, >= 0. Goes with the temperature: 30 (ResNet-34 to 18) and 25
            on ImageNet at 2, 200 at 6 and 600 at 8 on CIFAR-100.
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        regularization: \(\varepsilon\). At least the largest cost / 60.
        iterations: Rounds of Sinkhorn's algorithm, each of which sets the teacher's masses, then the student's.
        kappa: \(\kappa > 0\); larger tells near classes apart and levels far ones. The authors have 1, and 2 for
            ResNet-50 to MobileNet on ImageNet.
        cost: `(num_labels, num_labels)` of numbers >= 0, from the student's class (row) to the teacher's (column),
            instead of the one from the teacher's classifier, which is then not needed.
        epsilon: Added to each cost and each divisor of the algorithm. 0 is the algorithm; the authors' code has 1e-8.
        non_target: False for \(w_i \lambda \, \mathrm{WD}(q_i, p_i)\) over all classes, without the first term;
            needs no labels.
        num_labels: For strategies given by name that need it, and to warn about two classes.

    Shape:
        logits `(batch, num_labels)`, labels `(batch,)`, `teacher_classifier_weight` `(num_labels, d_t)` -> loss
        `(batch,)`; 0 on unlabelled rows. Parts `target` and `transport` `(batch,)`: the loss is
        `target + weight * transport`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, the strategy cannot be built, there are no labels, or logits, cost and
            classifier do not match.

    References:
        Lv, Yang & Li, *Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation*, NeurIPS
        2024, https://huggingface.co/papers/2412.08139; `WKD.py` of https://github.com/JiamingLv/WKD.
        Differs from the authors' code in: `epsilon`. With their 1e-8 mass is lost where both sides are certain of
        unlike classes; elsewhere the values differ by about 1e-8. Their published runs take \(1 - \mathrm{CKA}\) of
        the classes' features in place of \(1 - \cos\); the classifier's weight is the other option of their code.
        Their weight follows a cosine to 0 after epoch 150 of 240 on CIFAR-100. As there, only \(\hat p, \hat q\) are
        tempered, and nothing is multiplied by \(T^2\).
    """

    name = "wkd_l"
    is_divergence = False
    needs = ("teacher_classifier_weight",)  # unless a cost is given

    def __init__(
        self,
        weight: float = 30.0,
        *,
        temperature: Temperature = 2.0,
        regularization: float = 0.05,
        iterations: int = 10,
        kappa: float = 1.0,
        epsilon: float = 0.0,
        cost: Sequence[Sequence[float]] | Tensor | None = None,
        non_target: bool = True,
        num_labels: int | None = None,
    ):
        super().__init__(temperature, num_labels=num_labels)
        why = "it multiplies the transport cost. Pass 0.0 to leave the other classes out."
        self.weight = check_number("WKDLoss", "weight", weight, why, low=0.0)
        why = "it smears the transport, and exp(-cost / regularization) must not underflow. The authors have 0.05."
        self.regularization = check_number("WKDLoss", "regularization", regularization, why, low=1 / _LARGEST_EXPONENT)
        why = "it is the number of rounds of Sinkhorn's algorithm. The authors have 10."
        self.iterations = int(check_number("WKDLoss", "iterations", iterations, why, low=1.0, whole=True))
        why = "it multiplies one minus the similarity of two classes. The authors have 1.0."
        self.kappa = check_number("WKDLoss", "kappa", kappa, why, low=0.0, low_open=True)
        why = "it keeps divisors from 0, which logarithms do without. The authors have 1e-8."
        self.epsilon = check_number("WKDLoss", "epsilon", epsilon, why, low=0.0, high=1e-3)
        why = "it decides whether the target's class is treated apart."
        self.non_target = self.needs_labels = check_flag("WKDLoss", "non_target", non_target, why)
        self.needs = type(self).needs if cost is None else ()
        given = None if cost is None else _checked_cost(cost, self.regularization, num_labels)
        self.register_buffer("cost", given, persistent=False)
        if self.weight == 0 and not self.non_target:
            raise ValueError("`WKDLoss(weight=0, non_target=False)` has no term left: nothing would be learned.")
        if self.weight > 0 and self.non_target:
            why = "without the target one class is left, so the transport costs nothing"
            warn_two_classes("WKDLoss", num_labels, why)

    def terms(
        self, batch: TemperedBatch, teacher_classifier_weight: Tensor | None = None
    ) -> dict[str, tuple[float, Tensor]]:
        """The target untempered, the transport of the others at the strategy's temperatures."""
        cost = self.class_cost(batch.student, teacher_classifier_weight)
        weight = batch.temperatures.weight
        if not self.non_target:
            log_a, log_b = (F.log_softmax(logits, dim=-1) for logits in (batch.student, batch.teacher))
            transport = self._transport(log_a, log_b, cost)
            return {"transport": (self.weight, weight * transport)}
        log_a, log_b = (_without_target(logits, batch.labels) for logits in (batch.student, batch.teacher))
        transport = self._transport(log_a, log_b, cost)
        confidence = (-cross_entropy(batch.raw_teacher, batch.labels)).exp()
        target = confidence * cross_entropy(batch.raw_student, batch.labels)
        return {"target": (1.0, weight * target), "transport": (self.weight, weight * transport)}

    def _transport(self, log_a: Tensor, log_b: Tensor, cost: Tensor) -> Tensor:
        if self.epsilon == 0:
            return sinkhorn(log_a, log_b, cost, self.regularization, self.iterations)
        return damped_sinkhorn(log_a, log_b, cost, self.regularization, self.iterations, self.epsilon)

    def class_cost(self, logits: Tensor, teacher_classifier_weight: Tensor | None) -> Tensor:
        """The cost matrix, on the logits' device and in their dtype.

        Raises:
            ValueError: There is nothing to make it from, or it does not fit the logits.
        """
        num_labels = logits.shape[-1]
        if self.cost is not None:
            if len(self.cost) != num_labels:
                raise ValueError(
                    f"`WKDLoss(cost=...)` of shape {tuple(self.cost.shape)} got logits of {num_labels} classes: it "
                    "holds one number per pair of classes. Pass a matrix of that size."
                )
            check_pairs("`WKDLoss`", num_labels, _MATRICES, logits.device, logits.dtype)
            return self.cost.to(logits)
        weight = teacher_classifier_weight
        if weight is None or weight.dim() != 2 or len(weight) != num_labels:
            got = None if weight is None else tuple(weight.shape)
            raise ValueError(
                f"`WKDLoss(teacher_classifier_weight=...)` got {got} with logits of {num_labels} classes: classes are "
                "compared by the rows of the teacher's last linear layer, so it must be (num_labels, d_t). Hand in "
                "that layer's weight, or give the loss a `cost` matrix."
            )
        check_pairs("`WKDLoss`", num_labels, _MATRICES, logits.device, logits.dtype)
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            rows = F.normalize(weight.to(logits), dim=-1)
            distance = (1 - rows @ rows.T).clamp(min=0.0)  # rounding
            return -torch.expm1(-self.kappa * distance)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        cost = f"kappa={self.kappa}" if self.cost is None else f"cost={tuple(self.cost.shape)}"
        options = f"regularization={self.regularization}, iterations={self.iterations}, {cost}"
        return f"weight={self.weight}, {options}, epsilon={self.epsilon:g}, non_target={self.non_target}"


def sinkhorn(log_a: Tensor, log_b: Tensor, cost: Tensor, regularization: float, iterations: int) -> Tensor:
    r"""\(\sum_{kl} F_{kl} C_{kl}\) per row, with \(F = \mathrm{diag}(u) e^{-C/\varepsilon} \mathrm{diag}(v)\).

    Each round sets \(v\) so that \(F\) has the column sums \(b\), then \(u\) so that it has the row sums \(a\); \(u\)
    starts level over the classes with mass. Since \(F\) keeps the row sums, row \(k\) of it is \(a_k\) times
    a softmax, which makes the value bounded and \(u\) of the last round unnecessary.

    \(u, v\) live as logarithms, and sums over classes are products with the one matrix \(e^{-C/\varepsilon}\), not
    `logsumexp` over a cube: the largest factor is made 1, and the matrix itself does not underflow. A number per row
    that multiplies \(u\) divides \(v\), and \(F\) stays the same, so it need not be put back.

    Args:
        log_a: Logarithms of the student's masses, minus infinity where a class takes no part.
        log_b: The teacher's, with the same classes left out.
        cost: `(num_labels, num_labels)`, between 0 and 60 times `regularization`.
        regularization: \(\varepsilon\).
        iterations: Rounds, at least 1.

    Shape:
        `(batch, num_labels)` each -> `(batch,)`.
    """
    with torch.autocast(log_a.device.type, enabled=False):  # products of bfloat16 matrices have three digits
        kernel = (-cost / regularization).exp()
        log_u = torch.zeros_like(log_a).masked_fill(log_a == -math.inf, -math.inf)
        for _ in range(iterations):
            log_v = log_b - (_factors(log_u) @ kernel).log()
            log_u = log_a - (_factors(log_v) @ kernel.T).log()
        factors = _factors(log_v)
        mean_cost = (factors @ (kernel * cost).T) / (factors @ kernel.T)
        return (log_a.exp() * mean_cost).sum(-1)


def damped_sinkhorn(
    log_a: Tensor, log_b: Tensor, cost: Tensor, regularization: float, iterations: int, epsilon: float
) -> Tensor:
    """`sinkhorn` as the authors' code has it: on probabilities, `epsilon` on each cost and each divisor.

    Shape:
        `(batch, num_labels)` each -> `(batch,)`.
    """
    with torch.autocast(log_a.device.type, enabled=False):
        a, b, cost = log_a.exp(), log_b.exp(), cost + epsilon
        kernel = (-cost / regularization).exp()
        present = log_a > -math.inf
        u = present / present.sum(-1, keepdim=True).to(a.dtype)
        for _ in range(iterations):
            v = b / (u @ kernel + epsilon)
            u = a / (v @ kernel.T + epsilon)
        return (u * (v @ (kernel * cost).T)).sum(-1)


def _factors(logs: Tensor) -> Tensor:
    return (logs - logs.detach().amax(-1, keepdim=True)).exp()


def _without_target(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the classes but the label's, which gets minus infinity; class 0 for want of a label."""
    num_labels = logits.shape[-1]
    labels = labels.long()
    target = torch.where((labels >= 0) & (labels < num_labels), labels, 0).unsqueeze(-1)
    is_target = torch.arange(num_labels, device=logits.device) == target
    return F.log_softmax(logits.masked_fill(is_target, -math.inf), dim=-1)


def _checked_cost(cost: Sequence[Sequence[float]] | Tensor, regularization: float, num_labels: int | None) -> Tensor:
    try:
        matrix = cost.detach().clone() if isinstance(cost, Tensor) else torch.tensor(cost, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`WKDLoss(cost=...)` must be a matrix of numbers, got {cost!r}: {error}") from error
    matrix = matrix if matrix.is_floating_point() else matrix.float()
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or num_labels not in (None, len(matrix)):
        known = "" if num_labels is None else f" with num_labels={num_labels}"
        raise ValueError(
            f"`WKDLoss(cost=...)` must hold one number per pair of classes, got shape {tuple(matrix.shape)}{known}. "
            "Pass a (num_labels, num_labels) matrix."
        )
    if not (matrix.isfinite().all() and (matrix >= 0).all()):
        raise ValueError("`WKDLoss(cost=...)` holds negative or non-finite numbers: moving mass cannot pay. Shift it.")
    if matrix.max() > _LARGEST_EXPONENT * regularization:
        raise ValueError(
            f"`WKDLoss(cost=..., regularization={regularization:g})` got costs up to {matrix.max().item():g}: "
            f"exp(-cost / regularization) underflows from {_LARGEST_EXPONENT:g} times the regularization on. Divide "
            "the matrix by its largest entry, or raise `regularization`."
        )
    return matrix

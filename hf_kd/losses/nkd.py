"""NKD: the teacher's confidence in the target, and what it says about the other classes, renormalised."""

import torch.nn.functional as F
from torch import Tensor

from ..functional import cross_entropy, labelled_only, split_target, upcast
from ..registry import check_number
from ..temperatures import Progress
from .base import LossOutput, check_labels, check_pair, warn_two_classes
from .tempered import Temperature, TemperedLoss


class NKDLoss(TemperedLoss):
    r"""\(w_i \, [-p_{iy} \ln q_{iy} + \gamma \, c_i \, (-\sum_{k \ne y} \hat p_{ik} \ln \hat q_{ik})]\) per row.

    \(p, q\) are the untempered softmaxes; \(\hat p, \hat q\) are those over the \(K - 1\) other classes at the
    strategy's temperatures, which have no part in the first term. Renormalised, both sides of the second term sum to
    1, which makes it a cross-entropy the student can minimise; of the plain non-target probabilities it is none.

    With two classes one other class is left: the second term is 0.

    Args:
        gamma: \(\gamma\), weight of the other classes, >= 0. 1.5 on ImageNet (1.0 for DeiT).
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        num_labels: For strategies given by name that need it, and to warn about two classes.

    Shape:
        logits `(batch, num_labels)`, labels `(batch,)` -> loss `(batch,)`, in nats; 0 on unlabelled rows. Parts
        `target` and `others` `(batch,)`: the loss is `target + gamma * others`.

    Raises:
        TypeError: If `gamma` is not a number, or `temperature` is a bool.
        ValueError: If `gamma` is negative, if the strategy cannot be built, if there are no labels, or if logits do
            not match.

    References:
        Yang et al., *From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels*, ICCV 2023, https://huggingface.co/papers/2303.13005.
        The authors normalise by dropping the target's column before the softmax, which is the paper's division by
        \(1 - p_y\) (their answer in https://github.com/yzd-v/cls_KD/issues/18). An early version of their file masked
        nothing (https://github.com/yzd-v/cls_KD/issues/16, corrected since); this is the corrected one.
    """

    name = "nkd"
    needs_labels = True
    is_divergence = False

    def __init__(self, gamma: float = 1.5, *, temperature: Temperature = 1.0, num_labels: int | None = None):
        super().__init__(temperature, compensate=True, num_labels=num_labels)
        why = "it multiplies a cross-entropy that is minimised. Pass 0.0 to leave the other classes out."
        self.gamma = check_number("NKDLoss", "gamma", gamma, why, low=0.0)
        if self.gamma > 0:
            warn_two_classes(
                "NKDLoss", num_labels, "without the target one class is left, so the term of the others is 0"
            )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row, 0 where there is no label.

        Raises:
            ValueError: Logits do not match, or there are no labels.
        """
        check_pair("NKDLoss", student_logits, teacher_logits)
        labels = check_labels("NKDLoss", labels)
        temperatures = self.temperature(student_logits, teacher_logits, labels, progress=progress)
        confidence = (-cross_entropy(teacher_logits, labels)).exp()
        target = temperatures.weight * confidence * cross_entropy(student_logits, labels)
        teacher = F.log_softmax(split_target(upcast(teacher_logits) / temperatures.teacher, labels)[1], dim=-1)
        student = F.log_softmax(split_target(upcast(student_logits) / temperatures.student, labels)[1], dim=-1)
        others = temperatures.weight * temperatures.compensation * -(teacher.exp() * student).sum(-1)
        target, others = (labelled_only(part, labels, student_logits.shape[-1]) for part in (target, others))
        parts = {"target": target.detach(), "others": others.detach()}
        return LossOutput(target + self.gamma * others, temperatures, parts)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"gamma={self.gamma}"

"""Tf-KD: a virtual teacher made of the labels alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import labelled_only, upcast
from ..registry import check_flag, check_number
from ..temperatures import Progress
from .base import DistillationLoss, LossOutput, check_labels, check_pair


class TeacherFreeLoss(DistillationLoss):
    r"""\(\frac1K \mathrm{KL}(\mathrm{softmax}(u_i / \tau) \Vert \mathrm{softmax}(z_i))\): no teacher but the label.

    The virtual teacher is sure of the label, \(u_y = a\) and \(u_k = \frac{1-a}{K-1}\) elsewhere, and is softened by a
    softmax over \(u / \tau\), i.e. over the *probabilities*, as the authors' code has it. At \(\tau = 20\) the
    target's odds against any other class are only \(e^{(u_y - u_k)/\tau} \approx 1.05\), so this is close to label
    smoothing with almost all mass spread: a useful control for what a real teacher adds.

    Teacher logits may be None and are ignored when given; an objective that has no other loss needs no teacher.

    Args:
        temperature: \(\tau > 0\), of the virtual teacher alone; the student stays at 1. No strategy: there is nothing
            to adapt to.
        confidence: \(a\) in [0, 1].
        element_mean: Divide by \(K\), as the authors do (`nn.KLDivLoss()` averages over all elements; their multiplier
            of up to 100 is the loss weight here). False for the sum over classes.

    Shape:
        logits `(batch, num_labels)`, labels `(batch,)` -> loss `(batch,)`, in nats; 0 on unlabelled rows.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `temperature` or `confidence` is out of range, there are no labels, or logits do not match.

    References:
        Yuan et al., *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020,
        https://huggingface.co/papers/1909.11723; `loss_kd_regularization` of
        https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation. Each model there has its own weights,
        `reg_alpha` from .1 to .95 with 1 - `reg_alpha` for the cross-entropy.
    """

    name = "teacher_free"
    needs_teacher = False
    needs_labels = True
    is_divergence = False

    def __init__(self, temperature: float = 20.0, *, confidence: float = 0.99, element_mean: bool = True):
        super().__init__()
        why = "it softens the virtual teacher, whose probabilities it divides. The authors have 20."
        self.tau = check_number("TeacherFreeLoss", "temperature", temperature, why, low=0.0, low_open=True)
        why = "it is the virtual teacher's probability of the label. The authors have 0.99."
        self.confidence = check_number("TeacherFreeLoss", "confidence", confidence, why, low=0.0, high=1.0)
        why = "it decides whether the divergence is divided by the number of classes."
        self.element_mean = check_flag("TeacherFreeLoss", "element_mean", element_mean, why)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row, whatever the teacher's logits are.

        Raises:
            ValueError: There are no labels, or the logits are no `(batch, num_labels)`.
        """
        check_pair("TeacherFreeLoss", student_logits, student_logits)
        labels = check_labels("TeacherFreeLoss", labels).long()
        logits = upcast(student_logits)
        num_labels = logits.shape[-1]
        rest = (1 - self.confidence) / max(num_labels - 1, 1)
        target = torch.arange(num_labels, device=labels.device) == labels.unsqueeze(-1)
        virtual = torch.where(target, self.confidence, torch.full_like(logits, rest))
        log_virtual = F.log_softmax(virtual / self.tau, dim=-1)
        elements = log_virtual.exp() * (log_virtual - F.log_softmax(logits, dim=-1))
        rows = elements.mean(-1) if self.element_mean else elements.sum(-1)
        return LossOutput(labelled_only(rows, labels, num_labels))

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"temperature={self.tau}, confidence={self.confidence}, element_mean={self.element_mean}"

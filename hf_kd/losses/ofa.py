"""OFA: soft cross-entropy with an enhanced target class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import labelled_only
from ..registry import check_number
from .base import check_labels
from .tempered import Temperature, TemperedLoss


class OFALoss(TemperedLoss):
    r"""\(-w_i \sum_k [(p_{ik} + [k = y_i])^\gamma - [k = y_i]] \ln q_{ik}\): target enhancement for unlike models.

    With \(\gamma > 1\) the target's weight grows to \((1 + p_y)^\gamma - 1\), the faster the surer the teacher is of
    it, and those of the other classes shrink to \(p_k^\gamma\): what a teacher of another architecture says about them
    counts less. \(\gamma = 1\) is `soft_cross_entropy`.

    Args:
        gamma: \(\gamma > 0\); `--ofa-eps` of the authors' code, whose ImageNet example has 1.5.
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        compensate: Multiply by the strategy's compensation. Off by default, as in the authors' code.
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)`, labels `(batch,)` -> loss `(batch,)`, in nats; 0 on unlabelled rows.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `gamma` is not positive, the strategy cannot be built, there are no labels, or logits do not
            match.

    References:
        Hao et al., *One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation*,
        NeurIPS 2023, https://huggingface.co/papers/2310.19444; `ofa_loss` of https://github.com/Hao840/OFAKD (the
        formula is the code's; the paper's equations were not compared). The whole method also distils into heads on
        the student's projected stages. Under mixup the authors take the larger label as the target.
    """

    name = "ofa"
    needs_labels = True
    is_divergence = False

    def __init__(
        self,
        gamma: float = 1.5,
        *,
        temperature: Temperature = 1.0,
        compensate: bool = False,
        num_labels: int | None = None,
    ):
        super().__init__(temperature, compensate=compensate, num_labels=num_labels)
        why = "it is the power of the teacher's probabilities. Pass 1.0 for plain soft cross-entropy."
        self.gamma = check_number("OFALoss", "gamma", gamma, why, low=0.0, low_open=True)

    def distance(self, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Powers from logarithms, which stay differentiable where a probability underflows."""
        labels = check_labels("OFALoss", labels).long()
        log_probs = F.log_softmax(teacher_logits, dim=-1)
        classes = torch.arange(log_probs.shape[-1], device=labels.device)
        enhanced = torch.expm1(self.gamma * log_probs.exp().log1p())
        weights = torch.where(classes == labels.unsqueeze(-1), enhanced, (self.gamma * log_probs).exp())
        rows = -(weights * F.log_softmax(student_logits, dim=-1)).sum(-1)
        return labelled_only(rows, labels, log_probs.shape[-1])

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"gamma={self.gamma}, {super().extra_repr()}"

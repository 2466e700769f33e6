"""Cross-entropy with the teacher as label: soft, hard, and class by class."""

import torch.nn.functional as F
from torch import Tensor

from ..functional import cross_entropy, upcast
from ..registry import check_flag
from ..temperatures import Progress
from .base import DistillationLoss, LossOutput, check_pair
from .tempered import DivergenceLoss, Temperature, TemperedLoss


class SoftCrossEntropyLoss(DivergenceLoss):
    r"""\(-w_i \, c_i \sum_k p_{ik} \ln q_{ik}\): cross-entropy with the teacher's distribution.

    The student's gradient is that of `kd`; the value also holds the teacher's entropy, so it does not tend to 0 and
    its size says little. Under a *learned* temperature the two differ: the entropy moves with it.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        compensate: Multiply by the strategy's compensation, \(T^2\) for one shared temperature, as cls_KD does.
            TextBrewer's `kd_ce_loss` and TinyBERT do not.
        element_mean: Divide by the number of classes: TinyBERT's prediction-layer loss is the mean over all
            elements, at \(T = 1\).
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in nats.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the strategy cannot be built, or logits do not match.

    References:
        Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015,
        https://huggingface.co/papers/1503.02531, §2. Jiao et al., *TinyBERT*, 2020,
        https://huggingface.co/papers/1909.10351, Eq. 10.
    """

    name = "soft_cross_entropy"
    is_divergence = False

    def __init__(
        self,
        temperature: Temperature = 4.0,
        *,
        compensate: bool = True,
        element_mean: bool = False,
        num_labels: int | None = None,
    ):
        super().__init__(temperature, compensate=compensate, num_labels=num_labels)
        why = "it decides whether the cross-entropy is divided by the number of classes."
        self.element_mean = check_flag("SoftCrossEntropyLoss", "element_mean", element_mean, why)

    def divergence(self, teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
        """Sum, or mean, over classes."""
        elements = -teacher_log_probs.exp() * student_log_probs
        return elements.mean(-1) if self.element_mean else elements.sum(-1)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"element_mean={self.element_mean}, {super().extra_repr()}"


class HardLabelLoss(DistillationLoss):
    r"""\(-\ln q_{i, \arg\max_k v_{ik}}\): cross-entropy with the teacher's first choice.

    No temperature: it would not change the choice. The share of rows on which teacher and label differ decides what
    this adds to the cross-entropy; where the teacher is always right it only adds weight.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in nats.

    Raises:
        ValueError: If logits do not match.

    References:
        Touvron et al., *Training data-efficient image transformers & distillation through attention* (DeiT), 2021,
        https://huggingface.co/papers/2012.12877, Eq. 3: half of it and half of the cross-entropy with the labels,
        i.e. `ce_weight=0.5, kd_weight=0.5`. DeiT's own distillation token is not part of this loss.
    """

    name = "hard_label"
    is_divergence = False

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row; the true labels play no part."""
        check_pair("HardLabelLoss", student_logits, teacher_logits)
        rows = cross_entropy(student_logits, teacher_logits.argmax(-1))
        # `argmax` takes NaN for the largest: without this, a broken teacher would go unnoticed
        return LossOutput(rows + 0.0 * upcast(teacher_logits).sum(-1).detach())


class BinaryCrossEntropyLoss(TemperedLoss):
    r"""\(-\frac{w_i}{K} \sum_k [p_{ik} \ln \sigma(z_{ik}/T_s) + (1 - p_{ik}) \ln(1 - \sigma(z_{ik}/T_s))]\).

    The teacher's softmax as \(K\) separate targets of sigmoids: each class is learned on its own, and unlike with
    `kd` the level of the student's logits matters. It fits students trained with binary cross-entropy.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments. The
            source has none (1).
        compensate: Multiply by the strategy's compensation. Off by default.
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in nats per class.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the strategy cannot be built, or logits do not match.

    References:
        "BKD" in the code of Hao et al., *One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
        Distillation*, NeurIPS 2023, https://huggingface.co/papers/2310.19444, https://github.com/Hao840/OFAKD.
    """

    name = "binary_cross_entropy"
    shift_invariant = False
    is_divergence = False

    def __init__(self, temperature: Temperature = 1.0, *, compensate: bool = False, num_labels: int | None = None):
        super().__init__(temperature, compensate=compensate, num_labels=num_labels)

    def distance(self, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Mean over classes; labels play no part."""
        probs = teacher_logits.softmax(-1)
        return F.binary_cross_entropy_with_logits(student_logits, probs, reduction="none").mean(-1)

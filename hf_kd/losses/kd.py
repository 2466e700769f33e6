"""Hinton's distillation loss over any temperature strategy."""

from torch import Tensor

from ..functional import kl_divergence
from ..registry import check_flag, check_number
from .tempered import Temperature, TemperedLoss


class KDLoss(TemperedLoss):
    r"""\(w_i \, c_i \, \mathrm{KL}(\mathrm{softmax}(v_i/T_t) \Vert \mathrm{softmax}(z_i/T_s))\) per row.

    Temperatures \(T_t, T_s\), compensation \(c\) and weight \(w\) come from the strategy, so this one loss is KD,
    annealed KD, CTKD, DTKD, TTM and WTTM.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        compensate: False leaves out \(c\), as torchdistill's and DistillKit's losses can.
        element_mean: Divide by the number of classes \(K\): the mean over classes of PKD-BERT and of the authors of
            Tf-KD (`reduction="mean"` of `torch.nn.functional.kl_div`). Their published weights need it; any other's
            would be \(K\) times too small with it.
        teacher_epsilon: Added to the teacher's probabilities, without renormalising, as the authors of CTKD's
            instance-wise version do (1e-7). 0 is the exact divergence; anything else makes the value depend on
            `num_labels` by about \(T^2 K \epsilon\).
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in nats.

    Raises:
        TypeError: If `temperature` is a bool, a flag is none, or `teacher_epsilon` is not a number.
        ValueError: If the strategy cannot be built, or logits do not match.

    References:
        Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015,
        https://huggingface.co/papers/1503.02531, §2.
    """

    name = "kd"

    def __init__(
        self,
        temperature: Temperature = 4.0,
        *,
        compensate: bool = True,
        element_mean: bool = False,
        teacher_epsilon: float = 0.0,
        num_labels: int | None = None,
    ):
        super().__init__(temperature, compensate=compensate, num_labels=num_labels)
        why = "it decides whether the divergence is divided by the number of classes."
        self.element_mean = check_flag("KDLoss", "element_mean", element_mean, why)
        why = "it is added to each teacher probability. Pass 0.0 for the exact divergence."
        self.teacher_epsilon = check_number("KDLoss", "teacher_epsilon", teacher_epsilon, why, low=0.0)
        self.is_divergence = self.teacher_epsilon == 0

    def distance(self, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor | None) -> Tensor:
        """The divergence; labels play no part."""
        divergence = kl_divergence(teacher_logits, student_logits, epsilon=self.teacher_epsilon)
        return divergence / teacher_logits.shape[-1] if self.element_mean else divergence

    def extra_repr(self) -> str:
        """Hyperparameters that differ from the defaults, for `repr` and the manifest of a checkpoint."""
        options = {"compensate": True, "element_mean": False, "teacher_epsilon": 0.0}
        return ", ".join(f"{k}={getattr(self, k)}" for k, default in options.items() if getattr(self, k) != default)

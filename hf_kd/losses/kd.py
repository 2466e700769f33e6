"""Hinton's distillation loss over any temperature strategy."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..functional import kl_divergence
from ..registry import check_number
from ..temperatures import Progress, TemperatureStrategy, as_strategy
from .base import DistillationLoss, LossOutput, check_pair


class KDLoss(DistillationLoss):
    r"""\(w_i \, c_i \, \mathrm{KL}(\mathrm{softmax}(v_i/T_t) \Vert \mathrm{softmax}(z_i/T_s))\) per row.

    Temperatures \(T_t, T_s\), compensation \(c\) and weight \(w\) come from the strategy, so this one loss is KD,
    annealed KD, CTKD, DTKD, TTM and WTTM.

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        teacher_epsilon: Added to the teacher's probabilities, without renormalising, as the authors of CTKD's
            instance-wise version do (1e-7). 0 is the exact divergence; anything else makes the value depend on
            `num_labels` by about \(T^2 K \epsilon\).
        num_labels: Only for strategies given by name that need it.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in nats.

    Raises:
        TypeError: If `temperature` is a bool, or `teacher_epsilon` is not a number.
        ValueError: If the strategy cannot be built, or logits do not match.

    References:
        Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015,
        https://huggingface.co/papers/1503.02531, §2.
    """

    name = "kd"
    uses_temperature = True

    def __init__(
        self,
        temperature: float | str | Mapping[str, Any] | TemperatureStrategy = 4.0,
        *,
        teacher_epsilon: float = 0.0,
        num_labels: int | None = None,
    ):
        super().__init__()
        self.temperature = as_strategy(temperature, num_labels=num_labels)
        why = "it is added to each teacher probability. Pass 0.0 for the exact divergence."
        self.teacher_epsilon = check_number("KDLoss", "teacher_epsilon", teacher_epsilon, why, low=0.0)
        self.is_divergence = self.teacher_epsilon == 0

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row; labels are only handed on to the strategy."""
        check_pair("KDLoss", student_logits, teacher_logits)
        temperatures = self.temperature(student_logits, teacher_logits, labels, progress=progress)
        divergence = kl_divergence(
            teacher_logits, student_logits, temperatures.teacher, temperatures.student, epsilon=self.teacher_epsilon
        )
        return LossOutput(temperatures.weight * temperatures.compensation * divergence, temperatures)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"teacher_epsilon={self.teacher_epsilon}" if self.teacher_epsilon else ""

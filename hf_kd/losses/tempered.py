"""What losses over a temperature strategy share: tempering both sides, compensation, weight."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..functional import upcast
from ..registry import check_flag
from ..temperatures import Progress, TemperatureStrategy, as_strategy
from .base import DistillationLoss, LossOutput, check_pair, check_strategy

Temperature = float | str | Mapping[str, Any] | TemperatureStrategy
"""What stands for a strategy: a number (constant), a registry name, a mapping with `name` and arguments, or itself."""


class TemperedLoss(DistillationLoss):
    r"""Abstract: \(w_i \, c_i \, D(v_i / T_t, z_i / T_s)\) per row, over any temperature strategy.

    A concrete loss defines `distance` and says in `compensate` whether its official form has the factor \(c\).

    Args:
        temperature: A number (constant), a strategy, its registry name, or a mapping with `name` and arguments.
        compensate: Multiply by the strategy's compensation (\(T^2\) for one shared temperature).
        num_labels: For strategies given by name that need it, and to warn where two classes leave nothing to learn.

    Raises:
        TypeError: If `temperature` or `compensate` has the wrong type.
        ValueError: If the strategy cannot be built, or would not be what its paper says under this loss.
    """

    uses_temperature = True

    def __init__(self, temperature: Temperature, *, compensate: bool, num_labels: int | None = None):
        super().__init__()
        self.temperature = as_strategy(temperature, num_labels=num_labels)
        check_strategy(self, self.temperature, num_labels)
        why = "it decides whether the loss is multiplied by the strategy's T²-like factor."
        self.compensate = check_flag(type(self).__name__, "compensate", compensate, why)

    def distance(self, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor | None) -> Tensor:
        r"""\(D\) per row, of logits that are already raised and divided by their temperatures."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `distance`.")

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row."""
        check_pair(type(self).__name__, student_logits, teacher_logits)
        temperatures = self.temperature(student_logits, teacher_logits, labels, progress=progress)
        distance = self.distance(
            upcast(teacher_logits) / temperatures.teacher, upcast(student_logits) / temperatures.student, labels
        )
        scale = temperatures.weight * temperatures.compensation if self.compensate else temperatures.weight
        return LossOutput(scale * distance, temperatures)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"compensate={self.compensate}"


class DivergenceLoss(TemperedLoss):
    """Abstract: a distance between the two tempered distributions, from their log-probabilities."""

    def divergence(self, teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
        """The divergence per row."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `divergence`.")

    def distance(self, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor | None) -> Tensor:
        """The divergence of both softmaxes; labels play no part."""
        return self.divergence(F.log_softmax(teacher_logits, dim=-1), F.log_softmax(student_logits, dim=-1))

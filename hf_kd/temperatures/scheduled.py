"""Temperatures that move along a fixed curve while training advances."""

import math
from typing import Any

from torch import Tensor

from ..registry import check_number
from .base import Progress, Temperatures, TemperatureStrategy, positive, scalar_like, shared


def check_until(owner: str, until: Any, then: str) -> float:
    """`until` in (0, 1], or an error in words."""
    why = f"it is the share of the run after which {then}"
    return check_number(owner, "until", until, why, low=0.0, low_open=True, high=1.0)


class ScheduledTemperature(TemperatureStrategy):
    """Abstract: `start` at the beginning, `end` from `until` on; both sides share it, compensated by its square.

    Args:
        start: Temperature at `progress.fraction` 0. Finite and > 0.
        end: Temperature from `until` on. Larger than `start` softens with time, smaller sharpens.
        until: Share of the run after which `end` holds, in (0, 1].

    Shape:
        student, teacher, compensation, weight: `()`.
    """

    compensates_product = True

    def __init__(self, start: float = 4.0, end: float = 1.0, *, until: float = 1.0):
        super().__init__()
        owner = type(self).__name__
        self.start = positive(owner, "start", start)
        self.end = positive(owner, "end", end)
        self.until = check_until(owner, until, "the last temperature holds. Pass 1.0 for the whole run.")

    def at(self, position: float) -> float:
        """The temperature at `position` in [0, 1] of the curve."""
        raise NotImplementedError(f"`{type(self).__name__}` must define `at`.")

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> Temperatures:
        """The curve at `progress.fraction`, whatever the batch."""
        position = min(max(progress.fraction / self.until, 0.0), 1.0)
        return shared(scalar_like(student_logits, self.at(position)), student_logits)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"start={self.start}, end={self.end}, until={self.until}"


class LinearTemperature(ScheduledTemperature):
    r"""\(T(s) = T_0 + (T_1 - T_0) s\) with \(s\) = `progress.fraction / until`, clipped to [0, 1].

    See `ConstantTemperature` for what the temperature does, `CosineTemperature` for flat ends.

    Args:
        start: \(T_0\), finite and > 0.
        end: \(T_1\), finite and > 0.
        until: Share of the run after which `end` holds, in (0, 1].

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a temperature is not positive and finite or `until` lies outside (0, 1].

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 3)
        >>> LinearTemperature(1.0, 4.0)(logits, logits, progress=Progress(fraction=0.5)).student
        tensor(2.5000)
    """

    name = "linear"

    def at(self, position: float) -> float:
        """Straight line."""
        return self.start + (self.end - self.start) * position


class CosineTemperature(ScheduledTemperature):
    r"""\(T(s) = T_0 + (T_1 - T_0) \tfrac12 (1 - \cos \pi s)\): half a cosine, flat at both ends.

    Args:
        start: \(T_0\), finite and > 0.
        end: \(T_1\), finite and > 0.
        until: Share of the run after which `end` holds, in (0, 1].

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a temperature is not positive and finite or `until` lies outside (0, 1].
    """

    name = "cosine"

    def at(self, position: float) -> float:
        """Half a cosine."""
        return self.start + (self.end - self.start) * 0.5 * (1.0 - math.cos(math.pi * position))


class ExponentialTemperature(ScheduledTemperature):
    r"""\(T(s) = T_0 (T_1 / T_0)^s\): equal ratios in equal times.

    Args:
        start: \(T_0\), finite and > 0.
        end: \(T_1\), finite and > 0.
        until: Share of the run after which `end` holds, in (0, 1].

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a temperature is not positive and finite or `until` lies outside (0, 1].
    """

    name = "exponential"

    def at(self, position: float) -> float:
        """Geometric interpolation, in log space so that extreme ends cannot overflow."""
        if position in (0.0, 1.0):
            return (self.start, self.end)[int(position)]
        return math.exp((1.0 - position) * math.log(self.start) + position * math.log(self.end))

"""Temperatures from the spread of each row's logits: logit standardisation and NormKD."""

from typing import Any

import torch
from torch import Tensor

from ..functional import upcast
from ..registry import check_flag, check_number
from .base import Progress, Temperatures, TemperatureStrategy, positive, scalar_like
from .wrapped import Inner, WrappedTemperature

SMALLEST_SPREAD = 1e-3
"""Below this standard deviation a row of logits is constant but for rounding, and has no scale to divide by."""
LARGEST_SPREAD = 100.0
"""Above this standard deviation NormKD's compensation stops growing; classifiers' logits spread over 1 to 10."""


def _check_ddof(owner: str, ddof: Any) -> int:
    why = "the variance divides by num_labels - ddof. Pass 1 as the authors' code does, 0 for the population's."
    return int(check_number(owner, "ddof", ddof, why, low=0, high=1, whole=True, expected="0 or 1"))


def _check_options(owner: str, ddof: Any, detach: Any, guard: Any) -> tuple[int, bool, bool]:
    detach = check_flag(owner, "detach", detach, "it decides whether the spread is treated as a constant.")
    guard = check_flag(owner, "guard", guard, "it decides whether rows without spread are caught.")
    return _check_ddof(owner, ddof), detach, guard


def _spread(logits: Tensor, ddof: int, detach: bool, guard: bool) -> tuple[Tensor, Tensor]:
    """The standard deviation per row, 1 where a guard catches it; and which rows it caught, `(batch, 1)` each."""
    spread = upcast(logits.detach() if detach else logits).std(-1, correction=ddof, keepdim=True)
    caught = (spread.detach() < SMALLEST_SPREAD) & guard
    return torch.where(caught, 1.0, spread), caught


def _share(*caught: Tensor) -> Tensor:
    return torch.stack(caught).any(0).squeeze(-1).float()


class StandardizedTemperature(WrappedTemperature):
    r"""Logit standardisation: each side's logits centred and divided by their own spread before the temperature.

    \(Z(x; \tau) = (x - \bar x) / ((\sigma_x + \epsilon)\, \tau)\). A softmax ignores the centring, so this is the
    temperature \((\sigma + \epsilon)\, \tau\) of each side, compensated by the base temperature's own factor
    (\(\tau^2\)): the student matches the shape of the teacher's logits and is free in their scale. Under a loss that
    is not shift-invariant the centring counts, and this strategy is refused.

    With two classes nothing but the sign is left of a row, and its gradient is almost 0.

    Args:
        temperature: The base temperature \(\tau\): a number, a registry name, a mapping, or a strategy; it sees the
            standardised logits. `"ctkd"` learns the base temperature.
        ddof: 1 divides the variance by K - 1, as the authors' code does; 0 by K, as the paper's Algorithm 1 does. With
            five classes the losses differ by a quarter.
        epsilon: Added to \(\sigma\), finite and >= 0.
        detach: Treat \(\sigma\) as a constant. In the authors' code gradient flows through the student's.
        guard: Let \(\sigma = 1\) on a side whose logits are constant (\(\sigma\) < 1e-3), as those of a head that
            starts at zero: divided by \(\epsilon\) alone its gradient would be 1e7 times too large. The share of such
            rows is logged as `unscaled`. False for the authors' bare formula.
        num_labels: Only for strategies given by name that need it.

    Shape:
        student, teacher: `(batch, 1)`; compensation and weight as the base strategy's.

    Raises:
        TypeError: If `epsilon` is not a number or a flag no bool.
        ValueError: If `ddof` is neither 0 nor 1, `epsilon` is negative, or the base strategy cannot be built.

    References:
        Sun et al., *Logit Standardization in Knowledge Distillation*, CVPR 2024,
        https://huggingface.co/papers/2403.01427, Algorithm 1.
        Differs from the authors' code in: the guard.
    """

    name = "standardized"

    def __init__(
        self,
        temperature: Inner = 2.0,
        *,
        ddof: int = 1,
        epsilon: float = 1e-7,
        detach: bool = False,
        guard: bool = True,
        num_labels: int | None = None,
    ):
        super().__init__(temperature, num_labels)
        owner = "StandardizedTemperature"
        self.ddof, self.detach, self.guard = _check_options(owner, ddof, detach, guard)
        why = "it is added to each standard deviation. Pass 1e-7 as the authors do, or 0.0."
        self.epsilon = check_number(owner, "epsilon", epsilon, why, low=0.0)
        self.per_sample = self.shift_invariant = self.needs_shift_invariance = self.needs_two_plus_classes = True
        self.compensates_product = False  # the base temperature's, not that of sigma times tau

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> Temperatures:
        """The base temperature times each side's spread."""
        scales, standardized, caught = [], [], []
        for logits in (student_logits, teacher_logits):
            spread, unscaled = _spread(logits, self.ddof, self.detach, self.guard)
            scales.append(spread + self.epsilon)
            caught.append(unscaled)
            raised = upcast(logits)
            standardized.append((raised - raised.mean(-1, keepdim=True)) / scales[-1])
        base = self.inner(*standardized, labels, progress=progress)
        parts = {**base.parts, "unscaled": _share(*caught)}
        return base._replace(student=base.student * scales[0], teacher=base.teacher * scales[1], parts=parts)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"ddof={self.ddof}, epsilon={self.epsilon:g}, detach={self.detach}, guard={self.guard}"


class NormTemperature(TemperatureStrategy):
    r"""NormKD: \(T_s = \sigma_s \tau\), \(T_t = \sigma_t \tau\) per row, compensated by \(T_t^2\).

    The same two distributions as `StandardizedTemperature`; the compensation follows the teacher's own temperature, so
    that rows on which the teacher's logits spread wide count more.

    With two classes nothing but the sign is left of a row, and its gradient is almost 0.

    Args:
        temperature: \(\tau\), finite and > 0: 2 on CIFAR-100, 1 on ImageNet.
        ddof: 1 divides the variance by K - 1, as the authors' code does; 0 by K.
        detach: Treat the spreads as constants. In the authors' code gradient flows through the student's.
        guard: Let \(\sigma = 1\) on a side whose logits are constant (\(\sigma\) < 1e-3), where the authors' bare
            formula (False) gives NaN; the share of such rows is logged as `unscaled`. Let \(\sigma_t\) count at most
            100 in the compensation, so that one broken row of the teacher cannot overflow the gradient.

    Shape:
        student, teacher: `(batch, 1)`; compensation `(batch,)`; weight `()`.

    Raises:
        TypeError: If `temperature` is not a number or a flag no bool.
        ValueError: If `temperature` is not positive and finite, or `ddof` is neither 0 nor 1.

    References:
        Chi et al., *NormKD: Normalized Logits for Knowledge Distillation*, 2023,
        https://huggingface.co/papers/2308.00520.
        Differs from the authors' code in: the guard.
    """

    name = "norm"
    per_sample = True
    needs_two_plus_classes = True

    def __init__(self, temperature: float = 2.0, *, ddof: int = 1, detach: bool = False, guard: bool = True):
        super().__init__()
        self.temperature = positive("NormTemperature", "temperature", temperature)
        self.ddof, self.detach, self.guard = _check_options("NormTemperature", ddof, detach, guard)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> Temperatures:
        """Each side's spread times the base temperature."""
        options = (self.ddof, self.detach, self.guard)
        (student, caught), (teacher, also) = (_spread(x, *options) for x in (student_logits, teacher_logits))
        student, teacher = self.temperature * student, self.temperature * teacher
        counted = teacher.clamp(max=LARGEST_SPREAD * self.temperature) if self.guard else teacher
        parts = {"unscaled": _share(caught, also)}
        return Temperatures(student, teacher, counted.square().squeeze(-1), scalar_like(student_logits, 1.0), parts)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"temperature={self.temperature}, ddof={self.ddof}, detach={self.detach}, guard={self.guard}"

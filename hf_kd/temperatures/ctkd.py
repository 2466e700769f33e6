"""CTKD: a temperature learned against the student, under a curriculum."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..functional import cosine_curriculum, gradient_reversal, upcast
from ..registry import check_number
from .base import Progress, Temperatures, TemperatureStrategy, positive, shared


class _Curriculum:
    r"""Strength \(\lambda\) of the gradient reversal: 0 at first (cosine), 1 once the curriculum is over."""

    def __init__(self, owner: str, curriculum: Any, curriculum_epochs: Any):
        why = "it is the share of the run over which the reversal grows to full strength. The paper's is 10/240."
        self.share = check_number(owner, "curriculum", curriculum, why, low=0.0, high=1.0)
        self.epochs = None
        if curriculum_epochs is not None:
            why = (
                "it is the number of epochs over which the reversal grows (10 of 240 in the paper). None uses a share."
            )
            self.epochs = check_number(owner, "curriculum_epochs", curriculum_epochs, why, low=0.0, low_open=True)

    def strength(self, progress: Progress) -> float:
        if self.epochs is not None:  # the authors count epochs from 1, so the first one already sees lambda(1)
            return cosine_curriculum((math.floor(progress.epoch) + 1) / self.epochs)
        return cosine_curriculum(progress.fraction / self.share) if self.share > 0 else 1.0

    def __repr__(self) -> str:
        return f"curriculum_epochs={self.epochs}" if self.epochs is not None else f"curriculum={self.share:.6g}"


def _range(owner: str, start: Any, range_: Any, initial: Any) -> tuple[float, float, float]:
    start = positive(owner, "start", start, "It is the lower bound of the learned temperature; the paper's is 1.0.")
    why = "the learned temperature lives in (start, start + range). The paper's range is 20.0."
    range_ = check_number(owner, "range", range_, why, low=0.0, low_open=True)
    why = "it is the raw parameter before the sigmoid. The authors start at 1.0."
    return start, range_, check_number(owner, "initial", initial, why)


class CTKDTemperature(TemperatureStrategy):
    r"""CTKD, global: one temperature for all rows, trained to make the student's task harder.

    \(\tau = \mathrm{start} + \mathrm{range} \cdot \sigma(\mathrm{raw})\), compensated by \(\tau^2\). `raw` ascends the
    distillation loss: its gradient passes a reversal of strength \(\lambda\), which a cosine curriculum raises from 0
    to 1. Gradient reaches \(\tau\) through the student's term, the teacher's softened targets and \(\tau^2\), as in
    the authors' code. The student's own gradient is never touched by \(\lambda\).

    `raw` wants plain SGD: under Adam the constant \(\lambda\) cancels, and at a fine-tuning learning rate the
    temperature cannot travel. The trainer steps it with its own SGD (`temperature_learning_rate`).

    Args:
        start: Lower bound of \(\tau\).
        range: Width of the interval; note that the authors' flag `t_end` is this width, not an end.
        initial: `raw` at the beginning; 1.0 gives \(\tau_0\) = 15.62 with the default interval.
        curriculum: Share of the run over which \(\lambda\) grows; 0 for full strength at once.
        curriculum_epochs: The same in epochs, as the authors count (the first epoch sees \(\lambda(1)\)); overrides
            `curriculum`. 10 of 240 on CIFAR-100, 5 of 120 on ImageNet.

    Shape:
        student, teacher, compensation, weight: `()`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If `start` or `range` is not positive and finite, or the curriculum is out of range.

    References:
        Li et al., *Curriculum Temperature for Knowledge Distillation*, AAAI 2023,
        https://huggingface.co/papers/2211.16231, Eq. 2-8 and 11.
        Differs from the authors' code in: the minus sign sits in the reversal, not in the schedule; no weight decay
        on `raw` unless asked; every process shares one temperature.
    """

    name = "ctkd"
    compensates_product = True
    learnable = True

    def __init__(
        self,
        start: float = 1.0,
        range: float = 20.0,
        *,
        initial: float = 1.0,
        curriculum: float = 10 / 240,
        curriculum_epochs: float | None = None,
    ):
        super().__init__()
        self.start, self.range, self.initial = _range("CTKDTemperature", start, range, initial)
        self.bounds = (self.start, self.start + self.range)
        self.curriculum = _Curriculum("CTKDTemperature", curriculum, curriculum_epochs)
        self.raw = nn.Parameter(torch.tensor(self.initial))

    def reversal_strength(self, progress: Progress) -> float:
        """The curriculum's strength of the gradient reversal at `progress`, in [0, 1]."""
        return self.curriculum.strength(progress)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> Temperatures:
        """The learned temperature, with gradient to `raw` reversed and scaled by the curriculum."""
        raw = gradient_reversal(self.raw, self.reversal_strength(progress))
        return shared(self.start + self.range * raw.sigmoid(), student_logits)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"start={self.start}, range={self.range}, initial={self.initial}, {self.curriculum!r}"


class CTKDInstanceTemperature(TemperatureStrategy):
    r"""CTKD, instance-wise: one temperature per row, from a small network that sees both predictions.

    \(\tau_i = \mathrm{start} + \mathrm{range} \cdot \sigma(f(p_i, q_i))\), compensated by \(\tau_i^2\), trained by the
    same reversed gradient and curriculum as `CTKDTemperature`.

    The authors never published the network, so **this architecture is ours**: the two softmax outputs, concatenated,
    through one hidden layer. Its last layer starts at zero with bias `initial`, so that every row begins at the global
    version's temperature. The predictions enter detached: the reversed gradient must not reach the student through the
    network's input.

    Args:
        num_labels: Classes; the network reads `2 * num_labels` probabilities.
        start: Lower bound of \(\tau_i\).
        range: Width of the interval.
        initial: Raw output at the beginning, for every row.
        curriculum: Share of the run over which the reversal grows; 0 for full strength at once.
        curriculum_epochs: The same in epochs; overrides `curriculum`.
        hidden_size: Width of the hidden layer.
        network: A module of your own, `(batch, 2 * num_labels)` -> `(batch, 1)`, instead of ours.

    Shape:
        student, teacher: `(batch, 1)`; compensation `(batch,)`; weight `()`.

    Raises:
        TypeError: If a number is not one.
        ValueError: If a number is out of range, or the logits have other than `num_labels` classes.

    References:
        Li et al., *Curriculum Temperature for Knowledge Distillation*, AAAI 2023,
        https://huggingface.co/papers/2211.16231, "Instance-T". The authors' README adds 1e-7 to the teacher's
        probabilities; `KDLoss(teacher_epsilon=1e-7)` does the same.
    """

    name = "ctkd_instance"
    compensates_product = True
    learnable = True
    per_sample = True

    def __init__(
        self,
        num_labels: int,
        start: float = 1.0,
        range: float = 20.0,
        *,
        initial: float = 1.0,
        curriculum: float = 10 / 240,
        curriculum_epochs: float | None = None,
        hidden_size: int = 64,
        network: nn.Module | None = None,
    ):
        super().__init__()
        owner = "CTKDInstanceTemperature"
        self.start, self.range, self.initial = _range(owner, start, range, initial)
        self.bounds = (self.start, self.start + self.range)
        self.curriculum = _Curriculum(owner, curriculum, curriculum_epochs)
        why = "the network reads the probabilities of both models. Pass the models' `config.num_labels`."
        self.num_labels = int(check_number(owner, "num_labels", num_labels, why, low=2, whole=True))
        why = "it is the width of a layer. Pass e.g. 64."
        self.hidden_size = int(check_number(owner, "hidden_size", hidden_size, why, low=1, whole=True))
        self.network = network if network is not None else self._default_network()

    def _default_network(self) -> nn.Sequential:
        last = nn.Linear(self.hidden_size, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, self.initial)
        return nn.Sequential(nn.Linear(2 * self.num_labels, self.hidden_size), nn.ReLU(), last)

    def reversal_strength(self, progress: Progress) -> float:
        """The curriculum's strength of the gradient reversal at `progress`, in [0, 1]."""
        return self.curriculum.strength(progress)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> Temperatures:
        """One temperature per row, with gradient to the network reversed and scaled by the curriculum.

        Raises:
            ValueError: Logits with another number of classes than `num_labels`.
        """
        if student_logits.shape[-1] != self.num_labels:
            raise ValueError(
                f"`CTKDInstanceTemperature(num_labels={self.num_labels})` got logits of {student_logits.shape[-1]} "
                "classes: its network reads one probability per class and side. Pass the models' `config.num_labels`."
            )
        predictions = [upcast(x).detach().softmax(-1) for x in (teacher_logits, student_logits)]
        inputs = torch.cat(predictions, dim=-1)
        parameter = next(self.network.parameters(), inputs)
        with torch.autocast(inputs.device.type, enabled=False):  # three digits of bfloat16 are no temperature
            raw = upcast(self.network(inputs.to(parameter.dtype)))
        raw = gradient_reversal(raw, self.reversal_strength(progress))
        return shared(self.start + self.range * raw.sigmoid(), student_logits)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"start={self.start}, range={self.range}, initial={self.initial}, {self.curriculum!r}"

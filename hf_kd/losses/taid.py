"""TAID: a target between student and teacher that moves towards the teacher as training goes well."""

import torch
from torch import Tensor

from ..functional import kl_divergence, upcast
from ..registry import check_flag, check_number
from ..temperatures import Progress
from .base import DistillationLoss, LossOutput, check_pair


class TAIDLoss(DistillationLoss):
    r"""\(\mathrm{KL}(\mathrm{softmax}((1 - t) \bar z_i + t v_i) \Vert \mathrm{softmax}(z_i))\), a target on its way.

    The target lies between the student's own logits \(\bar z\), without gradient, and the teacher's. \(t\) rises from
    `start` to `end` at least linearly over the run, and faster while the loss falls: once per optimizer step `advance`
    takes the step's mean loss \(J\), updates
    \(m \leftarrow \mu m + (1 - \mu) (J_{prev} - J)/J_{prev}\), and moves
    \(t \leftarrow \min(end, \max(linear, t + \alpha \, \sigma(m) (1 - t)))\).

    **State.** \(t\), \(m\) and \(J_{prev}\) are buffers, so they are saved and restored with the objective. The
    trainer calls `advance` after each optimizer step, with the mean over all rows of the step on all processes, so
    that every process keeps the same \(t\). Without calls \(t\) follows the linear schedule alone, which is
    `adaptive=False`.

    Args:
        start: \(t\) at the beginning, in [0, 1).
        end: \(t\) at the end, in (0, 1] and >= `start`.
        rate: \(\alpha\) in [0, 1].
        momentum: \(\mu\) in [0, 1].
        adaptive: False for the linear schedule alone.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in nats. The part `t` is a scalar.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or logits do not match.

    References:
        Shing et al., *TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language
        Models*, ICLR 2025, https://huggingface.co/papers/2501.16937; https://github.com/SakanaAI/TAID. The authors
        take the linear schedule from the step before, so \(t\) here can be one step's share ahead of theirs.
    """

    name = "taid"

    def __init__(
        self,
        start: float = 0.4,
        end: float = 1.0,
        *,
        rate: float = 5e-4,
        momentum: float = 0.99,
        adaptive: bool = True,
    ):
        super().__init__()
        why = "it is how far from the student to the teacher the target lies at the beginning. The authors have 0.4."
        self.start = check_number("TAIDLoss", "start", start, why, low=0.0, high=1.0)
        why = "it is how far from the student to the teacher the target lies at the end, > 0 and >= start. Pass 1.0."
        self.end = check_number("TAIDLoss", "end", end, why, low=0.0, high=1.0, low_open=True)
        if self.start > self.end or self.start == 1:
            raise ValueError(
                f"`TAIDLoss(start={start!r}, end={end!r})`: the target moves towards the teacher, so `start` must be "
                "< 1 and not larger than `end`. Pass e.g. 0.4 and 1.0."
            )
        why = "it scales each adaptive step. The authors have 5e-4; pass 0.0 for the linear schedule."
        self.rate = check_number("TAIDLoss", "rate", rate, why, low=0.0, high=1.0)
        why = "it averages the relative change of the loss over steps. The authors have 0.99."
        self.momentum = check_number("TAIDLoss", "momentum", momentum, why, low=0.0, high=1.0)
        self.adaptive = check_flag("TAIDLoss", "adaptive", adaptive, "it decides whether t follows the loss.")
        self.adapts = self.adaptive
        self.is_divergence = self.start > 0  # at t = 0 the student is its own target
        self.register_buffer("risen", torch.tensor(0.0))  # t - start
        self.register_buffer("change", torch.tensor(0.0))
        self.register_buffer("previous", torch.tensor(torch.inf))

    def t(self, progress: Progress) -> Tensor:
        """How far the target lies from the student towards the teacher, a scalar."""
        return (self.start + self.risen).clamp(min=self._linear(progress), max=self.end)

    def _linear(self, progress: Progress) -> float:
        return self.start + (self.end - self.start) * min(max(progress.fraction, 0.0), 1.0)

    @torch.no_grad()
    def advance(self, mean_loss: Tensor | float, *, progress: Progress = Progress()) -> None:
        """Move `t` after an optimizer step, on the device: nothing waits for the numbers.

        The first call only remembers the loss. A loss that is not finite changes nothing.

        Args:
            mean_loss: Mean of this loss over all rows of the step, before any weight, the same on every process.
            progress: Where training is.
        """
        if not self.adaptive:
            return
        loss = torch.as_tensor(mean_loss, device=self.risen.device).to(self.risen.dtype)
        usable = loss.isfinite()
        ready = usable & self.previous.isfinite()
        relative = (self.previous - loss) / (self.previous + 1e-15)
        change = torch.where(ready, self.momentum * self.change + (1 - self.momentum) * relative, self.change)
        t = self.start + self.risen
        moved = (t + self.rate * torch.sigmoid(change) * (1 - t)).clamp(min=self._linear(progress), max=self.end)
        self.change.copy_(change)
        self.risen.copy_(torch.where(ready, moved - self.start, self.risen))
        self.previous.copy_(torch.where(usable, loss, self.previous))

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row; labels play no part, and the state does not change."""
        check_pair("TAIDLoss", student_logits, teacher_logits)
        student, teacher = upcast(student_logits), upcast(teacher_logits)
        t = self.t(progress).to(student.dtype)
        target = torch.lerp(student.detach(), teacher, t)
        return LossOutput(kl_divergence(target, student), None, {"t": t.clone()})

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        values = f"start={self.start}, end={self.end}, rate={self.rate}, momentum={self.momentum}"
        return f"{values}, adaptive={self.adaptive}"

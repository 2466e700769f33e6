"""Annealing-KD: regression on a teacher that is turned up in stages, then cross-entropy alone."""

import math

from torch import Tensor

from ..functional import upcast
from ..registry import check_number
from ..temperatures import Progress
from .base import DistillationLoss, LossOutput, check_pair


class AnnealingKDLoss(DistillationLoss):
    r"""\(\frac1K \sum_k (z_{ik} - \tfrac{s}{S} v_{ik})^2\) in stage \(s = 1 \ldots S\) of the first phase, then 0.

    The teacher starts at \(1/S\) of its logits, which is easy to imitate, and reaches them in the last stage. In the
    second phase the student learns from the labels alone. The objective's cross-entropy follows: it is off in the
    first phase and on in the second, so `ce_weight` must be > 0 (the authors': 1). In the paper's terms the factor is
    \(\Phi(T) = 1 - (T - 1)/\tau_{max}\), with \(T\) falling from \(\tau_{max} = S\) to 1.

    No strategy of temperatures: the schedule is the method. The loss sees the level of the logits, so teacher and
    student should have comparable heads. The teacher still runs in the second phase, and nothing but time is lost.

    Args:
        stages: \(S \ge 1\).
        first_phase: Its share of the run, in (0, 1]. The authors train 200 + 100 epochs on CIFAR, 10 + 3 on GLUE.
        first_phase_epochs: The same in epochs; overrides `first_phase`. Rows without a length (streams) have whole
            epochs only, so it must be a multiple of `stages` there.

    Shape:
        logits `(batch, num_labels)` -> loss `(batch,)`, in squared logits.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of range, or logits do not match.

    References:
        Jafari et al., *Annealing Knowledge Distillation*, EACL 2021, https://huggingface.co/papers/2104.07163. The
        authors start the second phase from the first one's best checkpoint and with a fresh optimizer and schedule;
        here it goes on from where the first one ends. Two runs do the same as theirs: the first with
        `first_phase=1.0`, the second from its best checkpoint at `kd_weight=0`.
    """

    name = "annealing_kd"
    shift_invariant = False
    is_divergence = False

    def __init__(self, stages: int = 10, *, first_phase: float = 2 / 3, first_phase_epochs: float | None = None):
        super().__init__()
        why = "it is the number of steps in which the teacher's logits are turned up. The authors have 10."
        self.stages = int(check_number("AnnealingKDLoss", "stages", stages, why, low=1.0, whole=True))
        why = "it is the share of the run in which the teacher is imitated. The authors have 200/300."
        self.first_phase = check_number(
            "AnnealingKDLoss", "first_phase", first_phase, why, low=0.0, high=1.0, low_open=True
        )
        self.first_phase_epochs = None
        if first_phase_epochs is not None:
            why = "it is the number of epochs in which the teacher is imitated. Pass None to use `first_phase`."
            self.first_phase_epochs = check_number(
                "AnnealingKDLoss", "first_phase_epochs", first_phase_epochs, why, low=0.0, low_open=True
            )

    @property
    def epochs_apart(self) -> float | None:
        """Epochs per stage, where the first phase is counted in epochs."""
        return None if self.first_phase_epochs is None else self.first_phase_epochs / self.stages

    def stage(self, progress: Progress) -> int:
        """From 1 to `stages` in the first phase, 0 in the second."""
        if self.first_phase_epochs is not None:
            position = progress.epoch / self.first_phase_epochs
        else:
            position = progress.fraction / self.first_phase
            if self.first_phase == 1:  # the end of the run belongs to its only phase
                position = min(position, 1 - 1e-6)
        step = math.floor(position * self.stages + 1e-9) + 1  # 0.29 * 100 is a little less than 29
        return step if step <= self.stages else 0

    def ce_factor(self, progress: Progress) -> float:
        """Cross-entropy belongs to the second phase."""
        return 0.0 if self.stage(progress) else 1.0

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """One value per row; labels play no part."""
        check_pair("AnnealingKDLoss", student_logits, teacher_logits)
        stage = self.stage(progress)
        if stage == 0:
            return LossOutput(upcast(student_logits[:, :0]).sum(-1))  # 0, and differentiable like any loss
        difference = upcast(student_logits) - stage / self.stages * upcast(teacher_logits)
        return LossOutput(difference.square().mean(-1))

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        epochs = self.first_phase_epochs
        phase = f"first_phase={self.first_phase}" if epochs is None else f"first_phase_epochs={epochs}"
        return f"stages={self.stages}, {phase}"

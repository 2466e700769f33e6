"""The contract of a distillation loss: tensors in, unreduced values out, never models."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ..temperatures import Progress, Temperatures


class LossOutput(NamedTuple):
    """What a distillation loss returns for one batch.

    Args:
        loss: `(batch,)` for row-wise losses; a scalar for batch relations.
        temperatures: What the strategy decided, for logging, so that nothing is computed twice; None without one.
        parts: Detached components to log, `(batch,)` or scalar each.
    """

    loss: Tensor
    temperatures: Temperatures | None = None
    parts: dict[str, Tensor] = {}


class DistillationLoss(nn.Module):
    """Abstract base of all distillation losses.

    Attributes:
        name: The registry key.
        uses_temperature: Holds a strategy in `self.temperature`.
        row_wise: Returns one value per row; batches may then be split freely.
        shift_invariant: Unchanged when a constant is added to all logits of a row, at given temperatures (whether
            those move is the strategy's `shift_invariant`).
        needs_labels: Gives 0 on unlabelled rows and is normalised by the labelled ones.
        needs_two_plus_classes: Teaches nothing when there are exactly two classes.
        is_divergence: >= 0, and 0 exactly when both tempered distributions agree.
        needs: Names of further tensors the trainer must hand in (pooled features, hidden states, …).
    """

    name: ClassVar[str]
    uses_temperature: ClassVar[bool] = False
    row_wise: ClassVar[bool] = True
    shift_invariant: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_two_plus_classes: ClassVar[bool] = False
    is_divergence: bool = True
    needs: ClassVar[tuple[str, ...]] = ()

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> LossOutput:
        """The loss of this batch, unreduced.

        Shape:
            logits `(batch, num_labels)`, labels `(batch,)` with -100 on unlabelled rows -> see `LossOutput`.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must define `forward`.")


def check_pair(owner: str, student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse logits that broadcasting would accept but that do not belong together.

    Raises:
        ValueError: Unless both are `(batch, num_labels)` with the same sizes.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"`{owner}(student_logits, teacher_logits)` got shapes {tuple(student_logits.shape)} and "
            f"{tuple(teacher_logits.shape)}: logits are compared row by row and class by class, so both must be "
            "(batch, num_labels) with equal sizes. Load both models with the same `num_labels` and `label2id`."
        )

"""The contract of a distillation loss: tensors in, unreduced values out, never models."""

import warnings
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from ..temperatures import Progress, Temperatures, TemperatureStrategy

EXTRAS = {
    "student_features": "what the student's classifier reads, `(batch, d_s)`; carries gradient",
    "teacher_features": "what the teacher's classifier reads, `(batch, d_t)`",
    "teacher_classifier_weight": "the weight of the teacher's last linear layer, `(num_labels, d_t)`",
}
"""All that a loss can ask for in `needs` besides logits and labels."""

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
"""What `config.problem_type` of a `transformers` model may say."""


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
        row_wise: Returns one value per row; batches may then be split freely. Else it is a batch relation: one value
            for all rows.
        shift_invariant: Unchanged when a constant is added to all logits of a row, at given temperatures (whether
            those move is the strategy's `shift_invariant`).
        needs_teacher: Looks at the teacher's logits or features. If not, both may be missing, and are ignored when
            given.
        needs_labels: Gives 0 on unlabelled rows and is normalised by the labelled ones.
        needs_two_plus_classes: Teaches nothing when there are exactly two classes.
        is_divergence: >= 0, and 0 exactly when both tempered distributions agree. Of a batch relation: >= 0, and 0
            when (not only when) both sides' tempered logits agree, but for the small numbers papers add to
            denominators.
        needs: Which of `EXTRAS` the loss wants; `forward` takes each as a keyword argument of that name.
        learnable: Has parameters of its own (besides its temperature's), which the student's optimizer steps.
        problem_types: What kind of logits the loss is made for, of `PROBLEM_TYPES`.
        adapts: Keeps a state that `advance` moves once per optimizer step.
        epochs_apart: How many epochs lie between two of its changes; None if it does not count epochs, or whole ones
            only. A stream has no parts of epochs.
    """

    name: ClassVar[str]
    uses_temperature: ClassVar[bool] = False
    row_wise: bool = True
    shift_invariant: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_two_plus_classes: bool = False
    is_divergence: bool = True
    needs: tuple[str, ...] = ()
    learnable: bool = False
    problem_types: tuple[str, ...] = ("single_label_classification",)
    adapts: bool = False
    epochs_apart: float | None = None

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
        **extras: Tensor,
    ) -> LossOutput:
        """The loss of this batch, unreduced. Teacher logits are None only for losses that do not need them.

        A concrete loss names the extras it needs, and no others, as keyword arguments.

        Shape:
            logits `(batch, num_labels)`, labels `(batch,)` with -100 on unlabelled rows; see `EXTRAS` for those, and
            `LossOutput` for what is returned.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must define `forward`.")

    def bind(self, sizes: Mapping[str, int]) -> None:
        """Create what depends on the models' widths; called by the trainer before training, and before a restore.

        A second call with the same sizes changes nothing.

        Args:
            sizes: `num_labels`, and the widths of `student_features` and `teacher_features` if any loss needs them.
        """

    def ce_factor(self, progress: Progress) -> float:
        """What the objective's cross-entropy is multiplied by; methods of several phases switch it off in some."""
        return 1.0

    def advance(self, mean_loss: Tensor, *, progress: Progress = Progress()) -> None:
        """Move the loss's state after an optimizer step; called by the trainer if the loss `adapts`.

        Args:
            mean_loss: Mean of this loss over all rows of the step, before loss weights, the same on every process.
            progress: Where training was in that step.
        """


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


def check_labels(owner: str, labels: Tensor | None) -> Tensor:
    """`labels`, or an error for a loss that cannot do without.

    Raises:
        ValueError: There are none.
    """
    if labels is None:
        raise ValueError(
            f"`{owner}(labels=None)`: this loss treats the labelled class apart from the others, so it needs labels. "
            "Hand in labels with -100 on unlabelled rows, or use a loss that works without, e.g. `KDLoss`."
        )
    return labels


def check_strategy(loss: DistillationLoss, strategy: TemperatureStrategy, num_labels: int | None) -> None:
    """Refuse a strategy that would not be what its paper says under `loss`; warn where it teaches nothing.

    Raises:
        ValueError: The strategy stands for shifted logits, and the loss is not shift-invariant; or it treats rows
            apart, and the loss gives one value for all of them or is for multi-label problems only.
    """
    owner, temperature = type(loss).__name__, type(strategy).__name__
    if "single_label_classification" not in loss.problem_types and (strategy.per_sample or strategy.weights_rows):
        raise ValueError(
            f"`{owner}(temperature={temperature}(...))`: this strategy reads a row's logits as one distribution over "
            f"the classes, and `{owner}` reads each as a yes or no of its own. Use one temperature for all rows, e.g. "
            "a number or `CTKDTemperature`."
        )
    if strategy.needs_shift_invariance and not loss.shift_invariant:
        raise ValueError(
            f"`{owner}(temperature={temperature}(...))`: standardised logits are centred and scaled, and a "
            "temperature can only scale them; the two agree under losses that ignore a constant added to a row's "
            f"logits, which `{owner}` does not. Use a softmax-based loss such as `KDLoss`, or another strategy."
        )
    if not loss.row_wise and (strategy.per_sample or strategy.weights_rows):
        what = "gives each row a temperature of its own" if strategy.per_sample else "weights each row"
        raise ValueError(
            f"`{owner}(temperature={temperature}(...))`: this strategy {what}, and the loss compares the rows of a "
            "batch with each other: its one value has no rows to weight, and rows at different temperatures are not "
            "comparable. Use one temperature for all rows, e.g. a number or `CTKDTemperature`, or a row-wise loss, "
            "e.g. `KDLoss`."
        )
    if strategy.needs_two_plus_classes:
        why = f"`{temperature}` leaves nothing but the sign of two logits' difference, so its gradient is almost 0"
        warn_two_classes(owner, num_labels, why)


def warn_two_classes(owner: str, num_labels: int | None, why: str) -> None:
    """One warning at construction if there are exactly two classes; none while their number is unknown."""
    if num_labels == 2:
        warnings.warn(f"`{owner}(num_labels=2)`: {why}. With two classes use e.g. `KDLoss`.", stacklevel=4)

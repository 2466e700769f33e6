"""The training objective: cross-entropy plus weighted distillation losses, with exact denominators."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batches import (
    Batch,
    MixedLabels,
    SharedClasses,
    View,
    counts_of,
    known_labels,
    label_parts,
    parts_loss,
    parts_mass,
    selected,
    taught_view,
)
from .functional import REGRESSION, SINGLE_LABEL, upcast
from .losses import DistillationLoss, LossOutput
from .memory import identity_layer
from .registry import check_flag, check_number
from .temperatures import Progress, TemperatureStrategy


class Term(NamedTuple):
    """One distillation loss of the objective, evaluated.

    Args:
        name: Unique within the objective.
        weight: Everything that multiplies it: loss weight, `kd_weight`, warm-up.
        output: What the loss returned.
        value: What it adds to the objective.
        needs_labels: It says nothing about unlabelled rows.
        whole_batch: The rows of all processes that it was evaluated on; None if on those of this batch alone.
    """

    name: str
    weight: float
    output: LossOutput
    value: Tensor
    needs_labels: bool = False
    whole_batch: Batch | None = None


class ObjectiveOutput(NamedTuple):
    """The objective of one (micro-)batch.

    Args:
        loss: Scalar that carries gradient.
        components: Detached scalars after weighting: `ce_loss` and `kd_loss` sum to `loss`; with several losses,
            `kd_loss/<name>` sum to `kd_loss`.
        terms: The distillation losses, for telemetry.
    """

    loss: Tensor
    components: dict[str, Tensor]
    terms: tuple[Term, ...]


class DistillationObjective(nn.Module):
    r"""\(w_{ce} \frac{1}{|L|}\sum_{i \in L} CE_i + w_{kd}\, w(t) \sum_m w_m \frac{1}{N}\sum_i \ell_{m,i}\).

    Cross-entropy is averaged over the labelled rows \(L\), distillation over all \(N\) rows (over the labelled ones
    for losses that need labels). Both counts can be handed in, so that micro-batches of any size, on any number of
    processes, add up to the exact mean over the whole optimizer step.

    **Batch relations** (`row_wise=False` losses and temperatures) compare the rows of one micro-batch with each other,
    on all processes (`whole_batch`). Over several micro-batches the step's value is their mean, weighted by rows: that
    is not the relation of all rows at once. They are the same for any number of processes, not for any accumulation.

    **Task serialisation.** With `task_serialization` the distillation losses see the student's logits \(z\), and
    cross-entropy sees \(Wz + b\), a \(K \times K\) layer that starts as the identity: what imitates the teacher and
    what classifies part ways. `classify` gives the logits to evaluate and predict with. The trainer folds the layer
    into the student's own last layer, \(W W_c\) and \(W b_c + b\), in everything it saves.

    **Classes that the teacher does not know.** With `shared`, classes given to `bind`, losses that look at the teacher
    see the student's logits of these classes alone, against as many teacher logits, and are averaged over the rows
    that are not labelled with another class. Cross-entropy, and `classify`, are over all classes and labelled rows.

    **Mixed rows.** With `mixed`, mixtures of two rows (mixup, CutMix), cross-entropy is
    \(\lambda CE(y) + (1-\lambda) CE(y')\), averaged over the mass of labels: \(\lambda\) for a first and
    \(1-\lambda\) for a second label that there is. The losses see such a row as unlabelled, and leave it out if the
    teacher lacks the class of either member. Losses that need labels are refused.

    **Other heads.** `bind` says what the student's `config.problem_type` is. With several labels per row the
    cross-entropy is binary, of each label; for a regression squared error stands in its place, under the same name.

    Args:
        losses: `(loss_weight, loss)` pairs. May be empty only at `kd_weight=0`.
        ce_weight: Weight of the cross-entropy with the labels, >= 0.
        kd_weight: Multiplies the sum of the losses, >= 0. At 0 no teacher is needed, nor if no loss needs one.
        warmup: Share of the run over which \(w(t)\) rises linearly from 0 to 1. 0 for none.
        warmup_epochs: The same in epochs as the papers count, \(w = \min(epoch / warmup\_epochs, 1)\) with the first
            epoch being 1; overrides `warmup`.
        task_serialization: Classify on a learned linear layer over the logits that are distilled.

    Raises:
        TypeError: If a weight is not a number, or an entry of `losses` no pair with a `DistillationLoss`.
        ValueError: If a weight is negative or not finite, or if there is nothing to learn from.

    Example:
        >>> from hf_kd.losses import KDLoss
        >>> objective = DistillationObjective([(1.0, KDLoss(4.0))], ce_weight=0.1, kd_weight=0.9)
        >>> z, v, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> round(objective(z, v, y).loss.item(), 4)
        0.0313
    """

    def __init__(
        self,
        losses: Sequence[tuple[float, DistillationLoss]] = (),
        *,
        ce_weight: float,
        kd_weight: float,
        warmup: float = 0.0,
        warmup_epochs: float | None = None,
        task_serialization: bool = False,
    ):
        super().__init__()
        owner = "DistillationObjective"
        why = "it multiplies a loss that is minimised. Pass 0.0 to switch the term off."
        self.ce_weight = check_number(owner, "ce_weight", ce_weight, why, low=0.0)
        self.kd_weight = check_number(owner, "kd_weight", kd_weight, why, low=0.0)
        why = "it is the share of the run over which the distillation weight rises from 0. The papers' is 20/240."
        self.warmup = check_number(owner, "warmup", warmup, why, low=0.0, high=1.0)
        self.warmup_epochs = None
        if warmup_epochs is not None:
            why = "it is the number of epochs over which the distillation weight rises. Pass None to use `warmup`."
            self.warmup_epochs = check_number(owner, "warmup_epochs", warmup_epochs, why, low=0.0, low_open=True)
        pairs = [_checked(pair) for pair in losses]
        self.loss_weights = [weight for weight, _ in pairs]
        self.losses = nn.ModuleList([loss for _, loss in pairs])
        if self.ce_weight == 0 and self.kd_weight == 0:
            raise ValueError(f"`{owner}(ce_weight=0, kd_weight=0)`: nothing would be learned. Raise one of them.")
        if self.kd_weight > 0 and not any(self.loss_weights):
            raise ValueError(
                f"`{owner}(losses=[...])` got no loss with a weight > 0, but kd_weight={self.kd_weight:g}: there is "
                "nothing to distil with. Pass e.g. losses=[(1.0, KDLoss(4.0))], or kd_weight=0."
            )
        if self.kd_weight > 0 and self.ce_factor(Progress()) != 1 and self.ce_weight == 0:
            raise ValueError(
                f"`{owner}(ce_weight=0)`: the losses have a phase that belongs to the cross-entropy alone, in which "
                "nothing would be learned. Pass a ce_weight > 0."
            )
        why = "it decides whether a linear layer stands between the distilled and the classified logits."
        self.task_serialization = check_flag(owner, "task_serialization", task_serialization, why)
        self.register_module("serialization", None)
        self.register_module("shared", None)
        self.problem_type = SINGLE_LABEL
        self.names = _unique_names(self.losses)

    def bind(
        self,
        sizes: Mapping[str, int],
        *,
        bias: bool = True,
        problem_type: str = SINGLE_LABEL,
        shared: Sequence[int] | None = None,
    ) -> None:
        """Create what depends on the models' sizes: learned projectors, and the layer of `task_serialization`.

        Called by the trainer before training. What exists already with the same sizes stays as it is.

        Args:
            sizes: `num_labels`, and for losses that need features `student_features` and `teacher_features`.
            bias: Whether the layer of `task_serialization` has one; a bias can only be folded into a bias.
            problem_type: What the labels are, of `hf_kd.losses.PROBLEM_TYPES`.
            shared: The ids of the classes that the teacher knows; None for all.
        """
        self.problem_type = problem_type
        self.shared = None if shared is None else SharedClasses(shared, sizes["num_labels"])
        for loss in self.active_losses:
            is_partial = shared is not None and loss.needs_teacher
            loss.bind({**sizes, "num_labels": len(shared)} if is_partial else sizes)
        if self.task_serialization:
            size, old = sizes["num_labels"], self.serialization
            if old is None or old.in_features != size or (old.bias is not None) != bias:
                self.serialization = identity_layer(size, bias)

    @property
    def active_losses(self) -> list[DistillationLoss]:
        """The losses that count: all of them, or none at `kd_weight=0`."""
        return list(self.losses) if self.kd_weight > 0 else []

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at the teacher."""
        return any(loss.needs_teacher for loss in self.active_losses)

    @property
    def needs(self) -> tuple[str, ...]:
        """The tensors beyond logits that the losses need, by name."""
        return tuple(dict.fromkeys(name for loss in self.active_losses for name in loss.needs))

    @property
    def has_relations(self) -> bool:
        """Whether any term depends on which rows are in a batch together."""
        return any(map(_relates_rows, self.active_losses))

    def classify(self, student_logits: Tensor) -> Tensor:
        """The logits to evaluate and predict with: the student's own, or those after `task_serialization`."""
        if self.serialization is None:
            return student_logits
        with torch.autocast(student_logits.device.type, enabled=False):
            return self.serialization(upcast(student_logits).to(self.serialization.weight.dtype))

    def strategies(self) -> Iterator[tuple[str, TemperatureStrategy]]:
        """The temperature strategies, each under the name of its loss."""
        for name, loss in zip(self.names, self.losses, strict=True):
            if loss.uses_temperature:
                yield name, loss.temperature

    def temperature_parameters(self) -> list[nn.Parameter]:
        """Parameters of learnable temperatures: stepped by their own SGD."""
        modules = (m for m in self.modules() if isinstance(m, TemperatureStrategy) and m.learnable)
        return list(dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad))

    def projector_parameters(self) -> list[nn.Parameter]:
        """Parameters of learned projectors: in the student's optimizer, decayed as its weights are."""
        temperatures = {id(parameter) for parameter in self.temperature_parameters()}
        parameters = (p for loss in self.losses if loss.learnable for p in loss.parameters() if p.requires_grad)
        return [p for p in dict.fromkeys(parameters) if id(p) not in temperatures]

    def serialization_parameters(self) -> list[nn.Parameter]:
        """Parameters of the layer of `task_serialization`: in the student's optimizer, not decayed."""
        return [] if self.serialization is None else list(self.serialization.parameters())

    def warmup_factor(self, progress: Progress) -> float:
        """The factor of the distillation weight at `progress`, in [0, 1]."""
        if self.warmup_epochs is not None:
            return min((math.floor(progress.epoch) + 1) / self.warmup_epochs, 1.0)
        return min(max(progress.fraction / self.warmup, 0.0), 1.0) if self.warmup > 0 else 1.0

    def ce_factor(self, progress: Progress) -> float:
        """The factor of the cross-entropy at `progress`: 1, unless a loss of several phases says otherwise."""
        return math.prod(loss.ce_factor(progress) for loss in self.losses) if self.kd_weight > 0 else 1.0

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
        label_smoothing: float = 0.0,
        num_rows: Tensor | float | None = None,
        num_labelled: Tensor | float | None = None,
        taught_counts: tuple[Tensor | float, Tensor | float] | None = None,
        row_weight: Tensor | None = None,
        label_weight: Tensor | None = None,
        labels_weigh: Tensor | float | None = None,
        whole_batch: Batch | None = None,
        extras: Mapping[str, Tensor] | None = None,
        mixed: MixedLabels | None = None,
    ) -> ObjectiveOutput:
        """Evaluate the objective.

        Args:
            student_logits: `(batch, num_labels)`.
            teacher_logits: The same shape, without gradient; `(batch, shared)` if only some classes are shared. May be
                None unless `needs_teacher`.
            labels: `(batch,)`, -100 on unlabelled rows; None if no row has one. See `task_loss` for other problems.
            progress: Where training is.
            label_smoothing: Of the cross-entropy.
            num_rows: Denominator of the distillation terms; by default this batch's rows.
            num_labelled: Denominator of the cross-entropy; by default this batch's labelled rows.
            taught_counts: With `shared` classes, both counts of the rows not labelled with another class; by default
                of this batch.
            row_weight: `(batch,)` of 0 and 1: rows that only repeat others to fill a batch count 0.
            label_weight: `(batch,)`, >= 0: how much each row's label counts in the cross-entropy, which is then their
                weighted mean. Distillation counts every row once.
            labels_weigh: Denominator of the cross-entropy whatever `num_labelled` says: what all labels of the
                optimizer step weigh. By default, with `label_weight` or `mixed`, this batch's.
            whole_batch: The counted rows of all processes, for batch relations; by default this batch's. Of mixed rows
                its labels are `known_labels`.
            extras: The tensors in `needs`, by name.
            mixed: The second labels of rows that are mixtures, and the share of the first.

        Raises:
            ValueError: Teacher logits or extra tensors are missing, or do not fit; or rows are mixed and a loss needs
                labels, or the labels are numbers.
        """
        self._refuse_mixed(mixed)
        own_rows = len(student_logits) if row_weight is None else row_weight.sum()
        num_rows = own_rows if num_rows is None else num_rows
        if num_labelled is None:
            num_labelled = counts_of(labels, row_weight, len(student_logits), self.problem_type)[1]
        if row_weight is not None:
            student_logits = _blanked(student_logits, row_weight)
            teacher_logits = None if teacher_logits is None else _blanked(teacher_logits, row_weight)
        with torch.autocast(student_logits.device.type, enabled=False):  # the losses choose their own precision
            total = upcast(student_logits[:0]).sum()  # 0 with a gradient: a batch without any label has one too
            components = {"ce_loss": total.detach()}
            ce_weight = self.ce_weight * self.ce_factor(progress)
            if labels is not None and ce_weight > 0:
                parts = label_parts(labels, label_weight, mixed)
                rows = parts_loss(self.classify(student_logits), parts, self.problem_type, label_smoothing)
                count = num_labelled if labels_weigh is None else labels_weigh
                if labels_weigh is None and parts[0][1] is not None:
                    count = parts_mass(parts, row_weight, self.problem_type)
                total = total + ce_weight * _mean(rows, count, row_weight)
                components["ce_loss"] = total.detach()
            terms = []
            if self.kd_weight > 0:
                batch = Batch(student_logits, teacher_logits, self.known_labels(labels, mixed), extras or {})
                whole_batch = whole_batch or selected(batch, None if row_weight is None else row_weight > 0)
                view = View(batch, whole_batch, row_weight, own_rows, num_rows, num_labelled)
                taught = view
                if self.shared is not None:
                    taught = taught_view(view, self.shared, taught_counts, self.has_relations, self.problem_type)
                terms = self._terms(view, taught, progress)
                if len(terms) > 1:  # before their sum: the first one that is not finite is named
                    components |= {f"kd_loss/{term.name}": term.value.detach() for term in terms}
                kd_loss = torch.stack([term.value for term in terms]).sum()
                total = total + kd_loss
                components["kd_loss"] = kd_loss.detach()
        return ObjectiveOutput(total, components, tuple(terms))

    def distilled_rows(
        self, labels: Tensor | None, row_weight: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Labels and row weights as losses that look at the teacher see them: of the `shared` classes alone.

        Shape:
            as in `forward` -> the same; a weight of None, for all rows, may become one for each.
        """
        return (labels, row_weight) if self.shared is None else self.shared.rows(labels, row_weight)

    def known_labels(self, labels: Tensor | None, mixed: MixedLabels | None = None) -> Tensor | None:
        """Labels as distillation may know them: none on mixed rows, but for a class that the teacher does not know."""
        return known_labels(labels, mixed, self.shared)

    def _refuse_mixed(self, mixed: MixedLabels | None) -> None:
        """Say so where mixed labels mean nothing."""
        if mixed is None:
            return
        needing = [loss.name for loss in self.active_losses if loss.needs_labels]
        if needing:
            raise ValueError(
                f"`DistillationObjective` got mixed rows (`labels_mix`), and {', '.join(f'`{n}`' for n in needing)} "
                "needs the one class of a row, of which a mixture has two. Leave mixup and CutMix out, or use a loss "
                "without labels, such as `kd`."
            )
        if self.problem_type == REGRESSION:
            raise ValueError(
                "`DistillationObjective` got mixed rows (`labels_mix`), and squared error is not linear in the "
                "labels, so two of them make no loss of a mixture. Leave mixup and CutMix out."
            )

    def _terms(self, view: View, taught: View, progress: Progress) -> list[Term]:
        """Every loss, evaluated on the rows it is for."""
        if view.batch.teacher_logits is None and self.needs_teacher:
            raise ValueError(
                f"`DistillationObjective` got no teacher logits at kd_weight={self.kd_weight:g}. Hand in "
                "`teacher_logits` (or a `teacher_model` to the trainer), or set kd_weight=0."
            )
        missing = [name for name in self.needs if name not in view.batch.extras]
        if missing:
            raise ValueError(
                f"`DistillationObjective(extras=...)` lacks {', '.join(missing)}: its losses compare more than "
                "logits. Hand them in by name; `DistillationTrainer` takes them from its two models."
            )
        scale = self.kd_weight * self.warmup_factor(progress)
        terms = []
        for term, loss_weight, loss in zip(self.names, self.loss_weights, self.losses, strict=True):
            seen = taught if loss.needs_teacher else view
            whole = seen.whole_batch if _relates_rows(loss) else None
            rows = seen.batch if whole is None else whole
            extras = {name: rows.extras[name] for name in loss.needs}
            output = loss(rows.student_logits, rows.teacher_logits, rows.labels, progress=progress, **extras)
            weight = scale * loss_weight
            value = weight * _share(output.loss, seen, loss.needs_labels, whole is not None)
            terms.append(Term(term, weight, output, value, loss.needs_labels, whole))
        return terms

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        warmup = f"warmup_epochs={self.warmup_epochs}" if self.warmup_epochs is not None else f"warmup={self.warmup:g}"
        head = ", task_serialization=True" if self.task_serialization else ""
        return (
            f"ce_weight={self.ce_weight}, kd_weight={self.kd_weight}, loss_weights={self.loss_weights}, {warmup}{head}"
        )


def _relates_rows(loss: DistillationLoss) -> bool:
    """Whether a row's loss, or temperature, depends on the other rows of the batch."""
    return not loss.row_wise or (loss.uses_temperature and not loss.temperature.row_wise)


def _share(loss: Tensor, seen: View, needs_labels: bool, is_whole: bool) -> Tensor:
    """A mean over rows, or this process's share of a value of all of them."""
    count = seen.num_labelled if needs_labels else seen.num_rows
    if loss.dim() == 0:
        return seen.own_rows / _at_least_one(seen.num_rows) * loss
    if not is_whole:
        return _mean(loss, count, seen.row_weight)
    return seen.own_rows / len(loss) * _mean(loss, count, None)


def _mean(rows: Tensor, count: Tensor | float, row_weight: Tensor | None) -> Tensor:
    """Sum over rows / count; a window without any counted row gives 0 instead of 0/0."""
    if row_weight is not None:
        rows = torch.where(row_weight > 0, rows, 0.0)  # `0 * NaN` of a repeated row would still be NaN
    return rows.sum() / _at_least_one(count)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    """1 instead of 0. Only 0 is replaced: a count may be a fraction, e.g. a share per process."""
    return torch.where(count > 0, count, 1) if isinstance(count, Tensor) else count or 1


def _blanked(logits: Tensor, row_weight: Tensor) -> Tensor:
    """Non-finite logits of rows that do not count become 0; else their NaN would come back as gradient."""
    return logits.masked_fill((row_weight == 0).unsqueeze(-1) & ~logits.isfinite(), 0.0)


def _checked(pair: Any) -> tuple[float, DistillationLoss]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], DistillationLoss):
        raise TypeError(
            "`DistillationObjective(losses=...)` must hold (loss_weight, loss) pairs, got "
            f"{' '.join(repr(pair).split())}: each term needs its weight and a `DistillationLoss`. Pass e.g. "
            "losses=[(1.0, KDLoss(4.0))]."
        )
    why = "it multiplies a loss that is minimised. Pass 0.0 to switch the loss off."
    return check_number("DistillationObjective", "loss_weight", pair[0], why, low=0.0), pair[1]


def _unique_names(losses: nn.ModuleList) -> list[str]:
    """Registry keys; losses of the same kind are told apart by their strategy, then by their place."""
    names = [loss.name for loss in losses]
    names = [
        f"{name}_{loss.temperature.name}" if names.count(name) > 1 and loss.uses_temperature else name
        for name, loss in zip(names, losses, strict=True)
    ]
    return [f"{name}_{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]

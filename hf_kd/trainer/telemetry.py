"""What a run tells about itself: loss components and temperatures, kept on the device and read once per log.

Nothing here syncs with the host between two logs. What each micro-batch gave stays on the device as it is, so that the
first non-finite term can be named, with its step and temperature, when it is looked for: at each log and before every
save.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from ..functional import SINGLE_LABEL, labelled_rows
from ..objective import DistillationObjective, ObjectiveOutput, Term

logger = logging.get_logger(__name__)

NEAR_BOUND = 0.01
"""A learned temperature this close to an end of its interval (as a share of it) has saturated."""

MOST_BATCHES = 512
"""So many micro-batches are kept one by one; then those that were finite are forgotten."""

PARTS = ":parts"
"""Tail of the group that holds a loss's own parts, which may count other rows than its temperatures."""


class Telemetry:
    """Accumulates one logging window.

    Layout: the first micro-batch fixes the names, the same on every process; values live in three vectors (sums,
    minima, maxima) so that a log costs one gather and one transfer.

    Args:
        device: Where the values are kept.
        problem_type: What the labels are; only classes tell how often the teacher is right.
    """

    def __init__(self, device: torch.device, problem_type: str = SINGLE_LABEL):
        self.device, self.problem_type = device, problem_type
        self.names: tuple[list[str], list[str], list[str]] = ([], [], [])
        self.values: tuple[Tensor, Tensor, Tensor] | None = None
        self.components: list[str] = []
        self.batches: list[tuple[int, Tensor]] = []
        self.first_bad = torch.tensor([-1.0, -1.0, 0.0], device=device)  # step, index of the component, temperature

    def update(
        self,
        output: ObjectiveOutput,
        teacher_logits: Tensor | None,
        labels: Tensor | None,
        step: int,
        row_weight: Tensor | None = None,
    ) -> None:
        """Add one micro-batch; rows of weight 0 are left out."""
        counted = None if row_weight is None else row_weight > 0
        sums = dict(output.components)
        minima: dict[str, Tensor] = {}
        maxima: dict[str, Tensor] = {}
        for term in output.terms:
            prefix = "" if len(output.terms) == 1 else f"{term.name}/"
            # a term over all processes' rows has no others
            known, rows = (labels, counted) if term.whole_batch is None else (term.whole_batch.labels, None)
            _add_temperatures(term, prefix, rows, sums, minima, maxima)
            _add_parts(term, prefix, _labelled(known, rows, self.problem_type) if term.needs_labels else rows, sums)
        if teacher_logits is not None and self.problem_type == SINGLE_LABEL:
            _add_teacher_accuracy(teacher_logits, labels, counted, sums)
        new = [
            torch.stack([value.detach().float().to(self.device) for value in group.values()])
            if group
            else torch.zeros(0, device=self.device)
            for group in (sums, minima, maxima)
        ]
        self._keep(step, list(output.components), list(sums), new[0])
        if self.values is None:
            self.names = (list(sums), list(minima), list(maxima))
            self.values = tuple(new)
        else:
            old = self.values
            self.values = (old[0] + new[0], torch.minimum(old[1], new[1]), torch.maximum(old[2], new[2]))

    def _keep(self, step: int, components: list[str], names: list[str], sums: Tensor) -> None:
        """Keep a micro-batch's sums, of which the components are the first, until somebody asks about them."""
        self.components, self._sum_names = components, names
        self.batches.append((step, sums))
        if len(self.batches) >= MOST_BATCHES:
            self._look_for_bad()

    def _look_for_bad(self) -> None:
        """Note the first non-finite component of the micro-batches kept, unless there was one before; no sync."""
        if not self.batches:
            return
        table = torch.stack([sums for _, sums in self.batches])
        steps = torch.tensor([float(step) for step, _ in self.batches], device=self.device)
        self.batches = []
        is_bad = ~torch.isfinite(table[:, : len(self.components)])
        row = is_bad.any(1).float().argmax()
        component = is_bad.index_select(0, row[None])[0].float().argmax()
        temperatures = _temperatures_of(table.index_select(0, row[None])[0], self.components, self._sum_names)
        place = torch.stack([steps.take(row), component.float(), temperatures.take(component)])  # indexing would sync
        is_first = is_bad.any() & (self.first_bad[0] < 0)
        self.first_bad = torch.where(is_first, place, self.first_bad)

    def flush(self, accelerator: Accelerator, steps: int) -> dict[str, float]:
        """The window's record, over all processes, and a fresh window.

        Components are means over `steps`, as the Trainer's `loss`; temperatures are means over rows, minimum, maximum.
        """
        if self.values is None:
            return {}
        table = accelerator.gather(torch.cat(self.values)[None]).cpu()
        sizes = [len(names) for names in self.names]
        sums, minima, maxima = table.split(sizes, dim=1)
        totals = dict(zip(self.names[0], sums.sum(0).tolist(), strict=True))
        record: dict[str, float] = {}
        for name, total in totals.items():
            if name.endswith("/rows"):
                continue
            if name in ("ce_loss", "kd_loss") or name.startswith("kd_loss/"):
                record[name] = total / max(steps, 1) / accelerator.num_processes
            elif name == "teacher_accuracy":
                if totals["teacher_labelled/rows"]:
                    record[name] = total / totals["teacher_labelled/rows"]
            else:
                group, _, part = name.rpartition("/")
                record[f"{group.removesuffix(PARTS)}/{part}"] = total / max(totals[f"{group}/rows"], 1.0)
        record |= dict(zip(self.names[1], minima.amin(0).tolist(), strict=True))
        record |= dict(zip(self.names[2], maxima.amax(0).tolist(), strict=True))
        self.values = None
        return record

    def raise_if_non_finite(self, accelerator: Accelerator, last_checkpoint: str | None) -> None:
        """Stop the run, in words, if any term was non-finite on any process since training began.

        Raises:
            FloatingPointError: With the step, the term and the temperature.
        """
        self._look_for_bad()
        table = accelerator.gather(self.first_bad[None]).cpu()
        bad = table[table[:, 0] >= 0]
        if len(bad) == 0:
            return
        step, index, temperature = bad[bad[:, 0].argmin()].tolist()
        name = self.components[int(index)]
        at = f" at temperature {temperature:.4g}" if name.startswith("kd_loss") else ""
        kept = f"The last checkpoint, {last_checkpoint}, is from before and stays usable." if last_checkpoint else ""
        raise FloatingPointError(
            f"`DistillationTrainer` stopped: `{name}` became non-finite in step {int(step) + 1}{at}. Look for labels "
            "outside the models' classes, non-finite inputs or teacher logits, a learning rate that is too high, or "
            f"half precision overflowing. {kept}".rstrip()
        )

    def state(self, accelerator: Accelerator) -> dict[str, Tensor]:
        """The window of every process, one row each, for a checkpoint."""
        if self.values is None:
            return {}
        return {
            f"telemetry.{kind}": accelerator.gather(values[None]).cpu()
            for kind, values in zip(("sums", "minima", "maxima"), self.values, strict=True)
        }

    def load_state(self, state: dict[str, Tensor], names: list[list[str]], process_index: int) -> None:
        """Continue the window that `state` was saved in."""
        if "telemetry.sums" not in state:
            return
        rows = [state[f"telemetry.{kind}"] for kind in ("sums", "minima", "maxima")]
        self.names = tuple(names)
        self.values = tuple(table[process_index].to(self.device) for table in rows)


def _temperatures_of(sums: Tensor, components: list[str], names: list[str]) -> Tensor:
    """The mean student temperature behind each component of a micro-batch; 0 where there is none."""
    zero, means = sums.new_zeros(()), {}
    for place, name in enumerate(names):
        if name.startswith("temperature/") and name.endswith("student_mean"):
            base = name.removesuffix("student_mean")
            mean = sums[place] / sums[names.index(f"{base}rows")]
            means[f"kd_loss/{base.removeprefix('temperature/').rstrip('/')}"] = mean
            means.setdefault("kd_loss", mean)
    return torch.stack([means.get(name, zero) for name in components])


def _add_temperatures(term: Term, prefix: str, counted: Tensor | None, sums: dict, minima: dict, maxima: dict) -> None:
    t = term.output.temperatures
    if t is None:
        return
    base = f"temperature/{prefix}"
    counted, count = _rows(term, counted)
    sums[f"{base}rows"] = count
    known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # often one temperature serves both sides
    for side, value in (("student", t.student), ("teacher", t.teacher)):
        if id(value) not in known:
            known[id(value)] = _spread(value, counted, count)
        sums[f"{base}{side}_mean"], minima[f"{base}{side}_min"], maxima[f"{base}{side}_max"] = known[id(value)]
    weight = {"weight_mean": t.weight} if t.weight.dim() else {}
    for name, value in {**t.parts, **weight}.items():
        sums[f"{base}{name}"] = _total(value, counted, count)


def _spread(value: Tensor, counted: Tensor | None, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over rows, smallest and largest of a value that is either per row or the same for all."""
    if counted is None and value.dim() == 0:
        value = value.detach().float()
        return value * count, value, value
    lowest, highest = _counted(value, counted, torch.inf).amin(), _counted(value, counted, -torch.inf).amax()
    return _total(value, counted, count), lowest, highest


def _add_parts(term: Term, prefix: str, counted: Tensor | None, sums: dict) -> None:
    """The parts of a loss over the rows that it speaks about: unlabelled ones would only dilute a mean with zeros."""
    counted, count = _rows(term, counted)
    for name, value in term.output.parts.items():
        base = f"loss/{prefix}".rstrip("/") + PARTS
        sums[f"{base}/rows"] = count
        sums[f"{base}/{name}"] = _total(value, counted, count)


def _rows(term: Term, counted: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Which rows count, None for all, and how many do; a batch relation has one value for the batch."""
    loss = term.output.loss
    if loss.dim() == 0:
        return None, torch.ones((), device=loss.device)
    return counted, torch.full((), float(len(loss)), device=loss.device) if counted is None else counted.sum().float()


def _labelled(labels: Tensor | None, counted: Tensor | None, problem_type: str) -> Tensor | None:
    if labels is None:
        return counted
    labelled = labelled_rows(labels, problem_type)
    return labelled if counted is None else labelled & counted


def _counted(value: Tensor, counted: Tensor | None, otherwise: float) -> Tensor:
    """One value per row, `otherwise` on rows that do not count."""
    value = value.detach().float().reshape(-1)
    return value if counted is None else torch.where(counted, value, otherwise)


def _total(value: Tensor, counted: Tensor | None, count: Tensor) -> Tensor:
    """The sum over rows of a value that is either per row or the same for all."""
    return value.detach().float().mean() * count if counted is None else _counted(value, counted, 0.0).sum()


def _add_teacher_accuracy(teacher_logits: Tensor, labels: Tensor | None, counted: Tensor | None, sums: dict) -> None:
    zero = torch.zeros((), device=teacher_logits.device)
    sums["teacher_accuracy"], sums["teacher_labelled/rows"] = zero, zero
    if labels is not None:
        labelled = _labelled(labels, counted, SINGLE_LABEL)
        sums["teacher_accuracy"] = ((teacher_logits.argmax(-1) == labels) & labelled).sum()
        sums["teacher_labelled/rows"] = labelled.sum()


def warn_if_saturated(objective: DistillationObjective, record: dict[str, Any], warned: set[str]) -> None:
    """Say once when a learned temperature sits at an end of its interval, where it has stopped learning."""
    strategies = list(objective.strategies())
    for name, strategy in strategies:
        key = "temperature/student_mean" if len(strategies) == 1 else f"temperature/{name}/student_mean"
        if strategy.bounds is None or key not in record or name in warned:
            continue
        low, high = strategy.bounds
        position = (record[key] - low) / (high - low)
        if not NEAR_BOUND < position < 1 - NEAR_BOUND:
            warned.add(name)
            logger.warning(
                f"The learned temperature of `{name}` is {record[key]:.3f}, within 1 % of an end of its interval "
                f"({low:g}, {high:g}): the sigmoid is flat there, so it has all but stopped learning. Widen the "
                "interval or lower `temperature_learning_rate`."
            )

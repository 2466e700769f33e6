"""What an evaluation measures, row by row, so that its means are exact for any batch size and number of processes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..batches import SharedClasses
from ..functional import MULTI_LABEL, REGRESSION, bernoulli_kl, kl_divergence, labelled_rows, task_loss, upcast
from ..inputs import LABELS_MIX


def check_not_mixed(inputs: Mapping[str, Any]) -> None:
    """Refuse to score mixtures: of two labels neither is right.

    Raises:
        ValueError: The batch has `labels_mix`.
    """
    if LABELS_MIX in inputs:
        raise ValueError(
            f"`DistillationTrainer` was to evaluate a batch with `{LABELS_MIX}`: a score on mixed images is one on "
            "another data set. A collator serves training and evaluation alike, so leave the mixing to the trainer "
            "(`mixing=Mixing(...)`), which mixes training batches alone."
        )


def mean_task_loss(logits: Tensor, labels: Tensor | None, problem_type: str) -> Tensor:
    """The task's loss over the labelled rows; 0 where there are none."""
    if labels is None:
        return logits.new_zeros(())
    return mean_over_labelled(task_loss(logits, labels, problem_type), labelled_rows(labels, problem_type))


def mean_over_labelled(rows: Tensor, labelled: Tensor) -> Tensor:
    """Mean of values that are 0 on unlabelled rows; 0 where no row has a label."""
    return rows.sum() / labelled.sum().clamp(min=1)


def row_values(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    problem_type: str,
    shared: SharedClasses | None = None,
) -> dict[str, Tensor]:
    """What is known of each row of a batch: `(batch,)` each, `(batch, classes)` where rows have several labels.

    With `shared` classes the two models are compared over these, on rows that are not labelled with another one.
    """
    rows = _choice(student_logits, problem_type)
    if labels is not None:
        rows["loss"] = task_loss(student_logits, labels, problem_type)
        rows["labelled"] = labelled_rows(labels, problem_type).float()
        rows |= _answers(student_logits, labels, problem_type)
    if teacher_logits is not None:
        if shared is not None:
            student_logits = shared.logits(student_logits)
            labels, taught = shared.rows(labels, None)
            rows["taught"] = torch.ones(len(student_logits)).to(student_logits.device) if taught is None else taught
        rows |= _comparison(student_logits, teacher_logits, labels, problem_type)
    return rows


def _comparison(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None, problem_type: str
) -> dict[str, Tensor]:
    if problem_type == REGRESSION:
        return {"teacher_mse": (student_logits - teacher_logits).square().mean(-1)}
    if problem_type == MULTI_LABEL:
        same = (student_logits > 0) == (teacher_logits > 0)  # a probability of 0.5 is a logit of 0
        kl = bernoulli_kl(teacher_logits, student_logits)
        return {"agreement": same.float().mean(-1), "teacher_kl": kl, "teacher_guess": (teacher_logits > 0).byte()}
    choice = teacher_logits.argmax(-1)
    rows = {
        "agreement": (student_logits.argmax(-1) == choice).float(),
        "teacher_kl": kl_divergence(teacher_logits, student_logits),
        "teacher_prediction": choice,
        "teacher_confidence": _confidence(teacher_logits),
    }
    if labels is not None:
        rows["teacher_accuracy"] = (choice == labels).float()
    return rows


def _choice(logits: Tensor, problem_type: str) -> dict[str, Tensor]:
    """What a model chooses, and how sure it is; see `hf_kd.test_rows`."""
    if problem_type in (REGRESSION, MULTI_LABEL):
        return {}
    return {"prediction": logits.argmax(-1), "confidence": _confidence(logits)}


def _confidence(logits: Tensor) -> Tensor:
    """The probability of the likeliest class."""
    return upcast(logits).softmax(-1).amax(-1)


def _answers(logits: Tensor, labels: Tensor, problem_type: str) -> dict[str, Tensor]:
    """What a table by class is made of; see `hf_kd.metrics.per_class`."""
    if problem_type == REGRESSION:
        return {}
    if problem_type == MULTI_LABEL:
        return {"truth": (labels > 0.5).byte(), "guess": (logits > 0).byte()}
    return {"label": labels, "right": (logits.argmax(-1) == labels).float()}


class EvaluationRows:
    """Collects the values of all rows of one evaluation, each row once."""

    NEED_LABELS = ("loss", "teacher_accuracy")
    COMPARE = ("teacher_accuracy", "agreement", "teacher_kl")
    BY_CLASS = ("label", "right", "truth", "guess", "teacher_guess")
    CHOICES = ("prediction", "confidence", "teacher_prediction", "teacher_confidence")

    def __init__(self):
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, rows: dict[str, Tensor], gather: Callable[[Tensor], Tensor]) -> None:
        """Add a batch; `gather` brings the processes together and drops rows that only filled up the last batch."""
        for name, values in rows.items():
            self.parts.setdefault(name, []).append(gather(values))

    def metrics(self, prefix: str) -> dict[str, float]:
        """Means over all rows, over the labelled ones where labels are needed; nothing where there are none."""
        kept = (*self.BY_CLASS, *self.CHOICES)
        rows = {name: torch.cat(parts).double() for name, parts in self.parts.items() if name not in kept}
        labelled, taught = rows.pop("labelled", None), rows.pop("taught", None)
        metrics = {}
        for name, values in rows.items():
            counted = torch.ones(len(values), dtype=torch.bool, device=values.device)
            if name in self.NEED_LABELS:
                counted &= labelled > 0
            if name in self.COMPARE and taught is not None:
                counted &= taught > 0
            values = values[counted]
            if len(values):
                metrics[f"{prefix}_{name}"] = values.mean().item()
        return metrics

    def arrays(self) -> dict[str, np.ndarray]:
        """The values of all rows, as `hf_kd.metrics.class_scores` takes them."""
        return {name: torch.cat(parts).cpu().numpy() for name, parts in self.parts.items()}

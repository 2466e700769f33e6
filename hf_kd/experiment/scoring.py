"""One or two models over the rows of a task, in the classes of the data: what an evaluation measures."""

import copy
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import ConcatDataset
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback
from transformers.utils import logging

from ..data import Task
from ..data.rows import column_values
from ..functional import IGNORE_INDEX, SINGLE_LABEL, upcast
from ..inputs import model_columns, student_inputs
from ..label_map import LabelMap
from ..metrics import BatchedMetrics, ClassificationMetrics, ClassScore, MultiLabelMetrics, class_scores
from ..objective import DistillationObjective
from ..registry import ConfigError
from ..sanity import TeacherScore, score_teacher
from ..trainer import DistillationTrainer
from ..trainer.evaluation import mean_task_loss
from ..trainer.hub import environment
from ..training_args import DistillationTrainingArguments
from .student_checks import one_line
from .teacher_side import LEAST_ROWS

MOST_PERMUTED = 2000
"""With more classes, no other order of them is looked for: it takes a square of numbers."""


class InDataClasses(nn.Module):
    """A classifier that answers in the classes of the data: their order, and those of them that it knows.

    Args:
        model: The classifier.
        label_map: Which of its classes is which of the data's; None for outputs that are not classes.
        names: The classes of the data, in id order.
        problem_type: What the labels are.
    """

    def __init__(self, model: PreTrainedModel, label_map: LabelMap | None, names: tuple[str, ...], problem_type: str):
        super().__init__()
        self.model, self.label_map, self.problem_type = model, label_map, problem_type
        known = names if label_map is None else tuple(names[index] for index in label_map.shared)
        self.config = copy.deepcopy(model.config)
        self.config.id2label = dict(enumerate(known))
        self.config.label2id = {name: index for index, name in enumerate(known)}
        self.config.problem_type = problem_type
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.forward = functools.update_wrapper(functools.partial(self._answer), base.forward)  # shows what it reads

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that it answers in."""
        return tuple(self.config.id2label.values())

    def _answer(self, **inputs: Any) -> dict[str, Tensor]:
        dtype = self.model.dtype
        floats = {k: v.to(dtype) for k, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}
        logits = upcast(self.model(**{**inputs, **floats}).logits)
        if self.label_map is None:
            return {"logits": logits}
        return {"logits": self.label_map(logits, self.problem_type)}


@dataclass
class KnownLabels:
    """A collator whose labels are those that a model knows, counted from 0.

    Args:
        collator: Makes the batch.
        known: The ids of these classes in the data.
        num_labels: Classes of the data.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    known: tuple[int, ...]
    num_labels: int

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch."""
        batch = dict(self.collator(features))
        labels = batch["labels"]
        if labels.dim() > 1:
            return {**batch, "labels": labels[:, list(self.known)]}
        places = torch.full((self.num_labels + 1,), IGNORE_INDEX)  # the last one stands for "no label"
        places[list(self.known)] = torch.arange(len(self.known))
        return {**batch, "labels": places[torch.where(labels == IGNORE_INDEX, self.num_labels, labels)]}


@dataclass(frozen=True)
class Scored:
    """What was measured.

    Args:
        rows: Rows that were looked at.
        left_out: Rows of classes that the model does not know.
        labelled: Of `rows`, those with a label.
        scores: Of the model.
        teacher_scores: Of the teacher, on the classes that it knows.
        compared: `agreement` and `teacher_kl`, or `teacher_mse`.
        measure: What the scores by class are.
        per_class: By class, worst first.
        doubts: What the numbers give reason to say, in words.
        environment: Versions and device.
    """

    rows: int
    left_out: int
    labelled: int
    scores: dict[str, float]
    teacher_scores: dict[str, float] | None
    compared: dict[str, float]
    measure: str
    per_class: list[ClassScore]
    doubts: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)


class BothModels(DistillationTrainer):
    """Hands the teacher's answers to the metrics too, so that it runs once."""

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list | None = None
    ) -> tuple[Any, Any, Any]:
        """As in `DistillationTrainer`; the logits are a pair if there is a teacher."""
        loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self.teacher is None or logits is None:
            return loss, logits, labels
        label_map, answer = self.teacher.label_map, self.teacher.answer
        return loss, (logits, answer if label_map is None else label_map(answer, self.problem_type)), labels


class Collected:
    """A `compute_metrics` that only collects, batch by batch.

    Args:
        metrics: Of the model, and of the teacher if there is one.
    """

    def __init__(self, *metrics: BatchedMetrics):
        self.metrics, self.shared = metrics, None

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add a batch."""
        logits, labels = prediction.predictions, prediction.label_ids
        for index, (metrics, part) in enumerate(zip(self.metrics, _tuple(logits), strict=True)):
            own = labels if index == 0 or self.shared is None else self.shared.labels(labels)
            metrics.add(part.float().cpu().numpy(), own.cpu().numpy())
        return {}


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def score_models(
    model: InDataClasses,
    task: Task,
    rows: Any,
    args: Mapping[str, Any],
    *,
    teacher: PreTrainedModel | None = None,
    teacher_processor: Any = None,
    teacher_map: LabelMap | None = None,
) -> Scored:
    """Run the model, and the teacher beside it, over `rows` once.

    Args:
        model: The model.
        task: Where the rows come from.
        rows: Some of its rows, with `teacher_` columns if the teacher reads inputs of its own.
        args: Training arguments: batch size and device.
        teacher: To compare with.
        teacher_processor: Of those columns.
        teacher_map: Which of the teacher's classes is which of the model's, as `InDataClasses` names them.

    Raises:
        ConfigError: There is nothing to score, or a model cannot read its inputs.
    """
    known = None if model.label_map is None or model.label_map.is_complete else model.label_map.shared
    kept, left_out = (rows, 0) if known is None else _of_classes(rows, known, task.problem_type)
    collator = task.collator if known is None else KnownLabels(task.collator, known, task.num_labels)
    taught = None if teacher_map is None or teacher_map.is_complete else teacher_map.shared
    theirs = model.names if taught is None else tuple(model.names[index] for index in taught)
    sides = [model.names] if teacher is None else [model.names, theirs]
    collected = Collected(*(BatchedMetrics(_metrics(task, names)) for names in sides))
    with tempfile.TemporaryDirectory() as folder:
        trainer = _quiet_trainer(
            model,
            DistillationTrainingArguments(
                folder,
                method=None,
                report_to="none",
                batch_eval_metrics=True,
                evaluate_with_teacher=teacher is not None,
                **args,
            ),
            data_collator=collator,
            compute_metrics=collected,
            teacher_model=teacher,
            teacher_processing_class=teacher_processor,
            label_map=teacher_map,
            objective=DistillationObjective(ce_weight=1.0, kd_weight=0.0),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.eval_dataset = kept
        collected.shared = trainer.objective.shared
        _try(trainer, kept)
        found = trainer.evaluate(kept)
    return _scored(trainer, found, collected, left_out, taught)


def _quiet_trainer(*args: Any, **keywords: Any) -> BothModels:
    """Without the words on what classes that the teacher does not know mean for a training."""
    logger = logging.get_logger("hf_kd.teacher")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return BothModels(*args, **keywords)
    finally:
        logger.setLevel(level)


def _scored(
    trainer: BothModels,
    found: Mapping[str, float],
    collected: Collected,
    left_out: int,
    taught: tuple[int, ...] | None,
) -> Scored:
    arrays = trainer.last_evaluation.arrays()
    labelled = int((arrays["labelled"] > 0).sum())
    if not labelled:
        raise ConfigError(["split: no row of it has a label, so there is nothing to score. Choose another split."])
    names = tuple(trainer.model.names)
    measure, per_class = class_scores(arrays, names, taught)
    compared = ("agreement", "teacher_kl", "teacher_mse")
    scores = [metrics.compute() for metrics in collected.metrics]
    scores[0]["loss"] = found["eval_loss"]
    if len(scores) > 1 and scores[1]:
        scores[1]["loss"] = _loss(collected.metrics[1], trainer.problem_type)
    own, theirs = [*collected.metrics, None][:2]
    doubts = _doubts(own, "The model", trainer.model.label_map, trainer.problem_type)
    if theirs is not None:
        doubts += _doubts(theirs, "The teacher", trainer.teacher.label_map, trainer.problem_type)
    return Scored(
        rows=len(arrays["labelled"]),
        left_out=left_out,
        labelled=labelled,
        scores=scores[0],
        teacher_scores=scores[1] if len(scores) > 1 else None,
        compared={name: found[f"eval_{name}"] for name in compared if f"eval_{name}" in found},
        measure=measure,
        per_class=per_class,
        doubts=doubts,
        environment=environment(trainer.args),
    )


def _metrics(task: Task, names: tuple[str, ...]) -> Any:
    """The task's metrics, for some of its classes."""
    compute = task.compute_metrics
    if names == task.label_names:
        return compute
    if isinstance(compute, MultiLabelMetrics):
        return MultiLabelMetrics(names)
    if not isinstance(compute, ClassificationMetrics):
        return compute
    extra = [name for name in compute.names if name != "f1" or len(names) == 2]
    top_k = compute.top_k if compute.top_k is not None and compute.top_k < len(names) else None
    return ClassificationMetrics(names, compute.cache_dir, top_k, extra)


def _loss(metrics: BatchedMetrics, problem_type: str) -> float:
    rows = metrics.rows()
    if "losses" in rows:
        return float(rows["losses"].mean())
    return mean_task_loss(torch.from_numpy(rows["logits"]), torch.from_numpy(rows["labels"]), problem_type).item()


def _doubts(metrics: BatchedMetrics, owner: str, label_map: LabelMap | None, problem_type: str) -> list[str]:
    """Said where a model is near chance, or would be right with its classes in another order."""
    rows = metrics.rows()
    if problem_type != SINGLE_LABEL or len(rows.get("labels", ())) < LEAST_ROWS:
        return []
    choices, labels = rows["predictions"], rows["labels"]
    classes = len(metrics.compute_metrics.label_names)
    if classes > MOST_PERMUTED:
        score = TeacherScore(len(labels), float(np.mean(choices == labels)), classes)
    else:
        score = score_teacher(choices, labels, classes)
    return [score.words(label_map, "labelled rows", owner=owner)] if score.is_doubtful else []


def _of_classes(rows: Any, known: tuple[int, ...], problem_type: str) -> tuple[Any, int]:
    """Without the rows of other classes, and how many these are; with several labels per row, all rows."""
    if problem_type != SINGLE_LABEL:
        return rows, 0
    if isinstance(rows, ConcatDataset):
        parts = [_of_classes(part, known, problem_type) for part in rows.datasets]
        return ConcatDataset([part for part, _ in parts if len(part)]), sum(count for _, count in parts)
    if isinstance(rows, IterableDataset):
        raise ConfigError(
            [
                "data.streaming: the model does not know all classes of the data, and rows of the others cannot be "
                "left out of a stream. Name the data themselves, which are then read whole."
            ]
        )
    labels = column_values(rows, "labels")
    chosen = np.flatnonzero(np.isin(labels, [*known, IGNORE_INDEX]))
    return rows.select(chosen), len(labels) - len(chosen)


def _try(trainer: BothModels, rows: Any) -> None:
    """One row through each model, so that what does not fit fails now, and in words."""
    size = len(rows) if isinstance(rows, (Dataset, ConcatDataset)) else 1
    if size == 0:
        raise ConfigError(["split: holds no row of a class that the model knows, so there is nothing to score."])
    batch = trainer._prepare_inputs(trainer.data_collator([next(iter(rows))]))
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    try:
        with torch.no_grad():
            model.to(trainer.args.device)(**student_inputs(batch, model_columns(model)))
    except Exception as error:  # architectures raise anything at inputs that do not fit
        raise ConfigError(
            [
                f"model: cannot read the inputs that its processor makes: {one_line(error)} Name another processor, "
                "or, for long texts, give a smaller max_length."
            ]
        ) from error
    if trainer.teacher is None:
        return
    try:
        trainer.teacher.logits(batch, trainer.accelerator)
    except Exception as error:
        raise ConfigError(
            [f"teacher: cannot read its inputs: {one_line(error)} Name another teacher_processor."]
        ) from error

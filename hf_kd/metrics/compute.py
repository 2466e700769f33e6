"""The `compute_metrics` callables that the Trainer takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, f1_score
from transformers import EvalPrediction

from ..functional import IGNORE_INDEX, MULTI_LABEL, SINGLE_LABEL
from ..registry import suggestion
from .reduction import NonFiniteScoresError, labelled_rows, reduce_logits
from .scores import (
    Accuracy,
    BinaryF1,
    BrierScore,
    ExpectedCalibrationError,
    MacroF1,
    MatthewsCorrelation,
    MeanSquaredError,
    MicroF1,
    NegativeLogLikelihood,
    PearsonCorrelation,
    SpearmanCorrelation,
    TopKAccuracy,
)

CLASS_METRICS: dict[str, type[evaluate.Metric]] = {
    "accuracy": Accuracy,
    "f1_macro": MacroF1,
    "ece": ExpectedCalibrationError,
    "f1_micro": MicroF1,
    "f1": BinaryF1,
    "matthews": MatthewsCorrelation,
    "nll": NegativeLogLikelihood,
    "brier": BrierScore,
}
"""Metrics of one class per row, by the key they report under."""

USUAL = ("accuracy", "f1_macro", "ece")


class ClassificationMetrics:
    """The callable `classification_metrics` returns; it holds settings only, so it pickles."""

    def __init__(
        self,
        label_names: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        top_k: int | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(
                f"`classification_metrics(top_k=...)` must be a positive integer or None, got {top_k!r}: it is a "
                "number of guesses. Pass e.g. 5."
            )
        self.label_names = None if label_names is None else tuple(label_names)
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.top_k = top_k
        classes = None if label_names is None else len(self.label_names)
        self.names = _checked_names("classification_metrics", extra, CLASS_METRICS, USUAL, classes)
        self.first = "accuracy"

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score one evaluation: ``predictions`` are logits, ``label_ids`` class ids or -100."""
        logits, labels = labelled_rows("compute_metrics", prediction.predictions, prediction.label_ids)
        return self.score(self.reduce(logits, labels), labels)

    def reduce(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The few numbers per row that the metrics need; all rows are labelled."""
        if self.label_names is not None and logits.shape[1] != len(self.label_names):
            raise ValueError(
                f"`compute_metrics` got logits of {logits.shape[1]} classes but the task has {len(self.label_names)} "
                f"({', '.join(self.label_names[:3])}, ...): class ids would mean different things. "
                f"Load the model with num_labels={len(self.label_names)}."
            )
        return reduce_logits(logits, labels, top_k=self.top_k)

    def score(self, reduced: Mapping[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        """The metrics of rows that `reduce` made."""
        metrics: list[evaluate.Metric] = [CLASS_METRICS[name](self.cache_dir) for name in self.names]
        if self.top_k is not None:
            metrics.append(TopKAccuracy(self.top_k, self.cache_dir))
        return evaluate.combine(metrics).compute(references=labels, **reduced)


def classification_metrics(
    label_names: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    top_k: int | None = None,
    extra: Sequence[str] = (),
) -> ClassificationMetrics:
    """Build the ``compute_metrics`` of a classifier for the Trainer.

    Rows labelled -100 are left out. Keys: ``accuracy``, ``f1_macro``, ``ece`` and, on request, ``top_{k}_accuracy``
    and those of ``extra``.

    Args:
        label_names: The class names in id order; the width of the logits is checked against them.
        cache_dir: Folder for the metrics' Arrow files. None keeps everything in memory.
        top_k: Also report top-k accuracy.
        extra: Also report these, by their names in `CLASS_METRICS`, e.g. ``("nll", "brier")``.

    Returns:
        A picklable callable ``EvalPrediction -> dict``. It raises ValueError where the logits hold NaN, no row is
        labelled, or a label lies outside the classes.

    Example:
        >>> import numpy as np
        >>> from transformers import EvalPrediction
        >>> logits = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], dtype=np.float16)
        >>> compute_metrics = classification_metrics(["no", "yes"])
        >>> compute_metrics(EvalPrediction(logits, np.array([0, 1, -100])))["accuracy"]
        1.0
    """
    return ClassificationMetrics(label_names, cache_dir, top_k, extra)


class MultiLabelMetrics:
    """The ``compute_metrics`` of several labels per row; unlabelled rows (-100) are left out.

    Keys: ``f1_micro``, ``f1_macro`` and ``exact_match`` (the share of rows with every label right), with a label
    counted as predicted where its logit is above 0; and ``map``, the mean over classes of the average precision over
    rows, classes without a positive row left out. Average precision ranks all rows, so it cannot be had from a few
    numbers per row: everything here is scikit-learn on the arrays, without a table in between.

    Args:
        label_names: The class names in id order; the width of the logits is checked against them.
    """

    names = ("f1_micro", "f1_macro", "exact_match", "map")
    first = "map"

    def __init__(self, label_names: Sequence[str] | None = None) -> None:
        self.label_names = None if label_names is None else tuple(label_names)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score one evaluation: ``predictions`` are logits, ``label_ids`` 0 and 1 of the same shape."""
        logits, labels = _pair(prediction, None if self.label_names is None else len(self.label_names))
        kept = (labels != IGNORE_INDEX).all(axis=1) & ~np.isnan(labels).any(axis=1)
        logits, truth = _some(logits, kept), labels[kept] > 0.5
        guesses = logits > 0
        present = truth.any(axis=0)
        return {
            "f1_micro": float(f1_score(truth, guesses, average="micro", zero_division=0.0)),
            "f1_macro": float(f1_score(truth, guesses, average="macro", zero_division=0.0)),
            "exact_match": float((truth == guesses).all(axis=1).mean()),
            "map": float(average_precision_score(truth[:, present], logits[:, present])) if present.any() else 0.0,
        }


class RegressionMetrics:
    """The ``compute_metrics`` of a regression: ``mse``, ``pearson``, ``spearman``; rows labelled NaN are left out.

    With several outputs each is the mean over them.

    Args:
        cache_dir: Folder for the metrics' Arrow files. None keeps everything in memory.
    """

    names = ("mse", "pearson", "spearman")
    first = "mse"

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self.cache_dir = None if cache_dir is None else str(cache_dir)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score one evaluation: ``predictions`` are the outputs, ``label_ids`` numbers."""
        outputs, labels = _pair(prediction, None)
        kept = ~np.isnan(labels).any(axis=1)
        outputs, labels = _some(outputs, kept), labels[kept]
        kinds = (MeanSquaredError, PearsonCorrelation, SpearmanCorrelation)
        scores = [
            evaluate.combine([kind(self.cache_dir) for kind in kinds]).compute(
                predictions=outputs[:, column], references=labels[:, column]
            )
            for column in range(outputs.shape[1])
        ]
        return {name: float(np.mean([score[name] for score in scores])) for name in self.names}


def _pair(prediction: EvalPrediction, width: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and labels as two equal arrays of `(rows, outputs)`."""
    if isinstance(prediction.predictions, (tuple, list)) or prediction.label_ids is None:
        raise ValueError(
            "`compute_metrics` needs one array of outputs and one of labels, got "
            f"{type(prediction.predictions).__name__} and {type(prediction.label_ids).__name__}: there is nothing to "
            "compare. Return logits only, and evaluate on a labelled split."
        )
    outputs = np.asarray(prediction.predictions, dtype=np.float64)
    labels = np.asarray(prediction.label_ids, dtype=np.float64)
    outputs = outputs.reshape(len(outputs), -1)
    if labels.size != outputs.size or width not in (None, outputs.shape[1]):
        raise ValueError(
            f"`compute_metrics` got outputs of shape {outputs.shape} and labels of shape {labels.shape}"
            f"{f' for {width} classes' if width else ''}: they are compared number by number. Give the model as many "
            "outputs as a row has labels."
        )
    return outputs, labels.reshape(outputs.shape)


def _some(outputs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    if not kept.any():
        raise ValueError(
            f"`compute_metrics` got no labelled row among {len(kept)}: nothing can be scored. Evaluate on a labelled "
            "split, or pass compute_metrics=None."
        )
    bad = int((~np.isfinite(outputs[kept])).any(axis=1).sum())
    if bad:
        raise NonFiniteScoresError(
            f"`compute_metrics` got NaN or infinite outputs in {bad} of {int(kept.sum())} rows: the model has "
            "diverged or overflowed; look at its training loss, and at fp16 if it is on."
        )
    return outputs[kept]


def metrics_for(
    problem_type: str = SINGLE_LABEL,
    label_names: Sequence[str] | None = None,
    extra: Sequence[str] = (),
    *,
    cache_dir: str | Path | None = None,
    top_k: int | None = None,
) -> ClassificationMetrics | MultiLabelMetrics | RegressionMetrics:
    """The ``compute_metrics`` that goes with what the labels are.

    Args:
        problem_type: As `model.config.problem_type`.
        label_names: The class names in id order.
        extra: Metrics to report besides the usual ones: ``f1`` (of class 1, of two), ``f1_micro``, ``matthews``,
            ``nll``, ``brier``, ``top_5_accuracy`` (any k). For other problems than one class per row all that there
            are are always reported.
        cache_dir: Folder for the metrics' Arrow files. None keeps everything in memory.
        top_k: Also report top-k accuracy.

    Raises:
        ValueError: An unknown metric, or one that does not fit.
    """
    if problem_type == SINGLE_LABEL:
        asked = [re.fullmatch(r"top_([1-9]\d*)_accuracy", str(name)) for name in extra]
        sizes = {int(match[1]) for match in asked if match} | ({top_k} if top_k is not None else set())
        if len(sizes) > 1:
            raise ValueError(
                f"`metrics_for(extra=...)` asks for top-k accuracy with k = {', '.join(map(str, sorted(sizes)))}: "
                "one k can be reported. Keep one."
            )
        if sizes and label_names is not None and max(sizes) >= len(label_names):
            raise ValueError(
                f"`metrics_for(extra=...)` asks for top-{max(sizes)} accuracy of {len(label_names)} classes: with as "
                "many guesses as classes every row is a hit. Leave it out, or pass a smaller k."
            )
        names = [name for name, match in zip(extra, asked, strict=True) if not match]
        return ClassificationMetrics(label_names, cache_dir, max(sizes, default=None), names)
    made = MultiLabelMetrics(label_names) if problem_type == MULTI_LABEL else RegressionMetrics(cache_dir)
    unknown = [name for name in extra if name not in made.names]
    if unknown:
        raise ValueError(
            f"`metrics_for(extra=...)` names {unknown[0]!r}, which is no metric of {problem_type}."
            f"{suggestion(unknown[0], made.names)}"
        )
    return made


def _checked_names(
    who: str, extra: Sequence[str], table: Mapping[str, Any], usual: Sequence[str], classes: int | None
) -> tuple[str, ...]:
    for name in extra:
        if name not in table:
            raise ValueError(f"`{who}(extra=...)` names {name!r}, which is no metric.{suggestion(name, table)}")
    if "f1" in extra and classes not in (None, 2):
        raise ValueError(
            f"`{who}(extra=...)` names 'f1', the F1 of class 1 against class 0, and there are {classes} classes. Name "
            "'f1_macro' or 'f1_micro'."
        )
    return tuple(dict.fromkeys([*usual, *extra]))

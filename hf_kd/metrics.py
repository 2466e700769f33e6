"""Metrics of a classifier as `evaluate.Metric` subclasses, and the `compute_metrics` callable the Trainer takes.

`evaluate.load("accuracy")` downloads a script; the classes here come with the package, so they work offline, and in
`evaluate.combine`. They never see logits: `reduce_logits` turns a ``(rows, num_labels)`` array into a few numbers per
row (argmax, confidence, top-k hit) first, because what a metric sees is written to an Arrow table.

Nothing is written anywhere unless a ``cache_dir`` is given; then everything lands under it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score
from transformers import EvalPrediction

from .functional import IGNORE_INDEX

__all__ = [
    "Accuracy",
    "ClassificationMetrics",
    "ExpectedCalibrationError",
    "MacroF1",
    "TeacherAgreement",
    "TopKAccuracy",
    "agreement",
    "classification_metrics",
    "expected_calibration_error",
    "reduce_logits",
]

NUM_BINS = 15

_INPUTS = """
Args:
    predictions: Predicted class ids, one per row.
    references: True class ids, one per row.
    confidences: Probability of the predicted class, one per row, in [0, 1] (calibration only).
    top_k_hits: Whether the true class is among the k highest logits, one per row (top-k accuracy only).
    teacher_predictions: The teacher's class ids, one per row (agreement only).
"""


# ---------------------------------------------------------------------------------------------------------------------
# Plain numpy
# ---------------------------------------------------------------------------------------------------------------------


def reduce_logits(
    logits: np.ndarray, labels: np.ndarray | None = None, *, top_k: int | None = None
) -> dict[str, np.ndarray]:
    """Turn logits into the few numbers per row that the metrics need.

    Args:
        logits: Shape ``(rows, num_labels)``, any float type; the softmax is computed in float64. Log-probabilities are
            logits too, so ``np.log(probabilities)`` is fine.
        labels: True class ids, shape ``(rows,)``; needed for ``top_k``.
        top_k: Add ``top_k_hits``. Ties are broken as argmax does, by the lower class id.

    Returns:
        ``predictions`` (int64) and ``confidences`` (float64, the largest probability), each of shape ``(rows,)``, and
        ``top_k_hits`` (bool) where ``top_k`` is given.

    Raises:
        ValueError: If the logits are not a 2-d array, hold NaN or +inf, or ``top_k`` does not fit.
    """
    logits = _check_logits("reduce_logits(logits=...)", logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    reduced = {
        "predictions": logits.argmax(axis=1).astype(np.int64),
        "confidences": 1.0 / np.exp(shifted).sum(axis=1),
    }
    if top_k is not None:
        num_labels = logits.shape[1]
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k < num_labels:
            raise ValueError(
                f"`reduce_logits(top_k=...)` must be an integer from 1 to {num_labels - 1} for {num_labels} classes, "
                f"got {top_k!r}: with as many guesses as classes every row is a hit. Pass a smaller one, or None."
            )
        if labels is None:
            raise ValueError(
                "`reduce_logits(labels=...)` is None but `top_k` was given: whether a guess hits depends on the true "
                "class. Pass the labels."
            )
        labels = np.asarray(labels)
        true_logit = np.take_along_axis(logits, labels[:, None], axis=1)
        earlier = np.arange(num_labels)[None, :] < labels[:, None]
        rank = ((logits > true_logit) | ((logits == true_logit) & earlier)).sum(axis=1)
        reduced["top_k_hits"] = rank < top_k
    return reduced


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray, *, num_bins: int = NUM_BINS) -> float:
    r"""How far confidence and accuracy lie apart, in [0, 1]; 0 is perfectly calibrated.

    Rows are sorted by confidence (the largest probability) into ``num_bins`` bins of equal width,
    :math:`B_m = \{i : (m-1)/M < \mathrm{conf}_i \le m/M\}`, and

    .. math:: \mathrm{ECE} = \sum_{m=1}^{M} \frac{|B_m|}{n} \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|.

    Args:
        logits: Shape ``(rows, num_labels)``. For probabilities pass their logarithm.
        labels: Shape ``(rows,)``; rows labelled -100 are left out.
        num_bins: How many bins. The estimate depends on it (and grows with it on small sets), so numbers compare only
            at the same value.

    Raises:
        ValueError: If shapes disagree, no row is labelled, or ``num_bins`` is not a positive integer.

    References:
        Guo, Pleiss, Sun & Weinberger, *On Calibration of Modern Neural Networks*, 2017,
        https://huggingface.co/papers/1706.04599, eq. 3 (they use 15 bins).
    """
    if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
        raise ValueError(
            f"`expected_calibration_error(num_bins=...)` must be a positive integer, got {num_bins!r}: "
            f"confidences are sorted into that many bins. Pass e.g. {NUM_BINS}."
        )
    logits, labels = _labelled_rows("expected_calibration_error", logits, labels)
    reduced = reduce_logits(logits)
    return _calibration_error(reduced["confidences"], reduced["predictions"] == labels, num_bins)


def agreement(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Fraction of rows on which student and teacher predict the same class, in [0, 1]; labels play no part.

    Args:
        student_logits: Shape ``(rows, num_labels)``.
        teacher_logits: Shape ``(rows, num_labels)``, the same classes in the same order.

    Raises:
        ValueError: If the shapes differ or there is no row.
    """
    student_logits = _check_logits("agreement(student_logits=...)", student_logits)
    teacher_logits = _check_logits("agreement(teacher_logits=...)", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"`agreement(student_logits=..., teacher_logits=...)` got shapes {student_logits.shape} and "
            f"{teacher_logits.shape}: agreement compares the two row by row over the same classes. "
            "Predict on the same rows and map the teacher's classes onto the student's first."
        )
    return float(np.mean(student_logits.argmax(axis=1) == teacher_logits.argmax(axis=1)))


def _calibration_error(confidences: np.ndarray, correct: np.ndarray, num_bins: int) -> float:
    inner_edges = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]
    bins = np.digitize(confidences, inner_edges, right=True)
    # |B|/n · |acc - conf| = |Σ correct - Σ conf| / n, so that an empty bin needs no special case.
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidences, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidences))


def _check_logits(who: str, logits: Any) -> np.ndarray:
    if isinstance(logits, (tuple, list)) and any(isinstance(part, np.ndarray) for part in logits):
        raise ValueError(
            f"`{who}` is a tuple of {len(logits)} arrays, not one array of logits: metrics cannot tell which part "
            "holds the class scores. Return logits only (`ignore_keys_for_eval` drops the other outputs)."
        )
    array = np.asarray(logits)
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] < 2:
        raise ValueError(
            f"`{who}` must have shape (rows, num_labels) with at least one row and two classes, got {array.shape}: "
            "there is nothing to rank otherwise. Pass one row of class scores per example."
        )
    array = array.astype(np.float64)
    if np.isnan(array).any() or np.isposinf(array).any() or np.isneginf(array).all(axis=1).any():
        bad = int((~np.isfinite(array)).any(axis=1).sum())
        raise ValueError(
            f"`{who}` holds NaN or infinite scores in {bad} of {len(array)} rows: no class can be called the highest. "
            "The model has diverged or overflowed; look at its training loss, and at fp16 if it is on."
        )
    return array


def _labelled_rows(who: str, logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check the pair and keep the rows whose label is not -100."""
    logits = _check_logits(f"{who}(logits=...)", logits)
    if labels is None:
        raise ValueError(
            f"`{who}(labels=...)` is None: accuracy and calibration are undefined without labels. "
            "Evaluate on a labelled split, or pass compute_metrics=None."
        )
    labels = np.asarray(labels)
    if labels.shape != logits.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`{who}(labels=...)` must be {len(logits)} integers, one per row of logits, got {labels.dtype} of shape "
            f"{labels.shape}: each prediction is compared with one class id. Pass one id per row (-100 = unlabelled)."
        )
    kept = labels != IGNORE_INDEX
    if not kept.any():
        raise ValueError(
            f"`{who}(labels=...)` has no labelled row among {len(labels)} (all are {IGNORE_INDEX}): accuracy and "
            "calibration are undefined without labels. Evaluate on a labelled split, or pass compute_metrics=None."
        )
    logits, labels = logits[kept], labels[kept]
    outside = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(outside):
        raise ValueError(
            f"`{who}(labels=...)` holds the class id {int(outside[0])} but the logits have {logits.shape[1]} classes: "
            f"such a row can never be right. Use ids 0 to {logits.shape[1] - 1}, and {IGNORE_INDEX} for unlabelled."
        )
    return logits, labels.astype(np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# evaluate.Metric
# ---------------------------------------------------------------------------------------------------------------------


class _ReducedMetric(evaluate.Metric):
    """A metric that needs no download and writes nothing unless it is told where.

    Args:
        cache_dir: Folder for the Arrow file that holds the inputs between `add_batch` and `compute`. None keeps them
            in memory and touches no disk.
        **kwargs: Passed to `evaluate.Metric`.
    """

    description_text = ""
    reference = ""
    columns: dict[str, str] = {"predictions": "int64", "references": "int64"}

    def __init__(self, cache_dir: str | Path | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("keep_in_memory", cache_dir is None)
        kwargs.setdefault("seed", 0)
        if kwargs.get("num_process", 1) == 1:
            # Two metrics over one folder would otherwise wait a second for each other's lock.
            kwargs.setdefault("experiment_id", uuid.uuid4().hex)
        super().__init__(cache_dir=None if cache_dir is None else str(cache_dir), **kwargs)

    def _build_data_dir(self) -> str:
        # The parent creates a folder below ~/.cache even when everything stays in memory.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float] | None:
        """Score what was added, or the inputs given here; see `evaluate.Metric.compute`."""
        result = super().compute(predictions=predictions, references=references, **kwargs)
        if self.num_process == 1:
            for path in self.file_paths or []:
                Path(f"{path}.lock").unlink(missing_ok=True)  # the parent removes the table but leaves its lock
        return result

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description_text,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value(dtype) for name, dtype in self.columns.items()}),
            reference_urls=[self.reference] if self.reference else [],
        )

    def _compute(
        self,
        *,
        predictions: np.ndarray | None = None,
        references: np.ndarray | None = None,
        confidences: np.ndarray | None = None,
        top_k_hits: np.ndarray | None = None,
        teacher_predictions: np.ndarray | None = None,
    ) -> dict[str, float]:
        # `evaluate.combine` hands every metric the inputs of all of them: each takes its own columns.
        # They come as lists: the numpy format of `datasets` would round float64 to float32.
        given = locals()
        return self._score(**{name: np.asarray(given[name]) for name in self.columns})

    def _score(self, **inputs: np.ndarray) -> dict[str, float]:
        raise NotImplementedError(f"{type(self).__name__} must implement `_score`")


class Accuracy(_ReducedMetric):
    """Fraction of rows whose predicted class is the true one: ``{"accuracy": ...}``."""

    description_text = "Fraction of rows whose predicted class is the true one."

    def _score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(predictions == references))}


class MacroF1(_ReducedMetric):
    """Mean of the per-class F1 scores: ``{"f1_macro": ...}``.

    The mean runs over the classes that occur among the labels or the predictions, as in scikit-learn; a class that is
    never predicted right counts 0.
    """

    description_text = "Unweighted mean of the per-class F1 scores."
    reference = "https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html"

    def _score(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0))}


class ExpectedCalibrationError(_ReducedMetric):
    """Gap between confidence and accuracy over 15 equal-width bins: ``{"ece": ...}``.

    Formula and source: `expected_calibration_error`.
    """

    description_text = "Expected calibration error: gap between confidence and accuracy over 15 equal-width bins."
    reference = "https://huggingface.co/papers/1706.04599"
    columns = {"predictions": "int64", "references": "int64", "confidences": "float64"}

    def _score(self, predictions: np.ndarray, references: np.ndarray, confidences: np.ndarray) -> dict[str, float]:
        return {"ece": _calibration_error(confidences, predictions == references, NUM_BINS)}


class TopKAccuracy(_ReducedMetric):
    """Fraction of rows whose true class is among the k highest logits: ``{"top_{k}_accuracy": ...}``.

    Args:
        k: Only names the result; the hits come from ``reduce_logits(..., top_k=k)``.
        cache_dir: See the other metrics.
        **kwargs: Passed to `evaluate.Metric`.
    """

    description_text = "Fraction of rows whose true class is among the k highest logits."
    columns = {"top_k_hits": "bool"}

    def __init__(self, k: int = 5, cache_dir: str | Path | None = None, **kwargs: Any) -> None:
        self.k = k
        super().__init__(cache_dir=cache_dir, **kwargs)

    def _score(self, top_k_hits: np.ndarray) -> dict[str, float]:
        return {f"top_{self.k}_accuracy": float(np.mean(top_k_hits))}


class TeacherAgreement(_ReducedMetric):
    """Fraction of rows on which student and teacher predict the same class: ``{"agreement": ...}``."""

    description_text = "Fraction of rows on which student and teacher predict the same class."
    columns = {"predictions": "int64", "teacher_predictions": "int64"}

    def _score(self, predictions: np.ndarray, teacher_predictions: np.ndarray) -> dict[str, float]:
        return {"agreement": float(np.mean(predictions == teacher_predictions))}


# ---------------------------------------------------------------------------------------------------------------------
# compute_metrics
# ---------------------------------------------------------------------------------------------------------------------


class ClassificationMetrics:
    """The callable `classification_metrics` returns; it holds settings only, so it pickles."""

    def __init__(
        self,
        label_names: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        top_k: int | None = None,
    ) -> None:
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(
                f"`classification_metrics(top_k=...)` must be a positive integer or None, got {top_k!r}: it is a "
                "number of guesses. Pass e.g. 5."
            )
        self.label_names = None if label_names is None else tuple(label_names)
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.top_k = top_k

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Score one evaluation: ``predictions`` are logits, ``label_ids`` class ids or -100."""
        logits, labels = _labelled_rows("compute_metrics", prediction.predictions, prediction.label_ids)
        if self.label_names is not None and logits.shape[1] != len(self.label_names):
            raise ValueError(
                f"`compute_metrics` got logits of {logits.shape[1]} classes but the task has {len(self.label_names)} "
                f"({', '.join(self.label_names[:3])}, ...): class ids would mean different things. "
                f"Load the model with num_labels={len(self.label_names)}."
            )
        metrics: list[evaluate.Metric] = [
            Accuracy(self.cache_dir),
            MacroF1(self.cache_dir),
            ExpectedCalibrationError(self.cache_dir),
        ]
        if self.top_k is not None:
            metrics.append(TopKAccuracy(self.top_k, self.cache_dir))
        reduced = reduce_logits(logits, labels, top_k=self.top_k)
        return evaluate.combine(metrics).compute(references=labels, **reduced)


def classification_metrics(
    label_names: Sequence[str] | None = None, cache_dir: str | Path | None = None, top_k: int | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Build the ``compute_metrics`` of a classifier for the Trainer.

    Rows labelled -100 are left out. Keys: ``accuracy``, ``f1_macro``, ``ece`` and, on request, ``top_{k}_accuracy``.

    Args:
        label_names: The class names in id order; the width of the logits is checked against them.
        cache_dir: Folder for the metrics' Arrow files. None keeps everything in memory.
        top_k: Also report top-k accuracy.

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
    return ClassificationMetrics(label_names, cache_dir, top_k)

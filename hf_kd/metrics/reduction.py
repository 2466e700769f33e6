"""From logits and labels to a few numbers per row, in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..functional import IGNORE_INDEX

NUM_BINS = 15


class NonFiniteScoresError(ValueError, FloatingPointError):
    """A model answered with NaN or infinity: wrong input of a metric, and the end of a training that diverged."""


def reduce_logits(
    logits: np.ndarray, labels: np.ndarray | None = None, *, top_k: int | None = None
) -> dict[str, np.ndarray]:
    r"""Turn logits into the few numbers per row that the metrics need.

    Args:
        logits: Shape ``(rows, num_labels)``, any float type; the softmax is computed in float64. Log-probabilities are
            logits too, so ``np.log(probabilities)`` is fine.
        labels: True class ids, shape ``(rows,)``; needed for ``top_k``.
        top_k: Add ``top_k_hits``. Ties are broken as argmax does, by the lower class id.

    Returns:
        ``predictions`` (int64) and ``confidences`` (float64, the largest probability), each of shape ``(rows,)``;
        with ``labels`` also ``losses``, :math:`-\ln p_y`, and ``squared_errors``,
        :math:`\sum_k (p_k - [k = y])^2`; and ``top_k_hits`` (bool) where ``top_k`` is given.

    Raises:
        ValueError: If the logits are not a 2-d array, hold NaN or +inf, or ``top_k`` does not fit.
    """
    logits = check_logits("reduce_logits(logits=...)", logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    reduced = {
        "predictions": logits.argmax(axis=1).astype(np.int64),
        "confidences": 1.0 / np.exp(shifted).sum(axis=1),
    }
    if labels is not None:
        reduced |= _row_errors(shifted, np.asarray(labels))
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


def _row_errors(shifted: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    errors = np.exp(log_probs)
    errors[np.arange(len(labels)), labels] -= 1.0
    losses = -np.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
    return {"losses": losses, "squared_errors": np.square(errors).sum(axis=1)}


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
    logits, labels = labelled_rows("expected_calibration_error", logits, labels)
    reduced = reduce_logits(logits)
    return calibration_error(reduced["confidences"], reduced["predictions"] == labels, num_bins)


def agreement(student_logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    """Fraction of rows on which student and teacher predict the same class, in [0, 1]; labels play no part.

    Args:
        student_logits: Shape ``(rows, num_labels)``.
        teacher_logits: Shape ``(rows, num_labels)``, the same classes in the same order.

    Raises:
        ValueError: If the shapes differ or there is no row.
    """
    student_logits = check_logits("agreement(student_logits=...)", student_logits)
    teacher_logits = check_logits("agreement(teacher_logits=...)", teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"`agreement(student_logits=..., teacher_logits=...)` got shapes {student_logits.shape} and "
            f"{teacher_logits.shape}: agreement compares the two row by row over the same classes. "
            "Predict on the same rows and map the teacher's classes onto the student's first."
        )
    return float(np.mean(student_logits.argmax(axis=1) == teacher_logits.argmax(axis=1)))


def calibration_error(confidences: np.ndarray, correct: np.ndarray, num_bins: int) -> float:
    """`expected_calibration_error` of confidences and whether each was right."""
    inner_edges = np.linspace(0.0, 1.0, num_bins + 1)[1:-1]
    bins = np.digitize(confidences, inner_edges, right=True)
    # |B|/n · |acc - conf| = |Σ correct - Σ conf| / n, so that an empty bin needs no special case.
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidences, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidences))


def check_logits(who: str, logits: Any) -> np.ndarray:
    """The logits as one float64 array, refused in words where no class could be called the highest."""
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
        raise NonFiniteScoresError(
            f"`{who}` holds NaN or infinite scores in {bad} of {len(array)} rows: no class can be called the highest. "
            "The model has diverged or overflowed; look at its training loss, and at fp16 if it is on."
        )
    return array


def labelled_rows(who: str, logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check the pair and keep the rows whose label is not -100."""
    logits = check_logits(f"{who}(logits=...)", logits)
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

"""How students answer on the test rows beside their teacher: agreement, calibration, classes, confusions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..test_rows import TestRows
from .results import Pair

NUM_BINS = 15
"""As the metric `ece` has."""


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width.

    Args:
        ece: Mean over the runs of the expected calibration error.
        confidence: Mean confidence in each bin, over the rows of all runs; NaN in empty bins.
        accuracy: Share of right answers in each bin; NaN in empty bins.
        share: Of the rows, in each bin.
        rows: Labelled rows of one run.
        runs: How many runs.
    """

    ece: float
    confidence: np.ndarray
    accuracy: np.ndarray
    share: np.ndarray
    rows: int
    runs: int


@dataclass(frozen=True)
class ClassChange:
    """One class, for the student against the teacher.

    Args:
        name: Of the class.
        rows: Labelled rows of it.
        student: The share of these that the student is right on, mean over seeds.
        teacher: The share that the teacher is right on; None without one.
        difference: `student - teacher`; None without a teacher.
    """

    name: str
    rows: int
    student: float
    teacher: float | None
    difference: float | None


@dataclass(frozen=True)
class Confusion:
    """Rows of one class that are taken for another.

    Args:
        true: The class.
        taken_for: The other.
        rows: Labelled rows of the class.
        student: How many of them the student takes so, mean over seeds.
        teacher: How many the teacher takes so; None without one.
    """

    true: str
    taken_for: str
    rows: int
    student: float
    teacher: float | None

    @property
    def change(self) -> float:
        """How many more the student confuses than the teacher."""
        return self.student - (self.teacher or 0.0)


@dataclass(frozen=True)
class Agreement:
    """How often student and teacher choose the same class, mean over seeds.

    Args:
        overall: Of all rows.
        where_right: Of the rows that the teacher is right on.
        where_wrong: Of those that it is wrong on: the student repeats its mistake.
        runs: How many runs.
    """

    overall: float
    where_right: float | None
    where_wrong: float | None
    runs: int


def rows_of(pair: Pair, method: str) -> list[TestRows]:
    """The test rows of a method's finished runs that kept them and have the same classes.

    The student alone has no teacher; that of its pair answered on the same rows beside other runs.
    """
    found = [run.rows for run in pair.finished(method) if run.rows is not None and len(run.rows)]
    found = [rows for rows in found if rows.classes == found[0].classes]
    if all(has_teacher(rows) for rows in found):
        return found
    return [_with_teacher(rows, rows_with_teacher(pair)) for rows in found]


def rows_with_teacher(pair: Pair) -> TestRows | None:
    """The rows of some run beside which the teacher answered."""
    kept = (run.rows for method in pair.methods for run in pair.finished(method) if run.rows is not None)
    return next(filter(has_teacher, kept), None)


def _with_teacher(rows: TestRows, other: TestRows | None) -> TestRows:
    """With the teacher's answers from another run on the same rows."""
    if has_teacher(rows) or other is None or not np.array_equal(rows.label, other.label):
        return rows
    theirs = {"teacher_prediction": other.teacher_prediction, "teacher_confidence": other.teacher_confidence}
    return replace(rows, **theirs) if rows.classes == other.classes else rows


def has_teacher(rows: TestRows) -> bool:
    """Whether the teacher answered on any row."""
    return rows.teacher_prediction is not None and bool((rows.teacher_prediction >= 0).any())


def calibration(confidences: Sequence[np.ndarray], rights: Sequence[np.ndarray]) -> Calibration:
    """Bins and error of several runs, each given by the confidence and the rightness of its rows."""
    errors, counts, hits, sums = [], np.zeros(NUM_BINS), np.zeros(NUM_BINS), np.zeros(NUM_BINS)
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)[1:-1]
    for confidence, right in zip(confidences, rights, strict=True):
        confidence, right = confidence.astype(np.float64), right.astype(np.float64)
        bins = np.digitize(confidence, edges, right=True)
        these = [np.bincount(bins, weights=w, minlength=NUM_BINS) for w in (None, right, confidence)]
        errors.append(np.abs(these[1] - these[2]).sum() / len(confidence))
        counts, hits, sums = counts + these[0], hits + these[1], sums + these[2]
    with np.errstate(invalid="ignore"):
        return Calibration(
            float(np.mean(errors)), sums / counts, hits / counts, counts / counts.sum(), len(rights[0]), len(rights)
        )


def student_calibration(found: Sequence[TestRows]) -> Calibration | None:
    """Of the students' answers on labelled rows."""
    kept = [(rows.confidence[rows.labelled], rows.right[rows.labelled]) for rows in found if rows.labelled.any()]
    return calibration(*zip(*kept, strict=True)) if kept else None


def teacher_calibration(rows: TestRows | None) -> Calibration | None:
    """Of the teacher's answers, on labelled rows that it answered on."""
    if rows is None or rows.teacher_confidence is None:
        return None
    kept = rows.labelled & (rows.teacher_prediction >= 0)
    if not kept.any():
        return None
    return calibration([rows.teacher_confidence[kept]], [(rows.teacher_prediction == rows.label)[kept]])


def agreement(found: Sequence[TestRows]) -> Agreement | None:
    """Of the runs beside which the teacher answered."""
    table = []
    for rows in filter(has_teacher, found):
        asked = rows.teacher_prediction >= 0
        same = rows.prediction == rows.teacher_prediction
        right = asked & rows.labelled & (rows.teacher_prediction == rows.label)
        wrong = asked & rows.labelled & (rows.teacher_prediction != rows.label)
        table.append([same[which].mean() if which.any() else np.nan for which in (asked, right, wrong)])
    if not table:
        return None
    overall, right, wrong = (_mean(np.array(column)) for column in zip(*table, strict=True))
    return Agreement(overall or 0.0, right, wrong, len(table))


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def class_changes(found: Sequence[TestRows]) -> list[ClassChange]:
    """Every class that has a row, the one that the student lost most on first."""
    if not found:
        return []
    names = found[0].classes
    counts = np.mean([_tally(rows, rows.labelled) for rows in found], axis=0)
    hits = np.mean([_tally(rows, rows.labelled & rows.right) for rows in found], axis=0)
    theirs, asked = None, np.zeros(len(names), dtype=bool)
    if taught := [rows for rows in found if has_teacher(rows)]:
        answered = [rows.labelled & (rows.teacher_prediction >= 0) for rows in taught]
        right = [rows.labelled & (rows.teacher_prediction == rows.label) for rows in taught]
        theirs = np.mean([_tally(rows, which) for rows, which in zip(taught, right, strict=True)], axis=0)
        asked = np.mean([_tally(rows, which) for rows, which in zip(taught, answered, strict=True)], axis=0) > 0
    changes = []
    for index, name in enumerate(names):
        n = counts[index]
        if n:
            teacher = float(theirs[index] / n) if theirs is not None and asked[index] else None
            student = float(hits[index] / n)
            gap = None if teacher is None else student - teacher
            changes.append(ClassChange(name, round(n), student, teacher, gap))
    return sorted(changes, key=lambda c: (c.difference is None, c.student if c.difference is None else c.difference))


def _tally(rows: TestRows, which: np.ndarray) -> np.ndarray:
    return np.bincount(rows.label[which], minlength=len(rows.classes)).astype(np.float64)


def confusions(found: Sequence[TestRows]) -> list[Confusion]:
    """Every pair of classes that a student or the teacher confuses, what the students do more often first."""
    if not found:
        return []
    width = len(found[0].classes)
    students: dict[int, float] = {}
    for rows in found:
        for code, n in _confused(rows, rows.prediction, width).items():
            students[code] = students.get(code, 0.0) + n / len(found)
    taught = next(filter(has_teacher, found), None)
    teacher = None if taught is None else _confused(taught, taught.teacher_prediction, width)
    names, counts = found[0].classes, _tally(found[0], found[0].labelled)
    table = [
        Confusion(
            names[code // width],
            names[code % width],
            int(counts[code // width]),
            students.get(code, 0.0),
            None if teacher is None else float(teacher.get(code, 0)),
        )
        for code in students.keys() | (teacher or {}).keys()
    ]
    return sorted(table, key=lambda c: (-c.change, -c.student, c.true, c.taken_for))


def _confused(rows: TestRows, answers: np.ndarray, width: int) -> Mapping[int, int]:
    """How often each wrong pair occurs, as `true * width + answer`; a matrix would be large for many classes."""
    wrong = rows.labelled & (answers >= 0) & (answers != rows.label)
    codes, counts = np.unique(rows.label[wrong].astype(np.int64) * width + answers[wrong], return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))

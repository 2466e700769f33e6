"""Where a model is right and wrong, class by class, and what it lost against another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RECALL, F1 = "recall", "f1"


@dataclass(frozen=True)
class ClassScore:
    """One class.

    Args:
        name: Of the class.
        rows: Labelled rows of it.
        score: The model's recall, the share of these rows that it is right on; of several labels per row its F1.
        teacher_score: The teacher's; None without one, or where it does not know the class.
        difference: ``score - teacher_score``.
        lost: Rows on which the teacher is right and the model wrong; of several labels per row among all rows.
        gained: The reverse.
    """

    name: str
    rows: int
    score: float
    teacher_score: float | None = None
    difference: float | None = None
    lost: int | None = None
    gained: int | None = None


def class_scores(
    rows: Mapping[str, np.ndarray], names: Sequence[str], taught: Sequence[int] | None = None
) -> tuple[str, list[ClassScore]]:
    r"""The table by class of one evaluation, what the model lost most first.

    For one class per row a class's score is its recall, :math:`\frac{1}{n_k} \sum_{i: y_i = k} [\hat y_i = k]`, so
    ``difference`` is ``(gained - lost) / rows``. For several labels per row it is the F1 of the label.

    Without a teacher the lowest score comes first. Classes without a row are left out.

    Args:
        rows: ``trainer.last_evaluation.arrays()`` of a `DistillationTrainer`.
        names: The class names in id order.
        taught: The ids of the classes that the teacher knows, in ascending order; None for all.

    Returns:
        What ``score`` is, "recall" or "f1", and the classes. None of a regression.
    """
    if "label" in rows:
        return RECALL, _sorted(_by_recall(rows, names))
    if "truth" in rows:
        return F1, _sorted(_by_f1(rows, names, range(len(names)) if taught is None else taught))
    return RECALL, []


def _sorted(scores: list[ClassScore]) -> list[ClassScore]:
    def loss(entry: ClassScore) -> tuple:
        if entry.difference is None:
            return True, entry.score, 0, entry.name
        return False, entry.difference, -entry.lost, entry.name

    return sorted(scores, key=loss)


def _by_recall(rows: Mapping[str, np.ndarray], names: Sequence[str]) -> list[ClassScore]:
    known = rows["labelled"] > 0
    labels, right = rows["label"][known].astype(np.int64), rows["right"][known] > 0

    def count(which: np.ndarray) -> list[int]:
        return np.bincount(labels[which], minlength=len(names)).tolist()

    counts, hits = count(np.ones(len(labels), dtype=bool)), count(right)
    if "teacher_accuracy" not in rows:
        return [ClassScore(name, n, hit / n) for name, n, hit in zip(names, counts, hits, strict=True) if n]
    theirs = rows["teacher_accuracy"][known] > 0
    taught = rows["taught"][known] > 0 if "taught" in rows else np.ones(len(labels), dtype=bool)
    teacher_hits, lost, gained = count(theirs), count(theirs & ~right), count(right & ~theirs)
    asked = count(taught)
    scores = []
    for index, name in enumerate(names):
        n = counts[index]
        if n and asked[index]:
            teacher = teacher_hits[index] / n
            gap = (gained[index] - lost[index]) / n
            scores.append(ClassScore(name, n, hits[index] / n, teacher, gap, lost[index], gained[index]))
        elif n:
            scores.append(ClassScore(name, n, hits[index] / n))
    return scores


def _by_f1(rows: Mapping[str, np.ndarray], names: Sequence[str], taught: Sequence[int]) -> list[ClassScore]:
    known = rows["labelled"] > 0
    truth, guess = rows["truth"][known] > 0, rows["guess"][known] > 0
    theirs = rows["teacher_guess"][known] > 0 if "teacher_guess" in rows else None
    places = {} if theirs is None else {index: place for place, index in enumerate(taught)}
    scores = []
    for index, name in enumerate(names):
        is_so, said, n = truth[:, index], guess[:, index], int(truth[:, index].sum())
        if n == 0:
            continue
        score = _f1(is_so, said)
        if index not in places:
            scores.append(ClassScore(name, n, score))
            continue
        teacher_said = theirs[:, places[index]]
        lost = int(((teacher_said == is_so) & (said != is_so)).sum())
        gained = int(((teacher_said != is_so) & (said == is_so)).sum())
        teacher = _f1(is_so, teacher_said)
        scores.append(ClassScore(name, n, score, teacher, score - teacher, lost, gained))
    return scores


def _f1(truth: np.ndarray, guess: np.ndarray) -> float:
    hits = (truth & guess).sum()
    return float(2 * hits / max(truth.sum() + guess.sum(), 1))

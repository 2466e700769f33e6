"""Whether a teacher knows what it teaches: its answers on labelled rows against guessing, and against other orders."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .label_map import BY_POSITION, LabelMap

ROWS = 128
"""Labelled rows from which on a verdict is given."""

GAIN = 0.2
"""By how much another order of the classes must be better, in accuracy, to be spoken of."""


SHOWN = 20
"""Pairs of classes that an error lists."""


@dataclass(frozen=True)
class TeacherScore:
    """How often a teacher is right.

    Args:
        rows: Labelled rows that were looked at.
        accuracy: The share it is right on.
        num_classes: Among how many classes it chose.
        permutation: The order of classes in which it would be right most often: for each of its classes the class it
            would stand for. None unless that is better by `GAIN`, and by more than chance gives.
        permuted_accuracy: The share it would then be right on.
    """

    rows: int
    accuracy: float
    num_classes: int
    permutation: tuple[int, ...] | None = None
    permuted_accuracy: float | None = None

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return 1 / self.num_classes

    @property
    def is_near_chance(self) -> bool:
        """Whether it is within three standard errors of guessing, or below."""
        return self.accuracy < self.chance + 3 * (self.chance * (1 - self.chance) / self.rows) ** 0.5

    @property
    def is_doubtful(self) -> bool:
        """Whether a user should be told."""
        return self.is_near_chance or self.permutation is not None

    def summary(self) -> str:
        """The numbers, in words."""
        return (
            f"The teacher is right on {self.accuracy:.1%} of {self.rows} labelled training rows; guessing among "
            f"{self.num_classes} classes gives {self.chance:.1%}."
        )

    def words(
        self, label_map: LabelMap | None = None, rows: str = "labelled training rows", owner: str | None = None
    ) -> str:
        """What was found, and what to look at.

        Args:
            label_map: Names the classes.
            rows: Which rows, in words.
            owner: Of a model that is compared with the data and teaches nobody: what to call it.
        """
        said = (
            f"{owner or '`teacher_model`'} is right on {self.accuracy:.1%} of {self.rows} {rows}, where guessing "
            f"among {self.num_classes} classes gives {self.chance:.1%}."
        )
        if self.permutation is not None:
            pairs = self._pairs(label_map)
            shown = ", ".join(f"{theirs!r}: {ours!r}" for theirs, ours in pairs[:SHOWN])
            more = f", … ({len(pairs)} in all)" if len(pairs) > SHOWN else ""
            sides = "teacher: student" if owner is None else "its class: the data's"
            return (
                f"{said} With its classes permuted as {{{shown}{more}}} ({sides}) it would be right on "
                f"{self.permuted_accuracy:.1%}. Correct its `id2label`, or pass such a `label_map`."
            )
        return (
            f"{said} Check that its head is trained, that its inputs are what it was trained on, and that its label "
            "ids match."
        )

    def _pairs(self, label_map: LabelMap | None) -> list[tuple[str, str]]:
        """Teacher and student names of the classes that would move; of all where names alone match nothing."""
        if label_map is None:
            theirs = ours = [f"class {index}" for index in range(self.num_classes)]
        else:
            groups = [label_map.groups[index] for index in label_map.shared]
            theirs = [" + ".join(label_map.teacher_labels[index] for index in group) for group in groups]
            ours = [label_map.student_labels[index] for index in label_map.shared]
        every = label_map is not None and label_map.by == BY_POSITION
        return [(theirs[index], ours[to]) for index, to in enumerate(self.permutation) if every or index != to]


def score_teacher(choices: np.ndarray, labels: np.ndarray, num_classes: int) -> TeacherScore:
    """Compare a teacher's choices with the labels.

    The best permutation is the assignment with the most right answers (the Hungarian algorithm on the counts). With
    many classes and few rows some assignment always looks good, so it must also beat the best one for the same answers
    against shuffled labels.

    Args:
        choices: The class it chose for each row, `(rows,)`.
        labels: The row's class, `(rows,)`.
        num_classes: Classes.
    """
    right = float(np.mean(choices == labels))
    permutation, best = _best_permutation(choices, labels, num_classes)
    if best < right + GAIN:
        return TeacherScore(len(labels), right, num_classes)
    shuffled = np.random.default_rng(0).permutation(labels)
    if best < _best_permutation(choices, shuffled, num_classes)[1] + GAIN:
        return TeacherScore(len(labels), right, num_classes)
    return TeacherScore(len(labels), right, num_classes, permutation, best)


def _best_permutation(choices: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[tuple[int, ...], float]:
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (choices, labels), 1)
    counts += np.eye(num_classes) / (2 * num_classes)  # where nothing speaks for another place, a class stays
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return tuple(int(column) for column in columns), float(np.floor(counts[rows, columns]).sum() / len(labels))

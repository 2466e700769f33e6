"""One optimizer step per cell: an architecture, a kind of labels, a method. What one process and two both run."""

import itertools

import architectures
from tiny import ARCHITECTURES, LABELS, Rows, classifier, examples, train, update, weights

METHODS = {
    "kd": {},
    "ctkd": {"curriculum": 0.0, "initial": -2.0},
    "dtkd": {"warmup": 0.0},
    "wttm": {},
    "dkd": {"warmup": 0.0},
}
"""Method -> its parameters. At the start of a curriculum or a warm-up one step would show nothing; and where CTKD
starts by itself, at T = 15.6, the two parts of the temperature's gradient cancel to 1 in 200."""

STUDENTS = (*ARCHITECTURES, "modernbert")
BATCHES = {"4x4": (16, 4, 4), "2x8": (16, 2, 8), "4,4,4,2": (14, 4, 4)}
"""Split -> rows, rows per micro-batch, micro-batches."""

TOLERANCE = 1e-5
"""Relative. A step is a float32 sum over rows: in another order it differs by some units of its last place, 6e-8 each,
carried through the layers: 7e-7 is the most that was seen. A miscounted row is 1e-2 and more."""

CELLS = [
    (architecture, labels, method)
    for architecture, labels, method in itertools.product(STUDENTS, LABELS, METHODS)
    if method != "dkd" or labels != "unlabelled"  # it has nothing to say about those
]


def is_quick(architecture, labels, method):
    """Whether the default run has the cell: all of `kd`, and every other method once with each architecture."""
    if method == "kd":
        return True
    place = STUDENTS.index(architecture) + list(METHODS).index(method)
    return labels == (LABELS[place % 3] if method != "dkd" else LABELS[place % 2 * 2])


def model(architecture, seed):
    """A classifier without dropout; batch norms keep their statistics, which would depend on the split."""
    made = architectures.build if architecture == "modernbert" else classifier
    return made(architecture, seed)


def rows_for(architecture, count, labels):
    """Rows that `architecture` reads."""
    return Rows(examples("bert" if architecture == "modernbert" else architecture, count, labels))


def one_step(folder, cell, rows, size, accumulation):
    """The trainer after one step of SGD over `rows` rows, and how it moved the student.

    Clipping at a norm that is never reached multiplies by 1, and has the norm logged.
    """
    architecture, labels, method = cell
    student = model(architecture, 0)
    before = weights(student)
    trainer = train(
        folder,
        student,
        model(architecture, 1),
        rows_for(architecture, rows, labels),
        method=method,
        method_kwargs=METHODS[method],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        max_grad_norm=1e9,
        temperature_learning_rate=10.0,
    )
    return trainer, update(before, weights(trainer.model))

"""One optimizer step on the same rows is the same step, however the rows are split into micro-batches.

Two processes are in `test_distributed.py`, whose launch runs the same cells.
"""

import pytest
from invariance import BATCHES, CELLS, METHODS, STUDENTS, TOLERANCE, is_quick, model, one_step, rows_for
from tiny import relative_difference, train, update, weights

STEPS = 20
LONG = (
    ("bert", "mixed", "ctkd"),
    ("vit", "labelled", "dtkd"),
    ("resnet", "mixed", "dkd"),
    ("modernbert", "mixed", "kd"),
)
RAW = "losses.0.temperature.raw"


def _marked(cell):
    return pytest.param(cell, id="-".join(cell), marks=() if is_quick(*cell) else pytest.mark.slow)


def worst_difference(folder, cell):
    """Over all splits: of the way of the weights, the loss and the gradient's norm, relative to the whole batch."""
    method, worst, wholes = cell[-1], 0.0, {}
    for rows, size, accumulation in BATCHES.values():
        if rows not in wholes:
            wholes[rows] = one_step(folder, cell, rows, rows, 1)
        (whole, expected), (split, moved) = wholes[rows], one_step(folder, cell, rows, size, accumulation)
        assert (split.state.global_step, whole.state.global_step) == (1, 1)
        record, reference = (trainer.state.log_history[0] for trainer in (split, whole))
        assert reference["grad_norm"] == pytest.approx(float(expected.norm()), rel=TOLERANCE)  # the norm is of all
        differences = [relative_difference(moved, expected)]
        for name in ("loss", "grad_norm"):
            assert reference[name] > 1e-3
            differences.append(abs(record[name] / reference[name] - 1))
        worst = max(worst, *differences)
        if method == "ctkd":  # its temperature is of order 1 and moves by 3e-3 to 9e-1
            ways = [
                trainer.objective.state_dict()[RAW].item() - METHODS["ctkd"]["initial"] for trainer in (split, whole)
            ]
            assert abs(ways[1]) > 1e-3
            assert ways[0] == pytest.approx(ways[1], rel=TOLERANCE, abs=2e-6)
    return worst


@pytest.mark.parametrize("cell", [_marked(cell) for cell in CELLS])
def test_one_step_is_the_same_for_every_split(cell, tmp_path):
    """The textbook override takes a step 4 x too long for BERT with accumulation 4, 0.25 x for ViT with the flag off,
    and over-weights a short last micro-batch; with missing labels every micro-batch has a denominator of its own."""
    assert worst_difference(tmp_path, cell) < TOLERANCE


def test_every_method_meets_every_architecture():
    """A choice of cells that leaves one out would be noticed by nobody."""
    quick = [cell for cell in CELLS if is_quick(*cell)]
    assert len(CELLS) == 84
    assert {(architecture, method) for architecture, _, method in quick} == {(a, m) for a, _, m in CELLS}
    assert {cell[0] for cell in quick} == set(STUDENTS)


def _trajectory(folder, cell, size, accumulation, **overrides):
    architecture, labels, method = cell
    student = model(architecture, 0)
    before = weights(student)
    trainer = train(
        folder,
        student,
        model(architecture, 1),
        rows_for(architecture, 40, labels),  # steps of 16, 16 and 8
        method=method,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        **{"learning_rate": 0.02, "lr_scheduler_type": "linear", "max_grad_norm": 1.0, **overrides},
    )
    assert trainer.state.global_step == STEPS
    return trainer, update(before, weights(trainer.model))


@pytest.mark.parametrize(
    "cell",
    [
        ("bert", "mixed", "ctkd"),
        ("vit", "labelled", "dtkd"),
        ("modernbert", "mixed", "kd"),
        ("resnet", "mixed", "dkd"),
    ],
    ids="-".join,
)
def test_twenty_steps_are_the_same_for_every_split(cell, tmp_path):
    """Schedules, clipping and learned temperatures go by optimizer steps; an epoch ends in a window that is short.

    Each step adds one step's rounding, and a step from a rounded place differs by a factor that stays below 2 at this
    learning rate over all twenty: 20 x 7e-7 x 2.
    """
    whole, expected = _trajectory(tmp_path, cell, 16, 1)
    for size, accumulation in ((4, 4), (2, 8)):
        split, moved = _trajectory(tmp_path, cell, size, accumulation)
        assert relative_difference(moved, expected) < 3e-5
        pairs = zip(split.state.log_history[:-1], whole.state.log_history[:-1], strict=True)
        for record, reference in pairs:
            assert record["learning_rate"] == reference["learning_rate"]
            assert record["loss"] == pytest.approx(reference["loss"], rel=1e-4)

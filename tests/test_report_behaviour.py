"""The numbers of a report that are not in the summary: calibration, classes, confusions, curves."""

import numpy as np
import pytest

from hf_kd.metrics import expected_calibration_error
from hf_kd.metrics.reduction import calibration_error
from hf_kd.report.behaviour import agreement, calibration, class_changes, confusions
from hf_kd.report.charts import MOST_POINTS, Panel, Series, extent, power_ticks, thinned, ticks
from hf_kd.report.curves import axis_of, mean_curve, points_of
from hf_kd.report.text import Scale, clean, duration, p_value, shortened, signed
from hf_kd.test_rows import TestRows

NAMES = ("cat", "dog", "emu")


def rows(label, prediction, teacher=None):
    n = len(label)
    theirs = {}
    if teacher is not None:
        theirs = {"teacher_prediction": np.array(teacher), "teacher_confidence": np.full(n, 0.5, np.float32)}
    zeros = np.zeros(n, np.float32)
    return TestRows(np.array(label), np.array(prediction), zeros + 0.5, zeros, NAMES, **theirs)


def test_the_error_of_the_diagram_is_that_of_the_metric():
    """A figure whose ECE differs from the table's would be believed by nobody."""
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(500, 4)) * 2, generator.integers(0, 4, 500)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    confidence, right = (odds / odds.sum(1, keepdims=True)).max(1), logits.argmax(1) == labels
    found = calibration([confidence], [right])
    assert found.ece == pytest.approx(expected_calibration_error(logits, labels), abs=1e-12)
    assert found.share.sum() == pytest.approx(1)
    kept = found.share > 0
    assert (found.accuracy * found.share)[kept].sum() == pytest.approx(right.mean())
    assert (found.confidence * found.share)[kept].sum() == pytest.approx(confidence.mean())


def test_a_confidence_on_an_edge_falls_into_the_lower_bin_as_in_the_metric():
    """Small models on small sets answer with round numbers."""
    confidence = np.array([1, 2, 5, 10]) / 15
    right = np.array([True, False, True, False])
    share = calibration([confidence], [right]).share
    assert np.flatnonzero(share).tolist() == [0, 1, 4, 9]
    assert calibration([confidence], [right]).ece == pytest.approx(calibration_error(confidence, right, 15), abs=1e-15)


def test_the_error_of_several_runs_is_the_mean_of_theirs():
    """Over- and underconfident seeds would cancel in one pot."""
    sure, shy = np.full(100, 0.95), np.full(100, 0.05)
    found = calibration([sure, shy], [np.arange(100) < 50, np.arange(100) < 50])
    assert found.ece == pytest.approx(0.45)


def test_classes_are_compared_with_the_teacher_on_labelled_rows():
    label = [0, 0, 0, 1, 1, 2, -100]
    student = [0, 1, 1, 1, 1, 2, 0]
    teacher = [0, 0, 0, 0, 1, -1, 0]  # has no say on the emu
    found = class_changes([rows(label, student, teacher)])
    assert [(c.name, c.rows) for c in found] == [("cat", 3), ("dog", 2), ("emu", 1)]
    assert [c.difference for c in found] == [pytest.approx(-2 / 3), pytest.approx(1 / 2), None]
    assert found[2].student == 1.0


def test_confusions_are_counted_in_both_directions():
    """What is new against the teacher comes first; what only the teacher confused comes last."""
    label = [0, 0, 0, 1, 1, 2, -100]
    student = [1, 1, 0, 1, 1, 0, 1]
    teacher = [0, 1, 0, 2, 2, 2, 1]
    found = [(c.true, c.taken_for, c.student, c.teacher) for c in confusions([rows(label, student, teacher)])]
    assert found == [("cat", "dog", 2.0, 1.0), ("emu", "cat", 1.0, 0.0), ("dog", "emu", 0.0, 2.0)]
    assert confusions([rows(label, student)])[0].teacher is None


def test_agreement_is_apart_by_whether_the_teacher_is_right():
    label = [0, 0, 1, 1, -100]
    student = [0, 1, 0, 2, 2]
    teacher = [0, 0, 0, 2, 2]
    found = agreement([rows(label, student, teacher)])
    assert (found.overall, found.where_right, found.where_wrong) == (pytest.approx(4 / 5), 0.5, 1.0)
    assert agreement([rows(label, student)]) is None


def test_a_curve_is_the_mean_at_the_steps_that_all_seeds_have():
    """A mean over those seeds that got that far jumps where one drops out."""
    first = [(10, 1.0, 4.0), (20, 2.0, 2.0), (30, 3.0, 1.0)]
    second = [(10, 1.0, 6.0), (20, 2.0, 4.0)]
    curve = mean_curve([first, second, []])
    assert (curve.x, curve.mean, curve.low, curve.high, curve.n) == ([1, 2], [5, 3], [4, 2], [6, 4], 2)
    assert mean_curve([]) is None
    assert mean_curve([[(1, 1.0, 1.0)], [(2, 2.0, 1.0)]]) is None
    records = [{"step": 5, "epoch": 0.5, "loss": float("nan")}, {"step": 6, "epoch": 0.6, "loss": 2.0}, {"loss": 1}]
    assert points_of(records, "loss") == [(6, 0.6, 2.0)]


@pytest.mark.parametrize(("epochs", "axis"), [((1.0, 1.0), "epoch"), ((1.0, 5.0), "optimizer step")])
def test_epochs_of_different_lengths_are_not_laid_over_each_other(epochs, axis):
    """A student alone that sees a sixth of the rows has six epochs for each of the others."""

    class Of:
        runs = [type("Run", (), {"history": [{"step": 100, "epoch": epoch, "loss": 1.0}]}) for epoch in epochs]

    assert axis_of(Of) == axis


def test_a_long_curve_is_thinned_with_both_ends_kept():
    long = Series("s", list(range(5000)), list(range(5000)), low=list(range(5000)), high=list(range(5000)))
    short = thinned(long)
    assert (len(short.x), short.x[0], short.x[-1]) == (MOST_POINTS, 0, 4999)
    assert short.x == short.y == short.low == short.high


def test_axes_survive_curves_without_width():
    """A constant, a single point, and nothing."""
    for values in ([3.0, 3.0], [0.0], []):
        low, high = extent([Panel("", (Series("s", values, values),), "", "")], "y")
        assert low < high
        assert all(low <= tick <= high for tick in ticks(low, high))
    assert power_ticks(0.9, 17, 2) == [1, 2, 4, 8, 16]
    assert power_ticks(1.2e6, 8e6, 10) == [2e6, 5e6]


def test_numbers_are_said_as_a_reader_expects():
    assert [signed(v, 1) for v in (0.04, -0.04, 1.26, -1.26)] == ["0.0", "0.0", "+1.3", "−1.3"]
    assert [p_value(v) for v in (0.0004, 0.0123, 1.0, None)] == ["< .001", ".012", "1", "–"]
    assert [duration(s) for s in (9.96, 75 * 60 + 4, 3 * 3600 + 59, 99.96)] == [
        "10.0 s",
        "75 min 04 s",
        "3 h 01 min",
        "1 min 40 s",
    ]
    assert Scale.of("accuracy", 10_000).spread(0.7123, 0.00456) == "71.23 ± 0.46"
    assert Scale.of("accuracy", 250).value(0.7123) == "71.2"
    assert Scale.of("mse").value(0.7123) == "0.7123"
    assert shortened("a" * 100, 20) == "a" * 13 + "…" + "a" * 6
    assert clean({"a\x00": ["\ud800", "\u202eb", 1]}) == {"a\ufffd": ["\ufffd", "b", 1]}

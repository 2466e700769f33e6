"""Metrics: the numbers, the rows they leave out, and the disk and network they leave alone."""

import pickle

import evaluate
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from transformers import EvalPrediction

from hf_kd.metrics import (
    Accuracy,
    ExpectedCalibrationError,
    MacroF1,
    TeacherAgreement,
    TopKAccuracy,
    agreement,
    classification_metrics,
    expected_calibration_error,
    reduce_logits,
)


@pytest.fixture
def rows():
    """Logits that are right more often than chance, and labels of five classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 200)
    logits = generator.normal(size=(200, 5)) + 1.5 * np.eye(5)[labels]
    return logits, labels


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_numbers_equal_those_of_scikit_learn(rows):
    """A metric of one's own that is off by a convention makes every comparison with other people's tables wrong."""
    logits, labels = rows
    scores = classification_metrics(top_k=2)(EvalPrediction(logits, labels))
    guesses = logits.argmax(axis=1)
    assert set(scores) == {"accuracy", "f1_macro", "ece", "top_2_accuracy"}
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, guesses), abs=1e-12)
    assert scores["f1_macro"] == pytest.approx(f1_score(labels, guesses, average="macro"), abs=1e-12)
    assert scores["top_2_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=2), abs=1e-12)
    assert all(type(value) is float for value in scores.values()), "the Trainer writes them as JSON"


def test_calibration_error_equals_the_example_worked_by_hand():
    """Bins of 1/15: .55 and .58 share (8/15, 9/15], .95 lies in (14/15, 1], .62 in (9/15, 10/15].

    Sums of correct minus confidence: (1 - .55) + (0 - .58) = -.13; (1 - .95) = .05; (0 - .62) = -.62.
    ECE = (.13 + .05 + .62) / 4 = .2.
    """
    confidence = np.array([0.55, 0.58, 0.95, 0.62])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    labels = np.array([0, 1, 0, 1])
    assert expected_calibration_error(logits, labels) == pytest.approx(0.2, abs=1e-12)
    assert classification_metrics()(EvalPrediction(logits, labels))["ece"] == pytest.approx(0.2, abs=1e-12)


def test_calibration_error_depends_on_the_bins_as_the_formula_says():
    """With one bin, the same rows: |2 - (.55 + .58 + .95 + .62)| / 4 = .175. A mean of gaps per row would be .475."""
    confidence = np.array([0.55, 0.58, 0.95, 0.62])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    assert expected_calibration_error(logits, np.array([0, 1, 0, 1]), num_bins=1) == pytest.approx(0.175, abs=1e-12)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    """Two bins, (0, .5] and (.5, 1], as in the formula: |(1 - .5) + (0 - .4)| + |1 - .9| = .2, over 3 rows.

    With [0, .5) and [.5, 1] it would be .4 + .6 instead.
    """
    logits = np.log([[0.5, 0.5, 1e-300], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    error = expected_calibration_error(logits, np.array([0, 1, 0]), num_bins=2)
    assert error == pytest.approx(0.2 / 3, abs=1e-12)


def test_a_certain_and_right_classifier_has_no_calibration_error():
    """Confidence exactly 1 belongs to the last bin, not to one behind it."""
    logits = np.array([[1000.0, 0.0, 0.0], [0.0, 0.0, 1000.0]])
    assert expected_calibration_error(logits, np.array([0, 2])) == 0.0
    assert expected_calibration_error(logits, np.array([1, 1])) == 1.0


def test_unlabelled_rows_are_left_out(rows):
    """-100 is never equal to an argmax: counted as a row, it would only ever lower the accuracy."""
    logits, labels = rows
    hidden = labels.copy()
    hidden[50:] = -100
    of_few = classification_metrics(top_k=2)(EvalPrediction(logits[:50], labels[:50]))
    assert classification_metrics(top_k=2)(EvalPrediction(logits, hidden)) == of_few
    assert expected_calibration_error(logits, hidden) == pytest.approx(of_few["ece"], abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_half_precision_logits_are_scored_in_full_precision(rows, scale):
    """exp in float16 overflows at 11, and a mean over rows in float16 stops counting at 2,048."""
    logits, labels = rows
    half = (scale * logits).astype(np.float16)
    scores = classification_metrics()(EvalPrediction(half, labels))
    assert scores == classification_metrics()(EvalPrediction(half.astype(np.float64), labels))
    assert 0.0 < scores["ece"] < 1.0


def test_confidences_reach_the_metric_unrounded(rows):
    """The numpy format of `datasets` rounds float64 to float32; the table in between must not change the number."""
    logits, labels = rows
    table = classification_metrics()(EvalPrediction(logits, labels))["ece"]
    assert table == pytest.approx(expected_calibration_error(logits, labels), abs=1e-13)


def test_ties_are_broken_alike_by_accuracy_and_top_k():
    """With equal logits, `>` and `>=` differ: a constant model would score top-1 = 1 and accuracy = 1/3."""
    logits, labels = np.zeros((3, 3)), np.array([0, 1, 2])
    assert reduce_logits(logits, labels, top_k=1)["top_k_hits"].tolist() == [True, False, False]
    assert reduce_logits(logits, labels, top_k=2)["top_k_hits"].tolist() == [True, True, False]
    assert reduce_logits(logits)["predictions"].tolist() == [0, 0, 0]


def test_agreement_counts_equal_guesses_whatever_the_labels():
    student = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [0.0, 9.0]])
    teacher = np.array([[5.0, 0.0], [1.0, 0.0], [0.1, 0.0], [0.0, 1.0]])
    assert agreement(student, teacher) == 0.75
    assert agreement(student.astype(np.float16), 100 * student) == 1.0


def test_metrics_work_in_combine_and_batch_by_batch():
    """`combine` hands every metric the inputs of all; each must take its own columns and pass over the rest."""
    inputs = {
        "predictions": [0, 1, 1, 0],
        "references": [0, 1, 0, 0],
        "confidences": [0.9, 0.8, 0.7, 0.6],
        "top_k_hits": [True, True, True, False],
        "teacher_predictions": [0, 1, 0, 0],
    }
    metrics = [Accuracy(), MacroF1(), ExpectedCalibrationError(), TopKAccuracy(k=2), TeacherAgreement()]
    at_once = evaluate.combine(metrics).compute(**inputs)
    combined = evaluate.combine(metrics)
    for row in range(4):
        combined.add_batch(**{name: values[row : row + 1] for name, values in inputs.items()})
    assert combined.compute() == at_once
    expected = {"accuracy": 0.75, "agreement": 0.75, "top_2_accuracy": 0.75}
    assert {name: at_once[name] for name in expected} == expected
    with pytest.raises(TypeError, match="avrage"):
        Accuracy().compute(predictions=[0], references=[0], avrage="macro")


def test_nothing_is_written_without_a_folder(rows, tmp_path, monkeypatch):
    """`evaluate` makes a folder below ~/.cache in the constructor, even when it keeps everything in memory."""
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    classification_metrics(top_k=2)(EvalPrediction(*rows))
    assert list(tmp_path.iterdir()) == []


def test_with_a_folder_everything_lands_there_and_is_cleaned_up(rows, tmp_path, monkeypatch):
    """A run evaluates hundreds of times: a lock file left behind by each would fill the output folder."""
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    metric = Accuracy(tmp_path / "metrics")
    metric.add_batch(predictions=[0, 1], references=[0, 0])
    assert files_under(tmp_path), "inputs wait in the folder between `add_batch` and `compute`"
    assert metric.compute() == {"accuracy": 0.5}
    in_memory = classification_metrics(top_k=2)(EvalPrediction(*rows))
    assert classification_metrics(cache_dir=tmp_path / "metrics", top_k=2)(EvalPrediction(*rows)) == in_memory
    assert files_under(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics"]


def test_two_metrics_over_one_folder_do_not_mix(tmp_path):
    """Two evaluations of one run (student and teacher) share a folder; by default they would share the file too."""
    first, second = Accuracy(tmp_path), Accuracy(tmp_path)
    assert first.experiment_id != second.experiment_id, "each would wait a second for the other's lock"
    first.add(prediction=1, reference=1)
    second.add(prediction=1, reference=0)
    first.add(prediction=1, reference=1)
    assert (first.compute(), second.compute()) == ({"accuracy": 1.0}, {"accuracy": 0.0})


def test_scoring_leaves_the_random_state_alone(rows):
    """`evaluate` seeds numpy around `compute`; leaking that would make runs with and without evaluation differ."""
    before = np.random.get_state()
    classification_metrics()(EvalPrediction(*rows))
    after = np.random.get_state()
    assert (before[1] == after[1]).all()
    assert before[2:] == after[2:]


def test_the_callable_survives_pickling(rows):
    """Hyperparameter search and launchers send it to other processes."""
    compute_metrics = classification_metrics([str(i) for i in range(5)], top_k=2)
    there_and_back = pickle.loads(pickle.dumps(compute_metrics))
    assert there_and_back(EvalPrediction(*rows)) == compute_metrics(EvalPrediction(*rows))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([-100, -100]), "no labelled row among 2"),
        (np.zeros((2, 3)), None, r"labels=...\)` is None"),
        (np.zeros((2, 3)), np.array([0, 3]), "class id 3 but the logits have 3 classes"),
        (np.zeros((2, 3)), np.array([0, -1]), "class id -1"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "must be 2 integers"),
        (np.zeros((2, 3)), np.array([0, 1, 2]), "must be 2 integers"),
        (np.array([[0.0, np.nan], [0.0, 1.0]]), np.array([0, 1]), "NaN or infinite scores in 1 of 2 rows"),
        (np.array([[0.0, np.inf], [0.0, 1.0]]), np.array([0, 1]), "NaN or infinite scores in 1 of 2 rows"),
        ((np.zeros((2, 3)), np.zeros((2, 4))), np.array([0, 1]), "tuple of 2 arrays"),
        (np.zeros(3), np.array([0]), r"got \(3,\)"),
        (np.zeros((2, 1)), np.array([0, 0]), "two classes"),
    ],
)
def test_unusable_predictions_are_refused_in_words(logits, labels, message):
    """Silently scoring these gives a number between 0 and 1 that means nothing."""
    with pytest.raises(ValueError, match=message):
        classification_metrics()(EvalPrediction(logits, labels))


def test_logits_of_another_task_are_refused():
    """A teacher with 1,000 classes scored on a task of three."""
    with pytest.raises(ValueError, match="4 classes but the task has 3 .*num_labels=3"):
        classification_metrics(["a", "b", "c"])(EvalPrediction(np.zeros((1, 4)), np.array([0])))


@pytest.mark.parametrize("top_k", [0, -1, True, 2.0, "5"])
def test_impossible_top_k_is_refused_before_training(top_k):
    with pytest.raises(ValueError, match="positive integer"):
        classification_metrics(top_k=top_k)


def test_top_k_of_all_classes_is_refused():
    """It is 1.0 for every model."""
    with pytest.raises(ValueError, match="from 1 to 2 for 3 classes, got 3"):
        classification_metrics(top_k=3)(EvalPrediction(np.zeros((1, 3)), np.array([0])))


def test_bad_arguments_of_the_plain_functions_are_refused():
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match="positive integer, got 0"):
        expected_calibration_error(logits, np.array([0, 1]), num_bins=0)
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 4\)"):
        agreement(logits, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="`top_k` was given"):
        reduce_logits(logits, top_k=2)


def test_a_class_ruled_out_by_minus_infinity_is_fine():
    """A label map gives classes that the teacher lacks a logit of -inf; the row still has a highest one."""
    reduced = reduce_logits(np.array([[0.0, -np.inf, 0.0]]))
    assert reduced["predictions"].tolist() == [0]
    assert reduced["confidences"].tolist() == [0.5]

"""What a run answered on each test row: in the split's order, in the classes of the data, read as it was written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny import build_trainer, classifier, examples, logits, table
from transformers import AutoModelForImageClassification

from hf_kd import DistillationObjective, load_task
from hf_kd.experiment import run_experiment
from hf_kd.experiment.cached_teacher import source_facts
from hf_kd.experiment.config import TeacherSection
from hf_kd.experiment.run import _write_test_rows
from hf_kd.publish.folder import bundle
from hf_kd.test_rows import TestRows, read_test_rows, rows_of_evaluation, write_test_rows
from hf_kd.trainer.evaluation import EvaluationRows, row_values

COLUMNS = {"label": "I32", "prediction": "I32", "confidence": "F32", "loss": "F32"}
DIGITS = {"name": "embedded/digits", "max_samples": 60}
ENCODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def rows(**changed):
    given = {
        "label": np.array([1, -100, 0], np.int32),
        "prediction": np.array([1, 2, 2], np.int32),
        "confidence": np.array([0.5, 0.75, 0.25], np.float32),
        "loss": np.array([0.1, 0.0, 2.0], np.float32),
        "classes": ("a", "b", "ü c"),
    }
    return TestRows(**{**given, **changed})


def run(folder, **changed):
    given = {
        "output_dir": str(folder),
        "data": DIGITS,
        "student": {"config": {"model_type": "vit", "patch_size": 4, **ENCODER}},
        "objective": {"ce_weight": 1.0, "kd_weight": 0.0},
        "training": {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"},
    }
    given["training"] |= {"dataloader_pin_memory": False, **changed.pop("training", {})}
    return run_experiment({**given, **changed})


def padded(rows):
    """Texts of different lengths as one batch."""
    columns = {k: [torch.tensor(row[k]) for row in rows] for k in ("input_ids", "attention_mask")}
    batch = {k: torch.nn.utils.rnn.pad_sequence(v, batch_first=True) for k, v in columns.items()}
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def load(data):
    return load_task(data["name"], max_samples=data["max_samples"])


def teacher_of(folder, names):
    """A random classifier of digits that knows these classes."""
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    classifier("vit", 9, classes=len(names), **ids).save_pretrained(folder)
    load(DIGITS).processing_class.save_pretrained(folder)
    return {"model": str(folder), "sanity_check": False}


@torch.no_grad()
def answers(folder, task):
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    batch = task.collator([task.test[i] for i in range(len(task.test))])
    return model(batch["pixel_values"]).logits.double(), batch["labels"]


# ---- The file


def test_rows_are_read_as_they_were_written(tmp_path):
    path = write_test_rows(tmp_path, rows())
    back = read_test_rows(tmp_path)
    assert path == tmp_path / "test_rows.safetensors"
    assert back.classes == ("a", "b", "ü c")
    assert back.teacher_prediction is None
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(back, name), getattr(rows(), name))
    assert back.right.tolist() == [True, False, False]
    assert back.labelled.tolist() == [True, False, True]
    assert len(back) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["test_rows.safetensors"], "nothing half-written stays"


def test_a_run_without_the_file_has_no_rows(tmp_path):
    """Runs of a regression, of several labels per row, and of earlier versions."""
    assert read_test_rows(tmp_path) is None


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "test_rows.safetensors").write_bytes(b"not a file")
    with pytest.raises(ValueError, match=r"test_rows\.safetensors: cannot be read"):
        read_test_rows(tmp_path)


def test_a_file_of_a_later_format_is_not_misread(tmp_path):
    save_file({"label": np.zeros(2, np.int32)}, tmp_path / "test_rows.safetensors", {"format": "2"})
    with pytest.raises(ValueError, match="format '2'"):
        read_test_rows(tmp_path)


def test_a_file_that_lacks_a_column_is_refused(tmp_path):
    said = {"format": "1", "split": "test", "classes": "[]"}
    save_file({"label": np.zeros(2, np.int32)}, tmp_path / "test_rows.safetensors", said)
    with pytest.raises(ValueError, match="lacks .*prediction"):
        read_test_rows(tmp_path)


def test_labels_of_rows_are_not_pushed_with_the_student(tmp_path):
    """Somebody's test set is theirs; and a name that ends like weights' would be taken for some."""
    write_test_rows(tmp_path, rows())
    (tmp_path / "model.safetensors").touch()
    assert list(bundle(tmp_path)) == ["model.safetensors"]


def test_a_teacher_is_known_by_its_weights_and_not_by_what_it_answered(tmp_path):
    """A cache of its answers would be refused after the teacher was scored again, on other rows."""
    section = TeacherSection(**teacher_of(tmp_path, ["1", "2"]))
    before = source_facts(section)
    write_test_rows(tmp_path, rows())
    assert source_facts(section) == before


# ---- From an evaluation


def test_rows_without_labels_count_as_such():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    found = EvaluationRows()
    found.add(row_values(logits, None, None, "single_label_classification"), lambda values: values)
    made = rows_of_evaluation(found.arrays(), ("a", "b"))
    assert made.label.tolist() == [-100, -100]
    assert made.loss.tolist() == [0, 0]
    assert made.prediction.tolist() == [0, 1]
    assert found.metrics("eval") == {}, "what a row chose is no score"


def test_rows_read_in_another_order_are_put_back():
    order = [2, 0, 1]
    arrays = {"prediction": np.array(order), "confidence": np.ones(3), "label": np.array(order), "loss": np.ones(3)}
    assert rows_of_evaluation(arrays, "abc", order=order).label.tolist() == [0, 1, 2]


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_rows_without_a_single_class_have_no_file(problem_type):
    found = EvaluationRows()
    found.add(row_values(torch.zeros(2, 3), None, torch.zeros(2, 3), problem_type), lambda values: values)
    assert rows_of_evaluation(found.arrays(), "abc") is None


# ---- From a run


def test_a_run_writes_what_its_student_answers(tmp_path):
    """Recomputed from the saved student; the means are those of `results.json`."""
    result = run(tmp_path)
    task = load(DIGITS)
    logits, labels = answers(tmp_path, task)
    found = read_test_rows(tmp_path)
    with safe_open(tmp_path / "test_rows.safetensors", "numpy") as file:
        assert {name: file.get_slice(name).get_dtype() for name in file.keys()} == COLUMNS  # noqa: SIM118
        assert file.metadata() == {"format": "1", "split": "test", "classes": json.dumps(task.label_names)}
    assert found.label.tolist() == labels.tolist()
    assert found.prediction.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(found.confidence, logits.softmax(-1).amax(-1), rtol=1e-5)  # float32 answers
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(found.loss, losses, rtol=1e-5, atol=1e-6)
    assert found.right.mean() == pytest.approx(result.test["accuracy"])
    assert found.loss.mean() == pytest.approx(result.test["loss"], rel=1e-5)


def test_the_teacher_answers_in_the_classes_of_the_data(tmp_path):
    """Its own order of classes, some of which it lacks: an id of the shared classes would name another digit."""
    names = ["7", "3", "1", "9", "2"]
    teacher = teacher_of(tmp_path / "teacher", names)
    training = {"evaluate_with_teacher": True}
    result = run(tmp_path / "run", teacher=teacher, objective=None, method="kd", training=training)
    task = load(DIGITS)
    logits, labels = answers(tmp_path / "teacher", task)
    ids = np.array([task.label_names.index(name) for name in names])
    knows = np.isin(labels, ids)
    found = read_test_rows(tmp_path / "run")
    expected = np.where(knows, ids[logits.argmax(-1)], -1)
    assert found.teacher_prediction.tolist() == expected.tolist()
    sure = np.where(knows, logits.softmax(-1).amax(-1), 0)
    np.testing.assert_allclose(found.teacher_confidence, sure, rtol=1e-4)
    right = (found.teacher_prediction == found.label)[knows].mean()
    assert right == pytest.approx(result.test["teacher_accuracy"])


def test_rows_grouped_by_length_are_in_the_split_s_order(tmp_path):
    """Evaluated longest first, and still row by row comparable with a run that was not."""
    student, test = classifier("bert", 1), examples("bert", 20)
    for index, row in enumerate(test):
        row |= {"input_ids": row["input_ids"][: 2 + index % 5], "attention_mask": [1] * (2 + index % 5)}
    options = {"objective": DistillationObjective(ce_weight=1.0, kd_weight=0.0), "data_collator": padded}
    args = {"train_sampling_strategy": "group_by_length", "per_device_eval_batch_size": 3}
    trainer = build_trainer(tmp_path, student, train=table(test), trainer=options, **args)
    read = [trainer._get_eval_sampler(table(test)) for _ in range(2)]
    assert list(read[0]) == list(read[1]) != list(range(20)), "what the order is put back by"
    trainer.evaluate(table(test))
    task = SimpleNamespace(test=table(test), label_names=("a", "b", "c", "d", "e"))
    _write_test_rows(trainer, task, tmp_path)
    found = read_test_rows(tmp_path)
    assert found.label.tolist() == [row["labels"] for row in test]
    assert found.prediction.tolist() == [logits(student, [row]).argmax(-1).item() for row in test]

"""A teacher asked once teaches any number of runs what it would have taught them live, and no row of another."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from tiny import classifier
from typer.testing import CliRunner

from hf_kd import load_task
from hf_kd.cli import app
from hf_kd.experiment import evaluate_run, load_config, parse_config, run_experiment, store_teacher_logits
from hf_kd.registry import ConfigError

CONFIG = {
    "seed": 3,
    "student": {
        "config": {
            "model_type": "vit",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "patch_size": 4,
        }
    },
    "data": {"name": "embedded/digits", "max_samples": 80, "labelled": 30},
    "method": {"name": "kd"},
    "training": {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "evaluate_with_teacher": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    },
}


def config_with(folder, **changes):
    return parse_config({**CONFIG, "output_dir": str(folder), **changes})


def from_teacher(teacher, folder, **changes):
    return config_with(folder, teacher={"model": str(teacher), "sanity_check": False}, **changes)


@pytest.fixture(scope="module")
def taught(digits_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught") / "rows"
    return store_teacher_logits(from_teacher(digits_teacher, folder), folder)


def fed(taught, folder, **changes):
    """The configuration that trains from the folder."""
    data = {"path": taught.folder, **changes.pop("data", {})}
    student = {**CONFIG["student"], "processor": f"{taught.folder}/processor"}
    teacher = {"column": "teacher_logits", "sanity_check": False}
    return config_with(folder, **{"teacher": teacher, "data": data, "student": student, **changes})


def test_a_run_without_the_teacher_is_the_run_with_it(digits_teacher, taught, tmp_path):
    """Rows, order of classes, labels and views: one of them off, and every later run learns noise."""
    live = run_experiment(from_teacher(digits_teacher, tmp_path / "live"))
    again = run_experiment(fed(taught, tmp_path / "fed"))
    assert (again.train_rows, again.labelled_rows) == (live.train_rows, live.labelled_rows) == (80, 30)
    for split in ("validation", "test"):
        one, other = getattr(live, split), getattr(again, split)
        assert one.keys() == other.keys() >= {"agreement", "teacher_kl", "teacher_accuracy"}
        assert other == pytest.approx(one, rel=2e-4, abs=1e-6)  # batches of another size were asked: float32 rounding


def test_the_folder_says_whose_logits_they_are(digits_teacher, taught, tmp_path):
    facts = json.loads((Path(taught.folder) / "teacher_logits.json").read_text())
    assert facts["teacher"]["name"] == str(digits_teacher)
    assert facts["label_names"] == [str(i) for i in range(10)]
    assert facts["data"]["name"] == "embedded/digits"
    run_experiment(fed(taught, tmp_path))
    assert json.loads((tmp_path / "distillation.json").read_text())["teacher"]["name"] == str(digits_teacher)
    assert json.loads((tmp_path / "environment.json").read_text())["models"]["teacher"]["name"] == str(digits_teacher)
    assert "stored" in json.loads((tmp_path / "teacher.json").read_text())["inputs"]
    assert "distilled from the local model `teacher`" in (tmp_path / "README.md").read_text()


def test_an_evaluation_of_the_run_compares_with_the_model_that_gave_the_logits(digits_teacher, taught, tmp_path):
    run_experiment(fed(taught, tmp_path / "run"))
    found = evaluate_run(tmp_path / "run")
    assert found.teacher == str(digits_teacher)
    results = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert (found.agreement, found.teacher_kl) == pytest.approx(
        (results["agreement"], results["teacher_kl"]), rel=2e-4
    )


def test_an_evaluation_without_that_model_says_so(taught, tmp_path):
    rows = tmp_path / "rows"
    shutil.copytree(taught.folder, rows)
    facts = json.loads((rows / "teacher_logits.json").read_text())
    facts["teacher"]["name"] = str(tmp_path / "moved")
    (rows / "teacher_logits.json").write_text(json.dumps(facts))
    run_experiment(fed(dataclasses.replace(taught, folder=str(rows)), tmp_path / "run"))
    found = evaluate_run(tmp_path / "run")
    assert found.teacher is None
    assert any("moved" in note and "not here" in note for note in found.notes)


def test_images_travel_inside_the_files(taught, tmp_path):
    """A folder of paths is worth nothing on another machine."""
    rows = datasets.load_dataset("parquet", data_files=f"{taught.folder}/train.parquet", cache_dir=str(tmp_path))[
        "train"
    ]
    raw = rows.cast_column("image", datasets.Image(decode=False))
    assert all(row["image"]["bytes"] for row in raw)
    assert rows.column_names == ["image", "label", "teacher_logits"]


def test_weights_of_labels_travel_too(digits_teacher, tmp_path):
    """Balanced classes that are lost on the way train another student."""
    data = {**CONFIG["data"], "class_weights": "balanced"}
    stored = store_teacher_logits(
        from_teacher(digits_teacher, tmp_path, data=data), tmp_path / "rows", splits=("train",)
    )
    assert {"data.class_weights=null", "data.sample_weight=label_weight"} <= {*stored.overrides}
    task = load_task("embedded/digits", max_samples=80, labelled=30, class_weights="balanced")
    again = load_task(
        stored.folder, processor=task.processing_class, sample_weight="label_weight", teacher_logits="teacher_logits"
    )
    labelled = np.asarray(task.train["labels"][:]) >= 0
    for rows in (task.train, again.train):
        assert "label_weight" in rows.column_names
    assert np.array_equal(
        np.asarray(task.train["label_weight"][:])[labelled], np.asarray(again.train["label_weight"][:])[labelled]
    )


def test_the_command_prints_one_that_works(digits_teacher, tmp_path, monkeypatch):
    """What it says to run next is run as it stands."""
    monkeypatch.chdir(tmp_path)
    config = {**CONFIG, "output_dir": "out", "teacher": {"model": str(digits_teacher), "sanity_check": False}}
    Path("run.yaml").write_text(json.dumps(config))
    done = CliRunner().invoke(app, ["add-logits", "run.yaml", "rows", "training.num_train_epochs=1"])
    assert done.exit_code == 0, done.output
    line = shlex.split(next(line for line in done.output.splitlines() if line.startswith("hf-kd train")))
    trained = CliRunner().invoke(app, [*line[1:], "teacher.sanity_check=false"])
    assert trained.exit_code == 0, trained.output
    assert "80 training rows, 30 of them labelled" in trained.output


def test_text_pairs_keep_their_columns(tmp_path):
    """Pairs are written as pairs, and another tokenizer makes of them what it makes of the original."""
    lines = [{"text": f"word {i % 7}", "text2": f"other {i % 5}", "label": i % 2} for i in range(60)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    tokenizer = load_task("embedded/docstrings", max_samples=20).processing_class
    teacher = classifier("bert", 9, classes=2, vocab_size=len(tokenizer), max_position_embeddings=64)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    bert = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    student = {"config": {**bert, "intermediate_size": 16}, "processor": str(tmp_path / "teacher")}
    data = {"path": str(tmp_path), "text_column": ["text", "text2"]}
    config = from_teacher(tmp_path / "teacher", tmp_path / "out", data=data, student=student)
    stored = store_teacher_logits(config, tmp_path / "rows")
    columns = {"text_column": ("text", "text2"), "processor": tokenizer}
    plain = load_task(str(tmp_path), **columns)
    again = load_task(stored.folder, **columns, teacher_logits="teacher_logits")
    assert [row["input_ids"] for row in again.train] == [row["input_ids"] for row in plain.train]
    assert len(again.train[0]["teacher_logits"]) == again.num_labels == 2


def table(width=3, rows=30, **changes):
    """A data set in memory with logits; `changes` replace its columns."""
    generator = np.random.default_rng(0)
    columns = {
        "text": [f"word {i}" for i in range(rows)],
        "label": [i % 3 for i in range(rows)],
        "answers": generator.normal(size=(rows, width)).tolist(),
    }
    return datasets.Dataset.from_dict({**columns, **changes})


@pytest.fixture(scope="module")
def tokenizer():
    return load_task("embedded/docstrings", max_samples=20).processing_class


def test_logits_stay_with_their_rows(tokenizer):
    """Splits are cut, rows sampled and selected: each moves the column, and a shift by one row still trains."""
    source = table(rows=90)
    wanted = dict(zip(source["text"][:], source["answers"][:], strict=True))
    shuffled = source.shuffle(seed=1).select(range(5, 85))
    task = load_task(shuffled, processor=tokenizer, max_samples=30, labelled=9, teacher_logits="answers")
    for rows in (task.train, task.validation, task.test):
        assert len(rows) > 0
        for row in rows:
            assert row["teacher_logits"] == pytest.approx(wanted[row["text"]], rel=1e-6)


def test_logits_do_not_change_what_the_rows_are(tokenizer):
    """The fingerprint stands for the data, and duplicates are found whatever a teacher said to them."""
    plain, with_logits = (load_task(table(), processor=tokenizer, **k) for k in ({}, {"teacher_logits": "answers"}))
    assert plain.fingerprint == with_logits.fingerprint
    splits = {"train": table(), "validation": table(), "test": table(rows=10, answers=[[9.0, 1, 1]] * 10)}
    assert "10 of 10 test rows" in load_task(splits, processor=tokenizer, teacher_logits="answers").description


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": [[1.0, 2.0]] * 30}, "a row with 2 numbers"),
        ({"answers": [[1.0, 2.0, float("nan")]] * 30}, "NaN or infinity"),
        ({"answers": [None] + [[1.0, 2.0, 3.0]] * 29}, "a row with no value"),
        ({"answers": ["high"] * 30}, "holds string"),
        ({"answers": [["a", "b", "c"]] * 30}, r"holds list<.*string>"),
    ],
)
def test_columns_that_are_no_logits_are_refused(changes, message, tokenizer):
    with pytest.raises(ValueError, match=rf"`load_task\(teacher_logits='answers'\)`.*{message}"):
        load_task(table(**changes), processor=tokenizer, teacher_logits="answers")


def test_a_misspelt_column_is_named(tokenizer):
    with pytest.raises(ValueError, match="'answer', which is not there.*'answers'"):
        load_task(table(), processor=tokenizer, teacher_logits="answer")


def test_logits_of_other_classes_are_refused(taught, tmp_path):
    """Class names that were sorted anew would turn every answer into another class's."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for path in Path(taught.folder).glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    names = (folder / "labels.txt").read_text().split()
    (folder / "labels.txt").write_text("\n".join(reversed(names)) + "\n")
    processor = load_task("embedded/digits", max_samples=20).processing_class
    with pytest.raises(ValueError, match="at id 0 they say '0' and the data '9'"):
        load_task(str(folder), processor=processor, teacher_logits="teacher_logits")
    (folder / "teacher_logits.json").write_text("{")
    with pytest.raises(ValueError, match="teacher_logits.json.* no JSON"):
        load_task(str(folder), processor=processor, teacher_logits="teacher_logits")


def problems_of(mapping):
    with pytest.raises(ConfigError) as caught:
        parse_config({**CONFIG, "output_dir": "out", **mapping})
    return "\n".join(caught.value.problems)


def test_a_column_is_not_mixed_with_a_model():
    """Which of the two teaches must not be a matter of precedence."""
    both = problems_of({"teacher": {"model": "org/teacher", "column": "teacher_logits", "label_map": {"a": "b"}}})
    assert "teacher.model: is about a teacher that runs" in both
    assert "teacher.label_map: is about" in both
    assert "teacher.model: is required" in problems_of({"teacher": {"sanity_check": False}})
    column = {"teacher": {"column": "teacher_logits"}}
    assert "data.augmentation: would show" in problems_of(
        {**column, "data": {**CONFIG["data"], "augmentation": "crop_flip"}}
    )
    assert "stored logits do not hold" in problems_of({**column, "method": {"name": "wkd_l"}})
    assert "student.init_layers" in problems_of({**column, "student": {**CONFIG["student"], "init_layers": "first"}})


def test_embedded_rows_have_no_stored_logits(tmp_path):
    with pytest.raises(ConfigError, match="teacher_logits=.*embedded"):
        run_experiment(config_with(tmp_path, teacher={"column": "teacher_logits"}))


def test_comparing_with_the_teacher_needs_its_answers_everywhere(digits_teacher, tmp_path):
    """Found after hours of training otherwise, at the last evaluation."""
    rows = tmp_path / "rows"
    stored = store_teacher_logits(from_teacher(digits_teacher, tmp_path), rows, splits=("train",))
    with pytest.raises(ConfigError, match="validation and test rows have no column 'teacher_logits'"):
        run_experiment(fed(stored, tmp_path / "out"))
    training = {**CONFIG["training"], "evaluate_with_teacher": False}
    run_experiment(fed(stored, tmp_path / "out", training=training))


def test_a_teacher_near_chance_is_refused_before_anything_is_written(digits_teacher, taught, tmp_path):
    data = {**CONFIG["data"], "labelled": 80}
    checked = config_with(tmp_path, teacher={"model": str(digits_teacher)}, data=data)
    with pytest.raises(ConfigError, match="teacher.model: .*guessing among 10"):
        store_teacher_logits(checked, tmp_path / "rows")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="teacher.column: .*guessing among 10"):
        run_experiment(fed(taught, tmp_path / "out", teacher={"column": "teacher_logits"}))


def test_a_killed_call_is_called_again(digits_teacher, tmp_path):
    """What it had begun to write is in the way of nothing."""
    (tmp_path / ".rows.partial").mkdir()
    (tmp_path / ".rows.partial" / "train.parquet").write_text("half")
    store_teacher_logits(from_teacher(digits_teacher, tmp_path), tmp_path / "rows", splits=("test",))
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_what_cannot_be_stored_is_refused_in_words(digits_teacher, taught, tmp_path):
    config = from_teacher(digits_teacher, tmp_path)
    with pytest.raises(ConfigError, match="is there already"):
        store_teacher_logits(config, taught.folder)
    with pytest.raises(ConfigError, match="expected some of train, validation, test, got dev"):
        store_teacher_logits(config, tmp_path / "rows", splits=("dev",))
    with pytest.raises(ConfigError, match="nobody to ask"):
        store_teacher_logits(fed(taught, tmp_path), tmp_path / "rows")
    augmented = from_teacher(digits_teacher, tmp_path, data={**CONFIG["data"], "augmentation": "crop_flip"})
    with pytest.raises(ConfigError, match="one answer per row is stored"):
        store_teacher_logits(augmented, tmp_path / "rows")


def test_the_resolved_configuration_is_the_same_run(taught, tmp_path):
    config = fed(taught, tmp_path)
    run_experiment(config)
    assert load_config(tmp_path / "resolved_config.yaml").teacher == config.teacher

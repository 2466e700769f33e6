"""Runs that a comparison needs done before it: trained once, by themselves, from the same rows."""

import shutil

import pytest
import yaml

from hf_kd.compare import compare
from hf_kd.compare.first import first_runs, leave, train_first
from hf_kd.registry import ConfigError

VIT = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
}
TRAINING = {
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "dataloader_pin_memory": False,
}
TEACHER = {
    "output_dir": "teacher",
    "student": {"config": VIT},
    "data": {"name": "embedded/digits", "max_samples": 40},
    "objective": {"ce_weight": 1.0, "kd_weight": 0.0},
    "training": TRAINING,
}
COMPARED = {
    "output_dir": "compared",
    "teacher": {"model": "./teacher", "sanity_check": False},
    "student": {"config": VIT},
    "data": {"name": "embedded/digits", "max_samples": 40},
    "training": {**TRAINING, "save_strategy": "no"},
}
SECTION = {"methods": ["kd"], "seeds": 1, "train_first": ["teacher.yaml"], "latency": False}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(TEACHER))
    return tmp_path


def started(events):
    return [event["path"] for event in events if event["kind"] == "trained"]


def test_a_teacher_is_trained_before_its_students_and_only_once(folder):
    """From a fresh checkout a comparison has to come by its teacher; a second start must not make another one."""
    events = []
    compare(COMPARED, SECTION, on_event=events.append)
    assert started(events) == ["teacher.yaml"]
    kinds = [event["kind"] for event in events]
    assert kinds.index("trained") < kinds.index("plan") < kinds.index("line")
    weights = (folder / "teacher/model.safetensors").read_bytes()
    compare(COMPARED, {**SECTION, "seeds": 2}, on_event=events.append)
    assert started(events) == ["teacher.yaml"]
    assert (folder / "teacher/model.safetensors").read_bytes() == weights


def test_one_that_was_stopped_goes_on_and_ends_alike(folder):
    """A teacher that begins anew after each stop never ends; one that goes on otherwise is another teacher."""
    runs = first_runs(["teacher.yaml"], COMPARED)
    train_first(runs, lambda event: None)
    weights = (folder / "teacher/model.safetensors").read_bytes()
    for path in (folder / "teacher").iterdir():  # as it was after two steps
        if path.name != "checkpoint-2":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    events = []
    train_first(first_runs(["teacher.yaml"], COMPARED), events.append)
    assert min(event["done"] for event in events if event["kind"] == "first") > 2
    assert (folder / "teacher/model.safetensors").read_bytes() == weights


def test_it_reads_the_data_where_the_comparison_does(folder):
    """A local copy that is named once, for the comparison, would leave its teacher looking for the network."""
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**TEACHER, "data": {"name": "cifar100"}}))
    (folder / "rows").mkdir()
    data = {"name": "cifar100", "path": "rows"}
    processor = {"model_type": "cifar_resnet", "depth": 8}
    (folder / "teacher.yaml").write_text(
        yaml.safe_dump({**TEACHER, "student": {"config": processor}, "data": {"name": "cifar100"}})
    )
    assert first_runs(["teacher.yaml"], {"data": data})[0].config.data.path == "rows"
    assert first_runs(["teacher.yaml"], {"data": {**data, "name": "cifar10"}})[0].config.data.path is None


def test_nothing_is_left_where_the_comparison_is_wrong(folder):
    """The teacher's folder is made so that what names it can be checked."""
    with pytest.raises(ConfigError, match="unknown key"):
        compare({**COMPARED, "training": {"max_stepps": 4}}, SECTION)
    assert not (folder / "teacher").exists()
    (folder / "teacher").mkdir()
    (folder / "teacher/notes.txt").write_text("mine")
    leave(first_runs(["teacher.yaml"], COMPARED))
    assert (folder / "teacher/notes.txt").exists()


def test_what_is_wrong_in_its_file_is_said_with_its_path(folder):
    """A misspelt key in a file that another one names is found in neither without its name."""
    (folder / "teacher.yaml").write_text(yaml.safe_dump({**TEACHER, "training": {"max_stepps": 4}}))
    with pytest.raises(ConfigError) as caught:
        compare(COMPARED, {**SECTION, "train_first": ["teacher.yaml", "missing.yaml"]})
    lines = caught.value.problems
    assert lines[0].startswith("compare.train_first[0]: teacher.yaml: training.max_stepps: unknown key.")
    assert lines[1].startswith("compare.train_first[1]: missing.yaml: there is no such file.")
    assert not (folder / "teacher").exists()

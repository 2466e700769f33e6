"""`teacher_cache` in a configuration, and `hf-kd cache`: the numbers of the live run, without the teacher."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from hub_server import running_hub
from hub_worker import tokenizer, upload
from PIL import Image
from test_hub import run_job
from test_stored_logits import CONFIG, config_with, from_teacher
from tiny import classifier
from transformers import ViTImageProcessor
from typer.testing import CliRunner

from hf_kd import TeacherCache, load_task
from hf_kd.cli import app
from hf_kd.experiment import cached_teacher, fill_cache, parse_config, run_experiment
from hf_kd.experiment.build import build_task
from hf_kd.registry import ConfigError


def scores(result):
    return {
        f"{split}_{key}": value for split in ("validation", "test") for key, value in getattr(result, split).items()
    }


def test_a_run_from_the_cache_is_the_live_run_and_loads_no_teacher(digits_teacher, tmp_path, monkeypatch):
    live = run_experiment(from_teacher(digits_teacher, tmp_path / "live"))
    cache = str(tmp_path / "cache")
    first = run_experiment(from_teacher(digits_teacher, tmp_path / "first", teacher_cache=cache))
    monkeypatch.setattr(cached_teacher, "build_teacher", None)
    monkeypatch.setattr("hf_kd.experiment.run.build_teacher", None)
    again = run_experiment(from_teacher(digits_teacher, tmp_path / "again", teacher_cache=cache))
    assert scores(again) == pytest.approx(scores(live), rel=2e-4, abs=1e-6)
    assert scores(first) == pytest.approx(scores(again), rel=1e-6)
    assert {"test_agreement", "test_teacher_kl", "test_teacher_accuracy"} <= scores(live).keys()
    assert again.teacher_parameters == live.teacher_parameters > 0
    for name in ("teacher.json", "distillation.json", "per_class.json"):
        one, other = (json.loads((tmp_path / run / name).read_text()) for run in ("live", "again"))
        if name == "distillation.json":
            one, other = one["teacher"], {key: other["teacher"].get(key) for key in one["teacher"]}
        assert one == other, name


def test_other_methods_seeds_and_label_maps_ask_nobody(digits_teacher, tmp_path, asked):
    cache = str(tmp_path / "cache")
    fill_cache(from_teacher(digits_teacher, tmp_path, teacher_cache=cache))
    assert sum(asked) > 0
    asked.clear()
    swapped = {"teacher": {"model": str(digits_teacher), "sanity_check": False, "label_map": {"3": "1", "1": "3"}}}
    for number, change in enumerate(({"method": {"name": "dtkd"}}, {"seed": 9}, swapped)):
        changes = {"teacher": {"model": str(digits_teacher), "sanity_check": False}, "teacher_cache": cache, **change}
        run_experiment(config_with(tmp_path / str(number), **changes))
    assert asked == []


def test_a_teacher_with_another_processor_is_asked_with_its_own(digits_teacher, tmp_path):
    """Twice the pixels: what is stored belongs to those, though the student reads its own."""
    other = tmp_path / "other"
    shutil.copytree(digits_teacher, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    (other / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    section = {"teacher": {"model": str(other), "sanity_check": False}}
    live = run_experiment(config_with(tmp_path / "live", **section))
    cache = str(tmp_path / "cache")
    run_experiment(config_with(tmp_path / "first", teacher_cache=cache, **section))
    again = run_experiment(config_with(tmp_path / "again", teacher_cache=cache, **section))
    assert scores(again) == pytest.approx(scores(live), rel=2e-4, abs=1e-6)
    changed = {"teacher": {**section["teacher"], "processor": str(digits_teacher)}}
    with pytest.raises(ConfigError, match="is not shown to the teacher as it was when the cache was filled"):
        run_experiment(config_with(tmp_path / "changed", teacher_cache=cache, **changed))


def test_a_teacher_of_grey_images_is_shown_grey_ones_again(tmp_path):
    """Its processor alone does not say so: the second run would make colours, and refuse the first one's cache."""
    task = load_task("embedded/digits", max_samples=40)
    classifier("vit", 9, classes=10, num_channels=1, **task.head).save_pretrained(tmp_path / "t")
    ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False).save_pretrained(tmp_path / "t")
    given = {"teacher_cache": str(tmp_path / "cache")}
    run_experiment(from_teacher(tmp_path / "t", tmp_path / "first", **given))
    run_experiment(from_teacher(tmp_path / "t", tmp_path / "again", **given))


def test_a_teacher_trained_anew_in_the_same_folder_is_refused(digits_teacher, tmp_path):
    own = tmp_path / "teacher"
    shutil.copytree(digits_teacher, own)
    cache = str(tmp_path / "cache")
    fill_cache(from_teacher(own, tmp_path, teacher_cache=cache), splits=("train",))
    shutil.copy(own / "model.safetensors", tmp_path / "kept")
    model = classifier("vit", 9, classes=10)
    with torch.no_grad():
        model.classifier.bias.add_(1.0)
    model.save_pretrained(tmp_path / "trained")
    shutil.copy(tmp_path / "trained" / "model.safetensors", own)
    with pytest.raises(ConfigError, match="teacher_cache: .*was made with teacher.files.model.safetensors"):
        run_experiment(from_teacher(own, tmp_path / "run", teacher_cache=cache))
    shutil.move(tmp_path / "kept", own / "model.safetensors")
    shutil.move(own, tmp_path / "moved")
    run_experiment(from_teacher(tmp_path / "moved", tmp_path / "run", teacher_cache=cache))


def test_another_precision_is_refused_without_loading_anything(digits_teacher, tmp_path):
    cache = str(tmp_path / "cache")
    section = {"model": str(digits_teacher), "sanity_check": False, "dtype": "float32"}
    fill_cache(config_with(tmp_path, teacher=section, teacher_cache=cache), splits=("train",))
    for change in (
        {"teacher": {**section, "dtype": "bfloat16"}},
        {"teacher": section, "training": {**CONFIG["training"], "bf16": True, "use_cpu": True}},
        {"teacher": {**section, "attn_implementation": "eager", "dtype": "float16"}},
    ):
        with pytest.raises(ConfigError, match=r"was made with teacher.precision float32 \(now: \w+\)"):
            run_experiment(config_with(tmp_path / "run", teacher_cache=cache, **change))


@pytest.mark.parametrize("augmentation", ["crop_flip", {"name": "crop_flip", "cutmix": 1.0}], ids=["crop", "cutmix"])
def test_augmented_images_come_in_views(digits_teacher, tmp_path, asked, augmentation):
    data = {**CONFIG["data"], "augmentation": augmentation}
    training = {**CONFIG["training"], "evaluate_with_teacher": False}
    cache = {"dir": str(tmp_path / "cache"), "views": 2}
    given = {"data": data, "training": training}
    run_experiment(from_teacher(digits_teacher, tmp_path / "first", teacher_cache=cache, **given))
    assert sum(asked) == 2 * 80
    asked.clear()
    again = run_experiment(from_teacher(digits_teacher, tmp_path / "again", teacher_cache=cache, **given))
    assert asked == []
    live = {**given, "training": {**training, "augmentation_views": 2}}
    expected = run_experiment(from_teacher(digits_teacher, tmp_path / "live", **live))
    assert scores(again) == pytest.approx(scores(expected), rel=2e-4, abs=1e-6)


def test_a_stream_is_read_to_its_end_once(tmp_path, asked, monkeypatch):
    """Afterwards the cache is known to be complete, and no teacher is loaded to find out."""
    rows = datasets.Dataset.from_dict(
        {"text": [f"{'good' if i % 2 else 'bad'} w{i % 7}" for i in range(40)], "label": [i % 2 for i in range(40)]},
        features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["-", "+"])}),
    )
    for split, part in (("train", range(24)), ("validation", range(24, 32)), ("test", range(32, 40))):
        rows.select(part).to_parquet(tmp_path / "rows" / f"{split}.parquet")
    ids = {"id2label": {0: "-", 1: "+"}, "label2id": {"-": 0, "+": 1}}
    classifier("bert", 3, classes=2, **ids).save_pretrained(tmp_path / "teacher")
    tokenizer().save_pretrained(tmp_path / "teacher")
    given = {
        "output_dir": str(tmp_path / "run"),
        "student": {"model": str(tmp_path / "teacher"), "from_scratch": True},
        "teacher": {"model": str(tmp_path / "teacher"), "sanity_check": False},
        "data": {"path": str(tmp_path / "rows"), "streaming": True},
        "method": "ctkd",
        "training": {**CONFIG["training"], "max_steps": 6, "evaluate_with_teacher": False},
    }
    given["training"].pop("num_train_epochs")
    live = run_experiment(parse_config(given))
    asked.clear()
    cached = {**given, "teacher_cache": str(tmp_path / "cache")}
    fill_cache(parse_config(cached))
    assert sum(asked) == len({f"{i % 2} {i % 7}" for i in range(40)}), "equal texts once"
    asked.clear()
    monkeypatch.setattr(cached_teacher, "build_teacher", None)
    again = run_experiment(parse_config({**cached, "output_dir": str(tmp_path / "again")}))
    assert asked == []
    assert scores(again) == pytest.approx(scores(live), rel=2e-4, abs=1e-6)


def test_the_command_fills_tells_and_verifies(digits_teacher, tmp_path):
    (tmp_path / "run.yaml").write_text(json.dumps({**CONFIG, "output_dir": str(tmp_path / "run")}))
    cache, call = tmp_path / "cache", CliRunner().invoke
    section = [f"teacher.model={digits_teacher}", "teacher.sanity_check=false"]
    done = call(app, ["cache", str(tmp_path / "run.yaml"), *section, f"teacher_cache={cache}"])
    assert done.exit_code == 0, done.output
    assert "train: 80 rows, the teacher is right on" in done.output
    assert "answers added to" in done.output
    command = done.output.strip().splitlines()[-1].split()
    assert command[:2] == ["hf-kd", "train"]
    info = call(app, ["cache", "info", str(cache)]).output
    assert "10 logits in float32" in info
    assert str(digits_teacher)[:20] in info
    assert "every checksum right" in call(app, ["cache", "verify", str(cache)]).output
    assert call(app, command[1:]).exit_code == 0
    again = call(app, ["cache", str(tmp_path / "run.yaml"), *section, f"teacher_cache={cache}"])
    assert "0 answers added" in again.output
    path = next(cache.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    broken = call(app, ["cache", "verify", str(cache)])
    assert broken.exit_code == 2
    assert f"{path.name}: does not hold what was written" in broken.output.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info"], "expected hf-kd cache info DIR, got 0 arguments"),
        (["push", "here"], "expected hf-kd cache push DIR REPO, got 1 argument."),
        (["info", "nowhere"], "nowhere: there is no cache"),
        (["no.yaml"], "no.yaml: there is no such file"),
    ],
)
def test_wrong_calls_get_a_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["cache", *arguments])
    assert done.exit_code == 2
    assert words in done.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": None, "method": {"name": "kd", "kd_weight": 0}}, "teacher_cache: .*there is no teacher"),
        ({"teacher": {"column": "teacher_logits"}}, "teacher_cache: .*a column of the data"),
        ({"data": {"name": "embedded/digits", "augmentation": "crop_flip"}}, "teacher_cache.views: is required"),
        ({"teacher_cache": {"dir": "c", "views": 2}}, "teacher_cache.views: .*all are the same"),
        ({"teacher_cache": {"dir": "c", "dtype": "int8"}}, "teacher_cache.dtype: expected 'float32', 'bfloat16'"),
        ({"teacher_cache": {}}, "teacher_cache.dir: this key is required"),
        (
            {"data": {"name": "embedded/digits", "augmentation": {"mixup": 0.8}}},
            "teacher_cache.views: is required",
        ),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, words, tmp_path):
    given = {
        **CONFIG,
        "output_dir": str(tmp_path),
        "teacher": {"model": "org/teacher"},
        "teacher_cache": "c",
        **changes,
    }
    training = {**CONFIG["training"], "evaluate_with_teacher": False}
    with pytest.raises(ConfigError) as error:
        parse_config({key: value for key, value in {**given, "training": training}.items() if value is not None})
    assert any(re.search(words, problem) for problem in error.value.problems), error.value.problems


def test_a_cache_alone_is_not_enough_to_fill_one(digits_teacher, tmp_path):
    with pytest.raises(ConfigError, match="teacher_cache: is required: a folder"):
        fill_cache(from_teacher(digits_teacher, tmp_path))


def test_features_that_a_cache_lacks_are_said_before_the_run_starts(digits_teacher, tmp_path):
    cache = str(tmp_path / "cache")
    fill_cache(from_teacher(digits_teacher, tmp_path, teacher_cache=cache), splits=("train",))
    training = {**CONFIG["training"], "evaluate_with_teacher": False}
    given = {"method": {"name": "feature_mse"}, "teacher_cache": cache, "training": training}
    with pytest.raises(ConfigError, match="filled without. Name another folder, which the teacher then fills"):
        run_experiment(from_teacher(digits_teacher, tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


def write_pictures(folder, count):
    """The first rows are the same, however many there are."""
    names = datasets.ClassLabel(names=["dark", "light"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    for number, split in enumerate(("train", "validation", "test")):
        images = [Image.new("RGB", (8, 8), (200 * (i % 2), i, number)) for i in range(count)]
        rows = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)]}, features=features)
        folder.mkdir(exist_ok=True)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.slow
def test_a_stream_is_asked_about_again_where_answers_are_gone_or_rows_came(tmp_path):
    """That it was read to its end once is no promise."""
    write_pictures(tmp_path / "set", 20)
    ids = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
    classifier("vit", 9, classes=2, **ids).save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "teacher")
    student = {**CONFIG["student"], "processor": str(tmp_path / "teacher")}
    given = {
        "data": {"path": str(tmp_path / "set"), "streaming": True},
        "training": {**CONFIG["training"], "num_train_epochs": 3.0, "max_steps": 2, "evaluate_with_teacher": False},
        **{"student": student, "teacher_cache": str(tmp_path / "cache")},
    }
    config = from_teacher(tmp_path / "teacher", tmp_path / "run", **given)

    def is_complete():
        return cached_teacher._is_complete(TeacherCache(tmp_path / "cache"), build_task(config), ["train"])

    assert fill_cache(config, splits=("train",)).added == 20
    assert is_complete()
    assert fill_cache(config, splits=("train",)).added == 0
    next((tmp_path / "cache").glob("*.safetensors")).unlink()
    assert not is_complete()
    assert fill_cache(config, splits=("train",)).added == 20
    write_pictures(tmp_path / "set", 26)
    assert fill_cache(config, splits=("train",)).added == 6


# ---- The Hub


def push_and_pull(folder):
    """In a process whose Hub is the loopback one: fill from ids, push, pull elsewhere, train from what came."""
    upload("text")
    call, folder = CliRunner().invoke, Path(folder)
    config = {
        "output_dir": str(folder / "run"),
        "teacher": {"model": "org/text-teacher", "sanity_check": False},
        "student": {"model": "org/text-teacher", "from_scratch": True},
        "data": {"name": "org/text-data"},
        "method": "kd",
        "teacher_cache": str(folder / "own"),
        "training": {"num_train_epochs": 1, "report_to": "none", "save_strategy": "no"},
    }
    (folder / "run.yaml").write_text(json.dumps(config))
    done = {}
    for name, command in {
        "fill": ["cache", str(folder / "run.yaml")],
        "push": ["cache", "push", str(folder / "own"), "org/logits", "--private"],
        "pull": ["cache", "pull", str(folder / "copy"), "org/logits"],
        "train": ["train", str(folder / "run.yaml"), f"teacher_cache={folder / 'copy'}"],
        "again": ["cache", str(folder / "run.yaml"), f"teacher_cache={folder / 'copy'}"],
        "missing": ["cache", "pull", str(folder / "none"), "org/nothing"],
        "public": ["cache", "push", str(folder / "own"), "org/text-data", "--private"],
        "stranger": ["cache", "pull", str(folder / "stranger"), "org/text-data"],
    }.items():
        result = call(app, command)
        done[name] = {"code": result.exit_code, "out": result.output, "error": str(result.exception)}
    done["manifest"] = json.loads((folder / "copy" / "cache.json").read_text())
    return done


def test_a_cache_goes_to_the_hub_and_back(tmp_path):
    with running_hub() as hub:
        done, _ = run_job(hub, tmp_path / "home", "test_cache_command", "push_and_pull", tmp_path)
    for name in ("fill", "push", "pull", "train"):
        assert done[name]["code"] == 0, done[name]
    assert "0 answers added" in done["again"]["out"]
    assert done["manifest"]["teacher"]["commit"], "the teacher's commit is pinned"
    assert done["missing"]["code"] == 1
    assert "there is no such repository" in done["missing"]["out"] + done["missing"]["error"]
    assert "was to be private, but exists and is public" in done["public"]["out"].replace("\n", " ")
    assert "holds no cache.json, so it is no teacher cache" in done["stranger"]["out"].replace("\n", " ")

"""The configuration refuses all it does not understand, and a run leaves what it promises, where it promises."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification, BertConfig, pipeline

from hf_kd.data import load_task
from hf_kd.experiment import dump_resolved, load_config, parse_config, run_experiment
from hf_kd.experiment.build import build_task, build_teacher
from hf_kd.experiment.config import StudentSection, TeacherSection
from hf_kd.experiment.student import build_student
from hf_kd.methods import METHODS, build_objective
from hf_kd.registry import ConfigError

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for path in ROOT.rglob("*.yaml") if path.parent.name != "accelerate")  # those launch
CONFIGS = [path for path in CONFIGS if "\ncompare:\n" not in path.read_text(encoding="utf-8")]  # several runs each
STUDENT = next(path for path in CONFIGS if path.name == "digits_student.yaml")
QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 256,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}


@pytest.fixture
def given(tmp_path):
    """A valid configuration; the teacher's folder is empty, which only a run would notice."""
    (tmp_path / "teacher").mkdir()
    return {
        "output_dir": str(tmp_path / "run"),
        "student": {"config": {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "patch_size": 4}},
        "teacher": {"model": str(tmp_path / "teacher")},
        "data": {"name": "embedded/digits", "labelled": 200},
        "method": {"name": "kd"},
        "training": dict(QUICK),
    }


def problems(mapping):
    with pytest.raises(ConfigError) as caught:
        parse_config(mapping)
    return caught.value.problems


def paths(mapping):
    return [line.split(":")[0] for line in problems(mapping)]


# ---- The shipped files


def shipped(path, folder, *overrides):
    """A shipped configuration whose teacher, where it has one, lies in `folder`."""
    has_teacher = "teacher" in yaml.safe_load(path.read_text())
    return load_config(path, [*([f"teacher.model={folder}"] if has_teacher else []), *overrides])


def test_there_are_shipped_configs():
    """A glob that matches nothing would make the next tests pass for ever."""
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid(path, tmp_path):
    """A renamed key breaks files that no other test reads."""
    shipped(path, tmp_path)


FREE = {("teacher", "label_map")}  # its keys are class names
OF_A_CHECKPOINT = ("student", "config")  # of one on the Hub, which is asked when it is loaded


def key_paths(mapping, prefix=(), free=FREE):
    for key, value in mapping.items():
        yield (*prefix, key)
        if isinstance(value, dict) and (*prefix, key) not in free:
            yield from key_paths(value, (*prefix, key), free)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_typo_in_any_key_of_a_shipped_config_is_refused_at_its_path(path, tmp_path):
    """A mistyped key that is ignored runs an experiment nobody asked for (`temprature: 4` leaves the default)."""
    mapping = shipped(path, tmp_path).to_mapping()
    keys = list(key_paths(mapping, free=FREE | ({OF_A_CHECKPOINT} if "model" in mapping["student"] else set())))
    assert len(keys) > 10
    for *parents, key in keys:
        typo = copy.deepcopy(mapping)
        section = typo
        for parent in parents:
            section = section[parent]
        mistyped = key[:-1] + "q"
        section[mistyped] = section.pop(key)
        assert ".".join([*parents, mistyped]) in paths(typo), f"{'.'.join([*parents, key])} -> {mistyped}"


def test_a_typo_names_the_nearest_key(given):
    """`unknown key` alone sends the user to the source."""
    given["training"]["lerning_rate"] = 1e-3
    given["student"]["config"]["hiden_size"] = 8
    given["method"]["temprature"] = 2.0
    found = problems(given)
    for name in ("learning_rate", "hidden_size", "temperature"):
        assert any(f"Did you mean {name!r}?" in line for line in found)


# ---- All problems at once


def test_all_problems_come_out_together(given, tmp_path):
    """One problem per attempt makes an evening of ten typos; a download between two makes it a night."""
    mapping = {
        "output_dir": 3,
        "sed": 1,
        "student": {"config": {"model_type": "vit", "hiden_size": 8, "num_hidden_layers": 1.5}, "dtype": "fp32"},
        "teacher": {"model": str(tmp_path / "nowhere"), "revison": "x"},
        "data": {"name": "embedded/digit", "labelled": "200", "max_samples": {"train": "all"}},
        "method": {"name": "ctkd", "strat": 1, "start": -1, "ce_weight": "high", "temperature": {"rnge": 1}},
        "training": {"seed": 3, "num_train_epochs": "3", "optm": "sgd", "lr_scheduler_type": "consine"},
    }
    assert sorted(paths(mapping)) == sorted(
        [
            "output_dir",
            "sed",
            "student.config.hiden_size",
            "student.config.num_hidden_layers",
            "student.dtype",
            "teacher.model",
            "teacher.revison",
            "data.name",
            "data.labelled",
            "data.max_samples.train",
            "method.strat",
            "method.start",
            "method.ce_weight",
            "method.temperature.rnge",
            "training.seed",
            "training.num_train_epochs",
            "training.optm",
            "training.lr_scheduler_type",
        ]
    )


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "seed", 1.5),
        (None, "seed", "1"),
        (None, "seed", True),
        (None, "seed", -1),
        (None, "output_dir", None),
        (None, "student", "google/vit"),
        (None, "training", ["max_steps"]),
        ("data", "labelled", 200.0),
        ("data", "max_samples", "100"),
        ("data", "splits", ["train"]),
        ("data", "text_column", ["a", "b", "c"]),
        ("teacher", "model", 3),
        ("teacher", "dtype", "half"),
        ("training", "learning_rate", "1e-3"),
        ("training", "learning_rate", float("nan")),
        ("training", "learning_rate", -1.0),
        ("training", "per_device_train_batch_size", 0),
        ("training", "per_device_train_batch_size", 16.5),
        ("training", "bf16", 1),
        ("training", "lr_milestones", "1,2"),
        ("training", "temperature_learning_rate", -0.05),
        ("training", "method", "kd"),
        ("training", "hub_token", "secret"),
        ("method", "name", ["kd"]),
        ("method", "name", "kdd"),
        ("method", "temperature", 0),
        ("method", "temperature", "4"),
        ("method", "temperature", True),
        ("method", "kd_weight", -1),
    ],
)
def test_wrong_values_are_refused_at_their_path(given, section, key, value):
    """Coercion turns `"1e-3"`, `1.5` or `true` into a run that is not the one written down."""
    (given if section is None else given[section])[key] = value
    assert (key if section is None else f"{section}.{key}") in paths(given)


def test_whole_numbers_stand_for_floats(given):
    """`learning_rate: 1` is a number; refusing it would be pedantry."""
    given["training"]["learning_rate"] = 1
    given["method"]["temperature"] = 2
    parse_config(given)


def test_switches_take_true_and_false_only(given):
    """`detach: "no"` is a string, and true."""
    given["method"] = {"name": "dtkd", "detach": "no", "temperature": {"guard": 0}}
    assert paths(given) == ["method.detach", "method.temperature.guard"]
    given["method"] = {"name": "dtkd", "detach": True}
    parse_config(given)


def test_numbers_of_a_loss_are_refused_at_their_path(given):
    """A list of losses hides the culprit unless the path has its index."""
    del given["method"]
    given["objective"] = {
        "ce_weight": 1.0,
        "kd_weight": 1.0,
        "losses": [
            {"name": "kd", "temperature": {"name": "ctkd", "strat": 1, "start": -1}, "loss_weight": -1},
            {"name": "kdd"},
            {"name": "kd"},
        ],
    }
    assert paths(given) == [
        "objective.losses.0.loss_weight",
        "objective.losses.0.temperature.strat",
        "objective.losses.0.temperature.start",
        "objective.losses.1.name",
    ]


# ---- Sections that need each other


def test_exactly_one_of_method_and_objective(given):
    """With both, one would be ignored; with none, there is nothing to minimise."""
    objective = {"ce_weight": 1.0, "kd_weight": 1.0, "losses": [{"name": "kd"}]}
    assert paths({**given, "objective": objective}) == ["objective"]
    assert paths({key: value for key, value in given.items() if key != "method"}) == ["method"]
    parse_config({**given, "method": None, "objective": objective})


def test_a_teacher_is_needed_exactly_when_something_is_distilled(given):
    """A missing teacher is found after the data were loaded; a useless one is loaded for nothing."""
    without = {key: value for key, value in given.items() if key != "teacher"}
    assert paths(without) == ["teacher"]
    baseline = {"name": "kd", "kd_weight": 0}
    parse_config({**without, "method": baseline})
    assert paths({**given, "method": baseline}) == ["teacher"]
    parse_config({**given, "method": baseline, "training": {**QUICK, "evaluate_with_teacher": True}})


def test_sources_of_the_student_and_of_the_data_that_contradict_each_other(given):
    """Of two sources one would be ignored."""
    given["student"]["model"] = "google/vit-base-patch16-224"
    given["data"]["path"] = "."
    assert set(paths(given)) == {"student.config.model_type", "data.path"}
    assert set(paths({**given, "student": {}, "data": {}})) == {"student", "data"}


def test_all_problems_of_the_data_come_out_together(given):
    """A run that fails again at the next line costs a queue each time."""
    given["data"] = {
        "name": "glue/colaa",
        "path": ".",
        "augmentation": {"name": "crop_flop"},
        "metrics": ["acuracy"],
        "streaming": True,
        "problem_type": "single_label_classification",
    }
    given["training"].pop("max_steps")
    assert set(paths(given)) == {"data.path", "data.augmentation.name", "data.metrics", "training.max_steps"}
    given["data"] |= {"name": "cifar100", "augmentation": "crop_flip", "metrics": ["brier"], "streaming": False}
    parse_config(given)


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "vitt"), ("model_type", "clip_vision_model_"), ("num_labels", 3)]
)
def test_architectures_are_checked_before_anything_is_loaded(given, key, value):
    """`AutoConfig` takes any key; a classifier of the wrong size is trained for hours before anyone looks."""
    given["student"]["config"][key] = value
    assert f"student.config.{key}" in paths(given)


def test_folders_that_are_not_there_are_named(given):
    """The Hub's answer to a mistyped path is a login prompt."""
    given["teacher"]["model"] = "outputs/digits/techer"
    given["data"] = {"path": "rows.csv"}
    assert set(paths(given)) == {"teacher.model", "data.path"}


# ---- Files and overrides


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: [1\nteacher: 2", "config.yaml:2:"),
        ("seed: 1\nseed: 2", "duplicate key seed"),
        ("- seed", "got a list"),
        ("output_dir: ${nowhere}", "nowhere"),
        ("output_dir: ???", "output_dir: has no value yet"),
        ("seed: !!python/object:os.system x", "config.yaml:1:"),
    ],
)
def test_broken_files_are_refused_in_words(tmp_path, text, said):
    """A parser's traceback is no message."""
    with pytest.raises(ConfigError, match=said.replace("$", r"\$")):
        load_config(write(tmp_path, text))


def test_a_missing_file_names_its_neighbours(tmp_path):
    """Most missing files are mistyped ones."""
    write(tmp_path, "")
    with pytest.raises(ConfigError, match=r"no such file. Did you mean 'config.yaml'\?"):
        load_config(tmp_path / "confg.yaml")


def test_overrides_reach_everything(given, tmp_path):
    """An override that is parsed as a string, or dropped, compares a run with itself."""
    path = write(tmp_path, yaml.safe_dump(given))
    objective = "objective={ce_weight: 1, kd_weight: 1, losses: [{name: kd}]}"
    config = load_config(
        path,
        ["training.learning_rate=1e-4", "data.labelled=null", "method=null", objective, "seed=7"]
        + ["objective.losses.0.temperature.name=linear", "objective.losses[0].temperature.start=1e1"],
    )
    assert config.training["learning_rate"] == 1e-4
    assert (config.data.labelled, config.seed, config.method) == (None, 7, None)
    assert config.objective.losses == [{"name": "kd", "temperature": {"name": "linear", "start": 10.0}}]


def test_naming_another_method_keeps_or_drops_its_parameters_as_written(given, tmp_path):
    """`method.name=` under another method's parameters must not drop them in silence."""
    given["method"] = {"name": "ctkd", "start": 2.0}
    path = write(tmp_path, yaml.safe_dump(given))
    assert load_config(path, ["method=wttm"]).method == {"name": "wttm"}
    assert load_config(path, ["method=wttm", "method.gamma=0.5"]).method == {"name": "wttm", "gamma": 0.5}
    with pytest.raises(ConfigError, match=r"method\.start: unknown parameter of method 'wttm'"):
        load_config(path, ["method.name=wttm"])


@pytest.mark.parametrize("text", ["seed", "=3", "a..b=1", "seed =3", "method={name: kd", "objective.losses.7.name=kd"])
def test_malformed_overrides_are_refused_with_the_rest(given, tmp_path, text):
    """`seed` without a value must not become `seed: null`, nor hide what else is wrong."""
    del given["method"]
    given["objective"] = {"ce_weight": 1.0, "kd_weight": 1.0, "losses": [{"name": "kd"}]}
    path = write(tmp_path, yaml.safe_dump({**given, "sed": 1}))
    with pytest.raises(ConfigError) as caught:
        load_config(path, [text, "training.max_stps=3"])
    found = caught.value.problems
    assert any(text.partition("=")[0] in line for line in found)
    assert {"sed", "training.max_stps"} <= {line.split(":")[0] for line in found}


def test_a_bare_no_is_the_strategy_no(given, tmp_path):
    """YAML reads `save_strategy: no` as false, which the Trainer refuses."""
    path = write(tmp_path, yaml.safe_dump(given))
    assert load_config(path, ["training.save_strategy=no"]).training["save_strategy"] == "no"
    with pytest.raises(ConfigError, match=r"training\.optim"):
        load_config(path, ["training.optim=no"])


# ---- The resolved configuration


METHOD_SECTIONS = [
    *({"name": name} for name in METHODS),
    {"name": "wttm", "benchmark": "cifar100", "pair": "vgg13-vgg8"},
    {"name": "ctkd", "curriculum_epochs": 3, "temperature": {"start": 2.0}},
    {"name": "kd_annealed", "temperature": {"name": "cosine", "start": 3.0}},
    {"name": "kd", "temperature": {"name": "exponential", "end": 2.0}},
    {"name": "ttm", "gamma": 0.5},
    {"name": "kd", "temperature": [4.0, {"name": "ctkd", "start": 2.0}], "task_serialization": True},
    {"name": "mlkd", "benchmark": "imagenet", "batch_weight": 0.5},
]


@pytest.mark.parametrize("section", METHOD_SECTIONS, ids=lambda section: "-".join(map(str, section)) + section["name"])
def test_the_resolved_config_is_a_config_of_the_same_run(given, section):
    """Defaults that are only implied change with the next release, and the record with them."""
    if not build_objective(section["name"], num_labels=10).needs_teacher:
        del given["teacher"]
    config = parse_config({**given, "method": section})
    text = dump_resolved(config)
    again = parse_config(yaml.safe_load(text))
    assert yaml.safe_load(dump_resolved(again)) == yaml.safe_load(text)
    assert "benchmark" not in again.method
    assert {"ce_weight", "kd_weight"} <= again.method.keys()
    assert again.training["optim"] == "adamw_torch_fused"
    assert again.training["temperature_learning_rate"] == 0.05


def test_the_resolved_config_states_the_papers_values(given):
    """`pair: vgg13-vgg8` says nothing to someone without this version's table."""
    config = parse_config({**given, "method": {"name": "wttm", "benchmark": "cifar100", "pair": "vgg13-vgg8"}})
    assert yaml.safe_load(dump_resolved(config))["method"] == {
        "name": "wttm",
        "ce_weight": 1.0,
        "kd_weight": 2.25,
        "gamma": 0.1,
    }


# ---- Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The shipped teacher configuration of the digits, two steps of it."""
    folder = tmp_path_factory.mktemp("teacher")
    path = next(path for path in CONFIGS if path.name == "digits_teacher.yaml")
    run_experiment(load_config(path, [f"output_dir={folder}", *(f"training.{k}={v}" for k, v in QUICK.items())]))
    return folder


def quick(path, teacher, output, *overrides):
    settings = [f"training.{key}={value}" for key, value in QUICK.items()]
    named = [f"teacher.model={teacher}", "teacher.sanity_check=false"]  # two steps leave it near chance
    return load_config(path, [*named, f"output_dir={output}", *settings, *overrides])


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The shipped student configuration, two steps of it with a learned temperature."""
    folder = tmp_path_factory.mktemp("student")
    return run_experiment(quick(STUDENT, teacher, folder, "method=ctkd"))


def test_a_run_leaves_what_it_promises(student, teacher):
    """A number without its configuration, versions and data fingerprint cannot be repeated."""
    folder = Path(student.output_dir)
    results = json.loads((folder / "results.json").read_text())
    assert results["test"] == student.test
    assert {"loss", "accuracy"} <= results["validation"].keys()
    assert results["labelled_rows"] == 200 < results["train_rows"]
    assert results["student_parameters"] * 8 <= results["teacher_parameters"]
    assert len(results["data_fingerprint"]) == 12
    versions = json.loads((folder / "environment.json").read_text())
    assert {"python", "torch", "transformers", "datasets", "accelerate", "hf_kd"} <= versions.keys()
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert any("train_loss" in record for record in history)


def test_the_student_is_a_plain_model(student):
    """Helper state in the student's weights makes it load with warnings, or not at all, without this package."""
    model, info = AutoModelForImageClassification.from_pretrained(student.output_dir, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert model.config.id2label[3] == "3"
    image = load_task("embedded/digits").test[0]["image"]
    assert len(pipeline("image-classification", student.output_dir, top_k=3)(image)) == 3


def test_the_resolved_config_gives_the_same_numbers(student, teacher, tmp_path):
    """A record that does not reproduce its run is decoration."""
    path = Path(student.output_dir) / "resolved_config.yaml"
    again = run_experiment(load_config(path, [f"output_dir={tmp_path}"]))
    assert (again.validation, again.test) == (student.validation, student.test)


def test_the_student_starts_the_same_with_and_without_a_teacher(teacher, tmp_path):
    """Otherwise a baseline and a distilled student differ by their initial weights as well."""
    runs = [
        run_experiment(quick(STUDENT, teacher, tmp_path / "kd", "training.learning_rate=0")),
        run_experiment(
            quick(
                STUDENT, teacher, tmp_path / "alone", "training.learning_rate=0", "method.kd_weight=0", "teacher=null"
            )
        ),
    ]
    assert runs[0].test == runs[1].test
    assert runs[1].teacher_parameters is None


def test_a_run_resumes_from_its_last_checkpoint(teacher, tmp_path):
    """A resumed run must end where the uninterrupted one does, learned temperature included."""
    settings = ["training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2", "method=ctkd"]
    whole = run_experiment(quick(STUDENT, teacher, tmp_path / "run", *settings))
    with pytest.raises(ConfigError, match="holds checkpoints of a run already"):
        quick(STUDENT, teacher, tmp_path / "run", *settings)
    torn = tmp_path / "run" / "checkpoint-4"
    torn.rename(tmp_path / "last")
    resume = "training.resume_from_checkpoint=true"
    resumed = run_experiment(quick(STUDENT, teacher, tmp_path / "run", *settings, resume))
    assert resumed.test == whole.test
    resolved = yaml.safe_load((tmp_path / "run" / "resolved_config.yaml").read_text())
    assert "resume_from_checkpoint" not in resolved["training"]
    with pytest.raises(ConfigError, match=r"resume_from_checkpoint: is true, but .* holds no checkpoint"):
        quick(STUDENT, teacher, tmp_path / "other", resume)


def test_a_free_objective_runs(teacher, tmp_path):
    """The `objective` section must reach the trainer with its weights."""
    mix = "{ce_weight: 1, kd_weight: 2, losses: [{name: kd, temperature: {name: dtkd}}, {name: kd, loss_weight: 0.5}]}"
    result = run_experiment(quick(STUDENT, teacher, tmp_path, "method=null", f"objective={mix}"))
    assert result.method is None


def test_nothing_is_written_outside_the_output(teacher, tmp_path):
    """Metric scripts, dataset caches and lock files like to settle in the home and the working directory."""
    home, cwd, scratch, output = (tmp_path / name for name in ("home", "cwd", "tmp", "output"))
    for folder in (home, cwd, scratch):
        folder.mkdir()
    kept = ("PATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "SYSTEMROOT")
    environment = {key: os.environ[key] for key in kept if key in os.environ}
    environment |= {"HOME": str(home), "TMPDIR": str(scratch), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    settings = [f"training.{key}={value}" for key, value in {**QUICK, "logging_steps": 1}.items()]  # logs make plots
    command = [
        sys.executable,
        "-m",
        "hf_kd",
        "train",
        str(STUDENT),
        f"output_dir={output}",
        f"teacher.model={teacher}",
        "teacher.sanity_check=false",
    ]
    done = subprocess.run([*command, *settings], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert (output / "results.json").is_file()
    assert (output / "loss.png").is_file()
    left = [str(path) for folder in (home, cwd, scratch) for path in folder.rglob("*") if path.is_file()]
    assert left == []


@pytest.mark.slow
def test_two_processes_write_once_and_agree_with_one(teacher, tmp_path):
    """Launched on several processes, every rank would write and print, and the same global batch would differ."""
    settings = [f"training.{key}={value}" for key, value in QUICK.items() if key != "per_device_train_batch_size"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "hf_kd"]
    metrics = []
    for name, command, batch in (("one", [sys.executable, "-m", "hf_kd"], 16), ("two", launch, 8)):
        overrides = [f"output_dir={tmp_path / name}", f"teacher.model={teacher}", "training.use_cpu=true"]
        overrides += ["teacher.sanity_check=false"]
        overrides += [f"training.per_device_train_batch_size={batch}"]
        done = subprocess.run(
            [*command, "train", str(STUDENT), *settings, *overrides], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Saved in") == 1
        metrics.append(json.loads((tmp_path / name / "results.json").read_text())["test"]["loss"])
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)  # float32 sums in another order, over two steps


@pytest.fixture(scope="module")
def docstrings():
    return load_task("embedded/docstrings", max_samples=64)


def test_the_shipped_text_configs_run(docstrings, tmp_path):
    """Text takes other paths than images: tokenizer, vocabulary size, padding."""
    runs = {}
    for kind in ("teacher", "student"):
        path = next(path for path in CONFIGS if path.name == f"docstrings_{kind}.yaml")
        overrides = [f"output_dir={tmp_path / kind}", *(f"training.{k}={v}" for k, v in QUICK.items())]
        named = [f"teacher.model={tmp_path / 'teacher'}", "teacher.sanity_check=false"]
        overrides += named if kind == "student" else []
        runs[kind] = run_experiment(load_config(path, overrides), task=docstrings)
    assert runs["student"].student_parameters * 8 <= runs["student"].teacher_parameters
    text = pipeline("text-classification", runs["student"].output_dir)("returns the array of sums along an axis")
    assert text[0]["label"] in docstrings.label_names


# ---- What only the data can contradict


@pytest.fixture(scope="module")
def digits():
    return load_task("embedded/digits", max_samples=20)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"model_type": "bert"}, "student.config"),
        ({"model_type": "vit", "image_size": 32}, "student.config.image_size"),
        ({"model_type": "vit", "num_channels": 1}, "student.config.num_channels"),
        ({"model_type": "vit", "patch_size": 16}, "student.config.patch_size"),
    ],
)
def test_students_that_do_not_fit_the_data_are_refused_in_words(digits, settings, path):
    """The model's own message comes from the middle of its first forward."""
    with pytest.raises(ConfigError) as caught:
        build_student(StudentSection(config=settings), digits)
    assert caught.value.problems[0].startswith(f"{path}: ")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(docstrings):
    """Out-of-range ids are an index error on a CPU and a device assert on a GPU."""
    with pytest.raises(ConfigError, match=r"student\.config\.vocab_size"):
        build_student(StudentSection(config={"model_type": "bert", "vocab_size": 100}), docstrings)


def test_a_student_from_a_checkpoint_gets_a_new_head_and_float32(digits, tmp_path):
    """`from_pretrained` keeps the checkpoint's half precision, in which small updates vanish."""
    config = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "patch_size": 4}
    source = build_student(StudentSection(config=config), digits).half()
    source.config.id2label = {0: "cat", 1: "dog"}
    source.classifier = torch.nn.Linear(8, 2)
    source.save_pretrained(tmp_path)
    model = build_student(StudentSection(model=str(tmp_path)), digits)
    assert (model.dtype, model.config.num_labels, model.config.id2label[9]) == (torch.float32, 10, "9")


def test_a_teacher_that_cannot_be_loaded_is_named(digits, tmp_path):
    """The Hub's error says neither which section nor what to do."""
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"teacher\.model: "):
        build_teacher(TeacherSection(model=str(tmp_path)), digits)


def test_data_errors_carry_their_section(given):
    """`ValueError` from three calls down reads like a bug of the package."""
    given["data"]["labelled"] = 10**6
    with pytest.raises(ConfigError, match=r"data: `load_task\(labelled="):
        build_task(parse_config(given))

"""Every configuration in `configs/` runs as it stands, two steps long, against stand-ins of what it names on the Hub.

`stand_ins.py` holds tiny models and data under the real ids, with the real architectures, files and columns, and class
names where those are known; they are asked for over loopback by the real clients, in one process for all of them. What
this does not show is that the Hub holds what we think it does.
"""

import copy
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import config_jobs
import pytest
import stand_ins
import yaml
from hub_server import running_hub
from test_hub import run_job

from hf_kd.compare import load_comparison
from hf_kd.compare.plan import make_plan
from hf_kd.data import BENCHMARKS
from hf_kd.experiment import load_config
from hf_kd.registry import ConfigError

ROOT = Path(__file__).parents[1]
FILES = {str(path.relative_to(ROOT / "configs"))[:-5]: path for path in sorted((ROOT / "configs").glob("*/*.yaml"))}
FILES = {name: path for name, path in FILES.items() if not name.startswith("accelerate/")}  # those launch
COMPARISONS = {name: path for name, path in FILES.items() if "\ncompare:\n" in path.read_text(encoding="utf-8")}
FILES = {name: path for name, path in FILES.items() if name not in COMPARISONS}

NAME, POSITION, MAP = "name", "position", "map"
OWN, SAME = "its own", "the student's"
PAPERS = ("kd", "ctkd", "dtkd", "ttm", "wttm", "lskd", "normkd", "wsld", "dkd", "dist", "wkd_l")
EXPECTED = {  # method, how the classes are matched, whose inputs the teacher reads
    "cifar100/resnet32x4_teacher": (None, None, None),
    "cifar100/ten_epochs_teacher": (None, None, None),
    "cifar100/quick_teacher": (None, None, None),
    "cifar100/fast_teacher": (None, None, None),
    **{f"cifar100/resnet32x4_to_resnet8x4_{method}": (method, NAME, SAME) for method in PAPERS},
    "cifar100/convnext_t_to_deit_tiny_wttm": ("wttm", POSITION, OWN),
    "cifar100/swin_t_to_resnet18_dist": ("dist", NAME, SAME),
    "cifar100/vit_b_to_deit_tiny_dkd": ("dkd", NAME, OWN),
    "cifar100/vit_b_to_four_layers_dtkd": ("dtkd", NAME, SAME),
    "cifar100/vit_b_to_mobilenetv3_ctkd": ("ctkd", NAME, OWN),
    "cifar100/vit_b_to_vit_tiny_kd": ("kd", NAME, SAME),
    "imagenet/deit_b_to_deit_tiny_kd": ("kd", MAP, SAME),
    "imagenet/regnety_16gf_to_deit_tiny_hard_label": ("hard_label", MAP, OWN),
    "imagenet/resnet34_to_resnet18_wttm": ("wttm", MAP, OWN),
    "imagenet/resnet50_to_mobilenet_v1_wttm": ("wttm", MAP, OWN),
    "imagenet/resnet50_to_mobilenet_v2_dist": ("dist", MAP, OWN),
    "glue/cola_bert_to_distilbert_annealing": ("annealing_kd", POSITION, OWN),
    "glue/mnli_bert_to_bert_small_jensen_shannon": ("jensen_shannon", MAP, SAME),
    "glue/mnli_roberta_large_to_distilbert_wttm": ("wttm", NAME, OWN),
    "glue/mrpc_bert_four_layers_taid": ("taid", POSITION, SAME),
    "glue/sst2_bert_to_bert_tiny_kd": ("kd", POSITION, SAME),
    "glue/sst2_distilbert_to_bert_small_ctkd": ("ctkd", NAME, OWN),
    "glue/stsb_bert_to_bert_small_logit_mse": ("logit_mse", None, OWN),
    "clinc150/bert_lora_self_kd": ("kd", None, SAME),
    "clinc150/bert_to_bert_tiny_dkd": ("dkd", NAME, SAME),
    "clinc150/bert_to_distilbert_kd": ("kd", NAME, OWN),
    "clinc150/scratch_student": ("kd", NAME, SAME),
    "clinc150/scratch_teacher": (None, None, None),
    "banking77/bert_to_bert_small_dtkd": ("dtkd", NAME, SAME),
    "banking77/roberta_to_bert_lora_dist": ("dist", NAME, OWN),
    "banking77/roberta_to_distilbert_lskd": ("lskd", NAME, OWN),
    "banking77/scratch_student": ("kd", NAME, SAME),
    "banking77/scratch_teacher": (None, None, None),
}
ELSEWHERE = {"embedded/digits_student", "embedded/digits_teacher"}  # run by `test_demo.py`
ELSEWHERE |= {"embedded/docstrings_student", "embedded/docstrings_teacher"}
RUN = [name for name in FILES if name not in ELSEWHERE]
TRIED = {*ELSEWHERE, "cifar100/ten_epochs_teacher", "cifar100/quick_teacher"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of each configuration."""
    folder = tmp_path_factory.mktemp("configs")
    with running_hub() as hub:
        stand_ins.fill(hub, folder / "repositories")
        paths = [FILES[name] for name in RUN]
        done, _ = run_job(hub, folder / "home", "config_jobs", "run_all", folder, *paths)
    return {name: done[str(FILES[name])] for name in RUN}


def on_two_processes(folder, names):
    with running_hub() as hub:
        stand_ins.fill(hub, folder / "repositories")
        paths = [FILES[name] for name in names]
        done, _ = run_job(hub, folder / "home", "config_jobs", "run_on_two", folder, *paths)
    assert "error" not in done, done["error"]
    return {name: done[str(FILES[name])] for name in names}


def check_two(done, method):
    assert done["result"]["train_steps"] == 2
    assert done["result"]["method"] == method
    assert len(done["losses"]) == 2
    assert all(math.isfinite(loss) for loss in done["losses"])
    assert done["processes"] == 2
    assert {"results.json", "README.md", "model.safetensors", "adapter_model.safetensors"} & set(done["files"])
    assert done["result"]["metric"] in done["result"]["test"]


def lines_of(name):
    """What follows `hf-kd train` in the comment of a file, each with this checkout's path."""
    text = FILES[name].read_text(encoding="utf-8")
    comment = re.sub(r"\\\n#\s*", "", text.split("output_dir:")[0])
    found = [shlex.split(line) for line in re.findall(r"^#\s+hf-kd train (.+)$", comment, re.M)]
    return [[str(ROOT / path), *overrides] for path, *overrides in found]


def sections(name):
    return yaml.safe_load(FILES[name].read_text(encoding="utf-8"))


def test_every_file_is_known():
    """One that nobody runs is wrong before long. Students from scratch may lie with their teachers or not."""
    known = {*EXPECTED, *ELSEWHERE}
    assert set(FILES) <= known
    assert {name for name in known if not name.endswith("scratch_student")} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_right_without_any_network(name, tmp_path, monkeypatch):
    """A misspelt key is a minute's queue on someone's machine; the results lie where the file does."""
    monkeypatch.chdir(tmp_path)
    teacher = (sections(name).get("teacher") or {}).get("model", "")
    if teacher.startswith("./"):
        (tmp_path / teacher).mkdir(parents=True)  # another file's run
    config = load_config(FILES[name])
    assert config.output_dir == f"outputs/{name}"
    assert config.data.name.startswith(name.split("/")[0].replace("imagenet", "imagenet-1k"))
    assert config.data.name in BENCHMARKS or name in ELSEWHERE


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_it_is_and_how_it_is_run(name):
    """The command in the comment must be this file's; what is not from a paper, and what was never run, is said."""
    text = FILES[name].read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("#").strip() for line in text.split("output_dir:")[0].splitlines())
    assert re.findall(r"hf-kd train configs/(\S+)\.yaml", comment)[0] == name
    assert "Not in a paper" in comment or "From elsewhere" in comment
    is_tried = "scratch" in name or name in TRIED
    assert is_tried or re.search("Not tried, because it needs (the network|a GPU)", comment)


@pytest.mark.parametrize("name", RUN)
def test_a_file_runs_as_it_stands(outcomes, name):
    """From ids to a student with a card: columns, labels, tokenizers, formats and method all fit together."""
    done = outcomes[name]
    assert done["error"] is None, done["error"]
    method, matched, inputs = EXPECTED[name]
    result, teacher = done["result"], done["teacher"]
    assert (result["train_steps"], result["method"], len(done["losses"])) == (2, method, 2)
    assert all(math.isfinite(loss) for loss in done["losses"])
    assert result["metric"] == BENCHMARKS[result["data"]].metric
    assert result["metric"] in result["test"]
    assert {"results.json", "README.md", "loss.png"} <= set(done["files"])
    assert (teacher and teacher["inputs"]) == inputs
    assert (teacher and teacher["label_map"] and teacher["label_map"]["by"]) == matched
    training = sections(name)["training"]
    assert (done["evaluations"] > 2) == ("eval_strategy" in training)  # and twice at the end
    assert any(file.startswith("checkpoint") for file in done["files"]) == (training["save_strategy"] is not False)


def test_the_readmes_launch_line_runs_a_file_on_two_processes(tmp_path):
    """Rows that do not divide, files that both might write; and that it is two at all."""
    line = "accelerate launch --config_file configs/accelerate/multi_cpu.yaml -m hf_kd train CONFIG"
    assert f"{line} training.use_cpu=true" in (ROOT / "README.md").read_text(encoding="utf-8")
    command = ["accelerate.commands.launch", "--config_file", str(ROOT / "configs/accelerate/multi_cpu.yaml")]
    command += ["--main_process_port", "0", "-m", "hf_kd", "train", str(FILES["embedded/digits_teacher"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    done = subprocess.run(
        [sys.executable, "-m", *command, *config_jobs.QUICK, "data.max_samples=50"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    folder = tmp_path / "outputs/embedded/digits_teacher"
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [math.isfinite(record["loss"]) for record in log if "loss" in record] == [True, True]
    assert log[-1]["epoch"] == pytest.approx(2 / math.ceil(50 / 8)), "eight rows a step: two processes of four"
    assert (folder / "results.json").is_file()
    assert done.stdout.count("Saved in") == 1


@pytest.mark.slow
def test_every_file_runs_on_two_processes(tmp_path):
    """Adapters, relations over all processes, learned temperatures, streams, teachers with inputs of their own: what a
    process does not use, or both write, ends a launch. Those of the embedded sets are run too."""
    methods = {name: method for name, (method, _, _) in EXPECTED.items()} | dict.fromkeys(ELSEWHERE, None)
    for name, done in on_two_processes(tmp_path, FILES).items():
        method = sections(name).get("method") or {}
        check_two(done, methods[name] or (method if isinstance(method, str) else method.get("name")))


@pytest.mark.parametrize("name", FILES)
def test_every_command_in_a_file_is_right(name, tmp_path, monkeypatch):
    """A variant in a comment, with its overrides, is what a reader copies; nobody runs it otherwise."""
    monkeypatch.chdir(tmp_path)
    lines = lines_of(name)
    assert lines
    for path, *overrides in lines:
        assert Path(path) == FILES[name]
        teacher = (sections(name).get("teacher") or {}).get("model", "")
        if teacher.startswith("./"):
            (tmp_path / teacher).mkdir(parents=True, exist_ok=True)
        config = load_config(path, [*overrides, "training.use_cpu=true"])  # bfloat16 needs the right device
        assert len(lines) == 1 or config.output_dir.startswith("outputs/")


@pytest.mark.slow
def test_every_command_in_a_file_runs(tmp_path):
    """Two steps of each, in bfloat16 where it says so; teachers from scratch come first."""
    names = sorted(FILES, key=lambda name: "teacher" not in name)
    lines = [line for name in names for line in lines_of(name)]
    lines = [line for line in lines if "scratch_student" not in line[0] and "embedded" not in line[0]]
    with running_hub() as hub:
        stand_ins.fill(hub, tmp_path / "repositories")
        done, _ = run_job(hub, tmp_path / "home", "config_jobs", "run_lines", tmp_path, json.dumps(lines))
    assert len(done) == len(lines) >= 20
    for line, came in done.items():
        assert came["error"] is None, f"{line}:\n{came['error']}"
        assert len(came["losses"]) == 2, line


def test_classes_in_another_order_end_up_in_the_data_sets(outcomes):
    """Entailment is class 0 of the data, class 2 of RoBERTa's and class 1 of TextAttack's model."""
    groups = {name: done["teacher"]["label_map"]["groups"] for name, done in outcomes.items() if "mnli" in name}
    assert groups == {
        "glue/mnli_roberta_large_to_distilbert_wttm": [[2], [1], [0]],
        "glue/mnli_bert_to_bert_small_jensen_shannon": [[1], [2], [0]],
    }


def test_the_two_cranes_of_imagenet_are_told_apart(outcomes):
    """Models call both crane and the data set one of them crane2: without the map every teacher would be refused."""
    for name, done in outcomes.items():
        if name.startswith("imagenet"):
            label_map = done["teacher"]["label_map"]
            assert label_map["groups"] == [[index] for index in range(1000)], name
            assert label_map["student_labels"][517] == "crane2"
            is_stream = sections(name)["data"].get("streaming", False)
            assert ("streamed and not counted" in done["result"]["data_description"]) == is_stream


def test_students_are_what_their_names_say(outcomes):
    """Two are grown from layers of their teachers, and two train an adapter and leave a plain model too."""
    for name, done in outcomes.items():
        grown = done["models"]["student"].get("initialised")
        assert bool(grown) == ("four_layers" in name), name
        assert ("merged" in done["files"]) == ("lora" in name), name
        if grown:
            assert grown[0].startswith("Student layers 0 to 3 from teacher layers 0, 1, 3, 4"), grown
    timm = outcomes["cifar100/vit_b_to_mobilenetv3_ctkd"]["models"]
    assert timm["student"]["architecture"] == "TimmWrapperForImageClassification"


def test_every_model_named_has_a_stand_in_and_none_is_left_over():
    """A stand-in that no file names says nothing about any of them."""
    keys = [section.get(key) for name in RUN for section in _models(name) for key in ("model", "processor")]
    hub = {key for key in keys if key and not key.startswith("./") and key != "self"}
    assert hub == set(stand_ins.MODELS)
    assert all(key.count("/") == 1 for key in hub), "an id without its owner is redirected"


def _models(name):
    content = sections(name)
    return [content["student"], content.get("teacher") or {}]


@pytest.mark.parametrize("name", [name for name in RUN if "scratch" not in name])
def test_pickled_weights_are_allowed_only_where_there_are_no_others(name):
    """Each such model in the files is one whose repository has no safetensors, as the stand-ins have it."""
    for section in _models(name):
        model = section.get("model")
        if model not in (None, "self") and model[0] != "." and not section.get("from_scratch"):
            assert section.get("use_safetensors", True) != stand_ins.MODELS[model][2], model


# ---- Comparisons


def planned(name, folder, monkeypatch, *overrides):
    """The comparison of a file, checked whole; the teachers that it names are other files' runs."""
    monkeypatch.chdir(folder)
    mapping, section = load_comparison(COMPARISONS[name], ["training.use_cpu=true", *overrides])
    pairs = [pair or {} for pair in (section.get("pairs") or {}).values()]
    for given in (mapping, *pairs):
        if "teacher" in given:
            (folder / given["teacher"]["model"]).mkdir(parents=True, exist_ok=True)
    return make_plan(mapping, section)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_is_right_without_any_network(name, tmp_path, monkeypatch):
    """A method that one pair cannot have, or a key that is misspelt, is found after a night of the others."""
    plan = planned(name, tmp_path, monkeypatch)
    assert str(plan.folder) == f"outputs/{name}"
    assert len(plan.section.seed_list) >= 3, "fewer seeds give no verdict"
    assert [method.label for method in plan.methods][0] == "alone"
    for path in plan.section.train_first:
        assert (ROOT / path).is_file()
        assert f"./{load_config(ROOT / path).output_dir}" == plan.config["teacher"]["model"]


def key_paths(content, prefix=()):
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from key_paths(value, (*prefix, key))


@pytest.mark.parametrize("name", ["cifar100/quick", "embedded/compare_digits"])
def test_a_typo_in_any_key_of_a_comparison_is_refused_at_its_path(name, tmp_path, monkeypatch):
    """One that is ignored compares what nobody asked for, all night."""
    planned(name, tmp_path, monkeypatch)  # makes the teacher's folder
    content = yaml.safe_load(COMPARISONS[name].read_text(encoding="utf-8"))
    for *parents, key in key_paths(content):
        typo = copy.deepcopy(content)
        section = typo
        for parent in parents:
            section = section[parent]
        mistyped = key[:-1] + "q"
        section[mistyped] = section.pop(key)
        given = typo.pop("compare", None)
        with pytest.raises(ConfigError) as caught:
            make_plan(typo, given)
        said = [line.split(":")[0] for line in caught.value.problems]
        assert ".".join([*parents, mistyped]) in said or not parents, (key, caught.value.problems)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_says_what_it_is_and_how_it_is_run(name, tmp_path, monkeypatch):
    """What follows `hf-kd` in the comment is what a reader copies."""
    text = COMPARISONS[name].read_text(encoding="utf-8")
    comment = re.sub(r"\\\n#\s*", "", text.split("output_dir:")[0])
    words = " ".join(line.removeprefix("#").strip() for line in comment.splitlines())
    assert "Not in a paper" in words or "From elsewhere" in words
    lines = [shlex.split(line) for line in re.findall(r"^#\s+hf-kd (.+)$", comment, re.M)]
    for command, path, *overrides in lines:
        if command == "compare":
            assert path == f"configs/{name}.yaml"
            planned(name, tmp_path, monkeypatch, *overrides)
        elif command == "train":
            load_config(ROOT / path, [*overrides, "training.use_cpu=true"])
        else:
            assert (command, path) == ("report", f"outputs/{name}")
    assert "compare" in [line[0] for line in lines]


def test_the_quick_look_runs_from_nothing_and_leaves_a_report(tmp_path):
    """A fresh checkout has no teacher; a comparison that needs two other commands first is not quick."""
    with running_hub() as hub:
        stand_ins.fill(hub, tmp_path / "repositories")
        path = COMPARISONS["cifar100/quick"]
        done, _ = run_job(hub, tmp_path / "home", "config_jobs", "compare", tmp_path, path, ROOT)
    assert done["states"] == {"finished": 2}
    assert done["teacher_accuracy"] is not None
    assert done["page"] > 10_000

"""A comparison: equal terms for all methods, nothing lost or run twice, and no number that flatters."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import classifier
from typer.testing import CliRunner

from hf_kd import load_task
from hf_kd.cli import app
from hf_kd.compare import compare, load_comparison, single
from hf_kd.compare.book import read_lines, student_name
from hf_kd.compare.hardware import hardware
from hf_kd.compare.plan import make_plan
from hf_kd.compare.section import slug
from hf_kd.experiment import (
    TrainingStopped,
    cached_teacher,
    fill_cache,
    load_config,
    parse_config,
    run_experiment,
    running,
)
from hf_kd.experiment.build import build_task
from hf_kd.registry import ConfigError
from hf_kd.teacher_cache import TeacherCache
from hf_kd.test_rows import read_test_rows

FEATURES = {"ce_weight": 1.0, "kd_weight": 1.0, "losses": [{"name": "feature_mse"}]}
METHODS = (
    "kd",
    {"label": "kd T=2", "name": "kd", "temperature": 2.0},
    "ctkd_instance",
    {"label": "features", "objective": FEATURES},
)
CLOCK = ("train_seconds", "total_seconds", "latency_ms", "finished_at", "resumed_from", "versions", "hardware")
"""Parts of a line that a clock or a process decides."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "teacher"
    task = load_task("embedded/digits", max_samples=40)
    ids = {"id2label": task.id2label, "label2id": task.label2id}
    classifier("vit", 9, classes=10, **ids).save_pretrained(folder)
    task.processing_class.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch, loaded={}):  # noqa: B006 - kept between tests: reading the digits is half of a short run
    def build(config):
        key = config.data.model_dump_json()
        loaded[key] = loaded.get(key) or build_task(config)
        return loaded[key]

    monkeypatch.setattr(single, "build_task", build)


def configuration(teacher, folder):
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "output_dir": str(folder),
        "teacher": {"model": teacher, "sanity_check": False},
        "student": {"config": {"model_type": "vit", "patch_size": 4, **encoder}},
        "data": {"name": "embedded/digits", "max_samples": 60},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-2,
            "report_to": "none",
            "dataloader_pin_memory": False,
            "save_strategy": "no",
        },
    }


@pytest.fixture
def given(teacher, tmp_path):
    return configuration(teacher, tmp_path / "comparison")


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    """A comparison that is over, of everything that is looked at below and not changed."""
    given = configuration(teacher, tmp_path_factory.mktemp("finished") / "comparison")
    return given, compare(given, section(METHODS, seeds=2, latency=True, name="digits"))


@pytest.fixture
def small(given, finished):
    """The same for the student alone and KD under one seed, in a folder that may be changed."""
    source, target = folder_of(finished[0]), folder_of(given)
    known = json.loads((source / "comparison.json").read_text())
    known["seeds"], known["methods"] = [0], known["methods"][:2]
    known["pairs"][0]["methods"] = ["alone", "kd"]
    lines = [line for line in read_lines(source) if line["method"] in ("alone", "kd") and line["seed"] == 0]
    for line in lines:
        shutil.copytree(source / line["folder"], target / line["folder"])
    (target / "comparison.json").write_text(json.dumps(known))
    (target / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return given


def section(methods=("kd",), seeds=1, **options):
    return {"methods": list(methods), "seeds": seeds, "latency": False, **options}


def with_training(given, **values):
    return {**given, "training": {**given["training"], **values}}


def folder_of(given):
    return Path(given["output_dir"])


def lines_of(given):
    return {(line["pair"], line["method"], line["seed"]): line for line in read_lines(folder_of(given))}


def without_clock(lines):
    return {key: {k: v for k, v in line.items() if k not in CLOCK} for key, line in lines.items()}


def started(given, comparison, **keywords):
    """Run it; which runs were started."""
    events = []
    result = compare(given, comparison, on_event=events.append, **keywords)
    return result, [(e["pair"], e["method"], e["seed"]) for e in events if e["kind"] == "start"]


def refused(given, comparison):
    with pytest.raises(ConfigError) as caught:
        compare(given, comparison)
    return caught.value.problems


# ---- Equal terms


def test_methods_begin_alike_and_see_the_same_rows(finished):
    """Else a difference is luck: what a method draws for itself must not reach the student or the data."""
    given, result = finished
    begun = {}
    for (_, _, seed), line in lines_of(given).items():
        assert line["state"] == "finished", line
        begun.setdefault(seed, set()).add((line["initial_weights"], line["data_order"]))
    assert [len(kinds) for kinds in begun.values()] == [1, 1]
    (first,), (second,) = begun.values()
    assert first[0] != second[0], "another seed, other weights"
    assert first[1] != second[1], "another seed, another order"
    assert None not in first + second
    assert result.summary["warnings"] == []


def test_a_run_of_a_comparison_is_the_run_it_stands_for(finished, tmp_path):
    """`hf-kd train` of what it wrote down gives its numbers, so anybody can look at one closely."""
    given, _ = finished
    for label in ("alone", "ctkd_instance"):
        line = lines_of(given)["default", label, 1]
        written = folder_of(given) / line["folder"] / "resolved_config.yaml"
        result = run_experiment(load_config(written, [f"output_dir={tmp_path / label}"]))
        assert result.test == line["test"]
        assert result.validation == line["validation"]
        assert read_test_rows(tmp_path / label).prediction.tolist() == rows_of(given, line).prediction.tolist()


def rows_of(given, line):
    return read_test_rows(folder_of(given) / line["folder"])


def test_the_student_alone_learns_from_labels_alone(finished):
    given, _ = finished
    resolved = yaml.safe_load((folder_of(given) / "runs/default/alone/seed0/resolved_config.yaml").read_text())
    assert resolved["objective"]["kd_weight"] == 0
    assert resolved["objective"]["ce_weight"] == 1
    other = yaml.safe_load((folder_of(given) / "runs/default/kd/seed0/resolved_config.yaml").read_text())
    differing = {key for key in {**resolved, **other} if resolved.get(key) != other.get(key)}
    assert differing == {"output_dir", "objective", "method"}


# ---- What is written


def test_folder_holds_what_the_report_reads(finished):
    given, result = finished
    folder, labels = folder_of(given), ["alone", "kd", "kd T=2", "ctkd_instance", "features"]
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison == json.loads(json.dumps(result.comparison))
    assert comparison["format"] == 1
    assert (comparison["name"], comparison["metric"], comparison["greater_is_better"]) == ("digits", "accuracy", True)
    assert (comparison["protocol"], comparison["seeds"]) == ("last", [0, 1])
    assert [method["label"] for method in comparison["methods"]] == labels
    assert [method["baseline"] for method in comparison["methods"]] == [True, False, False, False, False]
    assert comparison["methods"][1]["section"]["temperature"] == 4.0, "every default spelled out"
    (pair,) = comparison["pairs"]
    assert (pair["name"], pair["student"]) == ("default", "vit")
    assert pair["methods"] == labels
    assert comparison["data"]["train_rows"] == comparison["data"]["test_rows"] == 60
    assert {"versions", "hardware", "config", "command"} <= comparison.keys()
    for (_, _, seed), line in lines_of(given).items():
        assert line["folder"] == f"runs/default/{slug(line['method'])}/seed{seed}"
        assert line["test"]["accuracy"] == pytest.approx(rows_of(given, line).right.mean())
        assert line["teacher_test"] == {"accuracy": pytest.approx(line["test"]["teacher_accuracy"])}
        assert line["latency_ms"] > 0
        assert line["teacher_parameters"] > line["student_parameters"] > 0
        assert line["train_steps"] == 2
        kept = {path.name for path in (folder / line["folder"]).iterdir()}
        assert {"results.json", "trainer_state.json", "test_rows.safetensors", "teacher.json"} <= kept
        assert not [name for name in kept if name.startswith(("model", "checkpoint", "distillation_state"))]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["runs"] == {"wanted": 10, "finished": 10, "failed": 0}
    kd = summary["pairs"]["default"]["methods"][1]
    assert kd["n"] == kd["to_baseline"]["n"] == 2
    assert kd["to_baseline"]["verdict"] is None
    assert kd["to_baseline"]["rows_ci"] is not None
    assert summary["pairs"]["default"]["reference"] == "kd"


def test_hardware_is_known():
    found = hardware()
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["memory"] is None or found["memory"] > 2**28


# ---- The teacher


def test_the_teacher_is_loaded_once_and_asked_once(given, monkeypatch):
    loads = counted(monkeypatch)
    compare(given, section(["kd"]))
    assert loads == ["cache"]
    compare(given, section(["kd", "ttm"]))
    assert loads == ["cache"], "its answers are all there"


def test_a_teacher_that_runs_is_loaded_once(given, monkeypatch):
    """Augmented images are others each time, so it answers in each run; loading it each time would be waste."""
    loads = counted(monkeypatch)
    live = {**given, "data": {**given["data"], "augmentation": "crop_flip"}}
    events = []
    compare(live, section(["kd"]), on_event=events.append)
    assert loads == ["live"]
    line = lines_of(given)["default", "kd", 0]
    written = folder_of(given) / line["folder"] / "resolved_config.yaml"
    alone = run_experiment(load_config(written, [f"output_dir={given['output_dir']}-one"]))
    assert alone.test == line["test"], "the runs before it leave no trace in the teacher"
    assert "views" in events[0]["teachers"]["default"]


def counted(monkeypatch):
    loads = []
    for name, module in (("cache", cached_teacher), ("live", single)):
        real = module.build_teacher
        monkeypatch.setattr(
            module, "build_teacher", lambda *args, name=name, real=real: loads.append(name) or real(*args)
        )
    return loads


def test_a_cache_without_what_a_method_looks_at_is_refused_at_once(given, tmp_path):
    cached = {**given, "teacher_cache": {"dir": str(tmp_path / "cache")}}
    fill_cache(parse_config({**cached, "method": {"name": "kd"}}))
    assert TeacherCache(tmp_path / "cache").num_features is None
    (problem,) = refused(cached, section(["kd", {"label": "features", "objective": FEATURES}]))
    assert problem.startswith("compare.methods.1: looks at the teacher's pooled features")


def test_without_a_comparison_to_the_teacher_the_student_alone_has_none(given):
    silent = with_training(given, evaluate_with_teacher=False)
    compare(silent, section())
    assert lines_of(given)["default", "alone", 0]["teacher_parameters"] is None
    assert "agreement" not in lines_of(given)["default", "kd", 0]["test"]
    assert rows_of(given, lines_of(given)["default", "kd", 0]).teacher_prediction is None


# ---- Protocols


def test_best_test_is_beside_the_last_epoch_and_said_to_flatter(given, tmp_path):
    """The last epoch's number is the same as without looking: looking at the test split must not change training."""
    three = with_training(given, max_steps=-1, num_train_epochs=3)
    plain = {**three, "output_dir": given["output_dir"] + "-last"}
    compare(plain, section())
    result = compare(three, section(protocol="best_test"))
    for key, line in lines_of(given).items():
        assert line["test"] == lines_of(plain)[key]["test"]
        assert line["best_test_accuracy"] >= line["test"]["accuracy"]
        history = json.loads((folder_of(given) / line["folder"] / "trainer_state.json").read_text())["log_history"]
        by_epoch = [record["test_accuracy"] for record in history if "test_accuracy" in record]
        assert len(by_epoch) == 3
        assert line["best_test_accuracy"] == max(by_epoch)
        assert by_epoch.index(max(by_epoch)) + 1 == line["best_test_epoch"]
        assert by_epoch[-1] == line["test"]["accuracy"]
    assert "flatter" in result.summary["warnings"][0]
    assert "best_test" in result.summary["pairs"]["default"]["methods"][0]
    words = shown_again(three, section(protocol="best_test"), tmp_path)
    assert "best epoch, chosen by test" in words
    assert "WARNING: best_test" in words


def shown_again(given, comparison, tmp_path):
    """What the command says of a comparison that is over."""
    shown = CliRunner().invoke(app, ["compare", write(given, comparison, tmp_path)])
    assert shown.exit_code == 0, shown.output
    return " ".join(shown.output.split())


def test_best_validation_scores_the_student_that_validation_chose(given):
    three = with_training(given, max_steps=-1, num_train_epochs=3)
    compare(three, section(protocol="best_validation", keep_models=True))
    for line in lines_of(given).values():
        assert (folder_of(given) / line["folder"] / "model.safetensors").is_file(), "kept where asked"
        assert line["best_model"]["is_saved"]
        assert line["validation"]["accuracy"] == pytest.approx(line["best_model"]["value"])
        assert not list((folder_of(given) / line["folder"]).glob("checkpoint-*"))


# ---- Starting again


def test_finished_runs_are_not_run_again_and_others_may_be_added(small):
    given = small
    before = lines_of(given)
    result, again = started(given, section(["kd"], seeds=[0]))
    assert again == []
    assert result.summary["runs"]["finished"] == 2
    result, added = started(given, section(["kd", "ttm"], seeds=[0, 1]))
    assert len(added) == 4
    assert not {("default", "alone", 0), ("default", "kd", 0)} & set(added)
    assert {key: lines_of(given)[key] for key in before} == before
    assert result.comparison["seeds"] == [0, 1]
    assert result.summary["runs"] == {"wanted": 6, "finished": 6, "failed": 0}
    result, fewer = started(given, section(["kd"], seeds=[2]))
    assert fewer == [("default", "alone", 2), ("default", "kd", 2)]
    assert result.comparison["seeds"] == [0, 1, 2]
    assert result.summary["pairs"]["default"]["incomplete"] == [{"method": "ttm", "seed": 2, "state": "missing"}]


def test_half_a_line_is_cut_and_its_run_run_again(small):
    """A machine that went down while it wrote: the next line must not be glued to that half."""
    given, whole = small, lines_of(small)
    path = folder_of(given) / "results.jsonl"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:40]}")
    _, again = started(given, section(seeds=1))
    assert again == [("default", "kd", 0)]
    assert without_clock(lines_of(given)) == without_clock(whole)
    assert len(path.read_text().splitlines()) == 2


def test_a_failed_run_is_on_record_and_tried_again(small, monkeypatch):
    real = single.run_experiment

    def run(config, **keywords):
        if config.seed == 1 and config.method is not None:
            raise FloatingPointError("the loss became NaN\nat step 3")
        return real(config, **keywords)

    given = small
    monkeypatch.setattr(single, "run_experiment", run)
    result = compare(given, section(["kd"], seeds=2))
    failed = [line for line in read_lines(folder_of(given)) if line["state"] == "failed"]
    assert [(line["method"], line["seed"]) for line in failed] == [("kd", 1)]
    assert failed[0]["error"] == "FloatingPointError: the loss became NaN at step 3"
    assert "Traceback" in (folder_of(given) / failed[0]["folder"] / "error.txt").read_text()
    assert [line["method"] for line in result.failed] == ["kd"]
    assert result.summary["runs"] == {"wanted": 4, "finished": 3, "failed": 1}
    monkeypatch.setattr(single, "run_experiment", real)
    result, again = started(given, section(["kd"], seeds=2))
    assert again == [("default", "kd", 1)]
    assert result.failed == []
    assert result.summary["runs"] == {"wanted": 4, "finished": 4, "failed": 0}


def test_a_stopped_run_goes_on_from_its_checkpoint(given, monkeypatch):
    """With the numbers of one that was not stopped, and by the weights and rows it began with."""
    longer = with_training(given, max_steps=6)
    other = {**longer, "output_dir": given["output_dir"] + "-whole"}
    compare(other, section())
    real = single.Steps.on_step_end

    def stop(self, args, state, control, **keywords):
        if state.global_step == 3 and "kd" in args.output_dir.split("/"):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, args, state, control, **keywords)

    monkeypatch.setattr(single.Steps, "on_step_end", stop)
    with pytest.raises(TrainingStopped, match="the same command goes on"):
        compare(longer, section())
    assert list(lines_of(given)) == [("default", "alone", 0)]
    assert [path.name for path in folder_of(given).glob("runs/default/kd/seed0/checkpoint-*")] == ["checkpoint-3"]
    monkeypatch.setattr(single.Steps, "on_step_end", real)
    _, again = started(longer, section())
    assert again == [("default", "kd", 0)]
    assert lines_of(given)["default", "kd", 0]["resumed_from"] == "checkpoint-3"
    assert without_clock(lines_of(given)) == without_clock(lines_of(other))


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_taken_up_again(given, tmp_path, jobs):
    """Nothing is lost or run twice, and the numbers are those of an uninterrupted comparison.

    It is killed without a chance to speak; its workers, if it has some, notice, save and end.
    """
    longer = with_training(given, max_steps=40)
    comparison = section(["kd", "ttm", "dkd"])
    other = {**longer, "output_dir": given["output_dir"] + "-whole"}
    compare(other, comparison)
    path = tmp_path / "config.yaml"
    saving = with_training(longer, save_strategy="steps", save_steps=10)
    path.write_text(yaml.safe_dump({**saving, "compare": {**comparison, "jobs": jobs}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_kd", "compare", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: read_lines(folder_of(given)), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines_of(given)
    assert 1 <= len(before) < 4
    wait_for(lambda: not workers_of(folder_of(given)))
    result, again = started(longer, comparison)
    assert len(again) == 4 - len(before)
    assert not set(again) & set(before)
    assert without_clock(lines_of(given)) == without_clock(lines_of(other))
    whole = json.loads((folder_of(other) / "summary.json").read_text())
    assert result.summary["pairs"] == whole["pairs"]


def wait_for(condition, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        assert process is None or process.poll() is None, "it ended too soon"
        time.sleep(0.05)


def workers_of(folder):
    """Processes whose log lies in `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in os.readlink(entry / "fd" / "2") and "zombie" not in (entry / "status").read_text():
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_side_by_side_gives_the_same_numbers(small):
    """Processes of their own, each with its share of the cores, and the numbers of one process."""
    other = {**small, "output_dir": small["output_dir"] + "-two"}
    events = []
    compare(other, section(jobs=2), on_event=events.append)
    assert without_clock(lines_of(other)) == without_clock(lines_of(small))
    assert {event["kind"] for event in events} == {"plan", "start", "step", "line"} | {"teacher"}
    assert lines_of(other)["default", "kd", 0]["hardware"]["threads"] == 1
    assert workers_of(folder_of(other)) == []


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_run_alone(given):
    """Memory that runs out kills a process, not the comparison."""
    longer = with_training(given, max_steps=60)
    victims = []

    def shoot(event):
        if event["kind"] == "step" and event["method"] == "kd" and not victims:
            victims.extend(workers_of(folder_of(given)))
            for pid in victims:
                os.kill(int(pid), signal.SIGKILL)

    result = compare(longer, section(["kd", "ttm"], jobs=2), on_event=shoot)
    assert victims
    assert "kd" in [line["method"] for line in result.failed]
    assert "killed" in result.failed[0]["error"]
    assert "worker-" in result.failed[0]["error"]
    assert ("default", "ttm", 0) in lines_of(given)


# ---- Refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, s: (with_training(g, learning_rate=0.5), s), "training.learning_rate was 0.01 and is 0.5"),
        (lambda g, s: ({**g, "data": {**g["data"], "max_samples": 50}}, s), "data.max_samples was 60 and is 50"),
        (lambda g, s: (g, {**s, "methods": [{"name": "kd", "temperature": 2.0}]}), "temperature was 4.0 and is 2.0"),
        (lambda g, s: (g, {**s, "protocol": "best_test"}), "protocol was 'last' and is 'best_test'"),
    ],
)
def test_another_comparison_in_the_folder_is_refused(small, change, words):
    """Runs of two settings in one table look like a comparison and are none."""
    given = small
    before = (folder_of(given) / "results.jsonl").read_bytes()
    (problem,) = refused(*change(given, section()))
    assert problem.startswith("output_dir:")
    assert words in problem
    assert (folder_of(given) / "results.jsonl").read_bytes() == before


def test_what_decides_no_number_may_change(small):
    moved = with_training(small, disable_tqdm=False, dataloader_num_workers=0)
    _, again = started(moved, section(keep_models=True))
    assert again == []


def test_other_rows_in_the_folder_are_refused(small):
    given = small
    path = folder_of(given) / "comparison.json"
    known = json.loads(path.read_text())
    known["data"]["fingerprint"] = "0" * 12
    path.write_text(json.dumps(known))
    (problem,) = refused(given, section(seeds=2))
    assert problem.startswith("data: the rows are others")


def test_results_of_nobody_knows_what_are_refused(given):
    folder_of(given).mkdir()
    (folder_of(given) / "results.jsonl").write_text("{}\n")
    (problem,) = refused(given, section())
    assert "without the comparison.json" in problem


def test_a_damaged_line_is_named(small):
    given = small
    path = folder_of(given) / "results.jsonl"
    path.write_text("no JSON\n" + path.read_text())
    (problem,) = refused(given, section())
    assert "line 1 of" in problem


def test_two_comparisons_do_not_write_into_one_folder(given, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 0)
    with running.only_run_in(folder_of(given)):
        (problem,) = refused(given, section())
    assert "another run is going on" in problem


def test_several_processes_of_a_launcher_are_refused(given, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (problem,) = refused(given, section())
    assert "without torchrun" in problem


FREE = {"ce_weight": 1.0, "kd_weight": 1.0, "losses": [{"name": "kd"}]}


@pytest.mark.parametrize(
    ("methods", "place", "words"),
    [
        (["kdd"], "compare.methods.0", "Did you mean 'kd'"),
        (["kd", {"name": "dkd", "alfa": 1}], "compare.methods.1.alfa", "Did you mean 'alpha'"),
        (["kd", "KD"], "compare.methods.1", "as compare.methods.0 is"),
        (["kd", {"label": "kd", "name": "dkd"}], "compare.methods.1", "Tell them apart"),
        (["alone"], "compare.methods.0", "always compared"),
        ([{"temperature": 2}], "compare.methods.0", "needs the `name`"),
        ([{"objective": FREE}], "compare.methods.0.label", "required"),
        ([{"label": "x", "objective": FREE, "name": "kd"}], "compare.methods.0", "name stands beside it"),
        ([{"label": "", "name": "kd"}], "compare.methods.0.label", "expected a name"),
        ([{"label": "x", "objective": {**FREE, "losses": [{"name": "kkd"}]}}], "compare.methods.0.objective", "kkd"),
    ],
)
def test_methods_are_checked_before_anything_is_loaded(given, methods, place, words):
    with pytest.raises(ConfigError) as caught:
        make_plan({**given, "teacher": {"model": "some/teacher"}}, section(methods))
    assert [line for line in caught.value.problems if line.startswith(place) and words in line], caught.value.problems


@pytest.mark.parametrize(
    ("changed", "place"),
    [
        ({"methods": []}, "compare.methods"),
        ({"seeds": 0}, "compare.seeds"),
        ({"seeds": [1, 1]}, "compare.seeds"),
        ({"seeds": ["a"]}, "compare.seeds.0"),
        ({"protocol": "best"}, "compare.protocol"),
        ({"jobs": 0}, "compare.jobs"),
        ({"baseline": "kd"}, "compare.baseline"),
        ({"seed": 1}, "compare.seed"),
        ({"pairs": {}}, "compare.pairs"),
        ({"pairs": {"a b": None, "a-b": None}}, "compare.pairs.a-b"),
        ({"pairs": {"a": {"treacher": {}}}}, "compare.pairs.a.treacher"),
        ({"pairs": {"a": {"methods": {"dkd": {"beta": 1}}}}}, "compare.pairs.a.methods.dkd"),
        ({"pairs": {"a": {"methods": {"kd": {"tau": 1}}}}}, "compare.pairs.a.methods.kd.tau"),
        ({"pairs": {"a": {"training": {"learnin_rate": 1}}}}, "compare.pairs.a.training.learnin_rate"),
        ({"pairs": {"a": {"training": {"push_to_hub": True}}}}, "compare.pairs.a.training.push_to_hub"),
    ],
)
def test_the_section_is_checked(given, changed, place):
    with pytest.raises(ConfigError) as caught:
        make_plan(given, {**section(), **changed})
    assert [line.split(": ")[0] for line in caught.value.problems] == [place]


def test_all_problems_are_said_at_once(given):
    wrong = with_training({**given, "output_dir": None}, load_best_model_at_end=True, learnin_rate=1)
    with pytest.raises(ConfigError) as caught:
        make_plan(wrong, section(["kdd", "dkd", "dkd"]))
    places = {line.split(": ")[0] for line in caught.value.problems}
    expected = {"output_dir", "training.load_best_model_at_end", "training.learnin_rate"}
    assert places == expected | {"compare.methods.0", "compare.methods.2"}


def test_what_the_run_says_of_method_and_seed_is_not_silently_dropped(given):
    found = make_plan({**given, "method": {"name": "dkd"}, "seed": 7}, section())
    assert [note.split("`")[1] for note in found.notes] == ["method", "seed"]


def test_a_run_with_the_section_is_sent_to_the_command(given, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**given, "method": {"name": "kd"}, "compare": section()}))
    with pytest.raises(ConfigError, match="this section is for `hf-kd compare`"):
        load_config(path)


# ---- Pairs


def test_pairs_have_their_own_teacher_student_and_settings(given, teacher, tmp_path):
    task = load_task("embedded/digits", max_samples=40)
    ids = {"id2label": task.id2label, "label2id": task.label2id}
    classifier("vit", 3, classes=10, **ids).save_pretrained(tmp_path / "other")
    task.processing_class.save_pretrained(tmp_path / "other")
    pairs = {
        "Big One": {"training": {"learning_rate": 1e-3}, "methods": {"kd": {"temperature": 2.0}}},
        "other": {"teacher": {"model": str(tmp_path / "other")}},
    }
    pairs["other"]["student"] = {"config": {**given["student"]["config"], "hidden_size": 8}}
    cached = {**given, "teacher_cache": {"dir": str(tmp_path / "cache")}}
    result, runs = started(cached, section(pairs=pairs))
    assert [run[:2] for run in runs] == [(pair, label) for pair in pairs for label in ("alone", "kd")]
    first, second = result.comparison["pairs"]
    assert (first["teacher"], second["teacher"]) == (teacher, str(tmp_path / "other"))
    assert result.comparison["methods"][1]["section"]["temperature"] == 2.0
    assert second["sections"]["kd"]["temperature"] == 4.0, "what it has otherwise than the first"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["big-one", "other"]
    resolved = yaml.safe_load((folder_of(given) / "runs/big-one/kd/seed0/resolved_config.yaml").read_text())
    assert resolved["training"]["learning_rate"] == 1e-3
    assert resolved["teacher"]["sanity_check"] is False, "what the pair does not say is the run's"
    sizes = {key[0]: line["student_parameters"] for key, line in lines_of(given).items()}
    assert sizes["other"] < sizes["Big One"]
    assert set(result.summary["pairs"]) == {"Big One", "other"}
    _, again = started(cached, section(pairs=dict(reversed(pairs.items()))))
    assert again == [], "their order does not matter"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("kd T=2", "kd-t-2"), ("../x", "x"), ("Ünï", "n"), ("***", "unnamed"), ("a.b_c-1", "a.b_c-1")],
)
def test_names_become_folders_that_stay_inside(name, expected):
    assert slug(name) == expected


def test_students_are_told_apart_in_a_few_words():
    assert student_name({"config": {"model_type": "cifar_resnet", "depth": 8, "width": 4}}) == (
        "cifar_resnet depth 8, width 4"
    )
    assert student_name({"config": {"model_type": "vit"}}) == "vit"
    assert student_name({"model": "some/student", "config": {"num_hidden_layers": 2}}) == "some/student"


# ---- The command


def write(given, comparison, tmp_path):
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({**given, "compare": comparison}))
    return str(path)


def test_command_shows_a_table_and_what_it_means(small, tmp_path):
    shown = CliRunner().invoke(app, ["compare", write(small, section(), tmp_path), "compare.seeds=2"])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    for text in ("2 of 4 runs are finished; 2 to go.", "2/2 kd, seed 1: accuracy", "asked once", "mean ± sd"):
        assert text in words, text
    assert "no verdict: fewer than 3 seeds" in words
    again = shown_again(small, section(seeds=2), tmp_path)
    assert "4 of 4 runs are finished; 0 to go." in again
    assert "mean ± sd" in again


def test_command_ends_with_an_error_if_a_run_failed(given, tmp_path, monkeypatch):
    def fail(config, **keywords):
        raise ValueError("no luck")

    monkeypatch.setattr(single, "run_experiment", fail)
    shown = CliRunner().invoke(app, ["compare", write(given, section(), tmp_path)])
    assert shown.exit_code == 1
    assert "alone, seed 0: ValueError: no luck" in shown.output
    assert "2 runs failed; the same command tries again" in shown.output


def test_command_reports_problems_with_their_places(given, tmp_path):
    shown = CliRunner().invoke(app, ["compare", write(given, section(["kdd", "dkd", "dkd"]), tmp_path)])
    assert shown.exit_code == 2
    assert "CONFIG: 2 problems" in shown.output
    assert "compare.methods.0: unknown method 'kdd'" in shown.output


def test_command_wants_the_section(given, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    shown = CliRunner().invoke(app, ["compare", str(path)])
    assert shown.exit_code == 2
    assert "compare: is required" in shown.output
    mapping, found = load_comparison(path, ["compare.methods=[kd, dkd]", "compare.seeds=2"])
    assert found == {"methods": ["kd", "dkd"], "seeds": 2}
    assert "compare" not in mapping

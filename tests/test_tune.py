"""A search of configurations: comparable trials, a test split nobody read, and a file that `hf-kd train` takes."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import yaml
from tiny import classifier
from typer.testing import CliRunner

from hf_kd import load_task, search_space
from hf_kd.cli import app
from hf_kd.experiment import load_config, run_experiment
from hf_kd.experiment.build import build_task
from hf_kd.registry import ConfigError
from hf_kd.teacher import FrozenTeacher
from hf_kd.tune import SearchSection, TrialRecord, TuneResult, load_search, study, trials, tune

LEARNING_RATE = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "teacher"
    task = load_task("embedded/digits", max_samples=40)
    names = [str(i) for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]  # not in the order of the data
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    classifier("vit", 9, classes=10, **ids).save_pretrained(folder)
    task.processing_class.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch, loaded={}):  # noqa: B006 - kept between tests: reading the digits is half of a short search
    def build(config):
        key = config.data.model_dump_json()
        loaded[key] = loaded.get(key) or build_task(config)
        return loaded[key]

    monkeypatch.setattr(trials, "build_task", build)


@pytest.fixture
def given(teacher, tmp_path):
    return {
        "output_dir": str(tmp_path / "search"),
        "seed": 3,
        "teacher": {"model": teacher, "sanity_check": False},
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
        "data": {"name": "embedded/digits", "max_samples": 60},
        "method": {"name": "kd"},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "report_to": "none",
            "dataloader_pin_memory": False,
        },
    }


def search(parameters=None, **options):
    return {"parameters": parameters or LEARNING_RATE, "trials": 2, **options}


def tune_folder(given):
    return Path(given["output_dir"])


def with_training(given, **values):
    return {**given, "training": {**given["training"], **values}}


def refused(given, section, **keywords):
    with pytest.raises(ConfigError) as caught:
        tune(given, section, **keywords)
    return caught.value.problems


class NeverRead:
    """A split that nobody may look at."""

    def __getattr__(self, name):
        raise AssertionError(f"the test split was read: {name}")

    def __len__(self):
        raise AssertionError("the test split was read")

    def __getitem__(self, index):
        raise AssertionError("the test split was read")


# ---- A trial is the run it stands for


def test_the_best_configuration_is_a_run_with_the_trials_score(given):
    """A search whose best cannot be had again has found nothing."""
    space = {
        **LEARNING_RATE,
        "method.temperature": {"low": 1.0, "high": 8.0},
        "method.name": {"choices": ["kd", "dtkd"]},
    }
    result = tune(given, search(space, trials=3))
    path = f"{given['output_dir']}/best_config.yaml"
    run = run_experiment(load_config(path))
    for name in ("accuracy", "loss"):
        assert run.validation[name] == pytest.approx(result.best.validation[name], rel=1e-4)
    assert run.output_dir == f"{given['output_dir']}/best"
    assert {trial.state for trial in result.trials} == {"complete"}
    on_file = json.loads((tune_folder(given) / "trials.json").read_text())
    assert on_file["best"] == result.best.number
    assert on_file["seed"] == 3
    assert [trial["value"] for trial in on_file["trials"]] == [trial.value for trial in result.trials]
    assert len((tune_folder(given) / "trials.csv").read_text().splitlines()) == 4


def test_the_test_split_is_not_read(given):
    """A hyperparameter chosen with a look at the test split makes its number worthless, silently."""
    task = replace(load_task("embedded/digits", max_samples=60), test=NeverRead())
    result = tune(with_training(given, evaluate_with_teacher=True), search(), task=task)
    assert "agreement" in result.best.validation
    assert len(result.trials) == 2


def test_equal_trials_have_equal_scores(given):
    """Nothing of one trial reaches the next: not its student, its learned temperature, its random stream."""
    space = {"training.learning_rate": {"choices": [1e-3]}}
    result = tune({**given, "method": {"name": "ctkd"}}, search(space))
    assert result.trials[0].validation == result.trials[1].validation


def forwards(monkeypatch):
    counted = []
    forward = FrozenTeacher.ask
    monkeypatch.setattr(FrozenTeacher, "ask", lambda *a: counted.append(1) or forward(*a))
    return counted


def test_the_teacher_is_asked_once_and_teaches_what_it_would_live(given, monkeypatch):
    counted = forwards(monkeypatch)
    result = tune(given, search())
    assert len(counted) == 1, "60 rows are one batch of 64"
    assert result.teacher == "The teacher is asked once about every training row; all trials reuse its logits."
    monkeypatch.setattr(trials.Trials, "_why_live", lambda self: "of this test")
    live = tune({**given, "output_dir": given["output_dir"] + "_live"}, search())
    assert len(counted) > 1 + 2 * 2
    assert live.teacher == "The teacher runs in every trial, because of this test."
    losses = [[trial.validation["loss"] for trial in each.trials] for each in (result, live)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_teacher_runs_live_where_rows_change_or_its_features_are_read(given, monkeypatch):
    """Stored logits of another view, or of a loss that reads features, are not the teacher's answer."""
    counted = forwards(monkeypatch)
    augmented = {**given, "data": {**given["data"], "augmentation": "crop_flip"}}
    result = tune(augmented, search(trials=1))
    assert "training images are augmented" in result.teacher
    assert len(counted) >= 2
    counted.clear()
    space = {"method.name": {"choices": ["feature_mse"]}}
    tune({**given, "output_dir": given["output_dir"] + "_f"}, search(space, trials=1))
    assert len(counted) >= 2


def test_checkpoints_do_not_pile_up(given):
    keep = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    result = tune(with_training(given, **keep, eval_steps=2, save_steps=2, max_steps=4), search(trials=1))
    left = sorted(path.name for path in tune_folder(given).iterdir())
    assert left == ["best_config.yaml", "study.db", "trials.csv", "trials.json"]
    assert result.best.evaluations.keys() == {2, 4}
    assert result.best.value == max(result.best.evaluations.values())


# ---- A search that stops and goes on


def test_a_search_that_broke_off_goes_on_as_if_it_had_not(given, monkeypatch):
    """The right number of trials, and the very ones: neither the trial that broke off nor the first draws again."""
    whole = tune({**given, "output_dir": given["output_dir"] + "_whole"}, search(trials=3))
    run, calls = trials.Trials.run, []

    def breaks(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, *arguments)

    monkeypatch.setattr(trials.Trials, "run", breaks)
    with pytest.raises(KeyboardInterrupt):
        tune(given, search(trials=3))
    assert len(json.loads((tune_folder(given) / "trials.json").read_text())["trials"]) == 1
    result = tune(given, search(trials=3))
    assert len(calls) == 4
    assert [t.parameters for t in result.trials] == [t.parameters for t in whole.trials]
    assert len({t.parameters["training.learning_rate"] for t in whole.trials}) == 3
    assert [t.validation for t in result.trials] == [t.validation for t in whole.trials]
    more = tune(given, search(trials=4))
    assert len(calls) == 5
    assert [t.number for t in more.trials[:3]] == [t.number for t in result.trials]


def test_another_search_in_the_same_folder_is_refused(given):
    tune(given, search(trials=1))
    said = refused(with_training(given, max_steps=5), search(trials=2))
    assert "output_dir" in said[0]
    assert "config.training.max_steps was 2 and is 5" in said[0]
    assert "search.seed was 0 and is 1" in refused(given, search(trials=2, seed=1))[0]


@pytest.mark.slow
def test_a_killed_process_goes_on(given, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**given, "search": search(trials=6)}))
    command = [sys.executable, "-m", "hf_kd", "tune", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("trial 1:"):
                process.send_signal(signal.SIGKILL)
                break
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "trials are on record" in done.stdout
    kept = json.loads((tune_folder(given) / "trials.json").read_text())["trials"]
    assert len(kept) == 6
    assert {trial["state"] for trial in kept} == {"complete"}


# ---- Pruning and failing


def test_pruned_and_failed_trials_are_on_record_and_not_the_best(given, monkeypatch):
    class Third(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 2

    monkeypatch.setattr(study.Study, "_pruner", lambda self: Third())
    space = {"training.learning_rate": {"choices": [1e-3, 1e30]}}
    section = search(space, trials=5, pruner="median", seed=1)
    result = tune(with_training(given, eval_strategy="steps", eval_steps=1), section)
    by_rate = {(t.state, t.parameters["training.learning_rate"]) for t in result.trials if t.number != 2}
    assert by_rate == {("complete", 1e-3), ("failed", 1e30)}
    assert result.trials[2].state in ("pruned", "failed")
    assert all("NaN or infinite" in t.error for t in result.trials if t.state == "failed")
    assert result.best.parameters == {"training.learning_rate": 1e-3}


def test_a_pruned_trial_stops_early(given, monkeypatch):
    class Always(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return True

    monkeypatch.setattr(study.Study, "_pruner", lambda self: Always())
    section = search(trials=1, pruner="halving")
    result = tune(with_training(given, eval_strategy="steps", eval_steps=1), section)
    assert result.trials[0].state == "pruned"
    assert list(result.trials[0].evaluations) == [1]
    assert result.best is None
    assert result.summary == "No trial came to an end, so there is no best one."


# ---- What is compared, and what is said of it


@pytest.mark.parametrize(
    ("options", "training", "metric", "greater"),
    [
        ({}, {}, "accuracy", True),
        ({"metric": "ece"}, {}, "ece", False),
        ({"metric": "eval_loss"}, {}, "loss", False),
        ({"metric": "ece", "greater_is_better": True}, {}, "ece", True),
        ({}, {"metric_for_best_model": "eval_f1_macro"}, "f1_macro", True),
    ],
)
def test_the_metric_and_its_direction(given, options, training, metric, greater):
    result = tune(with_training(given, **training), search(trials=2, **options))
    assert (result.metric, result.greater_is_better) == (metric, greater)
    values = [trial.value for trial in result.trials]
    assert result.best.value == (max if greater else min)(values)
    assert all(trial.value == trial.validation[metric] for trial in result.trials)


def found(*values, error=0.02, greater=True):
    done = [TrialRecord(i, "complete", {}, value, error) for i, value in enumerate(values)]
    return TuneResult("x", "accuracy", greater, 250, 0, {}, "", {}, done)


def test_the_best_is_called_no_better_than_the_rows_can_tell():
    """0.8 against 0.79 on 250 rows is a coin toss; and the best of many is flattered by being chosen."""
    near = found(0.79, 0.80, 0.5).summary
    assert "Trial 1 is the best of 3: accuracy 0.8000 on 250 validation rows." in near
    assert "0.0100 ahead of the next, trial 0: 0.5 times the standard error of one evaluation (0.0200)" in near
    assert "do not tell the two apart" in near
    assert "flatters it" in near
    assert "do not tell" not in found(0.70, 0.80).summary
    assert "is not known for this metric" in found(0.7, 0.8, error=None).summary
    assert found(0.7, 0.8, greater=False).best.number == 0


def test_the_standard_error_is_that_of_a_share(given):
    result = tune(given, search(trials=1))
    rows, share = result.validation_rows, result.best.value
    assert result.best.standard_error == pytest.approx((share * (1 - share) / (rows - 1)) ** 0.5)


# ---- What is refused, before anything is trained

BAD = {
    "no parameters": ({}, "search.parameters: this key is required"),
    "unknown key": ({"parameters": LEARNING_RATE, "trails": 3}, "search.trails: unknown key. Did you mean 'trials'"),
    "no trials": ({"parameters": LEARNING_RATE, "trials": 0}, "search.trials: expected"),
    "unknown path": (search({"training.learning_rat": {"low": 0.1, "high": 0.2}}), "Did you mean 'learning_rate'"),
    "unknown section": (search({"trainin.x": {"low": 0.1, "high": 0.2}}), "no such section. Did you mean 'training'"),
    "empty range": (search({"training.learning_rate": {"low": 0.1, "high": 0.1}}), "must be below high"),
    "wrong type": (search({"training.max_steps": {"low": 1.0, "high": 2.5}}), "training.max_steps: expected"),
    "wrong choice": (search({"training.max_steps": {"choices": [3, "four"]}}), "with training.max_steps='four'"),
    "unknown method": (search({"method.name": {"choices": ["kd", "dkdd"]}}), "Did you mean 'dkd'"),
    "parameter of another method": (
        search({"method.name": {"choices": ["dtkd", "kd"]}, "method.alpha": {"low": 0.5, "high": 1.0}}),
        "alpha: unknown parameter of method 'kd'",
    ),
    "the seed": (search({"seed": {"low": 0, "high": 9}}), "search.parameters.seed: the best of several seeds is luck"),
    "the rows": (search({"data.labelled": {"low": 5, "high": 9}}), "trials are compared on the same rows"),
    "the teacher": (search({"teacher.dtype": {"choices": ["float32"]}}), "the teacher is asked once"),
    "the tokenizer": (search({"student.model": {"choices": ["x"]}}), "Of `student` only config, peft"),
    "the folder": (search({"output_dir": {"choices": ["x"]}}), "every trial has its own"),
    "pruner without evaluations": (search(pruner="median"), "Set training.eval_strategy=epoch"),
    "unknown metric": (search(metric="acuracy"), "search.metric: evaluations of these data have no 'acuracy'"),
    "no mapping": ([1], "search: expected a mapping with `parameters`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_searches_are_refused_in_words(given, case):
    section, said = BAD[case]
    problems = refused(given, section)
    assert said in "\n".join(problems)
    assert not (tune_folder(given) / "study.db").exists()


def test_parameters_of_one_method_alone_are_searched_with_when(given):
    space = {
        "method.name": {"choices": ["kd", "dkd"]},
        "method.alpha": {"low": 0.5, "high": 1.0, "when": {"method.name": "dkd"}},
    }
    result = tune(given, search(space, trials=4))
    for trial in result.trials:
        assert ("method.alpha" in trial.parameters) == (trial.parameters["method.name"] == "dkd")
    assert len({trial.parameters["method.name"] for trial in result.trials}) == 2


def test_a_whole_method_can_be_a_choice(given):
    space = {"method": {"choices": ["dtkd", {"name": "ctkd", "start": 2.0}]}}
    result = tune(given, search(space, trials=4))
    assert {str(t.parameters["method"]) for t in result.trials} == {"dtkd", "{'name': 'ctkd', 'start': 2.0}"}


def test_one_run_refuses_the_section_in_words(given, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**given, "search": search()}))
    with pytest.raises(ConfigError, match="search: this section is for `hf-kd tune`"):
        load_config(path)


# ---- The command


def write(tmp_path, given, section=None):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**given, **({"search": section} if section else {})}))
    return str(path)


def test_the_command_says_what_was_found_and_what_to_do_next(given, tmp_path):
    path = write(tmp_path, given, search())
    shown = CliRunner().invoke(app, ["tune", path, "search.trials=1", "training.max_steps=2"])
    assert shown.exit_code == 0, shown.output
    assert "The teacher is asked once" in shown.stdout
    assert "trial 0: accuracy 0." in shown.stdout
    assert f"hf-kd train {given['output_dir']}/best_config.yaml" in shown.stdout
    again = CliRunner().invoke(app, ["tune", path, "search.trials=1", "training.max_steps=2"])
    assert "1 trials are on record; 0 to go." in again.stdout


def test_a_search_may_stand_in_a_file_of_its_own(given, tmp_path):
    path, own = write(tmp_path, given), tmp_path / "space.yaml"
    for content in (search(), {"search": search()}):
        own.write_text(yaml.safe_dump(content))
        mapping, section = load_search(path, ["seed=5", "search.trials=7"], own)
        assert mapping["seed"] == 5
        assert "search" not in mapping
        assert section == search(trials=7)
    both = write(tmp_path, given, search())
    with pytest.raises(ConfigError, match="is another one"):
        load_search(both, (), own)
    with pytest.raises(ConfigError, match="search: is required"):
        load_search(write(tmp_path, given))
    assert SearchSection(parameters=LEARNING_RATE).trials == 20


def test_without_optuna_one_sentence_says_what_to_install(given, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_kd\[tune\]'"):
        search_space.import_optuna("hf-kd tune")
    shown = CliRunner().invoke(app, ["tune", write(tmp_path, given, search())])
    assert shown.exit_code == 1


def test_bad_input_ends_with_code_2(given, tmp_path):
    shown = CliRunner().invoke(app, ["tune", write(tmp_path, given, search(metric="acuracy"))])
    assert shown.exit_code == 2
    assert "search.metric" in shown.stderr


def test_an_interruption_says_how_to_go_on(given, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials.Trials, "run", interrupted)
    shown = CliRunner().invoke(app, ["tune", write(tmp_path, given, search())])
    assert shown.exit_code == 130
    assert shown.stderr.strip().endswith("the same command goes on after them.")

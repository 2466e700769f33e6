"""Options of the Trainer that decide what a checkpoint holds, which are kept, and what a run starts from, when the run
breaks off and goes on."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import Projected, assert_same_run, build_trainer, classifier, examples, table, weights
from transformers import AutoModelForSequenceClassification

from hf_kd import DistillationObjective, build_objective
from hf_kd.experiment.best_model import best_model
from hf_kd.trainer.complete import NO_MANIFEST, STATE, checkpoint_to_resume, last_complete
from hf_kd.trainer.hub import provenance
from hf_kd.trainer.objective_state import MANIFEST_FILE, STATE_FILE

STEPS = 8
BEST = 4  # of the evaluations below, at each second step
AT_ONCE = {"method_kwargs": {"curriculum": 0.0}, "temperature_learning_rate": 0.5}


def settings(**overrides):
    """Eight steps of a student with dropout and a learned temperature; saved at every second one."""
    given = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "optim": "adamw_torch"}
    given |= {"learning_rate": 0.01, "lr_scheduler_type": "linear", "train_sampling_strategy": "random"}
    return {**given, "method": "ctkd", **AT_ONCE, **overrides}


def build(folder, *, seed=0, student=None, rows=28, trainer=None, **overrides):
    student = classifier("bert", seed, hidden_dropout_prob=0.1) if student is None else student
    student = None if trainer and "model_init" in trainer else student
    data = table(examples("bert", rows, "mixed"))
    return build_trainer(folder, student, classifier("bert", 9), data, trainer=trainer, **settings(**overrides))


def run(folder, resume=None, **given):
    """The trainer and what its training gives back."""
    trainer = build(folder, **given)
    return trainer, trainer.train(resume_from_checkpoint=resume)


# --- save_only_model -------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_student_alone_is_not_resumed_unless_told(tmp_path, caplog):
    """The Trainer goes on with an optimizer, a learning rate and draws that start over, and says nothing."""
    given = {"method": "kd", "method_kwargs": None, "save_only_model": True}
    run(tmp_path, **given)
    for resume in (True, str(tmp_path / "checkpoint-4")):
        with pytest.raises(ValueError, match=r"without its optimizer \(`save_only_model`\).*resume_with_changes=True"):
            run(tmp_path, resume, **given)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    caplog.clear()
    trainer, _ = run(tmp_path, str(tmp_path / "checkpoint-4"), **given, resume_with_changes=True)
    assert trainer.state.global_step == STEPS
    assert "start over within the run, as `resume_with_changes` says" in caplog.text


# --- load_best_model_at_end, save_total_limit ------------------------------------------------------------------------


class Accuracy:
    """A metric that is best at `BEST`, whatever the student does; it looks at the trainer that it is given."""

    def __init__(self):
        self.trainer = None

    def __call__(self, prediction):
        return {"closeness": -abs(self.trainer.state.global_step - BEST)}


def best_run(folder, resume=None, *, limit=2, **overrides):
    """A run that keeps the model of step 4."""
    metric = Accuracy()
    parts = {"eval_dataset": table(examples("bert", 4)), "compute_metrics": metric}
    given = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": limit}
    given |= {"metric_for_best_model": "closeness", "trainer": parts, **overrides}
    trainer = build(folder, **given)
    metric.trainer = trainer
    return trainer, trainer.train(resume_from_checkpoint=resume)


def assert_same_best(resumed, whole):
    """The same end, and the same best model by the same value."""
    assert_same_run(resumed, whole)
    one, other = (trainer.state for trainer, _ in (resumed, whole))
    assert (one.best_global_step, one.best_metric) == (other.best_global_step, other.best_metric) == (BEST, 0)
    for trainer, _ in (resumed, whole):
        folder = Path(trainer.args.output_dir) / f"checkpoint-{BEST}"
        assert Path(trainer.state.best_model_checkpoint) == folder
        saved = load_file(folder / "model.safetensors")
        torch.testing.assert_close(saved, dict(weights(trainer.model)), rtol=0, atol=0)


class Killed(BaseException):
    """No `except` of anyone but the test's catches it, as nobody survives SIGKILL."""


def dies_deleting(monkeypatch, name, first):
    """From now on a process dies while it deletes `name`, when the files named `first` are gone."""
    remove = shutil.rmtree

    def rmtree(path, *args, **kwargs):
        if Path(path).name != name:
            return remove(path, *args, **kwargs)
        for part in Path(path).iterdir():
            if part.name in first:
                part.unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", rmtree)


OURS = (STATE_FILE, MANIFEST_FILE, "rng_state.pth")


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A run that was never stopped, for every limit: the limit changes nothing but which checkpoints are left."""
    return best_run(tmp_path_factory.mktemp("best"), limit=3)


@pytest.mark.parametrize(
    ("limit", "deleted", "first"),
    [
        (1, "checkpoint-8", OURS),  # at the end
        (1, "checkpoint-8", ("optimizer.pt", *OURS)),
        (1, "checkpoint-8", (STATE,)),
        (1, "checkpoint-6", OURS),  # after the last save
        (2, "checkpoint-2", ("model.safetensors",)),
    ],
    ids=str,
)
def test_a_run_killed_while_it_deletes_ends_with_the_same_best_model(
    limit, deleted, first, best, tmp_path, monkeypatch
):
    """With a limit of 1 the Trainer deletes the last checkpoint at the end, in no order: what is left of it may look
    like a checkpoint that never had a learned temperature."""
    with monkeypatch.context() as patch:
        dies_deleting(patch, deleted, first)
        with pytest.raises(Killed):
            best_run(tmp_path, limit=limit)
    last, _ = last_complete(tmp_path)
    assert last is not None
    assert (tmp_path / f"checkpoint-{BEST}" / "model.safetensors").is_file()
    assert_same_best(best_run(tmp_path, True, limit=limit, seed=1), best)


def test_a_run_killed_after_its_last_step_makes_no_further_one(tmp_path):
    """Killed while the test set is scored, say: the Trainer notices that it is done after one step more."""
    whole = run(tmp_path)
    resumed = run(tmp_path, True, seed=1)
    assert resumed[0].state.global_step == STEPS
    assert_same_run(resumed, whole)


def test_half_deleted_checkpoints_are_passed_over_but_a_lone_one_is_not(tmp_path):
    """Without a manifest nobody can tell them from one that another trainer wrote."""
    run(tmp_path, max_steps=4, method="kd", method_kwargs=None)
    for name in OURS:
        (tmp_path / "checkpoint-4" / name).unlink()
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-2", {tmp_path / "checkpoint-4": NO_MANIFEST})
    assert checkpoint_to_resume(True, str(tmp_path), is_writer=True) == str(tmp_path / "checkpoint-2")
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-4", {})


@pytest.mark.parametrize("step", [6, 8])
def test_a_moved_run_finds_its_best_model(step, best, tmp_path, monkeypatch):
    """The state names the best checkpoint by a path that is gone: the run would end with its last weights."""
    monkeypatch.chdir(tmp_path)
    best_run("relative", limit=None)
    moved = tmp_path / "elsewhere" / "run"
    shutil.move("relative", moved)
    resumed = best_run(moved, str(moved / f"checkpoint-{step}"), limit=3, seed=1)
    assert_same_best(resumed, best)


def test_a_best_checkpoint_by_another_name_of_its_folder_is_not_deleted(tmp_path, monkeypatch):
    """The Trainer spares the best checkpoint by its name: `run/checkpoint-4` is not `/home/me/run/checkpoint-4`."""
    monkeypatch.chdir(tmp_path)
    best_run("run", max_steps=6)
    state = json.loads((tmp_path / "run" / "checkpoint-6" / STATE).read_text())
    assert state["best_model_checkpoint"] == "run/checkpoint-4"
    state["best_global_step"] = 5  # evaluated more often than saved, the Trainer does not put it right by itself
    (tmp_path / "run" / "checkpoint-6" / STATE).write_text(json.dumps(state))
    trainer, _ = best_run(tmp_path / "run", "run/checkpoint-6", limit=1)
    saved = load_file(tmp_path / "run" / f"checkpoint-{BEST}" / "model.safetensors")
    torch.testing.assert_close(saved, dict(weights(trainer.model)), rtol=0, atol=0)


def test_a_best_checkpoint_that_is_gone_is_said(tmp_path, caplog):
    """A student with the last weights under the best one's score."""
    best_run(tmp_path, limit=None)
    shutil.rmtree(tmp_path / f"checkpoint-{BEST}")
    trainer, _ = best_run(tmp_path, str(tmp_path / "checkpoint-6"), limit=None)
    assert "checkpoint-4, is gone: unless a later one is better" in caplog.text
    assert trainer.state.best_model_checkpoint is None
    assert not best_model(SimpleNamespace(training={}), trainer)["is_saved"]


# --- auto_find_batch_size --------------------------------------------------------------------------------------------


def runs_out(student, at, size=8):
    """Let the student run out of memory in that forward of training, if the batch is of that size."""
    seen = []

    def forward(module, args, kwargs):
        seen.append(len(kwargs["input_ids"]))
        if module.training and len(seen) == at and seen[-1] == size:
            raise RuntimeError("CUDA out of memory.")

    student.register_forward_pre_hook(forward, with_kwargs=True)
    return student


def found(folder, resume=None, *, at=6, size=8, seed=0, **given):
    """A run that fails with batches of `size` in forward `at`."""
    student = runs_out(classifier("bert", seed, hidden_dropout_prob=0.1), at, size)
    given = {"per_device_train_batch_size": 8, "auto_find_batch_size": True, "rows": 56, **given}
    return run(folder, resume, student=student, **given)


def asked(folder, resume=None, *, size=7, **given):
    """A run with batches of `size` from the start."""
    return run(folder, resume, per_device_train_batch_size=size, rows=56, **given)


OWN = {
    "ctkd": {},
    "accumulated": {"gradient_accumulation_steps": 2, "at": 7},
    "projector": {"method": "feature_mse", "method_kwargs": None},
    "serialization": {"method": "kd", "method_kwargs": {"task_serialization": True}},
    "adaptive": {"method": "taid", "method_kwargs": None},
    "workers": {"dataloader_num_workers": 1},
}
LONG = ("serialization", "adaptive", "workers")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in LONG)) for k in OWN])
def test_after_running_out_of_memory_the_run_is_the_one_with_smaller_batches(kind, tmp_path, caplog):
    """The Trainer starts over with the weights, the moments and the draws of five steps that it calls unmade."""
    given = dict(OWN[kind])
    at = given.pop("at", 6)
    again = found(tmp_path / "found", at=at, **given)
    assert "Batches of 8 rows did not fit into memory: training starts over from the beginning with 7" in caplog.text
    assert_same_run(again, asked(tmp_path / "asked", **given))
    states = [json.loads(path.read_text()) for path in sorted(tmp_path.glob(f"found/*/{STATE}"))]
    assert [state["train_batch_size"] for state in states] == [7] * 4
    assert provenance(again[0])["training"]["per_device_train_batch_size"] == 7, "the card says what was done"


def test_twice_out_of_memory_is_still_the_fresh_run(tmp_path):
    """Eight, seven, six: the second start must not be that of the first attempt's end."""
    student = runs_out(runs_out(classifier("bert", 0, hidden_dropout_prob=0.1), 4, 8), 8, 7)
    given = {"per_device_train_batch_size": 8, "auto_find_batch_size": True, "rows": 56}
    again = run(tmp_path / "found", student=student, **given)
    assert_same_run(again, asked(tmp_path / "asked", size=6))


def test_what_was_saved_before_memory_ran_out_is_not_resumed(tmp_path, caplog, monkeypatch):
    """Killed in the second step after the start, the run would go on from step 4 of the one that does not fit."""

    class Dies(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.train_batch_size == 7 and state.global_step == 3:
                raise Killed

    with pytest.raises(Killed):
        found(tmp_path / "found", trainer={"callbacks": [Dies()]})
    assert "What was saved meanwhile is deleted: checkpoint-2, checkpoint-4." in caplog.text
    assert [path.name for path in (tmp_path / "found").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = found(tmp_path / "found", True, at=None, seed=1)
    assert_same_run(resumed, asked(tmp_path / "asked"))


def test_a_resumed_run_that_runs_out_of_memory_goes_on_from_its_checkpoint(tmp_path):
    """Again as if it had been asked for, and the next resume begins with what was found."""
    for name in ("found", "asked"):
        asked(tmp_path / name, size=8, max_steps=4)
    again = found(tmp_path / "found", True, at=3, seed=1)
    assert_same_run(again, asked(tmp_path / "asked", True))
    state = json.loads((tmp_path / "found" / "checkpoint-8" / STATE).read_text())
    assert state["train_batch_size"] == 7


def test_a_checkpoint_that_was_rotated_away_is_not_gone_back_to(tmp_path):
    """A stack trace about a missing file says nothing of what to do."""
    asked(tmp_path, size=8, max_steps=4, save_total_limit=1)
    said = r"checkpoint-4 .*is deleted meanwhile.*Resume from .*checkpoint-6 with per_device_train_batch_size=7"
    with pytest.raises(RuntimeError, match=said):
        found(tmp_path, True, at=4, save_total_limit=1)
    assert last_complete(tmp_path)[0] == tmp_path / "checkpoint-6"


@pytest.mark.parametrize("given", [{}, {"method": "feature_mse", "method_kwargs": None}], ids=["ctkd", "projector"])
def test_a_users_optimizer_and_schedule_start_over_too(given, tmp_path):
    """The Trainer cannot make them anew, and the projector would join the optimizer twice."""
    runs = []
    for folder, size, at in (("found", 8, 6), ("asked", 7, None)):
        student = runs_out(classifier("bert", 0, hidden_dropout_prob=0.1), at)
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / 10)
        given = {**given, "per_device_train_batch_size": size, "auto_find_batch_size": size == 8, "rows": 56}
        parts = {"optimizers": (optimizer, None if "method" in given else schedule)}
        runs.append(run(tmp_path / folder, student=student, trainer=parts, **given))
    assert_same_run(*runs)


def test_statistics_of_the_student_start_over_too(tmp_path):
    """Running means are no parameters, and remember every batch of the broken attempt."""
    runs = []

    def count(module, args):
        module.batches.add_(module.training)

    for folder, size, at in (("found", 8, 6), ("asked", 7, None)):
        student = runs_out(classifier("bert", 0), at)
        student.register_buffer("batches", torch.zeros(()))
        student.register_forward_pre_hook(count)
        given = {"per_device_train_batch_size": size, "auto_find_batch_size": size == 8, "rows": 56}
        runs.append(run(tmp_path / folder, student=student, **given)[0].model.batches.item())
    assert runs == [STEPS, STEPS]


# --- model_init ------------------------------------------------------------------------------------------------------


def anew():
    """A fresh student, as a user would write it."""
    return classifier("bert", 0, hidden_dropout_prob=0.1)


def own_objective(name):
    """An objective that the user builds, with something to learn."""
    if name == "projector":
        return DistillationObjective([(1.0, Projected())], ce_weight=1.0, kd_weight=1.0)
    return None if name is None else build_objective(name, curriculum=0.0)


@pytest.mark.parametrize("objective", [None, "ctkd", "projector"])
def test_runs_with_model_init_start_fresh_and_resume(objective, tmp_path):
    """The student is made anew in each `train()`: a resumed one must become the checkpoint's, a new one nobody's."""

    def trainer(name):
        return build(tmp_path / name, trainer={"model_init": anew, "objective": own_objective(objective)})

    def copied(trainer, output):  # the next run changes the trainer
        return shutil.copytree(trainer.args.output_dir, f"{trainer.args.output_dir}-{output.global_step}"), output

    one, other = trainer("one"), trainer("other")
    whole = one, one.train()
    for resume in (None, str(tmp_path / "one" / "checkpoint-4"), None):  # in a trainer that has learned already
        again = other, other.train(resume_from_checkpoint=resume)
        assert_same_run(again, whole)
    fresh = trainer("fresh")
    assert_same_run((fresh, fresh.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-4"))), whole)


def test_a_trainer_resumes_after_it_has_trained(tmp_path):
    """In a notebook the checkpoint is chosen when the run is over, and the temperature has moved on since."""
    whole = run(tmp_path / "whole")
    trainer = build(tmp_path / "again")
    trainer.train()
    output = trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same_run((trainer, output), whole)

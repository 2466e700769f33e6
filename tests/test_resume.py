"""Runs that break off in the middle of an epoch, or of a save, and go on as if they had not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import kill_loop
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import assert_same_run, build_trainer, classifier, examples, table
from transformers import TrainerCallback, ViTImageProcessor, default_data_collator

from hf_kd import DistillationTrainer, LabelMap
from hf_kd.data.augmentation import Augmentation
from hf_kd.data.processing import ImageTransform
from hf_kd.experiment import TrainingStopped, running
from hf_kd.experiment.running import SaveAtSignal, only_run_in
from hf_kd.registry import ConfigError
from hf_kd.trainer.complete import checkpoint_to_resume, defect, last_complete
from hf_kd.trainer.objective_state import MANIFEST_FILE, STATE_FILE

# --- Random draws on the data's side ---------------------------------------------------------------------------------

PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8})
SAVED_AT = 7  # of five steps an epoch: in the second one


def pictures(rows=17):
    """Small images, as they lie on a disk."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 12, 12, 3), dtype=np.uint8)
    return datasets.Dataset.from_list([{"pixel_values": p.tolist(), "labels": i % 5} for i, p in enumerate(pixels)])


def _open(batch):
    return {**batch, "pixel_values": [Image.fromarray(np.array(p, dtype=np.uint8)) for p in batch["pixel_values"]]}


class Augmented:
    """Opens, crops and mirrors, as `load_task(augmentation="crop_flip")` does."""

    def __init__(self):
        self.transform = ImageTransform(PROCESSOR, augmentation=Augmentation("crop_flip", PROCESSOR))

    def __repr__(self):
        return repr(self.transform)

    def __call__(self, batch):
        return self.transform(_open(batch))


def noisy(rows):
    """A collator of the user's own, which draws from numpy."""
    batch = default_data_collator(rows)
    noise = np.random.standard_normal(batch["pixel_values"].shape)
    return {**batch, "pixel_values": batch["pixel_values"] + 0.1 * torch.from_numpy(noise).float()}


class Stream(torch.utils.data.IterableDataset):
    """Rows in order, changed at random as they come."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        for row in self.rows:
            pixels = torch.as_tensor(row["pixel_values"])
            yield {**row, "pixel_values": pixels.flip(-1) if torch.rand(()) < 0.5 else pixels}


def image_run(folder, seed, resume=None, *, rows=None, collator=default_data_collator, mixing=None, **overrides):
    """Three epochs of a student with dropout on images that are changed at random."""
    student = classifier("vit", seed, hidden_dropout_prob=0.1)
    rows = pictures().with_transform(Augmented()) if rows is None else rows
    given = {
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "train_sampling_strategy": "random",
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": SAVED_AT,
        **overrides,
    }
    parts = {"data_collator": collator, "mixing": mixing}
    trainer = build_trainer(folder, student, classifier("vit", 9), rows, trainer=parts, **given)
    return trainer, trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_accumulation_steps": 2, "save_steps": 4},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"collator": noisy},
        {"train_sampling_strategy": "balanced"},
        {"accelerator_config": {"use_seedable_sampler": False}},
    ],
    ids=str,
)
def test_resume_within_an_epoch_draws_the_same_augmentations(given, tmp_path):
    """The loader draws one batch ahead, before the generators are restored: one batch of other crops, every time."""
    whole = image_run(tmp_path, 0, **given)
    checkpoint = tmp_path / f"checkpoint-{given.get('save_steps', SAVED_AT)}"
    resumed = image_run(tmp_path / "resumed", 1, str(checkpoint), **given)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_within_an_epoch_of_a_stream_draws_the_same(workers, tmp_path):
    """The skipped rows of a stream are drawn again, with nothing of the training between them."""
    given = {"rows": Stream(examples("vit", 17)), "dataloader_num_workers": workers}
    whole = image_run(tmp_path, 0, **given)
    resumed = image_run(tmp_path / "resumed", 1, str(tmp_path / f"checkpoint-{SAVED_AT}"), **given)
    assert_same_run(resumed, whole)


def test_resume_within_an_epoch_keeps_batches_by_length(tmp_path):
    """This sampler has no generator of its own: a resumed epoch would come in another order, rows twice or never."""
    rows = table(examples("bert", 17))
    rows = rows.map(
        lambda row, i: {k: row[k][: 3 + i % 5] for k in ("input_ids", "attention_mask")}, with_indices=True
    )

    def run(folder, seed, resume=None):
        student = classifier("bert", seed, hidden_dropout_prob=0.1)
        given = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 20, "logging_steps": 3}
        given |= {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 1, "max_steps": 30}
        trainer = build_trainer(folder, student, classifier("bert", 9), rows, **given)
        return trainer, trainer.train(resume_from_checkpoint=resume)

    whole = run(tmp_path, 0)
    assert_same_run(run(tmp_path / "resumed", 1, str(tmp_path / "checkpoint-20")), whole)


class Watched(torch.nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.bias, self.seen = torch.nn.Parameter(torch.zeros(5)), []

    def forward(self, pixel_values):
        self.seen.append(pixel_values.clone())
        return {"logits": self.bias.expand(len(pixel_values), -1)}


def test_augmentations_differ_from_epoch_to_epoch_and_not_between_workers(tmp_path):
    """The same crops in each epoch would be no augmentation at all."""
    drawn = []
    for given in ({}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}):
        student, rows = Watched(), pictures(4).with_transform(Augmented())
        given |= {"num_train_epochs": 4, "kd_weight": 0.0}
        trainer = {"data_collator": default_data_collator}
        build_trainer(tmp_path, student, None, rows, trainer=trainer, **given).train()
        drawn.append(torch.stack(student.seen))
    here, workers = drawn
    assert len(here) == 4
    assert all((here[i] != here[j]).any() for i in range(4) for j in range(i))
    torch.testing.assert_close(workers, here, rtol=0, atol=0)


# --- Checkpoints that are not whole ----------------------------------------------------------------------------------


def short_run(folder, resume=None, *, method="ctkd", steps=8, callbacks=(), **overrides):
    """Eight steps, saved at every second one."""
    given = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "method": method}
    rows = table(examples("bert", 12))
    trainer = build_trainer(folder, classifier("bert", 0), classifier("bert", 9), rows, **{**given, **overrides})
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer, trainer.train(resume_from_checkpoint=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run; copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    short_run(folder)
    return folder


def cut(path):
    """Write half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


BREAKS = {
    "state missing": lambda folder: (folder / "trainer_state.json").unlink(),
    "state cut": lambda folder: cut(folder / "trainer_state.json"),
    "state empty": lambda folder: (folder / "trainer_state.json").write_bytes(b""),
    "weights cut": lambda folder: cut(folder / "model.safetensors"),
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "optimizer cut": lambda folder: cut(folder / "optimizer.pt"),
    "scheduler missing": lambda folder: (folder / "scheduler.pt").unlink(),
    "generators missing": lambda folder: (folder / "rng_state.pth").unlink(),
    "our tensors cut": lambda folder: cut(folder / STATE_FILE),
    "our tensors missing": lambda folder: (folder / STATE_FILE).unlink(),
    "our manifest missing": lambda folder: (folder / MANIFEST_FILE).unlink(),
    "being written": lambda folder: (folder / "checkpoint-is-incomplete.txt").write_text("in progress"),
    "nothing in it": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_half_written_checkpoint_is_never_the_last_one(name, finished, tmp_path):
    """The highest number is the one that the run was killed in: resuming there ends in an unpickling error, or worse,
    goes on without the optimizer and says nothing."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    broken = folder / "checkpoint-8"
    BREAKS[name](broken)
    last, defects = last_complete(folder)
    assert last == folder / "checkpoint-6"
    assert list(defects) == [broken]
    with pytest.raises(ValueError, match=r"(cannot go on from there|cannot read).*last whole one.*checkpoint-6"):
        checkpoint_to_resume(broken, str(folder), is_writer=True)
    assert checkpoint_to_resume(True, str(folder), is_writer=False) == str(last)
    assert broken.exists()
    assert checkpoint_to_resume(True, str(folder), is_writer=True) == str(last)
    assert not broken.exists()


def test_passing_over_a_checkpoint_is_said_and_the_run_ends_the_same(finished, tmp_path, caplog):
    """Whoever starts a run again each night should read what was lost, once, and find the same student."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    BREAKS["weights cut"](folder / "checkpoint-8")
    resumed = short_run(folder, True)
    assert "checkpoint-8 is not whole (cannot read `model.safetensors`" in caplog.text
    assert_same_run(resumed, short_run(tmp_path / "whole"))


def test_only_half_written_checkpoints_are_refused_in_words(finished, tmp_path):
    """Starting over in silence would cost a night; so does a KeyError."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoint-*"):
        BREAKS["state missing"](path)
    with pytest.raises(ValueError, match=r"holds no whole checkpoint \(checkpoint-8: `trainer_state.json`"):
        short_run(folder, True)
    with pytest.raises(ValueError, match="there is no such folder"):
        short_run(folder, folder / "checkpoint-10")


def test_a_checkpoint_without_optimizer_is_used_only_if_there_is_no_other(tmp_path):
    """One of `save_only_model` looks like one that is half deleted."""
    short_run(tmp_path, method="kd", save_only_model=True, steps=4)
    assert last_complete(tmp_path)[0] == tmp_path / "checkpoint-4"
    short_run(tmp_path, True, method="kd", steps=6, resume_with_changes=True)
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-6", {})
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    assert last_complete(tmp_path)[0] == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("keep", [{"save_total_limit": 1}, {"save_total_limit": 1, "save_only_model": True}], ids=str)
def test_at_every_moment_of_a_save_there_is_a_whole_checkpoint(keep, tmp_path):
    """Old checkpoints are deleted too: one must not go before the new one is whole."""
    seen, is_saving = [], False

    def look(event, arguments):  # at every file that is opened or removed
        nonlocal is_saving
        if is_saving and str(tmp_path) in str(arguments[:1]):
            is_saving = False
            seen.append(last_complete(tmp_path)[0])
            is_saving = True

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            nonlocal is_saving
            is_saving = state.global_step > 2

        def on_save(self, args, state, control, **kwargs):
            nonlocal is_saving
            is_saving = False

    sys.addaudithook(look)
    short_run(tmp_path, method="kd", callbacks=[Watch()], **keep)
    assert len(seen) > 30
    assert None not in seen
    assert {path.name for path in seen} == {f"checkpoint-{step}" for step in (2, 4, 6, 8)}


def test_a_save_over_an_older_run_s_checkpoint_is_not_whole_before_its_end(finished, tmp_path, monkeypatch):
    """Resumed from 4, the run comes to 6 again: half of the new files beside half of the old ones look complete."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    during = []
    original = DistillationTrainer._save_optimizer_and_scheduler

    def saving(self, output_dir):
        during.append(defect(Path(output_dir)))
        original(self, output_dir)

    monkeypatch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", saving)
    short_run(folder, str(folder / "checkpoint-4"))
    assert len(during) == 2
    assert all("trainer_state.json" in wrong for wrong in during)


# --- Another run's checkpoint ----------------------------------------------------------------------------------------


def other_teacher():
    """One of the same architecture and name, trained anew: of its 40 tensors one differs."""
    teacher = classifier("bert", 9)
    with torch.no_grad():
        teacher.classifier.weight.mul_(1.001)
    return teacher


def sameness(folder, resume=None, *, teacher=None, rows=None, trainer=None, **overrides):
    """Four steps of a run that is resumed as it was, but for one thing."""
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "kd_weight": 0.9}
    rows = table(examples("bert", 12)) if rows is None else rows
    student, teacher = classifier("bert", 0), teacher or classifier("bert", 9)
    built = build_trainer(folder, student, teacher, rows, trainer=trainer, **{**given, **overrides})
    built.train(resume_from_checkpoint=resume)
    return built


def turned(rows, first):
    """The same rows in another order from `first` on."""
    return table(rows[:first] + rows[first:][::-1])


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A checkpoint to resume."""
    folder = tmp_path_factory.mktemp("plain")
    sameness(folder)
    return str(folder / "checkpoint-2")


NAMED = LabelMap.from_dict(
    {
        "teacher_labels": [f"LABEL_{i}" for i in range(5)],
        "student_labels": [f"LABEL_{i}" for i in range(5)],
        "groups": [[1], [0], [2], [3], [4]],
        "by": "given",
    }
)


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"teacher": other_teacher}, "teacher.weights"),
        ({"trainer": lambda: {"label_map": NAMED}}, "label_map"),
        ({"rows": lambda: table(examples("bert", 11))}, r"data.rows 12 \(now: 11\)"),
        ({"rows": lambda: table(examples("bert", 12, seed=1))}, "data.digest"),
        ({"rows": lambda: turned(examples("bert", 12), 2)}, "data.digest"),
        ({"rows": lambda: table(examples("bert", 12)).add_column("idx", list(range(12)))}, "data.columns"),
        (
            {"rows": lambda: table(examples("bert", 12)).with_transform(dict)},
            "data.transform None .now: builtins",
        ),
        ({"temperature_momentum": lambda: 0.5}, r"settings.temperature_momentum 0.9 \(now: 0.5\)"),
        ({"label_smoothing_factor": lambda: 0.1}, "settings.label_smoothing_factor"),
        ({"seed": lambda: 7}, "settings.seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_another_run_does_not_resume_a_checkpoint_unless_told(now, named, plain_run, tmp_path, caplog):
    """Half of a run with one teacher and half with another is a student nobody can explain."""
    now = {key: make() for key, make in now.items()}
    with pytest.raises(ValueError, match=f"belongs to another run: .*{named}.*resume_with_changes=True"):
        sameness(tmp_path, plain_run, **now)
    caplog.clear()
    assert sameness(tmp_path, plain_run, resume_with_changes=True, **now).state.global_step == 4
    assert "belongs to another run" in caplog.text


def test_the_same_run_resumes_from_wherever_its_parts_lie(tmp_path, caplog):
    """A moved folder, another order of the columns or a teacher of another name is no other run."""
    for name in ("here", "there"):
        classifier("bert", 9).save_pretrained(tmp_path / name)
    sameness(tmp_path / "run", teacher=str(tmp_path / "here"))
    rows = [dict(reversed(row.items())) for row in examples("bert", 12)]
    given = {"teacher": str(tmp_path / "there"), "rows": table(rows), "per_device_eval_batch_size": 2}
    sameness(tmp_path / "run", str(tmp_path / "run" / "checkpoint-2"), **given)
    assert "another run" not in caplog.text


def test_mixing_and_augmentation_are_part_of_a_run(tmp_path):
    """A checkpoint of a run with CutMix would go on without, and its record says what was never done."""
    image_run(tmp_path, 0, max_steps=8)
    checkpoint = str(tmp_path / f"checkpoint-{SAVED_AT}")
    plain = pictures().with_transform(lambda batch: ImageTransform(PROCESSOR)(_open(batch)))
    with pytest.raises(ValueError, match=r"data.transform .*crop_flip.* \(now: .*lambda"):
        image_run(tmp_path, 0, checkpoint, max_steps=8, rows=plain)
    with pytest.raises(ValueError, match=r"mixing None \(now: Mixing\(mixup=0.2"):
        image_run(tmp_path, 0, checkpoint, max_steps=8, mixing={"mixup": 0.2})


@pytest.mark.parametrize(
    "now",
    [{"method": "ctkd"}, {"method_kwargs": {"temperature": 2.0}}, {"method": "dist"}, {"ce_weight": 0.3}],
    ids=str,
)
def test_told_so_a_run_goes_on_with_another_objective(now, plain_run, tmp_path, caplog):
    """A temperature changed half-way is a choice; it must not end in a stack trace, nor in a log of the old terms."""
    with pytest.raises(ValueError, match="saved with another objective.*resume_with_changes=True"):
        sameness(tmp_path, plain_run, **now)
    run = sameness(tmp_path, plain_run, resume_with_changes=True, **now)
    assert run.state.global_step == 4
    assert "goes on with the new one" in caplog.text


# --- A process among others ------------------------------------------------------------------------------------------


class Terminate(TrainerCallback):
    """Sends SIGTERM to this process in the third step, as a scheduler does."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_after_the_step_and_the_resumed_run_is_the_same(tmp_path):
    """A scheduler that moves a job gives it seconds: they must not be lost, nor an unfinished run be scored."""
    before = signal.getsignal(signal.SIGTERM)
    given = {"save_steps": 100, "save_strategy": "steps", "max_steps": 8, "method": "ctkd"}
    rows = table(examples("bert", 12))
    trainer = build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 9), rows, optim="adamw_torch", **given)
    trainer.add_callback(Terminate())
    with pytest.raises(SystemExit) as stopped, SaveAtSignal().watching(trainer):
        trainer.train()
    assert (stopped.value.code, type(stopped.value)) == (143, TrainingStopped)
    assert "after step 3 of 8" in str(stopped.value)
    assert signal.getsignal(signal.SIGTERM) is before
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-3", {})
    resumed = short_run(tmp_path, True, save_steps=100)
    assert_same_run(resumed, short_run(tmp_path / "whole", save_steps=100))


def test_sigterm_does_not_promise_a_resume_that_is_refused(tmp_path):
    """With `save_only_model` nothing is kept to go on from."""
    given = {"save_only_model": True, "save_strategy": "no", "max_steps": 8}
    trainer = build_trainer(
        tmp_path, classifier("bert", 0), classifier("bert", 9), table(examples("bert", 12)), **given
    )
    trainer.add_callback(Terminate())
    with pytest.raises(TrainingStopped) as stopped, SaveAtSignal().watching(trainer):
        trainer.train()
    assert "The student alone is saved" in str(stopped.value)
    assert "resume_from_checkpoint" not in str(stopped.value)


def test_a_folder_in_use_is_refused_and_free_again_after_a_kill(tmp_path, monkeypatch):
    """Two jobs of one name delete each other's checkpoints; the lock of a dead one must not outlive it."""
    monkeypatch.setattr(running, "PATIENCE", 0.3)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with only_run_in(tmp_path / "run"):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(1)
    os.read(read, 1)
    with pytest.raises(ConfigError, match="another run is going on in"), only_run_in(tmp_path / "run"):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with only_run_in(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    """Found before training, not at the first save."""
    (tmp_path / "file").write_text("")
    said = "output_dir: cannot write to .*Not a directory"
    with pytest.raises(ConfigError, match=said), only_run_in(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("inline_container.cc: pos 64")]
)
def test_a_full_disk_is_said_and_the_run_resumes_from_before(error, tmp_path, monkeypatch):
    """torch says "unexpected pos 64 vs 0" then; what is left must not be taken for a checkpoint."""
    original = DistillationTrainer._save_optimizer_and_scheduler

    def full(self, output_dir):
        if "checkpoint-4" in output_dir:
            raise error
        original(self, output_dir)

    monkeypatch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", full)
    said = r"checkpoint-4 could not be written: .* MiB free\).*last whole one is .*checkpoint-2"
    with pytest.raises(OSError, match=said):
        short_run(tmp_path)
    monkeypatch.undo()
    assert_same_run(short_run(tmp_path, True), short_run(tmp_path / "whole"))


# --- Killed over and over --------------------------------------------------------------------------------------------


def killed(folder, kind, kills, seed):
    """What `kill_loop.py` found."""
    script = Path(__file__).with_name("kill_loop.py")
    command = [sys.executable, str(script), str(folder), kind, str(kills), str(seed)]
    paths = [str(script.parent), str(script.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["code"], result["differing"]) == (0, []), (result, done.stderr[-2000:])
    assert result["kills"] >= kills
    assert result["lost"] == 0, result
    return result


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_killed_twenty_times_ends_as_if_left_alone(tmp_path):
    """SIGKILL gives no chance to tidy up: in a step, in a save, or before the first step."""
    killed(tmp_path, "ctkd", 20, 0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kind", kill_loop.KINDS)
def test_a_run_of_every_kind_survives_fifty_kills(kind, tmp_path):
    """What each kind learns beside the student, keeps or finds must be in what a killed run goes on from; one that
    cannot go on from there says so."""
    result = killed(tmp_path, kind, 50, 1)
    assert result["half_written"] > 0 or kind == "only_model"  # which writes little
    assert (result["refused"] > 0) == (kind == "only_model")

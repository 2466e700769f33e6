"""Pickles in a checkpoint that one resumes from: planted, damaged, or of something else."""

import os
import pickle
import shutil
import zipfile

import pytest
import torch
from tiny import build_trainer, classifier, examples, table

CHECKPOINT = "checkpoint-2"


class Planted:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def resumed(folder, resume, **overrides):
    """A short run that is saved at its second and fourth step."""
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", **overrides}
    student, rows = classifier("bert", 0), table(examples("bert", 12))
    trainer = build_trainer(folder, student, classifier("bert", 9), rows, **given)
    trainer.train(resume_from_checkpoint=resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run; copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    resumed(folder, None)
    return folder


@pytest.fixture
def checkpoint(finished, tmp_path):
    """The only checkpoint of a copy of the run."""
    shutil.copytree(finished / CHECKPOINT, tmp_path / "run" / CHECKPOINT)
    return tmp_path / "run" / CHECKPOINT


FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "pytorch_model.bin")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", FILES)
def test_planted_code_is_named_and_does_not_run(name, protocol, checkpoint, tmp_path):
    """torch refuses it, and advises to load it all the same, with the check switched off."""
    trace = tmp_path / "it-ran"
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save({"state": Planted(trace)}, checkpoint / name, pickle_protocol=protocol)
    said = rf"resume_from_checkpoint=.*`{name}` naming {os.name}.mkdir, .*Nothing was loaded or run\. Do not use"
    if protocol == 4:  # in instructions that cannot be taken apart, which torch does not follow either
        said = rf"resume_from_checkpoint=.*cannot read `{name}` .*No code in it was run\."
    for resume in (True, str(checkpoint)):
        with pytest.raises(ValueError, match=said) as caught:
            resumed(checkpoint.parent, resume)
        assert "weights_only" not in str(caught.value)
    assert not trace.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert trace.exists(), "the planted code works, else this would prove nothing"


def other_generators(path):
    state = torch.load(path, weights_only=False)
    torch.save({**state, "cpu": torch.zeros(3, dtype=torch.uint8)}, path)


def emptied(path):
    """An archive with nothing of torch's in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "")


def without_storage(path):
    """A tensor's numbers are gone, the rest is whole."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith("data/0")}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


OTHER = {
    "optimizer.pt empty": emptied,
    "optimizer.pt cut": without_storage,
    "optimizer.pt list": lambda path: torch.save([1.0], path),
    "optimizer.pt other": lambda path: torch.save({"state": {}, "param_groups": [{"params": [0]}]}, path),
    "scheduler.pt empty": emptied,
    "scheduler.pt list": lambda path: torch.save([1.0], path),
    "rng_state.pth empty": emptied,
    "rng_state.pth list": lambda path: torch.save([1.0], path),
    "rng_state.pth lacking": lambda path: torch.save({"python": 1}, path),
    "rng_state.pth other": other_generators,
}


@pytest.mark.parametrize("case", OTHER)
def test_what_cannot_be_read_is_named(case, checkpoint, finished):
    """A KeyError about `param_groups` tells nobody which file to look at, nor that another checkpoint is whole."""
    name = case.split()[0]
    shutil.copytree(finished / "checkpoint-4", checkpoint.parent / "checkpoint-4")
    OTHER[case](checkpoint / name)
    said = rf"checkpoint-2'\)` cannot read `{name}` \(\w+: .*damaged, or the state of something else.*checkpoint-4"
    with pytest.raises(ValueError, match=said):
        resumed(checkpoint.parent, str(checkpoint))


def test_a_plain_pickle_is_no_file_of_torch(checkpoint, tmp_path):
    """The oldest form of all, which has no archive around it."""
    trace = tmp_path / "it-ran"
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Planted(trace)))
    with pytest.raises(ValueError, match="cannot read `optimizer.pt`"):
        resumed(checkpoint.parent, str(checkpoint))
    assert not trace.exists()


def test_running_out_of_memory_while_loading_is_not_called_damage(checkpoint, monkeypatch):
    """`auto_find_batch_size` must see it."""

    def full(*args):
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.lr_scheduler.LambdaLR, "load_state_dict", full)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        resumed(checkpoint.parent, str(checkpoint))

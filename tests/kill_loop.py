"""A run that is killed over and over, against the same run left alone. Started as a process of its own: it forks.

    python kill_loop.py FOLDER KIND KILLS SEED

The parent imports everything once and starts no thread; each child trains, and is killed at a random moment, every
second time while it saves. Prints one line of JSON: what was killed where, and whether the end is the same.
"""

import json
import os
import random
import select
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from tiny import build_trainer, classifier, examples, table, without_times
from transformers import AutoModelForSequenceClassification, TrainerCallback
from transformers.utils import logging

from hf_kd.trainer.complete import checkpoints, defect, last_complete

STEPS_PER_KILL = 5  # twice as many as a life lasts, on average
SAVED = 2
LONGEST_PAUSE = 0.04  # seconds, about what a save and its steps take: how busy the machine is may change
PATIENCE = 120  # seconds that a child may take

KINDS = {
    "constant": {"method": "kd"},
    "scheduled": {"method": "kd_annealed"},
    "ctkd": {"method": "ctkd", "temperature_learning_rate": 0.5},
    "ctkd_instance": {"method": "ctkd_instance"},
    "projector": {"method": "feature_mse"},
    "serialization": {"method": "kd", "method_kwargs": {"task_serialization": True}},
    "best": {"method": "ctkd", "temperature_learning_rate": 0.5},
    "best_alone": {"method": "ctkd", "temperature_learning_rate": 0.5, "save_total_limit": 1},
    "smaller_batches": {"method": "ctkd", "temperature_learning_rate": 0.5, "auto_find_batch_size": True},
    "model_init": {"method": "ctkd", "temperature_learning_rate": 0.5},
    "only_model": {"method": "kd", "save_only_model": True},
}
BEST = {"eval_strategy": "steps", "eval_steps": SAVED, "load_best_model_at_end": True}
REFUSED = 4


class Tell(TrainerCallback):
    """Writes a byte to the parent when training, or a save, begins."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_begin(self, args, state, control, **kwargs):
        os.write(self.pipe, b"t")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % SAVED == 0:
            os.write(self.pipe, b"s")


class Accuracy:
    """Rises and falls with the step, and is best at a third of the run."""

    def __init__(self, steps):
        self.best, self.trainer = steps // 3 // SAVED * SAVED, None

    def __call__(self, prediction):
        step = self.trainer.state.global_step
        return {"closeness": -abs(step - self.best) + (0.0, 3.5, -1.0)[step // SAVED % 3]}


def student(kind, steps):
    """The one that is trained; in one kind it does not fit into memory with as many rows as it is given, before it is
    first saved: from what was saved later on, a run would go on with more rows for as long as it fits."""
    made = classifier("bert", 0, hidden_dropout_prob=0.1)
    seen = []

    def forward(module, args, kwargs):
        seen.append(len(kwargs["input_ids"]))
        if len(seen) == SAVED and seen[-1] == 5:
            raise RuntimeError("CUDA out of memory.")

    if kind == "smaller_batches":
        made.register_forward_pre_hook(forward, with_kwargs=True)
    return made


def build(folder, kind, steps):
    """The trainer of a kind."""
    parts, given = {}, {"save_total_limit": 2, **KINDS[kind]}
    if kind == "model_init":
        parts["model_init"] = lambda: student(kind, steps)
    if kind.startswith("best"):
        parts |= {"eval_dataset": table(examples("bert", 8)), "compute_metrics": Accuracy(steps)}
        given |= {"metric_for_best_model": "closeness", **BEST}
    if kind == "smaller_batches":
        given |= {"per_device_train_batch_size": 5}
    trainer = build_trainer(
        folder,
        None if kind == "model_init" else student(kind, steps),
        classifier("bert", 9),
        table(examples("bert", 50, "mixed")),  # 13 steps an epoch
        max_steps=steps,
        learning_rate=0.01,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        train_sampling_strategy="random",
        max_grad_norm=1.0,
        logging_steps=4,
        save_strategy="steps",
        save_steps=SAVED,
        trainer=parts,
        **given,
    )
    if kind.startswith("best"):
        parts["compute_metrics"].trainer = trainer
    return trainer


def train(folder, kind, steps, pipe=None):
    """Train to the end, from the last whole checkpoint if there is one; leaves what is compared in `end.pt`."""
    trainer = build(folder, kind, steps)
    if pipe is not None:
        trainer.add_callback(Tell(pipe))
    output = trainer.train(resume_from_checkpoint=bool(checkpoints(folder)))
    end = {
        "student": trainer.model.state_dict(),
        "objective": dict(trainer.objective.state_dict()),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "own": trainer._objective_state.state(),
        "history": json.dumps(without_times(trainer.state.log_history), sort_keys=True),
        "loss": output.training_loss,
        "best": json.dumps([trainer.state.best_global_step, trainer.state.best_metric, best_name(trainer)]),
    }
    torch.save(end, Path(folder) / "end.pt")


def best_name(trainer):
    """The folder of the best checkpoint, if it is there."""
    best = trainer.state.best_model_checkpoint
    return best and Path(best).name if best is None or Path(best).is_dir() else "gone"


def child(folder, kind, steps, pipe):
    """A forked process that trains; never returns."""
    code = 1
    try:
        train(folder, kind, steps, pipe)
        code = 0
    except ValueError as error:
        if "holds no whole checkpoint" in str(error):  # killed within the very first save
            code = 3
        elif "save_only_model" in str(error) and kind == "only_model":
            code = REFUSED
        else:
            sys.stderr.write(f"{error}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(pipe, wanted, deadline):
    """Read until `wanted` bytes like this came; False if the child ended before."""
    while wanted:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        got = os.read(pipe, 1) if ready else b""
        if not got:
            return False
        wanted = wanted[1:] if got == wanted[:1] else wanted
    return True


def one_life(folder, kind, steps, moment):
    """Start a child and kill it at `moment`: what to wait for, then how many seconds more. None lets it live.

    Returns:
        Its exit code, -9 if it was killed.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(folder, kind, steps, write)
    os.close(write)
    deadline = time.monotonic() + PATIENCE
    if moment is not None:
        waited, delay = moment
        if wait_for(read, waited, deadline):
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read)
    return os.waitstatus_to_exitcode(status)


def lost(folder, had):
    """What a kill must not take: the last whole checkpoint, once there was one, and the best one that it names."""
    last, _ = last_complete(folder)
    if last is None:
        return int(had)
    best = json.loads((last / "trainer_state.json").read_text())["best_model_checkpoint"]
    return int(best is not None and defect(Path(best)) is not None)


def leftovers(folder):
    """How many checkpoints the killed process left half-written."""
    return sum(defect(path) is not None for path in checkpoints(folder))


def compare(one, other):
    """Which parts of the ends differ."""
    ends = [torch.load(Path(folder) / "end.pt", weights_only=True) for folder in (one, other)]
    differing = []
    for name in ends[0]:
        if isinstance(ends[0][name], str):
            differing += [name] if ends[0][name] != ends[1][name] else []
            continue
        try:
            torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=0)
        except AssertionError as error:
            differing.append(f"{name}: {str(error)[:200]}")
    return differing


def killed_until_done(folder, kind, steps, kills, draw, pause):
    """One run, killed up to so often, then left to end.

    Returns:
        What happened; `code` is that of the last life.
    """
    counts = dict.fromkeys(("kills", "half_written", "first_saves", "refused", "lost"), 0)
    while counts["kills"] < kills:
        saves = draw.randrange(3)
        moment = (b"t" + b"s" * (saves + 1), draw.uniform(0.0, 0.7 * pause))
        if counts["kills"] % 2:
            moment = (b"t" + b"s" * saves, draw.uniform(0.0, 1.5 * pause))
        if counts["kills"] % 10 == 9:
            moment = (b"", draw.uniform(0.0, 0.2))  # while it starts
        had = last_complete(folder)[0] is not None
        code = one_life(folder, kind, steps, moment)
        counts["lost"] += lost(folder, had)
        if code == REFUSED:  # the student alone; it can be loaded, and the run begins again
            counts["refused"] += 1
            AutoModelForSequenceClassification.from_pretrained(last_complete(folder)[0])
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path)
            continue
        if code == 3:  # nothing to resume: the first save was killed, and the run begins again
            counts["first_saves"] += 1
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path)
            continue
        if code != -signal.SIGKILL:
            return counts | {"code": code}
        counts["kills"] += 1
        counts["half_written"] += leftovers(folder) > 0
    code = one_life(folder, kind, steps, None)
    if code == REFUSED:
        counts["refused"] += 1
        shutil.rmtree(folder)
        code = one_life(folder, kind, steps, None)
    return counts | {"code": code}


def main(folder, kind, kills, seed):
    """Run the loop; a run that ends before it was killed often enough is followed by another."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    folder, draw, steps = Path(folder), random.Random(seed), STEPS_PER_KILL * kills
    began = time.monotonic()
    assert one_life(folder / "whole", kind, steps, None) == 0
    pause = min(max(0.004, (time.monotonic() - began) / (steps // SAVED)), LONGEST_PAUSE)
    result = {"runs": 0, "kills": 0, "half_written": 0, "first_saves": 0, "refused": 0, "lost": 0}
    result |= {"code": 0, "differing": []}
    while result["kills"] < kills and result["code"] == 0:
        result["runs"] += 1
        ended = folder / f"killed-{result['runs']}"
        found = killed_until_done(ended, kind, steps, kills - result["kills"], draw, pause)
        result = {key: value + found.get(key, 0) if key != "differing" else value for key, value in result.items()}
        result["differing"] += compare(folder / "whole", ended) if found["code"] == 0 else []
    sys.stdout.write(json.dumps(result | {"seconds": round(time.monotonic() - began, 1)}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

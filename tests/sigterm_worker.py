"""Two processes of which some get SIGTERM; `torchrun` executes this file: `sigterm_worker.py FOLDER CASE...`.

A case is RANK:WHERE of every signal, joined by "+". Writes what became of it to `report.json`; ends with the code of
the last case.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from tiny import build_trainer, classifier, examples, table, without_times
from transformers import TrainerCallback

from hf_kd.experiment.running import SaveAtSignal, TrainingStopped

RANK = int(os.environ.get("RANK", "0"))
STEPS = 8


class Signalled(TrainerCallback):
    """Sends SIGTERM to this process at its moments: "begin" and "end" of step 3, "save" of what follows from it."""

    def __init__(self, moments):
        self.moments = moments

    def _send(self, moment):
        if moment in self.moments:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self._send("begin")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self._send("end")

    def on_save(self, args, state, control, **kwargs):
        self._send("save")


def run(folder, seed, resume=None, moments=()):
    """A trainer after its training; stopped ones have the exception beside them."""
    trainer = build_trainer(
        folder,
        classifier("bert", seed, hidden_dropout_prob=0.1),
        classifier("bert", 9),
        table(examples("bert", 24, "mixed")),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=100,
        optim="adamw_torch",
        learning_rate=0.01,
        method="ctkd",
        temperature_learning_rate=0.5,
        method_kwargs={"curriculum": 0.0},
        train_sampling_strategy="random",
        logging_steps=2,
    )
    trainer.add_callback(Signalled(moments))
    if "WITHOUT_GROUP" in os.environ:  # no group beside the training's own
        torch.distributed.is_gloo_available = lambda: False
    stopped = None
    try:
        with SaveAtSignal().watching(trainer):
            trainer.train(resume_from_checkpoint=resume)
    except TrainingStopped as error:
        stopped = error
    return trainer, stopped


def end(trainer):
    """What must be the same in the end."""
    tensors = {**trainer.model.state_dict(), **trainer._objective_state.state()}
    moments = trainer.optimizer.state_dict()["state"]
    tensors |= {f"{i}.{name}": value for i, state in moments.items() for name, value in state.items()}
    return tensors, without_times(trainer.state.log_history)


def main(folder, *cases):
    folder, reports, stopped = Path(folder), {}, None
    whole = end(run(folder / "whole", 0)[0])
    for case in cases:
        place = folder / case.replace(":", "-")
        moments = [moment for rank, moment in (part.split(":") for part in case.split("+")) if int(rank) == RANK]
        trainer, stopped = run(place, 0, moments=moments)
        folders = sorted(path.name for path in place.glob("checkpoint-*"))
        resumed, _ = run(place, 1, resume=True)
        tensors, records = end(resumed)
        torch.testing.assert_close(tensors, whole[0], rtol=0, atol=0)
        assert records == whole[1]
        reports[case] = {"code": stopped.code, "step": trainer.state.global_step, "checkpoints": folders}
    (folder / f"report-{RANK}.json").write_text(json.dumps(reports))
    raise stopped


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])

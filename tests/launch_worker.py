"""A short training that any launcher can start: `python launch_worker.py FOLDER SETTINGS`, settings as JSON.

Two epochs over the same eight rows, saved after each, then the second epoch again from the first one's checkpoint.
"""

import json
import sys
from pathlib import Path

from tiny import Rows, build_trainer, classifier, examples, without_times

ROWS = 8
OPTIMIZER = {"optim": "adamw_torch", "adam_epsilon": 1.0}
"""It has a state, without which FSDP does not resume; and a gradient that is all rounding stays as small as it is."""


def run(folder, resume=None, *, architecture="bert", **settings):
    """The trainer after its training; its student, as a user would publish it, lies in `folder`."""
    world = settings.pop("world", 1)
    trainer = build_trainer(
        folder,
        classifier(architecture, 0 if resume is None else 7),  # what it starts from is in the checkpoint
        classifier(architecture, 1),
        Rows(examples(architecture, ROWS, "mixed")),
        per_device_train_batch_size=ROWS // world,
        save_strategy="epoch",
        **{"num_train_epochs": 2, "learning_rate": 0.1, "max_grad_norm": 1e9, **OPTIMIZER, **settings},
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder))
    return trainer


def report(trainer):
    """What a launch made of the training."""
    scaler = trainer.accelerator.scaler
    return {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "scale": None if scaler is None else scaler.get_scale(),
        "records": without_times(trainer.state.log_history),
    }


def main(folder, settings):
    """Train, resume, and write both reports."""
    folder, settings = Path(folder), json.loads(settings)
    reports = {"whole": report(run(folder / "whole", **settings))}
    trainer = run(folder / "resumed", str(folder / "whole" / "checkpoint-1"), **settings)
    reports["resumed"] = report(trainer)
    if trainer.is_world_process_zero():
        (folder / "reports.json").write_text(json.dumps(reports))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])

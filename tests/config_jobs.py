"""What `test_configs.py` runs in a process whose Hub is on loopback: every configuration, two steps each."""

import json
import os
import traceback
from dataclasses import asdict
from pathlib import Path

import datasets
import torch

from hf_kd.data import streaming
from hf_kd.experiment import load_config, run_experiment

QUICK = (
    "training.max_steps=2",
    "training.per_device_train_batch_size=4",
    "training.per_device_eval_batch_size=16",
    "training.dataloader_num_workers=0",
    "training.dataloader_pin_memory=false",
    "training.logging_steps=1",
    "training.use_cpu=true",
    "training.disable_tqdm=true",
)
"""What a run of a moment on any machine needs; all else is the configuration's."""


def run_all(folder, *paths):
    """`path -> what came of it`, or the error; teachers first, where a configuration names its folder."""
    os.chdir(folder)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    streaming.HELD_OUT_ROWS = 8  # the stand-in for ImageNet has 40 rows
    return {path: outcome(path) for path in sorted(paths, key=lambda path: "teacher" not in path)}


def outcome(path):
    """What a run wrote down."""
    overrides = list(QUICK)
    try:
        if load_config(path).teacher is not None:
            overrides.append("teacher.sanity_check=false")  # its weights are random
        result = run_experiment(load_config(path, overrides))
    except Exception:  # noqa: BLE001 - the next configuration is not to blame
        return {"error": traceback.format_exc()}
    folder = Path(result.output_dir)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {
        "error": None,
        "result": asdict(result),
        "losses": [record["loss"] for record in log if "loss" in record],
        "evaluations": sum("eval_loss" in record for record in log),
        "teacher": read(folder / "teacher.json"),
        "models": read(folder / "environment.json")["models"],
        "files": sorted(path.name for path in folder.iterdir()),
    }


def read(path):
    return json.loads(path.read_text()) if path.exists() else None

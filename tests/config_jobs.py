"""What `test_configs.py` runs in a process whose Hub is on loopback: every configuration, two steps each."""

import gc
import json
import traceback
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
    """`path -> what came of it`, or the error."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    streaming.HELD_OUT_ROWS = 8  # the stand-in for ImageNet has 40 rows
    return {path: outcome(path, Path(folder) / Path(path).with_suffix("").name) for path in paths}


def outcome(path, folder):
    gc.collect()
    overrides = [*QUICK, f"output_dir={folder}"]
    try:
        if load_config(path).teacher is not None:
            overrides.append("teacher.sanity_check=false")  # its weights are random
        result = run_experiment(load_config(path, overrides))
    except Exception:
        return {"error": traceback.format_exc()}
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    facts = folder / "teacher.json"
    return {
        "error": None,
        "steps": result.train_steps,
        "method": result.method,
        "metric": result.metric,
        "test": result.test,
        "description": result.data_description,
        "losses": [record["loss"] for record in log if "loss" in record],
        "teacher": json.loads(facts.read_text()) if facts.exists() else None,
        "models": json.loads((folder / "environment.json").read_text())["models"],
        "files": sorted(str(found.relative_to(folder)) for found in folder.rglob("*") if found.is_file()),
        "architecture": json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else None,
    }

"""What `test_configs.py` runs in a process whose Hub is on loopback: every configuration, two steps each.

Started by torch's launcher as `config_jobs.py FOLDER PATH...`, it runs them on several processes.
"""

import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import datasets
import torch

from hf_kd.compare import compare as run_comparison
from hf_kd.compare import load_comparison
from hf_kd.data import streaming
from hf_kd.experiment import load_config, run_experiment
from hf_kd.report import write_report

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

SECONDS = 450


def run_all(folder, *paths):
    """`path -> what came of it`, or the error; teachers first, where a configuration names its folder."""
    prepare(folder)
    return {path: outcome(path) for path in sorted(paths, key=lambda path: "teacher" not in path)}


def run_lines(folder, lines):
    """`line -> what came of it` for lines of `PATH OVERRIDE...`, as JSON, each in a folder of its own."""
    prepare(folder)
    done = {}
    for number, line in enumerate(json.loads(lines)):
        path, *overrides = line
        done[" ".join(line)] = outcome(path, *overrides, f"output_dir=lines/{number}")
    return done


def compare(folder, path, root):
    """A short form of a comparison, from a checkout, and its report."""
    prepare(folder)
    (Path(folder) / "configs").symlink_to(Path(root) / "configs")
    short = [line for line in QUICK if "max_steps" not in line]
    methods = ["compare.seeds=1", "compare.methods=[kd]", "compare.latency=false", "teacher.sanity_check=false"]
    mapping, section = load_comparison(
        path, [*short, *methods, "training.num_train_epochs=1", "teacher_cache.views=1"]
    )
    done = run_comparison(mapping, section)
    page = write_report(done.folder).page
    lines = [json.loads(line) for line in (Path(done.folder) / "results.jsonl").read_text().splitlines()]
    return {
        "states": Counter(line["state"] for line in lines),
        "teacher_accuracy": lines[0]["teacher_test"]["accuracy"],
        "page": page.stat().st_size,
    }


def run_on_two(folder, *paths):
    """As `run_all`, on two processes; a failure of either ends them all."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    launcher += ["--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, __file__, folder, *paths],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS,
    )  # fmt: skip
    if done.returncode:
        return {"error": done.stdout[done.stdout.find("Traceback") :][:6000]}
    return json.loads((Path(folder) / "outcomes.json").read_text())


def prepare(folder):
    os.chdir(folder)
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    streaming.HELD_OUT_ROWS = 8  # the stand-in for ImageNet has 40 rows


def main(folder, *paths):
    """One of the processes."""
    prepare(folder)
    done = {}
    for path in sorted(paths, key=lambda path: "teacher" not in path):
        result = run(path)
        torch.distributed.barrier()  # the first one writes; and a student's teacher may be the one before
        done[path] = written(result)
    if torch.distributed.get_rank() == 0:
        Path("outcomes.json").write_text(json.dumps(done))
    torch.distributed.destroy_process_group()


def outcome(path, *overrides):
    """What a run wrote down, or the error."""
    try:
        return written(run(path, *overrides))
    except Exception:  # noqa: BLE001 - the next configuration is not to blame
        return {"error": traceback.format_exc()}


def run(path, *overrides):
    """A short run of a configuration."""
    overrides = [*overrides, *QUICK]
    if load_config(path, overrides).teacher is not None:
        overrides.append("teacher.sanity_check=false")  # its weights are random
    return run_experiment(load_config(path, overrides))


def written(result):
    """What a run wrote down."""
    folder = Path(result.output_dir)
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {
        "error": None,
        "result": asdict(result),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "losses": [record["loss"] for record in log if "loss" in record],
        "evaluations": sum("eval_loss" in record for record in log),
        "teacher": read(folder / "teacher.json"),
        "models": read(folder / "environment.json")["models"],
        "files": sorted(path.name for path in folder.iterdir()),
    }


def read(path):
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main(*sys.argv[1:])

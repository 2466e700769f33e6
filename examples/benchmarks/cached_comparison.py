"""What a teacher cache saves: six methods under three seeds, with the teacher running and with its answers stored.

    python examples/benchmarks/cached_comparison.py outputs/cached_comparison

Every pair of runs is the same run twice, in turns of which comes first; the cache is filled inside the first cached
one and its time counts there. A run is timed from the loaded data to the written results: building the models,
training, scoring, saving. Then runs of each kind in processes of their own say by how much the process grows at most
(Linux).

The teacher is a ViT of 6.3 million parameters with fresh weights, the student one of 0.46 million, on the embedded
digits: what they learn plays no part here. Writes `timings.json`; nothing is downloaded.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageClassification, ViTConfig

from hf_kd import load_task
from hf_kd.experiment import parse_config, run_experiment

METHODS = ("kd", "ctkd", "dtkd", "wttm", "dkd", "dist")
SEEDS = (0, 1, 2)
ALONE, LIVE, CACHED = "student alone", "live", "cached"


def vit(width, layers):
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
        "patch_size": 2,
    }


def save_teacher(folder, task):
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        settings = {key: value for key, value in vit(256, 8).items() if key != "model_type"}
        config = ViTConfig(**settings, image_size=8, num_channels=3, id2label=task.id2label, label2id=task.label2id)
        AutoModelForImageClassification.from_config(config).save_pretrained(folder)
        task.processing_class.save_pretrained(folder)


def config(folder, kind, method, seed, epochs):
    given = {
        "output_dir": str(folder / "runs" / f"{kind.replace(' ', '_')}_{method}_{seed}"),
        "seed": seed,
        "student": {"config": vit(96, 4)},
        "data": {"name": "embedded/digits"},
        "training": {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 256,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        },
    }
    if kind == ALONE:
        return parse_config({**given, "objective": {"ce_weight": 1.0, "kd_weight": 0.0}})
    given |= {"teacher": {"model": str(folder / "teacher"), "sanity_check": False}, "method": method}
    return parse_config(given | ({"teacher_cache": str(folder / "cache")} if kind == CACHED else {}))


def timed(config, task):
    started, cpu = time.perf_counter(), time.process_time()
    run_experiment(config, task=task)
    return time.perf_counter() - started, time.process_time() - cpu


def memory(name):
    """MiB, as the system counts them for this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak_of(folder, kind, epochs):
    """MiB by which a run in a process of its own lets it grow at most."""
    command = [sys.executable, __file__, str(folder), "--alone", kind, "--epochs", str(epochs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--alone", choices=(ALONE, LIVE, CACHED), help="One run, and the memory it takes at most.")
    given = parser.parse_args()
    task = load_task("embedded/digits")
    save_teacher(given.folder / "teacher", task)
    if given.alone:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of before
        before = memory("VmRSS")
        run_experiment(config(given.folder, given.alone, "kd", 0, given.epochs), task=task)
        print(memory("VmHWM") - before)
        return
    runs = []
    for number, (method, seed) in enumerate((method, seed) for method in given.methods for seed in given.seeds):
        for kind in (LIVE, CACHED) if number % 2 == 0 else (CACHED, LIVE):
            wall, cpu = timed(config(given.folder, kind, method, seed, given.epochs), task)
            runs.append({"kind": kind, "method": method, "seed": seed, "seconds": wall, "cpu_seconds": cpu})
            print(f"{method} {seed} {kind}: {wall:.1f} s", file=sys.stderr)
    peaks = {kind: [peak_of(given.folder, kind, 1) for _ in range(3)] for kind in (ALONE, CACHED, LIVE)}
    (given.folder / "timings.json").write_text(json.dumps({"runs": runs, "peak_mib": peaks}, indent=2) + "\n")
    report(runs, peaks)


def report(runs, peaks):
    table = Table("", "live", "cached", "cached / live", title="Seconds of all runs together")
    for key, name in (("seconds", "wall clock"), ("cpu_seconds", "CPU")):
        live, cached = (sum(run[key] for run in runs if run["kind"] == kind) for kind in (LIVE, CACHED))
        table.add_row(name, f"{live:.1f}", f"{cached:.1f}", f"{cached / live:.3f}")
    console = Console()
    console.print(table)
    memory = Table("", "MiB (median of 3)", "/ student alone", title="By how much a run lets its process grow")
    for kind, values in peaks.items():
        peak, base = statistics.median(values), statistics.median(peaks[ALONE])
        memory.add_row(kind, f"{peak:.0f}", f"{peak / base:.3f}")
    console.print(memory)


if __name__ == "__main__":
    main()

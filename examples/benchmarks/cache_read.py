"""How fast a teacher cache is read: opening it, finding rows, and picking them in random order.

    python examples/benchmarks/cache_read.py
    python examples/benchmarks/cache_read.py --rows 200000 --classes 1000 --dtypes float16 --json read.json

Answers to rows with random keys are written to a temporary folder, in files as a run would write them. `own memory` is
what reading everything adds to the process beside mapped files, which the system may drop at any time.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from hf_kd import TeacherCache

BATCHES = (64, 256, 4096)
SECONDS = 3.0
PER_FILE = 150_000


def keys_of(rows):
    return np.random.default_rng(0).integers(-(2**62), 2**62, (rows, 2))


def make(folder, rows, classes, dtype):
    cache = TeacherCache(folder, dtype=dtype)
    names = [f"class {i}" for i in range(classes)]
    teacher = {"name": "teacher", "weights": "0", "precision": "float32"}
    facts = {"teacher": teacher, "classes": names, "problem_type": "single_label_classification", "features": None}
    cache.claim({**facts, "columns": ["x"]})
    keys = keys_of(rows)
    for start in range(0, rows, PER_FILE):
        part = keys[start : start + PER_FILE]
        cache.write(part, np.zeros(len(part), dtype=np.int64), torch.randn(len(part), classes), -1)


def own_memory():
    """MiB; None where the system does not say."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), None)


def read(folder, rows, batch, seed, seconds=SECONDS):
    """Rows per second of one process, in random order."""
    torch.set_num_threads(1)
    cache, keys = TeacherCache(folder), keys_of(rows)
    places, order = cache.find(keys), np.random.default_rng(seed).permutation(rows)
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        chosen = order[np.arange(done, done + batch) % rows]
        cache.read(places[chosen], keys[chosen])
        done += batch
    return done / passed


def grown(folder, rows):
    """What a process needs more after it has read everything once, MiB."""
    cache, keys = TeacherCache(folder), keys_of(rows)
    places, before = cache.find(keys), own_memory()
    for start in range(0, rows, 4096):
        cache.read(places[start : start + 4096], keys[start : start + 4096])
    return None if before is None else own_memory() - before


def measure(folder, rows, dtype, processes):
    keys, started = keys_of(rows), time.perf_counter()
    cache = TeacherCache(folder)
    opened = time.perf_counter()
    cache.find(keys)
    found = {"dtype": dtype, "open_s": opened - started, "find_s": time.perf_counter() - opened}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found["own_memory_mib"] = pool.apply(grown, (folder, rows))
        for count in sorted({1, processes}):
            for batch in BATCHES:
                rates = pool.starmap(read, [(folder, rows, batch, seed) for seed in range(count)], chunksize=1)
                found[f"rows_per_s_{batch}_x{count}"] = sum(rates)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = []
    for dtype in given.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "cache", given.rows, given.classes, dtype)
            results.append(measure(Path(folder) / "cache", given.rows, dtype, given.processes))
    table = Table("", *given.dtypes, title=f"{given.rows:,} rows of {given.classes:,} classes")
    for name in results[0]:
        if name != "dtype":
            values = (result[name] for result in results)
            cells = ("-" if v is None else f"{v:,.0f}" if v >= 100 else f"{v:.2f}" for v in values)
            table.add_row(name.replace("_", " "), *cells)
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({"rows": given.rows, "classes": given.classes, "results": results}, indent=2))


if __name__ == "__main__":
    main()

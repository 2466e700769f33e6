"""What an objective costs by itself: forward and backward of each method on logits, in milliseconds.

    python examples/benchmarks/objective_cost.py --rows 256 --classes 1000

Row-wise methods by default; `--methods` names others. With `--step MS`, the time of a whole training step, also the
share of it. Medians over repeats, with the quartiles; on the device `--device`.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from hf_kd import METHODS, build_objective

ALONE = "cross-entropy alone"


def objective_of(method, classes):
    if method == ALONE:
        return build_objective("kd", num_labels=classes, kd_weight=0.0, ce_weight=1.0)
    return build_objective(method, num_labels=classes)


def is_plain(method):
    """Row by row, on logits alone."""
    objective = build_objective(method, num_labels=10)
    single = all("single_label_classification" in loss.problem_types for loss in objective.losses)
    return single and not objective.needs and not objective.has_relations and not objective.task_serialization


def milliseconds(objective, rows, classes, device, repeats):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, classes, generator=generator).to(device) for _ in range(2))
    labels = torch.randint(0, classes, (rows,), generator=generator).to(device)
    objective.to(device)
    student.requires_grad_()
    found = []
    for repeat in range(repeats + 3):
        started = time.perf_counter()
        for _ in range(5):
            objective(student, teacher, labels).loss.backward()
            student.grad = None
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if repeat >= 3:
            found.append(1000 * (time.perf_counter() - started) / 5)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--step", type=float, help="Milliseconds of a whole step.")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--methods", nargs="+")
    given = parser.parse_args()
    methods = given.methods or [ALONE, *(name for name in METHODS if is_plain(name))]
    title = f"{given.rows} rows of {given.classes} classes, {given.device}, {torch.get_num_threads()} threads"
    table = Table("method", "ms", "quartiles", *(["of a step"] if given.step else []), title=title)
    for method in methods:
        found = milliseconds(
            objective_of(method, given.classes), given.rows, given.classes, given.device, given.repeats
        )
        low, middle, high = statistics.quantiles(found, n=4)
        share = [f"{middle / given.step:.2%}"] if given.step else []
        table.add_row(method, f"{middle:.2f}", f"{low:.2f}–{high:.2f}", *share)
    Console().print(table)


if __name__ == "__main__":
    main()

"""Does distillation help a tiny BERT on intents when nothing is pretrained? Seven ways, three seeds, two data sets.

    python examples/benchmarks/intents.py outputs/intents
    python examples/benchmarks/intents.py outputs/intents --data banking77 --path ~/data/banking77 --tokenizer ~/vocab

One teacher per data set answers once about all rows; all students then learn from its stored logits, with the same
rows, steps and initial weights per seed. Finished runs are kept: call it again to go on. `--path` is a local copy of
one data set, `--tokenizer` a local tokenizer, where the Hub is not at hand.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ALONE = "student alone"
METHODS = (ALONE, "kd", "ctkd", "dtkd", "wttm", "dkd", "dist")
SEEDS = (0, 1, 2)


def hf_kd(*arguments):
    subprocess.run([sys.executable, "-m", "hf_kd", *map(str, arguments)], check=True)


def results(folder):
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class Comparison:
    def __init__(self, data, folder, path, tokenizer):
        self.configs, self.folder = CONFIGS / data, folder / data
        self.teacher, self.taught = self.folder / "teacher", self.folder / "taught"
        self.common = ["training.report_to=none", "training.disable_tqdm=true"]
        self.common += [f"student.processor={tokenizer}"] if tokenizer else []
        self.path = [f"data.path={path}"] if path else []

    def train_teacher(self):
        if results(self.teacher) is None:
            place = f"output_dir={self.teacher}"
            hf_kd("train", self.configs / "scratch_teacher.yaml", place, *self.path, *self.common)
        if not self.taught.exists():
            place = f"teacher.model={self.teacher}"
            hf_kd("add-logits", self.configs / "scratch_student.yaml", self.taught, place, *self.path, *self.common)

    def run(self, method, seed):
        folder = self.folder / f"{method.replace(' ', '_')}_{seed}"
        if results(folder) is None:
            processor = [] if any("student.processor" in text for text in self.common) else [self.taught / "processor"]
            options = [f"data.path={self.taught}", *self.common, *(f"student.processor={path}" for path in processor)]
            options += [f"output_dir={folder}", f"seed={seed}"]
            if method == ALONE:
                options += ["teacher=null", "method=null", "objective={ce_weight: 1.0, kd_weight: 0.0}"]
            else:
                options += ["teacher={column: teacher_logits}", f"method={method}"]
                options += ["training.evaluate_with_teacher=true"]
            hf_kd("train", self.configs / "scratch_student.yaml", *options)
        return results(folder)

    def table(self):
        teacher = results(self.teacher)
        alone = [self.run(ALONE, seed)["test"]["accuracy"] for seed in SEEDS]
        rows = [
            f"{self.configs.name}: teacher of {teacher['student_parameters']:,} parameters, rows "
            f"{teacher['data_fingerprint']}; {len(SEEDS)} seeds, test rows, mean ± sd",
            "",
            "| | accuracy | gain over the student alone, by seed | agreement | ECE |",
            "|---|---|---|---|---|",
            f"| teacher (1 seed) | {teacher['test']['accuracy']:.4f} | | | {teacher['test']['ece']:.3f} |",
        ]
        for method in METHODS:
            runs = [self.run(method, seed) for seed in SEEDS]
            scores = {key: [run["test"].get(key) for run in runs] for key in ("accuracy", "agreement", "ece")}
            gains = [after - before for after, before in zip(scores["accuracy"], alone, strict=True)]
            said = ", ".join(f"{gain:+.4f}" for gain in gains) if method != ALONE else ""
            cells = [spread(scores[key]) for key in ("accuracy", "agreement", "ece")]
            rows.append(f"| {method} | {cells[0]} | {said} | {cells[1]} | {cells[2]} |")
        return "\n".join(rows)


def spread(values):
    return "" if None in values else f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs go")
    parser.add_argument("--data", choices=("clinc150", "banking77"), help="only this data set")
    parser.add_argument("--path", type=Path, help="a local copy of it")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer, instead of the Hub's")
    arguments = parser.parse_args()
    if arguments.path and not arguments.data:
        parser.error("--path is a copy of one data set: say which with --data")
    for data in [arguments.data] if arguments.data else ("clinc150", "banking77"):
        comparison = Comparison(data, arguments.folder.absolute(), arguments.path, arguments.tokenizer)
        comparison.train_teacher()
        for seed in SEEDS:
            for method in METHODS:
                comparison.run(method, seed)
        print(comparison.table(), flush=True)


if __name__ == "__main__":
    main()

"""Folders of comparisons as `hf-kd compare` leaves them, made by hand: no model, no training."""

import json
from pathlib import Path

import numpy as np

from hf_kd.report.opening import slug
from hf_kd.statistics_of_runs import summarise
from hf_kd.test_rows import TestRows, read_test_rows, write_test_rows

METHODS = ("alone", "kd", "dkd", "dist", "ctkd", "dtkd", "ttm", "wttm", "mlkd", "lskd")
GAINS = {"alone": 0.0, "kd": 0.02, "dkd": 0.035, "dist": 0.03, "ctkd": 0.021, "dtkd": 0.018, "ttm": 0.04}
GAINS |= {"wttm": 0.045, "mlkd": 0.012, "lskd": -0.02}
VERSIONS = {"hf_kd": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "transformers": "5.23.0"}
HARDWARE = {"device": "cuda", "accelerator": "NVIDIA H200", "platform": "Linux-6.1-x86_64"}


def make_comparison(
    folder,
    *,
    methods=METHODS[:3],
    seeds=(0, 1, 2),
    pairs=(("resnet32x4", "resnet8x4"),),
    classes=10,
    rows=400,
    epochs=12,
    protocol="last",
    name="quick",
    class_names=None,
    with_summary=True,
    states=None,
):
    """Write a comparison.

    Args:
        folder: Where.
        methods: Labels, `alone` among them for a baseline.
        seeds: Of the runs.
        pairs: `(teacher, student)`.
        classes: How many.
        rows: Test rows.
        epochs: Of each run.
        protocol: As in the header.
        name: Of the comparison.
        class_names: Instead of made-up ones.
        with_summary: Write `summary.json`.
        states: `{(method, seed): "failed", "unfinished" or "not started"}`; all others finished.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = class_names or [f"class {index:02d}" for index in range(classes)]
    header = _header(methods, seeds, pairs, protocol, name, rows)
    (folder / "comparison.json").write_text(json.dumps(header, indent=2), encoding="utf-8")
    lines = []
    for number, pair in enumerate(header["pairs"]):
        for method in methods:
            for seed in seeds:
                state = (states or {}).get((method, seed), "finished")
                where = f"runs/{slug(pair['name'])}/{slug(method)[:60]}/seed{seed}"
                made = _run(folder / where, pair, method, seed, state, names, rows, epochs, number)
                if made:
                    lines.append({**made, "folder": where})
                    if protocol == "best_test" and state == "finished":
                        lines[-1] |= {"best_test_accuracy": made["test"]["accuracy"] + 0.004, "best_test_epoch": 7}
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    if with_summary:
        summary = summarise(lines, header, lambda line: read_test_rows(folder / line["folder"]))
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def _header(methods, seeds, pairs, protocol, name, rows):
    return {
        "format": 1,
        "name": name,
        "metric": "accuracy",
        "greater_is_better": True,
        "protocol": protocol,
        "seeds": list(seeds),
        "pairs": [
            {"name": f"{teacher}-{student}", "teacher": teacher, "student": student, "methods": list(methods)}
            for teacher, student in pairs
        ],
        "methods": [
            {"label": label, "baseline": label == "alone", "section": {} if label == "alone" else {"name": label}}
            for label in methods
        ],
        "config": {"training": {"learning_rate": 0.05, "num_train_epochs": 12}, "compare": {"seeds": list(seeds)}},
        "data": {
            "name": "cifar100",
            "fingerprint": "0123abcd4567",
            "description": "60,000 pictures of 32x32 pixels.",
            "train_rows": 50000,
            "test_rows": rows,
        },
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "command": f"hf-kd compare configs/cifar100/{name}.yaml",
    }


def _run(folder, pair, method, seed, state, names, rows, epochs, number):
    if state == "not started":
        return None
    line = {"pair": pair["name"], "method": method, "seed": seed, "state": state}
    if state == "failed":
        return line | {"error": "FloatingPointError: `kd_loss` became non-finite in step 12 at temperature 4"}
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, number, METHODS.index(method) if method in METHODS else 99])
    answers = _answers(generator, np.random.default_rng([7, 7, 7, number]), names, rows, method)
    accuracy, same = float(answers.right.mean()), answers.prediction == answers.teacher_prediction
    if method == "alone":
        answers = TestRows(answers.label, answers.prediction, answers.confidence, answers.loss, answers.classes)
    history = _history(generator, method, epochs if state == "finished" else epochs // 2, accuracy)
    place = folder if state == "finished" else folder / "checkpoint-40"
    place.mkdir(exist_ok=True)
    (place / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
    if state != "finished":
        return None
    write_test_rows(folder, answers)
    test = {"accuracy": accuracy, "loss": 1.1 - accuracy / 2, "ece": 0.05 + 0.01 * generator.random()}
    if method != "alone":
        test |= {"agreement": float(same.mean()), "teacher_accuracy": 0.79}
    return line | {
        "validation": {"accuracy": accuracy + 0.003, "loss": 1.0},
        "test": test,
        "teacher_test": None if method == "alone" else {"accuracy": 0.79},
        "student_parameters": 1233540 + 500000 * number,
        "teacher_parameters": 7433860,
        "train_steps": 40 * epochs,
        "train_seconds": 600.0 + 40 * generator.random() + (0 if method == "alone" else 150),
        "total_seconds": 812.0,
        "latency_ms": 3.2 + number,
        "fingerprint": f"{seed:04x}beef",
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "finished_at": "2026-11-21T12:00:00Z",
    }


def _answers(generator, of_the_teacher, names, rows, method):
    """A student that is wrong where the teacher is rather more often, and worse on the first classes."""
    k = len(names)
    label = np.arange(rows) % k
    teacher_right = of_the_teacher.random(rows) < 0.79
    teacher = np.where(teacher_right, label, (label + 1 + of_the_teacher.integers(0, 3, rows)) % k)
    chance = 0.72 + GAINS.get(method, 0.01) - 0.25 * (label < max(k // 10, 1)) + 0.1 * teacher_right
    right = generator.random(rows) < chance
    prediction = np.where(right, label, (label + generator.integers(1, min(6, k), rows)) % k)
    confidence = np.clip(0.55 + 0.4 * generator.random(rows) * (0.6 + 0.4 * right), 1 / k, 1)
    return TestRows(
        label=label.astype(np.int32),
        prediction=prediction.astype(np.int32),
        confidence=confidence.astype(np.float32),
        loss=generator.random(rows).astype(np.float32),
        classes=tuple(names),
        teacher_prediction=teacher.astype(np.int32),
        teacher_confidence=np.clip(0.6 + 0.4 * of_the_teacher.random(rows), 0, 1).astype(np.float32),
    )


def _history(generator, method, epochs, accuracy):
    records = []
    for epoch in range(1, epochs + 1):
        share = 1 - np.exp(-4 * epoch / epochs)
        noise = 0.01 * generator.standard_normal()
        ce, kd = 4.6 - 3.4 * share + 10 * noise, 8 - 5 * share + 10 * noise
        record = {"step": 40 * epoch, "epoch": float(epoch), "loss": ce, "learning_rate": 0.05}
        if method != "alone":
            record |= {"loss": 0.1 * ce + 0.9 * kd, "ce_loss": 0.1 * ce, "kd_loss": 0.9 * kd}
            record |= _temperatures(method, share)
        scores = {"eval_accuracy": float(accuracy * share + noise), "eval_loss": 4.6 - 3.2 * share + noise}
        if method != "alone":
            scores |= {"eval_agreement": 0.9 * float(accuracy * share + noise)}
        records += [record, {"step": 40 * epoch, "epoch": float(epoch), **scores}]
    last = {"step": 40 * epochs, "epoch": float(epochs)}
    return [*records, last | {"train_runtime": 600.0, "train_loss": 2.0}, last | {"eval_accuracy": 0.0}]


def _temperatures(method, share):
    spread = 1.6 if method in ("dtkd", "ctkd") else 1.0
    mean = 4.0 - (2.0 * share if method in ("ctkd", "dtkd", "wttm") else 0.0)
    of_the_teacher = mean * (1.2 if method == "dtkd" else 1.0)
    record = {}
    for side, value in (("student", mean), ("teacher", of_the_teacher)):
        record |= {f"temperature/{side}_mean": value, f"temperature/{side}_min": value / spread}
        record |= {f"temperature/{side}_max": value * spread}
    return record

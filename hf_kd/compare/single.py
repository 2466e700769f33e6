"""One run of a comparison, or the preparation of a pair: what a process does, be it this one or a worker."""

import gc
import math
import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..adapters import SELF
from ..data import Task
from ..experiment.build import build_arguments, build_task, build_teacher, processor_source
from ..experiment.cached_teacher import fill_cache
from ..experiment.config import ExperimentConfig, parse_config
from ..experiment.run import ExperimentResult, run_experiment
from ..experiment.student import build_student
from ..registry import ConfigError
from ..statistics_of_runs import FAILED, FINISHED
from ..trainer.complete import last_complete
from ..trainer.hub import environment
from ..training_args import is_greater_better
from .hardware import hardware
from .section import BEST_TEST
from .watching import Beginning, ScoresByEpoch, Steps

logger = logging.get_logger(__name__)

ERROR = "error.txt"
KEPT_TASKS = 2
WARM_UP, TIMED = 10, 50
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.*", "pytorch_model*")
_BROKEN_DEVICE = ("CUDA error", "device-side assert", "an illegal memory access")

Event = Callable[[dict[str, Any]], None]


class Executor:
    """Prepares pairs and runs runs in this process, one after another; data and teacher stay in memory between them.

    Args:
        on_event: Told how far it is.
    """

    def __init__(self, on_event: Event):
        self.on_event = on_event
        self.tasks: dict[str, Task] = {}
        self.teacher: tuple[str, Any] | None = None

    def prepare(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Load the data of a pair, ask its teacher what is to be kept, and time its student.

        Returns:
            What all runs of the pair share: the data in words and numbers, the metric, the teacher's test accuracy.

        Raises:
            ConfigError: Something cannot be loaded or does not fit.
        """
        config = parse_config(order["config"])
        task = self.task(config)
        facts = {
            "data": {
                "name": config.data.name or config.data.path,
                "fingerprint": task.fingerprint,
                "description": task.description,
                "train_rows": task.num_train_rows,
                "test_rows": None if task.num_train_rows is None else len(task.test),
            },
            "metric": task.metric,
            "greater_is_better": is_greater_better(task.metric),
            "versions": environment(build_arguments(config)),
            "hardware": hardware(),
            "teacher_test": None,
            "latency_ms": None,
        }
        if config.teacher_cache is not None:
            accuracy = self._fill(config, task, order["pair"])
            facts["teacher_test"] = None if accuracy is None else {"accuracy": accuracy}
        if order["latency"]:
            try:
                facts["latency_ms"] = round(latency_ms(config, task), 4)
            except (RuntimeError, TypeError, ValueError) as error:  # a student that reads something of its own
                logger.warning(f"{order['pair']}: the student's latency was not measured: {error}")
        self._free()
        return facts

    def run(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Train and score one student.

        Returns:
            Its line of the results; of a run that failed, with its error.

        Raises:
            TrainingStopped: SIGTERM came; a checkpoint is kept.
        """
        folder = Path(order["config"]["output_dir"])
        known = {key: order[key] for key in ("pair", "method", "seed", "folder", "fingerprint")}
        started = time.perf_counter()
        try:
            line = {**known, **self._run(order, folder)}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is this run's; the others go on
            self.teacher = None  # it may hold what does not fit beside another run
            text = " ".join(f"{type(error).__name__}: {error}".split())
            if isinstance(error, ConfigError):
                text = " ".join("; ".join(error.problems).split())
            note_traceback(folder)
            line = {**known, "state": FAILED, "error": text}
            line["total_seconds"] = round(time.perf_counter() - started, 3)
            line["breaks_device"] = any(words in text for words in _BROKEN_DEVICE)
        finally:
            self._free()
        line["finished_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        remove_checkpoints(folder)
        if line["state"] == FINISHED and not order["keep_models"]:
            remove_weights(folder)
        return line

    def _run(self, order: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        mapping, checkpoint = dict(order["config"]), None
        if folder.is_dir():
            checkpoint = last_complete(folder)[0]
        if checkpoint is not None:
            mapping["training"] = {**mapping["training"], "resume_from_checkpoint": str(checkpoint)}
        elif folder.is_dir():
            shutil.rmtree(folder)  # of a run that broke off before it had saved anything
        config = parse_config(mapping)
        task = self.task(config)
        beginning = Beginning(folder, checkpoint)
        where = {key: order[key] for key in ("pair", "method", "seed")}
        steps = Steps(lambda step, of: self.on_event({"kind": "step", **where, "step": step, "steps": of}))
        by_epoch = [ScoresByEpoch(task.test)] if order["protocol"] == BEST_TEST else []
        result = run_experiment(
            config, task=task, teacher=self._teacher(config, task), callbacks=[beginning, steps, *by_epoch]
        )
        metric = task.metric
        score = result.test.get(metric)
        if score is not None and not math.isfinite(score):
            raise FloatingPointError(f"{metric} is {score} on the test split")
        line = self._line(result, beginning, order, config)
        for scores in by_epoch:
            best = scores.best(metric, is_greater_better(metric))
            if best is not None:
                line |= {f"best_test_{metric}": best[0], "best_test_epoch": best[1]}
        return line

    def _line(
        self, result: ExperimentResult, beginning: Beginning, order: Mapping[str, Any], config: ExperimentConfig
    ) -> dict[str, Any]:
        facts = order["facts"]
        theirs = facts.get("teacher_test")
        if theirs is None and "teacher_accuracy" in result.test:
            theirs = {"accuracy": result.test["teacher_accuracy"]}
        line = {
            "state": FINISHED,
            "validation": result.validation,
            "test": result.test,
            "teacher_test": theirs,
            "student_parameters": result.student_parameters,
            "teacher_parameters": result.teacher_parameters,
            "train_steps": result.train_steps,
            "train_seconds": result.train_seconds,
            "total_seconds": result.total_seconds,
            "latency_ms": facts.get("latency_ms"),
            "initial_weights": beginning.initial_weights,
            "data_order": beginning.data_order,
            "data_fingerprint": result.data_fingerprint,
            "versions": environment(build_arguments(config)),
            "hardware": hardware(),
        }
        if beginning.checkpoint is not None:
            line["resumed_from"] = beginning.checkpoint.name  # the seconds are those since then
        if result.best_model is not None:
            line["best_model"] = result.best_model
        always = ("teacher_test", "teacher_parameters")
        return {key: value for key, value in line.items() if value is not None or key in always}

    def task(self, config: ExperimentConfig) -> Task:
        """The data of a configuration, loaded once."""
        column = config.teacher and config.teacher.column
        key = repr((config.data.model_dump_json(), column, processor_source(config)))
        if key not in self.tasks:
            while len(self.tasks) >= KEPT_TASKS:
                del self.tasks[next(iter(self.tasks))]
            self.tasks[key] = build_task(config)
        return self.tasks[key]

    def _teacher(self, config: ExperimentConfig, task: Task) -> Any:
        """The teacher where it runs in every run, loaded once; None where there is none or its answers are kept."""
        section = config.teacher
        is_kept = config.teacher_cache is not None and config.student.init_layers is None
        if section is None or section.model in (None, SELF) or is_kept:
            return None
        key = section.model_dump_json()
        if self.teacher is None or self.teacher[0] != key:
            self.teacher = None
            self.teacher = key, build_teacher(section, task)
        return self.teacher[1]

    def _fill(self, config: ExperimentConfig, task: Task, pair: str) -> float | None:
        """Ask the teacher what its cache lacks.

        Returns:
            Its accuracy on the test split; None where rows have no single class, or are a stream.
        """

        def on_progress(what: str, done: int, rows: int) -> None:
            self.on_event({"kind": "teacher", "pair": pair, "what": what, "done": done, "rows": rows})

        is_compared = config.training.get("evaluate_with_teacher", False)
        splits = ("train", "validation", "test") if is_compared else ("train", "test")
        return fill_cache(config, splits=splits, task=task, on_progress=on_progress).accuracy.get("test")

    def _free(self) -> None:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


@torch.inference_mode()
def latency_ms(config: ExperimentConfig, task: Task) -> float:
    """Milliseconds that a student takes for one example on the device it is trained on: the median after a warm-up.

    Its weights are fresh: they decide nothing here.
    """
    device = build_arguments(config).device
    section = config.student.model_copy(update={"init_layers": None})
    model = build_student(section, task, config.teacher).eval().to(device)
    rows = (
        [task.test[i] for i in range(min(TIMED, len(task.test)))] if task.num_train_rows is not None else task.look()
    )
    batches = [{k: v.to(device) for k, v in task.collator([row]).items() if k in _READ} for row in rows]
    times = []
    for index in range(WARM_UP + TIMED):
        batch = batches[index % len(batches)]
        started = time.perf_counter()
        model(**batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[WARM_UP:])


_READ = ("pixel_values", "input_ids", "attention_mask", "token_type_ids")


def note_traceback(folder: Path) -> None:
    """Where the exception that is being handled came from, for whoever wants to mend it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).write_text(traceback.format_exc(), encoding="utf-8")


def remove_weights(folder: Path) -> None:
    """All weights of a student that is scored, its merged form's too."""
    for pattern in WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()
    shutil.rmtree(folder / "merged", ignore_errors=True)


def remove_checkpoints(folder: Path) -> None:
    """The checkpoints of a run that is over; one that failed is tried anew from its beginning."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)

"""One trial: the run of a configuration up to its score on the validation split, the teacher asked once for all."""

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from ..adapters import SELF
from ..data import Task
from ..data.rows import column_values
from ..experiment.best_model import with_best_metric
from ..experiment.build import build_arguments, build_task, build_teacher
from ..experiment.cached_teacher import fill_for
from ..experiment.checks import run_objective
from ..experiment.config import ExperimentConfig
from ..experiment.run import build_trainer, scores_on, side_of
from ..experiment.stored_logits import ask_teacher
from ..experiment.student import build_student, take_over_layers
from ..experiment.teacher_side import TeacherSide, checked_teacher
from ..inputs import TEACHER_LOGITS
from ..teacher_logits import ClassesOf, with_logits

logger = logging.get_logger(__name__)

_ROWS = {"accuracy": "right", "loss": "loss"}
"""Metrics that are means over rows, and what is known of each row."""


class Trials:
    """What all trials share: the rows, the teacher, and what it answered.

    The test split is never read. The teacher is asked once about every training row, and its logits reused, where rows
    are the same each time they are read; else it runs in every trial. `teacher_words` says which.

    Args:
        config: Any of the configurations; they agree in `data` and `teacher`.
        task: The data, where they are loaded already.
        on_progress: Told the split, the rows done and all its rows while the teacher answers.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        task: Task | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ):
        self.config, self.on_progress = config, on_progress
        self.task = build_task(config) if task is None else task
        is_cached = config.teacher_cache is not None
        is_read = not is_cached or config.student.init_layers is not None  # else the cache may have all answers
        self.teacher = build_teacher(config.teacher, self.task) if is_read else None
        is_compared = config.training.get("evaluate_with_teacher", False)
        self.splits = ("train", "validation") if is_compared else ("train",)
        self.side, self.cached = side_of(config, self.teacher, ClassesOf(self.task), self.task, self.splits)
        self.stored: TeacherSide | None = None
        self.why_live = self._why_live()
        self.is_checked = False

    def _why_live(self) -> str | None:
        """Why the teacher cannot be asked once; None where it can, or there is none to ask."""
        if self.cached is not None:
            return None
        if self.teacher == SELF:
            return "it is the student without its adapter"
        if self.teacher is None:
            return None
        if self.config.data.streaming:
            return "rows are streamed"
        if self.config.data.augmentation is not None or getattr(self.task.collator, "mixing", None) is not None:
            return "training images are augmented"
        if self.side.label_map is not None and not self.side.label_map.is_complete:
            return "it does not know all classes"
        return None

    @property
    def teacher_words(self) -> str:
        """How the teacher takes part, in a sentence."""
        if self.config.teacher is None:
            return "There is no teacher."
        if self.cached is not None:
            return f"The teacher's answers are kept in {self.cached.cache.folder}; what is missing is asked once."
        if self.config.teacher.column is not None:
            return "The teacher answered earlier; its logits are a column of the data."
        if self.why_live is None:
            return "The teacher is asked once about every training row; all trials reuse its logits."
        return f"The teacher runs in every trial, because {self.why_live}."

    def run(
        self, config: ExperimentConfig, metric: str, callback: TrainerCallback
    ) -> tuple[dict[str, float], float | None, float]:
        """Train the student of a configuration.

        Returns:
            Its scores on the validation split, the standard error of `metric` there where that is a mean over rows,
            and the seconds it took.

        Raises:
            ConfigError: What the configuration names does not fit together.
            FloatingPointError: The loss or the metric became NaN or infinite.
        """
        started = time.perf_counter()
        args = build_arguments(config)
        config = with_best_metric(config, args, self.task)
        set_seed(config.seed)  # as in a run, so that the best trial can be repeated as one
        student = build_student(config.student, self.task, config.teacher)
        if config.student.init_layers is not None:
            take_over_layers(config.student, student, self.teacher, config.teacher, self.task)
        side, teacher = self._teacher_of(config)
        trainer = build_trainer(config, args, side, student, teacher, [callback], self.cached)
        if self.cached is not None:
            fill_for(trainer, self.cached, side.task, self.splits, self.on_progress)
        if not self.is_checked:
            checked_teacher(trainer, side.task, config.teacher)
            self.is_checked = True
        try:
            trainer.train()
            scores = scores_on(trainer, side.task.validation)
        finally:
            shutil.rmtree(Path(config.output_dir), ignore_errors=True)  # checkpoints of the best model so far
        if not math.isfinite(scores.get(metric, 0.0)):
            raise FloatingPointError(f"{metric} is {scores[metric]} on the validation split")
        error = standard_error(trainer.last_evaluation.arrays(), metric)
        return scores, error, time.perf_counter() - started

    def _teacher_of(self, config: ExperimentConfig) -> tuple[TeacherSide, Any]:
        """The teacher's side of a trial and the teacher, None where its answers are stored."""
        if self.why_live is not None or self.teacher is None or self.cached is not None:
            return self.side, self.teacher
        objective = run_objective(config, self.task.num_labels)
        if any(name.startswith("teacher_") for name in objective.needs):
            logger.warning_once("The teacher runs in trials whose losses read its features.")
            return self.side, self.teacher
        if self.stored is None:
            self.stored = TeacherSide(self._asked(), is_stored=True)
        return self.stored, None

    def _asked(self) -> Task:
        """The data with the teacher's logits."""
        answered = ask_teacher(self.config, self.side, self.teacher, self.splits, self.on_progress)
        rows = {}
        for split in self.splits:
            rows[split] = with_logits(
                getattr(self.task, split), column_values(getattr(answered, split), TEACHER_LOGITS)
            )
        return replace(self.task, **rows)


def standard_error(arrays: Mapping[str, np.ndarray], metric: str) -> float | None:
    """Of a mean over the labelled rows of an evaluation; None where the metric is no such mean.

    It says how far the score would move on other rows of the same kind, for this student.
    """
    rows = arrays.get(_ROWS.get(metric, ""))
    if rows is None or "labelled" not in arrays:
        return None
    rows = rows[arrays["labelled"] > 0].astype(float)
    return float(rows.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None

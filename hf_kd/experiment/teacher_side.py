"""What a run settles about its teacher before training: its inputs, its classes, and whether it knows anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ..adapters import SELF
from ..data import Task, add_teacher_inputs
from ..data.rows import column_values
from ..data.stored_logits import stored_facts
from ..functional import IGNORE_INDEX, SINGLE_LABEL
from ..inputs import (
    TEACHER_LOGITS,
    TEACHER_PREFIX,
    DistillationCollator,
    collator_for,
    model_columns,
    teacher_inputs,
)
from ..label_map import LabelMap, match_models
from ..registry import ConfigError
from ..sanity import TeacherScore, score_teacher
from ..teacher import teacher_logits
from ..trainer import DistillationTrainer
from .checks import one_line
from .config import ExperimentConfig, TeacherSection

logger = logging.get_logger(__name__)

CHECKED_ROWS = 256
"""Labelled training rows that the teacher is tried on."""

LEAST_ROWS = 20
"""With fewer labelled rows nothing is said."""


@dataclass(frozen=True)
class TeacherSide:
    """What the trainer is given beside the teacher.

    Args:
        task: The data, with `teacher_` columns where the teacher reads other inputs than the student.
        processor: The teacher's tokenizer or image processor; None where it reads the student's inputs.
        label_map: Which of its classes is which of the student's; None where nothing is matched.
        is_stored: It answered earlier, and is not there.
    """

    task: Task
    processor: Any = None
    label_map: LabelMap | None = None
    is_stored: bool = False

    def facts(self, score: TeacherScore | None) -> dict[str, Any]:
        """Plain values for `teacher.json`."""
        own = "the student's" if self.processor is None else "its own"
        return {
            "inputs": "none: its logits are stored" if self.is_stored else own,
            "label_map": None if self.label_map is None else self.label_map.to_dict(),
            "checked_rows": None if score is None else score.rows,
            "accuracy": None if score is None else score.accuracy,
            "chance": None if score is None else score.chance,
        }


def teacher_side(
    config: ExperimentConfig,
    teacher: PreTrainedModel | str | None,
    student: PreTrainedModel,
    task: Task,
    splits: Sequence[str],
) -> TeacherSide:
    """Give the teacher its own inputs, and match its classes with the student's.

    Args:
        config: What is said of it, and how long texts may be.
        teacher: The loaded teacher; None without one.
        student: The built student.
        task: The data, as the student reads them.
        splits: Where the teacher will run.

    Raises:
        ConfigError: Its processor cannot be loaded or does not fit, or the classes do not correspond.
    """
    section = config.teacher
    if section is not None and section.column is not None:
        lacking = [split for split in splits if TEACHER_LOGITS not in getattr(task, split).column_names]
        if lacking:
            raise ConfigError(
                [
                    f"teacher.column: {' and '.join(lacking)} rows have no column {section.column!r}, and the run "
                    "reads the teacher's logits there. Store them for all splits, or leave "
                    "training.evaluate_with_teacher out."
                ]
            )
        return TeacherSide(task, is_stored=True)
    if teacher in (None, SELF) or section is None:
        return TeacherSide(task)
    try:
        label_map = match_models(teacher, student, section.label_map, _problem_type(student))
    except ValueError as error:
        raise ConfigError([f"teacher.{'label_map' if section.label_map else 'model'}: {one_line(error)}"]) from error
    processor = processor_of(section, task)
    if processor is None:
        return TeacherSide(task, None, label_map)
    try:
        added = add_teacher_inputs(
            task,
            processor,
            reads=model_columns(teacher),
            max_length=config.data.max_length,
            channels=None if task.modality == "text" else getattr(teacher.config, "num_channels", None),
            splits=splits,
        )
        if added is not task:
            logger.info(f"The teacher reads inputs of its own, made by {type(processor).__name__}.")
            _try(teacher, added, processor)
    except Exception as error:
        where = "processor" if section.processor else "model"
        raise ConfigError([f"teacher.{where}: its inputs cannot be made or read: {one_line(error)}"]) from error
    return TeacherSide(added, None if added is task else processor, label_map)


def _problem_type(student: PreTrainedModel) -> str:
    return student.config.problem_type or SINGLE_LABEL


def processor_of(section: TeacherSection, task: Task) -> Any:
    """The teacher's own processor; None if none was saved with it."""
    auto = AutoTokenizer if task.modality == "text" else AutoImageProcessor
    source = section.processor or section.model
    own = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    options = {} if section.processor else own
    try:
        return auto.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        if section.processor:
            kind = "tokenizer" if task.modality == "text" else "image processor"
            raise ConfigError([f"teacher.processor: {source!r} holds no {kind}: {one_line(error)}"]) from error
        logger.warning(
            f"The teacher {source!r} comes without a {'tokenizer' if task.modality == 'text' else 'processor'}, so it "
            "reads the student's inputs. If it was trained on others, name its own in teacher.processor."
        )
        return None


@torch.no_grad()
def _try(teacher: PreTrainedModel, task: Task, processor: Any) -> None:
    """One row through the teacher, so that what does not fit fails now."""
    row = task.look()[0]
    batch = DistillationCollator(task.collator, collator_for(processor))([row])
    if not any(name.startswith(TEACHER_PREFIX) for name in batch):
        raise ValueError(
            f"the processor makes none of the columns that it reads ({', '.join(model_columns(teacher))})"
        )
    inputs = teacher_inputs(batch, model_columns(teacher))
    inputs = {k: v.to(teacher.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    teacher.eval()(**{name: value.to(teacher.device) for name, value in inputs.items()})


@torch.no_grad()
def checked_teacher(trainer: DistillationTrainer, task: Task, section: TeacherSection | None) -> TeacherScore | None:
    """Try the teacher on labelled training rows and refuse one that is near chance there.

    Args:
        trainer: With the teacher, its inputs and its label map in place.
        task: Whose training rows.
        section: With `sanity_check` off, what would be refused is only said.

    Returns:
        None where there are too few labelled rows, or no single right answer.

    Raises:
        ConfigError: It is no better than guessing.
    """
    if section is None or trainer.problem_type != SINGLE_LABEL:
        return None
    if task.num_train_rows is None:  # a stream is not read twice
        return None
    if trainer.teacher is not None:
        trainer.teacher.is_vouched_for = True
    rows = _labelled_rows(task, trainer.objective.shared)
    if len(rows) < LEAST_ROWS:
        return None
    choices, labels, size = [], [], trainer.args.per_device_eval_batch_size
    stored = trainer.stored_answers(task.train, is_training=True)
    if stored is not None and stored.rows.mixing is not None:  # of two labels neither is right
        return None
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        batch = trainer.data_collator([task.train[int(index)] for index in some])
        batch = trainer._prepare_inputs(batch if stored is None else {**batch, **stored.of(some, stored.first_view)})
        logits = teacher_logits(trainer.teacher, batch, trainer.accelerator, trainer.objective.kd_weight)
        choices.append(logits.argmax(-1).cpu())
        labels.append(trainer.objective.distilled_rows(batch[trainer.label_name])[0].cpu())
    score = score_teacher(torch.cat(choices).numpy(), torch.cat(labels).numpy(), logits.shape[-1])
    say_score(score, section, None if trainer.teacher is None else trainer.teacher.label_map)
    return score


def say_score(score: TeacherScore, section: TeacherSection, label_map: LabelMap | None) -> None:
    """Log how often a teacher is right.

    Raises:
        ConfigError: It is near chance, and the section does not allow that.
    """
    if not score.is_doubtful:
        logger.info(score.summary())
        return
    words = score.words(label_map)
    if section.sanity_check and score.is_near_chance:
        where = "model" if section.column is None else "column"
        raise ConfigError([f"teacher.{where}: {words} To train with it all the same, set teacher.sanity_check=false."])
    logger.warning(words)


def stored_teacher(path: str | None) -> dict[str, Any] | None:
    """What stands beside stored logits, in the data at `path`, about the teacher that gave them; None if unknown."""
    if path is None:
        return None
    where = Path(path).expanduser()
    return stored_facts(where if where.is_dir() else where.parent).get("teacher")


def _labelled_rows(task: Task, shared: Any) -> np.ndarray:
    """Places of labelled training rows, evenly spread, of classes that the teacher knows."""
    labels = torch.as_tensor(column_values(task.train, "labels"))
    labels = labels if shared is None else shared.labels(labels)
    known = np.flatnonzero(labels.numpy() != IGNORE_INDEX)
    if len(known) <= CHECKED_ROWS:
        return known
    return known[np.linspace(0, len(known) - 1, CHECKED_ROWS).astype(int)]

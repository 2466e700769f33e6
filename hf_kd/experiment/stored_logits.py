"""Ask the teacher of a configuration once about all rows, and write rows and answers down for any number of runs."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from ..adapters import SELF
from ..data import BENCHMARKS, SPLITS, Task
from ..data.rows import column_values
from ..data.stored_logits import save_rows
from ..functional import IGNORE_INDEX, SINGLE_LABEL
from ..inputs import LABEL_WEIGHT, TEACHER_LOGITS, DistillationCollator, collator_for
from ..registry import ConfigError
from ..sanity import score_teacher
from ..teacher_logits import ClassesOf, add_teacher_logits
from ..trainer.hub import describe_model
from .build import build_task, build_teacher
from .checks import one_line
from .config import ExperimentConfig
from .teacher_side import LEAST_ROWS, TeacherSide, say_score, teacher_side

PROCESSOR = "processor"


@dataclass(frozen=True)
class StoredLogits:
    """What came of it.

    Args:
        folder: Where the rows lie.
        rows: How many there are of each split.
        num_labels: Logits per row.
        accuracy: How often the teacher is right on the labelled rows of each split; only where rows have one class.
        overrides: What turns the configuration into one that trains from the folder.
    """

    folder: str
    rows: dict[str, int]
    num_labels: int
    accuracy: dict[str, float]
    overrides: list[str]


def store_teacher_logits(
    config: ExperimentConfig,
    folder: str | Path,
    *,
    splits: Sequence[str] = SPLITS,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> StoredLogits:
    """Write the data of a configuration with the teacher's logits of every row, as files that `load_task` reads.

    The folder then holds a Parquet file per split (texts or images, ``label``, ``teacher_logits``), ``labels.txt``,
    and ``teacher_logits.json``, which says whose logits they are. Any run on these rows then needs no teacher
    (`teacher.column`), whatever its method, temperature, seed or student. `data.max_samples`, `data.labelled` and the
    split that was cut off are those of the configuration, for good.

    Args:
        config: Its sections `data` and `teacher`; of `student` only what makes the inputs, of `training`
            `per_device_eval_batch_size`.
        folder: Where to write; it must not exist, or be empty.
        splits: Which splits the teacher is asked about. All are written.
        on_progress: Told the split, the rows done and all its rows.

    Raises:
        ConfigError: There is no teacher to ask, it does not fit the data or is near chance, training images are
            augmented or streamed, or the folder is not empty.
    """
    folder, section = Path(folder), config.teacher
    problems = _problems(config, folder, splits)
    if problems:
        raise ConfigError(problems)
    task = build_task(config)
    teacher = build_teacher(section, task)
    side = teacher_side(config, teacher, ClassesOf(task), task, splits)
    try:
        stored = ask_teacher(config, side, teacher, splits, on_progress)
    except ValueError as error:
        raise ConfigError([f"teacher.model: {one_line(error)}"]) from error
    answers = {} if task.problem_type != SINGLE_LABEL else {split: _answers(stored, split) for split in splits}
    accuracy = {
        split: float((choices == labels).mean()) for split, (choices, labels) in answers.items() if len(labels)
    }
    if "train" in answers and len(answers["train"][1]) >= LEAST_ROWS:
        say_score(score_teacher(*answers["train"], task.num_labels), section, side.label_map)
    label, image = config.data.label_column or "label", config.data.image_column or "image"
    source = {
        "name": config.data.name or config.data.path,
        "fingerprint": task.fingerprint,
        "description": task.description,
    }
    facts = {"teacher": describe_model(teacher, section.revision), "data": source, "accuracy": accuracy}
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.is_dir():  # of a call that was killed
        shutil.rmtree(partial)
    save_rows(stored, partial, facts, label_column=label, image_column=image)
    overrides = _overrides(config, folder)
    if any(line.startswith("student.processor=") for line in overrides):
        task.processing_class.save_pretrained(partial / PROCESSOR)
    if folder.is_dir():
        folder.rmdir()
    partial.rename(folder)
    rows = {split: len(getattr(stored, split)) for split in SPLITS}
    return StoredLogits(str(folder), rows, task.num_labels, accuracy, overrides)


def ask_teacher(
    config: ExperimentConfig,
    side: TeacherSide,
    teacher: PreTrainedModel,
    splits: Sequence[str],
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Task:
    """The data as the teacher reads them, with its logits, in the data's classes.

    Raises:
        ValueError: As `add_teacher_logits`.
    """
    task = side.task
    if side.processor is not None:
        task = replace(task, collator=DistillationCollator(task.collator, collator_for(side.processor)))
    return add_teacher_logits(
        task,
        teacher,
        label_map=side.label_map,
        batch_size=config.training.get("per_device_eval_batch_size", 64),
        splits=splits,
        on_progress=on_progress,
    )


def _problems(config: ExperimentConfig, folder: Path, splits: Sequence[str]) -> list[str]:
    section, problems = config.teacher, []
    if section is None or section.model is None:
        problems.append("teacher.model: is required: without a teacher there is nobody to ask.")
    elif section.model == SELF:
        problems.append("teacher.model: is `self`, which only exists beside a student in training. Name a checkpoint.")
    if config.data.augmentation is not None:
        problems.append(
            "data.augmentation: shows every row differently each time, and one answer per row is stored. Remove it."
        )
    if config.data.streaming:
        problems.append("data.streaming: rows that are not kept cannot be written beside their logits. Remove it.")
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        problems.append(f"splits: expected some of {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(f"{folder}: is there already. Remove it, or name another folder.")
    return problems


def _answers(task: Task, split: str) -> tuple[np.ndarray, np.ndarray]:
    """What the teacher chooses on the labelled rows, and their labels."""
    rows = getattr(task, split)
    labels, choices = column_values(rows, "labels"), column_values(rows, TEACHER_LOGITS).argmax(-1)
    known = labels != IGNORE_INDEX
    return choices[known], labels[known]


def _overrides(config: ExperimentConfig, folder: Path) -> list[str]:
    """What to put behind `hf-kd train CONFIG` to train from the folder."""
    data = config.data
    gone = [key for key in ("subset", "revision", "splits", "sample_weight", "class_weights") if getattr(data, key)]
    gone += ["name"] if data.name is not None and data.name not in BENCHMARKS else []
    made = [f"data.path={folder}", *(f"data.{key}=null" for key in gone)]
    if data.sample_weight is not None or data.class_weights is not None:
        made.append(f"data.sample_weight={LABEL_WEIGHT}")
    if config.student.processor is None and config.student.model is None:
        made.append(f"student.processor={folder / PROCESSOR}")
    return [*made, f"teacher={{column: {TEACHER_LOGITS}}}"]

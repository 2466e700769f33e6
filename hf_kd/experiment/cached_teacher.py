"""The teacher of a configuration, asked once: what the cache lacks, who is to be asked, and whether it still fits."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator, PartialState
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ..adapters import SELF
from ..data import SPLITS, Task, add_teacher_inputs
from ..data.rows import column_values
from ..functional import SINGLE_LABEL
from ..inputs import TEACHER_LOGITS, DistillationCollator, collator_for
from ..label_map import match_models
from ..registry import ConfigError
from ..sanity import score_teacher
from ..teacher_cache import (
    KEY_MEMORY,
    KeyedRows,
    TeacherCache,
    agreed,
    check_inputs,
    check_stream,
    fill_stream,
    probes,
    refuse_other,
    row_keys,
)
from ..teacher_logits import ClassesOf
from ..test_rows import TEST_ROWS
from ..trainer import DistillationTrainer
from ..trainer.cached import (
    UNQUANTIZED,
    CachedTeacher,
    StoredClassifier,
    answers_to,
    asking_of,
    refuse_features,
)
from ..trainer.hub import describe_source
from .build import build_arguments, build_task, build_teacher
from .checks import one_line, run_objective
from .config import ExperimentConfig, TeacherSection
from .student import refuse
from .teacher_side import LEAST_ROWS, TeacherSide, processor_of, say_score, teacher_side

CHUNK = 4_096

Progress = Callable[[str, int, int], None]


@dataclass
class CachedSide:
    """A cache, and what is needed to fill it.

    Args:
        cache: The answers.
        teacher: To be asked; None where nothing is missing.
        shown: The data as the teacher reads them; None likewise.
        facts: What is known of the teacher from where it was loaded.
    """

    cache: TeacherCache
    teacher: PreTrainedModel | None = None
    shown: Task | None = None
    facts: dict[str, Any] | None = None


def cached_side(
    config: ExperimentConfig, task: Task, student: nn.Module, splits: Sequence[str], teacher: Any = None
) -> tuple[TeacherSide, CachedSide]:
    """Open the cache of a configuration; the teacher is loaded only if it has to be asked.

    Args:
        config: With `teacher` and `teacher_cache`.
        task: The data, as the student reads them.
        student: Whose classes the teacher's are matched with.
        splits: Where the teacher answers.
        teacher: The teacher, where it is loaded already.

    Raises:
        ConfigError: The cache is of another teacher or of other inputs, or damaged; or the teacher cannot be loaded or
            does not fit.
    """
    section, said = config.teacher, config.teacher_cache
    try:
        cache = TeacherCache(said.dir, dtype=said.dtype, top_k=said.top_k, views=said.views)
        facts = source_facts(section)
        if cache.manifest is not None:
            refuse_other(cache.folder, cache.manifest, {"teacher": {**facts, "precision": _precision(config)}})
        is_complete = agreed(_is_complete(cache, task, splits), PartialState())
        cache.open()  # the main process may have looked later than this one, when more was there
        if not is_complete:
            return _to_be_asked(config, task, student, splits, cache, facts, teacher)
        refuse_features(run_objective(config, task.num_labels), cache)
        return _from_memory(config, task, student, splits, cache), CachedSide(cache)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"teacher_cache: {one_line(error)}"]) from error


def source_facts(section: TeacherSection) -> dict[str, Any]:
    """What a teacher's source says of it without loading its weights: the commit on the Hub, or its files' digests."""
    try:
        config = AutoConfig.from_pretrained(
            section.model, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        refuse("teacher.model", error)
    found = describe_source(section.model, section.revision)
    held = {"quantization": "8-bit" if section.load_in_8bit else "4-bit nf4" if section.load_in_4bit else UNQUANTIZED}
    if found["local"]:
        files = sorted(Path(section.model).expanduser().glob("*.safetensors"))
        files = [path for path in files if path.name != TEST_ROWS]  # of the run that trained it; no weights
        return {"revision": None, "files": {path.name: _digest(path) for path in files} or None, **held}
    commit = getattr(config, "_commit_hash", None) or found["commit"]
    return {"revision": section.revision, "commit": commit, **held}


def _precision(config: ExperimentConfig) -> str | None:
    """What the teacher would answer in, as `manifest_facts` says it; None where only loading it would tell."""
    training, section = config.training, config.teacher
    for name in ("bf16", "fp16"):
        if training.get(name):
            return name
    return None if section.dtype == "auto" else section.dtype


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_complete(cache: TeacherCache, task: Task, splits: Sequence[str]) -> bool:
    for split in splits:
        if task.num_train_rows is None:
            if not _is_read(cache, task, split):
                return False
            continue
        rows = keyed_rows(cache, task, split)
        if any((cache.find(rows.known_by(view), view) < 0).any() for view in rows.view_numbers):
            return False
    return True


def keyed_rows(cache: TeacherCache, task: Task, split: str) -> KeyedRows:
    """The rows of a split by what they hold; training rows in their views, mixed where the task says so."""
    rows = getattr(task, split)
    keys = row_keys(rows, cache.folder / KEY_MEMORY if cache.manifest is not None else None)
    is_training = split == "train"
    mixing = getattr(task.collator, "mixing", None) if is_training else None
    return KeyedRows(rows, keys, cache.views if is_training else None, mixing)


def _stream_mark(cache: TeacherCache, task: Task, split: str) -> Path:
    """There once a stream was read to its end; it says how many answers the cache had then."""
    return cache.folder / KEY_MEMORY / f"{task.fingerprint}.{split}.read"


def _note_read(cache: TeacherCache, task: Task, split: str) -> None:
    mark = _stream_mark(cache, task, split)
    mark.parent.mkdir(exist_ok=True)
    mark.write_text(str(len(cache)), encoding="utf-8")


def _is_read(cache: TeacherCache, task: Task, split: str) -> bool:
    """Whether the answers to a stream were all there, and no file of them was removed since."""
    try:
        return len(cache) >= int(_stream_mark(cache, task, split).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _to_be_asked(
    config: ExperimentConfig,
    task: Task,
    student: nn.Module,
    splits: Sequence[str],
    cache: TeacherCache,
    facts: dict[str, Any],
    teacher: Any,
) -> tuple[TeacherSide, CachedSide]:
    teacher = build_teacher(config.teacher, task) if teacher is None else teacher
    side = teacher_side(config, teacher, student, task, splits)
    return replace(side, task=task), CachedSide(cache, teacher, side.task, facts)


def _from_memory(
    config: ExperimentConfig, task: Task, student: nn.Module, splits: Sequence[str], cache: TeacherCache
) -> TeacherSide:
    """Without the teacher: its classes from the cache, and its inputs compared on a few rows."""
    problem_type = student.config.problem_type or SINGLE_LABEL
    try:
        stand_in = StoredClassifier(cache.manifest)
        label_map = match_models(stand_in, student, config.teacher.label_map, problem_type)
    except ValueError as error:
        where = "label_map" if config.teacher.label_map else "model"
        raise ConfigError([f"teacher.{where}: {one_line(error)}"]) from error
    processor, has_own = processor_of(config.teacher, task), False
    for split in splits:
        some, whole, places = task, None, None
        if task.num_train_rows is not None:
            rows, whole = getattr(task, split), keyed_rows(cache, task, split)
            places = probes(rows, np.arange(len(rows)))
            # a mixture is made of any two rows, so all of them are needed; they are made when they are read
            some = task if whole.mixing else replace(task, **{split: rows.select(places)})
        few = some
        if processor is not None:
            few = add_teacher_inputs(
                some,
                processor,
                reads=cache.manifest["columns"],
                max_length=config.data.max_length,
                channels=None if task.modality == "text" else cache.manifest.get("channels"),
                splits=[split],
            )
        has_own = few is not some
        if whole is None:
            check_stream(cache, getattr(few, split), cache.manifest["columns"], f"{split} rows")
            continue
        keys = whole.keys if whole.mixing else whole.keys[places]
        shown = KeyedRows(getattr(few, split), keys, whole.views, whole.mixing)
        check_inputs(cache, shown, cache.manifest["columns"], f"{split} rows")
    cache.check_inputs = False  # from here on rows hold the student's inputs, which may be others
    return TeacherSide(task, processor if has_own else None, label_map)


def cached_provenance(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Where a teacher came from that need not be loaded, as `provenance` says it."""
    return {
        "source": facts.get("name"),
        "commit": facts.get("commit"),
        "architecture": facts.get("class"),
        "dtype": facts.get("precision"),
        "parameters": facts.get("parameters"),
    }


def fill_for(
    trainer: DistillationTrainer, cached: CachedSide, task: Task, splits: Sequence[str], on_progress: Any = None
) -> None:
    """Ask the teacher of a run what the cache lacks, and let the teacher go.

    Raises:
        ConfigError: The rows change from reading to reading, or its answers are unusable.
    """
    if cached.teacher is None:
        return
    trainer.teacher_facts = cached.facts
    try:
        for split in splits:
            name, rows, shown = f"{split} rows", getattr(task, split), getattr(cached.shown, split)
            if task.num_train_rows is None:
                trainer.stored_stream(rows, shown, on_progress)
                _note_read(cached.cache, task, split)
                continue
            is_training = split == "train"
            trainer.stored_answers(rows, is_training=is_training, name=name, shown=shown, on_progress=on_progress)
    except ValueError as error:
        raise ConfigError([f"teacher_cache: {one_line(error)}"]) from error
    trainer.forget_teacher()
    cached.teacher = cached.shown = None


@dataclass(frozen=True)
class FilledCache:
    """What `fill_cache` did.

    Args:
        folder: The cache.
        rows: How many rows each split has.
        added: How many answers were added.
        accuracy: How often the teacher is right on the labelled rows of each split; only where rows have one class.
    """

    folder: str
    rows: dict[str, int | None]
    added: int
    accuracy: dict[str, float]


def fill_cache(
    config: ExperimentConfig,
    *,
    splits: Sequence[str] = SPLITS,
    on_progress: Progress | None = None,
    task: Task | None = None,
) -> FilledCache:
    """Ask the teacher of a configuration about all rows that its cache lacks. No student is built.

    Args:
        config: Its sections `data`, `teacher` and `teacher_cache`; the `method`, for whether features are needed; of
            `student` what makes the inputs; of `training` the evaluation's batch size, workers and precision.
        splits: Which splits.
        on_progress: Told what is asked, the rows done and all its rows.
        task: The data that `config.data` describes, where the caller has loaded it already.

    Raises:
        ConfigError: There is no teacher or no cache, or they do not fit each other or the data.
    """
    _check(config, splits)
    args, task = build_arguments(config), build_task(config) if task is None else task
    classes = ClassesOf(task)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
    accelerator = Accelerator(mixed_precision=precision, cpu=args.use_cpu)
    if task.num_train_rows is None and accelerator.is_main_process:  # what a stream brings now, only reading it says
        for split in splits:
            _stream_mark(TeacherCache(config.teacher_cache.dir), task, split).unlink(missing_ok=True)
    side, cached = cached_side(config, task, classes, splits)
    before, rows = len(cached.cache), dict.fromkeys(splits)
    accuracy = {}
    if cached.teacher is not None:
        try:
            _ask(config, cached, task, side, classes, accelerator, args, splits, on_progress)
        except ValueError as error:
            raise ConfigError([f"teacher_cache: {one_line(error)}"]) from error
    if task.num_train_rows is not None:
        rows = {split: len(getattr(task, split)) for split in splits}
        accuracy = _accuracies(config, cached.cache, task, side, splits)
    return FilledCache(str(cached.cache.folder), rows, len(cached.cache) - before, accuracy)


def _check(config: ExperimentConfig, splits: Sequence[str]) -> None:
    problems = []
    if config.teacher_cache is None:
        problems.append("teacher_cache: is required: a folder. Give it as teacher_cache=FOLDER.")
    if config.teacher is None or config.teacher.model in (None, SELF):
        problems.append("teacher.model: is required: without a teacher there is nobody to ask.")
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or not splits:
        problems.append(f"splits: expected some of {', '.join(SPLITS)}, got {', '.join(splits) or 'none'}.")
    if problems:
        raise ConfigError(problems)


def _ask(
    config: ExperimentConfig,
    cached: CachedSide,
    task: Task,
    side: TeacherSide,
    classes: ClassesOf,
    accelerator: Accelerator,
    args: Any,
    splits: Sequence[str],
    on_progress: Progress | None,
) -> None:
    cache = cached.cache
    teacher = CachedTeacher(cached.teacher, classes, side.label_map, cache)
    collate = DistillationCollator(task.collator, collator_for(side.processor), problem_type=task.problem_type)
    options = {"batch_size": args.per_device_eval_batch_size, "num_workers": args.dataloader_num_workers}
    asking = asking_of(
        teacher,
        classes,
        run_objective(config, task.num_labels),
        collate,
        accelerator,
        cache,
        cached.facts,
        on_progress=on_progress,
        **options,
    )
    for split in splits:
        shown = getattr(cached.shown, split)
        if task.num_train_rows is None:
            fill_stream(cache, shown, asking, f"{split} rows")
            _note_read(cache, task, split)
            continue
        answers_to(keyed_rows(cache, task, split), shown, cache, teacher, asking, f"{split} rows")


def _accuracies(
    config: ExperimentConfig, cache: TeacherCache, task: Task, side: TeacherSide, splits: Sequence[str]
) -> dict[str, float]:
    """How often the stored answers are right; refuses a teacher that is near chance on the training rows."""
    found: dict[str, float] = {}
    if task.problem_type != SINGLE_LABEL:
        return found
    for split in splits:
        rows = keyed_rows(cache, task, split)
        if rows.mixing is not None:  # of two labels neither is right
            continue
        labels, view = column_values(rows.rows, "labels"), rows.view_of(0)
        places = cache.find(rows.known_by(view), view)
        classes = np.arange(task.num_labels) if side.label_map is None else np.asarray(side.label_map.shared)
        known = np.flatnonzero(np.isin(labels, classes))
        choices = np.zeros(len(known), dtype=np.int64)
        for start in range(0, len(known), CHUNK):
            logits = cache.read(places[known[start : start + CHUNK]])[TEACHER_LOGITS]
            logits = logits if side.label_map is None else side.label_map(logits)
            choices[start : start + CHUNK] = classes[logits.argmax(-1).numpy()]
        if len(known):
            found[split] = float((choices == labels[known]).mean())
        if split == "train" and len(known) >= LEAST_ROWS:
            say_score(score_teacher(choices, labels[known], len(classes)), config.teacher, side.label_map)
    return found

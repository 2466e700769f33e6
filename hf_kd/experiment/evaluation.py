"""`evaluate_model`: any classifier on any data, alone or beside a teacher, class by class."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..adapters import plain_parameters
from ..data import SPLITS, Task, add_teacher_inputs
from ..functional import REGRESSION, SINGLE_LABEL
from ..inputs import model_columns
from ..label_map import LabelMap, match_models
from ..metrics import ClassScore
from ..registry import ConfigError, check_number
from ..trainer.hub import describe_model
from .loading import ALL, Loading, Source, check_dtype, load_data, own_processor
from .scoring import InDataClasses, Scored, score_models
from .student_checks import one_line

SHOWN = 5
AS_FILE = "On the command line, --label-map and --teacher-label-map take a file of it."


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on some data. `per_class` and the comparison are to be read beside the number of rows.

    Args:
        model: Its name or folder.
        data: The name or path of the data.
        split: Which rows.
        rows: How many were looked at.
        labelled: Those of them with a label, which the scores are of.
        left_out: Rows of classes that the model does not know; they are not in the scores.
        problem_type: What the labels are.
        metric: The key of `scores` that results on these data are quoted in.
        scores: `loss` (nats, or squared error), `accuracy` and what else the task measures.
        parameters: Of the model.
        per_class: By class, what the model lost most against the teacher first; without one, the lowest score first.
        measure: What the scores by class are: "recall" or, of several labels per row, "f1".
        teacher: The teacher's name or folder; None without one.
        teacher_scores: The teacher's, on the classes of the data that it knows.
        teacher_parameters: Of the teacher.
        agreement: Share of rows on which both choose the same class; of several labels per row, share of labels.
        teacher_kl: Mean KL(teacher ‖ model) in nats, over the classes that both know.
        teacher_mse: Of a regression, the mean squared difference of the two.
        data_fingerprint: Changes when the data do.
        data_description: What was read, chosen and made of it.
        notes: What a reader of the numbers should know.
        commits: Of "model" and "teacher" on the Hub; None for folders.
        label_map: Of each class of the data the model's classes; None where all have the same names.
        environment: Versions and device.
    """

    model: str
    data: str
    split: str
    rows: int
    labelled: int
    left_out: int
    problem_type: str
    metric: str
    scores: dict[str, float]
    parameters: int
    per_class: list[ClassScore]
    measure: str
    teacher: str | None = None
    teacher_scores: dict[str, float] | None = None
    teacher_parameters: int | None = None
    agreement: float | None = None
    teacher_kl: float | None = None
    teacher_mse: float | None = None
    data_fingerprint: str = ""
    data_description: str = ""
    notes: list[str] = field(default_factory=list)
    commits: dict[str, str | None] = field(default_factory=dict)
    label_map: dict[str, list[str]] | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Everything, as JSON text."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def evaluate_model(
    model: PreTrainedModel | str | PathLike,
    data: Any,
    *,
    teacher: PreTrainedModel | str | PathLike | None = None,
    split: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    processor: Any = None,
    label_map: Mapping[Any, Any] | str | PathLike | None = None,
    revision: str = "main",
    teacher_processor: Any = None,
    teacher_label_map: Mapping[Any, Any] | str | PathLike | None = None,
    teacher_revision: str = "main",
    batch_size: int = 32,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    show_progress: bool = False,
) -> Evaluation:
    """Score an image or text classifier on data, in the classes of the data, alone or beside a teacher.

    The model's classes are matched with the data's by name (`LabelMap`): their order does not matter, classes that
    only the model has are left out of its choice, and rows of classes that it does not know are left out of the scores
    and counted. The same holds for the teacher. The model reads inputs of its own processor, and the teacher of its
    own.

    Args:
        model: A classifier, its Hub id, or a folder. Of a run with an adapter, the merged student is taken.
        data: What `load_task` takes: an embedded set, a benchmark, a file, a folder, a name on the Hub, tables. Or a
            `Task`, whose inputs are then those of the model.
        teacher: A classifier to compare with, in the same ways.
        split: "test", "validation" or "train" as `load_task` has them, "all" for their union, or a split by its
            owner's name, of which all rows are taken. None: all of a single file or table, else "test".
        data_options: Arguments of `load_task`, e.g. `{"text_column": "text", "max_samples": 1000, "seed": 0}`.
        processor: The model's tokenizer or image processor, its Hub id or folder. None: what lies with the model.
        label_map: `{model's class: data's class}`, or a file of that, for classes whose names differ; None as the
            data's class leaves one out.
        revision: Branch, tag or commit of the model.
        teacher_processor: As `processor`.
        teacher_label_map: As `label_map`.
        teacher_revision: As `revision`.
        batch_size: Rows per batch and process.
        dtype: Precision to hold the models in; "auto" keeps the checkpoints'.
        device: "auto" or "cpu", or the kind that there must be, such as "cuda".
        trust_remote_code: Run code that comes with the models.
        use_safetensors: Read weights of the safetensors format only; pickled ones can run code.
        show_progress: Draw a progress bar.

    Raises:
        ConfigError: Something cannot be loaded, or does not fit together; each problem with its place.

    Example:
        >>> evaluation = evaluate_model("outputs/student", "embedded/digits", teacher="outputs/teacher")
        ... # doctest: +SKIP
        >>> evaluation.scores["accuracy"], evaluation.per_class[0]  # doctest: +SKIP
    """
    args = _arguments(batch_size, device, show_progress)
    loading = Loading(check_dtype(dtype), trust_remote_code, use_safetensors)
    own = Source("model", model, revision, processor, label_map, loading)
    other = None
    if teacher is not None:
        other = Source("teacher", teacher, teacher_revision, teacher_processor, teacher_label_map, loading)
        other.check_kind(own)
    loaded = load_data(data, own, split, dict(data_options or {}))
    task, notes = loaded.task, loaded.notes
    subject, mapped = _subject(own, task)
    notes += [*own.notes, *mapped]
    known, guide, their_map = None, None, None
    if other is not None:
        guide = other.load(task.problem_type)
        their_map = _matched(guide, subject, other, task.problem_type)
        task, known = _with_inputs(other, guide, task, loaded.split)
        notes += [*other.notes, *_taught(their_map)]
    given = {"teacher": guide, "teacher_processor": known, "teacher_map": their_map}
    found = score_models(subject, task, loaded.rows(task), args, **given)
    return _evaluation(own, other, subject, guide, task, split or loaded.split, found, notes)


def _arguments(batch_size: int, device: str, show_progress: bool) -> dict[str, Any]:
    """Training arguments of an evaluation."""
    why = "so many rows are looked at at once. Pass e.g. 32."
    try:
        check_number("evaluate_model", "batch_size", batch_size, why, low=1, whole=True)
    except (ValueError, TypeError) as error:
        raise ConfigError([f"batch_size: {error}"]) from error
    there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device not in ("auto", "cpu", there):
        known = ", ".join(dict.fromkeys(["auto", "cpu", there]))
        hint = " To choose among several, set CUDA_VISIBLE_DEVICES." if device.startswith("cuda:") else ""
        raise ConfigError([f"device: {device!r} is not here. Available: {known}.{hint}"])
    on_cpu = device == "cpu" or there == "cpu"
    return {
        "per_device_eval_batch_size": int(batch_size),
        "use_cpu": on_cpu,
        "disable_tqdm": not show_progress,
        "dataloader_pin_memory": not on_cpu,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def _subject(source: Source, task: Task) -> tuple[InDataClasses, list[str]]:
    """The model in the classes of the data, and what to say about that."""
    model = source.load(task.problem_type)
    if task.problem_type == REGRESSION:
        return InDataClasses(model, None, task.label_names, REGRESSION), []
    theirs = tuple(str(model.config.id2label[index]) for index in sorted(model.config.id2label))
    try:
        matched = LabelMap.match(theirs, task.label_names, source.label_map)
    except ValueError as error:
        raise ConfigError([f"model: {_in_words(error, 'model', 'data')} {AS_FILE}"]) from error
    if task.problem_type == SINGLE_LABEL and len(matched.shared) < 2:
        alone = matched.student_labels[matched.shared[0]]
        raise ConfigError(
            [
                f"model: {source.name!r} and the data share the class {alone!r} alone, and with a single class there "
                "is nothing to tell apart. Say which is which with a label_map of {model's class: data's class}."
            ]
        )
    return InDataClasses(model, matched, task.label_names, task.problem_type), _map_notes(matched, task)


def _matched(teacher: PreTrainedModel, subject: InDataClasses, source: Source, problem_type: str) -> LabelMap | None:
    try:
        return match_models(teacher, subject, source.label_map, problem_type)
    except ValueError as error:
        raise ConfigError([f"teacher: {_in_words(error, 'teacher', 'data')} {AS_FILE}"]) from error


def _in_words(error: ValueError, owner: str, other: str) -> str:
    """What `LabelMap` says about a teacher and a student, of a model and data."""
    text = one_line(error)
    for old, new in (
        ("`teacher_model`", f"the {owner}"),
        ("`model`", f"the {other}"),
        ("the teacher's", f"the {owner}'s"),
        ("the student's", f"the {other}'s"),
        ("a teacher's class", "a class"),
        ("{teacher name: student name}", f"{{{owner}'s class: {other}'s class}}"),
        ("Teacher:", f"The {owner}:"),
        ("Student:", f"The {other}:"),
        (" Load both with the same `label2id`, or say", " Say"),
        (" Give both real names in `id2label`, or pass", " Pass"),
    ):
        text = text.replace(old, new)
    return text


def _map_notes(matched: LabelMap, task: Task) -> list[str]:
    notes = []
    used = sum(map(len, matched.groups))
    if matched.by == "position":
        notes.append("Classes are matched by position, because one side has no real names (`LABEL_0`, …).")
    if used < len(matched.teacher_labels):
        notes.append(
            f"The model has {len(matched.teacher_labels):,} classes, and {used:,} of them are in the data: it chooses "
            "among these alone."
        )
    return notes


def _taught(matched: LabelMap | None) -> list[str]:
    if matched is None or matched.is_complete:
        return []
    missing = _listed(matched.unknown)
    return [f"The teacher does not know {missing}: its scores and the comparison are over the other classes."]


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} classes)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# ---------------------------------------------------------------------------------------------------------------------
# The teacher's inputs, and the result
# ---------------------------------------------------------------------------------------------------------------------


def _with_inputs(source: Source, teacher: PreTrainedModel, task: Task, split: str) -> tuple[Task, Any]:
    """The task with `teacher_` columns where the teacher reads other inputs, and the processor that made them."""
    processor = own_processor(source, task.modality)
    if processor is None:
        source.notes.append("The teacher comes without a processor of its own and reads the model's inputs.")
        return task, None
    try:
        added = add_teacher_inputs(
            task,
            processor,
            reads=model_columns(teacher),
            channels=None if task.modality == "text" else getattr(teacher.config, "num_channels", None),
            splits=SPLITS if split == ALL else (split,),
        )
    except (ValueError, TypeError) as error:
        raise ConfigError([f"teacher: its inputs cannot be made: {one_line(error)}"]) from error
    return added, None if added is task else processor


def _evaluation(
    own: Source,
    other: Source | None,
    subject: InDataClasses,
    teacher: PreTrainedModel | None,
    task: Task,
    split: str,
    found: Scored,
    notes: list[str],
) -> Evaluation:
    unknown = () if subject.label_map is None else subject.label_map.unknown
    if unknown:
        lost = f"{found.left_out:,} rows of these classes are" if task.problem_type == SINGLE_LABEL else "they are"
        notes = [*notes, f"The model does not know {_listed(unknown)}: {lost} left out of the scores."]
    empty = len(subject.names) - len(found.per_class)
    if empty > 0 and found.per_class:
        notes = [*notes, f"{empty:,} of {len(subject.names):,} classes have no labelled row here."]
    commits = {"model": describe_model(subject.model, own.revision)["commit"]}
    if other is not None:
        commits["teacher"] = describe_model(teacher, other.revision)["commit"]
    return Evaluation(
        model=own.name,
        data=task.name,
        split=split,
        rows=found.rows,
        labelled=found.labelled,
        left_out=found.left_out,
        problem_type=task.problem_type,
        metric=task.metric,
        scores=found.scores,
        parameters=plain_parameters(subject.model),
        per_class=found.per_class,
        measure=found.measure,
        teacher=None if other is None else other.name,
        teacher_scores=found.teacher_scores,
        teacher_parameters=None if teacher is None else plain_parameters(teacher),
        **found.compared,
        data_fingerprint=task.fingerprint,
        data_description=task.description,
        notes=[*notes, *found.doubts],
        commits=commits,
        label_map=_pairs(subject.label_map),
        environment=found.environment,
    )


def _pairs(matched: LabelMap | None) -> dict[str, list[str]] | None:
    if matched is None or matched.by == "name" and matched.is_identity:
        return None
    entries = zip(matched.student_labels, matched.groups, strict=True)
    return {name: [matched.teacher_labels[index] for index in group] for name, group in entries}


def write_evaluation(evaluation: Evaluation, path: str | Path) -> Path:
    """Write it as JSON, replacing what is there; missing folders are made.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(evaluation.to_json(), encoding="utf-8")
    return path

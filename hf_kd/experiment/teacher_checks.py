"""What is wrong with a `teacher` section, and with what the run asks of it, before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from ..adapters import SELF
from ..label_map import read_mapping
from ..objective import DistillationObjective
from ..quantization import KEYS, quantization_problems
from .config import TeacherSection
from .student_checks import folder_problems, mistyped, one_line

_OF_A_COLUMN = ("column", "sanity_check")


def teacher_problems(given: Mapping[str, Any], objective: DistillationObjective | None) -> list[str]:
    """A teacher that is missing, not needed, not there, or that cannot do what the run asks.

    Args:
        given: All sections.
        objective: The run's; None where it is not well-formed.
    """
    teacher = given.get("teacher")
    problems = cache_problems(given)
    if objective is not None and objective.needs_teacher and teacher is None:
        where = "method" if "method" in given else "objective"
        return [
            *problems,
            f"teacher: is required, because the run distils at {where}.kd_weight={objective.kd_weight:g}. Give "
            f"teacher.model, or set {where}.kd_weight=0 to train without one.",
        ]
    if not isinstance(teacher, Mapping):
        return problems
    teacher = {key: value for key, value in teacher.items() if value is not None}
    problems += [
        *_source_problems(teacher),
        *folder_problems("teacher.model", teacher.get("model")),
        *folder_problems("teacher.processor", teacher.get("processor")),
        *_label_map_problems(teacher.get("label_map")),
        *_quantization_problems(teacher, given.get("student")),
    ]
    if "column" in teacher:
        problems += _column_problems(teacher, given.get("data"), objective)
    training = given.get("training")
    compared = isinstance(training, Mapping) and training.get("evaluate_with_teacher")
    if objective is not None and not objective.needs_teacher and not compared:
        why = "the distillation weight is 0" if objective.kd_weight == 0 else "no loss of the objective looks at it"
        problems.append(
            f"teacher: would not be used, because {why}. Remove it (teacher=null), or set "
            "training.evaluate_with_teacher=true to compare the student with it."
        )
    return problems


def cache_problems(given: Mapping[str, Any]) -> list[str]:
    """Stored answers to rows that are others each time, and a cache that nobody fills."""
    cache, teacher, data = (given.get(name) for name in ("teacher_cache", "teacher", "data"))
    if not isinstance(cache, Mapping):
        return []
    data, problems = data if isinstance(data, Mapping) else {}, []
    source = teacher.get("model") if isinstance(teacher, Mapping) else None
    if source is None or source == SELF:
        got = "there is no teacher" if not isinstance(teacher, Mapping) else "its answers are a column of the data"
        got = "`self` is always at hand, and as fast as the student" if source == SELF else got
        problems.append(f"teacher_cache: keeps what teacher.model answers, and {got}. Remove one of them.")
    spec = data.get("augmentation")
    if spec and data.get("streaming") is True:
        problems.append(
            "data.augmentation: changes the images of a stream as they pass, so that no view comes again, and "
            "teacher_cache keeps answers to views. Remove one of them, or do not stream."
        )
    elif spec and cache.get("views") is None:
        problems.append(
            "teacher_cache.views: is required with data.augmentation: so many repeatable views of each training image "
            "are answered and then seen in turn, one per epoch, e.g. 8."
        )
    elif not spec and cache.get("views") is not None:
        problems.append(
            "teacher_cache.views: says how many random views of each row there are, and without data.augmentation all "
            "are the same. Remove it."
        )
    return problems


def _source_problems(teacher: Mapping[Any, Any]) -> list[str]:
    if "model" in teacher or "column" in teacher:
        return []
    missing = "teacher.model: is required (a Hub id or a folder), or teacher.column, of stored logits."
    return [*mistyped("model", teacher, "teacher"), missing]


def _column_problems(teacher: Mapping[Any, Any], data: Any, objective: DistillationObjective | None) -> list[str]:
    """What only a teacher that runs can have or give."""
    fields = TeacherSection.model_fields
    problems = [
        f"teacher.{key}: is about a teacher that runs, and teacher.column is what one answered earlier. Remove one."
        for key, value in teacher.items()
        if key not in _OF_A_COLUMN and key in fields and value != fields[key].default
    ]
    data = data if isinstance(data, Mapping) else {}
    if data.get("augmentation"):
        problems.append(
            "data.augmentation: would show the student other images than those the logits in teacher.column are for. "
            "Remove it, or give teacher.model."
        )
    if data.get("streaming") is True:
        problems.append("data.streaming: does not go with teacher.column, which is checked beforehand. Remove one.")
    needs = () if objective is None else [name for name in objective.needs if name.startswith("teacher")]
    if needs:
        problems.append(
            f"teacher.column: the losses also need {' and '.join(needs)}, which stored logits do not hold. Give "
            "teacher.model, or choose losses on logits."
        )
    return problems


def _quantization_problems(teacher: Mapping[Any, Any], student: Any) -> list[str]:
    """What cannot be loaded in fewer bits, or is needed as it was."""
    asked = [key for key in KEYS if teacher.get(key) is True]
    problems = [f"teacher.{problem}" for problem in quantization_problems(*(key in asked for key in KEYS))]
    if asked and teacher.get("model") == SELF:
        problems.append(
            f"teacher.{asked[0]}: 'self' is the student without its adapter, in the student's own weights. Remove it, "
            "or name the checkpoint in teacher.model."
        )
    if asked and isinstance(student, Mapping) and student.get("init_layers") is not None:
        problems.append(
            f"teacher.{asked[0]}: student.init_layers takes over the teacher's weights, which are not there in so few "
            "bits. Remove one."
        )
    return problems


def _label_map_problems(label_map: Any) -> list[str]:
    """A file of class names must be there and hold them."""
    if not isinstance(label_map, str):
        return []
    try:
        read_mapping(label_map)
    except ValueError as error:
        return [f"teacher.label_map: {one_line(error)}"]
    return []

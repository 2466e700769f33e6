"""The evaluation of a run: its folder says on which data, and against which teacher."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..adapters import SELF
from ..registry import ConfigError
from .config import DataSection, structure_problems
from .evaluation import Evaluation, evaluate_model
from .loading import NOT_FOR_SCORING
from .run import RESOLVED_CONFIG
from .student_checks import folder_problems
from .teacher_side import stored_teacher


def evaluate_run(
    folder: str | Path,
    *,
    with_teacher: bool = True,
    data_options: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Evaluation:
    """Score the student in the folder of a run on the run's data, beside the run's teacher.

    Both are read from its `resolved_config.yaml`; relative paths there are relative to the folder that this is run
    in, as they were for the run. Remote code and pickled weights are not allowed by that file, only by the caller.

    Args:
        folder: The output folder of `hf-kd train`.
        with_teacher: Compare with the run's teacher.
        data_options: Arguments of `load_task` that replace the run's.
        keywords: Of `evaluate_model`; they replace what the run says. The split is "test" by default.

    Raises:
        ConfigError: The folder is no run's, or as in `evaluate_model`.
    """
    resolved = _resolved(Path(folder))
    data, options = _data(resolved)
    given, notes = ({}, []) if "teacher" in keywords or not with_teacher else _teacher(resolved)
    merged = {**options, **(data_options or {})}
    keywords["split"] = keywords.get("split") or "test"
    found = evaluate_model(folder, data, data_options=merged, **{**given, **keywords})
    return replace(found, notes=[*found.notes, *notes])


def is_run(folder: str | Path) -> bool:
    """Whether `hf-kd train` wrote the folder."""
    return (Path(folder).expanduser() / RESOLVED_CONFIG).is_file()


def _resolved(folder: Path) -> Mapping[str, Any]:
    path = folder.expanduser() / RESOLVED_CONFIG
    if not path.is_file():
        raise ConfigError(
            [
                f"data: is needed, because {str(folder)!r} is no folder of a run (it has no {RESOLVED_CONFIG}) that "
                "would say on which data. Name an embedded set, a benchmark, a file, a folder or a Hub id."
            ]
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {' '.join(str(error).split())}. Name the data."]) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), Mapping):
        raise ConfigError([f"{path}: has no section `data`. Name the data."])
    return content


def _data(resolved: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What `load_task` is asked for, and how."""
    problems = [f"{RESOLVED_CONFIG}: data.{line}" for line in structure_problems(DataSection, resolved["data"])]
    if problems:
        raise ConfigError(problems)
    section = DataSection.model_validate(resolved["data"])
    options = section.model_dump(exclude={"name", "path", *NOT_FOR_SCORING}, exclude_none=True)
    if isinstance(section.text_column, list):
        options["text_column"] = tuple(section.text_column)
    if section.path is not None and not Path(section.path).expanduser().exists():
        raise ConfigError(
            [
                f"data: the run read {section.path!r}, and there is no such file or folder here. Start from the "
                "folder that the run was started from, or name the data."
            ]
        )
    if section.name is not None and section.path is not None:
        options["path"] = section.path
    return section.name or section.path, options


def _teacher(resolved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Arguments of `evaluate_model`, and what to say; none where the run has no teacher that stands by itself."""
    section = resolved.get("teacher")
    if isinstance(section, Mapping) and section.get("column") is not None:
        return _stored_teacher(resolved)
    if not isinstance(section, Mapping) or section.get("model") in (None, SELF):
        return {}, []
    problems = folder_problems("teacher", section["model"])
    if problems:
        raise ConfigError([f"{line} It is the run's; to do without it, set with_teacher=False." for line in problems])
    given = {
        "teacher": section["model"],
        "teacher_revision": section.get("revision") or "main",
        "teacher_processor": section.get("processor"),
        "teacher_label_map": section.get("label_map"),
    }
    return given, []


def _stored_teacher(resolved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The model that gave the logits which the run learned from, if it is known and there."""
    facts = stored_teacher(resolved["data"].get("path")) or {}
    name = facts.get("name")
    if name is None or (facts.get("local") and not Path(name).expanduser().is_dir()):
        where = "is not known" if name is None else f"was {name!r}, which is not here"
        return {}, [f"The run learned from stored logits, whose teacher {where}. Name one to compare with."]
    return {"teacher": name, "teacher_revision": facts.get("commit") or facts.get("revision") or "main"}, []

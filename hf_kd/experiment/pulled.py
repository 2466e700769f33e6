"""What a run loaded besides its models: processors and data, each with the commit that it was."""

from typing import Any

from ..data import Task
from ..trainer.hub import describe_source
from .build import processor_source
from .config import ExperimentConfig
from .teacher_side import TeacherSide


def pulled(config: ExperimentConfig, task: Task, side: TeacherSide) -> dict[str, Any]:
    """`processor`, `teacher_processor` and `data` by name, revision and commit.

    A commit is None for what is local, and where nobody noted it. What was not loaded is left out: the processor that
    an embedded set brings, a teacher's that reads the student's inputs. `data` is None if it is not on the Hub.
    """
    found: dict[str, Any] = {}
    source = processor_source(config)
    if source is not None:
        name, options = source
        found["processor"] = describe_source(name, options.get("revision") or "main")
    if side.processor is not None and config.teacher is not None:
        own = config.teacher.processor
        name, revision = (own, "main") if own else (config.teacher.model, config.teacher.revision)
        found["teacher_processor"] = describe_source(name, revision)
    return {**found, "data": None if task.origin is None else dict(task.origin)}

"""Knowledge distillation of image and text classifiers inside the Hugging Face `Trainer`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_with_transformers

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "registry",
    "DistillationLoss": "losses",
    "DistillationObjective": "objective",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "training_args",
    "KDLoss": "losses",
    "LossOutput": "losses",
    "LabelMap": "label_map",
    "METHODS": "methods",
    "Mixing": "mixing",
    "Progress": "temperatures",
    "Task": "data",
    "TeacherCache": "teacher_cache",
    "TemperatureStrategy": "temperatures",
    "Temperatures": "temperatures",
    "add_adapter": "adapters",
    "add_teacher_logits": "teacher_logits",
    "add_teacher_inputs": "data",
    "build_objective": "methods",
    "evaluate_model": "experiment",
    "init_from_teacher": "students",
    "load_task": "data",
    "load_teacher": "teacher",
    "merged_student": "adapters",
}

__all__ = [
    "METHODS",
    "ConfigError",
    "DistillationLoss",
    "DistillationObjective",
    "DistillationTrainer",
    "DistillationTrainingArguments",
    "KDLoss",
    "LabelMap",
    "LossOutput",
    "Mixing",
    "Progress",
    "Task",
    "TeacherCache",
    "TemperatureStrategy",
    "Temperatures",
    "add_adapter",
    "add_teacher_inputs",
    "add_teacher_logits",
    "build_objective",
    "evaluate_model",
    "init_from_teacher",
    "load_task",
    "load_teacher",
    "merged_student",
]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that the losses work without `transformers` being imported."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_kd' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_with_transformers()

if TYPE_CHECKING:
    from .adapters import add_adapter, merged_student
    from .data import Task, add_teacher_inputs, load_task
    from .experiment import evaluate_model
    from .label_map import LabelMap
    from .losses import DistillationLoss, KDLoss, LossOutput
    from .methods import METHODS, build_objective
    from .mixing import Mixing
    from .objective import DistillationObjective
    from .registry import ConfigError
    from .students import init_from_teacher
    from .teacher import load_teacher
    from .teacher_cache import TeacherCache
    from .teacher_logits import add_teacher_logits
    from .temperatures import Progress, Temperatures, TemperatureStrategy
    from .trainer import DistillationTrainer
    from .training_args import DistillationTrainingArguments

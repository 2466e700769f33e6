"""Data for distillation: a thin table over `datasets`, and two embedded sets that need no download."""

from .benchmarks import BENCHMARKS, Benchmark
from .loading import EMBEDDED, load_task
from .task import SPLITS, ImageCollator, Task, TextCollator
from .teacher_inputs import add_teacher_inputs

__all__ = [
    "BENCHMARKS",
    "EMBEDDED",
    "SPLITS",
    "Benchmark",
    "ImageCollator",
    "Task",
    "TextCollator",
    "add_teacher_inputs",
    "load_task",
]

"""Data for distillation: a thin table over `datasets`, and two embedded sets that need no download."""

from hf_kd.data.loading import EMBEDDED, load_task
from hf_kd.data.task import ImageCollator, Task, TextCollator

__all__ = ["EMBEDDED", "ImageCollator", "Task", "TextCollator", "load_task"]

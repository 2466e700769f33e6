"""The distillation trainer: a Trainer subclass that is exact in every launch mode."""

from .trainer import DistillationTrainer

__all__ = ["DistillationTrainer"]

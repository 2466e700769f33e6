"""Distillation losses: one per file, tensors in, unreduced values out."""

from .base import DistillationLoss, LossOutput
from .kd import KDLoss

LOSSES: dict[str, type[DistillationLoss]] = {"kd": KDLoss}

__all__ = ["LOSSES", "DistillationLoss", "KDLoss", "LossOutput"]

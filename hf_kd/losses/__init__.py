"""Distillation losses: one per file, tensors in, unreduced values out."""

from .base import DistillationLoss, LossOutput
from .divergences import AlphaBetaLoss, HellingerLoss, RenyiLoss, TotalVariationLoss
from .kd import KDLoss
from .kl_family import JeffreysLoss, JensenShannonLoss, ReverseKLLoss, SkewKLLoss

LOSSES: dict[str, type[DistillationLoss]] = {
    "kd": KDLoss,
    "jeffreys": JeffreysLoss,
    "jensen_shannon": JensenShannonLoss,
    "reverse_kl": ReverseKLLoss,
    "skew_kl": SkewKLLoss,
    "alpha_beta": AlphaBetaLoss,
    "hellinger": HellingerLoss,
    "renyi": RenyiLoss,
    "total_variation": TotalVariationLoss,
}

__all__ = [
    "LOSSES",
    "AlphaBetaLoss",
    "DistillationLoss",
    "HellingerLoss",
    "JeffreysLoss",
    "JensenShannonLoss",
    "KDLoss",
    "LossOutput",
    "RenyiLoss",
    "ReverseKLLoss",
    "SkewKLLoss",
    "TotalVariationLoss",
]

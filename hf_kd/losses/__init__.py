"""Distillation losses: one per file, tensors in, unreduced values out."""

from ..registry import build
from .base import DistillationLoss, LossOutput
from .cross_entropy import BinaryCrossEntropyLoss, HardLabelLoss, SoftCrossEntropyLoss
from .divergences import AlphaBetaLoss, HellingerLoss, RenyiLoss, TotalVariationLoss
from .dkd import DKDLoss
from .kd import KDLoss
from .kl_family import JeffreysLoss, JensenShannonLoss, ReverseKLLoss, SkewKLLoss
from .logits import LogitHuberLoss, LogitMSELoss
from .nkd import NKDLoss
from .weights import WEIGHTS, SampleWeight, SampleWeightedLoss, as_loss

LOSSES: dict[str, type[DistillationLoss]] = {
    "kd": KDLoss,
    "dkd": DKDLoss,
    "nkd": NKDLoss,
    "weighted": SampleWeightedLoss,
    "jeffreys": JeffreysLoss,
    "jensen_shannon": JensenShannonLoss,
    "reverse_kl": ReverseKLLoss,
    "skew_kl": SkewKLLoss,
    "alpha_beta": AlphaBetaLoss,
    "hellinger": HellingerLoss,
    "renyi": RenyiLoss,
    "total_variation": TotalVariationLoss,
    "binary_cross_entropy": BinaryCrossEntropyLoss,
    "hard_label": HardLabelLoss,
    "soft_cross_entropy": SoftCrossEntropyLoss,
    "logit_huber": LogitHuberLoss,
    "logit_mse": LogitMSELoss,
}


def as_loss(value: str | Mapping[str, Any] | DistillationLoss, path: str = "loss", **context: Any) -> DistillationLoss:
    """A loss from what users write: a registry name, a mapping with `name` and arguments, or a loss.

    Args:
        value: What stands for the loss. A mapping may also hold `sample_weight`, see `SampleWeightedLoss`.
        path: Where it stands, for error messages.
        **context: Arguments for losses that need them and do not set them (`num_labels`).

    Raises:
        ConfigError: An unknown name, or arguments the loss refuses.
    """
    if isinstance(value, DistillationLoss):
        return value
    if isinstance(value, Mapping) and "sample_weight" in value and value.get("name") != SampleWeightedLoss.name:
        inner = {key: argument for key, argument in value.items() if key != "sample_weight"}
        value = {"name": SampleWeightedLoss.name, "loss": inner, "sample_weight": value["sample_weight"]}
    return build(LOSSES, value, path, kind="distillation loss", context=context)


__all__ = [
    "LOSSES",
    "WEIGHTS",
    "AlphaBetaLoss",
    "BinaryCrossEntropyLoss",
    "DKDLoss",
    "DistillationLoss",
    "HardLabelLoss",
    "HellingerLoss",
    "JeffreysLoss",
    "JensenShannonLoss",
    "KDLoss",
    "LogitHuberLoss",
    "LogitMSELoss",
    "LossOutput",
    "NKDLoss",
    "RenyiLoss",
    "ReverseKLLoss",
    "SampleWeight",
    "SampleWeightedLoss",
    "SkewKLLoss",
    "SoftCrossEntropyLoss",
    "TotalVariationLoss",
    "as_loss",
]

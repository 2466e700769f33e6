"""The networks of the CIFAR distillation literature, as models of transformers."""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, ViTImageProcessor

from .cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification, CifarResNetModel

_FAMILIES = ((CifarResNetConfig, CifarResNetModel, CifarResNetForImageClassification),)

# Mean and standard deviation of CIFAR-100's training images, as the benchmarks of the literature normalise.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
OWN_TYPES = tuple(config.model_type for config, _, _ in _FAMILIES)

LITERATURE: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"model_type": "cifar_resnet", "depth": depth} for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": {"model_type": "cifar_resnet", "depth": 8, "width": 4},
    "resnet32x4": {"model_type": "cifar_resnet", "depth": 32, "width": 4},
}

__all__ = ["LITERATURE", "OWN_TYPES", "cifar_processor"]


def _register() -> None:
    for config, backbone, classifier in _FAMILIES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, backbone, exist_ok=True)
        AutoModelForImageClassification.register(config, classifier, exist_ok=True)


def cifar_processor(size: int = 32) -> ViTImageProcessor:
    """The image processor of these networks: `size` pixels a side, normalised as CIFAR-100.

    Args:
        size: Pixels a side. Images that have it already are not resampled.
    """
    return ViTImageProcessor(
        do_resize=True,
        size={"height": size, "width": size},
        do_convert_rgb=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(MEAN),
        image_std=list(STD),
    )


_register()

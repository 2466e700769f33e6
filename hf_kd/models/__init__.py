"""The networks of the CIFAR distillation literature, as models of transformers.

Their layers, sizes, strides, places of the ReLUs and initialisation are those of the CRD benchmark (Tian et al., ICLR
2020), which most papers on distillation compare on; so are their numbers of parameters, here for 100 classes:

| name | model_type and settings | parameters |
|---|---|---:|
| `resnet8` | `cifar_resnet`, depth 8 | 83,892 |
| `resnet14` | depth 14 | 181,108 |
| `resnet20` | depth 20 | 278,324 |
| `resnet32` | depth 32 | 472,756 |
| `resnet44` | depth 44 | 667,188 |
| `resnet56` | depth 56 | 861,620 |
| `resnet110` | depth 110 | 1,736,564 |
| `resnet8x4` | depth 8, width 4 | 1,233,540 |
| `resnet32x4` | depth 32, width 4 | 7,433,860 |
| `wrn_16_1` | `cifar_wrn`, depth 16, width 1 | 180,916 |
| `wrn_16_2` | depth 16, width 2 | 703,284 |
| `wrn_40_1` | depth 40, width 1 | 569,780 |
| `wrn_40_2` | depth 40, width 2 | 2,255,156 |
| `vgg8` | `cifar_vgg`, depth 8 | 3,965,028 |
| `vgg11` | depth 11 | 9,277,284 |
| `vgg13` | depth 13 | 9,462,180 |
| `vgg16` | depth 16 | 14,774,436 |
| `vgg19` | depth 19 | 20,086,692 |
| `mobilenet_v2` | `cifar_mobilenet_v2`, width 0.5, expansion 6 | 812,836 |
| `shufflenet_v1` | `cifar_shufflenet_v1` | 949,258 |
| `shufflenet_v2` | `cifar_shufflenet_v2` | 1,355,528 |
| `resnet18` | `cifar_deep_resnet`, depth 18 | 11,220,132 |
| `resnet50` | `cifar_deep_resnet`, depth 50 | 23,705,252 |

The names are those of the pairs in `hf_kd.methods` (`vgg13-vgg8`). `LITERATURE` says the settings of each, which
`student.config` takes; `literature_config` makes a configuration of them:

    >>> from transformers import AutoModelForImageClassification
    >>> model = AutoModelForImageClassification.from_config(literature_config("resnet8x4", num_labels=100))
    >>> model.num_parameters()
    1233540

Every model takes `pixel_values`, `(batch, channels, height, width)`, and ends in one linear layer on features averaged
over places. With `output_hidden_states` it returns the maps that the benchmark compares; each backbone says which, and
whether before or after a ReLU. `channels_last` holds the weights in that order of memory.

Once `hf_kd` is imported, the Auto classes of transformers know them, and their checkpoints load like any other. Their
code is saved beside their weights: where `hf_kd` is not installed, they load with `trust_remote_code=True`.
"""

from typing import TYPE_CHECKING, Any

from transformers.models.auto.configuration_auto import AutoConfig

from ..registry import ConfigError, suggestion
from .cifar_configs import CONFIGS, CifarConfig

if TYPE_CHECKING:
    from transformers import ViTImageProcessor

# Mean and standard deviation of CIFAR-100's training images, as the benchmarks of the literature normalise.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
OWN_TYPES = tuple(config.model_type for config in CONFIGS)

LITERATURE: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"model_type": "cifar_resnet", "depth": depth} for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": {"model_type": "cifar_resnet", "depth": depth, "width": 4} for depth in (8, 32)},
    **{f"resnet{depth}": {"model_type": "cifar_deep_resnet", "depth": depth} for depth in (18, 50)},
    **{
        f"wrn_{depth}_{width}": {"model_type": "cifar_wrn", "depth": depth, "width": width}
        for depth in (16, 40)
        for width in (1, 2)
    },
    **{f"vgg{depth}": {"model_type": "cifar_vgg", "depth": depth} for depth in (8, 11, 13, 16, 19)},
    "mobilenet_v2": {"model_type": "cifar_mobilenet_v2", "width": 0.5, "expansion": 6},
    "shufflenet_v1": {"model_type": "cifar_shufflenet_v1"},
    "shufflenet_v2": {"model_type": "cifar_shufflenet_v2"},
}
"""Name in the literature -> `model_type` and settings."""

__all__ = ["LITERATURE", "OWN_TYPES", "cifar_processor", "literature_config"]


def literature_config(name: str, **settings: Any) -> CifarConfig:
    """The configuration of a network of the literature.

    Args:
        name: One of `LITERATURE`, e.g. ``"resnet8x4"``.
        **settings: More of them, or others: `num_labels`, `channels_last`, ...

    Raises:
        ConfigError: There is no such name.
    """
    if name not in LITERATURE:
        raise ConfigError([f"`literature_config(name={name!r})`: unknown network.{suggestion(name, LITERATURE)}"])
    return AutoConfig.for_model(**{**LITERATURE[name], **settings})


def cifar_processor(size: int = 32) -> "ViTImageProcessor":
    """The image processor of these networks: `size` pixels a side, normalised as CIFAR-100.

    Args:
        size: Pixels a side. Images that have it already are not resampled.
    """
    from transformers import ViTImageProcessor  # here, because it needs torchvision, and the networks do not

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


for _config in CONFIGS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)

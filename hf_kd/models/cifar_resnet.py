"""ResNets for images of 32 pixels: three stages of basic blocks (He et al. 2016, section 4.2)."""

import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, CifarConfig, normed


@strict
class CifarResNetConfig(CifarConfig):
    """The residual networks of depth 6n + 2 for CIFAR.

    Args:
        depth: Layers with weights, 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...
        width: The stages have 16, 32 and 64 times as many channels; the benchmark's "x4" is 4.
        stem_channels: Channels after the first convolution. None: 8 times `width`, at least 16, as in the benchmark
            (16 for width 1, 32 for width 4).
    """

    model_type = "cifar_resnet"

    depth: int = 20
    width: int = 1
    stem_channels: int | None = None

    def validate_depth(self) -> None:
        """Refuse a depth that three equal stages cannot make."""
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(
                f"`CifarResNetConfig(depth={self.depth})` is not 6n + 2: three stages of n blocks with two "
                "convolutions each, one before and one layer after. Give 8, 14, 20, 32, 44, 56 or 110."
            )

    def validate_widths(self) -> None:
        """Refuse a network without channels."""
        self.check_size("width", "the stages would have no channels. Give 1, or 4 for the wide ones")
        self.check_size("stem_channels", "the stages would have nothing to read. Leave it out, or give 16")

    @property
    def stem_size(self) -> int:
        """Channels after the first convolution."""
        return max(16, 8 * self.width) if self.stem_channels is None else self.stem_channels

    @property
    def stage_sizes(self) -> tuple[int, int, int]:
        """Channels of the stages."""
        return 16 * self.width, 32 * self.width, 64 * self.width

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return self.stage_sizes[-1]


class CifarResNetBlock(nn.Module):
    """Two convolutions beside a shortcut, which is a convolution where the shape changes; ends in a ReLU."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.first = normed(before, after, 3, stride)
        self.second = normed(after, after, 3)
        self.shortcut = None if before == after and stride == 1 else normed(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, `(batch, after, height / stride, width / stride)`."""
        beside = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.second(F.relu(self.first(x), inplace=True)) + beside, inplace=True)


class CifarResNetModel(CifarBackbone):
    """The backbone: `hidden_states` are the maps after the stem and after each stage, all after their ReLU."""

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        self.stem = normed(config.num_channels, config.stem_size, 3)
        self.stages = nn.ModuleList()
        before, blocks = config.stem_size, (config.depth - 2) // 6
        for stage, size in enumerate(config.stage_sizes):
            first = CifarResNetBlock(before, size, 1 if stage == 0 else 2)
            self.stages.append(nn.Sequential(first, *(CifarResNetBlock(size, size, 1) for _ in range(blocks - 1))))
            before = size
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps after the stem and after each stage."""
        found = [F.relu(self.stem(pixel_values), inplace=True)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class CifarResNetForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarResNetConfig
    backbone_class = CifarResNetModel


CifarResNetConfig.register_for_auto_class()
CifarResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")

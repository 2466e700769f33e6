"""ShuffleNet for images of 32 pixels: grouped convolutions of 1x1 and shuffled channels (Zhang et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, normed, shuffled
from .cifar_configs import SHUFFLE_STEM, CifarShuffleNetV1Config


class CifarShuffleBlockV1(nn.Module):
    """Grouped 1x1, shuffle, 3x3 of each channel by itself, grouped 1x1; ends in a ReLU.

    With a stride, what entered is averaged and put beside the new channels; else it is added to them.
    """

    def __init__(self, before: int, after: int, groups: int, *, down: bool):
        super().__init__()
        new = after - before if down else after
        self.down = down
        self.groups = 1 if before == SHUFFLE_STEM else groups  # so few channels are not divided
        inner = new // 4
        self.reduce = normed(before, inner, groups=self.groups)
        self.spread = normed(inner, inner, 3, 2 if down else 1, groups=inner)
        self.expand = normed(inner, new, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, `(batch, after, height, width)`, or half the size."""
        y = shuffled(F.relu(self.reduce(x), inplace=True), self.groups)
        y = self.expand(F.relu(self.spread(y), inplace=True))
        y = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if self.down else y + x
        return F.relu(y, inplace=True)


class CifarShuffleNetV1Model(CifarBackbone):
    """The backbone: `hidden_states` are the maps after the stem and after each stage, all after their ReLU."""

    config_class = CifarShuffleNetV1Config
    conv_init = "torch"

    def __init__(self, config: CifarShuffleNetV1Config):
        super().__init__(config)
        self.stem = normed(config.num_channels, SHUFFLE_STEM)
        self.stages = nn.ModuleList()
        before = SHUFFLE_STEM
        for size, count in zip(config.stage_sizes, config.blocks, strict=True):
            first = CifarShuffleBlockV1(before, size, config.groups, down=True)
            rest = (CifarShuffleBlockV1(size, size, config.groups, down=False) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = size
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps after the stem and after each stage."""
        found = [F.relu(self.stem(pixel_values), inplace=True)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class CifarShuffleNetV1ForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarShuffleNetV1Config
    backbone_class = CifarShuffleNetV1Model
    conv_init = "torch"


CifarShuffleNetV1Model.register_for_auto_class("AutoModel")
CifarShuffleNetV1ForImageClassification.register_for_auto_class("AutoModelForImageClassification")

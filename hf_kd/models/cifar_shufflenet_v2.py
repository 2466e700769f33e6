"""ShuffleNetV2 for images of 32 pixels: half of the channels pass, then all are shuffled (Ma et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, normed, shuffled
from .cifar_configs import SHUFFLE_STEM, CifarShuffleNetV2Config


class CifarShuffleBlockV2(nn.Module):
    """The first half of the channels passes, the second goes through 1x1, 3x3 of each channel and 1x1; shuffled."""

    def __init__(self, size: int):
        super().__init__()
        half = size // 2
        self.before = normed(half, half)
        self.spread = normed(half, half, 3, groups=half)
        self.after = normed(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, of the same shape."""
        passing, y = x.chunk(2, 1)
        y = self.spread(F.relu(self.before(y), inplace=True))
        y = F.relu(self.after(y), inplace=True)
        return shuffled(torch.cat([passing, y], 1), 2)


class CifarShuffleDownBlockV2(nn.Module):
    """Both branches read all channels and halve the size; each gives half of the new channels; shuffled."""

    def __init__(self, before: int, after: int):
        super().__init__()
        half = after // 2
        self.left_spread = normed(before, before, 3, 2, groups=before)
        self.left_after = normed(before, half)
        self.right_before = normed(before, half)
        self.right_spread = normed(half, half, 3, 2, groups=half)
        self.right_after = normed(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, `(batch, after, height / 2, width / 2)`."""
        left = F.relu(self.left_after(self.left_spread(x)), inplace=True)
        right = self.right_spread(F.relu(self.right_before(x), inplace=True))
        right = F.relu(self.right_after(right), inplace=True)
        return shuffled(torch.cat([left, right], 1), 2)


class CifarShuffleNetV2Model(CifarBackbone):
    """The backbone: `hidden_states` are the maps after the stem's ReLU and after each stage's last shuffle.

    The last goes through a convolution of 1x1, BatchNorm and ReLU before it is averaged, which `last_hidden_state` is.
    """

    config_class = CifarShuffleNetV2Config
    conv_init = "torch"

    def __init__(self, config: CifarShuffleNetV2Config):
        super().__init__(config)
        self.stem = normed(config.num_channels, SHUFFLE_STEM)
        self.stages = nn.ModuleList()
        before = SHUFFLE_STEM
        for size, count in zip(config.stage_sizes, config.blocks, strict=True):
            first = CifarShuffleDownBlockV2(before, size)
            self.stages.append(nn.Sequential(first, *(CifarShuffleBlockV2(size) for _ in range(count - 1))))
            before = size
        self.head = normed(before, config.last_size)
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps after the stem and after each stage."""
        found = [F.relu(self.stem(pixel_values), inplace=True)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found

    def last(self, maps: list[Tensor]) -> Tensor:
        """The last map after the convolution of 1x1 and ReLU."""
        return F.relu(self.head(maps[-1]), inplace=True)


class CifarShuffleNetV2ForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarShuffleNetV2Config
    backbone_class = CifarShuffleNetV2Model
    conv_init = "torch"


CifarShuffleNetV2Model.register_for_auto_class("AutoModel")
CifarShuffleNetV2ForImageClassification.register_for_auto_class("AutoModelForImageClassification")

"""MobileNetV2 for images of 32 pixels: inverted residuals (Sandler et al. 2018), with strides for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, normed
from .cifar_configs import CifarMobileNetV2Config

# Channels at width 1, blocks, stride of the first block; the first stage does not widen inside.
STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
MAPS_AFTER = (1, 2, 4, 6)


class CifarMobileBlock(nn.Module):
    """Widen, convolve each channel by itself, narrow; no ReLU at the end.

    Where the shape stays, what entered is added.
    """

    def __init__(self, before: int, after: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        self.widen = normed(before, inner)
        self.spread = normed(inner, inner, 3, stride, groups=inner)
        self.narrow = normed(inner, after)
        self.adds = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, `(batch, after, height / stride, width / stride)`."""
        y = F.relu(self.widen(x), inplace=True)
        y = self.narrow(F.relu(self.spread(y), inplace=True))
        return x + y if self.adds else y


class CifarMobileNetV2Model(CifarBackbone):
    """The backbone: `hidden_states` are the map after the stem's ReLU and those after stages 2, 3, 5 and 7.

    The latter have no ReLU. The last goes through a convolution of 1x1, BatchNorm and ReLU before it is averaged,
    which `last_hidden_state` is.
    """

    config_class = CifarMobileNetV2Config

    def __init__(self, config: CifarMobileNetV2Config):
        super().__init__(config)
        before = int(32 * config.width)
        self.stem = normed(config.num_channels, before, 3, 2)
        self.stages = nn.ModuleList()
        for stage, (channels, blocks, stride) in enumerate(STAGES):
            size, expansion = int(channels * config.width), 1 if stage == 0 else config.expansion
            first = CifarMobileBlock(before, size, stride, expansion)
            rest = (CifarMobileBlock(size, size, 1, expansion) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = size
        self.head = normed(before, config.feature_size)
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps after the stem and after stages 2, 3, 5 and 7."""
        x = F.relu(self.stem(pixel_values), inplace=True)
        found = [x]
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in MAPS_AFTER:
                found.append(x)
        return found

    def last(self, maps: list[Tensor]) -> Tensor:
        """The last map after the convolution of 1x1 and ReLU."""
        return F.relu(self.head(maps[-1]), inplace=True)


class CifarMobileNetV2ForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarMobileNetV2Config
    backbone_class = CifarMobileNetV2Model
    head_init = "small"


CifarMobileNetV2Model.register_for_auto_class("AutoModel")
CifarMobileNetV2ForImageClassification.register_for_auto_class("AutoModelForImageClassification")

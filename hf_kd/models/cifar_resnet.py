"""ResNets for images of 32 pixels: three stages of basic blocks (He et al. 2016, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, normed
from .cifar_configs import CifarResNetConfig


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


CifarResNetModel.register_for_auto_class("AutoModel")
CifarResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")

"""ImageNet's ResNets with a stem for images of 32 pixels: four stages (He et al. 2016, Table 1; no pooling before)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, normed
from .cifar_configs import CifarDeepResNetConfig
from .cifar_resnet import CifarResNetBlock


class CifarBottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 beside a shortcut; the stride lies in the 3x3; ends in a ReLU."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        inner = after // 4
        self.reduce = normed(before, inner)
        self.spread = normed(inner, inner, 3, stride)
        self.expand = normed(inner, after)
        self.shortcut = None if before == after and stride == 1 else normed(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, `(batch, after, height / stride, width / stride)`."""
        beside = x if self.shortcut is None else self.shortcut(x)
        x = F.relu(self.reduce(x), inplace=True)
        x = F.relu(self.spread(x), inplace=True)
        return F.relu(self.expand(x) + beside, inplace=True)


class CifarDeepResNetModel(CifarBackbone):
    """The backbone: `hidden_states` are the maps after the stem and after each stage, all after their ReLU."""

    config_class = CifarDeepResNetConfig

    def __init__(self, config: CifarDeepResNetConfig):
        super().__init__(config)
        self.stem = normed(config.num_channels, config.stem_size, 3)
        block = CifarBottleneck if config.has_bottlenecks else CifarResNetBlock
        self.stages = nn.ModuleList()
        before = config.stem_size
        for stage, (size, count) in enumerate(zip(config.stage_sizes, config.blocks, strict=True)):
            first = block(before, size, 1 if stage == 0 else 2)
            self.stages.append(nn.Sequential(first, *(block(size, size, 1) for _ in range(count - 1))))
            before = size
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps after the stem and after each stage."""
        found = [F.relu(self.stem(pixel_values), inplace=True)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


class CifarDeepResNetForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarDeepResNetConfig
    backbone_class = CifarDeepResNetModel


CifarDeepResNetModel.register_for_auto_class("AutoModel")
CifarDeepResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")

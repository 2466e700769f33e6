"""Wide residual networks: three stages of blocks that normalise before they convolve (Zagoruyko & Komodakis 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier
from .cifar_configs import CifarWRNConfig


class CifarWRNBlock(nn.Module):
    """Twice BatchNorm, ReLU and convolution, added to a shortcut; nothing after the sum.

    The shortcut is what enters; where the channels change, a convolution of it after the first ReLU.
    """

    def __init__(self, before: int, after: int, stride: int, dropout: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """The map after the block, `(batch, after, height / stride, width / stride)`."""
        active = F.relu(self.norm1(x), inplace=True)
        beside = x if self.shortcut is None else self.shortcut(active)
        y = F.relu(self.norm2(self.conv1(active)), inplace=True)
        if self.dropout:
            y = F.dropout(y, self.dropout, self.training)
        return self.conv2(y) + beside


class CifarWRNModel(CifarBackbone):
    """The backbone: `hidden_states` are the first convolution and the sums that end each stage, before any ReLU.

    The last of them goes through BatchNorm and ReLU before it is averaged, which `last_hidden_state` is.
    """

    config_class = CifarWRNConfig

    def __init__(self, config: CifarWRNConfig):
        super().__init__(config)
        self.stem = nn.Conv2d(config.num_channels, 16, 3, 1, 1, bias=False)
        self.stages = nn.ModuleList()
        before, blocks = 16, (config.depth - 4) // 6
        for stage in range(3):
            size = 16 * config.width * 2**stage
            first = CifarWRNBlock(before, size, 1 if stage == 0 else 2, config.dropout)
            rest = (CifarWRNBlock(size, size, 1, config.dropout) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *rest))
            before = size
        self.norm = nn.BatchNorm2d(before)
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The first convolution and the sums that end each stage."""
        found = [self.stem(pixel_values)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found

    def last(self, maps: list[Tensor]) -> Tensor:
        """The last sum after BatchNorm and ReLU."""
        return F.relu(self.norm(maps[-1]), inplace=True)


class CifarWRNForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarWRNConfig
    backbone_class = CifarWRNModel
    head_init = "torch_zero_bias"


CifarWRNModel.register_for_auto_class("AutoModel")
CifarWRNForImageClassification.register_for_auto_class("AutoModelForImageClassification")

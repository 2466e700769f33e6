"""ShuffleNet for images of 32 pixels: grouped convolutions of 1x1 and shuffled channels (Zhang et al. 2018)."""

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier, CifarConfig, normed, shuffled

STEM = 24


@strict
class CifarShuffleNetV1Config(CifarConfig):
    """The network of the paper, with a first convolution of 1x1 without stride, and no pooling after it.

    Args:
        stage_sizes: Channels of the three stages; each a multiple of 4 times `groups`, and larger than the one before
            (24 before the first), because the first block of a stage keeps what enters and adds channels to it.
        blocks: Blocks of each stage, the one with the stride included.
        groups: Groups of the convolutions of 1x1, among which channels are shuffled.
    """

    model_type = "cifar_shufflenet_v1"

    stage_sizes: list[int] | tuple[int, ...] = (240, 480, 960)
    blocks: list[int] | tuple[int, ...] = (4, 8, 4)
    groups: int = 3

    def __post_init__(self, **kwargs):
        self.stage_sizes, self.blocks = list(self.stage_sizes), list(self.blocks)
        super().__post_init__(**kwargs)

    def validate_stages(self) -> None:
        """Refuse stages that do not follow on one another, or channels that do not fall into groups."""
        self.check_size("groups", "channels fall into one group at least. Give 3")
        self.check_stages()
        pairs = zip([STEM, *self.stage_sizes], self.stage_sizes, strict=False)
        added = [after - before for before, after in pairs]
        parts = [*added, *self.stage_sizes]
        if min(added) < 4 or any(part % self.groups or part // 4 % self.groups for part in parts):
            raise ValueError(
                f"`CifarShuffleNetV1Config(stage_sizes={self.stage_sizes}, groups={self.groups})`: each stage adds "
                f"{added} channels to the {STEM} of the stem, and these, the sizes and a quarter of each must be "
                "multiples of groups above 0. Give (240, 480, 960) with 3 groups, as in the paper."
            )

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return self.stage_sizes[-1]


class CifarShuffleBlockV1(nn.Module):
    """Grouped 1x1, shuffle, 3x3 of each channel by itself, grouped 1x1; ends in a ReLU.

    With a stride, what entered is averaged and put beside the new channels; else it is added to them.
    """

    def __init__(self, before: int, after: int, groups: int, *, down: bool):
        super().__init__()
        new = after - before if down else after
        self.down = down
        self.groups = 1 if before == STEM else groups  # so few channels are not divided
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
        self.stem = normed(config.num_channels, STEM)
        self.stages = nn.ModuleList()
        before = STEM
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


CifarShuffleNetV1Config.register_for_auto_class()
CifarShuffleNetV1ForImageClassification.register_for_auto_class("AutoModelForImageClassification")

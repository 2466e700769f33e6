"""VGG with BatchNorm for images of 32 pixels: convolutions of 3x3 and one linear layer (Simonyan & Zisserman 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_base import CifarBackbone, CifarClassifier
from .cifar_configs import CifarVGGConfig

SMALLEST, LARGE = 8, 64


class CifarVGGModel(CifarBackbone):
    """The backbone: `hidden_states` are the maps that end each stage, after their ReLU and before any pooling.

    The first three stages are followed by a pooling to half the size; the fourth only for images of 64 pixels or
    more, so that one of 32 keeps 4x4 places to the end.
    """

    config_class = CifarVGGConfig

    def __init__(self, config: CifarVGGConfig):
        super().__init__(config)
        self.stages = nn.ModuleList()
        before = config.num_channels
        for size, count in zip(config.stage_sizes, config.convolutions, strict=True):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(before, size, 3, 1, 1), nn.BatchNorm2d(size), nn.ReLU(inplace=True)]
                before = size
            self.stages.append(nn.Sequential(*layers))
        self.post_init()
        self.arrange()

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps that end each stage.

        Raises:
            ValueError: Images that three poolings leave nothing of.
        """
        height, width = pixel_values.shape[2:]
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"`{type(self).__name__}` got images of {height}x{width}, which three poolings to half the size leave "
                f"nothing of. Give images of {SMALLEST} pixels a side or more."
            )
        found: list[Tensor] = []
        x = pixel_values
        for index, stage in enumerate(self.stages):
            found.append(stage(x))
            pooled = index < 3 or (index == 3 and height >= LARGE)
            x = F.max_pool2d(found[-1], 2) if pooled else found[-1]
        return found


class CifarVGGForImageClassification(CifarClassifier):
    """The backbone and a linear layer on its pooled features."""

    config_class = CifarVGGConfig
    backbone_class = CifarVGGModel
    head_init = "small"


CifarVGGModel.register_for_auto_class("AutoModel")
CifarVGGForImageClassification.register_for_auto_class("AutoModelForImageClassification")

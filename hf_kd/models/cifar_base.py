"""What the CIFAR networks share: initialisation, memory order, the classifier around a backbone.

Imports nothing of the package but files beside it, because these files go along with a saved model.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

from .cifar_configs import CifarConfig


class CifarPreTrainedModel(PreTrainedModel):
    """Base of the backbones and the classifiers.

    Attributes:
        conv_init: How convolutions start: `fan_out`, normal with variance 2 / (kernel area · output channels), also
            where they are grouped; or `torch`, as `nn.Conv2d` starts by itself.
        head_init: How the classification layer starts: `torch`, as `nn.Linear` by itself; `torch_zero_bias`, the
            same with its bias at zero; or `small`, normal with standard deviation 0.01, bias at zero.
    """

    config_class = CifarConfig
    base_model_prefix = "backbone"
    _no_split_modules = [
        "CifarResNetBlock",
        "CifarBottleneck",
        "CifarWRNBlock",
        "CifarMobileBlock",
        "CifarShuffleBlockV1",
        "CifarShuffleBlockV2",
        "CifarShuffleDownBlockV2",
    ]
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # Recomputing a BatchNorm would move its running statistics twice a step; and these networks are small.
    supports_gradient_checkpointing = False
    conv_init = "fan_out"
    head_init = "torch"

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`; loading puts tensors as they lie in the file, so order them again."""
        found = super().from_pretrained(*args, **kwargs)
        (found[0] if isinstance(found, tuple) else found).arrange()
        return found

    def arrange(self) -> None:
        """Bring the weights into the memory order that the configuration asks for."""
        if self.config.channels_last:
            self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            if self.conv_init == "fan_out":
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if self.head_init == "small":
                init.normal_(module.weight, std=0.01)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.in_features) if self.head_init == "torch" else 0.0
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channels of `(batch, channels, height, width)` dealt out anew, one of each group in turn.

    Channel j of group i, of n channels in each of the g groups, goes from place i n + j to place j g + i. The order
    in memory stays.
    """
    order = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    dealt = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return dealt.contiguous(memory_format=order)


def normed(before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, without bias, and a BatchNorm."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


class CifarBackbone(CifarPreTrainedModel):
    """A stem and stages, then the mean over places; a subclass gives `maps`."""

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps after the stem and after each stage, `(batch, channels, height, width)`."""
        raise NotImplementedError

    def last(self, maps: list[Tensor]) -> Tensor:
        """The map that is averaged into features."""
        return maps[-1]

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The last map, its mean over places `(batch, feature_size)`, and the maps of the stages if asked for."""
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        as_mapping = self.config.return_dict if return_dict is None else return_dict
        if self.config.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        maps = self.maps(pixel_values)
        last = self.last(maps)
        found = BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last,
            pooler_output=last.mean((2, 3)),
            hidden_states=tuple(maps) if wanted else None,
        )
        return found if as_mapping else found.to_tuple()


class CifarClassifier(CifarPreTrainedModel):
    """A backbone and one linear layer on its pooled features."""

    backbone_class: Callable[[Any], CifarBackbone]

    def __init__(self, config: Any):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.backbone = type(self).backbone_class(config)
        self.classifier = nn.Linear(config.feature_size, config.num_labels)
        self.post_init()
        self.arrange()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, the loss if there are labels, and the maps of the stages if asked for."""
        as_mapping = self.config.return_dict if return_dict is None else return_dict
        found = self.backbone(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(found.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=found.hidden_states)
        return output if as_mapping else output.to_tuple()

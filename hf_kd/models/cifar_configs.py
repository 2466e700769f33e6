"""Settings of the CIFAR networks: every family's configuration, validated.

Imports nothing of the package, because this file goes along with a saved model, and of transformers only what does
not need torch.
"""

from collections.abc import Iterable
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

# Blocks of the four stages, and convolutions of the five, by depth.
DEEP_LAYOUTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VGG_LAYOUTS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
SHUFFLE_STEM = 24


@strict
class CifarConfig(PreTrainedConfig):
    """What all of these networks can be told.

    Args:
        num_channels: Channels of an image.
        channels_last: Hold the weights of convolutions channels last, and bring images into that order. The same
            function up to rounding; many devices compute it faster.
    """

    num_channels: int = 3
    channels_last: bool = False

    @property
    def feature_size(self) -> int:
        """Width of the pooled features that enter the classification layer."""
        raise NotImplementedError

    def validate_channels(self) -> None:
        """Refuse images without channels."""
        self.check_size("num_channels", "an image has channels. Give 3, or 1 for grey images")

    def check_size(self, name: str, advice: str) -> None:
        """Refuse a whole number below 1; None passes.

        Raises:
            ValueError: It is.
        """
        value = getattr(self, name)
        if value is not None and value < 1:
            raise ValueError(f"`{type(self).__name__}({name}={value})` is less than 1: {advice}.")

    def check_choice(self, name: str, choices: Iterable[Any]) -> None:
        """Refuse a setting that is none of `choices`.

        Raises:
            ValueError: It is none.
        """
        value = getattr(self, name)
        if value not in choices:
            raise ValueError(
                f"`{type(self).__name__}({name}={value!r})`: the layers are laid down for certain ones only. Give one "
                f"of {', '.join(map(str, choices))}."
            )

    def check_stages(self) -> None:
        """Refuse `stage_sizes` and `blocks` that are not as many, or hold a number below 1.

        Raises:
            ValueError: They do.
        """
        sizes, blocks = self.stage_sizes, self.blocks
        if not sizes or len(sizes) != len(blocks) or min(*sizes, *blocks) < 1:
            raise ValueError(
                f"`{type(self).__name__}(stage_sizes={sizes}, blocks={blocks})` are the channels and the number of "
                "blocks of each stage, so they must be equally many and at least 1. Give both."
            )

    def check_factor(self, channels: str) -> None:
        """Refuse a `width` that leaves no channel, or more than fit.

        Raises:
            ValueError: It does.
        """
        if not 1 / 16 <= self.width <= 16:
            raise ValueError(
                f"`{type(self).__name__}(width={self.width})` is a factor on {channels}, and must be in [1/16, 16] to "
                "leave one at least, and no more than fit. Give 0.5 or 1."
            )

    def check_share(self, name: str) -> None:
        """Refuse what is no probability below 1.

        Raises:
            ValueError: It is none.
        """
        value = getattr(self, name)
        if not 0 <= value < 1:
            raise ValueError(
                f"`{type(self).__name__}({name}={value})` is a probability of leaving out, and must be in [0, 1): at "
                "1 nothing would be left. Give 0 for none."
            )


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


@strict
class CifarDeepResNetConfig(CifarConfig):
    """The residual networks of ImageNet, their first convolution 3x3 without stride, and no pooling after it.

    Args:
        depth: 18 or 34, of basic blocks; 50, 101 or 152, of bottlenecks.
        width: Factor on the channels, of which there are 64 after the first convolution at 1; rounded down there.
    """

    model_type = "cifar_deep_resnet"

    depth: int = 50
    width: float = 1.0

    def validate_depth(self) -> None:
        """Refuse a depth without a layout."""
        self.check_choice("depth", DEEP_LAYOUTS)

    def validate_width(self) -> None:
        """Refuse a network without channels."""
        self.check_factor("64 to 2048 channels")

    @property
    def stem_size(self) -> int:
        """Channels after the first convolution."""
        return int(64 * self.width)

    @property
    def has_bottlenecks(self) -> bool:
        """Whether the blocks are bottlenecks."""
        return self.depth >= 50

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return tuple(self.stem_size * (4 if self.has_bottlenecks else 1) * 2**stage for stage in range(4))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of the stages."""
        return DEEP_LAYOUTS[self.depth]

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return self.stage_sizes[-1]


@strict
class CifarWRNConfig(CifarConfig):
    """WRN-depth-width.

    Args:
        depth: Layers with weights, 6n + 4: 10, 16, 22, 28, 40, ...
        width: The stages have 16, 32 and 64 times as many channels; the first convolution always 16.
        dropout: Share of the values left out between the two convolutions of a block in training.
    """

    model_type = "cifar_wrn"

    depth: int = 16
    width: int = 2
    dropout: float = 0.0

    def validate_depth(self) -> None:
        """Refuse a depth that three equal stages cannot make."""
        if self.depth < 10 or self.depth % 6 != 4:
            raise ValueError(
                f"`CifarWRNConfig(depth={self.depth})` is not 6n + 4: three stages of n blocks with two convolutions "
                "each, three convolutions where the channels change and one layer after. Give 10, 16, 22, 28 or 40."
            )

    def validate_width(self) -> None:
        """Refuse a network without channels, or without values."""
        self.check_size("width", "the stages would have no channels. Give 1, 2 or more")
        self.check_share("dropout")

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return 64 * self.width


@strict
class CifarVGGConfig(CifarConfig):
    """The networks of the paper, five stages, without their hidden linear layers.

    Args:
        depth: 8, 11, 13, 16 or 19: the names of the paper, which count two linear layers that are left out here.
    """

    model_type = "cifar_vgg"

    depth: int = 8

    def validate_depth(self) -> None:
        """Refuse a depth without a layout."""
        self.check_choice("depth", VGG_LAYOUTS)

    @property
    def stage_sizes(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return 64, 128, 256, 512, 512

    @property
    def convolutions(self) -> tuple[int, ...]:
        """Convolutions of the stages."""
        return VGG_LAYOUTS[self.depth]

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return self.stage_sizes[-1]


@strict
class CifarMobileNetV2Config(CifarConfig):
    """The network of the paper, with a stride less in its second stage.

    Args:
        width: Factor on the channels of all stages, rounded down. The last convolution has 1280, or `width` times as
            many above 1.
        expansion: How many times as many channels a block has inside, but for the first stage.
    """

    model_type = "cifar_mobilenet_v2"

    width: float = 0.5
    expansion: int = 6

    def validate_widths(self) -> None:
        """Refuse a network without channels."""
        self.check_size("expansion", "the blocks would have no channels inside. Give 6")
        self.check_factor("16 to 320 channels")

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return int(1280 * max(self.width, 1.0))


@strict
class CifarShuffleNetV1Config(CifarConfig):
    """The network of the paper, with a first convolution of 1x1 without stride, and no pooling after it.

    Args:
        stage_sizes: Channels of the stages. The first block of a stage keeps what enters and adds channels to it, so
            they grow, from the 24 of the first convolution on. What is added, the sizes and a quarter of each have to
            fall into `groups`.
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
        pairs = zip([SHUFFLE_STEM, *self.stage_sizes], self.stage_sizes, strict=False)
        added = [after - before for before, after in pairs]
        parts = [*added, *self.stage_sizes]
        if min(added) < 4 or any(part % self.groups or part // 4 % self.groups for part in parts):
            raise ValueError(
                f"`CifarShuffleNetV1Config(stage_sizes={self.stage_sizes}, groups={self.groups})`: the stages add "
                f"{added} channels to the {SHUFFLE_STEM} of the stem; these, the sizes and a quarter of each must be "
                "multiples of groups above 0. Give (240, 480, 960) with 3 groups, as in the paper."
            )

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return self.stage_sizes[-1]


@strict
class CifarShuffleNetV2Config(CifarConfig):
    """The network of the paper, with a first convolution of 1x1 without stride, and no pooling after it.

    Args:
        stage_sizes: Channels of the stages, even numbers.
        last_size: Channels of the last convolution.
        blocks: Blocks of each stage, the one with the stride included.
    """

    model_type = "cifar_shufflenet_v2"

    stage_sizes: list[int] | tuple[int, ...] = (116, 232, 464)
    last_size: int = 1024
    blocks: list[int] | tuple[int, ...] = (4, 8, 4)

    def __post_init__(self, **kwargs):
        self.stage_sizes, self.blocks = list(self.stage_sizes), list(self.blocks)
        super().__post_init__(**kwargs)

    def validate_stages(self) -> None:
        """Refuse stages without blocks, and channels that cannot be halved."""
        self.check_size("last_size", "there would be no features. Give 1024")
        self.check_stages()
        if any(size % 2 for size in self.stage_sizes):
            raise ValueError(
                f"`CifarShuffleNetV2Config(stage_sizes={self.stage_sizes})` has odd numbers: half of the channels "
                "pass each block. Give even ones."
            )

    @property
    def feature_size(self) -> int:
        """Width of the pooled features."""
        return self.last_size


CONFIGS = (
    CifarResNetConfig,
    CifarDeepResNetConfig,
    CifarWRNConfig,
    CifarVGGConfig,
    CifarMobileNetV2Config,
    CifarShuffleNetV1Config,
    CifarShuffleNetV2Config,
)
for _config in CONFIGS:
    _config.register_for_auto_class()

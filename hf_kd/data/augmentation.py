"""Random changes of training images, by name: made once per example, before any model's processor sees it.

Mixtures of two images are settings beside them; they are made of whole batches, later (`hf_kd.mixing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers import BaseImageProcessor

from ..mixing import MIXING_DEFAULTS, Mixing, checked_setting
from ..registry import ConfigError, check_number, suggestion

Transform = Callable[[Image.Image], Image.Image]

SETTINGS: dict[str, dict[str, Any]] = {
    "crop_flip": {"padding": None},
    "random_resized_crop": {"scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3]},
    "rand_augment": {"num_ops": 2, "magnitude": 9},
    "trivial_augment": {},
}
"""The augmentations and their settings' defaults."""

PADDED_PART = 8  # an eighth of a side: 4 of CIFAR's 32 pixels
_WHY = "it says how the training images are changed."


class Augmentation:
    """Random changes of an image that leave its class as it is; an image in, an image out.

    ============================ ==================================================================================
    ``crop_flip``                pads with black by ``padding`` pixels (an eighth of the sides), crops at random to the
                                 old size, and mirrors half of the images: the usual one for CIFAR
    ``random_resized_crop``      a random part, of ``scale`` times the area and ``ratio`` times the aspect, at the size
                                 the processor resizes to; mirrors half: the usual one for ImageNet
    ``rand_augment``             ``num_ops`` random changes of ``magnitude``
                                 (https://huggingface.co/papers/1909.13719)
    ``trivial_augment``          one random change of random strength (https://huggingface.co/papers/2103.10158)
    ============================ ==================================================================================

    Draws come from torch's generator: of the data loader's worker, which is seeded per worker and epoch, or of the
    process where there are no workers. The class can be pickled, for such workers.

    Args:
        spec: A name; or a mapping with ``name`` (one, or a list applied in order), any of the settings above, and
            ``random_erasing``: the probability of blanking a random rectangle
            (https://huggingface.co/papers/1708.04896), filled with the processor's mean, at last. ``mixup`` and
            ``cutmix`` stand here too and are left to `parse_mixing`.
        processor: The student's image processor.

    Raises:
        ConfigError: Unknown names or settings, or values that cannot be; all at once.
    """

    def __init__(self, spec: str | Mapping[str, Any], processor: BaseImageProcessor | None = None) -> None:
        self.names, self.settings = parse_augmentation(spec)
        self.size = _size(processor)
        self.fill = [round(255 * mean) for mean in getattr(processor, "image_mean", None) or (0.5, 0.5, 0.5)]

    def __call__(self, image: Image.Image) -> Image.Image:
        """A changed copy."""
        image = image.convert("RGB")
        for name in self.names:
            image = getattr(self, f"_{name}")(image)
        probability = self.settings.get("random_erasing", 0.0)
        if probability:
            erased = v2.RandomErasing(p=probability, value=self.fill)(F.pil_to_tensor(image))
            image = F.to_pil_image(erased)
        return image

    def __str__(self) -> str:
        """What is done, for the description."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items() if value is not None)
        return " + ".join(self.names) + (f" ({settings})" if settings else "")

    def _crop_flip(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        above, beside = padding_of(self.settings["padding"], height, width)
        return v2.RandomHorizontalFlip()(v2.RandomCrop((height, width), padding=[beside, above])(image))

    def _random_resized_crop(self, image: Image.Image) -> Image.Image:
        size = self.size or (image.height, image.width)
        crop = v2.RandomResizedCrop(size, scale=self.settings["scale"], ratio=self.settings["ratio"])
        return v2.RandomHorizontalFlip()(crop(image))

    def _rand_augment(self, image: Image.Image) -> Image.Image:
        return v2.RandAugment(self.settings["num_ops"], self.settings["magnitude"])(image)

    def _trivial_augment(self, image: Image.Image) -> Image.Image:
        return v2.TrivialAugmentWide()(image)


def padding_of(padding: int | None, height: int, width: int) -> tuple[int, int]:
    """The pixels that `crop_flip` pads with above and below, and on the left and right."""
    if padding is not None:
        return padding, padding
    return max(1, height // PADDED_PART), max(1, width // PADDED_PART)


def parse_augmentation(spec: Any) -> tuple[list[str], dict[str, Any]]:
    """The names and all settings, defaults included, but for those of `parse_mixing`.

    Raises:
        ConfigError: Everything that is wrong, mixing included, each with its path below `augmentation`.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError([f"augmentation: expected a name or a mapping with `name`, got {spec!r}: {_WHY}"])
    names = spec.get("name", [])
    names = [names] if isinstance(names, str) else names
    is_mixed = any(name in spec for name in MIXING_DEFAULTS)
    if not isinstance(names, (list, tuple)) or not (names or spec.get("random_erasing") or is_mixed):
        known = ["name", "random_erasing", *MIXING_DEFAULTS, *(key for own in SETTINGS.values() for key in own)]
        wrong = [f"augmentation.{key}: unknown setting.{suggestion(key, known)}" for key in spec if key not in known]
        raise ConfigError(
            [*wrong, f"augmentation.name: expected a name, or several in order.{suggestion('', SETTINGS)}"]
        )
    odd = [name for name in names if not isinstance(name, str) or name not in SETTINGS]
    problems = [f"augmentation.name: {_unknown(name)}" for name in odd]
    known = {key: value for name in names if name not in odd for key, value in SETTINGS[name].items()}
    settings = {"random_erasing": 0.0, **known}
    given = {key: value for key, value in spec.items() if key != "name" and key not in MIXING_DEFAULTS}
    for key, value in given.items():
        if key not in settings:
            if not odd:  # else it may be of the one that was meant
                valid = ["name", *settings, *MIXING_DEFAULTS]
                of = f" of {', '.join(names)}" if names else ""
                owner = next((name for name, own in SETTINGS.items() if key in own), None)
                hint = f" It belongs to augmentation.name={owner}." if owner else suggestion(key, valid)
                problems.append(f"augmentation.{key}: unknown setting{of}.{hint}")
            continue
        try:
            settings[key] = _checked(key, value)
        except (ValueError, TypeError) as error:
            problems.append(f"augmentation.{key}: {error}")
    problems += _mixing_problems(spec)
    if problems:
        raise ConfigError(problems)
    return list(names), {key: value for key, value in settings.items() if key != "random_erasing" or value}


def parse_mixing(spec: Any) -> Mixing | None:
    """What a well-formed augmentation says of mixing; None if nothing."""
    given = {key: spec[key] for key in MIXING_DEFAULTS if key in spec} if isinstance(spec, Mapping) else {}
    return Mixing(**given) if given.get("mixup") or given.get("cutmix") else None


def _unknown(name: Any) -> str:
    if isinstance(name, str) and name in MIXING_DEFAULTS:
        return f"{name!r} is a setting, with a strength: give e.g. {{{name}: 0.8}}, with or without `name`."
    return f"unknown augmentation {name!r}.{suggestion(name, SETTINGS)}"


def _mixing_problems(spec: Mapping[str, Any]) -> list[str]:
    """Settings of mixing that cannot be, or that have no effect."""
    given = {key: spec[key] for key in MIXING_DEFAULTS if key in spec}
    problems = []
    for key, value in given.items():
        try:
            checked_setting("augmentation", key, value)
        except (ValueError, TypeError) as error:
            problems.append(f"augmentation.{key}: {error}")
    on = [key for key in ("mixup", "cutmix") if given.get(key)]
    if not problems and "switch_probability" in given and len(on) < 2:
        problems.append(
            "augmentation.switch_probability: chooses between mixup and cutmix, and not both are on. Remove it, or "
            "set both, e.g. {mixup: 0.8, cutmix: 1.0}."
        )
    if not problems and "mix_probability" in given and not on:
        problems.append(
            "augmentation.mix_probability: says how often batches are mixed, and neither mixup nor cutmix is on. Set "
            "one, e.g. {mixup: 0.8}."
        )
    return problems


def _checked(key: str, value: Any) -> Any:
    if key == "random_erasing":
        return check_number("augmentation", key, value, "it is a probability.", low=0.0, high=1.0)
    if key in ("scale", "ratio"):
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"expected two numbers, the smallest and the largest, got {value!r}.")
        low, high = (
            check_number("augmentation", key, part, "it is a share.", low=0.0, low_open=True) for part in value
        )
        if low > high or (key == "scale" and high > 1):
            raise ValueError(f"expected rising numbers{', at most 1' if key == 'scale' else ''}, got {value!r}.")
        return [low, high]
    least = 0 if key in ("padding", "magnitude") else 1
    most = 30 if key == "magnitude" else None  # RandAugment's strengths are 0 to 30
    if key == "padding" and value is None:
        return None
    too_large = most is not None and isinstance(value, int) and value > most
    if isinstance(value, bool) or not isinstance(value, int) or value < least or too_large:
        raise ValueError(f"expected an integer >= {least}{f' and <= {most}' if most else ''}, got {value!r}.")
    return value


def _size(processor: Any) -> tuple[int, int] | None:
    """What the processor resizes to, before it crops the centre; None if to nothing fixed."""
    size = dict(getattr(processor, "size", None) or {})
    if not getattr(processor, "do_resize", False):
        return None
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    return (size["shortest_edge"],) * 2 if size.get("shortest_edge") else None

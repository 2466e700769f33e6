"""mixup and CutMix: two images in one input, two labels in one row; the same mixture for both models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .inputs import (
    LABEL_WEIGHT,
    LABEL_WEIGHT_MIX,
    LABELS_MIX,
    MIX_LAMBDA,
    TEACHER_LOGITS,
    TEACHER_PREFIX,
)
from .registry import ConfigError, check_number, suggestion

PIXELS = "pixel_values"
MIXED_COLUMNS = (PIXELS, TEACHER_PREFIX + PIXELS)
MIXING_DEFAULTS: dict[str, float] = {"mixup": 0.0, "cutmix": 0.0, "mix_probability": 1.0, "switch_probability": 0.5}
"""The settings of `Mixing` and their defaults; the names are the same in a configuration."""

_WHY = {
    "mixup": "it is both parameters of the Beta distribution that mixup draws its share from. 0 switches mixup off.",
    "cutmix": "it is both parameters of the Beta distribution that CutMix draws its share from. 0 switches it off.",
    "mix_probability": "it is the probability that a batch is mixed.",
    "switch_probability": "it is the probability of CutMix where a batch may be mixed either way.",
}
Box = tuple[int, int, int, int]


class Mixing:
    r"""Mixes the images of a training batch in pairs, for both models alike.

    mixup: \(x = \lambda x_i + (1-\lambda) x_j\) with \(\lambda \sim \mathrm{Beta}(\alpha, \alpha)\). CutMix: a box of
    \(x_j\) is pasted into \(x_i\); its centre is uniform over the image, its sides are \(\sqrt{1-\lambda}\) of the
    image's, it is cut off at the edges, and \(\lambda\) becomes 1 minus the share of pixels that it really covers.

    One share, one kind of mixing, one box and one random permutation of partners per micro-batch, as in the papers'
    code (and the mode "batch" of timm). `pixel_values` and `teacher_pixel_values` get the same. Where the two differ
    in size, the box is rounded to the student's pixels, which decide \(\lambda\), and its edges are then rounded to
    the teacher's: exact where the teacher's size is a multiple of the student's, else off by at most half a teacher's
    pixel per edge.

    Mixing takes place after normalisation. Normalisation treats every pixel alike by an affine map, so mixup of
    normalised images is the normalised mixup (the shares add up to 1), and pasting pixels commutes with it.

    Args:
        mixup: \(\alpha\) of mixup, >= 0; 0 for none. The paper has 1 for CIFAR and 0.2 for ImageNet, DeiT 0.8.
        cutmix: \(\alpha\) of CutMix, >= 0; 0 for none. The paper has 1.
        mix_probability: The probability that a batch is mixed at all, in [0, 1].
        switch_probability: With both, the probability of CutMix instead of mixup, in [0, 1].

    Raises:
        TypeError: A setting is not a number.
        ValueError: A setting is outside its interval, or neither kind of mixing is on.

    References:
        Zhang et al., *mixup: Beyond Empirical Risk Minimization*, ICLR 2018, https://huggingface.co/papers/1710.09412.

        Yun et al., *CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV 2019,
        https://huggingface.co/papers/1905.04899, Algorithm 1.
    """

    def __init__(
        self,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_probability: float = 1.0,
        switch_probability: float = 0.5,
    ) -> None:
        given = {
            "mixup": mixup,
            "cutmix": cutmix,
            "mix_probability": mix_probability,
            "switch_probability": switch_probability,
        }
        self.settings = {name: checked_setting("Mixing", name, value) for name, value in given.items()}
        if not (mixup or cutmix):
            raise ValueError("`Mixing(mixup=0, cutmix=0)` would mix nothing. Raise one of them, or leave it out.")

    def __repr__(self) -> str:
        """The settings, as they are written."""
        return f"Mixing({', '.join(f'{name}={value:g}' for name, value in self.settings.items())})"

    def __eq__(self, other: object) -> bool:
        """Whether both mix alike."""
        return isinstance(other, Mixing) and self.settings == other.settings

    __hash__ = None

    def __call__(
        self, batch: Mapping[str, Any], generator: np.random.Generator, label_name: str = "labels"
    ) -> dict[str, Any]:
        """A mixed copy of a collated batch, with `labels_mix` and `mix_lambda` where it has labels.

        A batch that is not mixed (`mix_probability`) comes back as it is, without these columns.

        Args:
            batch: `pixel_values (batch, channels, height, width)`, and whatever else there is.
            generator: Draws everything. The same number of draws is taken for every batch.
            label_name: The label column.

        Raises:
            ValueError: There are no pixels, they are no floating-point images, or the batch is mixed already.
        """
        pixels = _checked_pixels(batch)
        share, box, partners = self._draw(*pixels.shape[-2:], len(pixels), generator)
        if partners is None:
            return dict(batch)
        partners = torch.from_numpy(partners)
        mixed = dict(batch)
        for name in MIXED_COLUMNS:
            if name in batch:
                own = batch[name]
                mixed[name] = _blended(own, share, partners) if box is None else _pasted(own, box, pixels, partners)
        if label_name in batch:
            labels = batch[label_name]
            mixed[LABELS_MIX] = labels[partners.to(labels.device)]
            mixed[MIX_LAMBDA] = torch.full((len(pixels),), share, dtype=torch.float32, device=labels.device)
            if LABEL_WEIGHT in batch:
                weights = batch[LABEL_WEIGHT]
                mixed[LABEL_WEIGHT_MIX] = weights[partners.to(weights.device)]
        return mixed

    def pair(
        self,
        row: Mapping[str, Any],
        partner: Mapping[str, Any],
        generator: np.random.Generator,
        label_name: str = "labels",
    ) -> dict[str, Any]:
        """A row mixed with another one, as `__call__` mixes batches; one that is not mixed has itself as partner.

        Args:
            row: `pixel_values (channels, height, width)`, and whatever else there is.
            partner: Another row.
            generator: Draws everything but the partner.
            label_name: The label column.

        Raises:
            ValueError: As `__call__`.
        """
        names = [name for name in MIXED_COLUMNS if name in row]
        both = {name: torch.stack([torch.as_tensor(part[name]) for part in (row, partner)]) for name in names}
        pixels = _checked_pixels({**{name: None for name in row if name == LABELS_MIX}, **both})
        share, box, partners = self._draw(*pixels.shape[-2:], 1, generator)
        second, mixed, other = (row if partners is None else partner), dict(row), torch.tensor([1])
        for name, own in both.items():
            if partners is not None:
                own = _blended(own, share, other) if box is None else _pasted(own, box, pixels, other)
            mixed[name] = own[0]
        if label_name in row:
            mixed |= {LABELS_MIX: second[label_name], MIX_LAMBDA: share}
            if LABEL_WEIGHT in row:
                mixed[LABEL_WEIGHT_MIX] = second[LABEL_WEIGHT]
        return mixed

    def _draw(
        self, height: int, width: int, rows: int, generator: np.random.Generator
    ) -> tuple[float, Box | None, np.ndarray | None]:
        """The share of a row's own image, the box of the partner's (None for mixup), and the partners (None: no)."""
        settings = self.settings
        chance, choice, *centre = generator.random(4)
        partners = generator.permutation(rows)
        is_cutmix = settings["cutmix"] > 0 and (settings["mixup"] == 0 or choice < settings["switch_probability"])
        alpha = settings["cutmix" if is_cutmix else "mixup"]
        share = float(generator.beta(alpha, alpha))
        if chance >= settings["mix_probability"]:
            return 1.0, None, None
        if not is_cutmix:
            return share, None, partners
        side = (1.0 - share) ** 0.5
        top, bottom = _edges(centre[0], side, height)
        left, right = _edges(centre[1], side, width)
        return 1.0 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right), partners


def checked_setting(owner: str, name: str, value: Any) -> float:
    """One of the settings of `Mixing`, as a number.

    Raises:
        TypeError: It is none.
        ValueError: It is outside its interval.
    """
    high = 1.0 if name.endswith("probability") else float("inf")
    return check_number(owner, name, value, _WHY[name], low=0.0, high=high)


def mixing_from(given: Mixing | Mapping[str, Any] | None) -> Mixing | None:
    """A `Mixing`, from one or from its settings.

    Raises:
        TypeError: It is something else.
        ConfigError: A setting is unknown.
    """
    if given is None or isinstance(given, Mixing):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"`DistillationTrainer(mixing=...)` got {type(given).__name__}: it says how training batches are mixed. "
            "Pass `Mixing(mixup=0.8)`, or its settings as a mapping."
        )
    unknown = [name for name in given if name not in MIXING_DEFAULTS]
    if unknown:
        raise ConfigError(
            [f"mixing.{name}: unknown setting.{suggestion(name, MIXING_DEFAULTS)}" for name in map(str, unknown)]
        )
    return Mixing(**given)


def check_mixable(batch: Mapping[str, Any], read: Iterable[str]) -> None:
    """Refuse columns that mixing would leave as they are though a model reads them.

    Args:
        batch: A collated batch.
        read: The names of the columns that either model reads, besides `teacher_` ones.

    Raises:
        ValueError: There is such a column, or there are stored logits.
    """
    if TEACHER_LOGITS in batch:
        raise ValueError(
            f"`DistillationTrainer` got `mixing` and a column `{TEACHER_LOGITS}`: the stored logits belong to the "
            "unmixed rows, and the student would see mixed ones. Remove the column and let the teacher run, or leave "
            "mixing out."
        )
    stale = [
        name
        for name, value in batch.items()
        if isinstance(value, Tensor)
        and name not in MIXED_COLUMNS
        and (name in read or name.startswith(TEACHER_PREFIX))
    ]
    if stale:
        raise ValueError(
            f"`DistillationTrainer(mixing=...)` mixes {' and '.join(MIXED_COLUMNS)}, and the models also read "
            f"{', '.join(stale)}, which would stay those of the unmixed rows. Leave them out of the rows, mix in your "
            "own collator, or leave mixing out."
        )


def _checked_pixels(batch: Mapping[str, Any]) -> Tensor:
    if LABELS_MIX in batch:
        raise ValueError(
            f"`Mixing` got a batch with `{LABELS_MIX}`: it is mixed already, and a second mixture would have three or "
            "four labels per row. Leave `mixing` out, or mix in one place."
        )
    for name in MIXED_COLUMNS:
        value = batch.get(name)
        if value is None and name != PIXELS:
            continue
        if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
            got = "none" if value is None else f"{type(value).__name__} of {getattr(value, 'dtype', None)} and shape "
            got += "" if value is None else f"{tuple(getattr(value, 'shape', ()))}"
            raise ValueError(
                f"`Mixing` needs `{name}` of shape (batch, channels, height, width) in floating point, got {got} (the "
                f"batch has {', '.join(batch)}): it mixes images. Leave mixing out for other inputs."
            )
    return batch[PIXELS]


def _edges(centre: float, side: float, pixels: int) -> tuple[int, int]:
    """First pixel of the box and the first after it."""
    low, high = max(centre - side / 2, 0.0), min(centre + side / 2, 1.0)
    return round(low * pixels), round(high * pixels)


def _blended(images: Tensor, share: float, partners: Tensor) -> Tensor:
    return share * images + (1.0 - share) * images[partners.to(images.device)]


def _pasted(images: Tensor, box: Box, reference: Tensor, partners: Tensor) -> Tensor:
    """The box, given in pixels of `reference`, of the partners in each image."""
    (height, width), (own_height, own_width) = reference.shape[-2:], images.shape[-2:]
    rows = slice(*(round(edge * own_height / height) for edge in box[:2]))
    columns = slice(*(round(edge * own_width / width) for edge in box[2:]))
    mixed = images.clone()
    mixed[..., rows, columns] = images[partners.to(images.device)][..., rows, columns]
    return mixed

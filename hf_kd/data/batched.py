"""The augmentations of whole batches: the draws and the pixels of `Augmentation`, without a loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import v2

from ..seeding import draws_kept, seed_torch
from .augmentation import Augmentation, padding_of

BATCHABLE = frozenset({"crop_flip"})
"""Augmentations by name that are made of whole batches; `random_erasing` is too. Others need an image at a time."""

TOP, LEFT, FLIP, ERASED_TOP, ERASED_LEFT, ERASED_HEIGHT, ERASED_WIDTH = range(7)
"""What is drawn for a row: where its crop begins in the padded image, whether it is mirrored (0 or 1), and the box
that is erased (of no height: none)."""

_COMPARED = 64
_HALF = 1 << 23  # of the 24 bits that a float of torch's is drawn from
_WHOLE_RANGE = -(2**63)  # as the lower end, it makes torch draw all 64 bits of an integer


class BatchedAugmentation:
    """`crop_flip` and `random_erasing` of images of one size.

    Draws are those that `Augmentation` takes from torch's generator of the processor for the same rows in the same
    order, and leave it in the same state: a run does not see which of the two made its rows.

    Args:
        augmentation: One that `is_batchable`.
        height: Of all images.
        width: Of all images.
    """

    def __init__(self, augmentation: Augmentation, height: int, width: int):
        self.height, self.width = height, width
        self.crops = "crop_flip" in augmentation.names
        self.pads = padding_of(augmentation.settings["padding"], height, width) if self.crops else (0, 0)
        self.fill = augmentation.fill
        chance = augmentation.settings.get("random_erasing", 0.0)
        self.erasing = v2.RandomErasing(p=chance, value=self.fill) if chance else None
        self._fills = torch.tensor(self.fill, dtype=torch.uint8).view(1, 3, 1, 1)
        self._shape = torch.empty((3, height, width), dtype=torch.uint8)
        self._is_fast = self.erasing is None and min(self.pads) > 0 and self._agrees()

    @staticmethod
    def is_batchable(augmentation: Augmentation) -> bool:
        """Whether all that it does can be done to a batch at once."""
        return len(augmentation.names) <= 1 and BATCHABLE.issuperset(augmentation.names)

    def draw(self, rows: int) -> np.ndarray:
        """`(rows, 7)`: the draws for the next rows."""
        if not self._is_fast:
            return np.array([self._one() for _ in range(rows)], dtype=np.int64).reshape(rows, 7)
        pairs = self._pairs(rows // 2)
        return pairs if rows % 2 == 0 else np.concatenate([pairs, [self._one()]])

    def draw_at(self, places: Sequence[tuple]) -> np.ndarray:
        """`(rows, 7)`: the draws for rows each of which has a place of its own to be seeded by."""
        drawn = []
        with draws_kept():
            for place in places:
                seed_torch(place)
                drawn.append(self._one())
        return np.array(drawn, dtype=np.int64).reshape(len(places), 7)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """The changed copies.

        Args:
            images: `(rows, 3, height, width)` bytes.
            draws: From `draw`, on the images' device.
        """
        height, width = self.height, self.width
        down, along = (torch.arange(size, device=images.device) for size in (height, width))
        changed = images
        if self.crops:
            rows, (above, beside) = len(images), self.pads
            y = draws[:, TOP, None] + down
            x = draws[:, LEFT, None] + torch.where(draws[:, FLIP, None] > 0, width - 1 - along, along)
            padded = pad(images, (beside, beside, above, above))
            places = (y[:, :, None] * padded.shape[-1] + x[:, None, :]).flatten(1)[:, None]
            changed = padded.flatten(2).gather(2, places.expand(rows, 3, -1)).view(rows, 3, height, width)
        if self.erasing is None:
            return changed
        y, x = down - draws[:, ERASED_TOP, None], along - draws[:, ERASED_LEFT, None]
        inside = ((y >= 0) & (y < draws[:, ERASED_HEIGHT, None]))[:, :, None]
        inside = (inside & ((x >= 0) & (x < draws[:, ERASED_WIDTH, None]))[:, None, :])[:, None]
        self._fills = self._fills.to(images.device)
        return torch.where(inside, self._fills, changed)

    def _one(self) -> list[int]:
        """The draws for the next row, as torchvision takes them."""
        top = left = flip = 0
        if self.crops:
            above, beside = self.pads
            top = int(torch.randint(0, 2 * above + 1, size=())) if above else 0
            left = int(torch.randint(0, 2 * beside + 1, size=())) if beside else 0
            flip = int(torch.rand(1) < 0.5)
        box = dict.fromkeys("ijhw", 0)
        if self.erasing is not None and torch.rand(1) < self.erasing.p:
            drawn = self.erasing.make_params([self._shape])
            box = box if drawn["v"] is None else drawn
        return [top, left, flip, box["i"], box["j"], box["h"], box["w"]]

    def _pairs(self, pairs: int) -> np.ndarray:
        """The draws for twice so many rows at once: three numbers of 32 bits each, as torch takes them one by one."""
        bits = torch.empty(3 * pairs, dtype=torch.int64).random_(_WHOLE_RANGE, None).numpy().view(np.uint64)
        numbers = np.stack([bits >> np.uint64(32), bits & np.uint64(2**32 - 1)], axis=1).reshape(2 * pairs, 3)
        drawn = np.zeros((2 * pairs, 7), dtype=np.int64)
        for column, padding in ((TOP, self.pads[0]), (LEFT, self.pads[1])):
            drawn[:, column] = numbers[:, column] % np.uint64(2 * padding + 1)
        drawn[:, FLIP] = (numbers[:, FLIP] & np.uint64(2 * _HALF - 1)) < _HALF
        return drawn

    def _agrees(self) -> bool:
        """Whether this torch makes its numbers of the generator's bits as `_pairs` does."""
        with draws_kept():
            seed_torch(("compared",))
            expected = [self._one() for _ in range(_COMPARED)]
            after = torch.get_rng_state()
            seed_torch(("compared",))
            return np.array_equal(self._pairs(_COMPARED // 2), expected) and torch.equal(torch.get_rng_state(), after)


class PixelTable:
    """What an image processor makes of each of the 256 values of each channel, for one that looks at pixels alone.

    A processor that rescales and normalises gives its own numbers, bit by bit, for any of its implementations; one
    that resizes, crops or mixes channels has no such table.

    Args:
        values: `(3, 256)`.
    """

    def __init__(self, values: Tensor):
        self.values = values.flatten()
        self.starts = 256 * torch.arange(3, dtype=torch.int32).view(1, 3, 1, 1)

    @classmethod
    def of(cls, make: Callable[[list[Any]], list[Tensor]], images: np.ndarray) -> PixelTable | None:
        """The table of a processor; None where it has none.

        Args:
            make: Images to `(channels, height, width)` tensors.
            images: `(rows, height, width, 3)` bytes: real images, on which the table has to be right.
        """
        height, width = images.shape[1:3]
        count = -(-256 // (height * width))
        every = np.resize(np.arange(256, dtype=np.uint8), (count, height, width))
        made = make([Image.fromarray(np.repeat(one[..., None], 3, -1)) for one in every])
        if any(one.shape != (3, height, width) for one in made):
            return None
        table = cls(torch.stack(made).movedim(1, 0).reshape(3, -1)[:, :256].contiguous())
        noise = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
        looked_at = np.concatenate([images, noise])
        expected = torch.stack(make([Image.fromarray(one) for one in looked_at]))
        return table if torch.equal(table(torch.from_numpy(looked_at).movedim(-1, 1)), expected) else None

    def __call__(self, images: Tensor) -> Tensor:
        """`(rows, 3, height, width)` bytes to what the processor makes of them."""
        if self.values.device != images.device:
            self.values, self.starts = self.values.to(images.device), self.starts.to(images.device)
        places = (images.int() + self.starts).flatten()
        return self.values.index_select(0, places).view(images.shape)

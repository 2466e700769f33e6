"""Small image sets that are decoded once and kept as bytes, in memory or on the training's device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inputs import WholeBatch
from ..memory import free_memory
from ..seeding import draws_kept, seed_all
from .batched import BatchedAugmentation, PixelTable
from .opening import opened, undecoded
from .processing import CHUNK, row_words
from .task import is_numeric, stacked_columns

DEVICE = "device"
"""The other value of `in_memory` than True and False."""

PIXELS = "pixel_values"
_LOOKED_AT = 8
_SHARE = 0.5
"""Of the memory that is free: the rest is for models, activations and what else runs."""


class KeptImages:
    """Decoded images of one size.

    Copies of a data set share it.

    Args:
        pixels: `(rows, 3, height, width)` bytes.
        on_device: They are to lie where the model does; until `to` is called they do not.
    """

    def __init__(self, pixels: Tensor, on_device: bool = False):
        self.pixels, self.on_device = pixels, on_device

    def __deepcopy__(self, memo: Any) -> KeptImages:
        """Itself: `datasets` copies a data set whenever a column is removed."""
        return self

    def to(self, device: torch.device) -> None:
        """Move the images.

        Raises:
            ValueError: They have no room there.
        """
        if self.pixels.device == device:
            return
        if device.type == "cuda":
            _check_room(self.pixels.nbytes, free_memory(device), f"free on {device}", DEVICE)
        self.pixels = self.pixels.to(device)


class _Made:
    """What is made of a data set when its first batch is read; a copy of the data set makes its own."""

    def __init__(self) -> None:
        self.columns: dict[str, Tensor] | None = None
        self.maker: _Maker | None = None

    def __deepcopy__(self, memo: Any) -> _Made:
        return _Made()

    def __reduce__(self) -> tuple:
        return _Made, ()


class InMemoryImages(datasets.Dataset):
    """Rows whose images are read from a tensor, a batch at a time; otherwise the `datasets.Dataset` it was made of.

    `__getitems__`, by which data loaders read, gives what the transform of the rows would have made of the stored
    files, to the last bit, as a `WholeBatch`. So does `select`, and whatever is made by it. Everything else (single
    rows, other formats, `map`) reads the files.
    """

    _kept: KeptImages | None = None
    _places: np.ndarray | None = None
    _made: _Made

    @classmethod
    def of(cls, rows: datasets.Dataset, kept: KeptImages, places: np.ndarray | None = None) -> InMemoryImages:
        """The same rows.

        Args:
            rows: Transformed by an `ImageTransform`.
            kept: Their images.
            places: Which of `kept` are theirs; None for all.
        """
        made = cls(rows.data, rows.info, rows.split, rows._indices, rows._fingerprint)
        made.set_format(**{**rows.format, "columns": None if _shows_all(rows) else rows.format["columns"]})
        made._kept, made._places, made._made = kept, places, _Made()
        return made

    @property
    def is_kept_on_device(self) -> bool:
        """Whether batches come from the model's device."""
        return self._kept.on_device

    def to_device(self, device: torch.device) -> None:
        """Move the images, if that is wanted."""
        if self._kept.on_device:
            self._kept.to(device)

    @property
    def draws_nothing(self) -> bool:
        """Whether reading rows takes no random numbers."""
        parts = self._parts()
        return parts is not None and parts[0] is None

    def select(self, indices: Iterable[int], *args: Any, **kwargs: Any) -> datasets.Dataset:
        """As in `datasets.Dataset`, with the images of the chosen rows."""
        indices = list(indices) if isinstance(indices, Iterator) else indices
        rows = super().select(indices, *args, **kwargs)
        places = np.arange(len(self)) if self._places is None else self._places
        return InMemoryImages.of(rows, self._kept, places[np.asarray(indices, dtype=np.int64)])

    def __getitems__(self, keys: list) -> Any:
        """A batch."""
        made = self._batch(keys, None)
        return super().__getitems__(keys) if made is None else made

    def rows_at(self, keys: Sequence[int], places: Sequence[tuple]) -> Any:
        """A batch each of whose rows is drawn from a place of its own: see `hf_kd.seeding`.

        Args:
            keys: Which rows.
            places: One for each.
        """
        made = self._batch(keys, places)
        if made is not None:
            return made
        with draws_kept():
            return [_read_at(self, key, place) for key, place in zip(keys, places, strict=True)]

    def _batch(self, keys: Sequence[int], places: Sequence[tuple] | None) -> WholeBatch | None:
        parts = self._parts() if len(keys) else None
        columns = None if parts is None else self._columns()
        if columns is None:
            return None
        if self._made.maker is None:
            self._made.maker = _Maker(*parts, self._kept)
        chosen = np.asarray(keys, dtype=np.int64)
        kept = chosen if self._places is None else self._places[chosen]
        pixels, sent = self._made.maker(np.stack([kept, chosen], axis=1), places)
        if any(column.device != sent.device for column in columns.values()):
            columns = self._made.columns = {name: column.to(sent.device) for name, column in columns.items()}
        return WholeBatch({**pixels, **{name: column[sent] for name, column in columns.items()}})

    def _parts(self) -> tuple | None:
        """What the transform does, if rows have one that is known and have their images."""
        kind = self.format
        transform = (kind["format_kwargs"] or {}).get("transform") if kind["type"] == "custom" else None
        is_whole = PIXELS in self.column_names and _shows_all(self)
        return transform.parts() if is_whole and hasattr(transform, "parts") else None

    def _columns(self) -> dict[str, Tensor] | None:
        """All other columns; None where one of them does not become a tensor."""
        if self._made.columns is None:
            plain = self.with_format(None).remove_columns([PIXELS])
            columns = plain[:] if len(plain) and plain.column_names else {}
            if not all(is_numeric(values[0]) for values in columns.values()):
                return None
            self._made.columns = stacked_columns(columns)
        return self._made.columns


def _shows_all(rows: datasets.Dataset) -> bool:
    columns = rows.format["columns"]
    return columns is None or set(columns) == set(rows.column_names)


def _read_at(rows: datasets.Dataset, key: int, place: tuple) -> dict[str, Any]:
    seed_all(place)
    return rows[int(key)]


class _Maker:
    """Makes the columns of pixels of a batch.

    Args:
        augmentation: Of the images; None for images as they are.
        makers: What makes which column of them.
        kept: The images.
    """

    def __init__(self, augmentation: Any, makers: Sequence[tuple[str, Any]], kept: KeptImages):
        self.augmentation, self.kept = augmentation, kept
        height, width = kept.pixels.shape[-2:]
        some = kept.pixels[:_LOOKED_AT].movedim(1, -1).cpu().numpy()
        self.makers = [(name, make, PixelTable.of(make, some)) for name, make in makers]
        is_batched = augmentation is not None and BatchedAugmentation.is_batchable(augmentation)
        self.batched = BatchedAugmentation(augmentation, height, width) if is_batched else None

    def __call__(self, indices: np.ndarray, places: Sequence[tuple] | None) -> tuple[dict[str, Tensor], Tensor]:
        """The columns, and the rows' own indices on the images' device.

        Args:
            indices: `(rows, 2)`: which images, and of which rows.
            places: Where the draws of each row come from; None for those of the generator as it stands.
        """
        draws = self._draws(len(indices), places)
        sent = _sent(indices if draws is None else np.concatenate([indices, draws], axis=1), self.kept.pixels.device)
        images = self.kept.pixels.index_select(0, sent[:, 0])
        if draws is not None:
            images = self.batched.apply(images, sent[:, 2:])
        pictures = None
        if self.augmentation is not None and self.batched is None:
            pictures = self._changed(_pictures(images), places)
            same = all(picture.size == images.shape[:-3:-1] for picture in pictures)
            images = _bytes(pictures).to(images.device) if same else None
        columns = {}
        for name, make, table in self.makers:
            if table is not None and images is not None:
                columns[name] = table(images)
                continue
            pictures = _pictures(images) if pictures is None else pictures
            columns[name] = torch.stack(make(pictures)).to(self.kept.pixels.device)
        return columns, sent[:, 1]

    def _draws(self, rows: int, places: Sequence[tuple] | None) -> np.ndarray | None:
        if self.batched is None:
            return None
        return self.batched.draw(rows) if places is None else self.batched.draw_at(places)

    def _changed(self, pictures: list[Image.Image], places: Sequence[tuple] | None) -> list[Image.Image]:
        """Augmented one by one, where it cannot be done at once."""
        if places is None:
            return [self.augmentation(picture) for picture in pictures]
        changed = []
        with draws_kept():
            for picture, place in zip(pictures, places, strict=True):
                seed_all(place)
                changed.append(self.augmentation(picture))
        return changed


def _sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """On a device, without waiting for it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _pictures(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images.movedim(1, -1).cpu().numpy()]


def _bytes(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1).contiguous()


def kept_in_memory(splits: Mapping[str, datasets.Dataset], in_memory: bool | str) -> dict[str, InMemoryImages]:
    """The same rows, with their images decoded.

    Args:
        splits: With a column ``pixel_values`` of images and an `ImageTransform`.
        in_memory: True, or ``"device"`` for the memory of the model's device.

    Raises:
        ValueError: Images of a split differ in size, or there is no room for all.
    """
    raw = {split: undecoded(rows.with_format(None), PIXELS).select_columns([PIXELS]) for split, rows in splits.items()}
    sizes = {split: opened(rows[0][PIXELS]).size for split, rows in raw.items() if len(rows)}
    needed = sum(3 * width * height * len(raw[split]) for split, (width, height) in sizes.items())
    _check_room(needed, free_memory(torch.device("cpu")), "free here", in_memory)
    return {
        split: InMemoryImages.of(rows, KeptImages(_decoded(raw[split], split), in_memory == DEVICE))
        for split, rows in splits.items()
    }


def _decoded(rows: datasets.Dataset, split: str) -> Tensor:
    """All images of a split: `(rows, 3, height, width)`."""
    pixels, first = None, (0, 0)
    for start in range(0, len(rows), CHUNK):
        for index, value in enumerate(rows[start : start + CHUNK][PIXELS], start):
            image = opened(value, row_words(rows, index)).convert("RGB")
            if pixels is None:
                first = image.size
                pixels = np.empty((len(rows), 3, image.height, image.width), dtype=np.uint8)
            if image.size != first:
                raise ValueError(
                    f"`load_task(in_memory=...)`: the images of {split} differ in size ({first[0]} x {first[1]} and, "
                    f"in {row_words(rows, index)}, {image.width} x {image.height} pixels), and they are kept as one "
                    "tensor. Resize them beforehand, or leave in_memory out."
                )
            pixels[index] = np.asarray(image).transpose(2, 0, 1)
    return torch.empty((0, 3, 1, 1), dtype=torch.uint8) if pixels is None else torch.from_numpy(pixels)


def _check_room(needed: int, there: int | None, where: str, in_memory: bool | str) -> None:
    if there is not None and needed > _SHARE * there:
        raise ValueError(
            f"`load_task(in_memory={in_memory!r})`: the images take {needed / 2**30:.1f} GiB decoded, and "
            f"{there / 2**30:.1f} GiB are {where}, of which models and activations need their part. Leave in_memory "
            "out: the files are then decoded when rows are read; or keep fewer rows (max_samples)."
        )

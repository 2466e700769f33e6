"""From rows to model inputs: tokens up front, pixels up front or when a row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import datasets
import torch
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from ..inputs import TEACHER_LOGITS
from .augmentation import Augmentation
from .opening import opened, undecoded

# Up to here the pixels of a whole task are made once and kept in memory.
PRECOMPUTED_BYTES = 64 * 2**20
# From here on `datasets` shows its progress bar.
LONG_ROWS = 20_000
# Tokenizers without a limit report one of about 1e30.
UNLIMITED = 10**6
CHUNK = 256


class ImageTransform:
    """Batch transform that turns images into ``pixel_values``; a class, so that data loader workers can pickle it.

    Images become RGB first, as in `pipeline("image-classification")`.

    Args:
        processor: The image processor.
        column: Where the raw images are; the pixels take the name ``pixel_values``.
        augmentation: Changes an image at random, once and before it is processed, so that whatever reads the example
            sees the same view.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        column: str = "pixel_values",
        augmentation: Augmentation | None = None,
    ) -> None:
        self.processor = processor
        self.column = column
        self.augmentation = augmentation

    def __repr__(self) -> str:
        """What is done, by which a resumed run is known."""
        changes = "" if self.augmentation is None else f", {self.augmentation}"
        return f"{type(self).__name__}({type(self.processor).__name__}{changes})"

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Augment and process the images of a batch; other columns pass."""
        return self.process(self.augment(batch)) if self.column in batch else batch

    def parts(self) -> tuple[Augmentation | None, list[tuple[str, Callable[[list[Any]], list[torch.Tensor]]]]] | None:
        """What is done to images first, and then what makes which column of them; None where it cannot be told."""
        return self.augmentation, [("pixel_values", self.pixels)]

    def augment(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The batch with its images opened and changed at random, once for whoever processes them."""
        images = [opened(image) for image in batch[self.column]]
        if self.augmentation is not None:
            images = [self.augmentation(image) for image in images]
        return {**batch, self.column: images}

    def process(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The batch with ``pixel_values``."""
        return {**batch, "pixel_values": self.pixels(batch[self.column])}

    def pixels(self, images: list[Any]) -> list[torch.Tensor]:
        """One ``(channels, height, width)`` tensor per image."""
        processed = self.processor([opened(image).convert("RGB") for image in images])["pixel_values"]
        return [torch.as_tensor(pixels) for pixels in processed]


def processed_images(
    splits: Mapping[str, datasets.Dataset],
    column: str,
    processor: BaseImageProcessor,
    augmentation: Augmentation | None = None,
    *,
    up_front: bool = True,
) -> dict[str, datasets.Dataset]:
    """Add ``pixel_values``: up front where the task is small; else, and where augmented, when a row is read."""
    if augmentation is not None:
        held_out = {split: rows for split, rows in splits.items() if split != "train"}
        transform = ImageTransform(processor, augmentation=augmentation)
        train = undecoded(splits["train"], column).rename_column(column, "pixel_values").with_transform(transform)
        return {"train": train, **processed_images(held_out, column, processor, up_front=up_front)}
    if up_front and _is_small(splits, column, processor):
        with _quiet_datasets(True):
            return {split: _precomputed(rows, column, processor) for split, rows in splits.items()}
    # The raw image itself takes the name `pixel_values`: the Trainer removes columns by the model's signature, and a
    # transform of a removed column finds nothing.
    return {
        split: undecoded(rows, column).rename_column(column, "pixel_values").with_transform(ImageTransform(processor))
        for split, rows in splits.items()
    }


def _is_small(splits: Mapping[str, datasets.Dataset], column: str, processor: BaseImageProcessor) -> bool:
    some = undecoded(next(iter(splits.values())), column)
    first = ImageTransform(processor).pixels([some[0][column]])[0]
    return first.nbytes * sum(len(rows) for rows in splits.values()) <= PRECOMPUTED_BYTES


def _precomputed(rows: datasets.Dataset, column: str, processor: BaseImageProcessor) -> datasets.Dataset:
    transform, raw = ImageTransform(processor), undecoded(rows, column)
    pixels = []
    for start in range(0, len(rows), CHUNK):
        values = raw[start : start + CHUNK][column]
        images = [opened(value, row_words(rows, start + index)) for index, value in enumerate(values)]
        pixels += transform.pixels(images)
    feature = datasets.Array3D(shape=tuple(pixels[0].shape), dtype="float32")
    made = datasets.Dataset.from_dict(
        {"pixel_values": [image.numpy() for image in pixels]}, features=datasets.Features({"pixel_values": feature})
    )
    both = datasets.concatenate_datasets([rows.flatten_indices(keep_in_memory=True), made], axis=1)
    logits = [TEACHER_LOGITS] if TEACHER_LOGITS in both.column_names else []
    return both.with_format("torch", columns=["pixel_values", "labels", *logits], output_all_columns=True)


def row_words(rows: datasets.Dataset, index: int) -> str:
    """Where a row lies in the table it was chosen from."""
    chosen = rows._indices
    return f"row {index if chosen is None else chosen.column(0)[index].as_py()} of its table"


def token_limit(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """After how many tokens texts are cut; None for never."""
    return max_length or (tokenizer.model_max_length if tokenizer.model_max_length < UNLIMITED else None)


def tokenize(
    batch: dict[str, list[str]], columns: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> dict[str, list[list[int]]]:
    """The tokenizer's columns of a batch."""
    truncation = {"truncation": True, "max_length": limit} if limit else {}
    return dict(tokenizer(*(batch[column] for column in columns), **truncation))


def tokenized_texts(
    splits: Mapping[str, datasets.Dataset],
    columns: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> dict[str, datasets.Dataset]:
    """Add the tokenizer's columns, in memory and unpadded; texts longer than ``max_length`` are cut."""
    function = partial(tokenize, columns=columns, tokenizer=tokenizer, limit=token_limit(tokenizer, max_length))
    with _quiet_datasets(sum(len(rows) for rows in splits.values()) < LONG_ROWS):
        return {
            split: rows.map(function, batched=True, keep_in_memory=True, desc=f"Tokenizing {split}")
            for split, rows in splits.items()
        }


@contextmanager
def _quiet_datasets(quiet: bool) -> Iterator[None]:
    """Without the progress bars of `datasets`, whose switch is global."""
    if not quiet or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()

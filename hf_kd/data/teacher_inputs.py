"""A second set of inputs in the same rows: what the teacher reads, made by its own tokenizer or image processor."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import torch
from PIL import Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from ..inputs import TEACHER_PREFIX
from .opening import opened, undecoded
from .processing import (
    CHUNK,
    LONG_ROWS,
    PRECOMPUTED_BYTES,
    UNLIMITED,
    ImageTransform,
    _quiet_datasets,
    token_limit,
    tokenize,
)
from .rows import is_text
from .streaming import BATCH
from .task import SPLITS, Task

PIXELS = "pixel_values"
RGB, GREY = 3, 1


class TeacherImages(ImageTransform):
    """Batch transform that makes ``pixel_values`` and ``teacher_pixel_values`` of the same images.

    Args:
        inner: Makes the student's pixels; None leaves the other columns as they are.
        processor: The teacher's image processor.
        column: Where the raw images are.
        channels: 3, or 1 for a teacher of grey images.
    """

    def __init__(self, inner: Any, processor: BaseImageProcessor, column: str = PIXELS, channels: int = RGB) -> None:
        super().__init__(processor, column)
        self.inner, self.channels = inner, channels

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Process the images of a batch for both models; other columns pass."""
        if self.column not in batch:
            return batch
        inner = self.inner
        if isinstance(inner, ImageTransform):  # both models see the same view
            batch, inner = inner.augment(batch), inner.process
        made = {TEACHER_PREFIX + PIXELS: self.pixels(batch[self.column])}
        return {**(batch if inner is None else inner(batch)), **made}

    def parts(self) -> Any:
        """As in `ImageTransform`; of images made grey nothing can be told, as they are not made of RGB ones."""
        if self.channels != RGB or not isinstance(self.inner, ImageTransform):
            return None
        augmentation, own = self.inner.parts()
        return augmentation, [*own, (TEACHER_PREFIX + PIXELS, self.pixels)]

    def pixels(self, images: list[Any]) -> list[torch.Tensor]:
        """One ``(channels, height, width)`` tensor per image."""
        if self.channels == RGB:
            return super().pixels(images)
        processed = self.processor([opened(image).convert("L") for image in images], do_convert_rgb=False)[
            "pixel_values"
        ]
        return [torch.as_tensor(pixels).reshape(1, *torch.as_tensor(pixels).shape[-2:]) for pixels in processed]


def add_teacher_inputs(
    task: Task,
    processor: PreTrainedTokenizerBase | BaseImageProcessor,
    *,
    reads: Collection[str] | None = None,
    max_length: int | None = None,
    channels: int | None = None,
    splits: Sequence[str] = SPLITS,
) -> Task:
    """Add ``teacher_`` columns to a task: the same texts or images through the teacher's own processor.

    Hand the teacher's processor to the trainer too, as ``teacher_processing_class``: it pads these columns. Where both
    models' processors do the same, the task comes back as it is, and the teacher reads the student's tensors.

    Pixels are made when a row is read, by both processors from one image, unless the teacher's fit into memory easily.

    Args:
        task: From `load_task`.
        processor: The teacher's tokenizer or image processor.
        reads: The names that the teacher's forward takes; other columns are left out. None keeps all.
        max_length: Cut texts after so many of the teacher's tokens. None: its ``model_max_length``.
        channels: 3, or 1 for a teacher of grey images. None: as many as the processor has means.
        splits: Which splits to add them to.

    Raises:
        TypeError: The processor is of the other modality.
        ValueError: The raw texts or images are not in the task.

    Example:
        >>> from transformers import ViTImageProcessor
        >>> from hf_kd import load_task
        >>> task = load_task("embedded/digits", max_samples=20)
        >>> larger = add_teacher_inputs(task, ViTImageProcessor(size={"height": 16, "width": 16}))
        >>> larger.train[0]["pixel_values"].shape, larger.train[0]["teacher_pixel_values"].shape
        (torch.Size([3, 8, 8]), torch.Size([3, 16, 16]))
    """
    kind, wanted = (
        ("a tokenizer", PreTrainedTokenizerBase) if task.modality == "text" else ("an image processor", None)
    )
    if not isinstance(processor, wanted or BaseImageProcessor):
        raise TypeError(
            f"`add_teacher_inputs(processor=...)` must be {kind} because the rows are {task.modality}s, got "
            f"{type(processor).__name__}: it cannot read them. Pass the teacher's own."
        )
    channels = channels or _channels(processor)
    own = task.processing_class
    if same_inputs(processor, own, ignore_length=max_length is not None) and channels in (None, _channels(own)):
        return task
    chosen = {split: getattr(task, split) for split in splits}
    if isinstance(task.train, datasets.IterableDataset):
        function = _stream_function(task, processor, max_length, reads, channels)
        return replace(task, **{s: rows.map(function, batched=True, batch_size=BATCH) for s, rows in chosen.items()})
    with _quiet_datasets(task.modality == "image" or sum(map(len, chosen.values())) < LONG_ROWS):
        if task.modality == "text":
            made = {split: _tokenized(rows, processor, max_length, reads) for split, rows in chosen.items()}
        else:
            made = {split: _processed(rows, own, processor, channels) for split, rows in chosen.items()}
    return replace(task, **made)


def same_inputs(one: Any, other: Any, *, ignore_length: bool = False) -> bool:
    """Whether two tokenizers, or two image processors, make the same of every input.

    Judged by their settings: in doubt they are different, which costs time and is never wrong.

    Args:
        one: A processor.
        other: Another one.
        ignore_length: Leave out after how many tokens texts are cut, and a `model_max_length` that says so.
    """
    if one is other:
        return True
    if isinstance(one, PreTrainedTokenizerBase) != isinstance(other, PreTrainedTokenizerBase):
        return False
    settings = [_settings(processor) for processor in (one, other)]
    if ignore_length:
        settings = [{key: value for key, value in each.items() if key != "max_length"} for each in settings]
    return settings[0] == settings[1]


def _settings(processor: Any) -> dict[str, Any]:
    """All that decides what a processor makes."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        # images are made RGB, or grey, before the processor sees them
        names = ("processor_class", "_processor_class", "_name_or_path", "do_convert_rgb")
        return {key: value for key, value in processor.to_dict().items() if key not in names}
    backend = getattr(processor, "backend_tokenizer", None)
    how: Any = type(processor).__name__
    if backend is not None:
        how = json.loads(backend.to_str())
        how.pop("truncation", None), how.pop("padding", None)  # left there by the latest call
    return {
        "how": how,
        "vocabulary": processor.get_vocab(),
        "columns": list(processor.model_input_names),
        "padding": (processor.pad_token_id, processor.padding_side, processor.pad_token_type_id),
        "truncation_side": processor.truncation_side,
        "max_length": min(processor.model_max_length, UNLIMITED),
    }


def _channels(processor: Any) -> int | None:
    """How many channels an image processor makes; None for a tokenizer."""
    if isinstance(processor, PreTrainedTokenizerBase):
        return None
    mean = getattr(processor, "image_mean", None)
    return GREY if isinstance(mean, (list, tuple)) and len(mean) == 1 else RGB


def _tokenized(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, reads: Collection[str] | None
) -> datasets.Dataset:
    columns = [name for name, feature in rows.features.items() if is_text(feature)]
    if not 1 <= len(columns) <= 2:
        raise _without_raw("text", rows.column_names)
    tokens = partial(_tokens, columns=columns, tokenizer=tokenizer, max_length=max_length, reads=reads)
    return rows.map(tokens, batched=True, keep_in_memory=True, desc="Tokenizing for the teacher")


def _tokens(
    batch: dict[str, list[str]],
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    reads: Collection[str] | None,
) -> dict[str, list[list[int]]]:
    """The teacher's columns of a batch."""
    made = tokenize(batch, tuple(columns), tokenizer, token_limit(tokenizer, max_length))
    return {TEACHER_PREFIX + key: value for key, value in made.items() if reads is None or key in reads}


def _stream_function(
    task: Task, processor: Any, max_length: int | None, reads: Collection[str] | None, channels: int | None
) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    """What makes the teacher's columns of a stream, which says what it holds only when it is read."""
    kind, what = (str, "text") if task.modality == "text" else (Image.Image, "image")
    row = task.look()[0]
    columns = [name for name, value in row.items() if isinstance(value, kind)]
    if not columns:
        raise _without_raw(what, list(row))
    if task.modality == "text":
        return partial(_tokens, columns=columns, tokenizer=processor, max_length=max_length, reads=reads)
    return TeacherImages(None, processor, columns[0], channels)


def _processed(rows: datasets.Dataset, own: Any, processor: Any, channels: int) -> datasets.Dataset:
    raw = next((name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)), None)
    if raw is None:
        raise _without_raw("image", rows.column_names)
    transform = TeacherImages(None, processor, raw, channels)
    if raw == PIXELS:  # made when a row is read
        transform.inner = rows.format["format_kwargs"]["transform"]
        return rows.with_transform(transform)
    plain = rows.with_format(None)
    lying = undecoded(plain, raw)
    first = transform.pixels([lying[0][raw]])[0]
    if first.nbytes * len(rows) > PRECOMPUTED_BYTES:
        # the raw image takes a name that the Trainer does not remove: the student reads it
        raw_rows = lying.remove_columns([name for name in (PIXELS,) if name in plain.column_names])
        both = TeacherImages(ImageTransform(own), processor, PIXELS, channels)
        return raw_rows.rename_column(raw, PIXELS).with_transform(both)
    chunks = (lying[start : start + CHUNK][raw] for start in range(0, len(plain), CHUNK))
    name, pixels = TEACHER_PREFIX + PIXELS, [image.numpy() for chunk in chunks for image in transform.pixels(chunk)]
    feature = datasets.Features({name: datasets.Array3D(shape=tuple(first.shape), dtype="float32")})
    made = datasets.Dataset.from_dict({name: pixels}, features=feature)
    both = datasets.concatenate_datasets([plain.flatten_indices(keep_in_memory=True), made], axis=1)
    tensors = [*(rows.format["columns"] or ()), name]
    return both.with_format(
        "torch", columns=[c for c in tensors if c in (PIXELS, "labels", name)], output_all_columns=True
    )


def _without_raw(what: str, names: Sequence[str]) -> ValueError:
    return ValueError(
        f"`add_teacher_inputs(task=...)` finds no {what} in the rows (they have {', '.join(names)}): the "
        f"teacher's inputs are made from the same {what} as the student's. Use a task of `load_task`, or add the "
        f"`{TEACHER_PREFIX}` columns yourself."
    )

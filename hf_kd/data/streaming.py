"""Data sets that are too large to store: rows come one by one, in the order they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

import datasets

from ..functional import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .augmentation import Augmentation
from .benchmarks import Benchmark
from .generic import named_splits, table_columns
from .labels import class_id, score
from .opening import undecoded
from .overlap import row_bytes
from .processing import ImageTransform, token_limit, tokenize
from .reading import TableOptions, mapped_notes, read_splits, table_name
from .rows import fingerprint_of
from .task import SPLITS, Source

HELD_OUT_ROWS = 10_000  # validation rows, where there is no such split
SHUFFLED_ROWS = 1_000  # so many wait, encoded, and the next one is drawn from them
PROBED_ROWS = 16
BATCH = 16

Stream = datasets.IterableDataset


def stream_source(
    name_or_path: Any,
    options: TableOptions,
    *,
    seed: int,
    known_tasks: tuple[str, ...],
    benchmark: Benchmark | None,
) -> Source:
    """The splits as streams with the columns that are read and ``labels``.

    Classes must be known beforehand, splits cannot be stratified, and nothing is counted. A missing validation split
    is the first rows of training.

    Raises:
        ValueError: The classes or a test split are unknown, or rows have several labels.
    """
    read = read_splits(name_or_path, options, known_tasks)
    splits = named_splits(read.splits, options)
    features = _typed(splits["train"]).features
    if benchmark is not None:
        options = benchmark.with_columns(options, features)
    modality, columns, label_column = table_columns(features, options)
    for option in ("sample_weight", "teacher_logits"):
        if getattr(options, option) is not None:
            raise ValueError(
                f"`load_task(streaming=True)` does not go with `{option}`, whose column is checked before training. "
                "Leave one out."
            )
    names = _label_names(features[label_column], label_column, read.label_names, options)
    notes = [*read.notes, *mapped_notes(options.splits)]
    if benchmark is not None and benchmark.hides_test_labels and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("the published validation split serves as test")
    if "test" not in splits:
        raise ValueError(
            f"`load_task({table_name(name_or_path)!r}, streaming=True)` found no test split, and rows that are drawn "
            "from a stream cannot be cut off it. Name one with splits={'train': ..., 'test': ...}."
        )
    if "validation" not in splits:
        train = splits["train"]
        splits["validation"], splits["train"] = train.take(HELD_OUT_ROWS), train.skip(HELD_OUT_ROWS)
        notes.append(f"validation is the first {HELD_OUT_ROWS:,} training rows")
    fingerprint = _fingerprint(splits, columns, names, (table_name(name_or_path), options.subset, options.revision))
    encode = partial(_encode, label_column, names, isinstance(features[label_column], datasets.ClassLabel), options)
    splits["train"] = splits["train"].shuffle(seed=seed, buffer_size=SHUFFLED_ROWS)
    kept = [*columns, label_column]
    if modality == "image":
        splits = {split: undecoded(_typed(rows), columns[0]) for split, rows in splits.items()}
    made = {
        split: _mapped(splits[split].select_columns(kept), encode, () if label_column == "labels" else (label_column,))
        for split in SPLITS
    }
    kind = "one number per row" if options.problem_type == REGRESSION else f"{len(names)} classes"
    facts = [f"{table_name(name_or_path)}: {kind}, streamed and not counted", *notes]
    return Source(
        modality=modality,
        splits=made,
        columns=columns,
        label_names=names,
        fingerprint=fingerprint,
        description="; ".join(facts) + ".",
        problem_type=options.problem_type or SINGLE_LABEL,
        is_streamed=True,
        origin=read.origin,
    )


def _typed(rows: Stream) -> Stream:
    """A stream that knows its columns."""
    return rows._resolve_features() if rows.features is None else rows


def stream_inputs(
    source: Source, splits: Mapping[str, Stream], processor: Any, max_length: int | None, changes: Augmentation | None
) -> tuple[dict[str, Stream], list[str]]:
    """The streams as the student reads them, and what to say about that.

    The texts and images stay in the rows, the latter as augmented, for a teacher that reads them its own way. The
    trainer drops them before it makes a batch.
    """
    if source.modality == "text":
        limit = token_limit(processor, max_length or source.max_length)
        function = partial(tokenize, columns=source.columns, tokenizer=processor, limit=limit)
        notes = [f"Texts are cut after {limit} tokens, how many is not counted."] if limit else []
        return {split: _mapped(rows, function) for split, rows in splits.items()}, notes
    made = {}
    for split, rows in splits.items():
        transform = ImageTransform(processor, source.columns[0], changes if split == "train" else None)
        made[split] = _mapped(rows, transform)
    return made, [] if changes is None else [f"Training images are augmented: {changes}."]


def limited_streams(splits: Mapping[str, Stream], limits: Mapping[str, int]) -> dict[str, Stream]:
    """The first rows of each split that has a limit."""
    return {split: rows.take(limits[split]) if split in limits else rows for split, rows in splits.items()}


def _mapped(rows: Stream, function: Any, columns: tuple[str, ...] = ()) -> Stream:
    return rows.map(function, batched=True, batch_size=BATCH, remove_columns=list(columns))


def _label_names(feature: Any, column: str, file_names: Any, options: TableOptions) -> tuple[str, ...]:
    if options.problem_type == REGRESSION:
        return ("score",)
    if options.problem_type == MULTI_LABEL:
        raise ValueError(
            f"`load_task(streaming=True, problem_type={MULTI_LABEL!r})`: several labels per row are read whole only. "
            "Leave streaming out."
        )
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if file_names is None:
        raise ValueError(
            f"`load_task(streaming=True, label_column={column!r})` cannot know the classes: the column says none, and "
            "all rows would have to be read to see them. Put a labels.txt with one class per line beside the files."
        )
    return tuple(file_names)


def _encode(
    column: str, names: tuple[str, ...], are_ids: bool, options: TableOptions, batch: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """A batch with ``labels``; -100, or NaN for numbers, where there are none."""
    values = batch[column]
    if options.problem_type == REGRESSION:
        return {**batch, "labels": [score(value, column, options.missing_label) for value in values]}
    return {**batch, "labels": [class_id(value, column, options.missing_label, names, are_ids) for value in values]}


def _fingerprint(
    splits: Mapping[str, Stream], columns: tuple[str, ...], names: tuple[str, ...], where: tuple[Any, ...]
) -> str:
    """Over where the rows come from and the first of them: more is not known before all were read."""
    parts: list[str | bytes] = [*map(str, where), *names]
    for split in SPLITS:
        rows = splits[split].select_columns(list(columns))
        for column, feature in (rows.features or {}).items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        parts += [split, *(row_bytes(row.values()) for row in islice(rows, PROBED_ROWS))]
    return fingerprint_of(parts)

"""Any local or Hub data set with an image or a text column and a label column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..functional import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..registry import suggestion
from .benchmarks import Benchmark
from .labels import encode_labels
from .opening import located
from .overlap import overlap_notes, row_bytes
from .reading import SPLIT_ALIASES, TableOptions, mapped_notes, read_splits, table_name
from .rows import IGNORE_INDEX, Rows, column_values, fingerprint_of, is_text, stratified_rows
from .stored_logits import stored_facts, with_stored_logits
from .task import SPLITS, Modality, Source
from .weights import checked_sample_weights

TEXT_NAMES = ("text", "sentence")
LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent")
HELD_OUT_PARTS = 10  # a missing split is one row in ten of the labelled training rows
FINGERPRINT_ROWS = 64


def table_source(
    name_or_path: Any,
    options: TableOptions,
    *,
    seed: int,
    known_tasks: tuple[str, ...],
    benchmark: Benchmark | None = None,
) -> Source:
    """Read a table, find its columns, map its labels to class ids, and complete its splits."""
    read = read_splits(name_or_path, options, known_tasks)
    loaded = named_splits(read.splits, options)
    if benchmark is not None:
        options = benchmark.with_columns(options, loaded["train"].features)
    modality, columns, label_column = table_columns(loaded["train"].features, options)
    problem_type = options.problem_type or SINGLE_LABEL
    labels = encode_labels(
        loaded, label_column, options.missing_label, problem_type=problem_type, file_names=read.label_names
    )
    splits = {
        split: Rows(
            _inputs(rows, columns, modality, split, read.folder), labels.ids[split], targets=labels.targets.get(split)
        )
        for split, rows in loaded.items()
    }
    if options.sample_weight is not None:
        weights = checked_sample_weights(column_values(loaded["train"], options.sample_weight), options.sample_weight)
        splits["train"] = replace(splits["train"], weights=weights)
    if options.teacher_logits is not None:
        facts = stored_facts(read.folder)
        splits = with_stored_logits(splits, loaded, options.teacher_logits, labels.names, facts)
    notes = [*labels.notes, *_row_notes(splits, modality, columns)]
    splits, made = _completed(splits, seed, benchmark is not None and benchmark.hides_test_labels)
    sizes = ", ".join(f"{split} {len(splits[split]):,}" for split in SPLITS)
    kind = "one number per row" if problem_type == REGRESSION else f"{len(labels.names)} classes"
    kind += ", several per row" if problem_type == MULTI_LABEL else ""
    subset = f" ({options.subset})" if options.subset else ""
    facts = [f"{table_name(name_or_path)}{subset}: {kind}, rows: {sizes}", *read.notes, *notes]
    facts += [*mapped_notes(options.splits), *made]
    facts += overlap_notes(splits)
    return Source(
        modality=modality,
        splits={split: splits[split] for split in SPLITS},
        columns=("image",) if modality == "image" else columns,
        label_names=labels.names,
        fingerprint=_fingerprint(splits, labels.names),
        description="; ".join(facts) + ".",
        problem_type=problem_type,
        origin=read.origin,
    )


def named_splits(loaded: dict[str, Any], options: TableOptions) -> dict[str, Any]:
    """The splits by our names.

    Raises:
        ValueError: None is for training, or one is empty.
    """
    unknown = set(options.splits or {}) - set(SPLITS)
    if unknown:
        raise ValueError(
            f"`load_task(splits=...)` has the keys {sorted(unknown)}: the keys are ours ({', '.join(SPLITS)}), the "
            "values those of the data set. Pass e.g. {'train': 'train', 'test': 'validation'}."
        )
    found: dict[str, datasets.Dataset] = {}
    for ours, aliases in SPLIT_ALIASES.items():
        theirs = next((name for alias in aliases for name in loaded if name.lower() == alias), None)
        if theirs is not None:
            found[ours] = loaded[theirs]
    if "train" not in found:
        if len(loaded) != 1:
            raise ValueError(
                f"`load_task(splits=...)` must say which split to train on: the data set has {', '.join(loaded)} and "
                "none is called train. Pass e.g. {'train': " + repr(next(iter(loaded), "...")) + "}."
            )
        found = {"train": next(iter(loaded.values()))}
    empty = [split for split, rows in found.items() if isinstance(rows, datasets.Dataset) and len(rows) == 0]
    if empty:
        raise ValueError(
            f"`load_task(...)` found no row in {', '.join(empty)}: there is nothing to learn or measure. "
            "Check the file, or name other splits with splits={...}."
        )
    return found


def _row_notes(splits: dict[str, Rows], modality: Modality, columns: tuple[str, ...]) -> list[str]:
    """Rows that are there and say little: nothing to read, or no label."""
    notes = []
    unlabelled = int((splits["train"].labels == IGNORE_INDEX).sum())
    if unlabelled:
        notes.append(f"{unlabelled:,} training rows have no label")
    for split, rows in splits.items() if modality == "text" else ():
        stripped = [
            pc.utf8_trim_whitespace(rows.table.data.column(column).cast(pa.large_string())) for column in columns
        ]
        blank = sum(pc.sum(pc.equal(texts, "")).as_py() or 0 for texts in stripped)
        if blank:
            notes.append(f"{blank:,} texts of {split} are blank")
    return notes


# ---------------------------------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------------------------------


def table_columns(features: datasets.Features, options: TableOptions) -> tuple[Modality, tuple[str, ...], str]:
    """The modality, the input columns and the label column.

    Raises:
        ValueError: A column named is not there, or none or several would do.
    """
    there = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
    named = [*(options.text_columns or ()), options.image_column, options.label_column, options.sample_weight]
    named.append(options.teacher_logits)
    for column in named:
        if column is not None and column not in features:
            raise ValueError(
                f"`load_task(...)` was told to read the column {column!r}, which is not there."
                f"{suggestion(column, features, there)}"
            )
    _check_twice(features, options)
    label = options.label_column or _only(
        "label_column",
        [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        or [name for name in LABEL_NAMES if name in features],
        there,
    )
    if options.text_columns and options.image_column:
        raise ValueError(
            f"`load_task(text_column=..., image_column=...)` got both {options.text_columns[0]!r} and "
            f"{options.image_column!r}: a task has one modality. Pass one of them."
        )
    if options.text_columns:
        return "text", tuple(options.text_columns), label
    if options.image_column:
        return "image", (options.image_column,), label
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if images:
        return "image", (_only("image_column", images, there),), label
    texts = [name for name, feature in features.items() if _kind(feature) == "string" and name != label]
    texts += [name for name in TEXT_NAMES if name in features and type(features[name]).__name__ == "Json"]
    preferred = [name for name in TEXT_NAMES if name in texts]
    return "text", (_only("text_column", preferred[:1] or texts, there),), label


def _check_twice(features: datasets.Features, options: TableOptions) -> None:
    """Two columns of one name: a reader of CSV renames the second, and which is meant is unknown."""
    usual = [*(() if options.label_column else LABEL_NAMES), *(() if options.text_columns else TEXT_NAMES)]
    for name in usual:
        if name in features and f"{name}.1" in features:
            raise ValueError(
                f"`load_task(...)` found the column {name!r} twice (the second is read as '{name}.1'): guessing would "
                "train on the wrong one. Rename one of them, or name the one that is meant."
            )


def _only(argument: str, candidates: list[str], there: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    what = f"{' and '.join(candidates)} would both do" if candidates else "no column is recognised"
    pair = " (two names for pairs of texts)" if argument == "text_column" else ""
    raise ValueError(
        f"`load_task({argument}=...)` is needed: {what}, and guessing would train on the wrong thing. "
        f"Pass one{pair} of: {there}."
    )


def _kind(feature: Any) -> str:
    dtype = getattr(feature, "dtype", None)
    if type(feature).__name__ == "Json":
        return "values of several kinds"
    if isinstance(feature, datasets.Value):
        return "string" if is_text(feature) else str(dtype)
    return type(feature).__name__


def _inputs(
    rows: datasets.Dataset, columns: tuple[str, ...], modality: Modality, split: str, folder: Path | None
) -> datasets.Dataset:
    lacking = [column for column in columns if column not in rows.features]
    if lacking:
        raise ValueError(
            f"`load_task(...)` reads the column {lacking[0]!r}, which {split} does not have "
            f"({', '.join(rows.features)}): all splits must have the inputs. Rename it, or leave the split out."
        )
    kept = rows.with_format(None).select_columns(list(columns))
    for column in columns:
        holes = kept.data.column(column).null_count
        if holes:
            first = next(row for row, value in enumerate(kept.data.column(column)) if not value.is_valid)
            raise ValueError(
                f"`load_task(...)` found {holes} of {len(kept)} rows without a value in the column {column!r} of "
                f"{split}, the first in row {first}: an empty row has no input. Drop these rows first."
            )
        _check_texts(kept, column, split)
        if modality == "text" and _kind(kept.features[column]) != "string":
            raise ValueError(
                f"`load_task(text_column={column!r})` holds {_kind(kept.features[column])}, not text: a tokenizer "
                "reads strings. Name a string column."
            )
    if modality == "image":
        kept = _as_images(kept, columns[0], folder, split)
        kept = kept if columns[0] == "image" else kept.rename_column(columns[0], "image")
    return kept


def _check_texts(rows: datasets.Dataset, column: str, split: str) -> None:
    """Bytes that are no text, and a row among texts that is none."""
    who, kind = f"`load_task(text_column={column!r})`", _kind(rows.features[column])
    if kind == "string":
        try:
            rows.data.column(column).validate(full=True)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{who} holds bytes in {split} that are no UTF-8 ({error}). Write the file anew."
            ) from error
    elif type(rows.features[column]).__name__ == "Json":
        odd = next(((row, v) for row, v in enumerate(rows[column][:]) if not isinstance(v, str)), None)
        if odd is not None:
            raise ValueError(
                f"{who} holds {odd[1]!r:.80} of type {type(odd[1]).__name__} in row {odd[0]} of {split}, and texts in "
                "others: a tokenizer reads texts. Put it in quotes, or leave the row out."
            )


def _as_images(rows: datasets.Dataset, column: str, folder: Path | None, split: str) -> datasets.Dataset:
    """Images, the paths of images, or their encoded bytes."""
    feature = rows.features[column]
    if isinstance(feature, datasets.Image):
        return rows
    if _kind(feature) == "string":
        return located(rows, column, folder, split)
    if _kind(feature) in ("binary", "large_binary"):
        return rows.cast_column(column, datasets.Image())
    raise ValueError(
        f"`load_task(image_column={column!r})` holds {_kind(feature)}, not images: they are stored as images, as the "
        "paths of files, or as the bytes of files. Name another column."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Splits and fingerprint
# ---------------------------------------------------------------------------------------------------------------------


def _completed(splits: dict[str, Rows], seed: int, hides_test: bool) -> tuple[dict[str, Rows], list[str]]:
    """All three splits, and in words which of them are not the owner's."""
    splits, notes = dict(splits), []
    if "test" in splits and (splits["test"].labels == IGNORE_INDEX).all():
        del splits["test"]
        notes.append("the published test split has no labels")
    if hides_test and "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("the published validation split serves as test")
    missing = [split for split in SPLITS if split not in splits]
    if missing:
        stratified = ", stratified" if splits["train"].targets is None else ""
        splits = _cut_missing(splits, missing, seed)
        notes.append(f"{' and '.join(missing)} cut off the training rows (seed {seed}{stratified})")
    return splits, notes


def _cut_missing(splits: dict[str, Rows], missing: list[str], seed: int) -> dict[str, Rows]:
    train = splits["train"]
    labels = train.labels.copy()
    labelled = int((labels != IGNORE_INDEX).sum())
    count = labelled // HELD_OUT_PARTS
    if count == 0:
        raise ValueError(
            f"`load_task(...)` has no {' and '.join(missing)} split and only {labelled} labelled training rows to cut "
            f"it from: it would be empty. Name the splits with splits={{...}}, or bring {HELD_OUT_PARTS} such rows."
        )
    made, taken = dict(splits), np.zeros(len(labels), dtype=bool)
    for offset, split in enumerate(reversed(missing)):
        chosen = stratified_rows(labels, count, seed + offset)
        made[split] = train.take(chosen)
        taken[chosen] = True
        labels[chosen] = IGNORE_INDEX
    made["train"] = train.take(np.flatnonzero(~taken))
    return made


def _fingerprint(splits: dict[str, Rows], label_names: tuple[str, ...]) -> str:
    """Over all labels and a few inputs of each split: an exact hash of a large image set would take minutes."""
    parts: list[str | bytes] = [*label_names]
    for split in SPLITS:
        rows = splits[split]
        probes = rows.take(np.unique(np.linspace(0, len(rows) - 1, FINGERPRINT_ROWS).astype(int)))
        inputs = probes.table.select(probes.positions)
        if isinstance(inputs.features.get("image"), datasets.Image):
            inputs = inputs.cast_column("image", datasets.Image(decode=False))
        labels = rows.labels.astype("<i8") if rows.targets is None else rows.targets.astype("<f4")
        parts += [split, labels.tobytes(), *(row_bytes(row.values()) for row in inputs)]
    return fingerprint_of(parts)

"""Logits that a teacher gave earlier, read as a column beside the rows: they must be one per class, in our order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..inputs import LABEL_WEIGHT, TEACHER_LOGITS
from .processing import LONG_ROWS, _quiet_datasets
from .rows import Rows, is_text
from .task import SPLITS, Task

MANIFEST = "teacher_logits.json"
"""Beside stored logits: which teacher gave them, for which classes in which order."""

LABEL_FILE = "labels.txt"
"""Beside tables: one class name per line, in the order of their ids."""


def stored_facts(folder: Path | None) -> dict[str, Any]:
    """What is known of the logits in a folder; nothing where nobody wrote it down.

    Raises:
        ValueError: The file is not what its name says.
    """
    path = None if folder is None else folder / MANIFEST
    if path is None or not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"`load_task(teacher_logits=...)` found {str(path)!r}, which is no JSON ({error}): it says whose logits "
            "these are. Restore it, or move it away to trust the columns as they are."
        ) from error
    if not isinstance(facts, dict) or not isinstance(facts.get("label_names"), list):
        raise ValueError(
            f"`load_task(teacher_logits=...)` found {str(path)!r} without a list `label_names`: it says for which "
            "classes the logits are. Restore it, or move it away to trust the columns as they are."
        )
    return facts


def with_stored_logits(
    splits: Mapping[str, Rows],
    loaded: Mapping[str, datasets.Dataset],
    column: str,
    names: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Rows]:
    """The splits with the logits of those that have the column.

    Args:
        splits: The rows, as they were read.
        loaded: The tables they come from.
        column: Where the logits are.
        names: The class names in id order.
        facts: What is known of the logits.

    Raises:
        ValueError: The logits are of other classes, not one finite number per class, or missing in a row.
    """
    order = facts.get("label_names")
    if order is not None and list(order) != list(names):
        place = next(
            (i for i, (a, b) in enumerate(zip(order, names, strict=False)) if a != b), min(map(len, (order, names)))
        )
        theirs, ours = (said[place] if place < len(said) else "nothing" for said in (order, names))
        raise ValueError(
            f"`load_task(teacher_logits={column!r})`: the logits are of {len(order)} classes and the data have "
            f"{len(names)}; at id {place} they say {theirs!r} and the data {ours!r}. Columns of numbers carry no "
            "names, so the student would learn one class as another. Store the logits anew for these data."
        )
    return {
        split: replace(rows, logits=_checked(loaded[split], column, split, len(names)))
        if column in loaded[split].features
        else rows
        for split, rows in splits.items()
    }


def _checked(table: datasets.Dataset, column: str, split: str, width: int) -> datasets.Dataset:
    """The column alone, in float32, by our name."""
    kept = table.with_format(None).select_columns([column])
    who = f"`load_task(teacher_logits={column!r})`"
    rows = f"{width} finite numbers per row, one per class in id order"
    for batch in kept.with_format("arrow").iter(batch_size=10_000):
        values = batch[column].combine_chunks()
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(kind(values.type) for kind in kinds) or not _is_number(values.type.value_type):
            raise ValueError(f"{who} holds {values.type} in {split}: it must hold {rows}. Name another column.")
        lengths = pc.list_value_length(values)
        if values.null_count or pc.any(pc.not_equal(lengths, width)).as_py():
            found = "no value" if values.null_count else f"{pc.max(lengths).as_py()} numbers"
            raise ValueError(f"{who} has a row with {found} in {split}: it must hold {rows}. Store the logits anew.")
        flat = pc.list_flatten(values)
        if flat.null_count or not pc.all(pc.is_finite(flat.cast(pa.float64()))).as_py():
            raise ValueError(f"{who} has a row with NaN or infinity in {split}: it must hold {rows}. Store them anew.")
    kept = kept if column == TEACHER_LOGITS else kept.rename_column(column, TEACHER_LOGITS)
    feature = datasets.List(datasets.Value("float32"), length=width)
    return kept if kept.features[TEACHER_LOGITS] == feature else kept.cast_column(TEACHER_LOGITS, feature)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def save_rows(task: Task, folder: Path, facts: Mapping[str, Any], *, label_column: str, image_column: str) -> None:
    """Write a task as files that `load_task` reads: raw texts or images, labels, weights and stored logits.

    Tokens and pixels are left out: the next student may have another tokenizer or image processor.

    Args:
        task: From `load_task`, with logits in some splits.
        folder: A new folder; it gets a Parquet file per split, ``labels.txt`` and ``teacher_logits.json``.
        facts: What to say of the logits, beside the class names.
        label_column: What to call the labels.
        image_column: What to call the images.
    """
    folder.mkdir(parents=True)
    for split in SPLITS:
        rows = getattr(task, split).with_format(None)
        names = {"labels": label_column, LABEL_WEIGHT: LABEL_WEIGHT, TEACHER_LOGITS: TEACHER_LOGITS}
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                names[name] = image_column
            elif is_text(feature):
                names[name] = name
        kept = rows.select_columns([name for name in rows.column_names if name in names])
        kept = kept.rename_columns({name: names[name] for name in kept.column_names if names[name] != name})
        with _quiet_datasets(len(kept) < LONG_ROWS):
            kept.to_parquet(folder / f"{split}.parquet")
    (folder / LABEL_FILE).write_text("".join(f"{name}\n" for name in task.label_names), encoding="utf-8")
    text = json.dumps({**facts, "label_names": list(task.label_names)}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")

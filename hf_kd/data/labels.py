"""Label columns to class ids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from .rows import IGNORE_INDEX


def encode_labels(
    splits: Mapping[str, datasets.Dataset], column: str, missing_label: int | str | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Map the label column of every split to class ids from 0, with -100 for unlabelled.

    A `datasets.ClassLabel` keeps its ids and names. Other columns get their classes from the training rows: names in
    alphabetical order, numbers in numerical order.

    Args:
        splits: The splits; ``train`` says which classes there are.
        column: The label column.
        missing_label: A value that means unlabelled, besides null and -100.

    Returns:
        The class names in id order, and one int64 array per split.

    Raises:
        ValueError: If the labels are no classes, fewer than two, or a split has one that ``train`` has not.
    """
    feature = splits["train"].features[column]
    values = {}
    for split, rows in splits.items():
        if column not in rows.features:
            values[split] = [None] * len(rows)
        else:
            values[split] = [
                _plain(value, column, missing_label)
                for value in rows.with_format(None).select_columns([column])[column][:]
            ]
    if isinstance(feature, datasets.ClassLabel):
        classes: list[Any] = list(range(feature.num_classes))
        names = tuple(feature.names)
    else:
        present = {value for value in values["train"] if value is not None}
        if len({type(value) for value in present}) > 1:
            raise ValueError(
                f"`load_task(label_column={column!r})` mixes names and numbers ({sorted(map(str, present))[:5]}): it "
                "is not clear which are the same class. Make them all names or all numbers."
            )
        classes = sorted(present)
        names = tuple(str(value) for value in classes)
    if len(names) < 2:
        raise ValueError(
            f"`load_task(label_column={column!r})` has {len(names)} class(es) among the {len(values['train'])} "
            f"training rows ({', '.join(names) or 'all are unlabelled'}): a classifier needs two. Name another column."
        )
    ids = {value: index for index, value in enumerate(classes)}
    return names, {split: _ids(column_values, ids, split, column) for split, column_values in values.items()}


def _ids(values: list[Any], ids: dict[Any, int], split: str, column: str) -> np.ndarray:
    unknown = sorted({str(value) for value in values if value is not None and value not in ids})
    if unknown:
        known = ", ".join(str(value) for value in list(ids)[:8])
        raise ValueError(
            f"`load_task(label_column={column!r})` has {', '.join(unknown[:5])} in {split}, which is no class of the "
            f"training rows ({known}{', ...' if len(ids) > 8 else ''}): nothing could learn it. Drop the rows, or, if "
            f"the value means unlabelled, pass missing_label={unknown[0]}."
        )
    return np.array([IGNORE_INDEX if value is None else ids[value] for value in values], dtype=np.int64)


def _plain(value: Any, column: str, missing_label: int | str | None) -> str | int | None:
    """A class as a str or an int; None where the row is unlabelled."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():  # pandas reads integers with gaps as floats
            value = int(value)
    if value is None or value == IGNORE_INDEX or (missing_label is not None and value == missing_label):
        return None
    if isinstance(value, bool):
        return str(value)
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"`load_task(label_column={column!r})` holds {value!r} of type {type(value).__name__}: each row must have "
            "one class, as a name or an integer (regression and several labels per row are not supported). "
            "Name another column."
        )
    return value

"""Rows with their keys, and the same random changes of a row whenever a view of it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from ..seeding import draws_kept, seed_all
from .cache import AS_STORED

TOKENS = "input_ids"


def read_views(rows: Any, indices: Sequence[int], keys: np.ndarray, view: int) -> list[dict[str, Any]]:
    """Rows as one of their views shows them: their draws depend on what they hold and the view alone.

    Generators that a dataset keeps for itself are not reached.

    Args:
        rows: A map-style dataset that changes its rows at random.
        indices: Which rows.
        keys: Of these rows, from `row_keys`.
        view: The number of the view, or `AS_STORED` for rows that are not changed.
    """
    if view == AS_STORED:
        many = getattr(rows, "__getitems__", None)
        return many(list(indices)) if callable(many) else [rows[index] for index in indices]
    read = []
    with draws_kept():
        for index, (high, low) in zip(indices, keys.tolist(), strict=True):
            seed_all(("view", high, low, view))
            read.append(rows[int(index)])
    return read


def by_length(rows: datasets.Dataset, chosen: np.ndarray) -> np.ndarray:
    """`chosen`, texts of about equal length side by side, so that little of a batch is padding."""
    name = next((name for name in (f"teacher_{TOKENS}", TOKENS) if name in rows.column_names), None)
    if name is None or not len(chosen):
        return chosen
    column = rows.with_format("arrow").select_columns([name])[:][name]
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)[chosen]
    return chosen[np.argsort(-lengths, kind="stable")]  # the longest first: what does not fit fails at once

"""Rows with their keys, and the same random changes of a row whenever a view of it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from torch.utils.data import Dataset

from ..mixing import Mixing
from ..seeding import draws_kept, seed_all
from .cache import AS_STORED

TOKENS = "input_ids"

PROBES = 32
"""Rows whose inputs are compared with what the teacher was shown, and as many long ones."""


class KeyedRows(Dataset):
    r"""Rows that are known by what they hold, in repeatable views.

    All draws for a row depend on what it holds and on the view alone: its augmentation, and with `mixing` its partner,
    the share \(\lambda\) and the box. (Without views, `Mixing` draws one of each per batch.) Generators that a dataset
    keeps for itself are not reached.

    Args:
        rows: A map-style dataset.
        keys: Of the rows, from `row_keys`.
        views: How many there are of each row; None for rows that are always the same.
        mixing: Mixes each row with another one of the set; needs views.
        label_name: The label column, of which a mixture has two.
    """

    def __init__(
        self,
        rows: Any,
        keys: np.ndarray,
        views: int | None = None,
        mixing: Mixing | None = None,
        label_name: str = "labels",
    ):
        self.rows, self.keys, self.views, self.label_name = rows, keys, views, label_name
        self.mixing = mixing if views is not None else None
        self._order = None if self.mixing is None else np.lexsort((keys[:, 1], keys[:, 0]))

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.keys)

    @property
    def view_numbers(self) -> Sequence[int]:
        """Of all views."""
        return (AS_STORED,) if self.views is None else range(self.views)

    def view_of(self, epoch: int) -> int:
        """The one that an epoch sees."""
        return AS_STORED if self.views is None else epoch % self.views

    def known_by(self, view: int) -> np.ndarray:
        """`(rows, 2)`: the keys of the rows in a view; a mixture is known by both members and how they are mixed."""
        if self.mixing is None:
            return self.keys
        keys = np.empty_like(self.keys)
        how = f"{view} {self.mixing!r}".encode()
        for index, partner in enumerate(self._partners(range(len(self)), view)):
            mixed = xxhash.xxh3_128_digest(self.keys[index].tobytes() + self.keys[partner].tobytes() + how)
            keys[index] = np.frombuffer(mixed, dtype=np.int64)
        return keys

    def read(self, indices: Sequence[int], view: int) -> Sequence[dict[str, Any]]:
        """Rows as a view shows them."""
        indices = [int(index) for index in indices]
        if not indices:
            return []  # a transform need not know what to make of no rows
        if view == AS_STORED:
            many = getattr(self.rows, "__getitems__", None)
            return many(indices) if callable(many) else [self.rows[index] for index in indices]
        with draws_kept():
            rows = self._augmented(indices, view)
            if self.mixing is None:
                return rows
            partners = self._augmented(list(self._partners(indices, view)), view)
            return [self._mixed(*three, view) for three in zip(indices, rows, partners, strict=True)]

    def _augmented(self, indices: Sequence[int], view: int) -> Sequence[dict[str, Any]]:
        places = [("view", *self.keys[index].tolist(), view) for index in indices]
        at_once = getattr(self.rows, "rows_at", None)  # of rows that are made a batch at a time
        if callable(at_once):
            return at_once(indices, places)
        return [self._drawn(index, place) for index, place in zip(indices, places, strict=True)]

    def _drawn(self, index: int, place: tuple) -> dict[str, Any]:
        seed_all(place)
        return self.rows[index]

    def _mixed(self, index: int, first: dict[str, Any], second: dict[str, Any], view: int) -> dict[str, Any]:
        place = xxhash.xxh3_64_intdigest(self.keys[index].tobytes() + b"mixture %d" % view)
        return self.mixing.pair(first, second, np.random.default_rng(place), self.label_name)

    def _partners(self, indices: Iterable[int], view: int) -> Iterator[int]:
        """Of the set in the order of its keys, so that the order of the rows plays no part."""
        for index in indices:
            drawn = xxhash.xxh3_64_intdigest(self.keys[index].tobytes() + b"partner %d" % view)
            yield int(self._order[drawn % len(self)])


def by_length(rows: datasets.Dataset, chosen: np.ndarray) -> np.ndarray:
    """`chosen`, texts of about equal length side by side, so that little of a batch is padding."""
    name = next((name for name in (f"teacher_{TOKENS}", TOKENS) if name in rows.column_names), None)
    if name is None or not len(chosen):
        return chosen
    lengths = _lengths(rows, name)[chosen]
    return chosen[np.argsort(-lengths, kind="stable")]  # the longest first: what does not fit fails at once


def probes(rows: Any, among: np.ndarray) -> np.ndarray:
    """Some of the rows `among`, to look at: evenly spaced ones, and the longest texts, which alone are cut off."""
    if len(among) <= 2 * PROBES:
        return among
    chosen = [among[np.linspace(0, len(among) - 1, PROBES).astype(int)]]
    names = [n for n in getattr(rows, "column_names", None) or () if _has_length(rows.features[n])]
    for name in names:
        lengths = _lengths(rows, name)[among]
        chosen.append(among[np.argpartition(-lengths, PROBES // len(names))[: max(PROBES // len(names), 1)]])
    return np.unique(np.concatenate(chosen))


def _has_length(feature: Any) -> bool:
    return isinstance(feature, datasets.List) or getattr(feature, "dtype", None) in ("string", "large_string")


def _lengths(rows: datasets.Dataset, name: str) -> np.ndarray:
    """Of the texts or lists of a column; 0 where there is none."""
    column = rows.with_format("arrow").select_columns([name])[:][name]
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    lengths = pc.binary_length(column) if is_text else pc.list_value_length(column)
    return pc.fill_null(lengths, 0).to_numpy()

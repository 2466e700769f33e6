"""Rows that are in two splits: what is trained on and tested on is a point of accuracy for nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from .rows import Rows

logger = logging.get_logger(__name__)

# Up to here all inputs are read and hashed; more would take minutes.
MOST_FILES = 20_000
MOST_BYTES = 2**31


def overlap_notes(splits: Mapping[str, Rows]) -> list[str]:
    """How many rows of validation and test are training rows too, byte by byte; labels play no part.

    Returns:
        Nothing where there are none, else one note, which is logged as a warning too.
    """
    if _is_too_much(splits):
        return ["not checked for rows in two splits, because of its size"]
    train = set(_digests(splits["train"]))
    found = {split: sum(digest in train for digest in _digests(splits[split])) for split in ("test", "validation")}
    parts = [f"{count:,} of {len(splits[split]):,} {split} rows" for split, count in found.items() if count]
    if not parts:
        return []
    note = f"{' and '.join(parts)} are also training rows"
    logger.warning(f"`load_task`: {note} (the same input, byte by byte), so scores on them flatter.")
    return [note]


def _is_too_much(splits: Mapping[str, Rows]) -> bool:
    tables = {id(rows.table): rows.table for rows in splits.values()}.values()
    if sum(table.data.nbytes for table in tables) > MOST_BYTES:
        return True
    lying_outside = [table for table in tables if _is_image(table) and _has_files(table)]
    return sum(len(table) for table in lying_outside) > MOST_FILES


def _is_image(table: datasets.Dataset) -> bool:
    return isinstance(table.features.get("image"), datasets.Image)


def _has_files(table: datasets.Dataset) -> bool:
    first = table.cast_column("image", datasets.Image(decode=False))[0]["image"]
    return first["bytes"] is None


def _digests(rows: Rows) -> Iterator[bytes]:
    table = rows.table.cast_column("image", datasets.Image(decode=False)) if _is_image(rows.table) else rows.table
    chosen = table if rows.positions is None else table.select(rows.positions)
    for batch in chosen.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield hashlib.blake2b(row_bytes(values), digest_size=16).digest()


def row_bytes(values: Any) -> bytes:
    """The content of a row and not where it was found: the same images in another folder are the same data."""
    parts = []
    for value in values:
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else _content(value["path"])
        parts.append(value if isinstance(value, bytes) else value.encode())
    return b"\0".join(parts)


def _content(path: str) -> bytes:
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise OSError("it is no file")  # a pipe would be waited for without end
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"`load_task(...)` cannot read {path!r}: {error.strerror or error}. Replace it, or leave the row out."
        ) from error

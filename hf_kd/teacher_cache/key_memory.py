"""Where the keys of tables on disk are remembered, because computing them reads every image."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets.table import ConcatenationTable, MemoryMappedTable
from safetensors.numpy import load_file, save

from .shards import partial_of

_SAID_IN_FULL = frozenset(
    {"slice", "select", "drop", "remove_column", "rename_columns", "cast", "flatten", "combine_chunks"}
    | {"replace_schema_metadata"}
)
"""What may have been done to a table since it was read; other changes bring values that lie in no file."""


def remembered_in(rows: datasets.Dataset, memory: Path) -> Path | None:
    """The file for the keys of a table: named by the table's files as they are now, and what was made of them.

    None where a part of it lies in no file, so that nothing would say that it has changed.
    """
    made = _made_of(rows.data)
    if made is None:
        return None
    digest = hashlib.blake2b(repr((rows.column_names, len(rows), made)).encode(), digest_size=16)
    if rows._indices is not None:
        digest.update(np.ascontiguousarray(rows._indices.column(0).to_numpy()).tobytes())
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            for path in _paths(rows, name):
                digest.update(_as_it_is(path).encode())
    return memory / f"{digest.hexdigest()}.safetensors"


def recall(path: Path) -> np.ndarray:
    """What `remember` wrote.

    Raises:
        OSError: There is nothing.
        SafetensorError: It is damaged.
    """
    return load_file(path)["keys"]


def remember(keys: np.ndarray, path: Path) -> None:
    """Write keys down for the next run, where that is allowed."""
    partial = partial_of(path)
    try:
        path.parent.mkdir(exist_ok=True)
        with open(partial, "wb") as file:
            file.write(save({"keys": np.ascontiguousarray(keys)}))
        os.replace(partial, path)
    except OSError:  # a full disk, or a folder that is only to be read: the next run computes them again
        partial.unlink(missing_ok=True) if os.access(path.parent, os.W_OK) else None


def _made_of(table: Any) -> Any:
    """Files and changes, in words; None where they do not say everything."""
    if isinstance(table, ConcatenationTable):
        blocks = [[_made_of(block) for block in line] for line in table.blocks]
        return None if any(block is None for line in blocks for block in line) else blocks
    if not isinstance(table, MemoryMappedTable) or any(name not in _SAID_IN_FULL for name, _, _ in table.replays):
        return None
    return _as_it_is(table.path), repr(table.replays)


def _as_it_is(path: str) -> str:
    """A file, and what changes when somebody writes to it."""
    try:
        said = os.stat(path)
    except OSError:  # a link to the web, or gone: reading it says why
        return path
    return f"{os.path.realpath(path)} {said.st_size} {said.st_mtime_ns} {said.st_ctime_ns}"


def _paths(rows: datasets.Dataset, name: str) -> list[str]:
    """The images of a column that lie in files of their own."""
    if not any(pc.any(pc.is_null(chunk.field("bytes"))).as_py() for chunk in rows.data.column(name).chunks):
        return []
    images = rows.select_columns([name]).with_format("arrow")
    return [
        image["path"].as_py()
        for batch in images.iter(batch_size=1_000)
        for image in batch.column(name)
        if image.is_valid and not image["bytes"].is_valid and image["path"].is_valid
    ]

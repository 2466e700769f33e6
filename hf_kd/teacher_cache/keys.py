"""Which row is which: a hash of the example itself, wherever it lies, and one of what the teacher is shown of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from torch import Tensor

from ..inputs import LABEL_KEYS, LABEL_WEIGHT, MIX_KEYS, ROW_WEIGHT, TEACHER_LOGITS

BATCH = 1_000
CHECKED_KEYS = 16
"""So many remembered keys are computed again whenever they are used."""

NOT_INPUT = frozenset({*LABEL_KEYS, LABEL_WEIGHT, ROW_WEIGHT, TEACHER_LOGITS, *MIX_KEYS})
"""Columns that no teacher reads, so that a row is the same row whatever they say."""


def row_keys(rows: datasets.Dataset, memory: Path | None = None) -> np.ndarray:
    """128 bits per row, over its texts or encoded images; over all its input columns where it has neither.

    Labels, the order of the rows and the name of a column play no part. An image is its file's bytes, so a file that
    is saved anew in another format is another row.

    Args:
        rows: As they are stored: transforms and formats play no part.
        memory: A folder to remember the keys of tables on disk in, because hashing reads all their images. Some are
            computed again each time, and all if one of them differs.

    Returns:
        `(rows, 2)` integers.

    Raises:
        TypeError: The rows are no `datasets.Dataset`.
        ValueError: They have no column to be known by.
    """
    if not isinstance(rows, datasets.Dataset):
        raise TypeError(
            f"`TeacherCache` got rows of type {type(rows).__name__}: it knows rows by what they hold, and reads that "
            "from a `datasets.Dataset` (or a `datasets.IterableDataset`). Make one, e.g. `Dataset.from_generator`."
        )
    bare = undecoded(rows.with_format(None).select_columns(key_columns(rows.features)))
    path = None if memory is None else _remembered(bare, memory)
    if path is not None and path.is_file():
        keys = np.load(path)
        places = np.unique(np.linspace(0, len(bare) - 1, min(CHECKED_KEYS, len(bare))).astype(int))
        if keys.shape == (len(bare), 2) and np.array_equal(keys[places], _hashed(bare.select(places))):
            return keys
    keys = _hashed(bare)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.npy")
        np.save(partial, keys)
        os.replace(partial, path)
    return keys


def key_columns(features: datasets.Features) -> list[str]:
    """The columns a row is known by: texts and images, or else every input column.

    Raises:
        ValueError: There is none.
    """
    names = [name for name in features if name not in NOT_INPUT and not name.startswith("teacher_")]
    raw = [name for name in names if _is_raw(features[name])]
    if not (raw or names):
        raise ValueError(
            f"`TeacherCache` got rows with the columns {', '.join(features) or 'none'}: none of them is an input by "
            "which a row could be known. Keep the text, the image or the model's inputs in the data set."
        )
    return raw or names


def _is_raw(feature: Any) -> bool:
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("string", "large_string")


def undecoded(rows: Any) -> Any:
    """The same rows with images as they are stored."""
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def row_key(row: Mapping[str, Any]) -> tuple[int, int]:
    """The key of a row that comes from a stream, by what it holds when it comes.

    An image that comes decoded is known by its pixels, so its key is another one than in a table.
    """
    names = [name for name in row if name not in NOT_INPUT and not name.startswith("teacher_")]
    raw = [name for name in names if _is_raw_value(row[name])]
    return _split(_key([row[name] for name in raw or names]))


def _is_raw_value(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "tobytes") and hasattr(value, "mode") or _is_encoded(value)


def _is_encoded(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"bytes", "path"}


def _hashed(rows: datasets.Dataset) -> np.ndarray:
    keys = np.empty((len(rows), 2), dtype=np.int64)
    for place, values in enumerate(_values(rows)):
        keys[place] = _split(_key(values))
    return keys


def _values(rows: datasets.Dataset) -> Iterator[Sequence[Any]]:
    """The values of each row, without making Python numbers of long arrays."""
    for batch in rows.with_format("arrow").iter(batch_size=BATCH):
        columns = []
        for column in batch.columns:
            chunk = column.combine_chunks()
            if isinstance(chunk, pa.ExtensionArray):
                chunk = chunk.storage
            columns.append(chunk)
        for index in range(len(batch)):
            yield [_value(column[index]) for column in columns]


def _value(scalar: pa.Scalar) -> Any:
    if not isinstance(scalar, (pa.ListScalar, pa.FixedSizeListScalar, pa.LargeListScalar)):
        return scalar.as_py()
    values = scalar.values
    while values is not None and pa.types.is_nested(values.type) and not pa.types.is_struct(values.type):
        values = values.flatten()
    if values is None or pa.types.is_struct(values.type) or values.null_count:
        return scalar.as_py()
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    return values.to_numpy(zero_copy_only=False) if is_number else scalar.as_py()


def _key(values: Iterable[Any]) -> bytes:
    digest = xxhash.xxh3_128()
    for value in values:
        _add(digest, value)
    return digest.digest()


def input_digest(row: Mapping[str, Any]) -> int:
    """64 bits over what a model is shown of a row, before it is padded; integers and floats by their values."""
    digest = xxhash.xxh3_64()
    for name in sorted(row):
        digest.update(name.encode())
        _add(digest, row[name])
    return int(np.int64(np.uint64(digest.intdigest())))


def _add(digest: Any, value: Any) -> None:
    """Add a value, told apart from others by its kind and length; a list and the array made of it are the same."""
    if _is_encoded(value):
        value = value["bytes"] if value["bytes"] is not None else _file(value["path"])
    if isinstance(value, str):
        kind, content = b"text", value.encode()
    elif isinstance(value, (bytes, bytearray)):
        kind, content = b"bytes", bytes(value)
    elif hasattr(value, "tobytes") and hasattr(value, "mode"):  # an image of PIL
        kind, content = f"image {value.mode} {value.size}".encode(), value.tobytes()
    elif value is None:
        kind, content = b"none", b""
    else:
        kind, content = _numbers(value)
    digest.update(kind + b" %d " % len(content))
    digest.update(content)


def _numbers(value: Any) -> tuple[bytes, bytes]:
    try:
        array = np.asarray(value.detach().cpu().float() if _is_half(value) else value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        return b"plain", json.dumps(value, sort_keys=True, default=str).encode()
    array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)
    return array.dtype.kind.encode(), np.ascontiguousarray(array).tobytes()


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _split(key: bytes) -> tuple[int, int]:
    high, low = np.frombuffer(key, dtype=">i8")
    return int(high), int(low)


def _remembered(rows: datasets.Dataset, memory: Path) -> Path | None:
    """Where the keys of a table on disk are remembered: by its files, as they are now, and the rows chosen of them."""
    files = [Path(entry["filename"]) for entry in rows.cache_files]
    if not files or not all(file.is_file() for file in files):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    digest.update(repr((rows.column_names, len(rows))).encode())
    if rows._indices is not None:
        digest.update(np.ascontiguousarray(rows._indices.column(0).to_numpy()).tobytes())
    return memory / f"{digest.hexdigest()}.npy"

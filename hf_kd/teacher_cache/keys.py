"""Which row is which: a hash of the example itself, wherever it lies, and one of what the teacher is shown of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from ..inputs import LABEL_KEYS, LABEL_WEIGHT, MIX_KEYS, ROW_WEIGHT, TEACHER_LOGITS
from .key_memory import recall, remember, remembered_in

BATCH = 1_000
CHECKED_KEYS = 16
"""So many remembered keys are computed again whenever they are used."""

NOT_INPUT = frozenset({*LABEL_KEYS, LABEL_WEIGHT, ROW_WEIGHT, TEACHER_LOGITS, *MIX_KEYS})
"""Columns that no teacher reads, so that a row is the same row whatever they say."""

RAW_TYPES = frozenset({"string", "large_string", "string_view", "binary", "large_binary", "binary_view"})
"""Of columns that hold examples as they are, before any processor."""


def row_keys(rows: datasets.Dataset, memory: Path | None = None) -> np.ndarray:
    """128 bits per row, over its texts, bytes or encoded images; over all its input columns where it has none.

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
    path = None if memory is None else remembered_in(bare, memory)
    keys = None if path is None else _recalled(bare, path)
    if keys is None:
        keys = _hashed(bare)
        if path is not None:
            remember(keys, path)
    return keys


def _recalled(rows: datasets.Dataset, path: Path) -> np.ndarray | None:
    """What a file remembers, if it is of these rows."""
    try:
        keys = recall(path)
    except (OSError, SafetensorError, KeyError):  # there is none, or half of one: the rows say their keys themselves
        return None
    places = np.unique(np.linspace(0, len(rows) - 1, min(CHECKED_KEYS, len(rows))).astype(int))
    is_theirs = keys.shape == (len(rows), 2) and np.array_equal(keys[places], _hashed(rows.select(places)))
    return keys if is_theirs else None


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
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return _is_raw(feature.feature)
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in RAW_TYPES


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
    if any(_is_raw_value(row[name]) for name in names):  # a text that is missing keeps its place in a pair
        names = [name for name in names if row[name] is None or _is_raw_value(row[name])]
    return _split(_key([row[name] for name in names]))


def _is_raw_value(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and _is_raw_value(value[0])
    return isinstance(value, (str, bytes)) or _is_picture(value) or _is_encoded(value)


def _is_picture(value: Any) -> bool:
    return hasattr(value, "tobytes") and hasattr(value, "mode")  # of PIL


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
    shape = [] if values is None else [len(values)]
    while values is not None and _is_list(values.type) and len(values) and not values.null_count:
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if (lengths != lengths[0]).any():
            break
        shape.append(int(lengths[0]))
        values = values.flatten()
    if values is None or values.null_count:
        return scalar.as_py()
    is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
    return values.to_numpy(zero_copy_only=False).reshape(shape) if is_number else scalar.as_py()


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


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
        kind, content = b"text", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (bytes, bytearray)):
        kind, content = b"bytes", bytes(value)
    elif _is_picture(value):
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
    kind = array.dtype.kind if array.size else "empty"  # nothing is of no type
    shape = array.shape if array.size else ()
    return f"{kind} {shape}".encode(), np.ascontiguousarray(array).tobytes()


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _split(key: bytes) -> tuple[int, int]:
    high, low = np.frombuffer(key, dtype=">i8")
    return int(high), int(low)

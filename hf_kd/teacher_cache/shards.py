"""The files: each holds some rows, is written whole or not at all, and is named by its own checksum."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

SUFFIX = ".safetensors"
KEYS, DIGESTS = "keys", "inputs"
NAME_DIGITS = 32
ATTEMPTS = 100
STALE_SECONDS = 3_600
"""An unfinished file that nobody has touched for so long was left by a process that is gone."""


@dataclass
class Shard:
    """One file, mapped into memory: nothing is read before it is asked for.

    Args:
        path: Where it lies.
        view: Which view of the rows was shown to the teacher.
        tensors: `keys (rows, 2)`, `inputs (rows,)`, and what was answered.
        facts: What was said of it when it was written: `rows` and the errors of `encoding.rounding_error`.
        size: Its bytes.
    """

    path: Path
    view: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    size: int = 0

    def __len__(self) -> int:
        """How many rows it holds."""
        return len(self.tensors[KEYS])


def as_numbers(tensor: Tensor) -> np.ndarray:
    """The same memory for numpy, which picks few rows faster; bfloat16, which it lacks, as its bits."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def shard_paths(folder: Path) -> list[Path]:
    """The finished files of a cache, in an order that does not depend on when they were written."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if len(path.stem) == NAME_DIGITS)


def open_shard(path: Path) -> Shard:
    """Map a file.

    Raises:
        FileNotFoundError: It is gone: another process joined it with others.
        ValueError: It is damaged.
    """
    try:
        size = path.stat().st_size
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        facts = json.loads(said["facts"])
        return Shard(path, int(facts.pop("view")), tensors, facts, size)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"`TeacherCache({str(path.parent)!r})`: {path.name} cannot be read ({error}), so it was damaged after it "
            "was written. Remove this file: its rows are then asked again, and no others."
        ) from error


def write_shard(folder: Path, view: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write rows: the file appears under its name when it is whole and on the disk, not before."""
    said = {"facts": json.dumps({**facts, "view": view}, sort_keys=True)}  # one entry: several come in any order
    content = save({name: value.contiguous() for name, value in tensors.items()}, metadata=said)
    path = folder / f"{checksum_of(content)}{SUFFIX}"
    partial = partial_of(path)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise unwritable(folder, error) from error
    return path


def partial_of(path: Path) -> Path:
    """Where a file is written before it is whole: no other process, on no other machine, has this name."""
    return path.with_name(f".{path.stem}.{uuid4().hex}.partial")


def unwritable(folder: Path, error: OSError) -> ValueError:
    """What to say where nothing can be written."""
    return ValueError(
        f"`TeacherCache({str(folder)!r})`: answers cannot be written there ({error.strerror or error}). What was "
        "written before is kept. Make room or ask for the right to write, or name another folder, and start again."
    )


def checksum_of(content: bytes) -> str:
    """The name of a file that holds this."""
    return hashlib.sha256(content).hexdigest()[:NAME_DIGITS]


def is_whole(path: Path) -> bool:
    """Whether a file holds what its name says; reads all of it.

    Raises:
        FileNotFoundError: It is gone.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()[:NAME_DIGITS] == path.stem


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for path in folder.glob(".*.partial"):
        with suppress(FileNotFoundError):  # finished, or removed by another process
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def mapped(folder: Path) -> list[Shard]:
    """All files of a cache, mapped, while other processes may be joining some of them.

    Raises:
        ValueError: One is damaged, or they do not come to rest.
    """
    for _ in range(ATTEMPTS):
        paths = shard_paths(folder)
        with suppress(FileNotFoundError):
            shards = [open_shard(path) for path in paths]
            if shard_paths(folder) == paths:  # else one may have gone before, and its successor come after, we looked
                return shards
    raise ValueError(
        f"`TeacherCache({str(folder)!r})`: its files change faster than they can be read. Let the processes that "
        "write there finish, and start again."
    )


def joined_facts(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What is true of several groups of rows together: the largest of maxima, the sum of everything else."""
    joined: dict[str, Any] = {}
    for facts in parts:
        for name, value in facts.items():
            is_maximum = name == "rounding" or name.startswith("max_")
            joined[name] = max(joined.get(name, value), value) if is_maximum else joined.get(name, 0) + value
    return joined


def merge(shards: list[Shard], folder: Path) -> None:
    """Make one file of several of the same view; killed half-way, rows are there twice, and never missing."""
    tensors = {name: torch.cat([shard.tensors[name] for shard in shards]) for name in shards[0].tensors}
    kept = write_shard(folder, shards[0].view, tensors, joined_facts(shard.facts for shard in shards))
    for shard in shards:
        if shard.path != kept:
            shard.path.unlink(missing_ok=True)

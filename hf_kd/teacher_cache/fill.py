"""Asking the teacher about the rows that a cache lacks, on any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..inputs import teacher_inputs
from ..seeding import draws_kept, seeded
from .cache import AS_STORED, SHARD_BYTES, TeacherCache
from .keys import input_digest, row_key
from .rows import KeyedRows, by_length

FLUSH_SECONDS = 30.0
"""So much work is lost at most when a process is killed."""

LOOKED_AT = 32
"""Rows that are read twice, to see whether they are the same."""

PROBES = 8
"""Rows whose inputs are compared with what the teacher was shown."""

Answer = tuple[Tensor, Tensor | None]


@dataclass
class Asking:
    """How a teacher is asked.

    Args:
        ask: A batch to `(rows, classes)` logits of its own classes and, where they are stored, `(rows, width)`
            features.
        collate: Rows to a batch.
        columns: What the teacher reads of them; None for everything.
        accelerator: Of the process.
        batch_size: Rows per forward.
        num_workers: Processes that read rows.
        on_progress: Told what is being asked, how many rows are done on all processes together, and of how many.
    """

    ask: Callable[[dict[str, Any]], Answer]
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: Sequence[str] | None
    accelerator: Accelerator
    batch_size: int = 64
    num_workers: int = 0
    on_progress: Callable[[str, int, int], None] | None = None


def digest_of_row(row: Mapping[str, Any], columns: Sequence[str] | None) -> int:
    """Of what a teacher that reads `columns` is shown of a row."""
    return input_digest(teacher_inputs(row, columns))


def fill(cache: TeacherCache, rows: KeyedRows, asking: Asking, name: str = "rows") -> int:
    """Ask about every row, in every view, that the cache does not hold. On several processes each asks its part.

    Args:
        cache: Claimed for this teacher.
        rows: With the columns that the teacher reads.
        asking: The teacher.
        name: What the rows are called.

    Returns:
        How many answers were added.

    Raises:
        ValueError: The rows change from reading to reading and there are no views, or not even seeded views are the
            same twice; or the teacher's answers are unusable.
    """
    check_repeatable(rows)
    accelerator, added = asking.accelerator, 0
    known = {view: rows.known_by(view) for view in rows.view_numbers}
    missing = {view: _missing(cache, keys, view) for view, keys in known.items()}
    total = sum(map(len, missing.values()))
    accelerator.wait_for_everyone()  # nobody writes before everybody knows what is missing
    if not total:
        return 0
    with draws_kept():
        for view, chosen in missing.items():
            own = by_length(rows.rows, chosen)[accelerator.process_index :: accelerator.num_processes]
            writer = _Writer(cache, view)
            for batch, digests, places in _loader(rows, own, view, asking):
                answer = _checked(asking.ask(batch), len(places), cache)
                writer.add(known[view][places], digests, *answer)
                added += len(places)
                if asking.on_progress is not None:
                    asking.on_progress(f"teacher: {name}", min(added * accelerator.num_processes, total), total)
            writer.flush()
    finish(cache, accelerator)
    return total


def fill_stream(cache: TeacherCache, rows: Iterable[dict[str, Any]], asking: Asking, name: str = "rows") -> int:
    """The same for rows that come one by one; every process reads all of them, and asks about every so many-th batch.

    Raises:
        ValueError: The cache has views, which a stream cannot repeat.
    """
    if cache.views is not None:
        raise ValueError(
            "`TeacherCache(views=...)` got a stream: its rows are changed as they pass, and the same view of one "
            "cannot be read again. Leave views and the augmentation out, or do not stream."
        )
    accelerator, added, seen = asking.accelerator, 0, set()
    accelerator.wait_for_everyone()
    writer = _Writer(cache, AS_STORED)
    with draws_kept():
        for number, part in enumerate(_parts(rows, asking.batch_size)):
            keys = np.array([row_key(row) for row in part], dtype=np.int64).reshape(-1, 2)
            new = []
            for i in np.flatnonzero(cache.find(keys) < 0):
                if tuple(keys[i]) not in seen:
                    seen.add(tuple(keys[i]))
                    new.append(int(i))
            if not new or number % accelerator.num_processes != accelerator.process_index:
                continue
            chosen = [part[i] for i in new]
            digests = np.array([digest_of_row(row, asking.columns) for row in chosen], dtype=np.int64)
            writer.add(keys[new], digests, *_checked(asking.ask(asking.collate(chosen)), len(new), cache))
            added += len(new)
            if asking.on_progress is not None:
                asking.on_progress(f"teacher: {name}", added * accelerator.num_processes, 0)
    writer.flush()
    finish(cache, accelerator)
    return added


def finish(cache: TeacherCache, accelerator: Accelerator) -> None:
    """After all have written: join the files, and let everybody see them."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        cache.open()
        cache.tidy()
    accelerator.wait_for_everyone()
    cache.open()


def check_repeatable(rows: KeyedRows) -> None:
    """Refuse rows that are others each time they are read.

    Raises:
        ValueError: They are, and nothing says which view of them is meant.
    """
    view = rows.view_numbers[0]
    for index in np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int) if len(rows) else ():
        readings = []
        for attempt in range(2):
            with seeded(("reading", attempt)):
                readings.append(rows.read([index], view)[0])
        changed = [name for name in readings[0] if not _is_same(readings[0][name], readings[1][name])]
        if changed and view == AS_STORED:
            raise ValueError(
                f"`TeacherCache`: the column `{changed[0]}` is another one each time a row is read (random "
                "augmentation), so that what the teacher answers now would belong to views that the student never "
                "sees. Set `views`, e.g. `TeacherCache(folder, views=8)`, for so many repeatable views of each row, "
                "or load the data without augmentation."
            )
        if changed:
            raise ValueError(
                f"`TeacherCache(views={rows.views})`: the column `{changed[0]}` is another one each time the same "
                "view is read, so it is drawn from a generator that the data set keeps for itself. Draw from torch's, "
                "numpy's or Python's own, or let the teacher run during training."
            )


def check_inputs(cache: TeacherCache, rows: KeyedRows, columns: Sequence[str] | None, name: str = "rows") -> None:
    """Compare what the teacher was shown of some rows with what they give now.

    Raises:
        ValueError: They differ.
    """
    view = rows.view_numbers[0]
    places = cache.find(rows.known_by(view), view)
    known = np.flatnonzero(places >= 0)
    probes = known[np.linspace(0, len(known) - 1, min(PROBES, len(known))).astype(int)] if len(known) else known
    shown = cache.digests(places[probes]) if len(probes) else ()
    now = [digest_of_row(row, columns) for row in rows.read(probes, view)]
    differing = [int(i) for i, then, digest in zip(probes, shown, now, strict=True) if then != digest]
    if differing:
        made = (cache.manifest or {}).get("versions", {})
        raise ValueError(
            f"`TeacherCache({str(cache.folder)!r})`: row {differing[0]} of the {name} is not shown to the teacher as "
            f"it was when the cache was filled ({len(differing)} of {len(probes)} rows looked at): another processor, "
            f"transform, augmentation or text length, or other versions (then: {_words(made)}). The stored answers "
            "belong to those inputs. Name another folder, which is then filled, or restore what makes the inputs. If "
            "the rows hold the inputs of the student alone, say so: `TeacherCache(check_inputs=False)`."
        )


def _words(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"


def _missing(cache: TeacherCache, keys: np.ndarray, view: int) -> np.ndarray:
    """Rows without an answer, equal ones once."""
    chosen = np.flatnonzero(cache.find(keys, view) < 0)
    _, first = np.unique(keys[chosen], axis=0, return_index=True)
    return chosen[np.sort(first)]


class _Wanted(Dataset):
    """Some rows in one view."""

    def __init__(self, rows: KeyedRows, chosen: np.ndarray, view: int):
        self.rows, self.chosen, self.view = rows, chosen, view

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, indices: list[int]) -> tuple[list[dict[str, Any]], np.ndarray]:
        places = self.chosen[indices]
        return self.rows.read(places, self.view), places


def _loader(
    rows: KeyedRows, chosen: np.ndarray, view: int, asking: Asking
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    return DataLoader(
        _Wanted(rows, chosen, view),
        batch_size=asking.batch_size,
        num_workers=asking.num_workers,
        collate_fn=_Collated(asking.collate, asking.columns),
        generator=torch.Generator().manual_seed(0),  # starting a loader draws a number
    )


@dataclass
class _Collated:
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    columns: Sequence[str] | None

    def __call__(self, wanted: tuple[list[dict[str, Any]], np.ndarray]) -> tuple[dict[str, Any], np.ndarray, Any]:
        rows, places = wanted
        digests = np.array([digest_of_row(row, self.columns) for row in rows], dtype=np.int64)
        return self.collate(rows), digests, places


@dataclass
class _Writer:
    """Collects answers and writes them in files of a good size, but not too seldom."""

    cache: TeacherCache
    view: int
    parts: list[tuple[np.ndarray, np.ndarray, Tensor, Tensor | None]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, keys: np.ndarray, digests: np.ndarray, logits: Tensor, features: Tensor | None) -> None:
        self.parts.append((keys, digests, logits, features))
        size = sum(len(part[0]) for part in self.parts) * self.cache.encoding.bytes_per_row
        if size >= SHARD_BYTES or time.monotonic() - self.since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.parts:
            keys, digests, logits, features = zip(*self.parts, strict=True)
            joined = None if features[0] is None else torch.cat(features)
            self.cache.write(
                np.concatenate(keys), np.concatenate(digests), torch.cat(logits), self.view, features=joined
            )
        self.parts, self.since = [], time.monotonic()


def _checked(answer: Answer, count: int, cache: TeacherCache) -> Answer:
    logits, features = answer
    logits = logits.detach().float().cpu()
    if logits.shape != (count, cache.num_classes):
        raise ValueError(
            f"`TeacherCache`: the teacher answered {count} rows with logits of shape {tuple(logits.shape)}, and has "
            f"{cache.num_classes} classes. One row of numbers per example is stored."
        )
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "`TeacherCache`: the teacher gave NaN or infinite logits, from which nothing can be learned. Check its "
            "inputs and precision (`dtype=float32`)."
        )
    return logits, None if features is None else features.detach().float().cpu()


def _parts(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, (Tensor, np.ndarray)):
        return bool((torch.as_tensor(first) == torch.as_tensor(second)).all())
    return bool(first == second)

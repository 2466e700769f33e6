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
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..inputs import TEACHER_LOGITS, teacher_inputs
from ..seeding import draws_kept, seeded
from .cache import AS_STORED, SHARD_BYTES, TeacherCache
from .keys import input_digest, row_key
from .rows import KeyedRows, by_length, probes

FLUSH_SECONDS = 30.0
"""So much work is lost at most when a process is killed."""

LOOKED_AT = 32
"""Rows that are read twice, to see whether they are the same."""

EQUAL_ROWS = 512
"""Rows that are looked at because others have the same key."""

UNLIKE = 0.1
"""Of the spread of logits: far above what another precision or batch changes."""

STREAMED = 256
"""Rows of a stream that are looked at before training."""

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
    missing = agreed({view: _missing(cache, keys, view) for view, keys in known.items()}, accelerator)
    total = sum(map(len, missing.values()))
    if not total:
        cache.open()  # another process may have looked later, when more was there
        return 0
    check_equal_rows(rows, asking.columns, name)
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


def agreed(value: Any, accelerator: Any) -> Any:
    """What the main process says: others write at any time, and processes that look one after another see more."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def fill_stream(cache: TeacherCache, rows: Iterable[dict[str, Any]], asking: Asking, name: str = "rows") -> int:
    """The same for rows that come one by one; every process reads all of them, and asks about every so many-th batch.

    Raises:
        ValueError: The cache has views, which a stream cannot repeat; or the rows are shown otherwise than they were,
            or change from reading to reading.
    """
    if cache.views is not None:
        raise ValueError(
            "`TeacherCache(views=...)` got a stream: its rows are changed as they pass, and the same view of one "
            "cannot be read again. Leave views and the augmentation out, or do not stream."
        )
    check_streamed_twice(rows, asking.columns, name)
    accelerator, added = asking.accelerator, 0
    seen: dict[tuple[int, int], int] = {}
    accelerator.wait_for_everyone()
    writer = _Writer(cache, AS_STORED)
    with draws_kept():
        for number, part in enumerate(_parts(rows, asking.batch_size)):
            keys, digests = _read_off(part, asking.columns)
            new = _unanswered(cache, keys, digests, seen, name)
            if not new or number % accelerator.num_processes != accelerator.process_index:
                continue
            answer = _checked(asking.ask(asking.collate([part[i] for i in new])), len(new), cache)
            writer.add(keys[new], digests[new], *answer)
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


def _read_off(part: list[dict[str, Any]], columns: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """The keys of rows of a stream, and hashes of what a teacher is shown of them."""
    keys = np.array([row_key(row) for row in part], dtype=np.int64).reshape(-1, 2)
    return keys, np.array([digest_of_row(row, columns) for row in part], dtype=np.int64)


def _unanswered(
    cache: TeacherCache, keys: np.ndarray, digests: np.ndarray, seen: dict[tuple[int, int], int], name: str
) -> list[int]:
    """Rows that nobody was asked about, equal ones once; `seen` are the others of this stream, and becomes more."""
    places = cache.find(keys)
    known = np.flatnonzero(places >= 0)
    if cache.check_inputs and len(known):
        _refuse_differing(cache, np.flatnonzero(cache.digests(places[known]) != digests[known]), len(known), name)
    new = []
    for index in np.flatnonzero(places < 0).tolist():
        key, digest = tuple(keys[index].tolist()), int(digests[index])
        if key not in seen:
            seen[key] = digest
            new.append(index)
        elif seen[key] != digest:
            raise ValueError(_UNLIKE.format(which=f"two of the {name}"))
    return new


def check_stream(
    cache: TeacherCache, rows: Iterable[dict[str, Any]], columns: Sequence[str] | None, name: str
) -> None:
    """As `check_inputs`, for the first rows of a stream.

    Raises:
        ValueError: They are shown to the teacher otherwise than they were.
    """
    with draws_kept():
        for part in _parts(islice(rows, STREAMED), STREAMED):
            _unanswered(cache, *_read_off(part, columns), {}, name)


def check_streamed_twice(rows: Iterable[dict[str, Any]], columns: Sequence[str] | None, name: str) -> None:
    """Refuse a stream whose rows are others each time they pass.

    Raises:
        ValueError: They are.
    """
    readings = []
    for attempt in range(2):
        with seeded(("reading", attempt)):
            keys, digests = _read_off(list(islice(rows, LOOKED_AT)), columns)
            readings.append(dict(zip(map(tuple, keys.tolist()), digests.tolist(), strict=True)))
    if any(readings[1].get(key, digest) != digest for key, digest in readings[0].items()):
        raise ValueError(
            f"`TeacherCache`: {name} of the stream are others each time they pass (random augmentation), so that what "
            "the teacher answers now would belong to views that the student never sees. Leave the augmentation out, "
            "or do not stream and set `views`."
        )


def check_equal_rows(rows: KeyedRows, columns: Sequence[str] | None, name: str = "rows") -> None:
    """Refuse rows that have one key, and so one answer, and are shown to the teacher otherwise.

    Raises:
        ValueError: Their texts or images do not say which row is which.
    """
    order = np.lexsort((rows.keys[:, 1], rows.keys[:, 0]))
    again = np.flatnonzero((rows.keys[order[1:]] == rows.keys[order[:-1]]).all(1))
    again = again[np.linspace(0, len(again) - 1, min(EQUAL_ROWS, len(again))).astype(int)] if len(again) else again
    view = rows.view_numbers[0]
    for one, other in zip(order[again].tolist(), order[again + 1].tolist(), strict=True):
        first, second = (digest_of_row(row, columns) for row in rows.read([one, other], view))
        if first != second:
            raise ValueError(_UNLIKE.format(which=f"rows {min(one, other)} and {max(one, other)} of the {name}"))


_UNLIKE = (
    "`TeacherCache`: {which} have the same texts or images, by which a row is known, and are not shown to the teacher "
    "alike, so that one of them would get the answer to the other. Remove text columns that are no input (names of "
    "labels, sources, languages): without any, rows are known by the inputs of the model. Or keep the text itself."
)


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
        shown = [{name: input_digest({name: row[name]}) for name in row} for row in readings]
        changed = [name for name in shown[0] if shown[0][name] != shown[1].get(name)]
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
    chosen = probes(rows.rows, known)
    shown = cache.digests(places[chosen]) if len(chosen) else ()
    now = [digest_of_row(row, columns) for row in rows.read(chosen, view)]
    differing = [int(i) for i, then, digest in zip(chosen, shown, now, strict=True) if then != digest]
    _refuse_differing(cache, differing, len(chosen), name)


def _refuse_differing(cache: TeacherCache, differing: Sequence[int], looked_at: int, name: str) -> None:
    if len(differing):
        made = (cache.manifest or {}).get("versions", {})
        raise ValueError(
            f"`TeacherCache({str(cache.folder)!r})`: row {differing[0]} of the {name} is not shown to the teacher as "
            f"it was when the cache was filled ({len(differing)} of {looked_at} rows looked at): another processor, "
            f"transform, augmentation or text length, or other versions (then: {_words(made)}). The stored answers "
            "belong to those inputs. Name another folder, which is then filled, or restore what makes the inputs. If "
            "the rows hold the inputs of the student alone, say so: `TeacherCache(check_inputs=False)`."
        )


def check_answers(cache: TeacherCache, rows: KeyedRows, asking: Asking) -> None:
    """Ask again about some rows; for a teacher that is a function, which has no weights to be known by.

    Raises:
        ValueError: It answers otherwise than it did, by more than `UNLIKE` of the spread of its logits.
    """
    view = rows.view_numbers[0]
    known = rows.known_by(view)
    places = cache.find(known, view)
    chosen = probes(rows.rows, np.flatnonzero(places >= 0))[: asking.batch_size]
    if not len(chosen):
        return
    with draws_kept():
        logits, _ = _checked(asking.ask(asking.collate(rows.read(chosen, view))), len(chosen), cache)
    then, encoding = cache.read(places[chosen])[TEACHER_LOGITS], cache.encoding
    now = encoding.decode(encoding.encode(logits))
    differing = (now - then).abs().amax(-1) > UNLIKE * then.std(correction=0).clamp(min=1e-3)
    if bool(differing.any()):
        raise ValueError(
            f"`TeacherCache({str(cache.folder)!r})`: the teacher, a function, answers "
            f"{int(differing.sum())} of {len(chosen)} rows otherwise than when the cache was filled. It has "
            "no weights to be known by: this is another one, or not the same twice. Name another folder, which is "
            "then filled, or leave the cache out."
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
        each = self.cache.encoding.bytes_per_row + (0 if features is None else features[0].nbytes)
        size = sum(len(part[0]) for part in self.parts) * each
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
    given = [logits] if features is None else [logits, features]
    if not all(bool(torch.isfinite(part).all()) for part in given):
        raise ValueError(
            f"`TeacherCache`: the teacher gave NaN or infinite logits{'' if features is None else ' or features'}, "
            "from which nothing can be learned. Check its inputs and precision (`dtype=float32`)."
        )
    return logits, None if features is None else features.detach().float().cpu()


def _parts(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(rows)
    while part := list(islice(iterator, size)):
        yield part

"""`TeacherCache`: what a teacher answered to which rows, in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..functional import SINGLE_LABEL
from ..inputs import TEACHER_LOGITS
from .encoding import Dense, Encoding, TopK, encoding_of, rounded, rounding_error
from .identity import check_settings, refuse_other
from .shards import (
    DIGESTS,
    KEYS,
    Shard,
    as_numbers,
    checksum_of,
    is_whole,
    joined_facts,
    mapped,
    merge,
    open_shard,
    partial_of,
    remove_leftovers,
    shard_paths,
    unwritable,
    write_shard,
)

FORMAT = 2
MANIFEST = "cache.json"
CLASSIFIER = "classifier.safetensors"
KEY_MEMORY = "keys"
FEATURES = "features"
TEACHER_FEATURES = "teacher_features"
AS_STORED = -1
"""The view of rows that are not changed at random."""

SHARD_BYTES = 64 * 2**20


class TeacherCache:
    r"""A teacher's answers on disk, so that it is asked once, whatever is trained from them.

    Logits are stored, not probabilities, and of the teacher's own classes: any temperature, any method and any label
    map reads the same cache. A row is known by a 128-bit hash of its text or encoded image, never by its place, and
    beside each answer lies a hash of what the teacher was shown; `cache.json` says who answered. Whatever does not
    match is refused. Files are added and never changed, each whole or not there, so that several processes may write
    at once, a killed one loses its last seconds, and rows may be added later.

    Args:
        folder: Where it lies, or will.
        dtype: How logits are rounded: `float32` (the default: not at all), `bfloat16` or `float16`. A cache that is
            there keeps its own.
        top_k: Keep the so many largest logits of each row and the mass of the others, for thousands of classes; see
            `TopK` for what is lost. None keeps all.
        views: For rows that are changed at random: so many seeded views of each, of which epoch \(e\) sees number
            \(e \bmod \mathrm{views}\). None for rows that are always the same. The seed is not the run's, so that runs
            share them.
        check_inputs: Compare what the teacher was shown with what the rows give now, on some of them. Set it to False
            only where the rows hold the student's inputs and none of the teacher's.

    Raises:
        ValueError: A setting cannot be, or is another than that of the cache that is there; or a file is damaged.
    """

    def __init__(
        self,
        folder: str | PathLike,
        *,
        dtype: str | None = None,
        top_k: int | None = None,
        views: int | None = None,
        check_inputs: bool = True,
    ):
        self.folder = Path(folder)
        check_settings(dtype=dtype, top_k=top_k, views=views)
        self.asked = {"dtype": dtype, "top_k": top_k}
        self.views, self.check_inputs = views, check_inputs
        self.manifest: dict[str, Any] | None = None
        self.shards: list[Shard] = []
        self._starts = np.zeros(0, dtype=np.int64)
        self._index: dict[int, _Index] = {}
        self.generation = 0
        self.open()

    # ---- What is there

    def open(self) -> None:
        """Look again at what the folder holds."""
        path = self.folder / MANIFEST
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`TeacherCache({str(self.folder)!r})`: this is a file. Name a folder.")
        if not path.is_file():
            strangers = [] if not self.folder.is_dir() else sorted(filter(_is_strange, os.listdir(self.folder)))
            if strangers:
                raise ValueError(
                    f"`TeacherCache({str(self.folder)!r})`: the folder holds {', '.join(strangers[:3])} and no "
                    f"{MANIFEST}, so it is no cache. Name another one, or empty it."
                )
            return
        self.manifest = _read_manifest(path)
        asked = {"encoding": {name: value for name, value in self.asked.items() if value is not None}}
        refuse_other(self.folder, self.manifest, asked)
        self._map(mapped(self.folder))

    def _map(self, shards: list[Shard]) -> None:
        self.generation += 1  # places of before mean nothing any more
        self.shards = shards
        self._starts = np.cumsum([0, *map(len, shards)])[:-1]
        self._index = {}
        for view in {shard.view for shard in shards}:
            parts = [(start, s) for start, s in zip(self._starts, shards, strict=True) if s.view == view]
            keys = np.concatenate([s.tensors[KEYS].numpy() for _, s in parts])
            places = np.concatenate([np.arange(start, start + len(s)) for start, s in parts])
            self._index[view] = _Index.of(keys, places)

    def __len__(self) -> int:
        """How many answers it holds, each row and view counted once."""
        return sum(map(len, self._index.values()))

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped, for data loader workers that are not forked."""
        return {**self.__dict__, "shards": [shard.path for shard in self.shards]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the same files again, in the same order; what is there now, where some were joined since."""
        self.__dict__.update(state)
        try:
            self.shards = [open_shard(path) for path in self.shards]
        except FileNotFoundError:
            self.open()

    @property
    def encoding(self) -> Encoding:
        """How its logits are written."""
        said = self._said("encoding")
        return encoding_of(said["dtype"], len(self._said("classes")), said["top_k"])

    def words(self) -> str:
        """How answers come back: as they were given, or what is left of them."""
        said = {**self.asked, "dtype": self.asked["dtype"] or "float32"}
        said = said if self.manifest is None else self.manifest["encoding"]
        dtype, top_k = said["dtype"], said["top_k"]
        if self.manifest is not None and isinstance(self.encoding, Dense):
            top_k = None
        return "as given" if (dtype, top_k) == ("float32", None) else f"in {dtype}, top_k {top_k}"

    @property
    def num_classes(self) -> int:
        """How many classes the teacher has."""
        return len(self._said("classes"))

    @property
    def num_features(self) -> int | None:
        """The width of the pooled features; None where they are not stored."""
        return None if self.manifest is None else self.manifest.get("features")

    def _said(self, name: str) -> Any:
        if self.manifest is None:
            raise ValueError(
                f"`TeacherCache({str(self.folder)!r})` is empty: nobody was asked yet. Give the trainer the teacher "
                "too, or fill it with `hf-kd cache CONFIG`."
            )
        return self.manifest[name]

    def classifier_weight(self) -> Tensor:
        """The weight of the teacher's last layer, `(classes, features)`, as stored with features.

        Raises:
            ValueError: It is gone, or damaged.
        """
        if not self._has_classifier():
            raise ValueError(
                f"`TeacherCache({str(self.folder)!r})`: {CLASSIFIER} does not hold the last layer of the teacher that "
                "answered. Remove the folder and fill it anew."
            )
        return load_file(self.folder / CLASSIFIER)["weight"]

    def _has_classifier(self) -> bool:
        path, said = self.folder / CLASSIFIER, self._said("teacher").get("classifier")
        return path.is_file() and said in (None, checksum_of(path.read_bytes()))

    # ---- Reading

    def find(self, keys: np.ndarray, view: int = AS_STORED) -> np.ndarray:
        """Where the answers to rows lie: `(rows,)`, -1 where there is none. It holds until the next `open`."""
        index = self._index.get(view)
        return np.full(len(keys), -1, dtype=np.int64) if index is None else index.find(keys)

    def read(self, places: np.ndarray, keys: np.ndarray | None = None) -> dict[str, Tensor]:
        """What was answered at places that `find` gave: `teacher_logits (rows, classes)` in float32.

        With features also `teacher_features (rows, width)`.

        Args:
            places: From `find`.
            keys: Of the rows that are meant; they are compared with what stands beside the answers.

        Raises:
            ValueError: There is no answer to a row.
            RuntimeError: The answers at these places are to other rows.
        """
        parts = self._gather(places, self._stored_names if keys is None else [KEYS, *self._stored_names])
        if keys is not None and not np.array_equal(parts[KEYS].numpy(), keys):
            raise RuntimeError(
                f"`TeacherCache({str(self.folder)!r})`: the answers at these places are to other rows. The cache was "
                "opened again since they were found: find them again."
            )
        answers = {TEACHER_LOGITS: self.encoding.decode(parts)}
        if FEATURES in parts:
            answers[TEACHER_FEATURES] = parts[FEATURES].float()
        return answers

    def digests(self, places: np.ndarray) -> np.ndarray:
        """The hashes of what the teacher was shown."""
        return self._gather(places, [DIGESTS])[DIGESTS].numpy()

    @property
    def _stored_names(self) -> list[str]:
        return [name for name in self.shards[0].tensors if name not in (KEYS, DIGESTS)] if self.shards else []

    def _gather(self, places: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
        places = np.asarray(places, dtype=np.int64)
        if len(places) and places.min() < 0:
            raise ValueError(
                f"`TeacherCache({str(self.folder)!r})` holds no answer for {int((places < 0).sum())} of "
                f"{len(places)} rows: they were added or changed since it was filled. Fill it again with "
                "`hf-kd cache CONFIG`; only those are asked."
            )
        if len(self.shards) == 1:
            chosen = torch.from_numpy(places)
            return {name: self.shards[0].tensors[name].index_select(0, chosen) for name in names}
        owners = np.searchsorted(self._starts, places, side="right") - 1
        order = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[order], np.arange(len(self.shards) + 1))
        wanted = np.flatnonzero(np.diff(bounds))
        shards = [self.shards[number] for number in wanted] or self.shards[:1]
        gathered = {name: t.new_empty((len(places), *t.shape[1:])) for name, t in shards[0].tensors.items()}
        arrays = {name: as_numbers(gathered[name]) for name in names}
        for number in wanted:
            rows = order[bounds[number] : bounds[number + 1]]
            inside = places[rows] - self._starts[number]
            for name in names:
                arrays[name][rows] = np.take(as_numbers(self.shards[number].tensors[name]), inside, axis=0)
        return {name: gathered[name] for name in names}

    # ---- Writing

    def claim(self, facts: Mapping[str, Any], classifier: Tensor | None = None) -> None:
        """Say whose answers these are, or refuse another's; the first process to come writes it down.

        Args:
            facts: `teacher`, `classes`, `problem_type`, `features`, `processing`, `versions`: plain values.
            classifier: The weight of the teacher's last layer, where features are stored.

        Raises:
            ValueError: The cache is of another teacher, or its rows were made otherwise.
        """
        if self.asked["top_k"] is not None and facts["problem_type"] != SINGLE_LABEL:
            raise ValueError(
                f"`TeacherCache(top_k={self.asked['top_k']})` keeps the largest of the logits that make one "
                f"distribution, and this teacher's head is for {facts['problem_type']}. Leave top_k out."
            )
        if self.manifest is None:
            settings = {"dtype": self.asked["dtype"] or "float32", "top_k": self.asked["top_k"]}
            manifest = {"format": FORMAT, **facts, "encoding": settings}
            last = None if classifier is None else save({"weight": classifier.detach().cpu().contiguous()})
            if last is not None:
                manifest["teacher"] = {**facts["teacher"], "classifier": checksum_of(last)}
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if last is not None:
                    _publish(self.folder / CLASSIFIER, last, or_replace=True)
                content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
                _publish(self.folder / MANIFEST, content.encode())
            except OSError as error:
                raise unwritable(self.folder, error) from error
            self.manifest = _read_manifest(self.folder / MANIFEST)
        refuse_other(self.folder, self.manifest, facts)

    def write(
        self, keys: np.ndarray, digests: np.ndarray, logits: Tensor, view: int, features: Tensor | None = None
    ) -> None:
        """Add answers to rows; `open` finds them.

        Raises:
            ValueError: A number is too large for the cache's precision, or the folder cannot be written.
        """
        encoding = self.encoding
        parts = encoding.encode(logits)
        facts = {"rows": len(logits), **rounding_error(logits, parts, encoding)}
        tensors = {KEYS: torch.from_numpy(keys), DIGESTS: torch.from_numpy(digests), **parts}
        if features is not None:
            tensors[FEATURES] = rounded(features, self._said("encoding")["dtype"], "feature")
        write_shard(self.folder, view, tensors, facts)

    def tidy(self) -> None:
        """Join small files into larger ones and remove what killed processes left; for one process, at the end."""
        remove_leftovers(self.folder)
        remove_leftovers(self.folder / KEY_MEMORY)
        for view in self._index:
            small = [shard for shard in self.shards if shard.view == view and _may_be_joined(shard)]
            waiting: list[Shard] = []
            room = SHARD_BYTES
            for shard in small:
                if shard.size > room:
                    merge(waiting, self.folder)
                    waiting, room = [], SHARD_BYTES
                waiting.append(shard)
                room -= shard.size
            if len(waiting) > 1:
                merge(waiting, self.folder)
        self.open()

    # ---- Checking

    def damaged(self) -> list[str]:
        """The names of files that do not hold what was written; reads everything."""
        names = [path.name for path in shard_paths(self.folder) if _is_damaged(path)]
        is_without = self.num_features is not None and not self._has_classifier()
        return [*names, CLASSIFIER] if is_without else names

    def describe(self) -> dict[str, Any]:
        """Plain values for `hf-kd cache info`: what it holds, how large it is, how exact."""
        facts = joined_facts(shard.facts for shard in self.shards)
        asked = facts.pop("rows", 0)
        errors = {
            name: value / max(asked, 1) if name.startswith("kl_") else value for name, value in sorted(facts.items())
        }
        views = {view: len(self._index[view]) for view in sorted(self._index)}
        return {
            "folder": str(self.folder),
            **{name: value for name, value in (self.manifest or {}).items() if name != "classes"},
            "num_classes": 0 if self.manifest is None else self.num_classes,
            "rows": {"as stored" if view == AS_STORED else f"view {view}": rows for view, rows in views.items()},
            "files": len(self.shards),
            "bytes": sum(shard.size for shard in self.shards),
            "errors": errors,
            "is_reduced": self.manifest is not None and isinstance(self.encoding, TopK),
        }


@dataclass
class _Index:
    """Keys in rising order, and where their rows lie."""

    high: np.ndarray
    low: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, places: np.ndarray) -> _Index:
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        keys, places = keys[order], places[order]
        is_new = np.ones(len(keys), dtype=bool)
        is_new[1:] = (keys[1:] != keys[:-1]).any(1)  # the same row twice, e.g. of two processes at once
        return cls(keys[is_new, 0].copy(), keys[is_new, 1].copy(), places[is_new])

    def __len__(self) -> int:
        return len(self.places)

    def find(self, keys: np.ndarray) -> np.ndarray:
        if not len(self) or not len(keys):
            return np.full(len(keys), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.high, keys[:, 0]), len(self) - 1)
        is_there = (self.high[at] == keys[:, 0]) & (self.low[at] == keys[:, 1])
        return np.where(is_there, self.places[at], -1)


def _is_strange(name: str) -> bool:
    """Whether a file is none that a process leaves which is killed before it has said whose cache it is."""
    return name not in (CLASSIFIER, KEY_MEMORY) and not (name.startswith(".") and name.endswith(".partial"))


def _may_be_joined(shard: Shard) -> bool:
    """Small, still there, and whole: joined with others, damage would have a checksum that is right."""
    return shard.size <= SHARD_BYTES // 2 and shard.path.is_file() and not _is_damaged(shard.path)


def _is_damaged(path: Path) -> bool:
    try:
        return not is_whole(path)
    except FileNotFoundError:  # joined with others by another process
        return False


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    manifest = manifest if isinstance(manifest, dict) else {}
    its_format, classes = manifest.get("format"), manifest.get("classes")
    if isinstance(its_format, int) and its_format > FORMAT:
        raise ValueError(
            f"`TeacherCache({str(path.parent)!r})` is of format {its_format}, and this version of hf_kd reads format "
            f"{FORMAT}: a newer one made it. Install that, or name another folder, which is then filled."
        )
    if isinstance(its_format, int) and its_format < FORMAT:
        raise ValueError(
            f"`TeacherCache({str(path.parent)!r})` is of format {its_format}, in which rows had other hashes, and "
            f"this version of hf_kd reads format {FORMAT}. Remove the folder, or name another one, and fill it anew."
        )
    if its_format != FORMAT or not isinstance(classes, list) or not all(part in manifest for part in _NEEDED):
        raise ValueError(
            f"`TeacherCache({str(path.parent)!r})`: {path.name} does not say whose answers these are in format "
            f"{FORMAT}. Restore it, or remove the folder and fill it anew."
        )
    return manifest


_NEEDED = ("teacher", "problem_type", "encoding")


def _publish(path: Path, content: bytes, *, or_replace: bool = False) -> None:
    """Write a file unless another process was first."""
    partial = partial_of(path)
    try:
        partial.write_bytes(content)
        if or_replace or not _linked(partial, path):
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _linked(partial: Path, path: Path) -> bool:
    """Give a file its name, or leave the one that is there; False where the file system has no hard links."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return True
    except OSError:
        return path.is_file()
    return True

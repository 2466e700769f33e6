"""Choosing rows: stratified, seeded, and in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np

from ..functional import IGNORE_INDEX
from ..inputs import LABEL_WEIGHT


def column_values(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """One column of plain numbers, read from the table and not through the dataset's transform."""
    return np.asarray(dataset.with_format(None).select_columns([column])[column][:])


def is_text(feature: Any) -> bool:
    """Whether a column holds strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


@dataclass(frozen=True)
class Rows:
    """Some rows of a table and their labels, put together only when all choices are made.

    `datasets` copies a table (and writes the copy to its cache) when a column is added after rows were selected; here
    the labels are added to the whole table first.

    Args:
        table: The input columns; no column ``labels``.
        labels: Class ids of the chosen rows, -100 for unlabelled.
        positions: Which rows of the table they are; None for all.
        targets: What the labels are where a row has no single class: `(rows,)` numbers or `(rows, num_labels)` of 0
            and 1. ``labels`` then only says which rows are labelled.
        weights: How much each row's label counts; None for all alike.
        logits: What a teacher answered to each row of ``table``: a table of the column ``teacher_logits``.
    """

    table: datasets.Dataset
    labels: np.ndarray
    positions: np.ndarray | None = None
    targets: np.ndarray | None = None
    weights: np.ndarray | None = None
    logits: datasets.Dataset | None = None

    def __len__(self) -> int:
        """How many rows are chosen."""
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> Rows:
        """Keep the rows at these places among the chosen ones."""
        positions = np.arange(len(self.table)) if self.positions is None else self.positions
        targets = None if self.targets is None else self.targets[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        return replace(self, labels=self.labels[chosen], positions=positions[chosen], targets=targets, weights=weights)

    def with_labels(self, labels: np.ndarray) -> Rows:
        """The same rows with other labels."""
        return replace(self, labels=labels)

    def dataset(self) -> datasets.Dataset:
        """The rows as a data set with the column ``labels``."""
        labels, feature = self._column()
        if self.positions is not None:
            everywhere = np.full((len(self.table), *labels.shape[1:]), IGNORE_INDEX, dtype=labels.dtype)
            everywhere[self.positions] = labels
            labels = everywhere
        column = labels if labels.ndim == 1 else list(labels)
        labelled = self.table.add_column("labels", column, feature=feature)
        if self.weights is not None:
            weights = np.zeros(len(self.table), dtype=np.float32)
            weights[slice(None) if self.positions is None else self.positions] = self.weights
            labelled = labelled.add_column(LABEL_WEIGHT, weights, feature=datasets.Value("float32"))
        if self.logits is not None:
            labelled = datasets.concatenate_datasets([labelled, self.logits], axis=1)
        return labelled if self.positions is None else labelled.select(self.positions)

    def _column(self) -> tuple[np.ndarray, Any]:
        """The labels as the Trainer takes them, and their kind; unlabelled rows are -100, or NaN for numbers."""
        if self.targets is None:
            return self.labels, datasets.Value("int64")
        targets, hidden = self.targets.astype(np.float32), self.labels == IGNORE_INDEX
        if targets.ndim == 1:
            return np.where(hidden, np.nan, targets).astype(np.float32), datasets.Value("float32")
        targets[hidden] = IGNORE_INDEX
        return targets, datasets.List(datasets.Value("float32"), length=targets.shape[1])


def stratified_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose ``count`` rows with the class proportions of ``labels``, the same ones for the same seed.

    Every class gets its share rounded down and the largest remainders get the rest; then no class goes without a row
    as long as another has two.

    Args:
        labels: Class ids, shape ``(rows,)``; rows at -100 are never chosen.
        count: How many rows, at most the labelled ones.
        seed: Seed of the choice.

    Returns:
        The chosen positions in ascending order.
    """
    generator = np.random.default_rng(seed)
    classes, sizes = np.unique(labels[labels != IGNORE_INDEX], return_counts=True)
    if count == 0 or len(classes) == 0:
        return np.array([], dtype=np.int64)
    shares = count * sizes / sizes.sum()
    quota = np.floor(shares).astype(np.int64)
    quota[np.argsort(quota - shares, kind="stable")[: count - quota.sum()]] += 1
    while quota.min() == 0 and quota.max() > 1:
        quota[[quota.argmax(), quota.argmin()]] += [-1, 1]
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:take]
        for label, take in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def sampled_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose ``count`` rows, stratified by class; the unlabelled rows keep their share as if they were a class."""
    return stratified_rows(np.where(labels == IGNORE_INDEX, labels.max() + 1, labels), count, seed)


def hide_labels(labels: np.ndarray, labelled: int, seed: int) -> np.ndarray:
    """Keep the labels of ``labelled`` rows, stratified by class, and set the others to -100.

    Raises:
        ValueError: If ``labelled`` is not an integer from 0 to the number of labelled rows.
    """
    available = int((labels != IGNORE_INDEX).sum())
    if isinstance(labelled, bool) or not isinstance(labelled, int) or not 0 <= labelled <= available:
        raise ValueError(
            f"`load_task(labelled=...)` must be an integer from 0 to {available}, the number of labelled training "
            f"rows, got {labelled!r}: labels can be hidden, not invented. Pass a smaller number, or None to keep all."
        )
    kept = stratified_rows(labels, labelled, seed)
    hidden = np.full_like(labels, IGNORE_INDEX)
    hidden[kept] = labels[kept]
    return hidden


def fingerprint_of(parts: Iterable[str | bytes]) -> str:
    """Twelve hexadecimal digits over the parts; each is length-prefixed, so that no two lists run together."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:12]

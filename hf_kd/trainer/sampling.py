"""Drawing training rows so that every class comes equally often."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, Sampler
from transformers.utils import logging

from ..functional import IGNORE_INDEX, SINGLE_LABEL
from ..inputs import LABEL_KEYS, LABEL_WEIGHT
from ..training_args import BALANCED

logger = logging.get_logger(__name__)

LABELS_ATTRIBUTES = ("labels", "targets")
"""Where a dataset without columns may hold its labels; the second is torchvision's."""


class BalancedSampler(Sampler[int]):
    """As many draws per epoch as there are rows, of every class equally many (but for one, where it does not divide).

    A class whose rows do not suffice repeats them, each equally often but for one; one with more rows than draws shows
    other ones in each epoch. An epoch holds every unlabelled row once, as it does without balancing: they are no
    class, and the labelled rows share what is left. Classes without rows have no share.

    Args:
        labels: `(rows,)`: class ids, -100 for unlabelled.
        seed: Of the draws; with the epoch it decides them all, on every process alike.
        epoch: Tells which epoch begins.
    """

    def __init__(self, labels: np.ndarray, seed: int, epoch: Callable[[], int]):
        self.labels, self.seed, self.epoch = labels, seed, epoch
        self.unlabelled = np.flatnonzero(labels == IGNORE_INDEX)
        self.classes = [np.flatnonzero(labels == label) for label in np.unique(labels[labels != IGNORE_INDEX])]

    def __len__(self) -> int:
        """Draws per epoch: as many as rows."""
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        """The rows of one epoch."""
        yield from self.draw(self.epoch()).tolist()

    def draw(self, epoch: int) -> np.ndarray:
        """The rows of the given epoch, in order."""
        generator = np.random.default_rng((self.seed, epoch))
        slots = len(self.labels) - len(self.unlabelled)
        share, rest = divmod(slots, len(self.classes))
        counts = np.full(len(self.classes), share)
        counts[generator.permutation(len(self.classes))[:rest]] += 1
        drawn = [_drawn(rows, count, generator) for rows, count in zip(self.classes, counts, strict=True)]
        return generator.permutation(np.concatenate([self.unlabelled, *drawn]))


def _drawn(rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` of `rows`, all of them before any comes again."""
    rounds = -(-count // len(rows))
    return np.concatenate([rows[:0], *(generator.permutation(rows) for _ in range(rounds))])[:count]


def balanced_sampler(
    dataset: Any, label_name: str, problem_type: str, *, seed: int, epoch: Callable[[], int]
) -> BalancedSampler:
    """The sampler of a training dataset.

    Args:
        dataset: A `datasets.Dataset` with a label column, or any dataset with an attribute of that name or `targets`.
        label_name: The label column.
        problem_type: What the labels are.
        seed: Of the draws.
        epoch: Tells which epoch begins.

    Raises:
        ValueError: It is a stream, has no labels, or labels that are no single class per row.
    """
    owner = f'`DistillationTrainingArguments(train_sampling_strategy="{BALANCED}")`'
    if problem_type != SINGLE_LABEL:
        raise ValueError(
            f"{owner} needs one class per row, and the head of `model` is for {problem_type}. Use 'random'."
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"{owner} draws from all rows, and `train_dataset` is a stream, which is not read beforehand. Use "
            "'random' with rows that are not streamed, or balance the stream itself (`datasets.interleave_datasets`)."
        )
    labels = _labels_of(dataset, label_name, owner)
    if not (labels != IGNORE_INDEX).any():
        raise ValueError(f"{owner} found no labelled row in `train_dataset`: there are no classes to balance.")
    if LABEL_WEIGHT in (getattr(dataset, "column_names", None) or ()):
        logger.warning_once(
            f"The training rows are drawn by class (`train_sampling_strategy={BALANCED!r}`) and carry "
            f"`{LABEL_WEIGHT}` as well. If these weigh classes, rare ones count twice over: use one of the two."
        )
    return BalancedSampler(labels, seed, epoch)


def _labels_of(dataset: Any, label_name: str, owner: str) -> np.ndarray:
    columns = getattr(dataset, "column_names", None) or ()
    column = next((name for name in (label_name, *LABEL_KEYS) if name in columns), None)
    if column is not None and hasattr(dataset, "select_columns"):
        values = dataset.select_columns([column]).with_format("arrow")[:][column]
        if not pa.types.is_nested(values.type):
            return _class_ids(values.to_pylist(), owner)
    for name in dict.fromkeys((label_name, *LABELS_ATTRIBUTES)):
        given = getattr(dataset, name, None)
        if given is not None and not callable(given) and len(given) == len(dataset):
            return _class_ids(given.tolist() if isinstance(given, (torch.Tensor, np.ndarray)) else given, owner)
    raise ValueError(
        f"{owner} must know the class of every row beforehand, and `train_dataset` ({type(dataset).__name__}) has no "
        f"column or attribute `{label_name}` of one class per row. Give it one, or use a `datasets.Dataset`."
    )


def _class_ids(values: Any, owner: str) -> np.ndarray:
    try:
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):  # text, or lists
        numbers = np.array([0.5])
    labels = np.where(np.isnan(numbers), IGNORE_INDEX, numbers)
    if labels.ndim != 1 or (labels != np.rint(labels)).any():
        raise ValueError(f"{owner} needs one class index per row; `train_dataset` has labels that are none.")
    return labels.astype(np.int64)

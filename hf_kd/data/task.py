"""What a loaded data set is: three splits, a collator, a metric, the class names, and a fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import datasets
import numpy as np
import torch
from transformers import BaseImageProcessor, EvalPrediction, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from ..functional import SINGLE_LABEL
from ..inputs import WholeBatch
from ..mixing import Mixing
from .rows import IGNORE_INDEX, column_values

Modality = Literal["image", "text"]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Source:
    """Where rows come from, before a processor has seen them.

    Args:
        modality: ``"image"`` or ``"text"``.
        splits: ``train``, ``validation`` and ``test``.
        columns: The input column; two for pairs of texts.
        label_names: The class names in id order.
        fingerprint: See `Task`.
        description: See `Task`.
        processor: The default processor; None where the user must bring one.
        max_length: The default length at which texts are cut; None leaves it to the tokenizer.
        problem_type: What the labels are.
        is_streamed: ``splits`` are streams, `datasets.IterableDataset` with a column ``labels``, and no `Rows`.
        origin: See `Task`.
    """

    modality: Modality
    splits: dict[str, Any]
    columns: tuple[str, ...]
    label_names: tuple[str, ...]
    fingerprint: str
    description: str
    processor: BaseImageProcessor | PreTrainedTokenizerBase | None = None
    max_length: int | None = None
    problem_type: str = SINGLE_LABEL
    is_streamed: bool = False
    origin: Mapping[str, str | None] | None = None


@dataclass(frozen=True)
class Task:
    """A classification data set, ready for the Trainer.

    Every split has a column ``labels`` of class ids; -100 means unlabelled. With several labels per row it holds a 0
    or 1 per class (-100 everywhere: unlabelled), for a regression a number (NaN: unlabelled). Image rows carry
    ``pixel_values``, text rows ``input_ids`` and ``attention_mask`` (what the tokenizer gives). The input itself stays
    beside them as ``image`` or ``text`` where that costs nothing; the Trainer drops the columns that the model does
    not take.

    Args:
        name: What `load_task` was asked for.
        modality: ``"image"`` or ``"text"``.
        train: The training rows.
        validation: The rows to choose hyperparameters on.
        test: The rows to report on.
        collator: Makes a batch of rows.
        compute_metrics: Scores an evaluation (`hf_kd.metrics.classification_metrics`).
        label_names: The class names in id order.
        processing_class: The image processor or tokenizer that made the rows; save it with the student.
        fingerprint: Twelve hexadecimal digits that change when the rows do; print them beside every number. They stand
            for the data set before ``max_samples`` and ``labelled``.
        description: What the set is and is not, and what was done to it.
        problem_type: What the labels are, as `model.config.problem_type` says it.
        metric: The key of ``compute_metrics`` that results on this set are quoted in.
        origin: ``name``, ``revision`` and ``commit`` of the data set on the Hub, the last None if nobody noted it;
            None of rows that are local.
    """

    name: str
    modality: Modality
    train: datasets.Dataset | datasets.IterableDataset
    validation: datasets.Dataset | datasets.IterableDataset
    test: datasets.Dataset | datasets.IterableDataset
    collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    label_names: tuple[str, ...]
    processing_class: BaseImageProcessor | PreTrainedTokenizerBase
    fingerprint: str
    description: str
    problem_type: str = SINGLE_LABEL
    metric: str = "accuracy"
    origin: Mapping[str, str | None] | None = None

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return len(self.label_names)

    @property
    def id2label(self) -> dict[int, str]:
        """Class id to name, as model configs hold it."""
        return dict(enumerate(self.label_names))

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to id, as model configs hold it."""
        return {name: index for index, name in enumerate(self.label_names)}

    def look(self, rows: int = 1) -> list[dict[str, Any]]:
        """The first training rows, without a trace: no later random draw changes, whatever makes the inputs."""
        with torch.random.fork_rng(devices=[]):
            return list(islice(iter(self.train), rows))

    @property
    def head(self) -> dict[str, Any]:
        """What a model's config needs for a head that answers this task; for `from_pretrained` and `from_config`."""
        kind = {} if self.problem_type == SINGLE_LABEL else {"problem_type": self.problem_type}
        return {"id2label": self.id2label, "label2id": self.label2id, **kind}

    @property
    def num_train_rows(self) -> int | None:
        """How many training rows there are; None of a stream."""
        return None if isinstance(self.train, datasets.IterableDataset) else len(self.train)

    @property
    def num_labelled(self) -> int | None:
        """How many training rows have a label; None of a stream."""
        if isinstance(self.train, datasets.IterableDataset):
            return None
        labels = column_values(self.train, "labels")
        labels = labels.reshape(len(labels), -1)[:, 0]
        return int((~np.isnan(labels) & (labels != IGNORE_INDEX)).sum())


@dataclass
class ImageCollator:
    """Stack rows of equal shape into a batch; columns that are not numbers (the image itself) are left out.

    Args:
        mixing: How `DistillationTrainer` mixes training batches afterwards; nothing is mixed here, because evaluation
            uses the same collator.
    """

    mixing: Mixing | None = None
    draws_nothing = True
    takes_whole_batches = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch: ``pixel_values (batch, channels, height, width)``, ``labels (batch,)``."""
        return dict(features.columns) if isinstance(features, WholeBatch) else stacked(features)


@dataclass
class TextCollator:
    """Pad rows of tokens to the longest of the batch; columns that are not numbers (the text itself) are left out.

    Args:
        tokenizer: Pads the columns among its ``model_input_names``.
        pad_to_multiple_of: Round the padded length up, for tensor cores.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None
    draws_nothing = True

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch: ``input_ids (batch, length)``, ``attention_mask (batch, length)``, ``labels (batch,)``."""
        own = [name for name in self.tokenizer.model_input_names if name in features[0]]
        padded = pad_without_fast_tokenizer_warning(
            self.tokenizer,
            {name: [row[name] for row in features] for name in own},
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors="pt",
        )
        rest = [{name: value for name, value in row.items() if name not in own} for row in features]
        return {**padded, **stacked(rest)}


def stacked(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One tensor per column of numbers."""
    batch = {}
    for name, first in features[0].items():
        if not is_numeric(first):
            continue
        values = [torch.as_tensor(row[name]) for row in features]
        shapes = sorted({tuple(value.shape) for value in values})
        if len(shapes) > 1:
            raise ValueError(
                f"the collator of `load_task` got rows whose `{name}` have the shapes {shapes}: a batch is one "
                "tensor, so its rows must be equally large. Let the processor resize, or pass a collator of your own."
            )
        batch[name] = torch.stack(values)
    return _with_long_labels(batch)


def stacked_columns(columns: Mapping[str, list[Any]]) -> dict[str, torch.Tensor]:
    """What `stacked` makes of rows of plain numbers, from their columns."""
    return _with_long_labels({name: torch.as_tensor(values) for name, values in columns.items()})


def _with_long_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "labels" in batch and not batch["labels"].is_floating_point():
        batch["labels"] = batch["labels"].long()
    return batch


def is_numeric(value: Any) -> bool:
    """Whether a row's value becomes part of a tensor."""
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and is_numeric(value[0])
    return isinstance(value, (torch.Tensor, np.ndarray, np.number, bool, int, float))

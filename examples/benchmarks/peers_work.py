"""What all loops of `peers.py` do: the same two models, the same rows in the same batches, the same optimizer."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from hf_kd.bench.clocks import Clock

TEMPERATURE, CE_WEIGHT, KD_WEIGHT = 4.0, 0.5, 0.5
LEARNING_RATE, MAX_GRAD_NORM = 1e-4, 1.0
ADAMW = {"lr": LEARNING_RATE, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "fused": True}
"""The Trainer's own optimizer with its own numbers; without weight decay, which packages give to other parameters."""


@dataclass(frozen=True)
class Pair:
    """Two models without dropout, so that loops that do the same work end at the same weights.

    Args:
        is_image: ViT, or BERT.
        student: `(width, layers, heads)`.
        teacher: The same.
        classes: Of both.
        size: Pixels of a side, or tokens of a row.
        vocabulary: Tokens there are.
    """

    is_image: bool
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]
    classes: int
    size: int
    vocabulary: int = 0

    def model(self, shape: tuple[int, int, int], seed: int, spread: float) -> nn.Module:
        """A classifier with random weights of this spread, in eval mode, as `from_pretrained` hands them out."""
        width, layers, heads = shape
        encoder = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        names = {index: f"class {index}" for index in range(self.classes)}
        shared = {"intermediate_size": 4 * width, "id2label": names, "label2id": {v: k for k, v in names.items()}}
        shared |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": spread}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self.is_image:
                return ViTForImageClassification(
                    ViTConfig(image_size=self.size, patch_size=4, **encoder, **shared)
                ).eval()
            text = {"vocab_size": self.vocabulary, "max_position_embeddings": self.size}
            return BertForSequenceClassification(BertConfig(**text, **encoder, **shared)).eval()


PAIRS = {
    "vit": Pair(True, (96, 4, 3), (256, 8, 4), classes=100, size=32),
    "bert": Pair(False, (128, 2, 2), (384, 6, 6), classes=20, size=64, vocabulary=30522),
}


@dataclass
class Work:
    """One pair at one batch size.

    Args:
        pair: The models.
        batch_size: Rows of a step.
        warmup: Steps before the clock starts, >= 1.
        steps: Steps on the clock.
        device: Where.
        bf16: Autocast; else float32.
        folder: For what loops must write.
    """

    pair: Pair
    batch_size: int
    warmup: int
    steps: int
    device: torch.device
    bf16: bool
    folder: Path
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def all_steps(self) -> int:
        """Of a block."""
        return self.warmup + self.steps

    @property
    def num_rows(self) -> int:
        """One epoch, never ended: the Trainer reads a batch ahead, and shall have one to read in its last step too."""
        return (self.all_steps + 1) * self.batch_size

    # ---- Models: every loop gets copies of its own

    @cached_property
    def _student(self) -> nn.Module:
        return self.pair.model(self.pair.student, 1, 0.02)

    @cached_property
    def _teacher(self) -> nn.Module:
        # wide enough that answers differ from row to row: a teacher asked about other rows must show
        return self.pair.model(self.pair.teacher, 2, 0.1)

    def student(self) -> nn.Module:
        """The student as it is at the start."""
        return copy.deepcopy(self._student)

    def teacher(self) -> nn.Module:
        """The teacher; a package may freeze it or move it."""
        return copy.deepcopy(self._teacher)

    # ---- Rows

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All rows, in memory, in the order in which they are read."""
        pair, rows = self.pair, self.num_rows
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(0, pair.classes, (rows,), generator=generator)
        if pair.is_image:
            return {"pixel_values": torch.randn(rows, 3, pair.size, pair.size, generator=generator), "labels": labels}
        ids = torch.randint(1, pair.vocabulary, (rows, pair.size), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    @cached_property
    def rows(self) -> datasets.Dataset:
        """For loops of transformers: a data set with a transform, as its examples have it."""
        tensors = self.tensors

        def shown(batch: dict[str, list[int]]) -> dict[str, list[Tensor]]:
            return {name: list(values[batch["row"]]) for name, values in tensors.items()}

        return datasets.Dataset.from_dict({"row": list(range(self.num_rows))}).with_transform(shown)

    def loader(self) -> DataLoader:
        """The same batches without the Trainer."""
        return DataLoader(
            self.rows,
            batch_size=self.batch_size,
            collate_fn=default_data_collator,
            pin_memory=self.device.type == "cuda",
        )

    # ---- What loops without the Trainer share

    def autocast(self) -> torch.autocast:
        """As the Trainer's `bf16`."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def timed(self, batches: Iterable, clock: Clock) -> Iterator:
        """So many batches as a block has steps; the clock runs from the end of a step to the end of a step."""
        for step, batch in enumerate(batches, 1):
            yield batch  # until the loop has done its step
            if step == self.warmup:
                clock.start()
            elif step == self.all_steps:
                clock.stop()
                return
        raise RuntimeError(f"a loop ended after {step} of {self.all_steps} steps")


class Tuples(Dataset):
    """`(image, label)` rows from memory, as packages want them that read torchvision's data sets."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.images, self.labels = tensors["pixel_values"], tensors["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class Ran:
    """A block.

    Args:
        clock: Stopped.
        student: As it is after it.
    """

    clock: Clock
    student: nn.Module

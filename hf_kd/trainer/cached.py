"""Teaching from a `TeacherCache`: its answers travel with the rows, and the teacher itself need not be there."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..functional import SINGLE_LABEL
from ..heads import FeatureTap, classification_layer
from ..inputs import TEACHER_LOGITS
from ..label_map import LabelMap
from ..objective import DistillationObjective
from ..quantization import is_quantized, plain_tensors, quantization_name
from ..teacher import FrozenTeacher
from ..teacher_cache import (
    TEACHER_FEATURES,
    Asking,
    KeyedRows,
    TeacherCache,
    check_answers,
    check_inputs,
    fill,
    row_key,
)
from .draws import Epoch, SeededRows
from .hub import describe_model
from .identity import digest_of

UNQUANTIZED = "none"


class StoredClassifier(nn.Module):
    """Stands in for a teacher whose answers are stored: its classes, and nothing that could run."""

    is_stored = True

    def __init__(self, manifest: Mapping[str, Any]):
        super().__init__()
        names = manifest["classes"]
        kind = {} if manifest["problem_type"] is None else {"problem_type": manifest["problem_type"]}
        self.config = PreTrainedConfig(
            id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **kind
        )
        self.facts = dict(manifest["teacher"])

    def forward(self, **columns: Any) -> Tensor:
        """Nothing: it cannot answer."""
        raise ValueError(
            f"`DistillationTrainer(teacher_model=None, teacher_cache=...)` got a batch without stored logits (it has "
            f"{', '.join(columns) or 'nothing'}), and nobody to ask. Let the trainer's own data loaders make the "
            "batches, or pass the teacher."
        )


class CachedTeacher(FrozenTeacher):
    """A teacher whose answers come with the batch; it is asked about rows that the cache lacks, and about no others.

    Args:
        model: The teacher; None where only its answers are there.
        student: As in `FrozenTeacher`.
        label_map: As in `FrozenTeacher`. It is applied to what is stored, so another one needs no other cache.
        cache: The answers.

    Raises:
        ValueError: There is no teacher and the cache is empty; or as `FrozenTeacher`.
    """

    def __init__(self, model: Any, student: nn.Module, label_map: LabelMap | None, cache: TeacherCache):
        if model is None and cache.manifest is None:
            raise ValueError(
                f"`DistillationTrainer(teacher_model=None, teacher_cache={str(cache.folder)!r})`: the cache is empty "
                "and there is no teacher to fill it. Pass the teacher, or fill the cache with `hf-kd cache CONFIG`."
            )
        super().__init__(StoredClassifier(cache.manifest) if model is None else model, student, label_map)
        self.cache = cache
        self.features: Tensor | None = None

    @property
    def is_there(self) -> bool:
        """Whether it can be asked."""
        return not isinstance(self.model, StoredClassifier)

    def logits(self, batch: dict[str, Any], accelerator: Accelerator) -> Tensor:
        """As in `FrozenTeacher`; keeps the features that came along."""
        self.features = batch.get(TEACHER_FEATURES)
        return super().logits(batch, accelerator)


class Answers:
    """Where the answers to the rows of one data set lie.

    Args:
        cache: Where.
        rows: The rows and their views.
    """

    def __init__(self, cache: TeacherCache, rows: KeyedRows):
        self.cache, self.rows = cache, rows
        self._known: dict[int, np.ndarray] = {}
        self._places: dict[int, np.ndarray] = {}
        self._generation = -1

    @property
    def first_view(self) -> int:
        """The one that the first epoch sees."""
        return self.rows.view_of(0)

    @property
    def missing(self) -> int:
        """How many answers there are none of."""
        return sum(int((self._all(view) < 0).sum()) for view in self.rows.view_numbers)

    def of(self, indices: Sequence[int], view: int) -> dict[str, Tensor]:
        """The columns to add to a batch of these rows."""
        chosen = np.asarray(indices)
        places = self._all(view)[chosen]
        return self.cache.read(places, self._known[view][chosen])

    def _all(self, view: int) -> np.ndarray:
        """The places of all rows, found anew when files were added or joined."""
        if self._generation != self.cache.generation:
            self._places, self._generation = {}, self.cache.generation
        if view not in self._known:
            self._known[view] = self.rows.known_by(view)
        if view not in self._places:
            self._places[view] = self.cache.find(self._known[view], view)
        return self._places[view]


class ViewedRows(SeededRows):
    """Rows in repeatable views, one view per epoch, and with what the teacher answered to them.

    Args:
        rows: The rows and their views.
        seed: As in `SeededRows`, where there are no views.
        epoch: Which one it is.
        answers: What the teacher said; None where it runs.
    """

    def __init__(self, rows: KeyedRows, seed: int, epoch: Epoch, answers: Answers | None = None):
        super().__init__(rows.rows, seed, epoch)
        self.keyed, self.answers = rows, answers

    def __getitems__(self, indices: list) -> list:
        """The rows of one batch."""
        view = self.keyed.view_of(self.epoch.get())
        batch = super().__getitems__(indices) if self.keyed.views is None else self._viewed(indices, view)
        if self.answers is not None:
            batch.answers = self.answers.of(indices, view)
        return batch

    def _viewed(self, indices: list, view: int) -> list:
        batch = self.batch_of(indices)
        batch.fill(self.keyed.read(indices, view))
        return batch


class KeyedCollator:
    """Collates rows of a stream, with what the teacher answered to each, found by what the row holds."""

    def __init__(self, collator: Callable, cache: TeacherCache):
        self.collator, self.cache = collator, cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        keys = np.array([row_key(row) for row in rows], dtype=np.int64).reshape(-1, 2)
        return {**self.collator(rows), **self.cache.read(self.cache.find(keys), keys)}


def resolve_cache(given: TeacherCache | str | PathLike | None) -> TeacherCache | None:
    """A `TeacherCache`, from one or from its folder.

    Raises:
        TypeError: It is something else.
    """
    if given is None or isinstance(given, TeacherCache):
        return given
    if not isinstance(given, (str, PathLike)):
        raise TypeError(
            f"`DistillationTrainer(teacher_cache=...)` got {type(given).__name__}: it says where the teacher's "
            "answers are kept. Pass a folder, or a `TeacherCache`."
        )
    return TeacherCache(given)


def manifest_facts(
    teacher: FrozenTeacher,
    student: Any,
    accelerator: Accelerator,
    features: int | None = None,
    said: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a cache says of the teacher that fills it, in plain values.

    Args:
        teacher: The teacher.
        student: Whose classes a teacher without names of its own answers with.
        accelerator: In whose precision it runs.
        features: The width of its pooled features, where they are stored.
        said: More of the teacher: its revision, its files.
    """
    model = teacher.model
    config = getattr(model, "config", None)
    names = getattr(config, "id2label", None) or student.config.id2label
    is_module = isinstance(model, nn.Module)
    precision = accelerator.mixed_precision if accelerator.native_amp else None
    dtype = next((str(p.dtype) for p in model.parameters() if p.is_floating_point()), None) if is_module else None
    return {
        "teacher": {
            **describe_model(model),
            "weights": digest_of(model) if is_module else None,
            "quantization": quantization_name(model) or UNQUANTIZED,
            "checksum": checksum_of(model) if is_module else None,
            "precision": precision or (dtype and dtype.removeprefix("torch.")),
            **said,
        },
        "classes": [str(names[i]) for i in sorted(names)],
        "problem_type": getattr(config, "problem_type", None) or SINGLE_LABEL,
        "features": features,
        "columns": teacher.columns,
        "channels": getattr(config, "num_channels", None),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "datasets": datasets.__version__,
        },
    }


@torch.no_grad()
def checksum_of(model: nn.Module) -> str:
    """Over every bit of the weights, where `digest_of` looks at some values of each tensor: the sum of each one's."""
    tensors = plain_tensors(model) if is_quantized(model) else model.state_dict()
    sums = [(name, _sum_of_bits(value)) for name, value in sorted(tensors.items()) if _has_bits(value)]
    return hashlib.sha256(repr([(name, int(part)) for name, part in sums]).encode()).hexdigest()[:12]


def _has_bits(value: Any) -> bool:
    is_plain = isinstance(value, Tensor) and not value.is_meta and value.layout == torch.strided
    return is_plain and not value.is_complex() and value.element_size() in _INTEGERS and value.numel() > 0


def _sum_of_bits(value: Tensor) -> Tensor:
    bits = value.detach().contiguous().view(_INTEGERS[value.element_size()])
    return bits.sum(dtype=torch.int64)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def asking_of(
    teacher: FrozenTeacher,
    student: nn.Module,
    objective: DistillationObjective,
    collate: Callable,
    accelerator: Accelerator,
    cache: TeacherCache,
    said: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> Asking:
    """Claim a cache for a teacher, and say how to ask it for what is stored: logits, and features where they are.

    Args:
        teacher: The teacher.
        student: As in `manifest_facts`.
        objective: Whose losses say whether features are needed.
        collate: Rows to a batch.
        accelerator: As in `manifest_facts`.
        cache: The cache.
        said: As in `manifest_facts`.
        **options: Of `Asking`.

    Raises:
        ValueError: The cache is of another teacher.
    """
    width = stored_width(objective, teacher)
    layer = None if width is None else classification_layer(teacher.model, "teacher_model", "a loss on features")
    facts = manifest_facts(teacher, student, accelerator, width, said)
    accelerator.wait_for_everyone()
    cache.claim(facts, None if layer is None else layer.weight)

    def ask(batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        batch = {k: v.to(accelerator.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        logits = teacher.ask(batch, accelerator)
        return logits, None if tap is None else tap.take(logits)

    tap = None
    if cache.num_features is not None:
        layer = classification_layer(teacher.model, "teacher_model", "`TeacherCache` with features")
        tap = FeatureTap(layer, "teacher_model")
    return Asking(ask, collate, teacher.columns, accelerator, **options)


def answers_to(
    rows: KeyedRows, shown: Any, cache: TeacherCache, teacher: CachedTeacher, asking: Asking | None, name: str
) -> Answers:
    """The answers to a data set: what is missing is asked, and what is there is compared with the rows.

    Args:
        rows: The rows and their views.
        shown: The same rows as the teacher reads them.
        cache: Claimed for the teacher.
        teacher: The teacher.
        asking: How to ask it; None where it is not there.
        name: What the rows are called.

    Raises:
        ValueError: Answers are missing and there is nobody to ask, or the rows are shown otherwise than they were.
    """
    read = KeyedRows(shown, rows.keys, rows.views, rows.mixing, rows.label_name)
    if cache.check_inputs:
        check_inputs(cache, read, cache.manifest.get("columns"), name)
    if asking is not None:
        if cache.manifest["teacher"].get("weights") is None and cache.check_inputs:
            check_answers(cache, read, asking)
        fill(cache, read, asking, name)
    answers = Answers(cache, rows)
    if answers.missing:
        raise ValueError(
            f"`DistillationTrainer(teacher_model=None, teacher_cache={str(cache.folder)!r})`: the cache lacks "
            f"{answers.missing:,} of {len(rows) * len(rows.view_numbers):,} answers to the {name}, and there is no "
            "teacher to ask. Pass the teacher, or fill the cache with `hf-kd cache CONFIG`."
        )
    return answers


def refuse_features(objective: DistillationObjective, cache: TeacherCache) -> None:
    """Losses on features that a cache without a teacher does not have.

    Raises:
        ValueError: They are not stored.
    """
    if {"teacher_features", "teacher_classifier_weight"} & set(objective.needs) and cache.num_features is None:
        names = ", ".join(f"`{loss.name}`" for loss in objective.active_losses if loss.needs)
        raise ValueError(
            f"`DistillationTrainer(teacher_cache={str(cache.folder)!r})`: {names} compares pooled features, and the "
            "cache was filled without. Name another folder, which the teacher then fills with them."
        )


def stored_width(objective: DistillationObjective, teacher: FrozenTeacher | None) -> int | None:
    """The width of the features that a cache has to hold for an objective; None where it needs none."""
    if not {"teacher_features", "teacher_classifier_weight"} & set(objective.needs) or teacher is None:
        return None
    return classification_layer(teacher.model, "teacher_model", "a loss on features").in_features


def refuse_both(dataset: Any, cache: TeacherCache) -> None:
    """Two sources of the same answers: one of them would be ignored.

    Raises:
        ValueError: The data set has the column already.
    """
    if TEACHER_LOGITS in (getattr(dataset, "column_names", None) or ()):
        raise ValueError(
            f"`DistillationTrainer(teacher_cache={str(cache.folder)!r})`: the data have a column `{TEACHER_LOGITS}` "
            "too, and one of the two would be ignored. Remove the column, or leave the cache out."
        )

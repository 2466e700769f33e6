"""Which columns and tensors go to which model.

Both models read the same example; each gets exactly the tensors its `forward` names. Columns prefixed `teacher_`
belong to the teacher alone (another tokenizer, image size or normalisation): where there are any, the teacher sees
only those.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorWithPadding,
    DefaultDataCollator,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    default_data_collator,
)
from transformers.utils import logging

from .functional import IGNORE_INDEX, REGRESSION, SINGLE_LABEL
from .registry import suggestion

logger = logging.get_logger(__name__)

TEACHER_PREFIX = "teacher_"
TEACHER_LOGITS = "teacher_logits"
ROW_WEIGHT = "distillation_row_weight"
ROWS_EVERYWHERE = "distillation_rows"
LABEL_WEIGHT = "label_weight"
LABELS_MIX, MIX_LAMBDA, LABEL_WEIGHT_MIX = "labels_mix", "mix_lambda", "label_weight_mix"
"""Columns of mixed rows: the second label, the share of the first, and how much the second counts."""
MIX_KEYS = (LABELS_MIX, MIX_LAMBDA, LABEL_WEIGHT_MIX)
LABEL_KEYS = ("label", "label_ids", "labels")


def model_columns(model: Any) -> list[str] | None:
    """The argument names of a model's `forward`, labels left out; None if it only takes `**kwargs`."""
    if hasattr(model, "get_base_model"):  # an adapter's forward takes anything; the base model's says what it reads
        model = model.get_base_model()
    function = model.forward if isinstance(model, nn.Module) else model
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in names if name not in LABEL_KEYS] or None


def dataset_columns(
    student_columns: Sequence[str], teacher_columns: Sequence[str] | None, datasets: Sequence[Any] = ()
) -> list[str]:
    """The dataset columns that either model needs, so that none is dropped before the batch is made.

    Args:
        student_columns: What the student names.
        teacher_columns: What the teacher names; None if it takes anything: it then gets every `teacher_` column. Empty
            without a teacher.
        datasets: Where to look for those; each one or several by name.

    Raises:
        ValueError: A dataset has `teacher_` columns and the teacher names none of them.
    """
    found = [_column_names(dataset) for dataset in datasets]
    if teacher_columns is None:
        prefixed = [name for names in found for name in names if _is_teachers(name)]
        return list(dict.fromkeys([*student_columns, *prefixed, TEACHER_LOGITS]))
    for names in found:
        if teacher_columns and TEACHER_LOGITS not in names:  # with logits at hand the teacher reads nothing
            check_teacher_columns(names, teacher_columns)
    prefixed = [TEACHER_PREFIX + name for name in teacher_columns]
    return list(dict.fromkeys([*student_columns, *teacher_columns, *prefixed, TEACHER_LOGITS]))


def check_teacher_columns(names: Iterable[str], teacher_columns: Sequence[str]) -> None:
    """Say so where `teacher_` columns go nowhere: a misspelt one is no error by itself.

    One warning if the teacher reads some of them (tokenizers make columns that not every model takes).

    Args:
        names: The columns of a dataset or batch.
        teacher_columns: What the teacher names.

    Raises:
        ValueError: It reads none of them, so it would be shown the student's columns instead.
    """
    own = [name for name in names if _is_teachers(name)]
    readable = [TEACHER_PREFIX + name for name in teacher_columns]
    lost = [name for name in own if name not in readable]
    if not lost:
        return
    if len(lost) == len(own):
        raise ValueError(
            f"`teacher_model` reads none of the columns made for it ({', '.join(lost)}), so it would see the "
            f"student's. Rename or remove them.{suggestion(lost[0], readable)}"
        )
    logger.warning_once(
        f"`teacher_model` does not read {', '.join(lost)}, so it does without.{suggestion(lost[0], readable)}"
    )


def _column_names(dataset: Any) -> list[str]:
    """The columns of a dataset, or of several by name; none where it does not say."""
    if isinstance(dataset, Mapping):
        return list(dict.fromkeys(name for part in dataset.values() for name in _column_names(part)))
    return list(getattr(dataset, "column_names", None) or ())


def student_inputs(batch: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    """The student's part of a batch."""
    return _select({key: value for key, value in batch.items() if not _is_teachers(key)}, columns)


def teacher_inputs(batch: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    """The teacher's part of a batch: its own columns if it has any, else the shared ones.

    Raises:
        ValueError: It has some and `columns` names none of them.
    """
    if columns is not None:
        check_teacher_columns(batch, columns)
    own = {key.removeprefix(TEACHER_PREFIX): value for key, value in batch.items() if _is_teachers(key)}
    return _select(own or batch, columns)


def _is_teachers(key: str) -> bool:
    return key.startswith(TEACHER_PREFIX) and key != TEACHER_LOGITS


def _select(batch: Mapping[str, Any], columns: Sequence[str] | None) -> dict[str, Any]:
    hidden = (*LABEL_KEYS, TEACHER_LOGITS, ROW_WEIGHT, ROWS_EVERYWHERE, LABEL_WEIGHT, *MIX_KEYS)
    return {k: v for k, v in batch.items() if k not in hidden and (columns is None or k in columns)}


def logits_of(outputs: Any, owner: str) -> Tensor:
    """The logits in whatever a classifier returns: a `ModelOutput`, a mapping, a tuple or the tensor itself.

    Raises:
        ValueError: There are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    if isinstance(outputs, tuple) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise ValueError(
        f"`{owner}` returned {type(outputs).__name__} without `logits`: distillation compares class scores. Pass a "
        "model with a classification head (`AutoModelForImageClassification`, `AutoModelForSequenceClassification`)."
    )


def collator_for(processing_class: Any) -> Callable | None:
    """The collator that goes with a tokenizer (pads) or an image processor (stacks); None without one."""
    if isinstance(processing_class, (PreTrainedTokenizerBase, SequenceFeatureExtractor)):
        return DataCollatorWithPadding(processing_class)
    return None if processing_class is None else default_data_collator


def draws_nothing(collator: Any) -> bool:
    """Whether a collator is known to draw no random numbers."""
    is_known = collator is default_data_collator or type(collator) in (DataCollatorWithPadding, DefaultDataCollator)
    return is_known or getattr(collator, "draws_nothing", False) is True


class WholeBatch(Sequence):
    """The rows of a batch that is made already, for collators that need not look at rows one by one.

    Args:
        columns: One tensor per column, rows first.
    """

    def __init__(self, columns: Mapping[str, Tensor]):
        self.columns = dict(columns)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, index: Any) -> Any:
        """A row, for those who want one."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a batch of {len(self)}")
        return {name: value[index] for name, value in self.columns.items()}


def takes_whole_batches(collator: Any) -> bool:
    """Whether a collator would only stack the rows of a `WholeBatch` again."""
    return getattr(collator, "takes_whole_batches", False) is True


class DistillationCollator:
    """Collates each model's columns with its own collator; labels come out as `hf_kd.functional.task_loss` takes them.

    A class index stays an integer, and a null or NaN becomes -100 (unlabelled). With several labels per row, and for a
    regression, labels become floats, and a null becomes -100 in every place, or NaN.

    Args:
        student_collator: Collates everything that is not the teacher's alone.
        teacher_collator: Collates the `teacher_` columns, prefix removed, e.g. pads with the teacher's tokenizer. By
            default the student's does.
        label_name: The label column, if it is not one of `LABEL_KEYS`.
        problem_type: What the labels are.
        num_labels: How many numbers a row's label is; 1 by default. Plays no part for classes.
    """

    def __init__(
        self,
        student_collator: Callable,
        teacher_collator: Callable | None = None,
        label_name: str = "labels",
        *,
        problem_type: str = SINGLE_LABEL,
        num_labels: int | None = None,
    ):
        self.student_collator = student_collator
        self.teacher_collator = teacher_collator
        self.problem_type, self.num_labels = problem_type, num_labels or 1
        is_apart = problem_type != SINGLE_LABEL and label_name not in LABEL_KEYS
        self.label_keys = [label_name] if is_apart else list(dict.fromkeys([label_name, *LABEL_KEYS]))
        self.label_keys.append(LABELS_MIX)

    @property
    def draws_nothing(self) -> bool:
        """Whether both collators are known to draw no random numbers."""
        return all(draws_nothing(one) for one in (self.student_collator, self.teacher_collator) if one is not None)

    @property
    def tokenizer(self) -> Any:
        """The student's tokenizer, which the Trainer saves when it has no processing class."""
        return getattr(self.student_collator, "tokenizer", None)

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """One batch from a list of examples."""
        if isinstance(features, WholeBatch):
            if self._can_be_passed(features):
                return dict(self.student_collator(features))
            features = list(features)
        if not features or not isinstance(features[0], Mapping):
            return self.student_collator(features)
        student, own = [dict(feature) for feature in features], [key for key in features[0] if _is_teachers(key)]
        teacher = [{key.removeprefix(TEACHER_PREFIX): row.pop(key) for key in own} for row in student] if own else []
        for row in student:
            for key in self.label_keys:
                if key in row:
                    row[key] = self._label(row[key])
        batch = dict(self.student_collator(student))
        if teacher:
            if LABELS_MIX in batch and LABELS_MIX not in student[0]:
                raise ValueError(
                    f"`DistillationTrainer(data_collator=...)` mixed the student's rows (it returned `{LABELS_MIX}`), "
                    f"and the teacher reads columns of its own ({', '.join(own)}), which it would mix otherwise or "
                    "not at all. Hand the trainer `mixing=Mixing(...)` instead, which treats both alike."
                )
            collate = self.teacher_collator or self.student_collator
            batch |= {TEACHER_PREFIX + key: value for key, value in dict(collate(teacher)).items()}
        return batch

    def _can_be_passed(self, batch: WholeBatch) -> bool:
        """Whether row by row the same would come of it: plain collators, and labels as `_label` makes them."""
        own = any(_is_teachers(key) for key in batch.columns)
        teacher = self.teacher_collator or self.student_collator
        is_plain = takes_whole_batches(teacher) or teacher is default_data_collator
        if not takes_whole_batches(self.student_collator) or (own and not is_plain):
            return False
        labels = [batch.columns[key] for key in self.label_keys if key in batch.columns]
        if self.problem_type == SINGLE_LABEL:
            return all(label.dim() == 1 and not label.is_floating_point() for label in labels)
        shapes = [(self.num_labels,)] + ([()] if self.problem_type == REGRESSION and self.num_labels == 1 else [])
        return all(label.is_floating_point() and tuple(label.shape[1:]) == shapes[-1] for label in labels)

    def _label(self, label: Any) -> Any:
        """One row's label: a class index, or floats."""
        if self.problem_type == SINGLE_LABEL:
            return _class_index(label)
        shape = () if self.problem_type == REGRESSION and self.num_labels == 1 else (self.num_labels,)
        missing = math.nan if self.problem_type == REGRESSION else IGNORE_INDEX
        if label is None:
            return np.full(shape, missing).tolist()
        try:
            numbers = np.asarray(label.tolist() if isinstance(label, Tensor) else label, dtype=np.float64)
            numbers = numbers.reshape(shape) if numbers.size == self.num_labels == 1 else numbers
        except (TypeError, ValueError):  # text, or rows within the row
            numbers = None
        if numbers is None or numbers.shape != shape:
            raise ValueError(
                f"`DistillationTrainer` got the label {label!r}, but the head of `model`, for {self.problem_type}, "
                f"needs {self.num_labels} number{'s' if self.num_labels > 1 else ''} per row. None marks a row "
                "without label."
            )
        return np.where(np.isnan(numbers), missing, numbers).tolist()


def _class_index(label: Any) -> Any:
    """A label with "no label" as -100. Formatted datasets turn an integer column with nulls into floats and NaN."""
    if label is None:
        return IGNORE_INDEX
    if isinstance(label, Tensor) and label.dim() == 0 and label.is_floating_point():
        index = _class_index(label.item())
        return torch.tensor(index) if isinstance(index, int) else label
    if isinstance(label, np.generic):
        label = label.item()
    if isinstance(label, float) and (math.isnan(label) or label.is_integer()):
        return IGNORE_INDEX if math.isnan(label) else int(label)
    return label

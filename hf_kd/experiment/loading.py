"""What an evaluation reads: models by name with their processors, and the rows of one split."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import ConcatDataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..adapter_files import MERGED
from ..data import BENCHMARKS, SPLITS, Task, load_task
from ..functional import REGRESSION
from ..registry import ConfigError, suggestion
from ..teacher import auto_class, load_teacher
from .student_checks import folder_problems, one_line

ALL = "all"
NOT_FOR_SCORING = ("labelled", "drop_unlabelled", "class_weights", "sample_weight", "augmentation", "in_memory")
"""Options of `load_task` that only change training rows, or how fast they are read again and again."""

UNSCORED = 100
"""Rows that are kept of the splits that are not scored."""

BEGIN_AT_PADDING = ("roberta", "camembert", "mpnet", "longformer", "data2vec-text")
"""Architectures whose first positions belong to padding, so that they read two tokens less than they have."""


@dataclass(frozen=True)
class Loading:
    """How models are loaded; see `hf_kd.load_teacher`."""

    dtype: Any = "auto"
    trust_remote_code: bool = False
    use_safetensors: bool = True


class Data(NamedTuple):
    """The data of an evaluation.

    Args:
        task: As the model reads them.
        split: Which of its splits to score; "all" for their union.
        limit: Score so many rows of the union at most.
        notes: What to say about that.
    """

    task: Task
    split: str
    limit: int | None
    notes: list[str]

    def rows(self, task: Task) -> Any:
        """The rows to score, of `task` or what was made of it."""
        if self.split != ALL:
            return getattr(task, self.split)
        parts = [getattr(task, name) for name in SPLITS]
        total = sum(map(len, parts))
        if self.limit is None or self.limit >= total:
            return ConcatDataset(parts)
        chosen, start, kept = np.linspace(0, total - 1, self.limit).astype(int), 0, []
        for part in parts:
            kept.append(part.select(chosen[(chosen >= start) & (chosen < start + len(part))] - start))
            start += len(part)
        return ConcatDataset([part for part in kept if len(part)])


@dataclass
class Source:
    """A model as the user names it.

    Args:
        role: "model" or "teacher", for what is said about it.
        model: A classifier, its Hub id, or a folder.
        revision: Branch, tag or commit.
        processor: Its processor, the Hub id or folder of one, or None for its own.
        label_map: As `LabelMap.match` takes it.
        loading: How it is loaded.
        notes: What a reader of its numbers should know.
    """

    role: str
    model: Any
    revision: str
    processor: Any
    label_map: Any
    loading: Loading
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called in results."""
        if isinstance(self.model, PreTrainedModel):
            return self.model.config._name_or_path or type(self.model).__name__
        return str(self.model)

    @cached_property
    def path(self) -> str | None:
        """Where it is loaded from: the merged student of a run with an adapter; None if nothing tells."""
        if isinstance(self.model, PreTrainedModel):
            return self.model.config._name_or_path or None
        problems = folder_problems(self.role, str(self.model))
        if problems:
            raise ConfigError(problems)
        folder = Path(self.model).expanduser()
        if not folder.is_dir():
            return str(self.model)
        if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
            if (folder / MERGED / "config.json").is_file():
                self.notes.append(f"{folder} holds an adapter; its merged student is what is scored.")
                return str(folder / MERGED)
            raise ConfigError(
                [
                    f"{self.role}: {str(folder)!r} holds an adapter alone. Merge it with its base model "
                    "(`hf_kd.merged_student`, `save_pretrained`) and name that folder."
                ]
            )
        return str(folder)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its configuration."""
        if isinstance(self.model, PreTrainedModel):
            return self.model.config
        path = self.path
        options = {"revision": self.revision, "trust_remote_code": self.loading.trust_remote_code}
        try:
            return AutoConfig.from_pretrained(path, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                [f"{self.role}: {self.name!r} is neither a model's folder nor one on the Hub: {one_line(error)}"]
            ) from error

    @cached_property
    def kind(self) -> str:
        """What it classifies: "image" or "text"."""
        config = self.config
        try:
            return "image" if auto_class(config) is AutoModelForImageClassification else "text"
        except ValueError as error:
            raise ConfigError([f"{self.role}: {self.name!r} is no classifier: {one_line(error)}"]) from error

    @property
    def problem_type(self) -> str | None:
        """What its head is for; None where it does not say. One output is a regression, as in `transformers`."""
        return self.config.problem_type or (REGRESSION if self.config.num_labels == 1 else None)

    def check_kind(self, other: "Source") -> None:
        """Refuse a teacher that reads other things than the model."""
        if self.kind != other.kind:
            raise ConfigError(
                [
                    f"{self.role}: {self.name!r} classifies {self.kind}s and {other.name!r} {other.kind}s, so there "
                    "are no rows that both read. Name a model of the same kind."
                ]
            )

    def load(self, problem_type: str) -> PreTrainedModel:
        """The model, refused if its head was never trained or is for another problem than the data's."""
        stated, outputs = self.problem_type, self.config.num_labels
        if stated not in (None, problem_type) or (problem_type == REGRESSION and outputs != 1):
            raise ConfigError(
                [
                    f"{self.role}: {self.name!r} has a head of {outputs} output{'s' if outputs > 1 else ''} for "
                    f"{stated or 'classes'}, and the labels of the data are for {problem_type}: its answers say "
                    "something else. Say what the labels are with problem_type, or name another model."
                ]
            )
        if isinstance(self.model, PreTrainedModel):
            return self.model
        loading = self.loading
        try:
            return load_teacher(
                self.path,
                revision=self.revision,
                dtype=loading.dtype,
                trust_remote_code=loading.trust_remote_code,
                use_safetensors=loading.use_safetensors,
            )
        except (OSError, ValueError) as error:
            text = one_line(error).replace(
                "so the teacher would hand on random answers", "so it would answer randomly"
            )
            raise ConfigError([f"{self.role}: {text}"]) from error


def own_processor(source: Source, kind: str) -> Any:
    """The tokenizer or image processor of a model; None if none lies with it.

    Raises:
        ConfigError: One is named and cannot be loaded.
    """
    given = source.processor
    if given is not None and not isinstance(given, (str, Path)):
        return given
    auto, words = (AutoTokenizer, "tokenizer") if kind == "text" else (AutoImageProcessor, "image processor")
    where = source.path if given is None else str(given)
    if where is None:
        return None
    revision = {"revision": source.revision} if given is None else {}
    try:
        return auto.from_pretrained(where, trust_remote_code=source.loading.trust_remote_code, **revision)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if given is None:
            return None
        at = "processor" if source.role == "model" else "teacher_processor"
        raise ConfigError([f"{at}: {where!r} holds no {words}: {one_line(error)}"]) from error


def load_data(data: Any, source: Source, split: str | None, options: dict[str, Any]) -> Data:
    """The data as a model reads them.

    Args:
        data: As `load_task` takes it, or a `Task`.
        source: The model.
        split: One of ours, "all", or one by its owner's name; None for all of one table, else for the test split.
        options: Of `load_task`.

    Raises:
        ConfigError: It cannot be loaded, or is not for such a model.
    """
    notes: list[str] = []
    if split is None:
        split = ALL if _is_one_table(data) else "test"
    if isinstance(data, Task):
        _check_task(data, source, split, options)
        return Data(data, split, None, notes)
    processor = own_processor(source, source.kind)
    is_embedded = isinstance(data, str) and data.startswith("embedded/")
    if processor is None and not is_embedded:
        words = "tokenizer" if source.kind == "text" else "image processor"
        raise ConfigError([f"processor: no {words} lies with {source.name!r}. Name the Hub id or folder of one."])
    options = {key: value for key, value in options.items() if value is not None and key not in NOT_FOR_SCORING}
    knows_its_problem = is_embedded or (isinstance(data, str) and data in BENCHMARKS)
    if source.problem_type is not None and not knows_its_problem:
        options.setdefault("problem_type", source.problem_type)
    if source.kind == "text" and processor is not None:
        _limit_tokens(processor, source.config, options, notes)
    shown = _choose_split(data, split, is_embedded, options, notes)
    try:
        task = load_task(data, processor=processor, **options)
    except TypeError as error:
        if "processor=" not in str(error):
            raise ConfigError([f"data: {one_line(error)}"]) from error
        other = "texts" if source.kind == "image" else "images"
        raise ConfigError([_other_kind(source, str(data), other)]) from error
    except (ValueError, OSError, ImportError) as error:
        at = "split" if shown != split else "data"
        raise ConfigError([f"{at}: {one_line(error)}"]) from error
    if shown in SPLITS:
        task = replace(task, description=_only_of(task.description, shown))
    return Data(task, shown, options.get("max_samples") if shown == ALL else None, notes)


def _is_one_table(data: Any) -> bool:
    """Whether nothing says which rows are for training."""
    return isinstance(data, Dataset) or isinstance(data, (str, Path)) and Path(data).expanduser().is_file()


def _other_kind(source: Source, data: str, other: str) -> str:
    return (
        f"model: {source.name!r} is a {source.config.model_type}, which classifies {source.kind}s, and the rows of "
        f"{data} are {other}. Name a model of their kind, or other columns of the data."
    )


def _check_task(task: Task, source: Source, split: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ConfigError([f"data_options: {', '.join(options)}: a `Task` is loaded already. Leave them out."])
    if split not in (*SPLITS, ALL):
        raise ConfigError([f"split: a `Task` has no {split!r}.{suggestion(split, [*SPLITS, ALL])}"])
    if task.modality != source.kind:
        raise ConfigError([_other_kind(source, task.name, f"{task.modality}s")])


def _choose_split(data: Any, split: str, is_embedded: bool, options: dict[str, Any], notes: list[str]) -> str:
    """Change `options` so that as little as possible is read beside the split; what to score of it."""
    limit = options.pop("max_samples", None)
    limit = limit.get(split) if isinstance(limit, Mapping) else limit
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError([f"max_samples: expected a whole number >= 1, got {limit!r}: so many rows are scored."])
    if limit is not None:
        options["max_samples"] = limit
    if split not in (*SPLITS, ALL):
        if is_embedded:
            raise ConfigError([f"split: {data} has no {split!r}.{suggestion(split, [*SPLITS, ALL])}"])
        if options.get("splits"):
            raise ConfigError(
                [f"split: is {split!r}, beside data options that say which splits there are. Leave one out."]
            )
        options["splits"] = {"train": split}
        notes.append(f"All rows of the split {split!r} are scored.")
        return ALL
    if options.get("streaming") and split == ALL:
        raise ConfigError(["split: 'all' are three splits, which a stream cannot join. Name one of them."])
    if split == ALL:
        whole = "of the whole file" if _is_one_table(data) else "of all splits, those for training too,"
        notes.append(f"Rows {whole} are scored.")
        return ALL
    # the others are cut down after all choices are made: nobody wants to wait for their tokens
    options["max_samples"] = {other: UNSCORED for other in SPLITS if other != split}
    if limit is not None:
        options["max_samples"][split] = limit
    return split


def _only_of(description: str, split: str) -> str:
    """Without what is said of texts cut in the other splits, of which few rows were kept."""
    said = re.search(r"Texts are cut after \d+ tokens: (.*?)\.(?= |$)", description)
    if said is None:
        return description
    share = re.search(rf"[\d.]+% of {split}", said[0])
    return description.replace(said[1], share[0]) if share else description


def _limit_tokens(processor: Any, config: PreTrainedConfig, options: dict[str, Any], notes: list[str]) -> None:
    """Where neither the user nor the tokenizer says how long a text may be, the model's positions do."""
    positions = getattr(config, "max_position_embeddings", None)
    if options.get("max_length") is not None or not isinstance(positions, int) or positions < 3:
        return
    if processor.model_max_length <= positions:
        return
    if any(name in config.model_type for name in BEGIN_AT_PADDING):
        positions -= 2
    options["max_length"] = positions
    notes.append(f"Texts are cut after {positions} tokens, as many as the model has positions for.")


def check_dtype(dtype: Any) -> Any:
    """A precision that models can be held in."""
    names = ("auto", "float32", "bfloat16", "float16")
    if isinstance(dtype, torch.dtype) or dtype in names:
        return dtype
    raise ConfigError([f"dtype: unknown precision {dtype!r}.{suggestion(dtype, names)}"])

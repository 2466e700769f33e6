"""`load_task`: a name or a path in, a `Task` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from ..functional import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..metrics import metrics_for
from ..mixing import Mixing
from ..registry import suggestion
from .augmentation import Augmentation, parse_augmentation, parse_mixing
from .benchmarks import BENCHMARKS, Benchmark
from .digits import digits_source
from .docstrings import docstrings_source
from .generic import table_source
from .in_memory import DEVICE, kept_in_memory
from .processing import processed_images, tokenized_texts
from .reading import TableOptions, table_name
from .rows import IGNORE_INDEX, Rows, hide_labels, sampled_rows
from .streaming import limited_streams, stream_inputs, stream_source
from .task import ImageCollator, Source, Task, TextCollator
from .truncation import truncation_notes
from .weights import with_class_weights

EMBEDDED: dict[str, Callable[[], Source]] = {
    "embedded/digits": digits_source,
    "embedded/docstrings": docstrings_source,
}


PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


def load_task(
    name_or_path: str | Path | Mapping[str, Any] | datasets.Dataset,
    *,
    path: str | Path | None = None,
    processor: BaseImageProcessor | PreTrainedTokenizerBase | None = None,
    text_column: str | tuple[str, str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    splits: Mapping[str, str] | None = None,
    missing_label: int | str | None = None,
    problem_type: str | None = None,
    metrics: Sequence[str] = (),
    max_samples: int | Mapping[str, int] | None = None,
    max_length: int | None = None,
    labelled: int | None = None,
    drop_unlabelled: bool = False,
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    sample_weight: str | None = None,
    teacher_logits: str | None = None,
    augmentation: str | Mapping[str, Any] | None = None,
    streaming: bool = False,
    in_memory: bool | str = False,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Task:
    """Load a classification data set: embedded, a named benchmark, or any local or Hub one with images or texts.

    Splits that are missing are cut off the training rows, a tenth of the labelled ones each, stratified by class and
    seeded. The splits of the embedded sets are fixed and do not follow ``seed``. What was chosen, made and left out is
    said in the task's ``description``.

    In a folder, files are the splits they are named after: ``train.jsonl``, ``val.csv.gz``,
    ``test-00000-of-00002.parquet``. Images lie in a folder per class, below a folder per split or without one. A
    ``labels.txt`` beside the files, one class name per line, names the ids of numeric labels.

    Args:
        name_or_path: ``"embedded/digits"`` or ``"embedded/docstrings"``; a name in `BENCHMARKS`, such as
            ``"cifar100"`` or ``"glue/cola"``; a file (.csv, .tsv, .json, .jsonl, .parquet; also compressed), a folder
            (images, data files, or what `save_to_disk` wrote), or a name on the Hub; a mapping of split names to files
            or to `datasets.Dataset`; or one `datasets.Dataset`.
        path: A local copy of the benchmark, instead of the Hub's.
        processor: The image processor or tokenizer of the student. The embedded sets bring a small one of their own.
        text_column: The text, or two columns for pairs of texts. Detected where only one fits.
        image_column: The image, or a path to one. Detected where only one fits.
        label_column: The label: class ids or class names. Detected where only one fits.
        subset: The configuration of a Hub data set, e.g. ``"sst2"`` of ``"nyu-mll/glue"``.
        revision: The commit, tag or branch of a Hub data set.
        splits: Which split of the data set serves as ``train``, ``validation`` and ``test``; files, folders and the
            Hub also take slices and sums such as ``"train[:80%]+extra"``.
        missing_label: A value of the label column that means unlabelled, besides null and -100. Benchmarks know
            theirs.
        problem_type: What the labels are: ``"single_label_classification"`` unless a benchmark says otherwise,
            ``"multi_label_classification"`` (lists of names or ids, or one 0 or 1 per class) or ``"regression"``.
        metrics: Metrics to report besides the usual ones, by name; see `hf_kd.metrics.metrics_for`.
        max_samples: Keep at most so many rows of each split, stratified by class and seeded; or a mapping per split.
        max_length: Cut texts after so many tokens. None: the tokenizer's ``model_max_length``; 64 for the docstrings.
        labelled: Keep the labels of so many training rows, stratified by class and seeded, and set the others to -100.
        drop_unlabelled: Leave training rows without a label out: what a student without a teacher learns from.
        class_weights: How much the labels of each class count in training: ``"balanced"`` (inversely to their number
            among the training rows), one number per class in id order, or numbers by class name.
        sample_weight: A column of numbers that say how much each training row's label counts. Both weigh the labels
            alone: distillation counts every row once. They make the column ``label_weight``.
        teacher_logits: A column of a teacher's logits, one number per class in id order, from which a trainer
            without a teacher distils; see `hf_kd.add_teacher_logits`. Splits without it keep none.
        augmentation: Random changes of the training images, e.g. ``"crop_flip"`` or ``{"name": "random_resized_crop",
            "random_erasing": 0.25}``; see `hf_kd.data.augmentation.Augmentation`. ``mixup`` and ``cutmix``, with
            ``mix_probability`` and ``switch_probability``, are settings of `hf_kd.Mixing`: `DistillationTrainer` takes
            them from the task's collator.
        streaming: Read rows as they are needed and store none of them, for sets of the size of ImageNet: splits are
            then `datasets.IterableDataset`, training needs ``max_steps``, and a missing validation split is the first
            10,000 training rows. Classes must be known beforehand.
        in_memory: Decode all images once and keep them as bytes, 3 for each pixel, so that data loaders make whole
            batches of them; ``"device"`` keeps them in the memory of the device that `DistillationTrainer` trains on.
            For small images of one size. It changes no number, only time: ``crop_flip`` and ``random_erasing`` are
            done to whole batches; other augmentations, and processors that resize, still work on one image at a time.
        seed: Seed of every choice of rows above.
        cache_dir: Where the metrics, and `datasets` when it reads files or the Hub, may write. None: the metrics write
            nothing and `datasets` uses its own cache. The embedded sets themselves never touch the disk.

    Returns:
        The task; `Task` says what its rows hold.

    Raises:
        ValueError: If the name, a column, a label or a number does not fit; the message lists what there is.
        TypeError: If the processor is of the wrong kind.
        ImportError: If a library whose docstrings ``"embedded/docstrings"`` reads is not installed.

    Example:
        >>> task = load_task("embedded/digits", labelled=200)
        >>> len(task.train), task.num_labelled, task.label_names[:3]
        (1297, 200, ('0', '1', '2'))
    """
    _check_numbers(seed=seed, max_length=max_length)
    _check_in_memory(in_memory, streaming)
    options = TableOptions(
        text_columns=(text_column,) if isinstance(text_column, str) else text_column,
        image_column=image_column,
        label_column=label_column,
        subset=subset,
        revision=revision,
        splits=splits,
        missing_label=missing_label,
        problem_type=_checked_problem_type(problem_type),
        streaming=streaming,
        sample_weight=sample_weight,
        teacher_logits=teacher_logits,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    source, benchmark = _source(name_or_path, path, options, seed)
    processor = _checked_processor(table_name(name_or_path), source, processor)
    tables = _tables(source, max_samples, labelled, drop_unlabelled, class_weights, seed)
    changes, mixing = _checked_augmentation(augmentation, source, processor, teacher_logits)
    inputs, notes = _inputs(source, tables, processor, max_length, changes, in_memory)
    scores = _metrics(source, benchmark, metrics, cache_dir)
    return _task(table_name(name_or_path), source, inputs, processor, scores, mixing, notes)


def _task(
    name: str,
    source: Source,
    inputs: Mapping[str, Any],
    processor: Any,
    scores: tuple[Callable[..., dict[str, float]], str],
    mixing: Mixing | None,
    notes: Sequence[str],
) -> Task:
    """All that was settled."""
    return Task(
        name=name,
        modality=source.modality,
        **inputs,
        collator=TextCollator(processor) if source.modality == "text" else ImageCollator(mixing),
        compute_metrics=scores[0],
        label_names=source.label_names,
        processing_class=processor,
        fingerprint=source.fingerprint,
        description=" ".join([source.description, *notes, *_mixing_notes(mixing)]),
        problem_type=source.problem_type,
        metric=scores[1],
        origin=source.origin,
    )


def _tables(
    source: Source, max_samples: Any, labelled: int | None, drop_unlabelled: bool, class_weights: Any, seed: int
) -> dict[str, Any]:
    """The rows that are kept, with the labels that are."""
    limits = _limits(source.splits, max_samples)
    if source.is_streamed:
        if labelled is not None or drop_unlabelled or class_weights is not None:
            raise ValueError(
                "`load_task(streaming=True)` does not go with `labelled`, `drop_unlabelled` and `class_weights`: "
                "these look at all rows, and a stream is not read beforehand. Leave one out."
            )
        return limited_streams(source.splits, limits)
    chosen = _limited(source.splits, limits, seed)
    if labelled is not None:
        chosen["train"] = chosen["train"].with_labels(hide_labels(chosen["train"].labels, labelled, seed))
    if drop_unlabelled:
        chosen["train"] = chosen["train"].take(np.flatnonzero(chosen["train"].labels != IGNORE_INDEX))
    if class_weights is not None:
        names, kind = source.label_names, source.problem_type
        chosen["train"] = with_class_weights(chosen["train"], class_weights, names, kind)
    weighed = {split: rows if split == "train" else replace(rows, weights=None) for split, rows in chosen.items()}
    return {split: rows.dataset() for split, rows in weighed.items()}


def _inputs(
    source: Source,
    splits: dict[str, datasets.Dataset],
    processor: Any,
    max_length: int | None,
    augmentation: Augmentation | None,
    in_memory: bool | str,
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The rows as the student reads them, and what to say about that."""
    if in_memory and source.modality != "image":
        raise ValueError(
            f"`load_task(in_memory={in_memory!r})`: the rows are {source.modality}s, and it is for images. Leave it "
            "out: tokens are in memory anyway."
        )
    if source.is_streamed:
        return stream_inputs(source, splits, processor, max_length, augmentation)
    if source.modality == "image":
        notes = [] if augmentation is None else [f"Training images are augmented: {augmentation}."]
        made = processed_images(splits, source.columns[0], processor, augmentation, up_front=not in_memory)
        return kept_in_memory(made, in_memory) if in_memory else made, notes
    limit = max_length or source.max_length
    made = tokenized_texts(splits, source.columns, processor, limit)
    return made, truncation_notes(made, source.columns, processor, limit)


def _checked_augmentation(
    spec: Any, source: Source, processor: Any, logits: str | None
) -> tuple[Augmentation | None, Mixing | None]:
    """What changes single images, and what mixes batches of them."""
    if spec is None:
        return None, None
    if logits is not None:
        raise ValueError(
            f"`load_task(augmentation={spec!r}, teacher_logits={logits!r})`: the stored logits are answers to the "
            "images as they lie there, and the student would see others. Leave one out; a teacher that runs during "
            "training answers to what the student sees."
        )
    if source.modality != "image":
        raise ValueError(
            f"`load_task(augmentation={spec!r})`: the rows are {source.modality}s, and augmentations change images. "
            "Leave it out."
        )
    names, settings = parse_augmentation(spec)
    mixing = parse_mixing(spec)
    if mixing is not None and source.problem_type == REGRESSION:
        raise ValueError(
            f"`load_task(augmentation={spec!r})`: the labels are numbers, and squared error is not linear in them, so "
            "two of them make no loss of a mixture. Leave mixup and cutmix out."
        )
    return Augmentation(spec, processor) if names or settings else None, mixing


def _mixing_notes(mixing: Mixing | None) -> list[str]:
    return [] if mixing is None else [f"Training batches are mixed: {mixing!r}."]


def _benchmark(name_or_path: Any, path: Any) -> Benchmark | None:
    if isinstance(name_or_path, str) and name_or_path in BENCHMARKS:
        return BENCHMARKS[name_or_path]
    if path is not None:
        raise ValueError(
            f"`load_task({name_or_path!r}, path={str(path)!r})`: `path` is where a local copy of a named benchmark "
            f"lies.{suggestion(name_or_path, BENCHMARKS)} For any other data set pass the path alone."
        )
    return None


def _checked_problem_type(problem_type: Any) -> str | None:
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"`load_task(problem_type=...)` is {problem_type!r}: it says what the labels are."
            f"{suggestion(problem_type, PROBLEM_TYPES)}"
        )
    return problem_type


def _metrics(
    source: Source, benchmark: Benchmark | None, extra: Sequence[str], cache_dir: Any
) -> tuple[Callable[..., dict[str, float]], str]:
    """The metrics, and the one that results are quoted in."""
    fits = benchmark is not None and benchmark.problem_type == source.problem_type
    names = [*(benchmark.also if fits else ()), *([extra] if isinstance(extra, str) else extra)]
    compute = metrics_for(
        source.problem_type,
        source.label_names,
        names,
        cache_dir=cache_dir,
        top_k=benchmark.top_k if fits and (benchmark.top_k or 0) < len(source.label_names) else None,
    )
    return compute, benchmark.metric if fits else compute.first


def _check_numbers(seed: int, max_length: int | None) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(
            f"`load_task(seed=...)` must be an integer >= 0, got {seed!r}: it seeds every choice of rows. Pass e.g. 0."
        )
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3):
        raise ValueError(
            f"`load_task(max_length=...)` must be an integer >= 3 or None, got {max_length!r}: a text needs room for "
            "its first and last special token and a word. Pass e.g. 128."
        )


def _check_in_memory(in_memory: bool | str, streaming: bool) -> None:
    if not isinstance(in_memory, bool) and in_memory != DEVICE:
        raise ValueError(
            f"`load_task(in_memory=...)` must be True, False or {DEVICE!r}, got {in_memory!r}: it says where decoded "
            "images are kept. Pass True for the memory of the processor."
        )
    if in_memory and streaming:
        raise ValueError(
            f"`load_task(in_memory={in_memory!r}, streaming=True)`: one keeps all rows and the other none. Leave one "
            "out."
        )


def _source(name_or_path: Any, path: Any, options: TableOptions, seed: int) -> tuple[Source, Benchmark | None]:
    """The rows, and the benchmark they are of."""
    known = (*EMBEDDED, *BENCHMARKS)
    read = stream_source if options.streaming else table_source
    benchmark = _benchmark(name_or_path, path)
    if benchmark is not None:
        if path is not None and not Path(path).expanduser().exists():
            raise ValueError(
                f"`load_task({name_or_path!r}, path={str(path)!r})`: there is no such file or folder. Correct the "
                "path, or leave it out to read the Hub's."
            )
        options = benchmark.options(options, local=path is not None)
        where = benchmark.hub if path is None else path
        return read(where, options, seed=seed, known_tasks=known, benchmark=benchmark), benchmark
    if not isinstance(name_or_path, str) or not name_or_path.startswith("embedded/"):
        return read(name_or_path, options, seed=seed, known_tasks=known, benchmark=None), None
    if name_or_path not in EMBEDDED:
        raise ValueError(
            f"`load_task(name_or_path=...)` is {name_or_path!r}, which is no embedded set: names that start with "
            f"'embedded/' are built into the package.{suggestion(name_or_path, EMBEDDED)}"
        )
    given = options.given()
    if given:
        raise ValueError(
            f"`load_task({', '.join(f'{option}=...' for option in given)})` was passed with {name_or_path!r}: the "
            "columns and splits of an embedded set are fixed. Leave it out."
        )
    return EMBEDDED[name_or_path](), None


def _checked_processor(name: str, source: Source, processor: Any) -> Any:
    kind, wanted, auto = (
        ("a tokenizer", PreTrainedTokenizerBase, "AutoTokenizer")
        if source.modality == "text"
        else ("an image processor", BaseImageProcessor, "AutoImageProcessor")
    )
    processor = source.processor if processor is None else processor
    if processor is None:
        raise ValueError(
            f"`load_task({name!r}, processor=...)` is None: {source.modality} rows become model inputs only through "
            f"{kind}, the student's own. Pass {auto}.from_pretrained(<the student>)."
        )
    if not isinstance(processor, wanted):
        raise TypeError(
            f"`load_task({name!r}, processor=...)` must be {kind} because the rows are {source.modality}s, got "
            f"{type(processor).__name__}: it cannot read them. Pass {auto}.from_pretrained(<the student>)."
        )
    return processor


def _limits(splits: Mapping[str, Any], max_samples: int | Mapping[str, int] | None) -> dict[str, int]:
    """How many rows of which splits are kept."""
    if max_samples is None:
        return {}
    limits = dict(max_samples) if isinstance(max_samples, Mapping) else dict.fromkeys(splits, max_samples)
    for split, limit in limits.items():
        if split not in splits or isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(
                f"`load_task(max_samples=...)` must be a positive integer, or map some of {', '.join(splits)} to one, "
                f"got {max_samples!r}: each split keeps that many rows. Pass e.g. 1000, or {{'train': 1000}}."
            )
    return limits


def _limited(splits: Mapping[str, Rows], limits: Mapping[str, int], seed: int) -> dict[str, Rows]:
    kept = dict(splits)
    for split, limit in limits.items():
        if limit < len(splits[split]):
            kept[split] = splits[split].take(sampled_rows(splits[split].labels, limit, seed))
    return kept

"""From a name, a path or tables in memory to splits as their owner called them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError

from ..registry import nearest, suggestion
from .origin import hub_origin
from .pictures import SPLIT_ALIASES, image_folder, is_image, split_called
from .stored_logits import LABEL_FILE, MANIFEST

BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
NOTHING = ["", "nan", "NaN", "-nan", "-NaN"]  # cells that are empty, as numbers are printed that are none
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}

_SHARD = re.compile(r"[-_.]\d+-of-\d+(?:-[0-9a-f]+)?$")  # train-00000-of-00002
_NUMBER = re.compile(r"[-_.]?\d+$")  # train_1
_PART = re.compile(r"(?P<split>[\w.]+)(?P<slice>\[[^\[\]]*\])?")


@dataclass(frozen=True)
class TableOptions:
    """How to read a table; the arguments of `load_task` of the same names."""

    text_columns: tuple[str, ...] | None = None
    image_column: str | None = None
    label_column: str | None = None
    subset: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] | None = None
    missing_label: int | str | None = None
    problem_type: str | None = None
    streaming: bool = False
    sample_weight: str | None = None
    teacher_logits: str | None = None
    cache_dir: str | None = None

    def given(self) -> list[str]:
        """The options that say something about the table, by their names in `load_task`."""
        names = [field.name for field in fields(self) if field.name != "cache_dir"]
        return [name.replace("text_columns", "text_column") for name in names if getattr(self, name)]


@dataclass(frozen=True)
class Loaded:
    """What was read.

    Args:
        splits: By the owner's names, or by ours where the user mapped them.
        label_names: What ``labels.txt`` beside the files says, in id order; None without one.
        notes: What the reader should know about the choice of files, for the description.
        folder: Where files were read.
        origin: Name, revision and commit on the Hub; None of what is local.
    """

    splits: dict[str, Any]
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    origin: Mapping[str, str | None] | None = None


def read_splits(name_or_path: Any, options: TableOptions, known_tasks: tuple[str, ...]) -> Loaded:
    """Read a table from wherever it is.

    Raises:
        ValueError: There is no such table, its files cannot be read, or a split named is not there.
        TypeError: The source is neither a name, nor a path, nor tables.
    """
    if options.streaming and not isinstance(name_or_path, (str, Path)):
        raise ValueError(
            f"`load_task(streaming=True)` got {type(name_or_path).__name__}: only files below a path and sets on the "
            "Hub are read as a stream. Leave streaming out, or pass the folder."
        )
    if isinstance(name_or_path, datasets.Dataset):
        return Loaded(_renamed({"train": name_or_path}, options))
    if isinstance(name_or_path, Mapping):
        if name_or_path and all(isinstance(part, datasets.Dataset) for part in name_or_path.values()):
            return Loaded(_renamed(dict(name_or_path), options))
        return _from_files(_checked_files(name_or_path), options)
    if not isinstance(name_or_path, (str, Path)):
        raise TypeError(
            f"`load_task(name_or_path=...)` must be a name, a path, a mapping of splits or a `datasets.Dataset`, got "
            f"{type(name_or_path).__name__}: it says where the rows are. Pass e.g. 'embedded/digits'."
        )
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _from_files({"train": [str(path)]}, options)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        if options.streaming:
            raise ValueError(
                f"`load_task(streaming=True)` got {str(path)!r}, which `save_to_disk` wrote: its rows are mapped "
                "from the disk and never read whole. Leave streaming out."
            )
        saved = _from_disk(path)
        splits = {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)
        return Loaded(_renamed(splits, options), _label_file(path), folder=path)
    pictures = image_folder(path) if path.is_dir() and options.subset is None else None
    if pictures is not None:
        if options.streaming:
            raise ValueError(
                f"`load_task(streaming=True)` got the image folder {str(path)!r}: its images are read one by one when "
                "they are needed, whatever its size. Leave streaming out."
            )
        return Loaded(_renamed(pictures[0], options), _label_file(path), pictures[1], path)
    files, notes = _files_by_split(path, options) if path.is_dir() else ({}, ())
    if files:
        return _from_files(files, options, notes)
    try:
        if path.is_dir():
            return Loaded(_load_dataset(str(path), {}, options), _label_file(path), folder=path)
        name = str(name_or_path)
        splits = _load_dataset(name, {}, options)
        return Loaded(splits, origin=hub_origin(name, options.revision, splits))
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise ValueError(_not_found(name_or_path, error, known_tasks)) from error


def mapped_notes(splits: Mapping[str, str] | None) -> list[str]:
    """Which splits go by another name than their owner's."""
    renamed = {ours: theirs for ours, theirs in (splits or {}).items() if theirs != ours}
    return [f"{theirs} serves as {ours}" for ours, theirs in renamed.items()]


def table_name(name_or_path: Any) -> str:
    """What to call the data in a result: the name, the path, the files, or that it is in memory."""
    if isinstance(name_or_path, (str, Path)):
        return str(name_or_path)
    files = (
        [path for part in name_or_path.values() for path in _paths(part)] if isinstance(name_or_path, Mapping) else []
    )
    return ", ".join(files) or "a data set in memory"


def _not_found(name_or_path: Any, error: Exception, known_tasks: tuple[str, ...]) -> str:
    if Path(name_or_path).is_dir():
        return (
            f"`load_task(name_or_path=...)` is the folder {str(name_or_path)!r}, in which nothing was recognised "
            f"({type(error).__name__}: {error}): rows come from images in a folder per class, or from files of the "
            f"kinds {', '.join(BUILDERS)}, also compressed. Check the path."
        )
    near = nearest(name_or_path, [*known_tasks, *(task.split("/")[-1] for task in known_tasks)])
    hint = f" Did you mean {next(task for task in known_tasks if near in task)!r}?" if near else ""
    return (
        f"`load_task(name_or_path=...)` is {str(name_or_path)!r}, which is neither a file or folder here, nor a "
        f"data set the Hub gave us ({type(error).__name__}: {error}), nor known ({', '.join(known_tasks)})."
        f"{hint} Check the spelling, the path and the network."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _checked_files(parts: Mapping[Any, Any]) -> dict[str, list[str]]:
    files = {str(split): _paths(part) for split, part in parts.items()}
    if not files or not all(files.values()):
        raise ValueError(
            f"`load_task(name_or_path=...)` is a mapping with the values "
            f"{sorted({type(part).__name__ for part in parts.values()})}: each split must be a file, some "
            "files, or a `datasets.Dataset`, all of one kind. Pass e.g. {'train': 'a.csv', 'test': 'b.csv'}."
        )
    return files


def _paths(part: Any) -> list[str]:
    """The files of one split; none where it is something else."""
    parts = part if isinstance(part, (list, tuple)) else [part]
    return [str(path) for path in parts] if all(isinstance(path, (str, Path)) for path in parts) else []


def _stem_and_kind(path: Path) -> tuple[str, str]:
    """A file's name without its kind and compression, and the kind; an empty kind where none is read."""
    stem = path.name
    if Path(stem).suffix.lower() in COMPRESSED:
        stem = Path(stem).stem
    kind = Path(stem).suffix.lower()
    return (Path(stem).stem, kind) if kind in BUILDERS else (path.name, "")


def _split_name(stem: str) -> str:
    """``train`` of ``train-00000-of-00002``, and of ``train_1``; another name as a word."""
    stem = _SHARD.sub("", stem)
    known = split_called(_NUMBER.sub("", stem))
    return known or re.sub(r"\W+", "_", stem)


def _files_by_split(folder: Path, options: TableOptions) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The table files of a folder by the split they are named after; nothing where `datasets` should look itself.

    `datasets` takes every file whose name *contains* a split's for a part of it (``oos_train.jsonl`` for training
    rows): here only the name itself counts, and the rest is left out and named.
    """
    if options.subset is not None or _has_configs(folder):
        return {}, ()
    found = _table_files(folder) or (_table_files(folder / "data") if (folder / "data").is_dir() else [])
    named = [(path, *_stem_and_kind(path)) for path in found]
    kinds = {kind for _, stem, kind in named if _split_name(stem) in SPLIT_ALIASES} or {kind for *_, kind in named}
    if any(is_image(path) for path in folder.iterdir()) or not kinds:
        return {}, ()  # a table beside images describes them
    if len(kinds) > 1:
        raise ValueError(
            f"`load_task(name_or_path=...)` is the folder {str(folder)!r} with files of several kinds "
            f"({', '.join(sorted(path.name for path in found)[:8])}): it is not clear which hold the rows. Pass a "
            "mapping, e.g. {'train': 'train.csv', 'test': 'test.csv'}, or another folder."
        )
    files: dict[str, list[str]] = {}
    for path, stem, kind in named:
        if kind in kinds:
            files.setdefault(_split_name(stem), []).append(str(path))
    if not set(files) & set(SPLIT_ALIASES):
        if options.splits is None:
            return {"train": [path for paths in files.values() for path in paths]}, ()
        return files, ()
    mentioned = [part for theirs in (options.splits or {}).values() for part in _split_parts(theirs)]
    used = {_resolve(part["split"], files) for part in mentioned} | (set() if mentioned else set(SPLIT_ALIASES))
    left = [Path(path).name for split, paths in files.items() if split not in used for path in paths]
    left += [path.name for path, _, kind in named if kind not in kinds]
    return files, (f"files left out: {', '.join(left)}",) if left else ()


def _table_files(folder: Path) -> list[Path]:
    """Files of a kind that is read, but for hidden ones and what describes the rest."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and _stem_and_kind(path)[1]
        and not path.name.startswith((".", "_", "dataset_info", MANIFEST))
    ]


def _has_configs(folder: Path) -> bool:
    """Whether the folder's card says which file is which."""
    card = folder / "README.md"
    return card.is_file() and bool(re.search(r"^configs:", card.read_text("utf-8", "replace"), re.MULTILINE))


def _label_file(folder: Path) -> tuple[str, ...] | None:
    path = folder / LABEL_FILE
    if not path.is_file():
        return None
    names = tuple(path.read_text(encoding="utf-8").rstrip("\n").splitlines())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(name.strip() for name in names):
        raise ValueError(
            f"`load_task(...)` found {str(path)!r} with {f'{twice[0]!r} twice' if twice else 'an empty line'}: it "
            "names one class per line, in the order of their ids. Correct it, or move it away."
        )
    return names


def _from_files(files: dict[str, list[str]], options: TableOptions, notes: Iterable[str] = ()) -> Loaded:
    """Each split by itself: files of one data set need not have the same columns."""
    wanted = options.splits
    if wanted is None:
        known = {split: split for split in files if split_called(split)}
        wanted = known if any(split_called(split) == "train" for split in known) else {split: split for split in files}
    splits = {
        ours: _joined([_read_part(part, files, options) for part in _split_parts(theirs)])
        for ours, theirs in wanted.items()
    }
    folder = Path(next(iter(files.values()))[0]).parent
    return Loaded(splits, _label_file(folder), tuple(notes), folder)


def _split_parts(theirs: str) -> list[re.Match[str]]:
    """The parts of a split expression such as ``train[:80%]+extra``."""
    matches = [_PART.fullmatch(part.strip()) for part in theirs.split("+")]
    if None in matches:
        raise ValueError(
            f"`load_task(splits=...)` says {theirs!r}: a split is a name, a slice of one or a sum of such. Write e.g. "
            "'train', 'train[:80%]' or 'train+extra'."
        )
    return matches


def _resolve(split: str, there: Iterable[str]) -> str | None:
    """The owner's name for a split that the user may call by another usual name."""
    there = list(there)
    aliases = SPLIT_ALIASES.get(split_called(split) or "", ())
    return split if split in there else next((alias for alias in aliases if alias in there), None)


def _read_part(part: re.Match[str], files: dict[str, list[str]], options: TableOptions) -> Any:
    split = _resolve(part["split"], files)
    if split is None:
        raise ValueError(
            f"`load_task(splits=...)` names the split {part['split']!r}, and there is no file for it."
            f"{suggestion(part['split'], list(files))}"
        )
    builder, extra = _builder(files[split][0])
    expression = split + (part["slice"] or "")
    if options.streaming and part["slice"]:
        raise ValueError(
            f"`load_task(splits=...)` says {expression!r} with streaming=True: where a slice ends is only known once "
            "all rows were read. Name whole splits."
        )
    return _load_dataset(builder, extra, options, data_files={split: files[split]}, split=expression)


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    return datasets.concatenate_datasets(parts)


def _builder(path: str) -> tuple[str, dict[str, Any]]:
    kind = _stem_and_kind(Path(path))[1]
    if not kind:
        suffixes = [suffix for suffix in Path(path).suffixes if suffix.lower() not in COMPRESSED]
        raise ValueError(
            f"`load_task(name_or_path=...)` is the file {path!r}, whose kind {(suffixes or ['(no suffix)'])[-1]!r} is "
            f"not read: rows come from {', '.join(BUILDERS)}, also compressed. Convert it, or pass a "
            "`datasets.Dataset`."
        )
    if BUILDERS[kind] == "csv":  # pandas would also take the words NA, None and null for empty cells
        return "csv", {"keep_default_na": False, "na_values": NOTHING, **({"sep": "\t"} if kind == ".tsv" else {})}
    return BUILDERS[kind], {}


def _load_dataset(builder: str, extra: dict[str, Any], options: TableOptions, **where: Any) -> Any:
    """`datasets.load_dataset`: one split where one is named, else all, with ``options.splits`` as expressions."""
    call = {
        "name": options.subset,
        "revision": options.revision,
        "cache_dir": options.cache_dir,
        **({"streaming": True} if options.streaming else {}),
        **extra,
        **where,
    }
    try:
        if "split" in where:
            return datasets.load_dataset(builder, **call)
        if options.splits is None:
            return dict(datasets.load_dataset(builder, **call))
        return {
            split: datasets.load_dataset(builder, split=theirs, **call) for split, theirs in options.splits.items()
        }
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError):
        raise  # the caller knows what was asked for
    except Exception as error:
        files = where.get("data_files") or {}
        if not files and isinstance(error, ValueError) and not isinstance(error, UnicodeError):
            raise  # about a name on the Hub, in words
        names = ", ".join(path for paths in files.values() for path in paths) or repr(builder)
        raise ValueError(
            f"`load_task(name_or_path=...)` could not read {names}: {_reason(error)}. Check that the file is what its "
            "name says, in UTF-8, and that all its rows have the same columns."
        ) from error


def _from_disk(path: Path) -> Any:
    """What `save_to_disk` wrote."""
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:
        raise ValueError(
            f"`load_task(name_or_path=...)` could not read {str(path)!r}, which looks like what `save_to_disk` wrote: "
            f"{_reason(error)}. Write it anew."
        ) from error


def _reason(error: Exception) -> str:
    """What a reader of files met, on one line."""
    said = " ".join(str(error.__cause__ or error).split()).rstrip(".")[:300]
    is_empty = isinstance(error, StopIteration) or "corresponds to no data" in said
    return "it holds no row" if is_empty else said or type(error).__name__


def _renamed(loaded: dict[str, Any], options: TableOptions) -> dict[str, Any]:
    for theirs in (options.splits or {}).values():
        if theirs not in loaded:
            raise ValueError(
                f"`load_task(splits=...)` names the split {theirs!r}, which is not there: slices work on files and "
                f"the Hub only. Available: {', '.join(loaded)}."
            )
    return loaded if options.splits is None else {ours: loaded[theirs] for ours, theirs in options.splits.items()}

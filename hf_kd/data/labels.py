"""Label columns to class ids, to several labels per row, or to numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ..functional import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .rows import IGNORE_INDEX

_HOLES = ("NA", "N/A", "n/a", "NULL", "Null", "null", "None", "<NA>", "#N/A", "?")
_EXACT = 2**53  # up to here a float holds every integer


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Args:
        names: The classes in id order; the one output of a regression is called "score".
        ids: Per split, class ids with -100 for unlabelled. Where a row has no single class, 0 for labelled.
        targets: Per split, what else a row's label is: `(rows, classes)` of 0 and 1, or `(rows,)` numbers. Empty for
            classes.
        notes: Where the names come from, if it is worth saying.
    """

    names: tuple[str, ...]
    ids: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def encode_labels(
    splits: Mapping[str, datasets.Dataset],
    column: str,
    missing_label: int | str | None,
    *,
    problem_type: str = SINGLE_LABEL,
    file_names: Sequence[str] | None = None,
) -> Labels:
    """Read the label column of every split.

    A `datasets.ClassLabel` keeps its ids and names. Other columns get their classes from ``labels.txt`` if there is
    one (names in its order, or numbers counting its lines from 0), else from the training rows: names in alphabetical
    order, numbers in numerical order. Several labels per row are lists of class names or ids, or one 0 or 1 per class.

    Args:
        splits: The splits; ``train`` says which classes there are.
        column: The label column.
        missing_label: A value that means unlabelled, besides null and -100.
        problem_type: What the labels are.
        file_names: What ``labels.txt`` says.

    Raises:
        ValueError: If the labels are not what they should be, fewer than two, or a split has one that is no class.
    """
    values = {split: _values(rows, column) for split, rows in splits.items()}
    feature = splits["train"].features[column]
    if problem_type == REGRESSION:
        targets = {split: _numbers(part, column, missing_label) for split, part in values.items()}
        ids = {split: np.where(np.isnan(part), IGNORE_INDEX, 0) for split, part in targets.items()}
        return Labels(("score",), ids, targets)
    if problem_type == MULTI_LABEL:
        return _several(values, feature, column, file_names)
    for split, part in values.items():
        _check_kinds(part, column, split, missing_label)
    plain = {
        split: [_plain(v, column, missing_label, f" in row {row} of {split}") for row, v in enumerate(part)]
        for split, part in values.items()
    }
    names, classes, notes = _classes(feature, plain["train"], column, file_names)
    _check_enough(names, len(plain["train"]), column)
    ids = {value: index for index, value in enumerate(classes)}
    return Labels(names, {split: _ids(part, ids, split, column) for split, part in plain.items()}, {}, notes)


def _values(rows: datasets.Dataset, column: str) -> list[Any]:
    if column not in rows.features:
        return [None] * len(rows)
    return rows.with_format(None).select_columns([column])[column][:]


def _check_kinds(values: Sequence[Any], column: str, split: str, missing_label: Any) -> None:
    """True and false among names would be two more classes."""
    known = [(row, v) for row, v in enumerate(values) if v is not None and v != missing_label]
    odd = next(((row, v) for row, v in known if isinstance(v, bool)), None)
    if odd is not None and not all(isinstance(v, bool) for _, v in known):
        raise ValueError(
            f"`load_task(label_column={column!r})` holds {odd[1]!r} in row {odd[0]} of {split}, and something else in "
            "others, so it mixes names and numbers with true and false. Make them all of one kind."
        )


def _check_names(classes: Sequence[Any], rows: Mapping[Any, int], column: str) -> None:
    """Names that are blank, or that no reader can tell apart, are slips of the pen."""
    stripped: dict[str, str] = {}
    for name in (value for value in classes if isinstance(value, str)):
        if not name.strip():
            raise ValueError(
                f"`load_task(label_column={column!r})` holds {name!r} in row {rows[name]} of train: a class needs a "
                f"name. If it means unlabelled, pass missing_label={name!r}."
            )
        if name.strip() in stripped:
            raise ValueError(
                f"`load_task(label_column={column!r})` holds {name!r} in row {rows[name]} of train and "
                f"{stripped[name.strip()]!r} in row {rows[stripped[name.strip()]]}: as classes they differ by blanks "
                "alone. Correct the rows."
            )
        stripped[name.strip()] = name


def _hole_notes(classes: Sequence[str], rows: Mapping[Any, int], column: str) -> tuple[str, ...]:
    """Words that some programs write for nothing: classes among names, a slip among numbers."""
    words = [name for name in classes if name in _HOLES]
    if words and all(re.fullmatch(r"[+-]?\d+(\.0*)?", name) for name in classes if name not in _HOLES):
        raise ValueError(
            f"`load_task(label_column={column!r})` holds {words[0]!r} in row {rows[words[0]]} of train, and numbers "
            "otherwise: taken as they are written, all of them would be names. Leave the cell empty where there is no "
            "label."
        )
    return (f"{', '.join(map(repr, words))} is taken for the name of a class",) if words else ()


def _minus_one_notes(classes: Sequence[Any], values: Sequence[Any]) -> tuple[str, ...]:
    """Many tables write -1 where they know no label."""
    if -1 not in classes or min(classes) < -1:
        return ()
    return (f"-1 is one of the classes ({values.count(-1):,} training rows; missing_label=-1 makes them unlabelled)",)


def _classes(
    feature: Any, values: Sequence[Any], column: str, file_names: Sequence[str] | None
) -> tuple[tuple[str, ...], list[Any], tuple[str, ...]]:
    """The names, the values they stand for, and where the names come from."""
    if isinstance(feature, datasets.ClassLabel):
        differ = file_names is not None and tuple(file_names) != tuple(feature.names)
        note = ("labels.txt differs from the names that the table itself holds, and was not used",) if differ else ()
        return tuple(feature.names), list(range(feature.num_classes)), note
    present = {value for value in values if value is not None}
    if len({type(value) for value in present}) > 1:
        raise ValueError(
            f"`load_task(label_column={column!r})` mixes names and numbers ({sorted(map(str, present))[:5]}): it "
            "is not clear which are the same class. Make them all names or all numbers."
        )
    by_number = all(isinstance(value, int) for value in present)
    is_another_columns = file_names is not None and not by_number and present.isdisjoint(file_names)
    if file_names is None or is_another_columns:
        classes = sorted(present)
        first = {value: row for row, value in reversed(list(enumerate(values)))}
        _check_names(classes, first, column)
        notes = ("labels.txt names none of these classes, and was not used",) if is_another_columns else ()
        if by_number:
            notes += _minus_one_notes(classes, values)
        else:
            notes += _hole_notes(classes, first, column)
        return tuple(str(value) for value in classes), classes, notes
    classes = list(range(len(file_names))) if by_number else list(file_names)
    unknown = sorted(present - set(classes))
    if unknown:
        known = f"the ids 0 to {len(file_names) - 1}" if by_number else f"{', '.join(file_names[:5])}, ..."
        raise ValueError(
            f"`load_task(label_column={column!r})` has {', '.join(map(repr, unknown[:5]))} in train, but labels.txt "
            f"beside the files names {len(file_names)} classes ({known}): which class is meant is unknown. Name "
            "another label_column, correct the file, or move it away."
        )
    unseen = [name for name, value in zip(file_names, classes, strict=True) if value not in present]
    notes = ["class names from labels.txt"]
    if unseen:
        notes.append(f"no training row has the class {', '.join(unseen[:5])}{', ...' if len(unseen) > 5 else ''}")
    return tuple(file_names), classes, tuple(notes)


def _check_enough(names: Sequence[str], rows: int, column: str) -> None:
    if len(names) < 2:
        raise ValueError(
            f"`load_task(label_column={column!r})` has {len(names)} class(es) among the {rows} training rows "
            f"({', '.join(names) or 'all are unlabelled'}): a classifier needs two. Name another column."
        )


def _ids(values: list[Any], ids: dict[Any, int], split: str, column: str) -> np.ndarray:
    unknown = sorted({str(value) for value in values if value is not None and value not in ids})
    if unknown:
        known = ", ".join(str(value) for value in list(ids)[:8])
        raise ValueError(
            f"`load_task(label_column={column!r})` has {', '.join(unknown[:5])} in {split}, which is no class of the "
            f"training rows ({known}{', ...' if len(ids) > 8 else ''}): nothing could learn it. Drop the rows "
            f"({unknown[0]} is first in row {next(r for r, v in enumerate(values) if str(v) == unknown[0])}), or, if "
            f"the value means unlabelled, pass missing_label={unknown[0]}."
        )
    return np.array([IGNORE_INDEX if value is None else ids[value] for value in values], dtype=np.int64)


def _plain(value: Any, column: str, missing_label: int | str | None, where: str = "") -> str | int | None:
    """A class as a str or an int; None where the row is unlabelled."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer() and abs(value) <= _EXACT:  # pandas reads integers with gaps as floats
            value = int(value)
    if value is None or value == IGNORE_INDEX or (missing_label is not None and value == missing_label):
        return None
    if isinstance(value, bool):
        return str(value)
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"`load_task(label_column={column!r})` holds {value!r} of type {type(value).__name__}{where}: each "
            "row must have one class, as a name or an integer. Name another column, or, for regression and for "
            f"several labels per row, pass problem_type={REGRESSION!r} or {MULTI_LABEL!r}."
        )
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Numbers, and several labels per row
# ---------------------------------------------------------------------------------------------------------------------


def _numbers(values: list[Any], column: str, missing_label: int | str | None) -> np.ndarray:
    """One float per row; NaN where there is none."""
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        numbers[row] = score(value, column, missing_label)
    return numbers


def score(value: Any, column: str, missing_label: int | str | None) -> float:
    """The number that a regression learns; NaN where there is none."""
    if value is None or (missing_label is not None and value == missing_label):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise ValueError(
            f"`load_task(label_column={column!r}, problem_type={REGRESSION!r})` holds {value!r} of type "
            f"{type(value).__name__}: a regression learns finite numbers. Name another column."
        )
    return float(value)


def class_id(value: Any, column: str, missing_label: int | str | None, names: Sequence[str], are_ids: bool) -> int:
    """The class id of one value of a stream, whose classes are known; -100 where there is none."""
    plain = _plain(value, column, missing_label)
    if plain is None:
        return IGNORE_INDEX
    if isinstance(plain, int) and 0 <= plain < len(names):
        return plain
    if are_ids or isinstance(plain, int) or plain not in names:
        raise ValueError(
            f"`load_task(label_column={column!r})` met {value!r}, which is none of the {len(names)} classes "
            f"({', '.join(names[:5])}, ...). If it means unlabelled, pass missing_label={value!r}."
        )
    return names.index(plain)


def _several(values: Mapping[str, list[Any]], feature: Any, column: str, file_names: Sequence[str] | None) -> Labels:
    """A 0 or 1 per class and row; a row with a null is unlabelled, one with an empty list has none of the classes."""
    for rows in values.values():
        odd = next((row for row in rows if row is not None and not isinstance(row, (list, tuple))), None)
        if odd is not None:
            raise ValueError(
                f"`load_task(label_column={column!r}, problem_type={MULTI_LABEL!r})` holds {odd!r} of type "
                f"{type(odd).__name__}: each row must have a list of class names or ids, or one 0 or 1 per class. "
                "Name another column."
            )
    labelled = [row for rows in values.values() for row in rows if row is not None]
    notes: tuple[str, ...] = ()
    if _is_indicator(labelled, feature):
        width = len(labelled[0])
        if file_names is not None and len(file_names) != width:
            raise ValueError(
                f"`load_task(label_column={column!r})` holds {width} numbers per row, but labels.txt beside the files "
                f"names {len(file_names)} classes. Correct the file, or move it away."
            )
        names = tuple(file_names or (str(index) for index in range(width)))
        notes = ("class names from labels.txt",) if file_names else ()
        rows_of = {split: [None if r is None else np.flatnonzero(r) for r in rows] for split, rows in values.items()}
    else:
        inner = getattr(feature, "feature", None)
        flat = [_plain(value, column, None) for row in values["train"] if row is not None for value in row]
        names, classes, notes = _classes(inner, flat, column, file_names)
        ids = {value: index for index, value in enumerate(classes)}

        def ids_of(row: Sequence[Any], split: str) -> np.ndarray:
            return _ids([_plain(value, column, None) for value in row], ids, split, column)

        rows_of = {
            split: [None if row is None else ids_of(row, split) for row in rows] for split, rows in values.items()
        }
    _check_enough(names, len(values["train"]), column)
    targets = {split: _indicators(rows, len(names)) for split, rows in rows_of.items()}
    strata = {
        split: np.array([IGNORE_INDEX if row is None else 0 for row in rows], dtype=np.int64)
        for split, rows in rows_of.items()
    }
    return Labels(names, strata, targets, notes)


def _is_indicator(rows: Sequence[Sequence[Any]], feature: Any) -> bool:
    """Whether rows are one 0 or 1 per class and not class ids."""
    if isinstance(getattr(feature, "feature", None), datasets.ClassLabel) or not rows:
        return False
    return len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 and all(v in (0, 1) for row in rows for v in row)


def _indicators(rows: Sequence[np.ndarray | None], width: int) -> np.ndarray:
    made = np.zeros((len(rows), width), dtype=np.float32)
    for index, row in enumerate(rows):
        if row is None:
            made[index] = IGNORE_INDEX
        else:
            made[index, row[row >= 0]] = 1.0
    return made

"""What a run answered on each row of its test split: what its means cannot say, and two runs can be paired by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .functional import IGNORE_INDEX

TEST_ROWS = "test_rows.safetensors"
FORMAT = "1"
NO_ANSWER = -1
"""The teacher's prediction on a row that it has no say on: one of a class it does not know."""

_TYPES = {"label": np.int32, "prediction": np.int32, "confidence": np.float32, "loss": np.float32}
_OF_THE_TEACHER = {"teacher_prediction": np.int32, "teacher_confidence": np.float32}


@dataclass(frozen=True)
class TestRows:
    """One value per test row, in the order of the test split. Classes are ids of the data.

    Args:
        label: int32; -100 where a row has none.
        prediction: int32: the class that the student chose.
        confidence: float32: the softmax probability of that class, in [0, 1].
        loss: float32: the cross-entropy with the label, in nats; 0 where there is none.
        classes: The class names, in id order.
        teacher_prediction: int32: the teacher's choice; -1 on rows it has no say on. None where no teacher answered.
        teacher_confidence: float32: the probability of that choice among the classes that the teacher knows; 0 where
            it has no say. None where no teacher answered.
    """

    __test__ = False  # no test class, whatever it is called

    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    classes: tuple[str, ...]
    teacher_prediction: np.ndarray | None = None
    teacher_confidence: np.ndarray | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.label)

    @property
    def labelled(self) -> np.ndarray:
        """`(rows,)` of bool: which have a label."""
        return self.label != IGNORE_INDEX

    @property
    def right(self) -> np.ndarray:
        """`(rows,)` of bool: where the student is right; False on rows without a label."""
        return self.prediction == self.label


def rows_of_evaluation(
    arrays: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    taught: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
) -> TestRows | None:
    """The rows of an evaluation; None where rows have no single class.

    Args:
        arrays: `trainer.last_evaluation.arrays()` of a `DistillationTrainer`.
        classes: The class names, in id order.
        taught: The ids of the classes that the teacher knows, ascending; None for all.
        order: The row of the split that each row of the evaluation is; None where they were read in order.
    """
    if "prediction" not in arrays:
        return None
    rows = len(arrays["prediction"])
    found = {"label": np.full(rows, IGNORE_INDEX), "loss": np.zeros(rows), **arrays}
    found["loss"] = np.where(found["label"] == IGNORE_INDEX, 0, found["loss"])
    if "teacher_prediction" in arrays:
        ids = np.arange(len(classes)) if taught is None else np.asarray(taught)
        has_say = np.asarray(arrays.get("taught", np.ones(rows))) > 0
        found["teacher_prediction"] = np.where(has_say, ids[arrays["teacher_prediction"]], NO_ANSWER)
        found["teacher_confidence"] = np.where(has_say, arrays["teacher_confidence"], 0)
    places = np.argsort(order) if order is not None else slice(None)
    columns = {name: found[name][places].astype(kind) for name, kind in _types(found).items()}
    return TestRows(classes=tuple(classes), **columns)


def write_test_rows(folder: str | PathLike, rows: TestRows) -> Path:
    """Write `test_rows.safetensors` into `folder`, whole or not at all.

    Returns:
        The file.
    """
    columns = {f.name: getattr(rows, f.name) for f in fields(rows) if f.name != "classes"}
    columns = {name: np.ascontiguousarray(column) for name, column in columns.items() if column is not None}
    said = {"format": FORMAT, "split": "test", "classes": json.dumps(rows.classes)}
    path = Path(folder) / TEST_ROWS
    partial = path.with_name(f".{TEST_ROWS}")
    partial.write_bytes(save(columns, metadata=said))
    partial.replace(path)
    return path


def read_test_rows(folder: str | PathLike) -> TestRows | None:
    """The test rows of a run; None where it wrote none.

    Args:
        folder: Of the run.

    Raises:
        ValueError: The file is there and cannot be read, or is of another format.
    """
    path = Path(folder) / TEST_ROWS
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read ({error}). Delete it, or run the training again.") from error
    if said.get("format") != FORMAT:
        raise ValueError(f"{path}: format {said.get('format')!r}, and this version reads {FORMAT!r}. Update hf_kd.")
    missing = sorted(_TYPES.keys() - columns)
    lengths = {len(column) for column in columns.values()}
    if missing or len(lengths) > 1:
        raise ValueError(f"{path}: {f'lacks {missing}' if missing else 'columns differ in length'}. Run it again.")
    return TestRows(classes=tuple(json.loads(said["classes"])), **{name: columns[name] for name in _types(columns)})


def _types(columns: Mapping[str, np.ndarray]) -> dict[str, type]:
    return _TYPES | (_OF_THE_TEACHER if "teacher_prediction" in columns else {})

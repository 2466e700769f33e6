"""What a report is about: a comparison, one run or several, as read from their files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..test_rows import TestRows, read_test_rows
from .files import PER_CLASS, read_history, read_mapping
from .text import Scale, clean, number, section

FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"
LAST, BEST_VALIDATION, BEST_TEST = "last", "best_validation", "best_test"


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Args:
        pair: The models that it is about.
        method: The label.
        seed: None where it is not known.
        state: One of the four above.
        line: As in `results.jsonl`; empty where there is none.
        folder: Where its files lie; None where they are not kept.
        anchor: Of its line in the page.
        notes: What could not be read.
    """

    pair: str
    method: str
    seed: int | None
    state: str
    line: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    anchor: str = ""
    notes: list[str] = field(default_factory=list)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Log records during training; what is logged after it, on two splits, is left out."""
        records = [] if self.folder is None else read_history(self.folder, self.notes)
        end = next((i for i, record in enumerate(records) if "train_runtime" in record), len(records))
        return records[:end]

    @cached_property
    def rows(self) -> TestRows | None:
        """What the run answered on the test rows; None where it is not kept."""
        try:
            rows = None if self.folder is None else read_test_rows(self.folder)
        except (OSError, ValueError) as error:
            self.notes.append(f"The test rows of {self.name} are left out: {error}")
            return None
        if rows is None or not _fits(rows):
            self.notes.extend(
                [] if rows is None else [f"The test rows of {self.name} name classes that there are not."]
            )
            return None
        return replace(rows, classes=tuple(clean(rows.classes)))

    @cached_property
    def per_class(self) -> dict[str, Any]:
        """The table by class that the run wrote, if any."""
        return {} if self.folder is None else read_mapping(self.folder / PER_CLASS, self.notes)

    @property
    def name(self) -> str:
        """In words."""
        return self.method if self.seed is None else f"{self.method}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether it has results."""
        return self.state == FINISHED

    def test(self, key: str) -> float | None:
        """A number of its test scores."""
        return number(self.line, "test", key)


def _fits(rows: TestRows) -> bool:
    """Whether every class id has a name."""
    answers = [rows.prediction] + ([] if rows.teacher_prediction is None else [rows.teacher_prediction])
    ids = [rows.label[rows.labelled], rows.prediction, *(one[one >= 0] for one in answers)]
    return all(not len(one) or (one.min() >= 0 and one.max() < len(rows.classes)) for one in ids)


@dataclass(eq=False)
class Results:
    """Everything a report needs.

    Args:
        source: The folder or file.
        kind: "comparison", "run", "runs" or "file".
        header: As `comparison.json`.
        runs: Every run, those that have not started too.
        summary: As `summary.json`.
        notes: What is missing or could not be read, in sentences.
        differences: Settings besides the method in which runs that were not made as a comparison differ:
            `{setting: {label: value}}`.
    """

    source: Path
    kind: str
    header: dict[str, Any]
    runs: list[Run]
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    differences: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the comparison or the folder."""
        return str(self.header.get("name") or self.source.stem)

    @property
    def metric(self) -> str:
        """The key that results are quoted in."""
        return str(self.header.get("metric") or "accuracy")

    @property
    def greater_is_better(self) -> bool:
        """Whether more of the metric is better."""
        return self.header.get("greater_is_better") is not False

    @property
    def protocol(self) -> str:
        """Which model of a run is scored."""
        return str(self.header.get("protocol") or LAST)

    @property
    def data(self) -> dict[str, Any]:
        """What is known of the data."""
        return section(self.header, "data")

    @cached_property
    def test_rows(self) -> int | None:
        """How many test rows are behind each score."""
        known = number(self.data, "test_rows")
        if known is None:
            known = next((len(run.rows) for run in self.runs if run.rows is not None), None)
        return None if known is None else int(known)

    @cached_property
    def scale(self) -> Scale:
        """How the metric is shown."""
        return Scale.of(self.metric, self.test_rows)

    def scale_of(self, key: str) -> Scale:
        """How another metric is shown."""
        return Scale.of(key, self.test_rows)

    @property
    def pairs(self) -> list["Pair"]:
        """One for each pair of models, in the order of the header."""
        return [
            Pair(self, entry, section(section(self.summary, "pairs"), str(entry.get("name"))))
            for entry in self.header.get("pairs", ())
            if isinstance(entry, Mapping)
        ]

    @property
    def unfinished(self) -> list[Run]:
        """Runs without results."""
        return [run for run in self.runs if not run.is_finished]

    def all_notes(self) -> list[str]:
        """`notes`, and those that the runs' files gave rise to; each once."""
        return list(dict.fromkeys([*self.notes, *(note for run in self.runs for note in run.notes)]))


@dataclass(frozen=True, eq=False)
class Pair:
    """The runs on one pair of models.

    Args:
        results: Where it belongs.
        entry: Of the header's `pairs`.
        statistics: Of the summary.
    """

    results: Results
    entry: Mapping[str, Any]
    statistics: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As the header calls it."""
        return str(self.entry.get("name"))

    @property
    def teacher_name(self) -> str:
        """The teacher; of a folder its own name."""
        name = str(self.entry.get("teacher") or "teacher")
        is_place = name.startswith((".", "/", "~")) or "\\" in name
        return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name if is_place else name

    @property
    def methods(self) -> list[str]:
        """Labels, in the order of the header, then any that only the results know."""
        said = [str(label) for label in self.entry.get("methods") or ()]
        return list(dict.fromkeys([*said, *(run.method for run in self.runs)]))

    @property
    def runs(self) -> list[Run]:
        """Of this pair."""
        return [run for run in self.results.runs if run.pair == self.name]

    @property
    def baseline(self) -> str | None:
        """The label of the student alone."""
        label = self.statistics.get("baseline")
        return label if label in self.methods else None

    @property
    def reference(self) -> str | None:
        """The label of plain distillation."""
        label = self.statistics.get("reference")
        return label if label in self.methods else None

    def of(self, method: str) -> list[Run]:
        """The runs of a method, by seed."""
        return sorted((r for r in self.runs if r.method == method), key=lambda r: (r.seed is None, r.seed))

    def finished(self, method: str) -> list[Run]:
        """Those with results."""
        return [run for run in self.of(method) if run.is_finished]

    def drawn(self, method: str) -> list[Run]:
        """Those whose curves are shown: the finished ones, whose curves have one length, else all there are."""
        return self.finished(method) or self.of(method)

    def statistic(self, method: str) -> dict[str, Any]:
        """The summary's entry of a method; empty where it has none."""
        entries = self.statistics.get("methods")
        entries = entries if isinstance(entries, Sequence) else ()
        return next((dict(e) for e in entries if isinstance(e, Mapping) and e.get("label") == method), {})

    @cached_property
    def ranked(self) -> list[str]:
        """Methods from the best mean to the worst; those without one last."""
        sign = -1 if self.results.greater_is_better else 1

        def place(method: str) -> tuple:
            mean = number(self.statistic(method), "mean")
            return mean is None, 0.0 if mean is None else sign * mean

        return sorted(self.methods, key=place)

    @cached_property
    def distilled(self) -> list[str]:
        """`ranked` without the baseline."""
        return [method for method in self.ranked if method != self.baseline]

    def teacher(self, key: str) -> float | None:
        """The teacher's mean score over the runs that it was scored in: seeds, splits and masks can differ."""
        values = [number(run.line, "teacher_test", key) for run in self.runs]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def mean(self, method: str, *path: str) -> float | None:
        """The mean over seeds of a number in the lines of a method."""
        values = list(self.values(method, *path))
        return sum(values) / len(values) if values else None

    def values(self, method: str, *path: str) -> Iterator[float]:
        """A number in the lines of a method, where it is known."""
        found = (number(run.line, *path) for run in self.finished(method))
        return (value for value in found if value is not None)

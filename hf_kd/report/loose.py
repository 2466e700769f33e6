"""Runs that were not made as a comparison, put side by side as if they were, with what else differs between them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from .files import ENVIRONMENT, RESOLVED_CONFIG, RESULTS, read_mapping, read_yaml
from .results import BEST_VALIDATION, FINISHED, LAST, UNFINISHED, Results, Run
from .text import LOWER_IS_BETTER, number, section

ALONE = "alone"
NOT_SETTINGS = ("output_dir", "seed", "method", "objective", "teacher", "student")
"""What says which run it is, is shown as the method, or makes a pair of its own."""
LONGEST_SETTING = 60


class _Found:
    """A run as its files describe it."""

    def __init__(self, folder: Path):
        self.folder, self.notes = folder, []
        self.results = read_mapping(folder / RESULTS, self.notes)
        self.config = read_yaml(folder / RESOLVED_CONFIG, self.notes)
        self.environment = read_mapping(folder / ENVIRONMENT, self.notes)
        self.models = section(self.environment, "models")
        seed = self.results.get("seed", self.config.get("seed"))
        self.seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def is_alone(self) -> bool:
        """Whether it is known to have had no teacher."""
        return bool(self.config) and not any(self.config.get(key) for key in ("teacher", "teacher_cache"))

    @property
    def method(self) -> str:
        """What it is called where that is enough."""
        if self.is_alone:
            return ALONE
        named = self.results.get("method") or section(self.config, "method").get("name")
        return str(named) if named else "objective" if "objective" in self.config else self.folder.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the run besides its seed and models, flat."""
        said = {key: value for key, value in self.config.items() if key not in NOT_SETTINGS}
        return {k: v for k, v in _flat(said).items() if k not in ("data.seed", "training.seed", "training.data_seed")}

    @property
    def identity(self) -> str:
        """The same for runs that differ in their seed alone."""
        section_of_method = None if self.is_alone else self.config.get("method") or self.config.get("objective")
        return yaml.safe_dump([self.method, section_of_method, self.settings, self.config.get("teacher")])

    @property
    def student(self) -> str:
        """The student, in words."""
        said = section(self.config, "student")
        name = said.get("model") or section(said, "config").get("model_type")
        name = name or section(self.models, "student").get("architecture")
        return _last_part(name) if name else "student"

    @property
    def teacher(self) -> str | None:
        """The teacher, in words; None without one."""
        said = section(self.config, "teacher")
        name = said.get("model") or section(self.models, "teacher").get("source")
        if name or said or self.config.get("teacher_cache"):
            return _last_part(name) if name else "stored answers"
        return None

    @property
    def place(self) -> str:
        """Runs of one place share their student and their data."""
        said = section(self.config, "data")
        data = said.get("name") or said.get("path") or self.results.get("data")
        return yaml.safe_dump([data, section(self.config, "student")])

    def line(self, pair: str, label: str, root: Path) -> dict[str, Any]:
        """As a line of `results.jsonl`."""
        found, test = self.results, section(self.results, "test")
        theirs = test.get("teacher_accuracy")
        kept = ("student_parameters", "teacher_parameters", "train_steps", "train_seconds", "total_seconds")
        return {
            "pair": pair,
            "method": label,
            "seed": self.seed,
            "state": FINISHED if test else UNFINISHED,
            "validation": section(found, "validation"),
            "test": test,
            "teacher_test": None if theirs is None else {"accuracy": theirs},
            **{key: found.get(key) for key in kept},
            "folder": str(self.folder.relative_to(root)),
            "versions": _versions(self.environment),
            "hardware": _hardware(self.environment),
        }


def results_of_runs(root: Path, places: Sequence[Path], kind: str) -> Results:
    """Read runs and line them up by student, teacher and method.

    Args:
        root: What the report is about.
        places: The folders of the runs.
        kind: "run" or "runs".
    """
    found = [_Found(place) for place in places]
    labels = _labels(found, root)
    pairs = _pairs(found)
    notes = [note for run in found for note in run.notes]
    runs, entries = [], []
    for name, members in pairs.items():
        for run in _one_for_each_seed(name, members, labels, notes):
            line = run.line(name, labels[id(run)], root)
            made = Run(name, line["method"], run.seed, line["state"], line, run.folder, f"run-{len(runs) + 1}")
            runs.append(made)
        methods = list(dict.fromkeys(labels[id(run)] for run in members))
        teacher = next((run.teacher for run in members if run.teacher), None)
        entries.append({"name": name, "teacher": teacher, "student": members[0].student, "methods": methods})
    header = _header(root, found, labels, entries)
    if kind == "runs":
        notes += _doubts(pairs, labels)
    return Results(root, kind, header, runs, {}, notes, _differences(found, labels))


def _labels(found: Sequence[_Found], root: Path) -> dict[int, str]:
    """A label for each run: its method, and where runs of one method were set up differently, their folder too."""
    groups: dict[str, dict[str, list[_Found]]] = {}
    for run in found:
        groups.setdefault(run.method, {}).setdefault(run.place + run.identity, []).append(run)
    labels = {}
    for method, kinds in groups.items():
        shares_a_place = len({run.place for members in kinds.values() for run in members}) < len(kinds)
        for members in kinds.values():
            label = method
            if shares_a_place:
                place = members[0].folder.relative_to(root)
                inner = place.parent if len(members) > 1 and place.parent.parts else place
                label = f"{method} ({inner.as_posix()})"
            labels |= {id(run): label for run in members}
    return labels


def _pairs(found: Sequence[_Found]) -> dict[str, list[_Found]]:
    """Runs by student, data and teacher; a student alone stands beside every teacher of its place."""
    groups: dict[tuple[str, str | None], list[_Found]] = {}
    teachers: dict[str, list[str]] = {}
    for run in found:
        if run.teacher is not None:
            teachers.setdefault(run.place, []).append(run.teacher)
    for run in found:
        known = dict.fromkeys(teachers.get(run.place, ()))
        for teacher in [run.teacher] if run.teacher is not None else (known or [None]):
            groups.setdefault((run.place, teacher), []).append(run)
    named: dict[str, list[_Found]] = {}
    for (_, teacher), members in groups.items():
        name = members[0].student if teacher is None else f"{teacher} → {members[0].student}"
        number = 2
        while name in named:
            name, number = f"{name.rpartition(' (')[0] or name} ({number})", number + 1
        named[name] = members
    return named


def _header(
    root: Path, found: Sequence[_Found], labels: Mapping[int, str], pairs: list[dict[str, Any]]
) -> dict[str, Any]:
    first = next((run for run in found if run.results), found[0])
    metric = str(first.results.get("metric") or "accuracy")
    config = section(first.config, "data")
    is_best = any(section(run.results, "best_model").get("is_saved") is True for run in found)
    sections = {}
    for run in found:
        said = {} if run.is_alone else section(run.config, "method") or section(run.config, "objective")
        sections.setdefault(labels[id(run)], (run.is_alone, said))
    return {
        "format": 1,
        "name": root.resolve().name,
        "metric": metric,
        "greater_is_better": metric not in LOWER_IS_BETTER,
        "protocol": BEST_VALIDATION if is_best else LAST,
        "seeds": sorted({run.seed for run in found if run.seed is not None}),
        "pairs": pairs,
        "methods": [{"label": k, "baseline": alone, "section": said} for k, (alone, said) in sections.items()],
        "config": first.config if len(found) == 1 else {},
        "data": {
            "name": first.results.get("data") or config.get("name") or config.get("path"),
            "fingerprint": first.results.get("data_fingerprint"),
            "description": first.results.get("data_description"),
            "train_rows": max(filter(None, (number(run.results, "train_rows") for run in found)), default=None),
            "test_rows": None,
        },
        "versions": _versions(first.environment),
        "hardware": _hardware(first.environment),
        "command": None,
    }


_OF_HARDWARE = ("platform", "device", "processes", "accelerator", "processor")


def _versions(environment: Mapping[str, Any]) -> dict[str, Any]:
    skipped = (*_OF_HARDWARE, "models", "data", "processors")
    return {k: v for k, v in environment.items() if k not in skipped and isinstance(v, str)}


def _hardware(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {key: environment[key] for key in _OF_HARDWARE if key in environment}


def _one_for_each_seed(
    name: str, members: Sequence[_Found], labels: Mapping[int, str], notes: list[str]
) -> list[_Found]:
    """Of runs that repeat a run with the same seed, which would pass for another seed, the one with results."""
    kept: dict[tuple, _Found] = {}
    for run in members:
        key = labels[id(run)], run.seed
        other = kept.get(key)
        if other is None or run.results or not other.results:
            kept[key] = run
        if other is not None:
            left = other if kept[key] is run else run
            notes.append(f"{name}: {key[0]} with seed {key[1]} is there twice; the run in {left.folder} is left out.")
    return list(kept.values())


def _doubts(pairs: Mapping[str, Sequence[_Found]], labels: Mapping[int, str]) -> list[str]:
    """What speaks against comparing runs that only happen to lie in one folder."""
    notes = []
    for name, members in pairs.items():
        prints = {run.results.get("data_fingerprint"): labels[id(run)] for run in members if run.results}
        if len(prints) > 1:
            which = ", ".join(f"{label} on {found}" for found, label in prints.items())
            notes.append(f"{name}: the runs were not on the same rows ({which}). Their scores do not compare.")
    return notes


def _differences(found: Sequence[_Found], labels: Mapping[int, str]) -> dict[str, dict[str, str]]:
    """Settings that are not the same everywhere, by label."""
    by_label: dict[str, dict[str, Any]] = {}
    for run in found:
        if run.config:
            by_label.setdefault(labels[id(run)], run.settings)
    names = list(dict.fromkeys(name for settings in by_label.values() for name in settings))
    differing = {}
    for name in names:
        values = {label: _word(settings.get(name)) for label, settings in by_label.items()}
        if len(set(values.values())) > 1:
            differing[name] = values
    return differing


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _word(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST_SETTING else f"{text[: LONGEST_SETTING - 1]}…"


def _last_part(name: Any) -> str:
    return str(name).rstrip("/").rpartition("/")[2] or str(name)

"""What is known of a run, read back from its folder: nothing here is guessed or asked from elsewhere."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..adapter_files import ADAPTER_CONFIG, MERGED, is_merged
from ..methods import METHODS, Method

PROVENANCE = "distillation.json"
"""Which models, which objective: written by the trainer beside every student it saves."""

PIPELINES = {"ForImageClassification": "image-classification", "ForSequenceClassification": "text-classification"}
OF_THE_TEACHER = ("teacher_accuracy", "agreement", "teacher_kl", "teacher_mse")
"""Metrics that compare with the teacher, or are its own."""


@dataclass(frozen=True)
class RunRecord:
    """The files of a run that a card is made of; an absent file is an empty mapping.

    Args:
        folder: Where they are.
        config: `config.json`; of an adapter student, that of the plain one.
        adapter: `adapter_config.json`, where the student is an adapter.
        merged: Whether the plain student of the adapter is there too, in `merged`.
        processor: `preprocessor_config.json` or `tokenizer_config.json`.
        provenance: `distillation.json`.
        results: `results.json`.
        resolved: `resolved_config.yaml`.
        environment: `environment.json`.
        state: `trainer_state.json`.
        per_class: `per_class.json`.
    """

    folder: Path
    config: Mapping[str, Any]
    adapter: Mapping[str, Any] = field(default_factory=dict)
    merged: bool = False
    processor: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pipeline_tag(self) -> str | None:
        """The Hub's name of the task; None where the config does not say."""
        names = [*(self.config.get("architectures") or []), self.student.get("class") or ""]
        names += list(self.config.get("auto_map") or {})
        return next((tag for name in names for end, tag in PIPELINES.items() if name.endswith(end)), None)

    @property
    def student(self) -> Mapping[str, Any]:
        """Name, commit, class and so on of what the student started from, as far as known."""
        return self.provenance.get("student") or {}

    @property
    def code(self) -> Mapping[str, Any]:
        """Where the student's class comes from, if it is none of transformers."""
        if "code" in self.student:
            return self.student["code"] or {}
        return {"carried": True} if self.config.get("auto_map") else {}

    @property
    def method_name(self) -> str | None:
        """The published method; None for a free objective or where nothing says."""
        return self.results.get("method") or self.provenance.get("method")

    @property
    def method(self) -> Method | None:
        """Its entry in the table of methods."""
        return METHODS.get(self.method_name or "")

    @property
    def teacher(self) -> Mapping[str, Any] | None:
        """Name, commit, parameters and so on, as far as known; None for a student trained alone."""
        if "teacher" in self.provenance:
            return self.provenance["teacher"]
        told = self.resolved.get("teacher") or {}
        return {"name": told["model"], **told} if told.get("model") else None

    @property
    def distilled(self) -> bool:
        """Whether a teacher had a part in it."""
        return self.teacher is not None or bool(self.provenance.get("from_logits"))

    @property
    def data(self) -> Mapping[str, Any]:
        """The section `data` of the configuration."""
        return self.resolved.get("data") or {}

    @property
    def data_name(self) -> str | None:
        """What the data are called; of local files the last part of the path alone."""
        name = self.data.get("name")
        return name or (Path(self.data["path"]).name if self.data.get("path") else None)

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the Hub, if that is where it is."""
        if "data" in self.provenance:
            return (self.provenance["data"] or {}).get("name")
        name = self.data.get("name")
        return name if name and not name.startswith("embedded/") else None

    @property
    def history(self) -> list[Mapping[str, Any]]:
        """The log."""
        return self.state.get("log_history") or []

    @property
    def seed(self) -> int | None:
        """Of the run."""
        return self.results.get("seed", self.provenance.get("seed"))

    @property
    def scores(self) -> tuple[str, Mapping[str, float]]:
        """The split and its metrics: the test scores of `results.json`, else those of the last evaluation logged."""
        if self.results.get("test"):
            return "test", self.results["test"]
        timings = ("runtime", "per_second", "preparation_time")
        for record in reversed(self.history):
            found = {k.removeprefix("eval_"): v for k, v in record.items() if k.startswith("eval_")}
            if found:
                return "evaluation", {k: v for k, v in found.items() if not any(part in k for part in timings)}
        return "test", {}

    @property
    def temperatures(self) -> dict[str, tuple[float, float]]:
        """Loss (empty if there is one) -> the student's and the teacher's mean temperature, where last logged."""
        found: dict[str, dict[str, float]] = {}
        for record in self.history:
            for key, value in record.items():
                head, _, name = key.rpartition("/")
                if head.startswith("temperature") and name in ("student_mean", "teacher_mean"):
                    found.setdefault(head.removeprefix("temperature").lstrip("/"), {})[name] = value
        return {loss: (v["student_mean"], v["teacher_mean"]) for loss, v in found.items() if len(v) == 2}


def read_record(folder: str | Path) -> RunRecord:
    """Read what a run left in `folder`.

    Raises:
        ValueError: A file there is not what its name says.
    """
    folder = Path(folder)
    adapter, provenance, merged = _read(folder / ADAPTER_CONFIG), _read(folder / PROVENANCE), is_merged(folder)
    config = _read(folder / "config.json")
    if adapter:
        told = (provenance.get("student") or {}).get("config")
        config = _read(folder / MERGED / "config.json") if merged else told or config
    return RunRecord(
        folder=folder,
        config=config,
        adapter=adapter,
        merged=merged,
        processor=_read(folder / "preprocessor_config.json") or _read(folder / "tokenizer_config.json"),
        provenance=provenance,
        results=_read(folder / "results.json"),
        resolved=_read(folder / "resolved_config.yaml"),
        environment=_read(folder / "environment.json"),
        state=_read(folder / "trainer_state.json"),
        per_class=_read(folder / "per_class.json"),
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise ValueError(_unreadable(path, " ".join(str(error).split()))) from error
    if not isinstance(content, Mapping):
        raise ValueError(_unreadable(path, f"it holds a {type(content).__name__}, not a mapping"))
    return content


def _unreadable(path: Path, why: str) -> str:
    return (
        f"{path} cannot be read ({why}), so no model card can be made from it. Write it again with the run that made "
        "the folder, or remove it: the card then leaves out what it says."
    )


def comparable(run: RunRecord, others: Iterable[RunRecord], *, same: bool) -> list[RunRecord]:
    """`others`, checked to belong into a table beside `run`.

    Args:
        run: The run that the card is of.
        others: Runs to show beside it.
        same: Whether they must be the same run under other seeds; else the student without a teacher.

    Raises:
        ValueError: They have no results, saw other data, or are not what they are given as.
    """
    others = list(others)
    seeds = [run.seed]
    for other in others:
        what = "a run with another seed" if same else "the student trained without a teacher"
        problem = None
        if not run.results or not other.results:
            empty = other if run.results else run
            problem = f"{empty.folder} has no results.json"
        elif other.results["data_fingerprint"] != run.results["data_fingerprint"]:
            problem = f"it saw other rows ({other.results['data_fingerprint']}, not {run.results['data_fingerprint']})"
        elif same and other.seed in seeds:
            problem = f"its seed {other.seed} is there already"
        elif same and (differing := _differing(run.resolved, other.resolved)):
            problem = f"it differs in {', '.join(differing)}"
        elif not same and other.distilled:
            problem = f"it was distilled from {(other.teacher or {}).get('name', 'stored logits')}"
        if problem:
            raise ValueError(f"{other.folder} cannot stand in the table as {what}: {problem}.")
        seeds.append(other.seed)
    return others


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The sections that differ, apart from what a repetition changes."""
    free = ("seed", "output_dir")
    keys = [key for key in {**one, **other} if key not in free]
    hub = ("push_to_hub", "hub_model_id", "hub_revision", "hub_private_repo", "run_name", "disable_tqdm")

    def part(run: Mapping[str, Any], key: str) -> Any:
        value = run.get(key)
        return {k: v for k, v in value.items() if k not in hub} if key == "training" and value else value

    return [key for key in keys if part(one, key) != part(other, key)]

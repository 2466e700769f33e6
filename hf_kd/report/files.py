"""Reading what runs left, whole or not: a report of a broken run is worth more than an error about it."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from .text import clean

TRAINER_STATE = "trainer_state.json"
RESULTS = "results.json"
RESOLVED_CONFIG = "resolved_config.yaml"
ENVIRONMENT = "environment.json"
PER_CLASS = "per_class.json"
COMPARISON = "comparison.json"
RESULT_LINES = "results.jsonl"
SUMMARY = "summary.json"
DEEPEST = 6
"""A folder of runs is searched so many levels down."""


def read_json(path: Path, notes: list[str]) -> Any:
    """The content of a JSON file, cleaned; None where it is missing, and with a note where it is broken."""
    if not path.is_file():
        return None
    try:
        return clean(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} in {path.parent} cannot be read ({_brief(error)}); it is left out.")
        return None


def read_mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """As `read_json`, empty where the content is no mapping."""
    content = read_json(path, notes)
    return content if isinstance(content, dict) else {}


def read_yaml(path: Path, notes: list[str]) -> dict[str, Any]:
    """The mapping in a YAML file, cleaned; empty where it is missing, and with a note where it is broken."""
    if not path.is_file():
        return {}
    try:
        content = clean(yaml.safe_load(path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} in {path.parent} cannot be read ({_brief(error)}); it is left out.")
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The mappings of a file with one JSON value per line.

    A last line without its end was being written when the run stopped: it is left out. So are others that are broken,
    with a note.
    """
    if not path.is_file():
        return []
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = clean(json.loads(line.decode("utf-8", errors="replace")))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif number == len(lines):
            notes.append(f"The last line of {path.name} is half-written; it is left out.")
        else:
            notes.append(f"Line {number} of {path.name} cannot be read; it is left out.")
    return found


def read_history(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The log records of a run: of its end, or of its latest checkpoint while it has not ended."""
    newest = max(folder.glob("checkpoint-*/"), key=_checkpoint_step, default=None) if folder.is_dir() else None
    for place in filter(None, (folder, newest)):
        state = read_json(place / TRAINER_STATE, notes)
        records = state.get("log_history") if isinstance(state, dict) else None
        if isinstance(records, list):
            return [record for record in records if isinstance(record, dict)]
    return []


def _checkpoint_step(folder: Path) -> int:
    tail = folder.name.rpartition("-")[2]
    return int(tail) if tail.isascii() and tail.isdigit() else -1


def is_run(folder: Path) -> bool:
    """Whether this is the output folder of a training run, finished or not."""
    if (folder / TRAINER_STATE).is_file():
        return True
    if (folder / RESULTS).is_file() and "test" in read_mapping(folder / RESULTS, []):
        return True
    is_started = (folder / RESOLVED_CONFIG).is_file() and (folder / ENVIRONMENT).is_file()
    return is_started or any((place / TRAINER_STATE).is_file() for place in folder.glob("checkpoint-*/"))


def run_folders(folder: Path) -> list[Path]:
    """The runs below `folder`, in order of their paths; what lies in a run's own folder is that run's."""
    found = []
    for place, names, _ in os.walk(folder):
        path = Path(place)
        if path != folder and is_run(path):
            found.append(path)
            names.clear()
        elif len(path.relative_to(folder).parts) >= DEEPEST:
            names.clear()
        names.sort()
    return found


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

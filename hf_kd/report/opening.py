"""Finds out what a path is - a comparison, its exported file, a run, a folder of runs - and reads it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..registry import ConfigError
from ..statistics_of_runs import summarise, verdict
from ..test_rows import TestRows
from .files import COMPARISON, RESULT_LINES, SUMMARY, is_run, read_lines, read_mapping, run_folders
from .loose import results_of_runs
from .results import FAILED, FINISHED, LAST, NOT_STARTED, UNFINISHED, Results, Run
from .text import finite_pair, number, section

FORMATS = (1,)


def read_results(path: str | Path) -> Results:
    """Read what `path` holds.

    Args:
        path: The folder of a comparison, finished or not; a file that `export_results` wrote, or a folder with one;
            the output folder of a run; or a folder of such.

    Raises:
        ConfigError: There is nothing of the kind, or it is of another format.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise ConfigError([f"{path}: there is no such folder or file. Give the folder of a comparison or of runs."])
    if (path / COMPARISON).is_file():
        return _comparison(path)
    if is_run(path):
        return _runs(path, [path], "run")
    inner = sorted(found.parent for found in path.glob(f"*/{COMPARISON}"))
    if inner:
        names = ", ".join(folder.name for folder in inner[:5])
        raise ConfigError([f"{path}: holds comparisons ({names}); a report is about one. Give one of these folders."])
    if runs := run_folders(path):
        return _runs(path, runs, "runs")
    exported = [file for file in sorted(path.glob("*.jsonl")) if is_export(file)]
    if len(exported) == 1:
        return _file(exported[0])
    if exported:
        names = ", ".join(file.name for file in exported[:5])
        raise ConfigError([f"{path}: holds several results files ({names}); a report is about one. Give one of them."])
    raise ConfigError(
        [
            f"{path}: there is neither a comparison ({COMPARISON}) nor a run (results.json, trainer_state.json) in it "
            "or below it. Give the output folder of `hf-kd compare` or of `hf-kd train`, or a folder of such."
        ]
    )


def is_export(path: Path) -> bool:
    """Whether `path` begins as `export_results` begins a file."""
    with path.open("rb") as file:
        return re.match(rb'\s*\{\s*"comparison"', file.read(64)) is not None


# ---------------------------------------------------------------------------------------------------------------------
# A comparison
# ---------------------------------------------------------------------------------------------------------------------


def _comparison(folder: Path) -> Results:
    notes: list[str] = []
    header = checked_header(read_mapping(folder / COMPARISON, notes), folder / COMPARISON)
    lines = good_lines(read_lines(folder / RESULT_LINES, notes), notes)
    results = Results(folder, "comparison", header, runs_of(header, lines, folder, notes), {}, notes)
    stored = read_mapping(folder / SUMMARY, notes)
    if stored and _is_current(stored, results, folder):
        results.summary = stored
    else:
        if stored:
            notes.append(f"{SUMMARY} is older than {RESULT_LINES}: the statistics were computed anew.")
        results.summary = summary_of(results)
    return results


def checked_header(header: dict[str, Any], path: Path) -> dict[str, Any]:
    """The header of a comparison, refused where nothing could be made of it."""
    problems = []
    if header.get("format") not in FORMATS:
        problems.append(
            f"{path}: format {header.get('format')!r}, and this version reads {FORMATS[-1]}. Update hf_kd, or run "
            "the comparison again."
        )
    elif not isinstance(header.get("pairs"), list) or not isinstance(header.get("methods"), list):
        problems.append(f"{path}: lists no `pairs` or no `methods`: it was not written by `hf-kd compare`.")
    if problems:
        raise ConfigError(problems)
    pairs = [
        {**pair, "name": str(pair.get("name")), "methods": [str(label) for label in _list(pair.get("methods"))]}
        for pair in header["pairs"]
        if isinstance(pair, dict)
    ]
    methods = [
        {**method, "label": str(method["label"]), "section": section(method, "section")}
        for method in header["methods"]
        if isinstance(method, dict) and "label" in method
    ]
    seeds = [seed for seed in _list(header.get("seeds")) if isinstance(seed, int)]
    usual = {"metric": "accuracy", "greater_is_better": True, "protocol": LAST}
    return {**usual, **header, "pairs": pairs, "methods": methods, "seeds": seeds}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_OF_A_LINE = {"pair": str, "method": str, "seed": int, "state": str}


def good_lines(lines: Sequence[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """The lines that say which run they are of; of several for one run the last that finished, or the last."""
    latest: dict[tuple, dict[str, Any]] = {}
    for line in lines:
        if not all(isinstance(line.get(key), kind) for key, kind in _OF_A_LINE.items()):
            notes.append(f"A result without {', '.join(_OF_A_LINE)} is left out.")
            continue
        scores = section(line, "test")
        line = {**line, "test": {name: value for name in scores if (value := number(scores, name)) is not None}}
        key = line["pair"], line["method"], line["seed"]
        if key not in latest or line.get("state") == FINISHED or latest[key].get("state") != FINISHED:
            latest.pop(key, None)
            latest[key] = line
    return list(latest.values())


def runs_of(
    header: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], folder: Path | None, notes: list[str]
) -> list[Run]:
    """Every run that the header asks for, and any more that there are lines of."""
    known = {(line["pair"], line["method"], line.get("seed")): line for line in lines}
    asked = [
        (str(pair.get("name")), str(method), seed)
        for pair in header["pairs"]
        if isinstance(pair, Mapping)
        for method in pair.get("methods") or ()
        for seed in header.get("seeds") or ()
    ]
    runs = []
    for index, key in enumerate(dict.fromkeys([*asked, *known])):
        line = known.get(key, {})
        place = _folder_of(folder, key, line, notes)
        state = line.get("state") if line.get("state") in (FINISHED, FAILED) else None
        state = state or (UNFINISHED if place is not None else NOT_STARTED)
        seed = key[2] if isinstance(key[2], int) else None
        runs.append(Run(key[0], key[1], seed, state, line, place, f"run-{index + 1}"))
    return runs


def _folder_of(folder: Path | None, key: tuple, line: Mapping[str, Any], notes: list[str]) -> Path | None:
    """The folder of a run, where it is there and below that of the comparison."""
    if folder is None:
        return None
    said = line.get("folder") or f"runs/{slug(key[0])}/{slug(key[1])}/seed{key[2]}"
    place = folder / str(said)
    try:
        is_inside, is_there = place.resolve().is_relative_to(folder.resolve()), place.is_dir()
    except (OSError, ValueError):  # a name that no folder can have
        return None
    if not is_inside:
        notes.append(f"{key[1]}, seed {key[2]}: its folder {said!r} lies outside of the comparison; it is not read.")
        return None
    return place if is_there else None


def slug(label: str) -> str:
    """A label as part of a path."""
    return re.sub(r"[^a-z0-9_.-]+", "-", label.lower()).strip("-.") or "unnamed"


def summary_of(results: Results) -> dict[str, Any]:
    """The statistics of the finished runs."""
    known = {(run.pair, run.method, run.seed): run for run in results.runs}

    def rows_of(line: Mapping[str, Any]) -> TestRows | None:
        run = known.get((line.get("pair"), line.get("method"), line.get("seed")))
        return None if run is None else run.rows

    lines = [dict(run.line) for run in results.runs if run.is_finished]
    return summarise(lines, results.header, rows_of)


def _is_current(stored: Mapping[str, Any], results: Results, folder: Path) -> bool:
    """Whether a summary is of all the results that there are."""
    for pair in results.pairs:
        entries = section(section(stored, "pairs"), pair.name).get("methods")
        counts = {e.get("label"): e.get("n") for e in entries or () if isinstance(e, Mapping)}
        if any(len(pair.finished(m)) != (counts.get(m) or 0) for m in pair.methods):
            return False
    lines = folder / RESULT_LINES
    return not lines.is_file() or (folder / SUMMARY).stat().st_mtime >= lines.stat().st_mtime


# ---------------------------------------------------------------------------------------------------------------------
# A file that `export_results` wrote
# ---------------------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Results:
    notes: list[str] = []
    lines = read_lines(path, notes)
    if not lines or not isinstance(lines[0].get("comparison"), dict):
        raise ConfigError(
            [
                f'{path}: its first line is not {{"comparison": ...}}, so it does not say what its results are of. '
                "Write such a file with `hf-kd report DIR --export FILE.jsonl`."
            ]
        )
    header = checked_header(lines[0]["comparison"], path)
    stored = section(lines[-1], "summary")
    body = good_lines([line for line in lines[1:] if "summary" not in line], notes)
    results = Results(path, "file", header, runs_of(header, body, None, notes), {}, notes)
    results.summary = summary_of(results)
    if stored:
        _adopt(results, stored)
    return results


def _adopt(results: Results, stored: Mapping[str, Any]) -> None:
    """Take from the stored summary what only the test rows could tell, if it is a summary of these results."""
    for pair in results.pairs:
        theirs = section(section(stored, "pairs"), pair.name).get("methods")
        theirs = {entry.get("label"): entry for entry in theirs or () if isinstance(entry, Mapping)}
        for entry in pair.statistics.get("methods", ()):
            given = theirs.get(entry["label"], {})
            if not _is_same(number(entry, "mean"), number(given, "mean")):
                results.notes.append(
                    f"{pair.name}, {entry['label']}: the stored summary is not one of these results; what it says of "
                    "single test rows is left out."
                )
                continue
            for key in ("to_baseline", "to_kd"):
                mine, other = entry.get(key), given.get(key)
                if isinstance(mine, dict) and isinstance(other, Mapping):
                    rows = finite_pair(other.get("rows_ci"))
                    mine["rows_ci"] = None if rows is None else list(rows)
                    mine["verdict"] = verdict(
                        mine["n"], mine["difference"], mine["p_holm"], rows, results.greater_is_better
                    )
            for key in ("agreement", "ece"):
                if entry.get(key) is None:
                    entry[key] = number(given, key)


def _is_same(first: float | None, second: float | None) -> bool:
    return first == second or (first is not None and second is not None and abs(first - second) < 1e-9)


def _runs(folder: Path, places: Sequence[Path], kind: str) -> Results:
    results = results_of_runs(folder, places, kind)
    results.summary = summary_of(results)
    return results

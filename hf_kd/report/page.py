"""The page: one HTML file that needs nothing else, and PNGs of its figures beside it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import behaviour, curves, figures, tables
from .charts import Figure
from .results import FAILED, Pair, Results, Run
from .svg import drawn, swatch
from .text import NOTHING, Scale, duration, listed, number, plain, plural, section, shortened, signed

TEMPLATES = Path(__file__).parent / "templates"
WORST_CLASSES = 12
"""Rows of the table of classes by method."""
SHOWN_CLASSES = 8
"""Classes lost and gained, of each method."""
SHOWN_CONFUSIONS = 10
LONGEST_NAME, LONGEST_ALT = 80, 1200
OF_A_RUN = ("accuracy", "loss", "ece", "agreement")


def render(results: Results, output: Path, figures_folder: str) -> tuple[str, list[Figure]]:
    """The page, and the figures on it.

    Args:
        results: What it is about.
        output: Where the page will lie: links to runs are relative to it.
        figures_folder: The name of the folder beside it that gets the PNGs.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: list[Figure] = []

    def figure(made: Figure | None) -> dict[str, Any] | None:
        if made is None:
            return None
        shown.append(made)
        return _figure(made, figures_folder)

    environment.filters |= {"short": lambda name: shortened(str(name), LONGEST_NAME)}
    environment.filters |= {"points": _points, "percent": _percent}
    pairs = [_pair(pair, index, figure) for index, pair in enumerate(results.pairs)]
    content = environment.get_template("report.html.j2").render(
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # ours: nothing is filled in
        head=_head(results),
        pairs=pairs,
        cost=figure(figures.cost_figure(results)),
        runs=_runs(results, output),
        setup=_setup(results),
        notes=results.all_notes(),
        nothing=NOTHING,
    )
    return content, shown


def _points(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else signed(100 * value, digits)


def _percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else plain(100 * value, digits)


def _figure(made: Figure, folder: str) -> dict[str, Any]:
    drawings = [
        {"title": panel.title, "svg": drawn(panel, made.name, shortened(made.alt, LONGEST_ALT), is_first=index == 0)}
        for index, panel in enumerate(made.panels)
    ]
    return {
        "name": made.name,
        "title": made.title,
        "panels": drawings,
        "caption": made.caption,
        "legend": [{"name": name, "swatch": swatch(color, dashed)} for name, color, dashed in made.legend],
        "is_wide": len(made.panels) > 2,
        "png": f"{quote(folder)}/{quote(made.name)}.png",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def _head(results: Results) -> dict[str, Any]:
    finished, failed = [r for r in results.runs if r.is_finished], [r for r in results.runs if r.state == FAILED]
    open_runs = len(results.runs) - len(finished) - len(failed)
    methods = list(dict.fromkeys(run.method for run in results.runs))
    seeds = sorted({run.seed for run in results.runs if run.seed is not None})
    kinds = {"comparison": "Comparison", "run": "Run", "runs": "Runs", "file": "Comparison"}
    rows = f" on {results.test_rows:,} rows" if results.test_rows else ""
    data = results.data.get("name")
    facts = [
        ("Data", str(data) if data else "not known"),
        (
            "Scored by",
            f"test {results.scale.word}{rows}, {tables.PROTOCOLS.get(results.protocol, results.protocol)}",
        ),
        ("Pairs", str(len(results.pairs))),
        ("Methods", str(len(methods))),
        ("Seeds", ", ".join(map(str, seeds)) or "not known"),
        ("Runs", _counts(len(finished), len(failed), open_runs)),
    ]
    if results.kind == "run":
        facts = [fact for fact in facts if fact[0] not in ("Pairs", "Methods")]
        facts.insert(2, ("Method", methods[0] if methods else "not known"))
    return {
        "kind": kinds[results.kind],
        "name": results.name,
        "facts": facts,
        "warnings": tables.warnings_of(results),
        "failed": [(run, " ".join(str(run.line.get("error") or "no reason is recorded").split())) for run in failed],
        "open": [run for run in results.unfinished if run.state != FAILED],
        "sentence": _sentence(results),
    }


def _counts(finished: int, failed: int, unfinished: int) -> str:
    words = [f"{finished} finished"]
    words += [f"{failed} failed"] if failed else []
    words += [f"{unfinished} incomplete"] if unfinished else []
    return ", ".join(words)


def _sentence(results: Results) -> list[str]:
    """What the tables say, a sentence for each pair."""
    said = []
    for pair in results.pairs:
        of = f"{pair.name}: " if len(results.pairs) > 1 else ""
        if pair.baseline is None or len(pair.methods) < 2:
            continue
        entries = {m: section(pair.statistic(m), "to_baseline") for m in pair.distilled}
        groups = {
            word: [shortened(m, LONGEST_NAME) for m, e in entries.items() if e.get("verdict") == word]
            for word in tables.SYMBOLS
        }
        if not any(groups.values()):
            continue
        words = []
        if better := groups[tables.HELPS]:
            words.append(f"{listed(better)} {'is' if len(better) == 1 else 'are'} better than {pair.baseline}")
        if worse := groups[tables.HURTS]:
            words.append(f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} worse")
        if neither := groups[tables.NO_EVIDENCE]:
            words.append(f"for {listed(neither)} there is no evidence of a difference")
        said.append(of + "; ".join(words) + ".")
    return said


def _pair(pair: Pair, index: int, figure: Any) -> dict[str, Any]:
    results = pair.results
    temperatures, constant = curves.temperature_figure(pair)
    suffix = "" if len(results.pairs) == 1 else f"_{index + 1}"

    def named(made: Figure | None) -> dict[str, Any] | None:
        from dataclasses import replace

        return figure(made if made is None else replace(made, name=made.name + suffix))

    differences = [
        figures.difference_figure(pair, "to_baseline", pair.baseline),
        figures.difference_figure(pair, "to_kd", pair.reference),
    ]
    return {
        "name": pair.name,
        "anchor": f"pair-{index + 1}",
        "teacher": tables.teacher_cells(pair),
        "standings": tables.leaderboard(pair),
        "baseline": pair.baseline,
        "reference": pair.reference,
        "scale": results.scale,
        "is_best_test": results.protocol == tables.BEST_TEST,
        "score_figures": [f for f in map(named, [figures.score_figure(pair), *differences]) if f],
        "learning": [f for f in map(named, curves.learning_figures(pair)) if f],
        "components": named(curves.component_figure(pair)),
        "temperatures": named(temperatures),
        "constant": constant,
        "agreement": named(figures.agreement_figure(pair)),
        "fidelity": _fidelity(pair),
        "reliability": named(figures.reliability_figure(pair)),
        "classes": _classes(pair),
        "cost": tables.cost_rows(pair),
        "seconds": named(figures.time_figure(pair)),
    }


def _fidelity(pair: Pair) -> list[dict[str, Any]]:
    """Agreement apart by whether the teacher is right."""
    found = [(method, behaviour.agreement(behaviour.rows_of(pair, method))) for method in pair.ranked]
    return [{"label": method, "agreement": one} for method, one in found if one is not None]


def _classes(pair: Pair) -> dict[str, Any] | None:
    """Classes lost and gained against the teacher, and confusions, by method; a table of the worst classes."""
    methods, changes = [], {}
    for method in pair.ranked:
        found = behaviour.rows_of(pair, method)
        table = behaviour.class_changes(found) or _stored_changes(pair, method)
        if not table:
            continue
        changes[method] = {change.name: change for change in table}
        pairs = behaviour.confusions(found)
        compared = [c for c in table if c.difference is not None]
        has_teacher, differs = bool(compared), any(c.difference for c in compared)
        methods.append(
            {
                "label": method,
                "seeds": len(found) or 1,
                "classes": len(table),
                "has_teacher": has_teacher,
                "lost": [c for c in compared if c.difference < 0][:SHOWN_CLASSES],
                "gained": [c for c in reversed(compared) if c.difference > 0][:SHOWN_CLASSES],
                "lowest": [] if differs else sorted(table, key=lambda c: c.student)[:SHOWN_CLASSES],
                "new": [c for c in pairs if c.change > 0][:SHOWN_CONFUSIONS],
                "gone": [c for c in reversed(pairs) if c.change < 0][:SHOWN_CONFUSIONS] if has_teacher else [],
            }
        )
    return {"methods": methods, "map": _class_map(changes)} if methods else None


def _stored_changes(pair: Pair, method: str) -> list[behaviour.ClassChange]:
    """Of a run without test rows: what it wrote by class, if the measure is recall and the run the only one."""
    runs = pair.finished(method)
    if len(runs) != 1 or runs[0].per_class.get("measure") != "recall":
        return []
    entries = [
        e for e in runs[0].per_class.get("classes") or () if isinstance(e, dict) and number(e, "score") is not None
    ]
    return [
        behaviour.ClassChange(
            str(e.get("name")),
            int(number(e, "rows") or 0),
            e["score"],
            number(e, "teacher_score"),
            number(e, "difference"),
        )
        for e in entries
    ]


def _class_map(changes: dict[str, dict[str, behaviour.ClassChange]]) -> dict[str, Any] | None:
    """Classes by methods: those whose mean difference to the teacher is largest, either way."""
    names = dict.fromkeys(name for table in changes.values() for name in table)
    means = {}
    for name in names:
        gaps = [t[name].difference for t in changes.values() if name in t and t[name].difference is not None]
        if gaps:
            means[name] = sum(gaps) / len(gaps)
    if not means or len(changes) < 2:
        return None
    chosen = sorted(sorted(means, key=lambda name: -abs(means[name]))[:WORST_CLASSES], key=means.get)
    largest = max(
        (abs(t[n].difference) for t in changes.values() for n in chosen if _gap(t, n) is not None), default=0
    )
    rows = []
    for name in chosen:
        cells = [_gap(table, name) for table in changes.values()]
        teacher = next((t[name].teacher for t in changes.values() if name in t and t[name].teacher is not None), None)
        shades = [None if c is None else round(100 * abs(c) / (largest or 1.0)) for c in cells]
        rows.append({"name": name, "teacher": teacher, "cells": list(zip(cells, shades, strict=True))})
    return {"methods": list(changes), "rows": rows, "of": len(means)}


def _gap(table: dict[str, behaviour.ClassChange], name: str) -> float | None:
    return table[name].difference if name in table else None


# ---------------------------------------------------------------------------------------------------------------------
# Runs and setup
# ---------------------------------------------------------------------------------------------------------------------


def _runs(results: Results, output: Path) -> dict[str, Any]:
    keys = list(dict.fromkeys([results.metric, *OF_A_RUN]))
    keys = [key for key in keys if any(run.test(key) is not None for run in results.runs)]
    scales = {key: Scale(key, 4, False) if key == "loss" else results.scale_of(key) for key in keys}
    has_many = len(results.pairs) > 1
    lines = [
        {
            "run": run,
            "scores": [scales[key].value(run.test(key)) for key in keys],
            "validation": results.scale.value(number(run.line, "validation", results.metric)),
            "steps": "" if number(run.line, "train_steps") is None else f"{number(run.line, 'train_steps'):,.0f}",
            "seconds": duration(number(run.line, "train_seconds")),
            "href": _href(run, output),
            "fingerprint": str(run.line.get("fingerprint") or ""),
            "finished_at": str(run.line.get("finished_at") or ""),
        }
        for run in results.runs
    ]
    heads = [f"test {s.word}{f', {s.unit}' if s.unit else ''}" for s in scales.values()]
    return {"lines": lines, "heads": heads, "has_many": has_many, "metric": results.scale}


def _href(run: Run, output: Path) -> str | None:
    """The run's folder, from where the page lies; a leading `./` keeps a name from being read as a scheme."""
    if run.folder is None:
        return None
    try:
        path = os.path.relpath(run.folder.resolve(), output.resolve().parent)
    except ValueError:  # on another drive
        return None
    return f"./{quote(Path(path).as_posix())}/"


def _setup(results: Results) -> dict[str, Any]:
    header = results.header
    entries = [e for e in header.get("methods") or () if isinstance(e, dict)]
    return {
        "methods": [{"label": str(e.get("label")), "yaml": _yaml(e.get("section"))} for e in entries],
        "config": _yaml(header.get("config")),
        "differences": results.differences,
        "labels": list(dict.fromkeys(label for values in results.differences.values() for label in values)),
        "data": [
            (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
            for key, value in results.data.items()
            if value is not None
        ],
        "versions": _facts(section(header, "versions")),
        "hardware": tables.hardware_facts(section(header, "hardware")),
        "changed": _changed(results),
        "commands": _commands(results),
        "pip": _pip(section(header, "versions")),
        "seeds": ", ".join(str(seed) for seed in header.get("seeds") or ()) or "not known",
    }


def _yaml(content: Any) -> str:
    if not content:
        return ""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _facts(mapping: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (key, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for key, v in mapping.items() if v is not None
    ]


def _changed(results: Results) -> list[str]:
    """Versions or hardware that were not the same for all runs."""
    found = []
    for what in ("versions", "hardware"):
        values: dict[str, dict[str, list[str]]] = {}
        for run in results.runs:
            for key, value in section(run.line, what).items():
                values.setdefault(key, {}).setdefault(str(value), []).append(run.name)
        for key, kinds in values.items():
            if len(kinds) > 1:
                words = "; ".join(f"{value} ({plural(len(names), 'run')})" for value, names in kinds.items())
                found.append(f"{key}: {words}")
    return found


def _commands(results: Results) -> list[str]:
    command = results.header.get("command")
    if command:
        return [str(command)]
    return [
        f"hf-kd train {run.folder / 'resolved_config.yaml'} output_dir=again" for run in _with_config(results.runs)
    ]


def _with_config(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.folder is not None and (run.folder / "resolved_config.yaml").is_file()]


PACKAGES = ("torch", "torchvision", "transformers", "datasets", "accelerate", "peft", "timm", "numpy")


def _pip(versions: dict[str, Any]) -> str:
    said = [f"{name}=={versions[name]}" for name in PACKAGES if versions.get(name)]
    return f"pip install {' '.join(said)}" if said else ""

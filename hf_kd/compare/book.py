"""The folder of a comparison: what it is of, a line for each run that is over, and the statistics of these."""

import contextlib
import hashlib
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..registry import ConfigError
from ..statistics_of_runs import FINISHED, latest, summarise
from ..test_rows import TestRows, read_test_rows
from .plan import Pair, Plan, Run, resolved_section, run_mapping

COMPARISON, RESULTS, SUMMARY = "comparison.json", "results.jsonl", "summary.json"
FORMAT = 1

_FREE = {
    "training": (
        "disable_tqdm",
        "report_to",
        "run_name",
        "log_level",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_only_model",
    ),
    "data": ("name", "path", "revision", "in_memory"),  # the rows are known by their fingerprint
    "teacher_cache": ("dir",),
}
"""What may change between two starts: it decides no number."""

_EMPTY = (None, {}, [])


class Book:
    """What a comparison's folder holds.

    Args:
        folder: The folder.
        plan: The comparison that is to be in it.

    Raises:
        ConfigError: Another comparison is in it, or it cannot be read.
    """

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        self.known = self._read()
        if self.known is not None:
            self._refuse_other()
        self.comparison = self.known
        self.lines = read_lines(folder, cut=True)
        self._rows: dict[str, TestRows | None] = {}

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / COMPARISON
        if not path.is_file():
            if (self.folder / RESULTS).is_file():
                raise ConfigError(
                    [
                        f"output_dir: {str(self.folder)!r} holds {RESULTS} without the {COMPARISON} that says what "
                        "they are of. Bring it back, or choose another output_dir."
                    ]
                )
            return None
        return read_comparison(self.folder)

    @property
    def finished(self) -> set[tuple[str, str, int]]:
        """Pair, method and seed of the runs that need not be run again."""
        return {key for key, line in latest(self.lines).items() if line["state"] == FINISHED}

    def open(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down what the comparison is of, with what it was before.

        Args:
            facts: Of each pair that is to run, what was found out while it was prepared.

        Raises:
            ConfigError: The rows are others than those of the runs that are there.
        """
        first = next(iter(facts.values()), None)
        if first is not None and self.known is not None:
            self._refuse_other_rows(first)
        self.comparison = self._described(first)
        _write(self.folder / COMPARISON, self.comparison)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append the line of a run that is over, so that it stays whatever happens next."""
        with (self.folder / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(line), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(finite(line))

    def summarise(self) -> dict[str, Any]:
        """The statistics of what is there, written down."""
        summary = summarise(self.lines, self.comparison, self._rows_of)
        _write(self.folder / SUMMARY, summary)
        return summary

    def _rows_of(self, line: Mapping[str, Any]) -> TestRows | None:
        folder = line["folder"]
        if folder not in self._rows:
            self._rows[folder] = read_test_rows(self.folder / folder)
        return self._rows[folder]

    def fingerprint(self, run: Run, facts: Mapping[str, Any]) -> str:
        """A hash of what decides a run: its configuration and its rows."""
        pair = next(pair for pair in self.plan.pairs if pair.name == run.pair)
        decides = {
            "run": _deciding(run_mapping(pair, run.method)),
            "section": resolved_section(pair.configs[run.method]),
            "seed": run.seed,
            "data": facts["data"]["fingerprint"],
            "protocol": self.plan.section.protocol,
        }
        return _hash(decides)

    # ---- What it is of

    def _described(self, facts: Mapping[str, Any] | None) -> dict[str, Any]:
        plan, section = self.plan, self.plan.section
        methods = self._methods()
        sections = {method["label"]: method["section"] for method in methods}
        new = {
            "format": FORMAT,
            "name": section.name or plan.folder.resolve().name,
            "metric": facts and facts["metric"],
            "greater_is_better": facts and facts["greater_is_better"],
            "protocol": section.protocol,
            "seeds": section.seed_list,
            "pairs": [self._pair(pair, sections) for pair in plan.pairs],
            "methods": methods,
            "config": {**plan.config, "compare": section.model_dump(exclude_none=True)},
            "data": facts and facts["data"],
            "versions": facts and facts["versions"],
            "hardware": facts and facts["hardware"],
            "command": command(),
        }
        if self.known is None:
            return new
        kept = {key: self.known[key] for key in new if new[key] is None}
        return {**new, **kept, **_united(self.known, new)}

    def _methods(self) -> list[dict[str, Any]]:
        """Those that are there already as they are, then the new ones as the first pair has them."""
        known = [] if self.known is None else list(self.known["methods"])
        labels = {method["label"] for method in known}
        first = self.plan.pairs[0]
        return known + [
            {
                "label": method.label,
                "baseline": method.is_baseline,
                "section": resolved_section(first.configs[method.label]),
            }
            for method in self.plan.methods
            if method.label not in labels
        ]

    def _pair(self, pair: Pair, sections: Mapping[str, Any]) -> dict[str, Any]:
        """A pair, with what its runs share and what its methods have otherwise than `sections`."""
        resolved = {label: _plain(resolved_section(config)) for label, config in pair.configs.items()}
        own = {label: value for label, value in resolved.items() if value != _plain(sections[label])}
        teacher = pair.run.get("teacher") or {}
        return {
            "name": pair.name,
            "teacher": teacher.get("model") or teacher.get("column"),
            "student": student_name(pair.run.get("student") or {}),
            "methods": [method.label for method in self.plan.methods],
            "teacher_words": pair.teacher_words,
            "run": _deciding(pair.run),
            **({"sections": own} if own else {}),
        }

    def _refuse_other(self) -> None:
        """Refuse runs of other settings; more seeds, methods and pairs are welcome."""
        known, wrong = self.known, []
        if known.get("format") != FORMAT:
            wrong.append(f"its format is {known.get('format')!r}, and this version writes {FORMAT}")
        if known["protocol"] != self.plan.section.protocol:
            wrong.append(f"compare.protocol was {known['protocol']!r} and is {self.plan.section.protocol!r}")
        sections = {method["label"]: method["section"] for method in known["methods"]}
        pairs = {pair["name"]: pair for pair in known["pairs"]}
        for pair in self.plan.pairs:
            then = pairs.get(pair.name)
            if then is None:
                continue
            wrong += _differences(then["run"], _plain(_deciding(pair.run)), f"{pair.name}: ")
            for label in pair.configs:
                if label in then["methods"]:
                    was = then.get("sections", {}).get(label, sections[label])
                    now = _plain(resolved_section(pair.configs[label]))
                    wrong += _differences(was, now, f"{pair.name}, {label}: ")
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ConfigError(
                [
                    f"output_dir: {str(self.folder)!r} holds another comparison, whose runs cannot be compared with "
                    f"these: {'; '.join(wrong[:5])}{more}. Take that back to go on with it, give changed methods "
                    "another label, or choose another output_dir. Seeds, methods and pairs may be added."
                ]
            )

    def _refuse_other_rows(self, facts: Mapping[str, Any]) -> None:
        then, now = self.known["data"], facts["data"]
        if then["fingerprint"] != now["fingerprint"]:
            raise ConfigError(
                [
                    f"data: the rows are others ({now['fingerprint']}) than those of the runs in "
                    f"{str(self.folder)!r} ({then['fingerprint']}), which cannot be compared with new ones. Bring the "
                    "data back, or choose another output_dir."
                ]
            )


def read_comparison(folder: Path) -> dict[str, Any]:
    """`comparison.json`.

    Raises:
        ConfigError: It cannot be read.
    """
    path = Path(folder) / COMPARISON
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"output_dir: {str(path)!r} cannot be read ({error}). Bring it back, or choose another output_dir."]
        ) from error


def read_lines(folder: Path, cut: bool = False) -> list[dict[str, Any]]:
    """The lines of `results.jsonl`, but for one at the end that was not written to its end.

    Args:
        folder: Of the comparison.
        cut: Remove such a line, so that the next one does not continue it.

    Raises:
        ConfigError: A line before the last is no JSON.
    """
    path = Path(folder) / RESULTS
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if cut and len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())
    lines = []
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ConfigError(
                [f"output_dir: line {number} of {str(path)!r} is no JSON ({error}). Mend or remove that line."]
            ) from error
    return lines


def command() -> str:
    """How this process was called."""
    name, *rest = sys.argv
    return shlex.join(["hf-kd" if name.endswith("__main__.py") else Path(name).name, *rest])


def student_name(section: Mapping[str, Any]) -> str:
    """A student in a few words: its checkpoint, or its kind of architecture."""
    config = section.get("config") or {}
    if section.get("model") is not None:
        return str(section["model"])
    size = ", ".join(f"{key} {config[key]}" for key in ("depth", "width") if config.get(key) is not None)
    return " ".join(filter(None, [str(config.get("model_type") or "student"), size]))


def _deciding(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of the sections of a run what decides its numbers; what is empty is as good as absent."""
    kept = {key: value for key, value in run.items() if key not in ("method", "objective", "seed", "output_dir")}
    for key, free in _FREE.items():
        if isinstance(kept.get(key), Mapping):
            kept[key] = {name: value for name, value in kept[key].items() if name not in free}
    return {key: value for key, value in kept.items() if value not in _EMPTY}


def _united(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The seeds and pairs of both; `new` has the methods of both already."""
    seeds = sorted({*known["seeds"], *new["seeds"]})
    pairs = {pair["name"]: pair for pair in known["pairs"]}
    for pair in new["pairs"]:
        then = pairs.get(pair["name"], pair)
        labels = list(dict.fromkeys([*then["methods"], *pair["methods"]]))
        sections = {**then.get("sections", {}), **pair.get("sections", {})}
        pairs[pair["name"]] = {**pair, "methods": labels, **({"sections": sections} if sections else {})}
    return {"seeds": seeds, "pairs": list(pairs.values())}


def _differences(then: Any, now: Any, where: str, path: str = "") -> list[str]:
    """Where two plain values differ, in words."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*then, *now])
        found = (_differences(then.get(k), now.get(k), where, f"{path}.{k}".lstrip(".")) for k in keys)
        return [line for lines in found for line in lines]
    return [] if then == now else [f"{where}{path} was {then!r} and is {now!r}"]


def finite(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(value, default=str))


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all: a comparison may be killed at any time."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(finite(content), indent=2, ensure_ascii=False, default=str) + "\n")
        file.flush()
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
    partial.replace(path)

"""What a search found: every trial on record, the best as a configuration, and how far it is from the next."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

TRIALS_JSON, TRIALS_CSV, BEST_CONFIG = "trials.json", "trials.csv", "best_config.yaml"
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Args:
        number: Of the trial, from 0.
        state: "complete", "pruned" or "failed".
        parameters: What was drawn, by path.
        value: The metric on the validation split; None unless complete.
        standard_error: Of the value, where it is a mean over rows: how far it would move on other rows.
        validation: All metrics of the validation split.
        evaluations: The metric at the steps of the evaluations during training.
        seconds: Wall-clock time.
        error: Why it failed.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    value: float | None = None
    standard_error: float | None = None
    validation: dict[str, float] = field(default_factory=dict)
    evaluations: dict[int, float] = field(default_factory=dict)
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class TuneResult:
    """What came of a search; `trials.json` holds the same.

    Args:
        output_dir: Where everything is.
        metric: What was improved, on the validation split.
        greater_is_better: Whether more of it is better.
        validation_rows: How many rows each trial was scored on; None of a stream.
        seed: Of the students and their training, the same in all trials.
        search: The section, with every default.
        teacher: How the teacher took part, in a sentence.
        data: The name, fingerprint and description of the data.
        trials: All of them, in order.
    """

    output_dir: str
    metric: str
    greater_is_better: bool
    validation_rows: int | None
    seed: int
    search: dict[str, Any]
    teacher: str
    data: dict[str, str]
    trials: list[TrialRecord]

    @property
    def ranked(self) -> list[TrialRecord]:
        """The trials that came to an end, the best first; of equals the earlier."""
        done = [trial for trial in self.trials if trial.state == COMPLETE]
        return sorted(done, key=lambda trial: -trial.value if self.greater_is_better else trial.value)

    @property
    def best(self) -> TrialRecord | None:
        """The best trial; None if none came to an end."""
        return next(iter(self.ranked), None)

    @property
    def summary(self) -> str:
        """How far the best is from the next, and what that is worth."""
        ranked = self.ranked
        if not ranked:
            return "No trial came to an end, so there is no best one."
        best = ranked[0]
        rows = "" if self.validation_rows is None else f" on {self.validation_rows:,} validation rows"
        words = f"Trial {best.number} is the best of {len(ranked)}: {self.metric} {best.value:.4f}{rows}."
        if len(ranked) > 1:
            words += f" {self._lead(best, ranked[1])}"
        return (
            f"{words} It was chosen for this number, which therefore flatters it; the test split, which the search "
            "never read, does not."
        )

    def _lead(self, best: TrialRecord, second: TrialRecord) -> str:
        gap = abs(best.value - second.value)
        lead = f"It is {gap:.4f} ahead of the next, trial {second.number}"
        if not best.standard_error:
            return f"{lead}; how far either would move on other rows is not known for this metric."
        ratio = gap / best.standard_error
        said = f"{lead}: {ratio:.1f} times the standard error of one evaluation ({best.standard_error:.4f})"
        return f"{said}, so these rows do not tell the two apart." if ratio < 2 else f"{said}."


def write_results(result: TuneResult, best_config: Mapping[str, Any] | None) -> None:
    """Write `trials.json`, `trials.csv` and, once a trial came to an end, `best_config.yaml`."""
    folder = Path(result.output_dir)
    best = result.best
    content = {**asdict(result), "best": None if best is None else best.number, "summary": result.summary}
    _write(folder / TRIALS_JSON, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _write_csv(folder / TRIALS_CSV, result.trials)
    if best is not None and best_config is not None:
        header = (
            f"# {result.summary}\n# Found by `hf-kd tune`: {len(result.trials)} trials, seed {result.seed} in all of "
            f"them, draws seeded with {result.search['seed']}. {result.data['name']} ({result.data['fingerprint']}).\n"
        )
        text = yaml.safe_dump(dict(best_config), sort_keys=False, allow_unicode=True)
        _write(folder / BEST_CONFIG, header + text)


def _write_csv(path: Path, trials: Sequence[TrialRecord]) -> None:
    names = list(dict.fromkeys(name for trial in trials for name in trial.parameters))
    fixed = ("number", "state", "value", "standard_error", "seconds", "error")
    partial = path.with_name(f".{path.name}")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fixed, *names])
        for trial in trials:
            drawn = [trial.parameters.get(name, "") for name in names]
            cells = [json.dumps(value) if isinstance(value, (dict, list, bool)) else value for value in drawn]
            writer.writerow(
                [*("" if getattr(trial, name) is None else getattr(trial, name) for name in fixed), *cells]
            )
    partial.replace(path)


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a search may be killed at any time."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)

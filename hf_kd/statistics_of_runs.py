"""Which differences between runs are real: over seeds, and over the rows they were tested on."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .test_rows import TestRows

CONFIDENCE = 0.95
LEAST_SEEDS = 3
DRAWS = 10_000
HELPS, HURTS, NO_EVIDENCE = "helps", "hurts", "no evidence"
FINISHED, FAILED = "finished", "failed"

MEANING = (
    "A verdict other than `no evidence` needs both: the mean paired difference over the seeds is not chance (t-test, "
    "p < .05 after Holm's correction over the methods of the pair), and it would be there on other test rows too "
    "(95 % bootstrap interval over rows without 0). `no evidence` does not say that there is no difference: one that "
    "is smaller than half the width of the interval cannot be seen with so many seeds. Fewer than 3 seeds give no "
    "verdict."
)

_PER_ROW = {"accuracy": "right", "loss": "loss"}
"""Metrics that are means over rows, and what of each row."""

RowsOf = Callable[[Mapping[str, Any]], TestRows | None]


@dataclass(frozen=True)
class Paired:
    """A mean paired difference and what is known of it.

    Args:
        n: Pairs.
        difference: The mean of the differences.
        sd: Their sample standard deviation; None of one pair.
        interval: Of the mean, by Student's t; None of one pair.
        p: Two-sided, of no difference; None of one pair.
    """

    n: int
    difference: float
    sd: float | None
    interval: tuple[float, float] | None
    p: float | None


def paired_difference(values: Sequence[float], others: Sequence[float], confidence: float = CONFIDENCE) -> Paired:
    r"""Compare two series that belong together entry by entry, such as scores of two methods under the same seeds.

    With differences :math:`d_1, \dots, d_n`, their mean :math:`\bar d` and sample standard deviation :math:`s`, the
    interval is :math:`\bar d \pm t_{n-1} \, s / \sqrt n`. It holds where the differences are independent and about
    normal. Differences that are all the same have an interval of no width, and p is 0, or 1 if they are 0.

    Args:
        values: One per seed.
        others: Of the same seeds, in the same order.
        confidence: Of the interval, in (0, 1).

    Raises:
        ValueError: There are none, or not equally many.
    """
    first, second = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"`paired_difference` got series of the shapes {first.shape} and {second.shape}: a pair has one value of "
            "each. Pass two of the same length, of at least 1."
        )
    differences = np.round(first - second, 12)  # 0.3 - 0.2 and 0.2 - 0.1 are the same
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Paired(n, mean, None, None, None)
    sd = float(differences.std(ddof=1)) if np.ptp(differences) > 0 else 0.0
    error = sd / math.sqrt(n)
    margin = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    no_spread = 1.0 if mean == 0 else 0.0
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else no_spread
    return Paired(n, mean, sd, (mean - margin, mean + margin), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p as it is to be read if any of them may be called significant.

    The k-th smallest of m is multiplied by m - k + 1, kept at least as large as those before it and at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def bootstrap_interval(
    values: np.ndarray, *, confidence: float = CONFIDENCE, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean under resampling of the rows.

    A mean over rows depends on how often each value was drawn alone, so of few different values (rightness over a few
    seeds has few) the counts are drawn, which is the same and takes no time.

    Args:
        values: `(rows,)`: of each row, e.g. by how much two methods differ on it.
        confidence: Of the interval, in (0, 1).
        draws: Resamples.
        seed: Of the draws, so that the interval is the same each time.
    """
    generator = np.random.default_rng(seed)
    values = np.asarray(values, dtype=float)
    distinct, counts = np.unique(np.round(values, 12), return_counts=True)
    rows = len(values)
    if len(distinct) <= 1_000:
        means = generator.multinomial(rows, counts / rows, size=draws) @ distinct / rows
    else:
        step = max(1, 2_000_000 // rows)
        sizes = [min(step, draws - start) for start in range(0, draws, step)]
        means = np.concatenate([values[generator.integers(rows, size=(k, rows))].mean(1) for k in sizes])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12), round(float(high), 12)


def verdict(
    n: int, difference: float, p: float | None, rows: tuple[float, float] | None, greater_is_better: bool = True
) -> str | None:
    """What a difference says; see `MEANING`.

    Args:
        n: Seeds.
        difference: The mean paired difference.
        p: Corrected.
        rows: The interval over test rows; None where there is none, and the seeds alone decide.
        greater_is_better: Of the metric.

    Returns:
        "helps", "hurts", "no evidence", or None of fewer than 3 seeds.
    """
    if n < LEAST_SEEDS or p is None:
        return None
    excludes_zero = rows is None or min(rows) > 0 < difference or max(rows) < 0 > difference
    if p >= 1 - CONFIDENCE or difference == 0 or not excludes_zero:
        return NO_EVIDENCE
    return HELPS if (difference > 0) == greater_is_better else HURTS


# ---------------------------------------------------------------------------------------------------------------------
# A comparison
# ---------------------------------------------------------------------------------------------------------------------


def summarise(lines: Iterable[Mapping[str, Any]], comparison: Mapping[str, Any], rows_of: RowsOf) -> dict[str, Any]:
    """The statistics of a comparison, as `summary.json` holds them.

    Args:
        lines: Of `results.jsonl`; of several of the same run a finished one counts, else the last.
        comparison: `comparison.json`.
        rows_of: The test rows of a line's run; None where it has none.
    """
    runs = latest(lines)
    pairs = {pair["name"]: _pair(pair, runs, comparison, rows_of) for pair in comparison["pairs"]}
    states = [runs.get((p["name"], m, s), {}).get("state") for p, m, s in wanted(comparison)]
    summary = {
        "format": 1,
        "metric": comparison["metric"],
        "greater_is_better": comparison["greater_is_better"],
        "protocol": comparison["protocol"],
        "runs": {"wanted": len(states), "finished": states.count(FINISHED), "failed": states.count(FAILED)},
        "confidence": CONFIDENCE,
        "draws": DRAWS,
        "meaning": MEANING,
        "warnings": [],
        "pairs": pairs,
    }
    if comparison["protocol"] == "best_test":
        summary["warnings"].append(
            "best_test: the test split chose the epoch, so those numbers flatter every method and stand beside "
            "the last epoch's only for comparison with papers that report them. Differences and verdicts are of the "
            "last epoch."
        )
    summary["warnings"] += _unequal_starts(runs.values())
    return summary


def latest(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """The line that counts of each run, by pair, method and seed."""
    runs: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    for line in lines:
        key = line["pair"], line["method"], line["seed"]
        if line["state"] == FINISHED or runs.get(key, {}).get("state") != FINISHED:
            runs[key] = line
    return runs


def wanted(comparison: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, int]]:
    """Pair, method and seed of all runs that a comparison is to have."""
    return [
        (pair, method, seed)
        for pair in comparison["pairs"]
        for method in pair["methods"]
        for seed in comparison["seeds"]
    ]


def _pair(
    pair: Mapping[str, Any], runs: Mapping[tuple, Mapping[str, Any]], comparison: Mapping[str, Any], rows_of: RowsOf
) -> dict[str, Any]:
    name, metric = pair["name"], comparison["metric"]
    sections = {entry["label"]: entry for entry in comparison["methods"]}
    baseline = next((label for label in pair["methods"] if sections.get(label, {}).get("baseline")), "alone")
    reference = _reference(pair["methods"], sections)
    scores: dict[str, dict[int, float]] = {}
    finished: dict[str, dict[int, Mapping[str, Any]]] = {}
    incomplete = []
    for label, seed in itertools.product(pair["methods"], comparison["seeds"]):
        line = runs.get((name, label, seed))
        if line is not None and line["state"] == FINISHED and line["test"].get(metric) is not None:
            scores.setdefault(label, {})[seed] = float(line["test"][metric])
            finished.setdefault(label, {})[seed] = line
        else:
            state = "missing" if line is None else line["state"]
            entry = {"method": label, "seed": seed, "state": state, "error": (line or {}).get("error")}
            incomplete.append({key: value for key, value in entry.items() if value is not None})
    rows = _Rows(finished, rows_of, _PER_ROW.get(metric))
    better = comparison["greater_is_better"]
    to_baseline = _against(baseline, pair["methods"], scores, rows, better)
    others = [label for label in pair["methods"] if label != baseline]
    to_kd = {} if reference is None else _against(reference, others, scores, rows, better)
    methods = [
        {
            **_own(label, scores.get(label, {}), finished.get(label, {}), rows),
            "to_baseline": to_baseline.get(label),
            "to_kd": to_kd.get(label),
        }
        for label in pair["methods"]
    ]
    return {"baseline": baseline, "reference": reference, "methods": methods, "incomplete": incomplete}


def _reference(labels: Sequence[str], sections: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What stands for plain KD: the label `kd`, else the only method of that name."""
    if "kd" in labels:
        return "kd"
    named = [label for label in labels if sections.get(label, {}).get("section", {}).get("name") == "kd"]
    return named[0] if len(named) == 1 else None


class _Rows:
    """The test rows of the finished runs, read once."""

    def __init__(
        self, finished: Mapping[str, Mapping[int, Mapping[str, Any]]], rows_of: RowsOf, column: str | None
    ) -> None:
        self.finished, self.rows_of, self.column = finished, rows_of, column
        self.read: dict[tuple[str, int], TestRows | None] = {}

    def of(self, label: str, seed: int) -> TestRows | None:
        if (label, seed) not in self.read:
            self.read[label, seed] = self.rows_of(self.finished[label][seed])
        return self.read[label, seed]

    def interval(self, label: str, other: str, seeds: Sequence[int]) -> tuple[float, float] | None:
        """Over labelled test rows, of the difference that is the mean over the seeds; None where rows are missing."""
        if self.column is None:
            return None
        pairs = [(self.of(label, seed), self.of(other, seed)) for seed in seeds]
        first = pairs[0][0]
        if any(rows is None or not np.array_equal(rows.label, first.label) for pair in pairs for rows in pair):
            return None
        kept = first.labelled
        values = [getattr(a, self.column)[kept].astype(float) - getattr(b, self.column)[kept] for a, b in pairs]
        return bootstrap_interval(np.mean(values, axis=0)) if kept.any() else None


def _own(
    label: str, scores: Mapping[int, float], finished: Mapping[int, Mapping[str, Any]], rows: _Rows
) -> dict[str, Any]:
    """What is known of a method by itself."""
    values = np.array(list(scores.values()))
    entry = {"label": label, "n": len(values), **_spread(values)}
    entry["agreement"] = _mean(_agreement(line, rows.of(label, seed)) for seed, line in finished.items())
    entry["ece"] = _mean(line["test"].get("ece") for line in finished.values())
    best = np.array([value for line in finished.values() for key, value in line.items() if _is_best_test(key)])
    if len(best):
        entry["best_test"] = _spread(best)
    return entry


def _is_best_test(key: str) -> bool:
    return key.startswith("best_test_") and key != "best_test_epoch"


def _spread(values: np.ndarray) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(("mean", "sd", "min", "max"))
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "sd": sd, "min": float(values.min()), "max": float(values.max())}


def _agreement(line: Mapping[str, Any], rows: TestRows | None) -> float | None:
    """How often student and teacher choose the same class."""
    if line["test"].get("agreement") is not None or rows is None or rows.teacher_prediction is None:
        return line["test"].get("agreement")
    answered = rows.teacher_prediction >= 0
    return float((rows.prediction == rows.teacher_prediction)[answered].mean()) if answered.any() else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _against(
    other: str, labels: Sequence[str], scores: Mapping[str, Mapping[int, float]], rows: _Rows, better: bool
) -> dict[str, dict[str, Any]]:
    """Each method against another one, over the seeds that both have."""
    found: dict[str, dict[str, Any]] = {}
    for label in labels:
        seeds = sorted(scores.get(label, {}).keys() & scores.get(other, {}).keys())
        if label == other or not seeds:
            continue
        paired = paired_difference([scores[label][s] for s in seeds], [scores[other][s] for s in seeds])
        interval = rows.interval(label, other, seeds)
        found[label] = {
            "n": paired.n,
            "difference": paired.difference,
            "sd": paired.sd,
            "ci": None if paired.interval is None else list(paired.interval),
            "p": paired.p,
            "p_holm": None,
            "rows_ci": None if interval is None else list(interval),
            "verdict": None,
        }
    tested = [entry for entry in found.values() if entry["p"] is not None]
    for entry, corrected in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = corrected
        entry["verdict"] = verdict(entry["n"], entry["difference"], corrected, entry["rows_ci"], better)
    return found


def _unequal_starts(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Runs of one pair and seed that did not start alike; None, of a run that was taken up again, is not known."""
    what = {"initial_weights": "other initial weights", "data_order": "the rows in another order"}
    found: dict[tuple[str, str, int], dict[str, list[str]]] = {}
    for line in lines:
        for key in what:
            if line["state"] == FINISHED and line.get(key) is not None:
                place = found.setdefault((key, line["pair"], line["seed"]), {})
                place.setdefault(line[key], []).append(line["method"])
    warnings = []
    for (key, pair, seed), groups in found.items():
        if len(groups) > 1:
            *few, most = sorted(groups.values(), key=len)
            names = ", ".join(label for group in few for label in group)
            warnings.append(
                f"{pair}, seed {seed}: {names} had {what[key]} than {', '.join(most)}, so these differ by more than "
                "their method."
            )
    return warnings

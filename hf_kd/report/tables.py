"""Tables as the page and a README show them: every cell a string, made from the same numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..statistics_of_runs import HELPS, HURTS, LEAST_SEEDS, NO_EVIDENCE
from .figures import agreement_of
from .results import BEST_TEST, Pair, Results
from .text import NOTHING, count, duration, finite_pair, number, p_value

TOO_FEW = f"no verdict: fewer than {LEAST_SEEDS} seeds"
SYMBOLS = {HELPS: "▲", HURTS: "▼", NO_EVIDENCE: "○"}
PROTOCOLS = {
    "last": "the model of the last epoch",
    "best_validation": "the model with the best validation score",
    "best_test": "the model of the last epoch, and beside it the epoch with the best test score",
}
BEST_TEST_WARNING = (
    "The column of the best epoch was chosen on the test rows (protocol best_test). Such scores are too high, by an "
    "amount that is not known, and methods with noisier curves gain more from it. They are here to be set beside "
    "papers that do the same. All other numbers, differences and verdicts among them, are of the last epoch."
)


@dataclass(frozen=True)
class Difference:
    """A method against another one.

    Args:
        value: The difference of means, signed; a dash where there is none.
        interval: 95 %, over seeds.
        rows: 95 %, over test rows.
        p: After Holm's correction.
        p_alone: Before it.
        sd: Of the differences between seeds.
        verdict: In words.
        kind: "helps", "hurts", "none" or "unknown".
        symbol: Of the verdict.
    """

    value: str = NOTHING
    interval: str = ""
    rows: str = ""
    p: str = ""
    p_alone: str = ""
    sd: str = ""
    verdict: str = ""
    kind: str = "unknown"
    symbol: str = ""


@dataclass(frozen=True)
class Standing:
    """A line of the leaderboard."""

    label: str
    n: int
    asked: int
    score: str
    mean: str
    sd: str
    low: str
    high: str
    to_baseline: Difference | None
    to_kd: Difference | None
    agreement: str
    ece: str
    best_test: str
    is_baseline: bool
    anchor: str


def leaderboard(pair: Pair) -> list[Standing]:
    """The methods of a pair from the best to the worst."""
    return [_standing(pair, method) for method in pair.ranked]


def _standing(pair: Pair, method: str) -> Standing:
    scale, entry = pair.results.scale, pair.statistic(method)
    mean, sd = number(entry, "mean"), number(entry, "sd")
    agreement, _ = agreement_of(pair, method)
    runs = pair.of(method)
    others = {"to_baseline": pair.baseline, "to_kd": pair.reference}
    differences = {
        key: None if other in (None, method) or not entry.get(key) else difference(pair, entry[key])
        for key, other in others.items()
    }
    return Standing(
        label=method,
        n=len(pair.finished(method)),
        asked=len(runs),
        score=scale.spread(mean, sd),
        mean=scale.value(mean),
        sd=NOTHING if sd is None else scale.value(sd),
        low=scale.value(number(entry, "min")),
        high=scale.value(number(entry, "max")),
        **differences,
        agreement=pair.results.scale_of("agreement").value(agreement),
        ece=pair.results.scale_of("ece").value(ece_of(pair, method)),
        best_test=scale.spread(number(entry, "best_test", "mean"), number(entry, "best_test", "sd")),
        is_baseline=method == pair.baseline,
        anchor=runs[0].anchor if runs else "",
    )


def ece_of(pair: Pair, method: str) -> float | None:
    """Mean over seeds of the expected calibration error on the test rows."""
    stored = number(pair.statistic(method), "ece")
    return stored if stored is not None else pair.mean(method, "test", "ece")


def difference(pair: Pair, said: Any) -> Difference:
    """The cells of a difference of the summary."""
    scale = pair.results.scale
    value = number(said, "difference")
    if value is None:
        return Difference()
    verdict = said.get("verdict")
    if verdict in SYMBOLS:
        kind = "none" if verdict == NO_EVIDENCE else verdict
    else:
        verdict, kind = TOO_FEW, "unknown"
    sd = number(said, "sd")
    return Difference(
        value=scale.difference(value),
        interval=scale.interval(said.get("ci")),
        rows=scale.interval(said.get("rows_ci")),
        p=p_value(number(said, "p_holm")) if finite_pair(said.get("ci")) else "",
        p_alone=p_value(number(said, "p")) if finite_pair(said.get("ci")) else "",
        sd=NOTHING if sd is None else scale.value(sd),
        verdict=verdict,
        kind=kind,
        symbol=SYMBOLS.get(verdict, ""),
    )


def teacher_cells(pair: Pair) -> dict[str, str] | None:
    """The teacher's line above the leaderboard; None where it was not scored."""
    score = pair.teacher(pair.results.metric)
    if score is None:
        return None
    sizes = [v for m in pair.methods for v in pair.values(m, "teacher_parameters")]
    return {
        "name": pair.teacher_name,
        "score": pair.results.scale.value(score),
        "parameters": count(max(sizes, default=None)),
    }


def hardware_facts(hardware: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What runs ran on, in words: bytes as GiB, devices by their names."""
    facts = []
    for key, value in hardware.items():
        if isinstance(value, list):
            value = ", ".join(_device(one) for one in value)
        elif key == "memory" and number(hardware, key) is not None:
            value = f"{value / 2**30:.0f} GiB"
        if value not in (None, ""):
            facts.append((key, str(value)))
    return facts


def _device(found: Any) -> str:
    if not isinstance(found, Mapping):
        return str(found)
    memory = number(found, "memory")
    return f"{found.get('name')}{'' if memory is None else f' ({memory / 2**30:.0f} GiB)'}"


def cost_rows(pair: Pair) -> list[dict[str, str]]:
    """Size and time of each method."""
    rows = []
    for method in pair.ranked:
        seconds = list(pair.values(method, "train_seconds"))
        if not seconds and not pair.finished(method):
            continue
        size, teacher = pair.mean(method, "student_parameters"), pair.mean(method, "teacher_parameters")
        latency = pair.mean(method, "latency_ms")
        rows.append(
            {
                "label": method,
                "parameters": count(size),
                "smaller": f"{teacher / size:.1f}×" if size and teacher else NOTHING,
                "steps": count(pair.mean(method, "train_steps")),
                "seconds": duration(sum(seconds) / len(seconds)) if seconds else NOTHING,
                "range": f"{duration(min(seconds))} to {duration(max(seconds))}" if len(seconds) > 1 else "",
                "total": duration(pair.mean(method, "total_seconds")),
                "latency": NOTHING if latency is None else f"{latency:.2f} ms",
            }
        )
    return rows


def warnings_of(results: Results) -> list[str]:
    """What a reader has to know before the numbers, in sentences."""
    found = [BEST_TEST_WARNING] if results.protocol == BEST_TEST else []
    counts = [len(pair.finished(m)) for pair in results.pairs for m in pair.methods]
    counts = [n for n in counts if n]
    if counts and max(counts) < LEAST_SEEDS:
        found.append(
            f"Fewer than {LEAST_SEEDS} seeds: how far another seed would move a score is not known well enough for a "
            "verdict on any method."
        )
    if results.kind == "runs":
        found.append(
            "These runs were found in one folder; nothing says that they were meant to be compared. What differs "
            "between them besides the method is listed under Setup."
        )
    said = results.summary.get("warnings")
    said = said if isinstance(said, list) else []
    return found + [str(line) for line in said if not str(line).startswith(BEST_TEST)]

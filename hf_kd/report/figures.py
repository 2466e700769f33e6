"""Figures of results: intervals, agreement, reliability, cost."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from . import behaviour
from .charts import ACCENT, COLORS, MUTED, PLAIN, TEACHER, Figure, Interval, Intervals, Panel, Series, extent
from .results import Pair, Results
from .text import duration, finite_pair, number, plain, plural


def score_figure(pair: Pair) -> Figure | None:
    """The test scores of all methods, each seed a point."""
    results, scale = pair.results, pair.results.scale
    rows = []
    for method in pair.ranked:
        entry = pair.statistic(method)
        mean = number(entry, "mean")
        if mean is None:
            continue
        points = tuple(v * scale.factor for v in pair.values(method, "test", results.metric))
        sd = number(entry, "sd")
        ends = {} if sd is None else {"low": (mean - sd) * scale.factor, "high": (mean + sd) * scale.factor}
        words = f"{scale.spread(mean, sd)}{scale.unit}, n = {len(points)}"
        color = PLAIN if method == pair.baseline else ACCENT
        rows.append(Interval(method, mean * scale.factor, words=words, points=points, color=color, **ends))
    teacher = pair.teacher(results.metric)
    if teacher is not None and rows:
        words = f"{scale.value(teacher)}{scale.unit}"
        rows.insert(0, Interval("teacher", teacher * scale.factor, words=words, color=TEACHER))
    if not rows:
        return None
    unit = f", {scale.unit}" if scale.unit else ""
    return Figure(
        "scores",
        f"Test {scale.word}",
        (Intervals("", tuple(rows), f"test {results.metric}{unit}"),),
        f"Test {results.metric}{_on_rows(results)}. Small points are seeds, the large one is their mean, and the line "
        "reaches one sample standard deviation (n − 1) to either side; one run has no line.",
        "; ".join(f"{row.label} {row.words}" for row in rows),
    )


def difference_figure(pair: Pair, key: str, other: str | None) -> Figure | None:
    """Differences to another method with their intervals.

    Args:
        pair: Of models.
        key: "to_baseline" or "to_kd".
        other: The label of that method.
    """
    if other is None:
        return None
    scale, rows = pair.results.scale, []
    for method in pair.ranked:
        entry = pair.statistic(method).get(key)
        value = number(entry, "difference")
        if method == other or value is None:
            continue
        ends = finite_pair(entry.get("ci"))
        drawn = {} if ends is None else {"low": ends[0] * scale.factor, "high": ends[1] * scale.factor}
        words = f"{scale.difference(value)} {scale.interval(ends)}".strip()
        is_clear = entry.get("verdict") in ("helps", "hurts")
        color = ACCENT if is_clear else MUTED
        rows.append(Interval(method, value * scale.factor, words=words, color=color, **drawn))
    if not rows:
        return None
    unit = f", {scale.difference_unit}" if scale.difference_unit else ""
    return Figure(
        f"difference_{key}",
        f"Difference to {other}",
        (Intervals("", tuple(rows), f"difference in test {pair.results.metric}{unit}", has_zero=True),),
        f"Difference to {other} with 95 % intervals (paired t over seeds{_on_rows(pair.results)}). Blue: the verdict "
        "is helps or hurts; grey: no evidence, or too few seeds for a verdict. A method without an interval has one "
        "seed in common.",
        "; ".join(f"{row.label} {row.words}" for row in rows),
    )


def agreement_figure(pair: Pair) -> Figure | None:
    """How often the students choose the teacher's class."""
    scale = pair.results.scale_of("agreement")
    rows = []
    for method in pair.ranked:
        mean, points = agreement_of(pair, method)
        if mean is not None:
            color = PLAIN if method == pair.baseline else ACCENT
            value = mean * scale.factor
            shown = tuple(v * scale.factor for v in points)
            rows.append(Interval(method, value, words=f"{scale.value(mean)} %", points=shown, color=color))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.value)
    return Figure(
        "agreement",
        "Agreement with the teacher",
        (Intervals("", tuple(rows), "rows on which both choose the same class, %"),),
        f"Share of the test rows on which student and teacher choose the same class{_on_rows(pair.results)}; small "
        "points are seeds, the large one is their mean. A student alone agrees by the labels that both learned.",
        "; ".join(f"{row.label} {row.words}" for row in rows),
    )


def agreement_of(pair: Pair, method: str) -> tuple[float | None, list[float]]:
    """Agreement, and that of each seed: as the runs scored it, else from their test rows."""
    points = list(pair.values(method, "test", "agreement"))
    if not points:
        found = [behaviour.agreement([rows]) for rows in behaviour.rows_of(pair, method)]
        points = [one.overall for one in found if one is not None]
    stored = number(pair.statistic(method), "agreement")
    mean = stored if stored is not None else sum(points) / len(points) if points else None
    return mean, points


def reliability_figure(pair: Pair) -> Figure | None:
    """Confidence against accuracy: the teacher's, then each method's."""
    found = [("teacher", behaviour.teacher_calibration(behaviour.rows_with_teacher(pair)))]
    found += [(m, behaviour.student_calibration(behaviour.rows_of(pair, m))) for m in pair.ranked]
    found = [(name, one) for name, one in found if one is not None]
    if not found:
        return None
    panels = tuple(
        _reliability(name, one, is_teacher=i == 0 and name == "teacher") for i, (name, one) in enumerate(found)
    )
    runs = max(one.runs for _, one in found)
    pooled = f", of {plural(runs, 'seed')} together" if runs > 1 else ""
    return Figure(
        "reliability",
        "Reliability",
        panels,
        f"Share of right answers against confidence on the test rows{pooled}, in {behaviour.NUM_BINS} bins of equal "
        "width. On the dotted line confidence is as good as its word; below it the model is too sure. Bars: the share "
        f"of rows in each bin. ECE: expected calibration error{', mean over seeds' if runs > 1 else ''}.",
        "; ".join(f"{name}: ECE {one.ece:.1%}" for name, one in found),
    )


def _reliability(name: str, one: behaviour.Calibration, is_teacher: bool) -> Panel:
    kept = np.isfinite(one.confidence) & (one.share > 0)
    x, y = one.confidence[kept].tolist(), one.accuracy[kept].tolist()
    series = Series(name, x, y, TEACHER if is_teacher else ACCENT, has_marks=True)
    whole = (0.0, 1.0)
    note = f"ECE {plain(one.ece * 100, 1)} %"
    bars = tuple(one.share.tolist())
    return Panel(name, (series,), "confidence", "accuracy", whole, whole, bars=bars, has_diagonal=True, note=note)


def cost_figure(results: Results) -> Figure | None:
    """Accuracy against parameters and against latency, of teachers and students of all pairs."""
    scale = results.scale
    panels = []
    for key, x_label in (("parameters", "parameters"), ("latency_ms", "latency, ms")):
        students, teachers = _cost_points(results, key)
        xs = {x for _, x, _ in students + teachers}
        if len(xs) < 2 or not students:
            continue
        series = [_frontier(students + teachers, results)]
        for points, color, kind in ((teachers, TEACHER, "teacher"), (students, ACCENT, "student")):
            labels = [name for name, _, _ in points]
            x, y = [p[1] for p in points], [p[2] * scale.factor for p in points]
            series.append(Series(kind, x, y, color, has_marks=True, has_line=False, labels=labels))
        shown = [s for s in series if len(s.x)]
        panel = Panel("", tuple(shown), x_label, f"test {results.metric}{f', {scale.unit}' if scale.unit else ''}")
        low, high = min(xs), max(xs)
        ends = (low / (high / low) ** 0.12, high * (high / low) ** 0.12)
        panels.append(replace(panel, x_range=ends, y_range=extent([panel], "y", pad=0.1), x_scale="log"))
    if not panels:
        return None
    has_latency = any(number(run.line, "latency_ms") is not None for run in results.runs)
    return Figure(
        "cost",
        f"{scale.title} against size{' and speed' if len(panels) > 1 else ''}",
        tuple(panels),
        f"Mean test {results.metric} of the best method of each pair and of its student alone, and of the teachers, "
        "against their size (logarithmic). The line joins models that no smaller (faster) one is better than."
        + ("" if has_latency else " Latencies were not measured."),
        "; ".join(
            f"{label}: {plain(y, 1)} at {x:,.4g}"
            for panel in panels[:1]
            for series in panel.series
            for label, x, y in zip(series.labels or (), series.x, series.y, strict=False)
        ),
        (("teachers", TEACHER, False), ("students", ACCENT, False)),
    )


Point = tuple[str, float, float]


def _cost_points(results: Results, key: str) -> tuple[list[Point], list[Point]]:
    students, teachers = [], []
    for pair in results.pairs:
        prefix = f"{pair.entry.get('student')}: " if len(results.pairs) > 1 else ""
        for method in dict.fromkeys([*pair.distilled[:1], *filter(None, [pair.baseline])]):
            x = pair.mean(method, "student_parameters" if key == "parameters" else key)
            mean = number(pair.statistic(method), "mean")
            if x and mean is not None:
                students.append((f"{prefix}{method}", x, mean))
        x = max(
            (v for m in pair.methods for v in pair.values(m, f"teacher_{key}")),
            default=None,
        )
        score = pair.teacher(results.metric)
        if x and score is not None:
            teachers.append((pair.teacher_name, x, score))
    return students, list(dict.fromkeys(teachers))


def _frontier(points: Sequence[Point], results: Results) -> Series:
    """The models that no smaller one is better than."""
    sign = 1 if results.greater_is_better else -1
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p[1], -sign * p[2])):
        if not kept or sign * point[2] > sign * kept[-1][2]:
            kept.append(point)
    return Series("frontier", [p[1] for p in kept], [p[2] * results.scale.factor for p in kept], MUTED)


def time_figure(pair: Pair) -> Figure | None:
    """Training seconds of each method."""
    rows = []
    for method in pair.methods:
        points = list(pair.values(method, "train_seconds"))
        if points:
            mean = sum(points) / len(points)
            color = PLAIN if method == pair.baseline else ACCENT
            rows.append(Interval(method, mean, words=duration(mean), points=tuple(points), color=color))
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: row.value)
    return Figure(
        "seconds",
        "Training time",
        (Intervals("", tuple(rows), "seconds of training"),),
        "Wall-clock seconds of training, evaluations during it included; small points are seeds, the large one is "
        "their mean. Runs that shared their machine with others are slower than they would be alone.",
        "; ".join(f"{row.label} {row.words}" for row in rows),
    )


def _on_rows(results: Results) -> str:
    return "" if results.test_rows is None else f", on {results.test_rows:,} test rows"


__all__ = [
    "COLORS",
    "agreement_figure",
    "agreement_of",
    "cost_figure",
    "difference_figure",
    "reliability_figure",
    "score_figure",
    "time_figure",
]

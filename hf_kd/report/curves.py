"""Curves over time from the logs of runs: the mean over seeds, with a band from the lowest to the highest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .charts import ACCENT, COLORS, MUTED, PLAIN, TEACHER, Figure, Panel, Series, extent
from .plots import loss_series, temperature_series
from .results import Pair, Run
from .text import Scale, number, plain, plural

MOST_TOGETHER = 5
"""So many curves can be told apart in one panel; of more, each gets a panel with the others in grey."""

EPOCH, STEP = "epoch", "optimizer step"

Points = list[tuple[float, float, float]]
"""`(optimizer step, epoch or step, value)`."""


@dataclass(frozen=True)
class Curve:
    """A number over time, over seeds.

    Args:
        x: Epochs, or optimizer steps where no epochs were logged.
        mean: Over the seeds.
        low: The lowest of them.
        high: The highest.
        n: How many seeds.
    """

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: int

    def series(self, name: str, color: str, factor: float = 1.0, *, is_dashed: bool = False) -> Series:
        """As drawn, with a band where there is more than one seed."""
        mean, low, high = ([value * factor for value in column] for column in (self.mean, self.low, self.high))
        band = {"low": low, "high": high} if self.n > 1 else {}
        return Series(name, self.x, mean, color, is_dashed=is_dashed, **band)


def points_of(history: Sequence[Mapping[str, Any]], key: str, axis: str = EPOCH) -> Points:
    """Where `key` was logged."""
    found = []
    for record in history:
        step, value = number(record, "step"), number(record, key)
        if step is not None and value is not None:
            epoch = number(record, "epoch") if axis == EPOCH else None
            found.append((step, step if epoch is None else epoch, value))
    return found


def axis_of(pair: Pair) -> str:
    """Epochs, where an epoch is as many steps in all runs, else steps: epochs of fewer rows are shorter."""
    lengths = []
    for run in pair.runs:
        last = next((r for r in reversed(run.history) if number(r, "step")), {})
        step, epoch = number(last, "step"), number(last, "epoch")
        if step is not None and not epoch:
            return STEP
        lengths += [step / epoch] if step is not None else []
    return EPOCH if lengths and max(lengths) <= 1.02 * min(lengths) else STEP


def mean_curve(columns: Sequence[Points]) -> Curve | None:
    """The mean over seeds, at the steps that all of them logged; None where there are none.

    Args:
        columns: One for each seed; empty ones do not count.
    """
    columns = [column for column in columns if column]
    if not columns:
        return None
    values = [{step: value for step, _, value in column} for column in columns]
    shared = set.intersection(*(set(known) for known in values))
    places = {step: x for step, x, _ in columns[0] if step in shared}
    if not places:
        return None
    table = [[known[step] for known in values] for step in places]
    return Curve(
        x=list(places.values()),
        mean=[sum(row) / len(row) for row in table],
        low=[min(row) for row in table],
        high=[max(row) for row in table],
        n=len(columns),
    )


def curve_of(runs: Sequence[Run], key: str, axis: str = EPOCH) -> Curve | None:
    """`mean_curve` of a logged key."""
    return mean_curve([points_of(run.history, key, axis) for run in runs])


def learning_figures(pair: Pair) -> list[Figure]:
    """Training loss, and loss, metric and agreement of the evaluations during training."""
    metric = pair.results.metric
    scale = pair.results.scale
    wanted = [
        (f"eval_{metric}", f"{scale.title} on the validation split", scale),
        ("loss", "Training loss", None),
        ("eval_loss", "Loss on the validation split", None),
        ("eval_agreement", "Agreement with the teacher on the validation split", Scale.of("agreement")),
    ]
    axis = axis_of(pair)
    figures = [_learning_figure(pair, key, title, scale, axis) for key, title, scale in wanted]
    return [figure for figure in figures if figure is not None]


def _learning_figure(pair: Pair, key: str, title: str, scale: Scale | None, axis: str) -> Figure | None:
    curves = {method: curve_of(pair.drawn(method), key, axis) for method in pair.ranked}
    curves = {method: curve for method, curve in curves.items() if curve is not None and len(curve.x) > 1}
    if not curves:
        return None
    curves, floor = _cut(curves) if key == f"eval_{pair.results.metric}" else (curves, None)
    factor = scale.factor if scale else 1.0
    unit = f", {scale.unit}" if scale and scale.unit else ""
    y_label = {"loss": "loss", "eval_loss": "cross-entropy, nats"}.get(key, key.removeprefix("eval_") + unit)
    panels, legend = _spread(curves, factor, axis, y_label, pair.baseline)
    ends = [f"{name} {plain(c.mean[-1] * factor, 2)}{scale.unit if scale else ''}" for name, c in curves.items()]
    note = (
        ""
        if key != "loss"
        else " The training loss of each method is its own sum of terms: heights do not compare between methods."
    )
    if floor is not None:
        note = f" The axis starts where the lowest was after a quarter of the time ({scale.value(floor)}{scale.unit})."
    others = " In each panel one method, the others in grey." if not legend else ""
    return Figure(
        f"{key.replace('/', '_')}",
        title,
        panels,
        f"{title} over {axis}s. {seeds_words(curves)}.{others}{note}",
        f"{title}. Last values: {', '.join(ends)}.",
        legend,
    )


def _cut(curves: Mapping[str, Curve]) -> tuple[dict[str, Curve], float | None]:
    """The curves from where they reach what the lowest had after a quarter of the time, if most of the axis is below.

    Methods that end within a point of each other cannot be told apart on an axis that starts at chance.
    """
    floor = min(curve.mean[len(curve.mean) // 4] for curve in curves.values())
    low, high = min(min(c.low) for c in curves.values()), max(max(c.high) for c in curves.values())
    if floor - low < 0.3 * (high - low):
        return dict(curves), None
    cut = {}
    for name, curve in curves.items():
        start = next(i for i, value in enumerate(curve.mean) if value >= floor)
        columns = (column[start:] for column in (curve.x, curve.mean, curve.low, curve.high))
        cut[name] = Curve(*columns, n=curve.n)
    return cut, floor


def seeds_words(curves: Mapping[str, Curve]) -> str:
    """What a line and its band are."""
    counts = sorted({curve.n for curve in curves.values()})
    if counts[-1] == 1:
        return "One run of each method, so there is no band"
    few = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"Lines are means over n = {few} seeds; bands reach from the lowest to the highest seed"


def _spread(
    curves: Mapping[str, Curve], factor: float, x_label: str, y_label: str, baseline: str | None
) -> tuple[tuple[Panel, ...], tuple[tuple[str, str, bool], ...]]:
    """One panel for few curves, with a legend; one for each of many."""
    if len(curves) <= MOST_TOGETHER:
        looks = iter([(color, index % 2 == 1) for index, color in enumerate(COLORS)])
        chosen = {method: (PLAIN, False) if method == baseline else next(looks) for method in curves}
        series = [
            curve.series(method, chosen[method][0], factor, is_dashed=chosen[method][1])
            for method, curve in curves.items()
        ]
        legend = tuple((s.name, s.color, s.is_dashed) for s in series)
        return (Panel("", tuple(series[::-1]), x_label, y_label),), legend
    backdrop = tuple(Series(n, c.x, [v * factor for v in c.mean], MUTED) for n, c in curves.items())
    panels = [
        Panel(method, (curve.series(method, ACCENT, factor),), x_label, y_label, backdrop=backdrop)
        for method, curve in curves.items()
    ]
    return _aligned(panels), ()


def _aligned(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    """The panels on the same axes."""
    x, y = extent(panels, "x", pad=0.02), extent(panels, "y")
    return tuple(replace(panel, x_range=x, y_range=y) for panel in panels)


# ---------------------------------------------------------------------------------------------------------------------
# Loss components
# ---------------------------------------------------------------------------------------------------------------------


def component_figure(pair: Pair) -> Figure | None:
    """The training loss of each method and its terms."""
    axis = axis_of(pair)
    found: dict[str, dict[str, Curve]] = {}
    for method in pair.ranked:
        runs = pair.drawn(method)
        keys = dict.fromkeys(key for run in runs for key in loss_series(_stepped(run)) if key != "eval_loss")
        curves = {key: curve_of(runs, key, axis) for key in keys}
        curves = {key: curve for key, curve in curves.items() if curve is not None and len(curve.x) > 1}
        if len(curves) > 1 and not _says_no_more(curves):  # a loss of one term is in the learning curves
            found[method] = curves
    if not found:
        return None
    names = list(dict.fromkeys(key for curves in found.values() for key in curves))
    names.sort(key=lambda key: (key != "loss", key != "ce_loss", key))
    looks = {key: (([PLAIN, *COLORS])[i % 6], i % 2 == 1) for i, key in enumerate(names)}
    panels = [
        Panel(
            method,
            tuple(c.series(key, looks[key][0], is_dashed=looks[key][1]) for key, c in reversed(curves.items())),
            axis,
            "loss",
        )
        for method, curves in found.items()
    ]
    last = [f"{m}: " + ", ".join(f"{k} {plain(c.mean[-1], 3)}" for k, c in found[m].items()) for m in found]
    words = seeds_words({m: c for m, curves in found.items() for c in curves.values()})
    return Figure(
        "loss_components",
        "Terms of the training loss",
        tuple(panels),
        f"The training loss of each method and its terms as they enter it, weights included, over {axis}s. "
        f"{words}. Each panel has its own vertical axis.",
        f"Terms of the training loss. Last values: {'; '.join(last)}.",
        tuple((key, *looks[key]) for key in names),
    )


def _says_no_more(curves: Mapping[str, Curve]) -> bool:
    """Whether there is one term, and it is the loss."""
    (_, whole), *terms = sorted(curves.items(), key=lambda item: item[0] != "loss")
    gaps = (abs(a - b) for a, b in zip(whole.mean, terms[0][1].mean, strict=False))
    return len(terms) == 1 and all(gap <= 1e-3 * (1 + abs(whole.mean[0])) for gap in gaps)


def _stepped(run: Run) -> list[dict[str, Any]]:
    return [record for record in run.history if number(record, "step") is not None]


# ---------------------------------------------------------------------------------------------------------------------
# Temperatures
# ---------------------------------------------------------------------------------------------------------------------


def temperature_figure(pair: Pair) -> tuple[Figure | None, list[tuple[str, str]]]:
    """Temperatures that move, drawn; and those that do not, as `(method, words)`."""
    axis = axis_of(pair)
    panels, constant = [], []
    counts: dict[str, int] = {}
    for method in pair.ranked:
        runs = [temperature_series(_stepped(run)) for run in pair.drawn(method)]
        for loss in dict.fromkeys(loss for series in runs for loss in series):
            columns = [series[loss] for series in runs if loss in series]
            name = f"{method}, {loss}" if loss else method
            if words := _constant_words(columns):
                constant.append((name, words))
            elif panel := _temperature_panel(name, pair.drawn(method), loss, axis):
                panels.append(panel)
                counts[name] = len(columns)
    if not panels:
        return None, constant
    seeds = max(counts.values())
    over_seeds = f" and {plural(seeds, 'seed')}" if seeds > 1 else ""
    return (
        Figure(
            "temperatures",
            "Temperatures during training",
            _aligned(panels),
            f"Temperature of student and teacher over {axis}s, on a logarithmic axis: lines are means over rows"
            f"{over_seeds}, bands reach from the smallest to the largest of "
            "any row, which differ where each sample has a temperature of its own.",
            "Temperatures. "
            + "; ".join(f"{p.title}: student {p.series[-1].y[0]:.3g} to {p.series[-1].y[-1]:.3g}" for p in panels)
            + ".",
            (("student", ACCENT, False), ("teacher", TEACHER, True)),
        ),
        constant,
    )


def _constant_words(columns: Sequence[Mapping[str, list[float]]]) -> str | None:
    """What the temperatures are, where they never move and are the same for all rows."""
    values = {}
    for side in ("student", "teacher"):
        found = {v for c in columns for end in ("min", "max") for v in c.get(f"{side}_{end}", ())}
        if len({float(f"{value:.5g}") for value in found}) != 1:
            return None
        values[side] = found.pop()
    same = f"{values['student']:.4g}" == f"{values['teacher']:.4g}"
    return f"{values['student']:.4g}" if same else " / ".join(f"{side} {v:.4g}" for side, v in values.items())


def _temperature_panel(name: str, runs: Sequence[Run], loss: str, axis: str) -> Panel | None:
    prefix = f"temperature/{loss}/" if loss else "temperature/"
    series = []
    for side, color in (("teacher", TEACHER), ("student", ACCENT)):
        mean, low, high = (curve_of(runs, f"{prefix}{side}_{what}", axis) for what in ("mean", "min", "max"))
        if mean is None or low is None or high is None or min(low.low) <= 0:
            return None
        series.append(Series(side, mean.x, mean.mean, color, low.low, high.high, is_dashed=side == "teacher"))
    return Panel(name, tuple(series), axis, "temperature", y_scale="log2")

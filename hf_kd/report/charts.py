"""What a figure shows, apart from how it is drawn: the page draws it as SVG, a paper wants a PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

MOST_POINTS = 160
"""So many points of a curve are drawn; a panel is hardly wider in pixels."""

COLORS = ("c1", "c2", "c3", "c4", "c5")
TEACHER, ACCENT, MUTED, PLAIN = "c2", "c1", "muted", "c0"


@dataclass(frozen=True)
class Series:
    """One curve, or a set of points.

    Args:
        name: As the legend says it.
        x: In ascending order where a line joins the points.
        y: As many.
        color: One of `COLORS`, `MUTED` or `PLAIN`.
        low: The lower edge of a band around the curve.
        high: The upper edge.
        is_dashed: Dashes tell curves apart without colour.
        has_marks: Draw the points.
        has_line: Join them.
        labels: A word at each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = ACCENT
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_dashed: bool = False
    has_marks: bool = False
    has_line: bool = True
    labels: Sequence[str] | None = None


@dataclass(frozen=True)
class Panel:
    """Axes with curves.

    Args:
        title: Above it; empty for none.
        series: What is drawn, the last on top.
        x_label: With the unit.
        y_label: With the unit.
        x_range: Ends of the axis; None for those of the data.
        y_range: Likewise.
        x_scale: "linear" or "log".
        y_scale: "linear", "log" or "log2", whose ticks are powers of 2.
        backdrop: Curves behind all others, in grey; the same in all panels of a figure.
        bars: Shares of the rows, along the lower edge, over the width of the axis.
        has_diagonal: Draw y = x.
        note: A few words inside, in the upper left corner.
    """

    title: str
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_scale: str = "linear"
    y_scale: str = "linear"
    backdrop: tuple[Series, ...] = ()
    bars: tuple[float, ...] = ()
    has_diagonal: bool = False
    note: str = ""


@dataclass(frozen=True)
class Interval:
    """A line of an `Intervals`.

    Args:
        label: What it is about.
        value: The middle; None where it is not known.
        low: The lower end; None for no interval.
        high: The upper end.
        words: The numbers, as text.
        points: Single values, e.g. one per seed.
        color: As in `Series`.
    """

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    words: str = ""
    points: tuple[float, ...] = ()
    color: str = ACCENT


@dataclass(frozen=True)
class Intervals:
    """Values with intervals, one below the other.

    Args:
        title: Above it; empty for none.
        rows: From top to bottom.
        x_label: With the unit.
        has_zero: Show zero, with a line.
    """

    title: str
    rows: tuple[Interval, ...]
    x_label: str
    has_zero: bool = False


@dataclass(frozen=True)
class Figure:
    """Panels that belong together.

    Args:
        name: Of the PNG, without its ending; an anchor too.
        title: In a few words.
        panels: In reading order.
        caption: What it is, of how many runs, and what a band means.
        alt: What one would tell somebody who cannot see it.
        legend: `(name, color, is_dashed)` of each kind of curve; empty where panels name theirs.
    """

    name: str
    title: str
    panels: tuple[Panel | Intervals, ...]
    caption: str
    alt: str
    legend: tuple[tuple[str, str, bool], ...] = ()


def thinned(series: Series) -> Series:
    """At most `MOST_POINTS` points, evenly chosen, both ends among them."""
    n = len(series.x)
    if n <= MOST_POINTS:
        return series
    kept = sorted({round(i * (n - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})

    def some(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else [values[i] for i in kept]

    return replace(series, x=some(series.x), y=some(series.y), low=some(series.low), high=some(series.high))


def extent(panels: Sequence[Panel], axis: str, *, at_least: float = 0.0, pad: float = 0.04) -> tuple[float, float]:
    """Ends of an axis that all panels can share: every curve and band, with some air.

    Args:
        panels: Whose series count.
        axis: "x" or "y".
        at_least: The least width.
        pad: Air at both ends, as a share of the width.
    """
    values: list[float] = []
    for panel in panels:
        for series in (*panel.series, *panel.backdrop):
            columns = [series.x] if axis == "x" else [series.y, series.low or (), series.high or ()]
            values += [v for column in columns for v in column if math.isfinite(v)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low > 0 and any((panel.x_scale if axis == "x" else panel.y_scale) != "linear" for panel in panels):
        air = max((high / low) ** pad, 1.05)
        return low / air, high * air
    width = max(high - low, at_least, 1e-9 * max(abs(low), abs(high)), 1e-12)
    missing = (width - (high - low)) / 2
    return low - missing - pad * width, high + missing + pad * width


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within an axis, at most about `most` of them."""
    width = high - low
    if not width > 0 or not math.isfinite(width):
        return [low]
    rough = width / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def power_ticks(low: float, high: float, base: int) -> list[float]:
    """Powers of `base` within an axis of positive numbers; for base 10 also 2 and 5 times these where few fit."""
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    powers = [float(base) ** k for k in range(first, last + 1)]
    factors = (1, 2, 5) if base == 10 and last - first <= 2 else (1,)
    found = [power * factor for power in powers for factor in factors]
    found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return found or [low, high]


def tick_text(value: float, step: float = 0.0) -> str:
    """A tick, as short as it can be."""
    if value == 0 or abs(value) < abs(step) * 1e-6:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    if step:
        decimals = max(0, -math.floor(math.log10(abs(step)) + 1e-9))
        return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")

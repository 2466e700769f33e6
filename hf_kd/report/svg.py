"""Panels as inline SVG: colours come from the page's style sheet, so that one drawing serves light and dark."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from .charts import (
    Interval,
    Intervals,
    Panel,
    Series,
    extent,
    power_ticks,
    thinned,
    tick_text,
    ticks,
)
from .text import shortened

WIDTH, HEIGHT = 340, 224
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 38
ROW = 24
CHARACTER = 6.2
"""About the width of a character of the labels, in units of the drawing."""


class _Axis:
    """From values to places."""

    def __init__(self, ends: tuple[float, float], places: tuple[float, float], scale: str = "linear"):
        self.is_log = scale != "linear" and ends[0] > 0
        low, high = (math.log(end) for end in ends) if self.is_log else ends
        self.low, self.width, self.places = low, (high - low) or 1.0, places
        base = 2 if scale == "log2" else 10
        self.ticks = power_ticks(*ends, base) if self.is_log else ticks(*ends)
        self.step = 0.0 if self.is_log or len(self.ticks) < 2 else self.ticks[1] - self.ticks[0]

    def __call__(self, value: float) -> float:
        value = math.log(max(value, 1e-300)) if self.is_log else value
        share = min(max((value - self.low) / self.width, -0.5), 1.5)
        return self.places[0] + share * (self.places[1] - self.places[0])

    def text(self, value: float) -> str:
        return tick_text(value, self.step)


def drawn(panel: Panel | Intervals, key: str, alt: str, *, is_first: bool = True) -> Markup:
    """The panel as an `<svg>` with a name and a description.

    Args:
        panel: What to draw.
        key: Of the figure; the backdrop is drawn once under it.
        alt: The description.
        is_first: Whether this is the figure's first panel, which holds the backdrop.
    """
    if isinstance(panel, Intervals):
        return _svg(_interval_height(panel), panel.title, alt, _intervals(panel))
    return _svg(HEIGHT, panel.title, alt, _panel(panel, key, is_first))


def _svg(height: float, title: str, alt: str, parts: Sequence[Markup]) -> Markup:
    label = f"{shortened(title, 80)}: {alt}" if title else alt
    head = Markup('<svg class="chart" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(
        WIDTH, height, label
    )
    return head + Markup("").join(parts) + Markup("</svg>")


# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def _panel(panel: Panel, key: str, is_first: bool) -> list[Markup]:
    x = _Axis(panel.x_range or extent([panel], "x", pad=0.02), (LEFT, WIDTH - RIGHT), panel.x_scale)
    y = _Axis(panel.y_range or extent([panel], "y"), (HEIGHT - BOTTOM, TOP), panel.y_scale)
    parts = _axes(panel, x, y)
    if panel.backdrop:
        if is_first:
            lines = Markup("").join(_curve(series, x, y) for series in panel.backdrop)
            parts.append(Markup('<g id="{}-others">{}</g>').format(key, lines))
        else:
            parts.append(Markup('<use href="#{}-others"/>').format(key))
    parts += [_bars(panel.bars, x)] if panel.bars else []
    if panel.has_diagonal:
        ends = panel.x_range or (0.0, 1.0)
        parts.append(_line(x(ends[0]), y(ends[0]), x(ends[1]), y(ends[1]), "guide"))
    parts += [_band(series, x, y) for series in map(thinned, panel.series) if series.low is not None]
    for series in panel.series:
        parts += [_curve(series, x, y)] if series.has_line and len(series.x) > 1 else []
        parts += _marks(series, x, y)
    if panel.note:
        parts.append(_text(LEFT + 8, TOP + 12, panel.note, "note"))
    return parts


def _axes(panel: Panel, x: _Axis, y: _Axis) -> list[Markup]:
    parts = []
    for value in y.ticks:
        parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid"))
        parts.append(_text(LEFT - 6, y(value) + 3.5, y.text(value), "tick end"))
    base = HEIGHT - BOTTOM
    parts.append(_line(LEFT, base, WIDTH - RIGHT, base, "axis"))
    for value in x.ticks:
        parts.append(_line(x(value), base, x(value), base + 4, "axis"))
        parts.append(_text(x(value), base + 15, x.text(value), "tick middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, panel.x_label, "label middle"))
    where = Markup('<text class="label middle" transform="translate(11 {:.1f}) rotate(-90)">{}</text>')
    parts.append(where.format((TOP + base) / 2, panel.y_label))
    return parts


def _curve(series: Series, x: _Axis, y: _Axis) -> Markup:
    series = thinned(series)
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(series.x, series.y, strict=True))
    dashes = " dashed" if series.is_dashed else ""
    title = Markup("<title>{}</title>").format(shortened(series.name, 80)) if series.name else ""
    return Markup('<polyline class="line {}{}" points="{}">{}</polyline>').format(series.color, dashes, points, title)


def _band(series: Series, x: _Axis, y: _Axis) -> Markup:
    there = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(series.x, series.high, strict=True)]
    back = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(series.x, series.low, strict=True)][::-1]
    return Markup('<polygon class="band {}" points="{}"/>').format(series.color, " ".join(there + back))


def _marks(series: Series, x: _Axis, y: _Axis) -> list[Markup]:
    if not series.has_marks and len(series.x) > 1:
        return []
    parts = []
    labels = series.labels or [""] * len(series.x)
    for a, b, label in zip(series.x, series.y, labels, strict=True):
        title = Markup("<title>{}</title>").format(label or series.name)
        parts.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.4">{}</circle>').format(
                series.color, x(a), y(b), title
            )
        )
        if label:
            at_right = x(a) > WIDTH * 0.6
            place = (x(a) - 7, "tick end") if at_right else (x(a) + 7, "tick")
            parts.append(_text(place[0], y(b) + 3.5, shortened(label, 26), place[1]))
    return parts


def _bars(shares: Sequence[float], x: _Axis) -> Markup:
    """A histogram in the lowest quarter of the axes; its tallest bar fills that."""
    tallest, room = max(shares) or 1.0, (HEIGHT - TOP - BOTTOM) * 0.22
    parts = []
    for index, share in enumerate(shares):
        left, right = x(index / len(shares)), x((index + 1) / len(shares))
        height = share / tallest * room
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{:.1%}</title></rect>'
            ).format(left + 0.5, HEIGHT - BOTTOM - height, max(right - left - 1, 0.5), height, share)
        )
    return Markup("").join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals
# ---------------------------------------------------------------------------------------------------------------------


def _interval_height(chart: Intervals) -> float:
    return ROW * len(chart.rows) + 46


def interval_range(charts: Sequence[Intervals]) -> tuple[float, float]:
    """Ends of the axis of intervals, zero among them where it is shown."""
    values = [0.0] if any(chart.has_zero for chart in charts) else []
    for chart in charts:
        for row in chart.rows:
            values += [v for v in (row.value, row.low, row.high, *row.points) if v is not None and math.isfinite(v)]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = 0.06 * (high - low) or 0.5
    return low - air, high + air


def _intervals(chart: Intervals) -> list[Markup]:
    longest = max((len(row.label) for row in chart.rows), default=0)
    left = min(max(longest * CHARACTER + 10, 40), 122)
    x = _Axis(interval_range([chart]), (left + 4, WIDTH - RIGHT - 4))
    bottom = TOP + ROW * len(chart.rows)
    parts = []
    for value in x.ticks:
        parts.append(_line(x(value), TOP, x(value), bottom, "grid"))
        parts.append(_text(x(value), bottom + 15, x.text(value), "tick middle"))
    if chart.has_zero:
        parts.append(_line(x(0.0), TOP, x(0.0), bottom, "zero"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 31, chart.x_label, "label middle"))
    for index, row in enumerate(chart.rows):
        parts += _interval(row, TOP + ROW * (index + 0.5), left, x)
    return parts


def _interval(row: Interval, y: float, left: float, x: _Axis) -> list[Markup]:
    fitting = int((left - 6) / CHARACTER)
    parts = [
        Markup('<text class="name end" x="{:.1f}" y="{:.1f}"><title>{}</title>{}</text>').format(
            left - 4,
            y + 4,
            shortened(f"{row.label}: {row.words}", 160) if row.words else row.label,
            shortened(row.label, fitting),
        )
    ]
    if row.low is not None and row.high is not None:
        parts.append(_line(x(row.low), y, x(row.high), y, f"whisker {row.color}"))
        parts += [_line(x(end), y - 4, x(end), y + 4, f"whisker {row.color}") for end in (row.low, row.high)]
    parts += [Markup('<circle class="seed" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(x(v), y) for v in row.points]
    if row.value is not None:
        parts.append(
            Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
                row.color, x(row.value), y, row.words
            )
        )
    else:
        parts.append(_text((left + WIDTH - RIGHT) / 2, y + 3.5, row.words or "not known", "tick middle"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)


def swatch(color: str, is_dashed: bool) -> Markup:
    """The line of a legend."""
    kind = f"line {color}{' dashed' if is_dashed else ''}"
    return Markup('<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">{}</svg>').format(
        _line(1, 4, 25, 4, escape(kind))
    )

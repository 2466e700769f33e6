"""The same figures as PNGs, for papers; drawn by matplotlib, dark on white."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullLocator

from .charts import Figure, Intervals, Panel, Series, extent, power_ticks, tick_text
from .svg import interval_range
from .text import shortened

DPI = 150
MOST_COLUMNS = 3
HEX = {  # told apart with any colour vision; those of the style sheet on a light page
    "c0": "#30343b",
    "c1": "#0072b2",
    "c2": "#d55e00",
    "c3": "#009e73",
    "c4": "#aa4499",
    "c5": "#997700",
    "muted": "#b9bec7",
}


def write_png(figure: Figure, path: Path) -> Path:
    """Draw all panels of `figure` into one PNG.

    Args:
        figure: What to draw.
        path: Where the PNG goes; its folder is made.

    Returns:
        `path`.
    """
    columns = min(len(figure.panels), MOST_COLUMNS)
    rows = -(-len(figure.panels) // columns)
    heights = [0.26 * len(panel.rows) + 1.0 for panel in figure.panels if isinstance(panel, Intervals)]
    canvas = Canvas(figsize=(4.3 * columns, max([2.9, *heights]) * rows + 0.5), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        (_draw_intervals if isinstance(panel, Intervals) else _draw_panel)(axis, panel)
    for axis in axes.flat[len(figure.panels) :]:
        axis.set_visible(False)
    for name, color, is_dashed in figure.legend:
        axes.flat[0].plot([], [], color=HEX[color], ls="--" if is_dashed else "-", label=_said(name, 40))
    if figure.legend:
        handles, labels = axes.flat[0].get_legend_handles_labels()
        shown = handles[-len(figure.legend) :], labels[-len(figure.legend) :]
        canvas.legend(*shown, loc="outside lower center", ncols=min(len(figure.legend), 4), frameon=False)
    canvas.suptitle(_said(figure.title, 90))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _missing_glyphs_are_boxes():
        canvas.savefig(path, dpi=DPI)
    return path


@contextmanager
def _missing_glyphs_are_boxes() -> Iterator[None]:
    """A class name in a script that the font lacks is drawn as boxes, without a warning per letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        yield


def _said(text: str, length: int) -> str:
    """Without the signs that matplotlib reads as mathematics, and a label that starts as a private one."""
    return shortened(text, length).replace("$", r"\$").lstrip("_") or " "


def _draw_panel(axis: Axes, panel: Panel) -> None:
    for series in panel.backdrop:
        axis.plot(series.x, series.y, color=HEX["muted"], lw=0.8, alpha=0.7)
    for series in panel.series:
        _draw_series(axis, series)
    axis.set_xlim(*(panel.x_range or extent([panel], "x", pad=0.02)))
    axis.set_ylim(*(panel.y_range or extent([panel], "y")))
    for side, scale in (("x", panel.x_scale), ("y", panel.y_scale)):
        ends = axis.get_xlim() if side == "x" else axis.get_ylim()
        if scale != "linear" and ends[0] > 0:
            _set_log(axis, side, ends, 2 if scale == "log2" else 10)
    if panel.bars:
        _draw_bars(axis, panel.bars)
    if panel.has_diagonal:
        axis.plot([0, 1], [0, 1], color=HEX["muted"], lw=1.0, ls=":")
    if panel.note:
        axis.text(0.03, 0.95, _said(panel.note, 60), transform=axis.transAxes, va="top", fontsize="small")
    axis.set_title(_said(panel.title, 46) if panel.title else "", fontsize="medium")
    axis.set_xlabel(panel.x_label)
    axis.set_ylabel(panel.y_label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _set_log(axis: Axes, side: str, ends: tuple[float, float], base: int) -> None:
    getattr(axis, f"set_{side}scale")("log", base=base)
    getattr(axis, f"set_{side}lim")(*ends)
    scale = axis.xaxis if side == "x" else axis.yaxis
    scale.set_ticks(power_ticks(*ends, base))
    scale.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    scale.set_minor_locator(NullLocator())


def _draw_series(axis: Axes, series: Series) -> None:
    color = HEX[series.color]
    if series.low is not None and series.high is not None:
        axis.fill_between(series.x, series.low, series.high, color=color, alpha=0.18, lw=0)
    style = ("--" if series.is_dashed else "-") if series.has_line else ""
    marker = "o" if series.has_marks or len(series.x) == 1 else ""
    axis.plot(series.x, series.y, ls=style or "none", marker=marker, ms=4, lw=1.6, color=color)
    for x, y, label in zip(series.x, series.y, series.labels or (), strict=False):
        axis.annotate(_said(label, 26), (x, y), xytext=(5, 3), textcoords="offset points", fontsize="x-small")


def _draw_bars(axis: Axes, shares: tuple[float, ...]) -> None:
    tallest, width = max(shares) or 1.0, 1 / len(shares)
    heights = [share / tallest * 0.22 for share in shares]
    places = [(index + 0.5) * width for index in range(len(shares))]
    axis.bar(places, heights, width * 0.9, color=HEX["muted"], alpha=0.6, lw=0)


def _draw_intervals(axis: Axes, chart: Intervals) -> None:
    for place, row in enumerate(chart.rows):
        color = HEX[row.color]
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [place, place], color=color, lw=1.6, marker="|", ms=7)
        axis.plot(row.points, [place] * len(row.points), "o", ms=3, color=HEX["muted"])
        if row.value is not None:
            axis.plot([row.value], [place], "o", ms=5.5, color=color)
    if chart.has_zero:
        axis.axvline(0.0, color=HEX["c0"], lw=0.8)
    axis.set_yticks(range(len(chart.rows)), [_said(row.label, 30) for row in chart.rows])
    axis.set_ylim(len(chart.rows) - 0.5, -0.5)
    axis.set_xlim(*interval_range([chart]))
    axis.set_title(_said(chart.title, 46) if chart.title else "", fontsize="medium")
    axis.set_xlabel(chart.x_label)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)

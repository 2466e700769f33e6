"""Figures from logs alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = {"student": "#0072b2", "teacher": "#d55e00"}  # told apart with any colour vision
TEMPERATURE = "temperature/"


def read_log_history(folder: str | Path) -> list[dict[str, Any]]:
    """The log records of a finished run, from the `trainer_state.json` in its folder.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"`read_log_history({str(folder)!r})` found no {path.name} there, so there is no log to draw. Give the "
            "output folder of a finished run or a checkpoint."
        )
    return json.loads(path.read_text(encoding="utf-8"))["log_history"]


def temperature_series(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Temperatures over time from log records: `{loss or "": {"step": [...], "student_mean": [...], …}}`.

    The key is empty for objectives with one loss, whose records carry no loss name.
    """
    series: dict[str, dict[str, list[float]]] = {}
    for record in history:
        losses = {key.removeprefix(TEMPERATURE).rpartition("/")[0] for key in record if key.startswith(TEMPERATURE)}
        for loss in sorted(losses):
            prefix = TEMPERATURE + (f"{loss}/" if loss else "")
            columns = series.setdefault(loss, {"step": []})
            columns["step"].append(record["step"])
            for key, value in record.items():
                name = key.removeprefix(prefix)
                if key.startswith(prefix) and "/" not in name:
                    columns.setdefault(name, []).append(value)
    return series


def plot_temperatures(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, title: str) -> Path:
    """Draw both temperatures over time, one panel per run and loss: the mean, with a band from minimum to maximum.

    Args:
        histories: Name -> log records, as `read_log_history` gives them. Runs without temperatures are left out.
        path: Where the PNG goes.
        title: Above all panels.

    Returns:
        `path`.

    Raises:
        ValueError: No run has a temperature to draw.
    """
    panels = [panel for name, history in histories.items() for panel in _panels(name, temperature_series(history))]
    if not panels:
        raise ValueError(
            f"`plot_temperatures` got the runs {', '.join(histories) or 'none'}, whose logs hold no temperatures. Log "
            "at least once per run (`logging_steps`), with kd_weight > 0."
        )
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4 * columns, 5.6), 2.6 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, (name, values) in zip(axes.flat, panels, strict=False):
        _draw(axis, name, values)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for index, axis in enumerate(axes.flat):  # the last panel of each column says what the axis is
        if index < len(panels) <= index + columns:
            axis.set_xlabel("optimizer step")
            axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("temperature")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def plot_losses(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, title: str) -> Path:
    """Draw the training loss, its parts and the loss of the evaluations during training, one panel per run.

    Args:
        histories: Name -> log records, as `read_log_history` gives them. Runs without a loss are left out.
        path: Where the PNG goes.
        title: Above all panels.

    Returns:
        `path`.

    Raises:
        ValueError: No run has a loss to draw.
    """
    panels = [(name, series) for name, history in histories.items() if (series := loss_series(history))]
    if not panels:
        raise ValueError(
            f"`plot_losses` got the runs {', '.join(histories) or 'none'}, whose logs hold no loss. Log at least once "
            "per run (`logging_steps`)."
        )
    figure = Figure(figsize=(4.6 * len(panels), 3.2), layout="constrained")
    for axis, (name, series) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, (steps, values) in series.items():
            style = {"lw": 2.0} if key == "loss" else {"lw": 1.2, "marker": "o" if key == "eval_loss" else None}
            axis.plot(steps, values, label=key, **style)
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("loss")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.suptitle(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def loss_series(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Losses over time, `{"loss", a part of it or "eval_loss": (steps, values)}`; those of the end left out."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for record in history:
        if "train_runtime" in record:
            break
        for key, value in record.items():
            if key in ("loss", "ce_loss", "eval_loss") or key.partition("/")[0] == "kd_loss":
                steps, values = series.setdefault(key, ([], []))
                steps.append(record["step"])
                values.append(value)
    return {key: series[key] for key in sorted(series, key=lambda key: (key != "loss", key))}


def _panels(run: str, series: Mapping[str, Mapping[str, list[float]]]) -> list[tuple[str, Mapping[str, list[float]]]]:
    """The panels of one run; beside a loss whose temperature moves, constant ones are not worth one."""
    moving = {loss: columns for loss, columns in series.items() if not _is_constant(columns)}
    shown = moving or series
    return [(f"{run}, {loss}" if len(shown) > 1 else run, columns) for loss, columns in shown.items()]


def _is_constant(columns: Mapping[str, list[float]]) -> bool:
    return all(len({*columns[f"{side}_min"], *columns[f"{side}_max"]}) == 1 for side in ("student", "teacher"))


def _draw(axis: Axes, name: str, values: Mapping[str, list[float]]) -> None:
    steps = values["step"]
    for side, style in (("student", "-"), ("teacher", "--")):  # dashes on top: both show where they coincide
        axis.fill_between(steps, values[f"{side}_min"], values[f"{side}_max"], color=COLORS[side], alpha=0.18, lw=0)
        axis.plot(steps, values[f"{side}_mean"], style, color=COLORS[side], lw=1.8, label=f"{side} (mean, min–max)")
    axis.set_title(name, fontsize="medium")
    axis.set_yscale("log")
    ticks = [0.5, 1, 2, 4, 8, 16]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)

"""`hf-kd tune`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from .common import FAILED, Debug, app, console, fonts_in_scratch, reported, run_progress, say

if TYPE_CHECKING:
    from ..tune import TrialRecord, TuneResult

SHOWN = 10
GO_ON = "The trials that ended are kept: the same command goes on after them."


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run, with a section `search`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as for `hf-kd train`; search.trials=50 too."),
    ] = None,
    search: Annotated[
        Path | None, typer.Option(help="A YAML file with what would stand in `search`, for a CONFIG without it.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Search CONFIG for the best score on the validation split; the test split is not read.

    What is searched stands in `search`: {trials: 20, parameters: {training.learning_rate: {low: 1e-5, high: 1e-3, log:
    true}, method.name: {choices: [kd, dtkd]}}}. Killed and started again, it goes on.
    """
    with reported(debug, resume=GO_ON), fonts_in_scratch():
        result = _searched(config, overrides or (), search)
        console().print(_table(result))
        say(result.summary)
    folder = Path(result.output_dir)
    if result.best is None:
        say(f"Every trial failed or was pruned; {folder / 'trials.json'} says why.", stderr=True)
        raise typer.Exit(FAILED)
    say(f"Saved in {folder}: best_config.yaml, trials.json, trials.csv, study.db. Train the best with:")
    say(shlex.join(["hf-kd", "train", str(folder / "best_config.yaml")]))


def _searched(config: Path, overrides: Any, search: Path | None) -> "TuneResult":
    from ..tune import load_search, tune

    def on_start(teacher: str, done: int, wanted: int) -> None:
        say(teacher)
        if done:
            say(f"{done} trials are on record; {max(wanted - done, 0)} to go.")

    def on_trial(record: "TrialRecord", result: "TuneResult") -> None:
        found = record.state if record.value is None else f"{result.metric} {record.value:.4f}"
        best = "" if result.best is None else f" (best {result.best.value:.4f}, trial {result.best.number})"
        why = f": {record.error}" if record.error else ""
        say(f"trial {record.number}: {found}{best}: {_drawn(record.parameters)}{why}")

    mapping, section = load_search(config, overrides, search)
    with run_progress() as on_progress:
        return tune(
            mapping,
            section,
            on_trial=on_trial,
            on_start=on_start,
            on_progress=lambda split, done, rows: on_progress(f"teacher, {split}", done, rows),
        )


def _drawn(parameters: dict[str, Any]) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in parameters.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(result: "TuneResult") -> Table:
    """The best trials, one per row."""
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.parameters))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column(result.metric, justify="right")
    table.add_column("± s.e.", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for trial in result.ranked[:SHOWN]:
        error = "" if trial.standard_error is None else f"{trial.standard_error:.4f}"
        drawn = (_short(trial.parameters[name]) if name in trial.parameters else "" for name in names)
        table.add_row(str(trial.number), f"{trial.value:.4f}", error, *drawn)
    return table

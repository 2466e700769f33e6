"""`hf-kd train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .common import Debug, app, console, fonts_in_scratch, reported, say

if TYPE_CHECKING:
    from ..experiment import ExperimentResult


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, e.g. configs/embedded/digits_student.yaml.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Overrides, dotted: training.learning_rate=1e-4 method=ctkd method.start=2.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train the student that CONFIG describes, score it, and save it.

    The whole configuration is checked before anything is loaded. On several processes: torchrun --nproc_per_node 2 -m
    hf_kd train CONFIG.

    At SIGTERM a run saves and ends with the code 143; training.resume_from_checkpoint=true goes on with it.
    """
    with reported(debug), fonts_in_scratch():
        from ..experiment import TrainingStopped, load_config, run_experiment
        from ..publish import PushError

        failed = None
        try:
            result = run_experiment(load_config(config, overrides or ()))
        except PushError as error:
            if error.result is None:
                raise
            result, failed = error.result, error
        except TrainingStopped as stopped:
            say(str(stopped), stderr=True)
            raise  # with the code 143
        say(_headline(result))
        say(result.data_description)
        for line in result.student_initialised or ():
            say(line)
        if result.best_model is not None:
            say(best_model_line(result))
        console().print(scores_table(result))
        if failed is not None:
            raise failed
        merged = " (its adapter; `merged` is the plain one)" if (Path(result.output_dir) / "merged").is_dir() else ""
        say(f"Saved in {result.output_dir}: the student{merged}, its card, results.json, resolved_config.yaml.")


def _headline(result: "ExperimentResult") -> str:
    teacher = "" if result.teacher_parameters is None else f", teacher {result.teacher_parameters:,}"
    labels = "" if result.labelled_rows == result.train_rows else f", {result.labelled_rows:,} of them labelled"
    rows = "a stream of" if result.train_rows is None else f"{result.train_rows:,}"
    return (
        f"{result.data}: student of {result.student_parameters:,} parameters{teacher}; {rows} training "
        f"rows{labels}; {result.train_seconds:.1f} s of training"
    )


def best_model_line(result: "ExperimentResult") -> str:
    """Which model was kept, and by which metric."""
    best = result.best_model
    whose = ", the metric of these data," if best["named_by"] == "the data" else ""
    stopped = f" Training stopped early, after step {result.train_steps}." if best["stopped_early"] else ""
    at = f" at step {best['step']}" if best["step"] is not None else ""
    saved = "that" if best["is_saved"] else "the last, not that"
    return f"The saved student is {saved} with the best {best['metric']}{whose} {best['value']:.4f}{at}.{stopped}"


def scores_table(result: "ExperimentResult") -> Table:
    """The scores of a run, one row per metric."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    for name in {**result.validation, **result.test}:
        cells = (split.get(name) for split in (result.validation, result.test))
        table.add_row(name, *("" if cell is None else f"{cell:.4f}" for cell in cells))
    return table

"""`hf-kd evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .common import Debug, app, console, is_first_process, reported, say

if TYPE_CHECKING:
    from ..experiment import Evaluation

SHOWN_CLASSES = 10
OUTPUT = "evaluation.json"


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A classifier: a Hub id or a folder, e.g. that of a run.")],
    data: Annotated[
        str | None,
        typer.Option(help="An embedded set, a benchmark, a file, a folder or a Hub id. Default: the run's."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="A model to compare with. Default: the run's.")] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="Do without the run's teacher.")] = False,
    split: Annotated[
        str | None,
        typer.Option(
            help="test, validation, train, all (their union), or all rows of a split by its own name. Default: test; "
            "of a single file, all."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help=f"Where the JSON goes. Default: {OUTPUT} in the folder of the run, or here if --data is given."
        ),
    ] = None,
    path: Annotated[str | None, typer.Option(help="A local copy of the benchmark that --data names.")] = None,
    subset: Annotated[str | None, typer.Option(help="The configuration of a Hub data set.")] = None,
    data_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub data set.")] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="The text. Twice for pairs of texts, in order.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="The image.")] = None,
    label_column: Annotated[str | None, typer.Option(help="The label.")] = None,
    problem_type: Annotated[
        str | None, typer.Option(help="What the labels are, where neither data nor model say: regression, …")
    ] = None,
    metrics: Annotated[
        list[str] | None, typer.Option(help="A metric beside the usual ones: nll, brier, top_5_accuracy. Repeatable.")
    ] = None,
    max_samples: Annotated[int | None, typer.Option(help="So many rows of each split, stratified by class.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Cut texts after so many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of splits that are cut and rows that are chosen.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the model.")] = "main",
    processor: Annotated[str | None, typer.Option(help="Hub id or folder of the model's processor.")] = None,
    label_map: Annotated[
        Path | None, typer.Option(help="JSON or YAML of {model's class: data's class}, where names differ.")
    ] = None,
    teacher_revision: Annotated[str | None, typer.Option(help="As --revision.")] = None,
    teacher_processor: Annotated[str | None, typer.Option(help="As --processor.")] = None,
    teacher_label_map: Annotated[Path | None, typer.Option(help="As --label-map.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per batch and process.")] = 32,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, or the kind that there must be, e.g. cuda.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the models.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights too (use_safetensors=False).")
    ] = False,
    debug: Debug = False,
) -> None:
    """Score any image or text classifier, beside a teacher if there is one, and class by class.

    The folder of a run needs no --data: its resolved_config.yaml names the data and the teacher. The classes of a
    model are matched with those of the data by name.
    """
    options = {
        "path": path,
        "subset": subset,
        "revision": data_revision,
        "text_column": _columns(text_column),
        "image_column": image_column,
        "label_column": label_column,
        "problem_type": problem_type,
        "metrics": metrics or None,
        "max_samples": max_samples,
        "max_length": max_length,
        "seed": seed,
    }
    keywords = {
        "split": split,
        "revision": revision,
        "processor": processor,
        "label_map": label_map,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": device,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": not allow_pickle,
    }
    named = {
        "teacher": teacher,
        "teacher_revision": teacher_revision,
        "teacher_processor": teacher_processor,
        "teacher_label_map": teacher_label_map,
    }
    given = {key: value for key, value in options.items() if value is not None}
    keywords |= {key: value for key, value in named.items() if value is not None}
    with reported(debug, what="EVALUATE"):
        result = _evaluated(model, data, given, no_teacher, keywords)
        where = output or (Path(model).expanduser() / OUTPUT if data is None else Path(OUTPUT))
        show(result)
        if is_first_process():
            from ..experiment import write_evaluation

            everything = f"Everything, all {len(result.per_class)} classes too" if result.per_class else "Everything"
            say(f"{everything}: {write_evaluation(result, where)}.")


def _evaluated(
    model: str, data: str | None, options: dict[str, Any], no_teacher: bool, keywords: dict[str, Any]
) -> "Evaluation":
    from ..experiment import evaluate_model, evaluate_run
    from ..registry import ConfigError

    if no_teacher and "teacher" in keywords:
        raise ConfigError(["teacher: stands beside --no-teacher. Leave one of them out."])
    keywords["show_progress"] = console(stderr=True).is_terminal
    if data is None:
        return evaluate_run(model, with_teacher=not no_teacher, data_options=options, **keywords)
    return evaluate_model(model, data, data_options=options, **keywords)


def _columns(names: list[str] | None) -> str | tuple[str, ...] | None:
    if not names:
        return None
    return names[0] if len(names) == 1 else tuple(names)


def show(result: "Evaluation") -> None:
    """Print tables and notes."""
    labelled = "" if result.labelled == result.rows else f", {result.labelled:,} of them labelled"
    say(
        f"{result.model} on {result.data}, {result.split}: {result.rows:,} rows{labelled} (data "
        f"{result.data_fingerprint})"
    )
    say(result.data_description)
    for note in result.notes:
        say(f"Note: {note}")
    console().print(scores_table(result))
    say(f"*: what results on these data are quoted in; {_chance(result)}.")
    if result.per_class:
        say(_classes_title(result))
        console().print(classes_table(result))


def scores_table(result: "Evaluation") -> Table:
    """A column per model, and what compares them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("model", justify="right")
    both = result.teacher is not None
    if both:
        table.add_column("teacher", justify="right")
    sizes = [result.parameters, result.teacher_parameters]
    table.add_row("parameters", *(f"{size:,}" for size in sizes if size is not None))
    theirs = result.teacher_scores or {}
    for name, value in result.scores.items():
        label = f"{name} *" if name == result.metric else name
        cells = [f"{value:.4f}"] + ([f"{theirs[name]:.4f}" if name in theirs else ""] if both else [])
        table.add_row(label, *cells)
    compared = {
        "agreement with the teacher": result.agreement,
        "KL(teacher ‖ model), nats": result.teacher_kl,
        "mean squared difference": result.teacher_mse,
    }
    for name, value in compared.items():
        if value is not None:
            table.add_row(name, f"{value:.4f}")
    return table


def _chance(result: "Evaluation") -> str:
    """How far the choice of so many rows alone moves the accuracy."""
    share = result.scores.get("accuracy")
    if share is None or not result.labelled:
        return f"{result.labelled:,} rows"
    error = (share * (1 - share) / result.labelled) ** 0.5
    return f"one standard error of accuracy on {result.labelled:,} rows is {error:.4f}"


def _classes_title(result: "Evaluation") -> str:
    count, shown = len(result.per_class), min(SHOWN_CLASSES, len(result.per_class))
    how = "What the model lost against its teacher" if _is_compared(result) else "The lowest scores"
    some = f"the worst {shown} of {count} classes" if count > shown else f"all {count} classes"
    return f"{how}, by class ({result.measure}; {some}):"


def _is_compared(result: "Evaluation") -> bool:
    return any(entry.difference is not None for entry in result.per_class)


def classes_table(result: "Evaluation") -> Table:
    """The worst classes: what was lost against the teacher, or the lowest scores."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    compared = ["teacher", "difference", "only teacher right", "only model right"] if _is_compared(result) else []
    for column in ("rows", "model", *compared):
        table.add_column(column, justify="right")
    for entry in result.per_class[:SHOWN_CLASSES]:
        cells = [f"{entry.rows:,}", f"{entry.score:.3f}"]
        if entry.difference is not None:
            cells += [f"{entry.teacher_score:.3f}", f"{entry.difference:+.3f}", f"{entry.lost:,}", f"{entry.gained:,}"]
        table.add_row(Text(entry.name), *cells)
    return table

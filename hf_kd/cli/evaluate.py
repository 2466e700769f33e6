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


def _option(kind: Any, help: str, *names: str) -> Any:
    return Annotated[kind, typer.Option(*names, help=help)]


Word, Number, Words, File = str | None, int | None, list[str] | None, Path | None
Data = _option(Word, "An embedded set, a benchmark, a file, a folder or a Hub id. Default: the run's.")
Teacher = _option(Word, "A model to compare with. Default: the run's.")
NoTeacher = _option(bool, "Do without the run's teacher.", "--no-teacher")
Split = _option(
    Word,
    "test, validation, train, all (their union), or all rows of a split by its own name. Default: test; of a single "
    "file, all.",
)
Output = _option(File, f"Where the JSON goes. Default: {OUTPUT} in the folder of the run, or here if --data is given.")
LocalCopy = _option(Word, "A local copy of the benchmark that --data names.")
Subset = _option(Word, "The configuration of a Hub data set.")
DataRevision = _option(Word, "Branch, tag or commit of a Hub data set.")
TextColumn = _option(Words, "The text. Twice for pairs of texts, in order.")
ImageColumn = _option(Word, "The image.")
LabelColumn = _option(Word, "The label.")
ProblemType = _option(Word, "What the labels are, where neither data nor model say: regression, …")
Metrics = _option(Words, "A metric beside the usual ones: nll, brier, top_5_accuracy. Repeatable.")
MaxSamples = _option(Number, "Score so many rows at most, stratified by class.")
MaxLength = _option(Number, "Cut texts after so many tokens.")
Seed = _option(Number, "Of splits that are cut and rows that are chosen.")
Revision = _option(str, "Branch, tag or commit of the model.")
Processor = _option(Word, "Hub id or folder of the model's tokenizer or image processor.")
LabelMapFile = _option(File, "JSON or YAML of {model's class: data's class}, where names differ.")
TeacherRevision = _option(Word, "As --revision.")
TeacherProcessor = _option(Word, "As --processor.")
TeacherLabelMap = _option(File, "As --label-map.")
BatchSize = _option(int, "Rows per batch and process.")
Dtype = _option(str, "auto, float32, bfloat16 or float16.")
Device = _option(str, "auto, cpu, or the kind that there must be, e.g. cuda.")
RemoteCode = _option(bool, "Run code that comes with the models.", "--trust-remote-code")
AllowPickle = _option(bool, "Read pickled weights too (use_safetensors=False).", "--allow-pickle")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A classifier: a Hub id or a folder, e.g. that of a run.")],
    data: Data = None,
    teacher: Teacher = None,
    no_teacher: NoTeacher = False,
    split: Split = None,
    output: Output = None,
    path: LocalCopy = None,
    subset: Subset = None,
    data_revision: DataRevision = None,
    text_column: TextColumn = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    problem_type: ProblemType = None,
    metrics: Metrics = None,
    max_samples: MaxSamples = None,
    max_length: MaxLength = None,
    seed: Seed = None,
    revision: Revision = "main",
    processor: Processor = None,
    label_map: LabelMapFile = None,
    teacher_revision: TeacherRevision = None,
    teacher_processor: TeacherProcessor = None,
    teacher_label_map: TeacherLabelMap = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "auto",
    device: Device = "auto",
    trust_remote_code: RemoteCode = False,
    allow_pickle: AllowPickle = False,
    debug: Debug = False,
) -> None:
    """Score any image or text classifier, beside a teacher if there is one, and class by class.

    The folder of a run needs no --data: its resolved_config.yaml names the data and the teacher. The classes of a
    model are matched with those of the data by name.
    """
    options = {**locals(), "revision": data_revision, "text_column": _columns(text_column)}
    keywords = {**locals(), "use_safetensors": not allow_pickle}
    with reported(debug, what="EVALUATE"):
        given = {key: options[key] for key in OF_THE_DATA if options[key] is not None and options[key] != []}
        asked = {key: keywords[key] for key in OF_THE_MODELS if keywords[key] is not None}
        result = _evaluated(model, data, given, no_teacher, asked)
        show(result)
        where = output or (Path(model).expanduser() / OUTPUT if data is None else Path(OUTPUT))
        if is_first_process():
            from ..experiment import write_evaluation

            everything = f"Everything, all {len(result.per_class)} classes too" if result.per_class else "Everything"
            say(f"{everything}: {write_evaluation(result, where)}.")


OF_THE_DATA = ("path", "subset", "revision", "text_column", "image_column", "label_column", "problem_type", "metrics")
OF_THE_DATA += ("max_samples", "max_length", "seed")
OF_THE_MODELS = ("split", "revision", "processor", "label_map", "batch_size", "dtype", "device", "trust_remote_code")
OF_THE_MODELS += ("use_safetensors", "teacher", "teacher_revision", "teacher_processor", "teacher_label_map")


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

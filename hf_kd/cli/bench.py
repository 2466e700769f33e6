"""`hf-kd bench`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from .common import Debug, app, console, fonts_in_scratch, is_first_process, reported, say

if TYPE_CHECKING:
    from ..bench import BenchResult, Block, Spread

OUTPUT = Path("bench.json")
GO_ON = "Nothing is kept of a bench that was interrupted; --steps and --repeats make it shorter."

LOOPS = {
    "distillation_trainer": "DistillationTrainer.train()",
    "distillation_trainer_with_clocks": "the same, with a clock around each part",
    "bare_loop": "bare loop of both models",
    "bare_loop_student_alone": "bare loop of the student alone",
    "plain_trainer_student_alone": "plain Trainer, the student alone",
}
PART_WORDS = {
    "data": "data (waiting)",
    "teacher_forward": "teacher forward",
    "student_forward": "student forward",
    "backward": "backward",
    "objective": "objective and its records",
    "optimizer": "optimizer",
    "other": "other (the Trainer's Python)",
}


@app.command()
def bench(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as for `hf-kd train`: training.bf16=true."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps per block.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps of each block before its clock starts.")] = 5,
    repeats: Annotated[int, typer.Option(min=2, help="Blocks of each loop.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: as it is.")] = None,
    floor: Annotated[bool, typer.Option(help="Compare with bare loops, which need a second student.")] = True,
    trainer: Annotated[bool, typer.Option("--trainer", help="Time the plain Trainer on the student too.")] = False,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = OUTPUT,
    debug: Debug = False,
) -> None:
    """Say where the time of a training step of CONFIG goes, and what to change first.

    Blocks of real training steps run by turns with bare loops of the same models on the same rows; what is compared
    ran one after the other. Nothing is trained to keep: only the JSON is written.
    """
    with reported(debug, resume=GO_ON), fonts_in_scratch():
        from ..bench import check_output, run_bench, write_bench
        from ..experiment import load_config

        given = load_config(config, overrides or ())
        check_output(output)
        result = run_bench(
            given,
            steps=steps,
            warmup=warmup,
            repeats=repeats,
            threads=threads,
            with_floor=floor,
            with_trainer=trainer,
            on_repeat=lambda number, blocks: _say_repeat(number, repeats, blocks),
        )
        show(result)
        if is_first_process():
            say(f"Everything, each block too: {write_bench(result, output)}.")


def _say_repeat(number: int, repeats: int, blocks: "list[Block]") -> None:
    """One line per repeat: a bar that draws itself would take its time from what is measured."""
    seconds = {block.loop: block.step_seconds for block in blocks}
    ours, floor = seconds["distillation_trainer"], seconds.get("bare_loop")
    ratio = "" if floor is None else f", {ours / floor:.2f} times the bare loop"
    say(f"repeat {number + 1} of {repeats}: {_ms(ours)} ms per step{ratio}")


def show(result: "BenchResult") -> None:
    """Print tables and sentences."""
    say(_headline(result))
    settings = result.settings
    say(
        f"{settings['repeats']} repeats of {settings['steps']} steps per loop, by turns. Medians; in brackets the "
        "quartiles over the repeats."
    )
    for note in result.notes:
        say(f"Note: {note}")
    console().print(parts_table(result))
    _say_clocks(result)
    console().print(loops_table(result))
    if result.memory_bytes is not None:
        say(f"Memory: {_size(result.memory_bytes)} ({result.memory_kind}).")
    if result.cache is not None:
        say(_cache_line(result))
    say(f"First: {result.advice}")


def _headline(result: "BenchResult") -> str:
    setup, environment = result.setup, result.environment
    size = setup["teacher_parameters"]
    teacher = "" if size is None else f", teacher of {size:,}"
    stored = ", a teacher's stored logits" if setup["teacher"] == "stored" else ""
    where = environment.get("accelerator") or environment["processor"]
    if environment["processes"] > 1:
        where += f", {environment['processes']} processes (times of the first)"
    threads = result.settings["threads"]
    precision = "float32" if setup["precision"] == "no" else setup["precision"]
    return (
        f"{setup['data']}: student of {setup['student_parameters']:,} parameters{teacher}{stored}; "
        f"{', '.join(setup['losses']) or 'cross-entropy'}; {setup['rows_per_step']:,} {setup['rows_are']} per step; "
        f"{precision}, {threads} thread{'' if threads == 1 else 's'} on {where}"
    )


def parts_table(result: "BenchResult") -> Table:
    """Where a step's time goes."""
    from ..bench import PARTS

    table = _table("part of a step", "ms", "", "share")
    for name in PARTS:
        found = result.part(name)
        table.add_row(PART_WORDS[name], _ms(found.median), _quartiles(found), f"{result.share(name).median:.1%}")
    return table


def _say_clocks(result: "BenchResult") -> None:
    from ..bench.result import CLOCKED, NOTICEABLE

    with_clocks, without = result.step(CLOCKED), result.step()
    if abs(result.clocks_cost) > NOTICEABLE:
        say(
            f"With these clocks a step took {_ms(with_clocks.median)} ms {_quartiles(with_clocks)}, without them "
            f"{_ms(without.median)} ms {_quartiles(without)} ({result.clocks_cost:+.0%} in pairs): take the shares "
            "for what they are worth."
        )


def loops_table(result: "BenchResult") -> Table:
    """The loop and its floors."""
    from ..bench.result import CLOCKED, FLOORS, OURS

    is_cpu = result.profile["device"] == "cpu"
    table = _table("loop", "ms per step", "", "ours / it", "", *(("in CPU time",) if is_cpu else ()))
    for loop in result.loops:
        if loop == CLOCKED:
            continue
        words = LOOPS[loop]
        if loop == "bare_loop" and result.setup["teacher"] == "stored":
            words = "bare loop, the stored logits"
        cells: list[Any] = [_ms(result.step(loop).median), _quartiles(result.step(loop))]
        if loop in FLOORS:
            ratio = result.ratio(loop)
            cells += [f"{ratio.median:.3f}", f"({ratio.low:.3f}–{ratio.high:.3f})"]
            cells += [f"{result.cpu_ratio(loop).median:.3f}"] if is_cpu else []
        table.add_row(words, *cells)
    rate = "" if result.rows_per_second is None else f", {result.rows_per_second:,.0f} {result.setup['rows_are']}"
    table.caption = f"{1 / result.step(OURS).median:,.4g} steps{rate} per second"
    table.caption_justify = "left"
    return table


def _cache_line(result: "BenchResult") -> str:
    cache = result.cache
    now, then = 1 / result.step().median, result.steps_per_second_without_teacher
    if cache.why_not is not None:
        return f"A teacher cache would not do here: {cache.why_not}."
    sizes = ", ".join(f"{_size(size)} in {name}" for name, size in cache.sizes.items())
    each = " for each view" if cache.is_varied else ""
    held = f"; {cache.rows:,} rows of {cache.classes:,} logits take {sizes}{each}" if sizes else ""
    return (
        f"A teacher cache (teacher_cache=FOLDER) would save about {result.shares['teacher_forward']:.0%} of a "
        f"step: {now:,.4g} -> {then:,.4g} steps per second{held}."
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _quartiles(found: "Spread") -> str:
    return f"({_ms(found.low)}–{_ms(found.high)})"


def _size(count: int) -> str:
    """Bytes in words."""
    value, unit = float(count), "bytes"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"

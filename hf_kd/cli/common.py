"""What the commands share: the app itself, the console, and errors in words."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import __version__

FAILED, REFUSED = 1, 2
RESUME = "Resume from the last checkpoint with training.resume_from_checkpoint=true."

app = typer.Typer(
    name="hf-kd",
    help="Knowledge distillation of image and text classifiers inside the Hugging Face Trainer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def is_first_process() -> bool:
    """Whether this is the process that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def console(*, stderr: bool = False) -> Console:
    """Terminals give their width; pipes and files get one that does not fold tables."""
    made = Console(stderr=stderr, highlight=False, quiet=not is_first_process())
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=160, quiet=made.quiet)


def say(line: str = "", *, stderr: bool = False) -> None:
    """Print a line as it is."""
    console(stderr=stderr).print(line, markup=False, soft_wrap=True)


@contextmanager
def reported(debug: bool, what: str = "CONFIG", resume: str = RESUME) -> Iterator[None]:
    """Turn what a command raises into words and an exit code: 2 for wrong input, 1 for a run that failed.

    Args:
        debug: Show the traceback.
        what: The input that may be wrong.
        resume: How to go on after an interruption.
    """
    from ..registry import ConfigError

    try:
        yield
    except ConfigError as error:
        count = len(error.problems)
        say(f"{what}: {count} problem{'s' if count > 1 else ''}", stderr=True)
        for problem in error.problems:
            say(f"  {problem}", stderr=True)
        if debug:
            traceback.print_exc()
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt as error:
        say(f"Interrupted. {resume}", stderr=True)
        raise typer.Exit(130) from error
    except Exception as error:  # whatever goes wrong in a run ends in one line, or in the traceback on request
        if debug:
            raise
        rank = "" if "RANK" not in os.environ else f" on process {os.environ['RANK']}"
        line = " ".join(f"FAILED{rank}: {type(error).__name__}: {error}".split())
        print(line, "(--debug shows the traceback)", file=sys.stderr)
        raise typer.Exit(FAILED) from error


@contextmanager
def fonts_in_scratch() -> Iterator[None]:
    """Matplotlib lists the fonts it finds in the home folder; a run writes to its output alone."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        is_ours = os.environ.setdefault("MPLCONFIGDIR", folder) == folder
        try:
            yield
        finally:
            if is_ours:
                del os.environ["MPLCONFIGDIR"]


@contextmanager
def run_progress() -> Iterator[Callable[[str, int, int], None]]:
    """One bar per run, drawn as it trains; on a pipe, one line per run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, Any] = {}
    screen = console()
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        waiting = progress.add_task("loading libraries", total=None)

        def report(run: str, step: int, steps: int) -> None:
            if run not in bars:
                progress.update(waiting, visible=False)
                if not screen.is_terminal:
                    say(run)
                for task in bars.values():
                    progress.stop_task(task)
                bars[run] = progress.add_task(run, total=None)
            if steps:
                progress.update(bars[run], completed=step, total=steps)

        yield report


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]


def _version(wanted: bool) -> None:
    if wanted:
        say(f"hf_kd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass

"""`hf-kd report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import Debug, app, fonts_in_scratch, is_first_process, reported, say

if TYPE_CHECKING:
    from ..report import Results

GO_ON = "Nothing was changed that was not said; start it again."


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Of a comparison, a run or several runs; or an exported .jsonl file."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file. Default: report.html in DIR. PNGs lie in a folder beside it.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Rewrite the table between the markers of this Markdown file instead.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write all results into this one .jsonl file instead, for a repository.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what came of the runs in DIR: one HTML page that needs nothing else, and its figures.

    It is made from logs and results; no model is loaded. Half-finished runs and comparisons are shown as far as they
    are.

    With --readme or --export only that is written, unless --output is given too. A README holds the table between the
    lines <!-- hf-kd results NAME --> and <!-- end of hf-kd results -->, where NAME is that of the comparison.
    """
    with reported(debug, what="REPORT", resume=GO_ON), fonts_in_scratch():
        from ..report import export_results, read_results, update_readme, write_report

        results = read_results(folder)
        if not is_first_process():
            return
        if output is not None or (readme is None and export is None):
            written = write_report(results, output)
            say(f"{_headline(results)}: {written.page}")
            say(f"{len(written.figures)} figures as PNG: {written.page.stem}_figures beside it.")
        if export is not None:
            say(f"All results in one file: {export_results(results, export)}")
        if readme is not None:
            changed = update_readme(results, readme)
            say(f"The table of {results.name} in {readme} {'was rewritten' if changed else 'was up to date'}.")
        for note in results.all_notes():
            say(f"Note: {note}", stderr=True)


def _headline(results: "Results") -> str:
    finished = sum(run.is_finished for run in results.runs)
    of = "" if finished == len(results.runs) else f" of {len(results.runs)}"
    return f"{results.name}, {finished}{of} finished run{'' if len(results.runs) == 1 else 's'}"

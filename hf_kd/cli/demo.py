"""`hf-kd demo`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from .common import Debug, app, console, reported, run_progress, say

if TYPE_CHECKING:
    from ..demo import DemoResult


@app.command()
def demo(
    image: Annotated[bool, typer.Option("--image", help="Only the ViT on scanned digits.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Only the BERT on docstrings.")] = False,
    output: Annotated[Path, typer.Option(help="The folder for everything that is written.")] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of weights, batches and the choice of labelled rows.")] = 0,
    debug: Debug = False,
) -> None:
    """Distil a ViT and a BERT with every temperature method, on real data, on this machine, without a download.

    A few minutes on two cores. Each model is saved and loads in `transformers.pipeline`.
    """
    with reported(debug, what="DEMO"):
        # Before they are imported: no library may write outside of the output folder
        os.environ.setdefault("MPLCONFIGDIR", str((output / "cache" / "matplotlib").resolve()))
        modalities = ["image"] * image + ["text"] * text or ["image", "text"]
        with run_progress() as on_progress:
            from ..demo import run_demo

            results = run_demo(output, modalities, seed=seed, on_progress=on_progress)
        for result in results:
            console().print(demo_table(result))
            say(result.sentence)
            say()
        figures = " and ".join(str(output / result.figure) for result in results)
        say(f"Temperatures over time: {figures}. All numbers: {output / 'results.json'}.")


def demo_table(result: "DemoResult") -> Table:
    """The models of one modality, measured on its test rows."""
    labels = f"{result.labelled_rows:,} of {result.train_rows:,} training rows with a label"
    table = Table(
        title=f"{result.data} (rows {result.fingerprint}): {labels}; {result.test_rows:,} test rows; "
        f"{result.seconds:.0f} s in all",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("model")
    for column in (
        "parameters",
        "test accuracy",
        "agreement with teacher",
        "ECE",
        "latency (1 example, CPU)",
        "training",
    ):
        table.add_column(column, justify="right")
    for row in result.rows:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.accuracy:.3f}",
            "" if row.agreement is None else f"{row.agreement:.3f}",
            f"{row.ece:.3f}",
            f"{row.latency_ms:.2f} ms",
            f"{row.train_seconds:.0f} s",
        )
    return table

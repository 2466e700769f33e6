"""`hf-kd add-logits`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, app, fonts_in_scratch, reported, run_progress, say


@app.command("add-logits")
def add_logits(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run with a teacher.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the rows with their logits; a new folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as for `hf-kd train`.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Ask about this split only. Repeatable; by default all three.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Ask the teacher of CONFIG once about every row, for any number of runs without it.

    Not with random augmentation: stored answers belong to the images as they lie there.
    """
    with reported(debug), fonts_in_scratch():
        from ..experiment import load_config, store_teacher_logits

        with run_progress() as on_progress:
            given = load_config(config, overrides or ())
            stored = store_teacher_logits(
                given, folder, **({"splits": split} if split else {}), on_progress=on_progress
            )
        for name, rows in stored.rows.items():
            right = f", the teacher is right on {stored.accuracy[name]:.1%}" if name in stored.accuracy else ""
            say(f"{name}: {rows:,} rows{right}")
        say(f"Saved in {stored.folder}, {stored.num_labels} logits per row. Train from them with:")
        kept = [text for text in overrides or () if not text.startswith(("teacher.", "teacher="))]
        say(shlex.join(["hf-kd", "train", str(config), *kept, *stored.overrides]))

"""`hf-kd push`."""

from pathlib import Path
from typing import Annotated

import typer

from .common import Debug, app, fonts_in_scratch, reported, say


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="The output folder of a run, or a checkpoint of one.")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private; refused if it is public.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; made if it does not exist.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    license: Annotated[str | None, typer.Option(help="The student's licence, e.g. apache-2.0, for its card.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Try out a model whose own code lies in FOLDER, running it.")
    ] = False,
    repeat: Annotated[
        list[Path] | None, typer.Option(help="The same run under another seed, for the card's table. Repeatable.")
    ] = None,
    baseline: Annotated[
        list[Path] | None, typer.Option(help="The student trained alone, for the card's table. Repeatable.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Push the student in FOLDER to the Hub, with its processor, configuration, results, plots and model card.

    An adapter student is pushed as the plain one, which `transformers` alone can load, with its adapter in `adapter/`.
    All in one commit: a push that fails changes nothing there.
    """
    with reported(debug, what="PUSH"), fonts_in_scratch():
        from ..publish import push_folder

        commit = push_folder(
            folder,
            repo,
            private=private or None,
            revision=revision,
            create_pr=create_pr,
            license=license,
            trust_remote_code=trust_remote_code,
            repeats=repeat or (),
            baselines=baseline or (),
        )
        say(f"Pushed {folder}: {commit.pr_url or commit.commit_url}")

"""`hf-kd cache`: fill a cache, or `info`, `verify`, `push` and `pull` one."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import Debug, app, console, reported, run_progress, say

ACTIONS = ("info", "verify", "push", "pull")


@app.command("cache")
def cache(
    what: Annotated[
        str, typer.Argument(metavar="CONFIG|info|verify|push|pull", help="The YAML file of a run, or what to do.")
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...|DIR [REPO]", help="Overrides, or the cache's folder and its Hub id."),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Ask about this split only. Repeatable; by default all three.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="`push` to a private data set.")] = False,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit to `pull`, branch to `push` to.")] = "main",
    debug: Debug = False,
) -> None:
    """Ask the teacher of CONFIG once about every row, and keep its answers in `teacher_cache`.

    Any number of runs then read them: of other methods, temperatures, students, seeds and label maps. Rows that are
    there are not asked again. `hf-kd cache info DIR` says what a cache holds, `verify DIR` reads all of it, `push DIR
    REPO` and `pull DIR REPO` exchange it with the Hub, as a data set.
    """
    if what in ACTIONS and not Path(what).is_file():
        with reported(debug, what="DIR"):
            _act(what, rest or [], private=private, revision=revision)
        return
    with reported(debug, resume="What was answered is kept. Run the same command again for the rest."):
        from ..experiment import fill_cache, load_config

        with run_progress() as on_progress:
            given = load_config(what, rest or ())
            filled = fill_cache(given, **({"splits": split} if split else {}), on_progress=on_progress)
        for name, rows in filled.rows.items():
            right = f", the teacher is right on {filled.accuracy[name]:.1%}" if name in filled.accuracy else ""
            say(f"{name}: {'read to the end' if rows is None else f'{rows:,} rows'}{right}")
        say(f"{filled.added:,} answers added to {filled.folder}. Train from them with:")
        overrides = list(rest or [])
        if not any(text.startswith(("teacher_cache=", "teacher_cache.dir=")) for text in overrides):
            overrides.append(f"teacher_cache.dir={filled.folder}")
        say(shlex.join(["hf-kd", "train", what, *overrides]))


def _act(action: str, rest: list[str], *, private: bool, revision: str) -> None:
    from ..registry import ConfigError

    wanted = 1 if action in ("info", "verify") else 2
    if len(rest) != wanted:
        usage = f"hf-kd cache {action} DIR{' REPO' if wanted == 2 else ''}"
        raise ConfigError([f"{action}: expected {usage}, got {len(rest)} argument{'s' if len(rest) != 1 else ''}."])
    folder = Path(rest[0])
    try:
        {"info": _info, "verify": _verify, "push": _push, "pull": _pull}[action](folder, *rest[1:], private, revision)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError([f"{folder}: {error}"]) from error


def _opened(folder: Path) -> Any:
    from ..registry import ConfigError
    from ..teacher_cache import TeacherCache

    cache = TeacherCache(folder)
    if cache.manifest is None:
        raise ConfigError([f"{folder}: there is no cache. Fill one with `hf-kd cache CONFIG teacher_cache={folder}`."])
    return cache


def _info(folder: Path, *_: Any) -> None:
    from rich.table import Table

    facts = _opened(folder).describe()
    table = Table(show_header=False, box=None)
    for name, value in _lines(facts):
        table.add_row(name, value)
    console().print(table)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    teacher, rows = facts["teacher"], facts["rows"]
    where = f" at {teacher['commit']}" if teacher.get("commit") else ""
    size = f"{teacher['parameters']:,} parameters, " if teacher.get("parameters") else ""
    kept = f"the {facts['encoding']['top_k']} largest of " if facts["is_reduced"] else ""
    lines = [
        ("teacher", f"{teacher.get('name') or 'unnamed'}{where}"),
        ("", f"{teacher.get('class')}, {size}run in {teacher.get('precision') or 'its own precision'}"),
        ("answers", f"{kept}{facts['num_classes']:,} logits in {facts['encoding']['dtype']}"),
        ("rows", ", ".join(f"{count:,} {name}" for name, count in rows.items()) or "none yet"),
        ("size", f"{facts['bytes'] / 2**20:,.1f} MiB in {facts['files']} file{'s' if facts['files'] != 1 else ''}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())),
    ]
    if facts.get("features"):
        lines.insert(3, ("features", f"{facts['features']:,} pooled features per row"))
    for name, value in facts["errors"].items():
        lines.append((_ERRORS.get(name, name), f"{value:.3g}"))
    return lines


_ERRORS = {
    "rounding": "largest rounding of a logit",
    "kl_t1": "mean KL to the full answer, temperature 1",
    "kl_t4": "mean KL to the full answer, temperature 4",
    "max_kl_t1": "largest KL, temperature 1",
    "max_kl_t4": "largest KL, temperature 4",
}


def _verify(folder: Path, *_: Any) -> None:
    from ..registry import ConfigError

    cache = _opened(folder)
    damaged = cache.damaged()
    if damaged:
        raise ConfigError(
            [
                f"{folder / name}: does not hold what was written. Remove it: its rows are then asked again."
                for name in damaged
            ]
        )
    facts = cache.describe()
    say(f"{folder}: {len(cache):,} answers in {facts['files']} files, every checksum right.")


def _push(folder: Path, repo: str, private: bool, revision: str) -> None:
    from ..publish import push_cache

    say(push_cache(_opened(folder), repo, private=private, revision=revision))


def _pull(folder: Path, repo: str, private: bool, revision: str) -> None:
    from ..publish import pull_cache

    cache = pull_cache(repo, folder, revision=revision)
    say(f"{folder}: {len(cache):,} answers, every checksum right.")

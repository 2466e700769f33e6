"""What the command does: the page, the part of a README, the file that carries all results."""

import copy
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..registry import ConfigError, suggestion
from .figures import agreement_of
from .markdown import results_table
from .opening import read_results
from .results import Results
from .text import section

PAGE = "report.html"
START, END = "<!-- hf-kd results {} -->", "<!-- end of hf-kd results -->"
_START = re.compile(r"^[ \t]*<!-- hf-kd results (\S(?:.*?\S)?) -->(?=[ \t]*\r?$)", re.MULTILINE)
_END = re.compile(rf"^[ \t]*{re.escape(END)}(?=[ \t]*\r?$)", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        page: The HTML file.
        figures: The PNGs.
        results: What it is about.
    """

    page: Path
    figures: tuple[Path, ...]
    results: Results


def write_report(source: str | Path | Results, output: str | Path | None = None) -> Report:
    """Write the page about `source` and its figures.

    It needs the logs and results of the runs, no model and no data. The HTML file needs nothing else and asks nobody
    for anything; the PNGs lie in a folder beside it, for papers.

    Args:
        source: The folder of a comparison, finished or not; that of a run, or of runs; a file that `export_results`
            wrote; or what `read_results` made of one.
        output: The HTML file. Default: `report.html` in the folder; beside an exported file, of the same name.

    Raises:
        ConfigError: There is nothing to report on, or the output is a folder.
    """
    from .page import render
    from .png import write_png

    results = source if isinstance(source, Results) else read_results(source)
    page = Path(output).expanduser() if output is not None else _default_page(results.source)
    if page.is_dir():
        raise ConfigError([f"output: {page} is a folder. Give the name of the HTML file, e.g. {page / PAGE}."])
    folder = page.with_name(f"{page.stem}_figures")
    content, figures = render(results, page, folder.name)
    page.parent.mkdir(parents=True, exist_ok=True)
    drawn = tuple(write_png(figure, folder / f"{figure.name}.png") for figure in figures)
    _replace(page, content.encode("utf-8", errors="replace"))
    return Report(page, drawn, results)


def _default_page(source: Path) -> Path:
    return source.with_suffix(".html") if source.is_file() else source / PAGE


def export_results(source: str | Path | Results, output: str | Path) -> Path:
    """Write all results into one file: the header on the first line, a line for each run, the statistics on the last.

    What the statistics need of single test rows is in the last line alone; everything else can be computed from the
    others. Curves are not in it.

    Args:
        source: As in `write_report`.
        output: The file, ending in `.jsonl`.

    Returns:
        The file.
    """
    results = source if isinstance(source, Results) else read_results(source)
    path = Path(output).expanduser()
    if path.suffix != ".jsonl":
        raise ConfigError([f"export: {path} does not end in .jsonl, by which such files are known. Rename it."])
    header = dict(results.header)
    if results.test_rows is not None:
        header["data"] = {**results.data, "test_rows": results.test_rows}
    lines: list[dict[str, Any]] = [{"comparison": header}]
    lines += [dict(run.line) for run in results.runs if run.line]
    lines += [{"summary": _with_agreement(results)}]
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, text.encode("utf-8", errors="replace"))
    return path


def _with_agreement(results: Results) -> dict[str, Any]:
    """The summary, with what the test rows say of agreement where the runs were not scored beside their teacher."""
    summary = copy.deepcopy(results.summary)
    for pair in results.pairs:
        for entry in section(section(summary, "pairs"), pair.name).get("methods", ()):
            entry["agreement"] = agreement_of(pair, entry["label"])[0]
    return summary


def update_readme(source: str | Path | Results, readme: str | Path) -> bool:
    """Rewrite the results in a README, between `<!-- hf-kd results NAME -->` and `<!-- end of hf-kd results -->`.

    NAME is that of the comparison. All else stays as it is, byte for byte.

    Args:
        source: As in `write_report`.
        readme: The Markdown file.

    Returns:
        Whether anything changed.

    Raises:
        ConfigError: The file or its markers are missing.
    """
    results = source if isinstance(source, Results) else read_results(source)
    path = Path(readme).expanduser()
    if not path.is_file():
        raise ConfigError([f"readme: there is no file {path}. Give the Markdown file that holds the markers."])
    try:
        old = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([f"readme: {path} is not UTF-8 ({error}). Save it as UTF-8."]) from error
    start, end = _place(old, results.name, path)
    newline = "\r\n" if "\r\n" in old else "\n"
    body = f"\n{results_table(results)}\n".replace("\n", newline)
    new = old[:start] + newline + body + newline + old[end:]
    if new == old:
        return False
    _replace(path, new.encode("utf-8", errors="replace"))
    return True


def _place(text: str, name: str, path: Path) -> tuple[int, int]:
    """From behind the start marker of `name` to the start of the end marker."""
    starts = list(_START.finditer(text))
    mine = [found for found in starts if found[1] == name]
    pair = f"`{START.format(name)}` and `{END}`"
    if len(mine) > 1:
        raise ConfigError([f"readme: {path} has {START.format(name)} {len(mine)} times. Leave one of them."])
    if not mine:
        names = {found[1] for found in starts}
        hint = suggestion(name, names) if names else ""
        raise ConfigError(
            [
                f"readme: {path} has no place for the results of {name!r}. Put {pair} on lines of their own where "
                f"the table is to stand.{hint}"
            ]
        )
    start = mine[0].end()
    stop = _END.search(text, start)
    following = _START.search(text, start)
    if stop is None or (following is not None and following.start() < stop.start()):
        raise ConfigError([f"readme: in {path}, {START.format(name)} is not followed by `{END}`. Put it back."])
    return start, stop.start()


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, with the permissions that it had."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

"""`hf-kd compare`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from .common import FAILED, Debug, app, console, fonts_in_scratch, reported, say

if TYPE_CHECKING:
    from ..compare import Comparison

GO_ON = "What is finished is kept: the same command goes on with the rest."
SIGNS = {"helps": "green", "hurts": "red"}


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run, with a section `compare`.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as for `hf-kd train`; compare.seeds=5 too."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare methods over seeds, with the student alone, under one budget, and say which differences are real.

    What is compared stands in `compare`: {methods: [kd, {label: kd T=2, name: kd, temperature: 2}, wttm], seeds: 3,
    pairs: {...}, protocol: last, jobs: 1}. Stopped or killed and started again, it goes on; seeds, methods and pairs
    may be added.
    """
    with reported(debug, resume=GO_ON), fonts_in_scratch():
        from transformers.utils import logging

        from ..compare import compare as run
        from ..compare import load_comparison
        from ..experiment import TrainingStopped

        logging.disable_progress_bar()  # one per file that is read or written
        mapping, section = load_comparison(config, overrides or ())
        try:
            with _progress() as on_event:
                result = run(mapping, section, on_event=on_event)
        except TrainingStopped as stopped:
            say(str(stopped), stderr=True)
            raise
        _show(result)
    if result.failed:
        count = len(result.failed)
        say(f"{count} run{'s' if count > 1 else ''} failed; the same command tries again:", stderr=True)
        for line in result.failed:
            say(f"  {_name(line)}: {line['error']}", stderr=True)
        raise typer.Exit(FAILED)


def _show(result: "Comparison") -> None:
    summary = result.summary
    for name, pair in summary["pairs"].items():
        described = next(entry for entry in result.comparison["pairs"] if entry["name"] == name)
        teacher = described["teacher"] or "no teacher"
        title = "" if len(summary["pairs"]) == 1 else f"{name}: "
        say(f"{title}{teacher} -> {described['student']}, {summary['metric']} on test{_rows(result)}")
        console().print(_table(pair, summary))
        for entry in pair["incomplete"]:
            why = f": {entry['error']}" if entry.get("error") else ""
            say(f"{entry['state']}: {entry['method']}, seed {entry['seed']}{why}")
    say(_scoring(summary["protocol"]))
    say(summary["meaning"])
    for warning in summary["warnings"]:
        say(f"WARNING: {warning}", stderr=True)
    say(f"Saved in {result.folder}: comparison.json, results.jsonl, summary.json, runs.")


def _rows(result: "Comparison") -> str:
    rows = (result.comparison.get("data") or {}).get("test_rows")
    return "" if rows is None else f" ({rows:,} rows)"


def _scoring(protocol: str) -> str:
    if protocol == "best_validation":
        return "Scored on the test split, once, is each student as it was when the validation split liked it best."
    return "Scored on the test split is each student as training left it."


def _table(pair: dict[str, Any], summary: dict[str, Any]) -> Table:
    """One row per method: its score over the seeds, and how it stands to the student alone and to plain KD."""
    baseline, reference = pair["baseline"], pair["reference"]
    has_best = any("best_test" in entry for entry in pair["methods"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method")
    table.add_column("n", justify="right")
    table.add_column("mean ± sd", justify="right")
    if has_best:
        table.add_column("best epoch, chosen by test", justify="right")
    table.add_column(f"- {baseline} [95 %]", justify="right")
    table.add_column("verdict")
    if reference is not None:
        table.add_column(f"- {reference} [95 %]", justify="right")
        table.add_column("verdict")
    for entry in pair["methods"]:
        cells = [entry["label"], str(entry["n"]), _score(entry, summary["metric"])]
        if has_best:
            cells.append(_score(entry.get("best_test", {}), summary["metric"]))
        cells += _against(entry["to_baseline"], summary["metric"])
        if reference is not None:
            cells += _against(entry["to_kd"], summary["metric"])
        table.add_row(*cells)
    return table


def _score(entry: dict[str, Any], metric: str) -> str:
    if entry.get("mean") is None:
        return ""
    scale = _scale(metric)
    sd = "" if entry["sd"] is None else f" ± {scale * entry['sd']:.2f}"
    return f"{scale * entry['mean']:.2f}{sd}"


def _against(found: dict[str, Any] | None, metric: str) -> list[str]:
    if found is None:
        return ["", ""]
    scale = _scale(metric)
    words = f"{scale * found['difference']:+.2f}"
    if found["ci"] is not None:
        words += " [{:+.2f}, {:+.2f}]".format(*(scale * bound for bound in found["ci"]))
    verdict = found["verdict"]
    if verdict is None:
        return [words, "no verdict: fewer than 3 seeds"]
    color = SIGNS.get(verdict)
    return [words, f"[{color}]{verdict}[/]" if color else verdict]


def _scale(metric: str) -> int:
    """Shares are shown in percent."""
    return 100 if "accuracy" in metric or metric.startswith("f1") else 1


def _name(where: dict[str, Any]) -> str:
    pair = "" if where["pair"] == "default" else f"{where['pair']}, "
    return f"{pair}{where['method']}, seed {where['seed']}"


# ---------------------------------------------------------------------------------------------------------------------
# Progress
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Any]:
    """One bar over all runs and one per run that is going on; on a pipe, a line per run that is over."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    screen = console()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=screen, disable=not screen.is_terminal) as progress:
        yield _Shown(progress)


class _Shown:
    """What is shown of a comparison while it goes on."""

    def __init__(self, progress: Any):
        self.progress, self.bars, self.shares = progress, {}, {}
        self.done, self.wanted = 0, 0
        self.all = progress.add_task("loading libraries", total=None)

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"_{event['kind']}")(event)

    def _plan(self, event: dict[str, Any]) -> None:
        for note in event["notes"]:
            self._say(note)
        several = len(event["teachers"]) > 1
        for pair, words in event["teachers"].items():
            self._say(f"{pair}: {words}" if several else words)
        if event["protocol"] == "best_test":
            self._say(
                "The test split is scored after every epoch, and its best is reported beside the last: it flatters."
            )
        kept = event["wanted"] - event["todo"]
        if kept:
            self._say(f"{kept} of {event['wanted']} runs are finished; {event['todo']} to go.")
        self.done, self.wanted = 0, event["todo"]
        self.progress.update(self.all, description="all runs", total=event["todo"], completed=0)

    def _first(self, event: dict[str, Any]) -> None:
        self._bar(("first", event["path"]), f"first, {event['path']}", event["done"], event["steps"])

    def _trained(self, event: dict[str, Any]) -> None:
        if ("first", event["path"]) in self.bars:
            self.progress.remove_task(self.bars.pop(("first", event["path"])))
        score = event["test"].get(event["metric"])
        found = "trained" if score is None else f"{event['metric']} {score:.4f} on test"
        self._say(f"{event['path']}: {found} ({event['seconds']:.0f} s), saved in {event['folder']}")

    def _teacher(self, event: dict[str, Any]) -> None:
        self._bar(("teacher", event["pair"], event["what"]), event["what"], event["done"], event["rows"])

    def _start(self, event: dict[str, Any]) -> None:
        for key in [key for key in self.bars if key[0] == "teacher"]:
            self.progress.remove_task(self.bars.pop(key))
        self._bar(_key(event), _name(event), 0, 0)

    def _step(self, event: dict[str, Any]) -> None:
        self._bar(_key(event), _name(event), event["step"], event["steps"])
        self.shares[_key(event)] = event["step"] / max(event["steps"], 1)
        self.progress.update(self.all, completed=round(self.done + sum(self.shares.values()), 2))

    def _line(self, event: dict[str, Any]) -> None:
        line, summary = event["line"], event["summary"]
        if _key(line) in self.bars:
            self.progress.remove_task(self.bars.pop(_key(line)))
        self.shares.pop(_key(line), None)
        self.done += 1
        self.progress.update(self.all, completed=self.done)
        if line["state"] == "finished":
            metric = summary["metric"]
            score = line["test"].get(metric)
            found = f"{metric} {score:.4f}" if score is not None else "finished"
            seconds = f"{line['total_seconds']:.0f} s"
        else:
            found, seconds = f"FAILED: {line['error']}", f"{line.get('total_seconds', 0):.0f} s"
        self._say(f"{self.done}/{self.wanted} {_name(line)}: {found} ({seconds})")

    def _bar(self, key: tuple, words: str, done: int, total: int) -> None:
        if key not in self.bars:
            self.bars[key] = self.progress.add_task(words, total=None)
        self.progress.update(self.bars[key], completed=done, total=total or None)

    def _say(self, line: str) -> None:
        if self.progress.disable:
            say(line)
        else:
            self.progress.console.print(line, markup=False, soft_wrap=True)


def _key(where: dict[str, Any]) -> tuple:
    return "run", where["pair"], where["method"], where["seed"]

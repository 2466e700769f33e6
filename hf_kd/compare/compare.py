"""`compare`: every method, every seed, every pair, and what is there already is not run again."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..experiment.running import TrainingStopped, only_run_in
from ..registry import ConfigError
from .book import Book
from .plan import Plan, Run, make_plan, run_mapping
from .pool import Here, Pool, number_of_jobs, pool_of
from .section import COMPARE, CompareSection
from .single import Event

STOPPED = (
    "Stopped by SIGTERM. What is finished is kept, and what was going on is saved: the same command goes on with it."
)


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison, so far; `comparison.json`, `results.jsonl` and `summary.json` hold the same.

    Args:
        folder: Where everything is.
        comparison: What it is of.
        summary: The statistics; see `hf_kd.statistics_of_runs`.
        failed: Lines of runs that failed this time; the same command tries them again.
        notes: What was said before it started.
    """

    folder: str
    comparison: dict[str, Any]
    summary: dict[str, Any]
    failed: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(
    config: Mapping[str, Any], section: CompareSection | Mapping[str, Any], *, on_event: Event | None = None
) -> Comparison:
    """Train every method with every pair under every seed, and say which differences are real.

    All runs of a pair and seed begin with the same weights and see the same rows in the same order, as often; the
    student alone is trained by the same trainer. The test split is scored once per student (`compare.protocol` says
    which). `output_dir` then holds `comparison.json`, `results.jsonl` with a line per run, `summary.json` and the
    runs' folders. Started again, a comparison goes on: finished runs are not run again, an unfinished one goes on from
    its checkpoint if it has one, failed ones are tried again; seeds, methods and pairs may be added. One comparison
    per folder at a time.

    Args:
        config: The run's sections, as plain mappings.
        section: What to compare; see `CompareSection`.
        on_event: Told how far it is, as mappings with a `kind`: "plan" (what is to be done), "teacher" (it answers),
            "start", "step" and "line" (of a run), each with its facts.

    Raises:
        ConfigError: The configuration, the comparison, or what they name is wrong; or the folder holds another one.
        TrainingStopped: SIGTERM came; what is finished is kept.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError([f"{COMPARE}: starts its processes itself ({COMPARE}.jobs). Start it without torchrun."])
    plan = make_plan(config, section)
    report = on_event or (lambda event: None)
    with only_run_in(plan.folder):
        book = Book(plan.folder, plan)
        finished = book.finished
        todo = [run for run in plan.runs() if run.key not in finished]
        jobs = min(number_of_jobs(plan.section.jobs), max(1, len(todo)))
        report({"kind": "plan", "wanted": len(list(plan.runs())), "todo": len(todo), "jobs": jobs, **_said(plan)})
        failed: list[dict[str, Any]] = []
        pool = pool_of(jobs, plan.folder, report)
        try:
            with _terminable(pool):
                facts = _prepared(plan, todo, pool)
                book.open(facts)
                summary = book.summarise()
                for line in pool.run(_orders(plan, todo, facts, book)):
                    book.add(line)
                    summary = book.summarise()
                    if line["state"] != "finished":
                        failed.append(line)
                    report({"kind": "line", "line": line, "summary": summary})
        except TrainingStopped as stopped:  # a run would say how to go on with itself
            raise TrainingStopped(STOPPED) from stopped
        finally:
            pool.close()
        return Comparison(str(plan.folder), book.comparison, summary, failed, plan.notes)


def _said(plan: Plan) -> dict[str, Any]:
    words = {pair.name: pair.teacher_words for pair in plan.pairs}
    return {"notes": plan.notes, "teachers": words, "protocol": plan.section.protocol}


def _prepared(plan: Plan, todo: list[Run], pool: Here | Pool) -> dict[str, dict[str, Any]]:
    """What is found out once per pair that has runs to do."""
    facts: dict[str, dict[str, Any]] = {}
    for pair in plan.pairs:
        run = next((run for run in todo if run.pair == pair.name), None)
        if run is None:
            continue
        label = pair.filler or run.method
        mapping = {**run_mapping(pair, label), "seed": run.seed, "output_dir": str(plan.folder / "runs")}
        order = {"kind": "prepare", "pair": pair.name, "config": mapping, "latency": plan.section.latency}
        facts[pair.name] = pool.prepare(order)
        first = next(iter(facts.values()))
        if facts[pair.name]["data"]["fingerprint"] != first["data"]["fingerprint"]:
            raise ConfigError([f"{COMPARE}.pairs.{pair.name}: reads other rows than the first pair."])
    return facts


def _orders(plan: Plan, todo: list[Run], facts: Mapping[str, Any], book: Book) -> list[dict[str, Any]]:
    return [
        {
            "kind": "run",
            "pair": run.pair,
            "method": run.method,
            "seed": run.seed,
            "folder": run.folder,
            "config": {**run.mapping, "output_dir": str(plan.folder / run.folder)},
            "protocol": plan.section.protocol,
            "keep_models": plan.section.keep_models,
            "facts": facts[run.pair],
            "fingerprint": book.fingerprint(run, facts[run.pair]),
        }
        for run in todo
    ]


@contextmanager
def _terminable(pool: Here | Pool) -> Iterator[None]:
    """Let SIGTERM end a comparison in order: workers save what they do.

    In this process a run that trains handles the signal itself.
    """
    if isinstance(pool, Here) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TrainingStopped(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)

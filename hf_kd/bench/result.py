"""What a bench found: raw blocks of steps, and medians with quartiles over them."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..registry import ConfigError
from .advice import Profile, first_thing
from .cache import CacheEstimate

FORMAT = 1

OURS, CLOCKED = "distillation_trainer", "distillation_trainer_with_clocks"
BARE_BOTH, BARE_STUDENT, PLAIN_TRAINER = "bare_loop", "bare_loop_student_alone", "plain_trainer_student_alone"
FLOORS = (BARE_BOTH, BARE_STUDENT, PLAIN_TRAINER)
"""The loops. `CLOCKED` is `OURS` with a clock around every part."""

DATA, TEACHER, STUDENT, BACKWARD = "data", "teacher_forward", "student_forward", "backward"
OBJECTIVE, OPTIMIZER, OTHER = "objective", "optimizer", "other"
PARTS = (DATA, TEACHER, STUDENT, BACKWARD, OBJECTIVE, OPTIMIZER, OTHER)
"""The parts of a step; `other` is what the others leave of it, the Python of the Trainer and of accelerate."""

NOTICEABLE = 0.03
"""Clocks that change the time of a step by more than this share are said."""


class Spread(NamedTuple):
    """A median and the quartiles around it, over the repeats."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Block:
    """Consecutive steps of one loop, timed as one.

    Args:
        loop: Which one.
        repeat: From 0; blocks of one repeat ran one after the other and are compared with each other.
        place: At which place in its repeat it ran; the order rotates.
        steps: Optimizer steps.
        seconds: Of all of them, by the clock on the wall.
        cpu_seconds: Of this process's threads on processors; those of data loader workers are not in it.
        rows: Training rows in them, over all processes; None if not counted.
        parts: Seconds of each of `PARTS`, which add up to `seconds`; None without clocks.
    """

    loop: str
    repeat: int
    place: int
    steps: int
    seconds: float
    cpu_seconds: float
    rows: int | None = None
    parts: dict[str, float] | None = None

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.seconds / self.steps


@dataclass(frozen=True)
class BenchResult:
    """What was measured, on what.

    Args:
        settings: Steps, warm-up, repeats, threads.
        environment: Versions and hardware.
        config: The configuration, as it was given.
        setup: What the step consists of: parameters, rows per step, precision.
        profile: What the rules read, but for the shares.
        cache: What a store of the teacher's logits would hold; None without a teacher that answers live.
        memory_bytes: The peak; None if unknown here.
        memory_kind: What kind of memory that is.
        notes: What was not measured, and why.
        blocks: Everything that was timed.
    """

    settings: dict[str, Any]
    environment: dict[str, Any]
    config: dict[str, Any]
    setup: dict[str, Any]
    profile: dict[str, Any]
    cache: CacheEstimate | None
    memory_bytes: int | None
    memory_kind: str
    notes: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def of(self, loop: str) -> list[Block]:
        """The blocks of one loop, one per repeat."""
        return [block for block in self.blocks if block.loop == loop]

    @property
    def loops(self) -> list[str]:
        """The loops that ran."""
        return list(dict.fromkeys(block.loop for block in self.blocks))

    def step(self, loop: str = OURS) -> Spread:
        """Seconds of one step."""
        return spread(block.step_seconds for block in self.of(loop))

    def part(self, name: str) -> Spread:
        """Seconds that a part takes of one step."""
        return spread(block.parts[name] / block.steps for block in self.of(CLOCKED))

    def share(self, name: str) -> Spread:
        """The same as a share of the step, in [0, 1]."""
        return spread(block.parts[name] / block.seconds for block in self.of(CLOCKED))

    def ratio(self, loop: str, of: str = OURS) -> Spread:
        """How many times as long a step of `of` takes as one of `loop`: paired within each repeat."""
        return self._paired(loop, of, lambda floor, ours: ours.step_seconds / floor.step_seconds)

    def cpu_ratio(self, loop: str) -> Spread:
        """The same in processor time, which other programs on the machine change less; on a processor alone."""
        return self._paired(loop, OURS, lambda floor, ours: ours.cpu_seconds / floor.cpu_seconds)

    def _paired(self, first: str, second: str, compare: Callable[[Block, Block], float]) -> Spread:
        other = {block.repeat: block for block in self.of(second)}
        return spread(compare(block, other[block.repeat]) for block in self.of(first))

    @property
    def shares(self) -> dict[str, float]:
        """The median share of each part."""
        return {name: self.share(name).median for name in PARTS}

    @property
    def rows_per_second(self) -> float | None:
        """Of `OURS`, all processes together; both loops read the same rows."""
        rows = [block.rows / block.steps for block in self.of(CLOCKED) if block.rows is not None]
        return float(np.median(rows)) / self.step().median if rows else None

    @property
    def clocks_cost(self) -> float:
        """By which share the clocks make a step longer; negative if it came out shorter."""
        return self.ratio(OURS, CLOCKED).median - 1

    @property
    def steps_per_second_without_teacher(self) -> float:
        """An estimate: the step without the teacher's share of it."""
        return 1 / (self.step().median * (1 - self.shares[TEACHER]))

    @property
    def advice(self) -> str:
        """The first thing to change."""
        return first_thing(Profile(shares=self.shares, **self.profile))

    def summary(self) -> dict[str, Any]:
        """What the blocks say, in plain values."""
        ms = 1e3
        found = {
            "step_ms": {loop: _scaled(self.step(loop), ms) for loop in self.loops},
            "ratio_to": {loop: self.ratio(loop)._asdict() for loop in self.loops if loop in FLOORS},
            "cpu_ratio_to": {loop: self.cpu_ratio(loop)._asdict() for loop in self.loops if loop in FLOORS},
            "parts_ms": {name: _scaled(self.part(name), ms) for name in PARTS},
            "shares": {name: self.share(name)._asdict() for name in PARTS},
            "clocks_cost": self.clocks_cost,
            "steps_per_second": 1 / self.step().median,
            "rows_per_second": self.rows_per_second,
            "advice": self.advice,
        }
        if self.cache is not None:
            found["steps_per_second_without_teacher"] = self.steps_per_second_without_teacher
            found["cache_bytes"] = self.cache.sizes
        return found


def spread(values: Iterable[float]) -> Spread:
    """The median and the quartiles of some numbers."""
    low, median, high = np.percentile(list(values), [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def _scaled(values: Spread, factor: float) -> dict[str, float]:
    return {name: value * factor for name, value in values._asdict().items()}


def check_output(path: str | Path) -> None:
    """Refuse a file that `write_bench` could not write, before anything is measured.

    Raises:
        ConfigError: It is a folder, or its folder cannot be made or written to.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise ConfigError([f"output: {str(path)!r} is a folder. Name a file, e.g. {str(path / 'bench.json')!r}."])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError([f"output: cannot write {str(path)!r}: {error.strerror}. Choose another file."])


def write_bench(result: BenchResult, path: str | Path) -> Path:
    """Write everything as JSON: the summary, what was measured on what, and each block.

    Returns:
        The file.

    Raises:
        ConfigError: It cannot be written.
    """
    path = Path(path).expanduser()
    content = {"format": FORMAT, "summary": result.summary(), **asdict(result)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def read_bench(path: str | Path) -> BenchResult:
    """What `write_bench` wrote.

    Raises:
        ConfigError: The file is missing or no bench's.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read as JSON: {error}. `hf-kd bench` writes such files."]) from error
    if not isinstance(content, Mapping) or content.get("format") != FORMAT or "blocks" not in content:
        raise ConfigError([f"{path}: is not what this version of `hf-kd bench` writes. Run it again."])
    values = {key: value for key, value in content.items() if key not in ("format", "summary")}
    cache = None if values["cache"] is None else CacheEstimate(**values["cache"])
    return BenchResult(**{**values, "cache": cache, "blocks": [Block(**block) for block in values["blocks"]]})

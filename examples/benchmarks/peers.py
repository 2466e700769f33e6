"""How fast a step of distillation is, here and in other packages: the same work for all, in one run.

    pip install ".[peers]"
    python examples/benchmarks/peers.py --output outputs/peers.json
    python examples/benchmarks/peers.py --pairs vit --batch-sizes 32 128 --steps 30 --device cuda --bf16

Every loop gets copies of the same student and teacher, the same rows in the same batches and order, AdamW with the
same numbers, the same clipping, and `0.5 CE + 0.5 T² KL` at T = 4. In each repeat every loop trains one block of steps
from the same weights; blocks of a repeat run one after the other, in an order that rotates, and ratios are paired
within it. The clock runs from the end of a step to the end of a step, data and loop included; making models and
trainers is outside. Loops of transformers, the bare ones too, read a `datasets.Dataset` with a transform; timm and
torchdistill on images read bare tensors, which is cheaper. `end` says how far a student ends from where the bare
loop's does, as a share of the way that it went; rounding of float32 gives up to some 1e-5.

Packages run as they were published. What had to be mended to make one run is said under the table, beside what it
does that costs time or changes the result. One that is missing, or fails, has its reason in its row. On a machine with
several GPUs set `CUDA_VISIBLE_DEVICES=0`.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import peers_loops as own
import peers_packages as packages
import torch
import transformers
from peers_work import PAIRS, Pair, Ran, Work
from torch import Tensor, nn

from hf_kd.bench import Block, Spread, check_output
from hf_kd.bench.result import spread

FORMAT = 1


@dataclass(frozen=True)
class Loop:
    """One loop.

    Args:
        label: In the table.
        run: Trains one block.
        reference: Whose student it should end at.
        package: That must be installed.
        only: "image" or "text", if it knows no other.
        mended: What had to be changed to make it run on this work; with `vit` or `bert` before it if on one alone.
        left: What it does that costs time or changes the result.
    """

    label: str
    run: Callable[[Work], Ran]
    reference: str = "bare"
    package: str | None = None
    only: str | None = None
    mended: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


_WASTE = "the teacher gets the labels too and computes a loss that nobody reads"
_CAST = "the teacher is not under autocast: with bf16 it runs in float32"
_SCALE = "with gradient accumulation the gradient is as many times too large as there are micro-batches"
_PROBABILITIES = "targets are probabilities, whose logarithm is taken again (rounding)"
_ROUNDS = "with bf16 the gradients of both terms are rounded before they are added"
_LATER = "the teacher is asked while the student's activations wait in memory (on a CPU that costs page faults)"
_WAITS = "each step reads its loss back, so a GPU is waited for in each step"

BARE, ONLINE, CACHED, PLAIN, ALONE = "bare", "hf_kd", "hf_kd_cached", "trainer_student", "bare_student"
LOOPS = {
    BARE: Loop("bare loop of both models", own.bare_loop),
    ONLINE: Loop("hf_kd", own.online),
    CACHED: Loop("hf_kd, `teacher_cache`", own.cached),
    "guide": Loop(
        "transformers' image guide, its form",
        own.guide,
        mended=(
            "`compute_loss` takes `**kwargs` (the Trainer has passed `num_items_in_batch` since 4.46)",
            "the teacher goes to the Trainer's device, not to the first one found",
        ),
        left=(
            _WASTE,
            _CAST,
            _SCALE,
            _PROBABILITIES,
            _ROUNDS,
            _LATER,
            "it calls `self.student`, so several processes share no gradients",
        ),
    ),
    "notebook": Loop(
        "the text notebook, its form",
        own.notebook,
        mended=("`compute_loss` takes `**kwargs`, as above",),
        left=(_WASTE, _CAST, _SCALE, _PROBABILITIES, _ROUNDS, _LATER),
    ),
    "timm": Loop(
        "timm `LogitDistillationTask`",
        packages.timm,
        package="timm",
        only="image",
        mended=(
            "models are wrapped to take an image, to answer with logits and to have timm's attributes (`num_classes`, "
            "`in_chans`, `pretrained_cfg`)",
        ),
        left=(_WAITS, _ROUNDS, _LATER),
    ),
    "torchdistill": Loop(
        "torchdistill `DistillationBox`",
        packages.torchdistill,
        package="torchdistill",
        mended=(
            "bert: `accelerator.state.use_fp16` is set (its box reads it, accelerate no longer has it)",
            "bert: labels are passed as targets (its text script passes none, and `KDLoss` then is the divergence "
            "alone, without cross-entropy and T², whatever alpha says)",
            "bert: rows come from a collator of transformers that is registered under its own name",
        ),
        left=(
            _WAITS,
            _PROBABILITIES,
            "hooks store the outputs of both classifiers, and dicts of them are built in each step",
            "bert: with bf16 the loss is computed in bfloat16, on what the hooks saw, and the teacher runs in float32",
            "bert: both models get the labels and compute losses that nobody reads",
            "vit: its image script knows no autocast; with bf16 it is added here",
        ),
    ),
    "txtai": Loop(
        "txtai `HFTrainer(teacher=...)`",
        packages.txtai,
        package="txtai",
        only="text",
        mended=("rows are texts whose words are the numbers of their tokens, for it tokenizes by itself (not timed)",),
        left=(_CAST, _SCALE, _PROBABILITIES, _LATER),
    ),
    PLAIN: Loop("plain Trainer, student alone", own.plain_trainer, reference=ALONE),
    ALONE: Loop("bare loop, student alone", own.bare_student, reference=ALONE),
}
OWN = tuple(name for name, loop in LOOPS.items() if loop.package is None)


@dataclass
class Result:
    """What was measured of one pair at one batch size.

    Args:
        name: Of the pair.
        pair: The models.
        settings: Of the run.
        load: Averages of the machine over a minute, before and after.
        blocks: All that were timed.
        ends: How far a loop's student ends from that of the bare loop, by the way that one went.
        failures: Why a loop did not run.
        said: What loops say beside.
    """

    name: str
    pair: Pair
    settings: dict[str, Any]
    load: list[float] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    ends: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def loops(self) -> list[str]:
        """Those that were timed, in the order of the table."""
        ran = {block.loop for block in self.blocks}
        return [name for name in LOOPS if name in ran]

    def of(self, loop: str) -> dict[int, Block]:
        """The blocks of one loop by repeat."""
        return {block.repeat: block for block in self.blocks if block.loop == loop}

    def step_ms(self, loop: str) -> Spread:
        """Milliseconds of a step."""
        return spread(1e3 * block.step_seconds for block in self.of(loop).values())

    def ratio(self, loop: str, to: str, clock: str = "seconds") -> Spread | None:
        """How many times as long a step of `loop` takes, paired within repeats; None if one of them did not run."""
        first, second = self.of(loop), self.of(to)
        if not (first and second):
            return None
        return spread(getattr(first[n], clock) / getattr(second[n], clock) for n in first)

    def summary(self) -> dict[str, Any]:
        """Plain values for each loop."""
        found = {}
        for loop in self.loops:
            milliseconds, references = self.step_ms(loop), (BARE, ONLINE, CACHED, PLAIN, ALONE)
            found[loop] = {
                "step_ms": milliseconds._asdict(),
                "rows_per_second": 1e3 * self.settings["batch_size"] / milliseconds.median,
                "ratio_to": _plain({to: self.ratio(loop, to) for to in references}),
                "cpu_ratio_to": _plain({to: self.ratio(loop, to, "cpu_seconds") for to in references}),
                "end": self.ends.get(loop),
            }
        return found


def _plain(ratios: dict[str, Spread | None]) -> dict[str, dict[str, float]]:
    return {name: ratio._asdict() for name, ratio in ratios.items() if ratio is not None}


# ---- Measuring


def measure(
    name: str,
    pair: Pair,
    *,
    batch_size: int,
    steps: int,
    warmup: int,
    repeats: int,
    loops: Iterable[str],
    on_repeat: Callable[[int], None] = lambda repeat: None,
    **where: Any,
) -> Result:
    """Time loops on one pair.

    Args:
        name: Of the pair.
        pair: The models.
        batch_size: Rows of a step.
        steps: Of a block, on the clock.
        warmup: Of a block, before it, >= 1.
        repeats: Blocks of each loop.
        loops: Names in `LOOPS`.
        on_repeat: Told the number of each repeat, from 0, before it.
        where: `device` and `bf16`.
    """
    chosen = [loop for loop in LOOPS if loop in set(loops)]
    settings = {"batch_size": batch_size, "steps": steps, "warmup": warmup, "repeats": repeats, "bf16": where["bf16"]}
    settings["threads"] = torch.get_num_threads()
    result = Result(name, pair, settings, load=[os.getloadavg()[0]])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Work(pair, batch_size, warmup, steps, folder=Path(folder), **where)
        running = list(settle(work, chosen, result))
        for repeat in range(repeats):
            on_repeat(repeat)
            turn = repeat % len(running)
            for place, loop in enumerate(running[turn:] + running[:turn]):
                gc.collect()  # what one block leaves behind is not the next one's work
                clock = LOOPS[loop].run(work).clock
                times = clock.seconds, clock.cpu_seconds
                result.blocks.append(Block(loop, repeat, place, steps, *times, rows=steps * batch_size))
    result.said = work.said
    result.load.append(os.getloadavg()[0])
    return result


def settle(work: Work, loops: list[str], result: Result) -> Iterator[str]:
    """A first block of each, untimed: which ones run at all, and where their students end."""
    start, ends = weights(work.student()), {}
    for name in sorted(loops, key=lambda loop: loop not in (BARE, ALONE)):  # what others are compared with first
        loop, kind = LOOPS[name], "image" if work.pair.is_image else "text"
        if loop.only not in (None, kind):
            result.failures[name] = f"it is for {loop.only}s alone"
            continue
        try:
            end = weights(loop.run(work).student)
        except Exception as error:  # whatever a package raises is said in its row
            if loop.package is None:
                raise
            result.failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if name in (BARE, ALONE):
            ends[name] = end
        if loop.reference in ends:
            reference = ends[loop.reference]
            result.ends[name] = ((end - reference).norm() / (reference - start).norm()).item()
        yield name


def weights(model: nn.Module) -> Tensor:
    """All of them in a row."""
    return torch.cat([parameter.detach().double().cpu().flatten() for parameter in model.parameters()])


# ---- Saying


HEAD = "| | ms per step | × bare | × hf_kd | × hf_kd cached | CPU × bare | CPU × hf_kd | rows/s | end |"


def table(result: Result) -> Iterator[str]:
    """Lines of Markdown."""
    pair, said = result.pair, result.settings
    kind = "ViT" if pair.is_image else "BERT"
    shapes = " <- ".join(f"{width}x{layers}" for width, layers, _ in (pair.student, pair.teacher))
    number = "bf16" if said["bf16"] else "fp32"
    yield f"{result.name}: {kind} {shapes}, {said['batch_size']} rows per step, {number}, {said['threads']} threads;"
    yield f"medians (quartiles) of {said['repeats']} blocks of {said['steps']} steps; load average " + " to ".join(
        f"{load:.1f}" for load in result.load
    )
    yield ""
    yield HEAD
    yield "|---|" + "---|" * (HEAD.count("|") - 2)
    for name, loop in LOOPS.items():
        if name in result.failures:
            yield f"| {loop.label} | could not run: {result.failures[name]} |" + " |" * (HEAD.count("|") - 3)
        elif name in result.loops:
            yield f"| {' | '.join(_cells(result, name))} |"
    yield ""
    for first, second in ((ONLINE, BARE), (CACHED, PLAIN), (CACHED, ALONE)):
        wall, cpu = result.ratio(first, second), result.ratio(first, second, "cpu_seconds")
        if wall is not None:
            yield f"- {LOOPS[first].label} / {LOOPS[second].label}: {_range(wall, 3)}, in CPU time {_range(cpu, 3)}"
    for what, value in result.said.items():
        yield f"- {what}: {value:.1f}"
    yield from _notes(result)
    yield ""


def _cells(result: Result, name: str) -> Iterator[str]:
    yield LOOPS[name].label
    milliseconds = result.step_ms(name)
    yield _range(milliseconds, 1)
    for to in (BARE, ONLINE, CACHED):
        ratio = result.ratio(name, to)
        yield "" if ratio is None else f"{ratio.median:.2f}" if name == to else _range(ratio, 2)
    for to in (BARE, ONLINE):
        ratio = result.ratio(name, to, "cpu_seconds")
        yield "" if ratio is None else f"{ratio.median:.2f}"
    yield f"{1e3 * result.settings['batch_size'] / milliseconds.median:,.0f}"
    yield f"{result.ends[name]:.0e}" if name in result.ends else ""


def _range(values: Spread, digits: int) -> str:
    return f"{values.median:.{digits}f} ({values.low:.{digits}f}–{values.high:.{digits}f})"


def _notes(result: Result) -> Iterator[str]:
    """What had to be mended, and what was left, of loops that ran."""
    for name in result.loops:
        loop = LOOPS[name]
        for word, sentences in (("mended", loop.mended), ("left", loop.left)):
            said = [_here(result, sentence) for sentence in sentences]
            if any(said):
                yield f"- {loop.label}, {word}: {'; '.join(filter(None, said))}"


def _here(result: Result, sentence: str) -> str:
    """A sentence, if it is about this kind of pair."""
    kind, colon, rest = sentence.partition(": ")
    if colon and kind in ("vit", "bert"):
        return rest if (kind == "vit") == result.pair.is_image else ""
    return sentence


def environment(device: torch.device) -> dict[str, Any]:
    """What it all ran on."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "transformers", "accelerate", "datasets", "hf_kd", "timm", "torchdistill", "txtai"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["processors"] = os.cpu_count()
    found["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return found


def write(path: Path, device: torch.device, results: list[Result]) -> None:
    """Everything as JSON."""
    found = [{**asdict(result), "summary": result.summary()} for result in results]
    content = {"format": FORMAT, "environment": environment(device), "results": found}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(given: list[str] | None = None) -> list[Result]:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), help="only these")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--steps", type=int, default=20, help="of a block, on the clock")
    parser.add_argument("--warmup", type=int, default=3, help="steps of a block before the clock starts")
    parser.add_argument("--repeats", type=int, default=7, help="blocks of each loop")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--output", type=Path, help="a file for every block, as JSON")
    asked = parser.parse_args(given)
    if min(asked.steps, asked.warmup, asked.repeats, *asked.batch_sizes) < 1:
        parser.error("--steps, --warmup, --repeats and --batch-sizes count from 1")
    if asked.output is not None:
        check_output(asked.output)
    device, results = torch.device(asked.device), []
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module="torch.utils.data")
    print(*(f"{name} {value}" for name, value in environment(device).items()), sep=", ")
    print(flush=True)
    amount = {"steps": asked.steps, "warmup": asked.warmup, "repeats": asked.repeats, "loops": asked.loops}
    for name in asked.pairs:
        for batch_size in asked.batch_sizes:
            where = {"device": device, "bf16": asked.bf16}
            where["on_repeat"] = partial(_say_repeat, f"{name}, {batch_size} rows", asked.repeats)
            results.append(measure(name, PAIRS[name], batch_size=batch_size, **amount, **where))
            print(*table(results[-1]), sep="\n", flush=True)
            if asked.output is not None:
                write(asked.output, device, results)
    return results


def _say_repeat(what: str, repeats: int, repeat: int) -> None:
    print(f"{what}: repeat {repeat + 1} of {repeats}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

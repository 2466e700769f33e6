"""`run_bench`: blocks of steps of the real loop and of bare ones, by turns, on what a configuration describes."""

import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, set_seed

from ..adapters import SELF, plain_parameters
from ..data import Task
from ..experiment.build import build_arguments, build_task, build_teacher
from ..experiment.cached_teacher import fill_for
from ..experiment.config import ExperimentConfig, parse_config
from ..experiment.run import build_trainer, side_of
from ..experiment.student import build_student, take_over_layers
from ..inputs import model_columns, student_inputs
from ..registry import ConfigError, check_number
from ..trainer import DistillationTrainer
from ..trainer.hub import environment
from .cache import CacheEstimate
from .clocks import BlockTimer, Clock, PartClocks
from .floor import BareLoop, floor_problem
from .memory import Memory
from .result import BARE_BOTH, BARE_STUDENT, CLOCKED, OURS, PLAIN_TRAINER, BenchResult, Block

LEAST_REPEATS = 2

_QUIET = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "report_to": "none",
    "push_to_hub": False,
    "disable_tqdm": True,
    "auto_find_batch_size": False,
}
"""What a bench trains with instead: it times steps, and writes nothing."""
_NOT_TIMED = (
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_patience",
    "early_stopping_threshold",
    "evaluate_with_teacher",
    "enable_jit_checkpoint",
    "resume_from_checkpoint",
    "resume_with_changes",
    "eval_steps",
    "save_steps",
    "num_train_epochs",
)


def run_bench(
    config: ExperimentConfig | Mapping[str, Any],
    *,
    steps: int = 20,
    warmup: int = 5,
    repeats: int = 5,
    threads: int | None = None,
    with_floor: bool = True,
    with_trainer: bool = False,
    task: Task | None = None,
    on_repeat: Callable[[int, list[Block]], None] | None = None,
) -> BenchResult:
    """Time the training step that a configuration describes, part by part and against bare loops.

    Each repeat runs a block of every loop, one after the other, in an order that rotates: the real
    `DistillationTrainer.train()`; the same with a clock around every part; plain PyTorch on the same rows with the
    same optimizer and precision, for both models and for the student alone; on request the plain `Trainer` on the
    student alone. Ratios are paired within a repeat, so that a machine whose speed drifts changes them little.

    Nothing is evaluated or saved: `output_dir` is left alone. The teacher is not checked against guessing. Launched on
    several processes, all of them must call this, and each gets its own times.

    Args:
        config: A checked configuration, or a mapping to check.
        steps: Optimizer steps per block, >= 1.
        warmup: Steps of each block before its clock starts, >= 1.
        repeats: Blocks of each loop, >= 2.
        threads: For torch on the processor; None leaves it as it is.
        with_floor: Also time the bare loops. They need a second student with an optimizer of its own.
        with_trainer: Also time the plain `Trainer`.
        task: The data that `config.data` describes, where the caller has loaded it already.
        on_repeat: Told, after each repeat, its number from 0 and its blocks.

    Raises:
        ConfigError: The configuration is wrong, or what it names cannot be loaded or does not fit together.
        ValueError: A number of steps or repeats is too small.
    """
    for name, value, low in (("steps", steps, 1), ("warmup", warmup, 1), ("repeats", repeats, LEAST_REPEATS)):
        check_number("run_bench", name, value, "it counts what is timed. Pass e.g. 5.", low=low, whole=True)
    if threads is not None:
        check_number("run_bench", "threads", threads, "it counts threads of torch. Pass e.g. 1.", low=1, whole=True)
    config = config if isinstance(config, ExperimentConfig) else parse_config(config)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, number_of_threads(threads):
        loops = Loops(timed_config(config, folder, warmup + steps), task, steps, warmup)
        loops.settle()
        notes = loops.prepare(with_floor, with_trainer)
        blocks = []
        for repeat in range(repeats):
            blocks += loops.repeat(repeat)
            if on_repeat is not None:
                on_repeat(repeat, blocks[-len(loops.loops) :])
        settings = {"steps": steps, "warmup": warmup, "repeats": repeats, "threads": torch.get_num_threads()}
        return loops.result(config, settings, notes, blocks)


@contextmanager
def number_of_threads(wanted: int | None) -> Iterator[None]:
    """So many threads of torch inside, and what there were after it."""
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(int(wanted))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed_config(config: ExperimentConfig, folder: str, max_steps: int) -> ExperimentConfig:
    """The same run, a few steps long, that leaves nothing behind."""
    training = {key: value for key, value in config.training.items() if key not in _NOT_TIMED}
    training = {**training, **_QUIET, "max_steps": max_steps}
    return config.model_copy(update={"training": training, "output_dir": folder})


class Loops:
    """The loops of one bench.

    Args:
        config: What `timed_config` returned.
        task: The data, where they are loaded already.
        steps: Per block.
        warmup: Before each.
    """

    def __init__(self, config: ExperimentConfig, task: Task | None, steps: int, warmup: int):
        self.config, self.steps, self.warmup = config, steps, warmup
        self.memory, self.memory_bytes = Memory(), None
        self.args = build_arguments(config)
        self.task = build_task(config) if task is None else task
        set_seed(config.seed)  # as in a run
        student = build_student(config.student, self.task, config.teacher)
        is_read = config.teacher_cache is None or config.student.init_layers is not None
        teacher = build_teacher(config.teacher, self.task) if is_read else None  # else if the cache lacks answers
        if config.student.init_layers is not None:
            take_over_layers(config.student, student, teacher, config.teacher, self.task)
        side, cached = side_of(config, teacher, student, self.task, ("train",))
        self.task = side.task
        self.trainer = build_trainer(config, self.args, side, student, teacher, [], cached)
        if cached is not None:
            fill_for(self.trainer, cached, self.task, ("train",))
        if self.trainer.teacher is not None:
            self.trainer.teacher.is_vouched_for = True  # nothing is learned here that a wrong teacher could spoil
        self.bare: BareLoop | None = None
        self.plain: Trainer | None = None
        self.loops: dict[str, Callable[[], tuple[Clock, int | None, dict[str, float] | None]]] = {}

    @property
    def is_live(self) -> bool:
        """Whether a teacher answers in each step."""
        return self.is_taught and self.trainer.teacher is not None and not self._is_stored

    @property
    def _is_stored(self) -> bool:
        config = self.config
        return config.teacher_cache is not None or (config.teacher is not None and config.teacher.column is not None)

    @property
    def is_taught(self) -> bool:
        """Whether a step looks at a teacher's answers."""
        return self.trainer.objective.needs_teacher

    def settle(self) -> None:
        """A first block that is not timed; its memory is, before the other loops bring models of their own."""
        self.memory.begin(self.trainer.accelerator.device)
        self._clocked(self.memory)
        self.memory_bytes = self.memory.end()

    def prepare(self, with_floor: bool, with_trainer: bool) -> list[str]:
        """Make the other loops.

        Returns:
            What cannot be measured.
        """
        notes = []
        self.loops = {OURS: self._ours, CLOCKED: self._clocked}
        problem = floor_problem(self.trainer) if with_floor else None
        if problem is not None:
            notes.append(problem)
        elif with_floor:
            self.bare = BareLoop(self.trainer, self._another_student())
            if self.is_taught:
                self.loops[BARE_BOTH] = lambda: self._bare(True)
            self.loops[BARE_STUDENT] = lambda: self._bare(False)
        if with_trainer:
            self._add_plain_trainer(notes)
        if self.trainer.mixing is not None and self.bare is not None:
            notes.append("Rows are mixed (mixup, CutMix) in the training, not in the bare loops.")
        return notes

    def repeat(self, number: int) -> list[Block]:
        """One block of each loop."""
        names = list(self.loops)
        turn = number % len(names)
        blocks = []
        for place, name in enumerate(names[turn:] + names[:turn]):
            clock, rows, parts = self._timed(name)
            rows = None if rows is None else rows * self.trainer.accelerator.num_processes
            blocks.append(Block(name, number, place, self.steps, clock.seconds, clock.cpu_seconds, rows, parts))
        return blocks

    def _timed(self, name: str) -> tuple[Clock, int | None, dict[str, float] | None]:
        try:
            return self.loops[name]()
        except torch.OutOfMemoryError as error:
            if name in (OURS, CLOCKED) and self.bare is None and self.plain is None:
                raise
            raise ConfigError(
                [
                    "training.per_device_train_batch_size: training fits on the device, but not beside the second "
                    "student, with its optimizer, of the loops that it is compared with. Lower it, or do without "
                    "them: --no-floor, and no --trainer."
                ]
            ) from error

    def _another_student(self) -> torch.nn.Module:
        """One with the same weights at the start, and none in common."""
        set_seed(self.config.seed)
        return build_student(self.config.student, self.task, self.config.teacher)

    # ---- The loops: a stopped clock, rows of this process if counted, and seconds of parts

    def _ours(self) -> tuple[Clock, None, None]:
        return self._train(self.trainer, BlockTimer(self.trainer.accelerator.device, self.warmup)), None, None

    def _clocked(self, memory: Memory | None = None) -> tuple[Clock, int, dict[str, float]]:
        clocks = PartClocks(self.trainer, memory)
        timer = BlockTimer(clocks.device, self.warmup, clocks.reset)
        self.trainer.add_callback(clocks)
        try:
            with clocks.attached():
                clock = self._train(self.trainer, timer)
        finally:
            self.trainer.remove_callback(clocks)
        return clock, clocks.rows, clocks.parts(clock.seconds)

    def _bare(self, with_teacher: bool) -> tuple[Clock, int, None]:
        return *self.bare.run(self.warmup, self.steps, with_teacher), None

    def _plain(self) -> tuple[Clock, None, None]:
        return self._train(self.plain, BlockTimer(self.plain.accelerator.device, self.warmup)), None, None

    def _train(self, trainer: Trainer, timer: BlockTimer) -> Clock:
        trainer.add_callback(timer)  # after the trainer's own, so that what they do in a step is inside
        try:
            trainer.train()
        finally:
            trainer.remove_callback(timer)
        if not timer.is_done:
            raise ConfigError(
                [
                    f"data: training ended after {trainer.state.global_step} of {trainer.state.max_steps} steps, "
                    "before the clock stopped. Give it more rows, or time fewer steps."
                ]
            )
        return timer.clock

    def _add_plain_trainer(self, notes: list[str]) -> None:
        if self.task.num_labelled == 0:
            notes.append("The plain Trainer was not timed: no row has a label, and it has no other loss.")
            return
        ours, student = self.trainer, self._another_student()
        self.plain = Trainer(
            student,
            self.args,
            data_collator=_StudentRows(ours, model_columns(student)),
            train_dataset=self.task.train,
            callbacks=[],
        )
        self.plain.remove_callback(PrinterCallback)
        self.loops[PLAIN_TRAINER] = self._plain

    # ---- What it all was

    def result(
        self, config: ExperimentConfig, settings: dict[str, Any], notes: list[str], blocks: list[Block]
    ) -> BenchResult:
        """Everything, with what it was measured on."""
        return BenchResult(
            settings=settings,
            environment=_environment(self.args),
            config=config.to_mapping(),
            setup=self._setup(),
            profile=self._profile(),
            cache=self._cache() if self.is_live else None,
            memory_bytes=self.memory_bytes,
            memory_kind=self.memory.kind,
            notes=notes,
            blocks=blocks,
        )

    def _setup(self) -> dict[str, Any]:
        trainer, args, teacher = self.trainer, self.args, self._teacher_model
        processes = trainer.accelerator.num_processes
        return {
            "data": self.config.data.name or self.config.data.path,
            "data_fingerprint": self.task.fingerprint,
            "rows_are": f"{self.task.modality}s",
            "losses": list(trainer.objective.names),
            "student_parameters": plain_parameters(trainer.accelerator.unwrap_model(trainer.model)),
            "teacher_parameters": None if teacher is None else teacher.num_parameters(),
            "teacher": "live" if self.is_live else "stored" if self._is_stored else "none",
            "rows_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * processes,
            "precision": trainer.accelerator.mixed_precision,
            "optimizer": args.optim.value,
        }

    @property
    def _teacher_model(self) -> Any:
        """The teacher, where it is a model of its own."""
        model = None if self.trainer.teacher is None or self._is_stored else self.trainer.teacher.model
        return model if isinstance(model, torch.nn.Module) else None

    def _profile(self) -> dict[str, Any]:
        """What the rules read beside the shares."""
        device, teacher = self.trainer.accelerator.device, self._teacher_model
        return {
            "device": device.type,
            "has_bf16": device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
            "precision": self.trainer.accelerator.mixed_precision,
            "teacher_dtype": None if teacher is None else _dtype(teacher),
            "student_dtype": _dtype(self.trainer.model),
            "num_workers": self.args.dataloader_num_workers,
            "can_cache": self.is_live and self._why_not_stored() is None,
        }

    def _cache(self) -> CacheEstimate:
        classes = getattr(getattr(self._teacher_model, "config", None), "num_labels", self.task.num_labels)
        return CacheEstimate(self.task.num_train_rows, classes, self._why_not_stored(), self._is_varied)

    @property
    def _is_varied(self) -> bool:
        """Whether training rows look different in each epoch."""
        return self.config.data.augmentation is not None or self.trainer.mixing is not None

    def _why_not_stored(self) -> str | None:
        """Why answers of a live teacher, given once, would not be those of a step, or cannot be kept."""
        if self.config.teacher is not None and self.config.teacher.model == SELF:
            return "the teacher is the student without its adapter"
        if self.config.data.streaming and self._is_varied:
            return "the rows of a stream are augmented as they pass, and no view comes again"
        return None


class _StudentRows:
    """Batches for a `Trainer` that knows nothing of a teacher: the student's columns and the labels."""

    def __init__(self, ours: DistillationTrainer, columns: list[str] | None):
        self.collator, self.label_name, self.columns = ours.data_collator, ours.label_name, columns

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collator(rows)
        return {**student_inputs(batch, self.columns), "labels": batch[self.label_name]}


def _dtype(model: torch.nn.Module) -> str:
    """The name of the floating-point type that a model is held in."""
    weights = (p for p in model.parameters() if p.is_floating_point())
    return str(next(weights).dtype).removeprefix("torch.")


def _environment(args: Any) -> dict[str, Any]:
    found = {**environment(args), "platform": platform.platform(), "processor": _processor_name()}
    found["processors"] = os.cpu_count()
    if args.device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(args.device)
        found["cuda"] = torch.version.cuda
    return found


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())

"""Clocks for the Trainer's loop: one around a block of steps, and, in runs of their own, one around every part."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_pt_utils import find_batch_size

from .memory import Memory
from .result import BACKWARD, DATA, OBJECTIVE, OPTIMIZER, OTHER, PARTS, STUDENT, TEACHER


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a processor always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Clock:
    """Wall-clock seconds and the processor's, of this process with all its threads."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = self.cpu_seconds = 0.0

    def start(self) -> None:
        """From here, once the device is idle."""
        synchronize(self.device)
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> "Clock":
        """To here, once it is idle again."""
        synchronize(self.device)
        self.seconds = time.perf_counter() - self._began[0]
        self.cpu_seconds = time.process_time() - self._began[1]
        return self


class BlockTimer(TrainerCallback):
    """Times the steps of one `train()` after the first `warmup` ones, from the end of a step to the end of a step.

    Everything that the loop does between two steps is inside: data, logs, callbacks. The device is waited for at both
    ends and nowhere between.

    Args:
        device: Of the training.
        warmup: Steps before the clock starts, >= 1: the first ones start workers and allocate memory.
        on_start: Called as it starts.
    """

    def __init__(self, device: torch.device, warmup: int, on_start: Callable[[], None] = lambda: None):
        self.warmup, self.on_start = warmup, on_start
        self.is_done = False
        self.clock = Clock(device)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Start, or stop."""
        if state.global_step == self.warmup:
            self.on_start()
            self.clock.start()
        elif state.global_step == state.max_steps:
            self.clock.stop()
            self.is_done = True


class PartClocks(TrainerCallback):
    """Adds up the time of every part of a step of a `DistillationTrainer`.

    Parts nest, and each counts what it does itself: the objective is `compute_loss` without the two forwards inside.
    On an accelerator each border waits for the device, so that work counts where it was asked for; that keeps data,
    host and device from overlapping, and is why these runs are not the ones that say how long a step takes.

    Args:
        trainer: Whose loop.
        memory: Told when memory is likely to be at its peak.
    """

    def __init__(self, trainer: Any, memory: Memory | None = None):
        self.trainer, self.memory = trainer, memory
        self.device = trainer.accelerator.device
        self.seconds: dict[str, float] = {}
        self.rows = 0
        self._stack: list[str] = []
        self._mark = 0.0
        self._patches = ExitStack()
        self.reset()

    def reset(self) -> None:
        """Count from here."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.rows = 0

    def parts(self, total: float) -> dict[str, float]:
        """Seconds of each part; what is left of `total` is `other`."""
        return {**self.seconds, OTHER: total - sum(self.seconds.values())}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside, but for parts inside that."""
        self._turn()
        self._stack.append(name)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()
            if name == STUDENT and self.memory is not None:
                self.memory.sample()

    def _turn(self) -> None:
        """Give the time since the last border to the part that is running."""
        synchronize(self.device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._mark
        self._mark = now

    # ---- Where the clocks are put

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Clocks on what the loop calls; off again at the end."""
        trainer = self.trainer
        with ExitStack() as patches:
            self._patches = patches
            self._wrap(trainer, "compute_loss", self._loss)
            self._wrap(trainer, "get_batch_samples", self._batches)
            self._around(trainer, "_mixed", DATA)
            self._around(trainer, "_teacher_logits", TEACHER)
            self._around(trainer.accelerator, "backward", BACKWARD)
            for name in ("_clip_grad_norm", "_get_grad_norm"):
                self._around(trainer, name, OPTIMIZER)
            yield

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Clocks on what each `train()` makes anew."""
        trainer = self.trainer
        self._around(trainer.optimizer, "step", OPTIMIZER)
        self._around(trainer.lr_scheduler, "step", OPTIMIZER)
        self._around(trainer.model_wrapped, "zero_grad", OPTIMIZER)
        for name in ("average", "synchronize", "step"):
            self._around(trainer._objective_state, name, OBJECTIVE)
        for name in ("flush", "raise_if_non_finite"):
            self._around(trainer._telemetry, name, OBJECTIVE)
        self._around(trainer._teacher_check, "report", OBJECTIVE)

    def _wrap(self, owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
        """Put `make(method)` in the place of a method of one object."""
        own = vars(owner).get(name)
        setattr(owner, name, make(getattr(owner, name)))
        self._patches.callback(lambda: delattr(owner, name) if own is None else setattr(owner, name, own))

    def _around(self, owner: Any, name: str, part: str) -> None:
        def make(method: Callable) -> Callable:
            @functools.wraps(method)  # schedulers look for a mark that they left on the optimizer's step
            def clocked(*args: Any, **kwargs: Any) -> Any:
                with self.part(part):
                    return method(*args, **kwargs)

            return clocked

        self._wrap(owner, name, make)

    def _loss(self, method: Callable) -> Callable:
        def clocked(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with self.part(OBJECTIVE):
                return method(_Clocked(model, self), *args, **kwargs)

        return clocked

    def _batches(self, method: Callable) -> Callable:
        def clocked(epoch_iterator: Iterator, *args: Any, **kwargs: Any) -> Any:
            with self.part(OBJECTIVE):  # rows are counted there, for the loss
                batches, counts = method(self._drawn(epoch_iterator), *args, **kwargs)
            self.rows += sum(find_batch_size(batch) or 0 for batch in batches)
            return batches, counts

        return clocked

    def _drawn(self, epoch_iterator: Iterator) -> Iterator:
        while True:
            with self.part(DATA):
                batch = next(epoch_iterator, None)
            if batch is None:
                return
            yield batch


class _Clocked:
    """The student as `compute_loss` sees it, with a clock around the call; a teacher that is the same model has none.

    Args:
        model: The student, as the Trainer wrapped it.
        clocks: Where its time goes.
    """

    def __init__(self, model: nn.Module, clocks: PartClocks):
        self.model, self.clocks = model, clocks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.clocks.part(STUDENT):
            return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

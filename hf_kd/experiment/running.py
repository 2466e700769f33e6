"""A run as a process among others: its folder is its own, and it saves before it is made to end."""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback
from transformers.utils import logging

from ..registry import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows, where folders cannot be locked
    fcntl = None

logger = logging.get_logger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a process that SIGTERM ended, as shells say it."""

PATIENCE = 8.0
"""Seconds to wait for a folder: the data loader's workers of a killed run hold it for up to five."""


class TrainingStopped(SystemExit):
    """SIGTERM came; the run is saved and can be resumed.

    A `SystemExit`, for that is what the signal asks for: uncaught, it ends the process with the code 143.
    """

    def __init__(self, text: str):
        super().__init__(TERMINATED)
        self.text = text

    def __str__(self) -> str:
        """What to do next."""
        return self.text


class SaveAtSignal(TrainerCallback):
    """After SIGTERM, saves at the end of the step and stops training.

    The option of `transformers` (`enable_jit_checkpoint`) saves in the middle of a step, from where no run goes on as
    it would have, and returns as if training were over.

    Several processes tell each other at the end of each step, so that all stop after the same one, whichever got the
    signal. They talk beside the training, between processors: no device is waited for.
    """

    def __init__(self):
        self.is_asked = False
        self.is_stopping = False
        self._others: _Others | None = None

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop, once any process is asked."""
        is_asked = self.is_asked
        self.is_stopping = is_asked if self._others is None else self._others.any(is_asked)
        if self.is_stopping:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def watching(self, trainer: Any) -> Iterator[None]:
        """Answer SIGTERM inside.

        Raises:
            TrainingStopped: It came before the last step; every process has written what it writes.
        """
        is_one_of_many = trainer.args.world_size > 1
        can_hear = threading.current_thread() is threading.main_thread()
        if not can_hear and not is_one_of_many or is_one_of_many and not dist.is_initialized():
            yield
            return
        self._others = _Others(trainer.accelerator) if is_one_of_many else None
        trainer.add_callback(self)
        before = signal.signal(signal.SIGTERM, self._ask) if can_hear else None
        try:
            yield
            if self.is_stopping and self._others is not None:
                self._others.any(True)  # one that ends makes the launcher end the others
        finally:
            if can_hear:
                signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
            trainer.remove_callback(self)
        state = trainer.state
        if self.is_stopping and state.global_step < state.max_steps:
            saved = f"It is saved in {trainer.args.output_dir}; go on with training.resume_from_checkpoint=true."
            if trainer.args.save_only_model:
                saved = f"The student alone is saved in {trainer.args.output_dir} (save_only_model); start again."
            raise TrainingStopped(f"Stopped by SIGTERM after step {state.global_step} of {state.max_steps}. {saved}")

    def _ask(self, number: int, frame: Any) -> None:
        self.is_asked = True


class _Others:
    """The processes of a training, asked over a group of their own.

    Args:
        accelerator: Of the trainer; its own group is asked where no other can be made.
    """

    def __init__(self, accelerator: Any):
        self.accelerator, self.group = accelerator, None
        try:
            if dist.is_gloo_available():
                self.group = dist.new_group(backend="gloo")
        except RuntimeError as error:  # no network that gloo could use
            logger.warning(f"Processes ask each other for signals over the training's own group: {error}")
        has_none = torch.tensor(float(self.group is None), device=accelerator.device)
        if accelerator.reduce(has_none, reduction="sum").item() > 0:  # all or none
            self.group = None

    def any(self, here: bool) -> bool:
        """Whether it is so in any process; waits for all of them."""
        if self.group is None:
            count = self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), reduction="sum")
            return count.item() > 0
        flag = torch.tensor([int(here)], dtype=torch.int32)
        dist.all_reduce(flag, group=self.group)
        return flag.item() > 0


@contextmanager
def only_run_in(folder: Path, is_writer: bool = True) -> Iterator[None]:
    """Make `folder` and keep other runs out of it, as long as this process lives.

    Raises:
        ConfigError: It cannot be written to, or another run is going on in it.
    """
    if not is_writer:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise ConfigError(
            [f"output_dir: cannot write to {str(folder)!r}: {error.strerror}. Make room or choose another."]
        ) from error
    held = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        if held is not None:
            _lock(held, folder)
        yield
    finally:
        if held is not None:
            os.close(held)


def _lock(held: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ConfigError(
                    [
                        f"output_dir: another run is going on in {str(folder)!r}, and both would write the same "
                        "files. Wait for it to end, or choose another output_dir."
                    ]
                ) from error
            time.sleep(0.2)
        except OSError:  # a file system that cannot lock
            return None

"""A training that runs out of memory begins again with smaller batches (`auto_find_batch_size`), from its start."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .draws import generator_states, set_generator_states

logger = logging.get_logger(__name__)


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """What training changes of a model; a quantised or frozen base is as it was."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return parameters | dict(model.named_buffers())


class Attempt:
    """What a training begins with, to begin with it again.

    The Trainer starts the loop over with the weights, the optimizer and the random generators that the broken attempt
    left behind, and leaves its checkpoints where a run that is resumed finds them before its own.

    Args:
        trainer: About to enter its loop for the first time in a `train()`.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.batch_size = trainer._train_batch_size
        self.is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self.saved: list[Path] = []
        """Checkpoints of the attempt that goes on."""
        self.generators = generator_states()
        learned = {} if self.is_sharded else _learned(self._student())
        self.student = {name: value.detach().cpu().clone() for name, value in learned.items()}
        self.objective: dict[str, Tensor] | None = None
        self.optimizer = trainer.optimizer  # the user's, or that of the training before
        self.optimizer_state = None if self.optimizer is None else copy.deepcopy(self.optimizer.state_dict())
        has_own = trainer.lr_scheduler is not None and not trainer._created_lr_scheduler
        self.scheduler_state = copy.deepcopy(trainer.lr_scheduler.state_dict()) if has_own else None

    def _student(self) -> nn.Module:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def keep_objective(self) -> None:
        """Note the objective as it is bound to both models, or give it that state back."""
        objective = self.trainer.objective
        if self.objective is None:
            self.objective = {name: value.detach().cpu().clone() for name, value in objective.state_dict().items()}
        else:
            objective.load_state_dict(self.objective)

    def begin_again(self, batch_size: int, resume: str | None) -> None:
        """Put everything back for an attempt with `batch_size` rows.

        Args:
            batch_size: Of the new attempt.
            resume: The checkpoint that it goes on from.

        Raises:
            RuntimeError: The start is gone: weights are sharded, or the checkpoint was deleted meanwhile.
        """
        was, self.batch_size = self.batch_size, batch_size
        self._check_possible(was, resume)
        self._delete_saved(was, resume)
        with torch.no_grad():
            for name, value in _learned(self._student()).items():
                value.copy_(self.student[name])
                value.grad = None
        trainer = self.trainer
        trainer.current_flos = 0
        trainer.optimizer = self.optimizer
        if self.optimizer is not None:
            # groups that joined in the broken attempt join again
            del self.optimizer.param_groups[len(self.optimizer_state["param_groups"]) :]
            self.optimizer.load_state_dict(copy.deepcopy(self.optimizer_state))
        if self.scheduler_state is not None:
            trainer.lr_scheduler.load_state_dict(copy.deepcopy(self.scheduler_state))
        set_generator_states(self.generators)

    def _check_possible(self, was: int, resume: str | None) -> None:
        said = f"`auto_find_batch_size`: batches of {was} rows did not fit into memory, and"
        if self.is_sharded:
            raise RuntimeError(
                f"{said} a student that is sharded (FSDP, DeepSpeed) cannot be put back to where it started. Start "
                f"again with per_device_train_batch_size={self.batch_size}."
            )
        if resume is not None and not Path(resume).is_dir():
            last = f" from {self.saved[-1]}" if self.saved else ""
            raise RuntimeError(
                f"{said} the checkpoint {resume} that the run was resumed from is deleted meanwhile "
                f"(`save_total_limit`). Resume{last} with per_device_train_batch_size={self.batch_size} and without "
                "`auto_find_batch_size`."
            )

    def _delete_saved(self, was: int, resume: str | None) -> None:
        origin = "the beginning" if resume is None else resume
        present = [path.name for path in self.saved if path.is_dir()]
        gone = f" What was saved meanwhile is deleted: {', '.join(present)}." if present else ""
        logger.warning(
            f"Batches of {was} rows did not fit into memory: training starts over from {origin} with "
            f"{self.batch_size}.{gone}"
        )
        for path in self.saved if self.trainer.args.should_save else ():
            shutil.rmtree(path, ignore_errors=True)
        self.saved = []


def begin_attempt(trainer: Any, call: Mapping[str, Any], batch_size: int | None) -> None:
    """Note where a `train()` starts, or go back there.

    Args:
        trainer: Entering its loop.
        call: The keyword arguments of the loop.
        batch_size: The loop's first argument.
    """
    if not trainer.args.auto_find_batch_size:
        trainer._attempt = None
    elif trainer._attempt is None:
        trainer._attempt = Attempt(trainer)
    else:
        trainer._attempt.begin_again(batch_size, call.get("resume_from_checkpoint"))

"""What a training run writes to its checkpoints beside the student, and how it comes back."""

from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from ..heads import folded, raw_parts, reset, restore
from ..teacher import FrozenTeacher
from . import checks
from .attempts import Attempt
from .best import find_best
from .complete import check_has_optimizer, checkpoint_to_resume, clear, write_errors_in_words
from .hub import HubTrainer
from .identity import differences, identity
from .objective_state import GO_ON, describe, read_checkpoint, write_checkpoint
from .pickles import GENERATORS, PICKLED, SCALER, WEIGHTS, pickles_in_words
from .student_weights import is_plain_checkpoint, restore_weights

logger = logging.get_logger(__name__)

RAW_LAYER = "student_layer."
"""Prefix, in the state file, of the last layer's weights before the serialisation layer is folded into them."""


def _map_of(teacher: FrozenTeacher | None) -> dict[str, Any] | None:
    """Which of the teacher's classes was which of the student's."""
    return None if teacher is None or teacher.label_map is None else teacher.label_map.to_dict()


def check_same_run(checkpoint: str, then: Mapping[str, Any], now: Mapping[str, Any], may_differ: bool) -> None:
    """Refuse to go on from a checkpoint of another run, or say how they differ.

    Raises:
        ValueError: They differ and may not; names every difference.
    """
    wrong = differences(then, now)
    if not wrong:
        return
    said = f"`train(resume_from_checkpoint={checkpoint!r})` belongs to another run: {'; '.join(wrong)}."
    if not may_differ:
        raise ValueError(f"{said} Resume with what the run was started with, or start a new one.{GO_ON}")
    logger.warning(f"{said} It goes on all the same, as `resume_with_changes` says.")


class CheckpointingTrainer(HubTrainer):
    """The part of `DistillationTrainer` that saves and restores; it holds nothing of its own.

    Every `model.safetensors` is the plain student. Under task serialisation its last layer there is the folded one;
    the layer's raw weights are in our state file, from which a resumed run takes them.
    """

    told: Mapping[str, Any] = MappingProxyType({})
    """What else a run must share with the one that it resumes, plain values by name, for whoever knows."""

    _known_identity: dict[str, Any] | None = None
    _attempt: Attempt | None = None

    def _identity(self) -> dict[str, Any]:
        """What makes the run that goes on this one; looked up once."""
        if self._known_identity is None:
            self._known_identity = identity(self)
        return self._known_identity

    def train(
        self, resume_from_checkpoint: bool | str | PathLike | None = None, *args: Any, **kwargs: Any
    ) -> TrainOutput:
        """As in `Trainer`; True is the last checkpoint that is whole, and one that is not is refused.

        Args:
            resume_from_checkpoint: A checkpoint, or True for the last whole one in `output_dir`; half-written ones
                after it are deleted.
            *args: As in `Trainer`.
            **kwargs: As in `Trainer`.

        Raises:
            ValueError: The checkpoint is not whole, or belongs to another run.
        """
        resume, self._known_identity, self._attempt = resume_from_checkpoint or None, None, None
        if resume is not None:
            meet = self.accelerator.wait_for_everyone
            resume = checkpoint_to_resume(resume, self.args.output_dir, is_writer=self.args.should_save, meet=meet)
        return super().train(resume, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        """As in `Trainer`; what follows, the state and the end of older checkpoints, waits for every process."""
        super()._save_rng_state(output_dir)
        if self.accelerator.num_processes > 1:
            self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write our state first, so that what the Trainer then pushes or rotates is complete; never a broken run.

        The Trainer writes its state last, and then deletes older checkpoints: a run that is killed in between has one
        that is whole.
        """
        folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with write_errors_in_words(folder, self._last_saved):
            self._write_all(model, trial, folder)
        self._last_saved = str(folder)
        if self._attempt is not None:
            self._attempt.saved.append(folder)

    def _write_all(self, model: nn.Module, trial: Any, folder: Path) -> None:
        if self._telemetry is not None:
            self._telemetry.raise_if_non_finite(self.accelerator, self._last_saved)
            checks.check_weights(model, self.accelerator, self.state.global_step, self._last_saved)
        if self.args.should_save:
            clear(folder)  # before what follows, at which processes meet
        if self._telemetry is not None and not self.args.save_only_model:
            tensors = {
                **self._objective_state.state(),
                **self._telemetry.state(self.accelerator),
                "trainer.loss_window": self.accelerator.gather(self._tr_loss.reshape(1, 1)).cpu(),
                "trainer.total_loss": torch.tensor([self._total_loss_scalar], dtype=torch.float64),
            }
            if self._serialized_layer is not None:
                tensors |= {RAW_LAYER + name: part.cpu() for name, part in raw_parts(self._serialized_layer).items()}
            manifest = {
                "objective": describe(self.objective),
                "num_processes": self.accelerator.num_processes,
                "telemetry_names": list(self._telemetry.names),
                "label_map": _map_of(self.teacher),
                "run": self._identity(),
                "last_log_step": self._globalstep_last_logged,
                "first_loss_step": self._first_loss_step,
            }
            if self.args.should_save:
                write_checkpoint(folder, tensors, manifest)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As in `Trainer`; the student's last layer is saved with the serialisation layer in it."""
        if self._serialized_layer is None:
            super()._save(output_dir, state_dict)
        else:
            with folded(self._serialized_layer, self.objective.serialization):
                super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """As in `Trainer`, which reads state dicts straight; ours translates names the way `from_pretrained` does."""
        if model is None and is_plain_checkpoint(self.model, resume_from_checkpoint):
            restore_weights(self.model, resume_from_checkpoint)
        else:
            with pickles_in_words(resume_from_checkpoint, WEIGHTS):
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """As in `Trainer`, by the same route."""
        best = self.state.best_model_checkpoint
        if is_plain_checkpoint(self.model, best) and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            logger.info(f"Loading the best model, from {best}.")
            restore_weights(self.model, best)
        else:
            super()._load_best_model()
        if self._serialized_layer is not None:
            reset(self.objective.serialization)  # it came back in the student's last layer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in `Trainer`, then everything learned beside the student."""
        if checkpoint is not None:  # first, so that another objective is refused in our words
            may_differ = self.args.resume_with_changes
            self._resumed = read_checkpoint(Path(checkpoint), self.objective, may_differ)
            check_same_run(checkpoint, self._resumed[1].get("run", {}), self._identity(), may_differ)
            check_has_optimizer(Path(checkpoint), may_differ)
            find_best(self.state, checkpoint, self.args.output_dir, self.args.load_best_model_at_end)
            if self.args.auto_find_batch_size:
                self.state.train_batch_size = self._train_batch_size  # that of this attempt
            owners = {"optimizer.pt": self.optimizer, "scheduler.pt": self.lr_scheduler}
            with pickles_in_words(checkpoint, PICKLED, owners):
                super()._load_optimizer_and_scheduler(checkpoint)
            self._last_saved = checkpoint
            if self._resumed[0]:
                self._objective_state.load_state(self._resumed[0], checkpoint)
            raw = {k.removeprefix(RAW_LAYER): v for k, v in self._resumed[0].items() if k.startswith(RAW_LAYER)}
            if self._serialized_layer is not None and raw:
                restore(self._serialized_layer, raw)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """As in `Trainer`, with errors in words."""
        with pickles_in_words(checkpoint, SCALER) if checkpoint is not None else nullcontext():
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As in `Trainer`, with errors in words."""
        with pickles_in_words(checkpoint, GENERATORS) if checkpoint is not None else nullcontext():
            super()._load_rng_state(checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`, which makes one step more in a run that was killed after its last one."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self._load_rng_state(kwargs.get("resume_from_checkpoint"))
            self.control.should_training_stop = True

    def _restore_window(self) -> None:
        """Continue the logging window of a resumed run, so that its next record is the uninterrupted run's."""
        tensors, manifest = self._resumed
        self._resumed = ({}, {})
        self._last_flush_step = self.state.global_step
        self._first_loss_step = self.state.global_step
        if not tensors or manifest.get("num_processes") != self.accelerator.num_processes:
            return
        index = self.accelerator.process_index
        self._telemetry.load_state(tensors, manifest["telemetry_names"], index)
        self._tr_loss = tensors["trainer.loss_window"][index].reshape(()).to(self._tr_loss)
        self._total_loss_scalar = tensors["trainer.total_loss"].item()
        self._globalstep_last_logged = self._last_flush_step = manifest["last_log_step"]
        self._first_loss_step = manifest["first_loss_step"]

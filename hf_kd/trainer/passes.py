"""Passes over rows without a length, whose epochs the Trainer only guesses at."""

import os
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..objective import DistillationObjective
from .checkpoints import CheckpointingTrainer

logger = logging.get_logger(__name__)


def check_whole_epochs(objective: DistillationObjective) -> None:
    """Refuse what changes within an epoch where nobody knows how long one is.

    Raises:
        ValueError: A loss that does, over rows without a length.
    """
    for loss in objective.active_losses:
        if loss.epochs_apart is not None and loss.epochs_apart != int(loss.epochs_apart):
            raise ValueError(
                f"`{type(loss).__name__}` changes every {loss.epochs_apart:g} epochs, and `train_dataset` has no "
                "length: only whole passes over it can be counted. Give the schedule as a share of the run (such as "
                "`first_phase`), or whole epochs per stage, or the data set a `__len__`."
            )


class PassTrainer(CheckpointingTrainer):
    """The part of `DistillationTrainer` that counts passes over a stream.

    The Trainer takes all steps of a training for one pass over a stream. What it calls the epoch is then the passes
    done plus the share of the whole training that this pass has taken, and a resumed training begins again with the
    first pass. Here a stream's epoch is the passes done, a whole number, and a resumed training goes on in the pass
    that it was in.
    """

    _pass = 0
    _is_endless = False
    _is_told_of_rest = False

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """As in `Trainer`; remembers whether the rows have a length."""
        self._is_endless = not has_length(dataloader)
        if self._is_endless:
            check_whole_epochs(self.objective)
        return super().set_initial_training_values(args, dataloader)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial,
    ) -> tuple[int, int]:
        """As in `Trainer`; where rows have no length, the pass and its batches are read from the checkpoint."""
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if not self._is_endless or resume_from_checkpoint is None:
            return trained
        saved = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, "trainer_state.json"))
        passes = int(saved.epoch or 0)
        batches = saved.max_steps * self.args.gradient_accumulation_steps  # the Trainer's idea of a pass
        done = round(((saved.epoch or 0) - passes) * batches)
        return passes, 0 if self.args.ignore_data_skip else done

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; remembers which pass it is."""
        self._pass = epoch
        return super()._run_epoch(model, epoch, *args, **kwargs)

    def _current_epoch(self) -> int:
        """The one that begins or goes on, from 0."""
        return self._pass

    def _epochs_done(self) -> float:
        """Epochs so far; of a stream whole ones only, as nobody knows which part of a pass is done."""
        return float(self._pass if self._is_endless else self.state.epoch or 0.0)

    def _whole_steps(self, batches: list, wanted: int) -> list:
        """The micro-batches of an optimizer step; none where a stream ends within one.

        The Trainer would add their gradients, scaled as a whole step, to those of the next pass's first step.
        """
        if not self._is_endless or len(batches) in (0, wanted):
            return batches
        if not self._is_told_of_rest:
            self._is_told_of_rest = True
            logger.warning(
                f"A pass over `train_dataset` ends with {len(batches)} of the {wanted} micro-batches of an optimizer "
                "step. Rows without a length leave such a rest out."
            )
        return []

"""The best checkpoint of a run that is resumed, in the folder where it now lies."""

import os
import re
from pathlib import Path

from transformers import TrainerState
from transformers.utils import logging

from .complete import STATE

logger = logging.get_logger(__name__)


def find_best(state: TrainerState, checkpoint: str, run_dir: str, is_wanted: bool) -> None:
    """Let the state name its best checkpoint where it is, in the words of this run.

    The state names it by a path. In a run that was moved, or is now named otherwise, that is no folder, or another
    run's: the best model would not be loaded at the end, or not be spared when old checkpoints are deleted.

    Args:
        state: Of the run that goes on; changed in place.
        checkpoint: The one that it goes on from.
        run_dir: Where this run saves.
        is_wanted: Whether the best model is to be loaded at the end.
    """
    recorded = TrainerState.load_from_json(str(Path(checkpoint) / STATE)).best_model_checkpoint
    if recorded is None:
        return
    beside = Path(checkpoint).parent
    if Path(run_dir).is_dir() and os.path.samefile(beside, run_dir):
        beside = Path(run_dir)  # the Trainer compares names, not folders
    found = os.path.join(beside, re.split(r"[\\/]", recorded)[-1])
    if os.path.isdir(found):
        state.best_model_checkpoint = found
    elif state.best_model_checkpoint is None and is_wanted:
        logger.warning(
            f"The best checkpoint so far, {found}, is gone: unless a later one is better, the run ends with the "
            "weights of its last step."
        )

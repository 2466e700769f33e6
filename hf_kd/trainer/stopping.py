"""Early stopping that counts right when a run is resumed, repeated or evaluated on several sets."""

from typing import Any

from transformers import EarlyStoppingCallback

from ..training_args import DistillationTrainingArguments
from .objective_state import ObjectiveSteps


class EarlyStopping(EarlyStoppingCallback):
    """As `EarlyStoppingCallback`, with a count that belongs to one run.

    The callback of `transformers` keeps counting into the next `train()`, and starts again from 0 when a run is
    resumed. This one begins each run at 0 and a resumed one where its checkpoint was. On several evaluation sets it
    looks at the one that has the metric, and says nothing about the others.
    """

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Take up the count of the checkpoint, or none."""
        super().on_train_begin(args, state, control, **kwargs)
        name, counted = type(self).__name__, "early_stopping_patience_counter"
        saved = (state.stateful_callbacks or {}).get(name) if state.global_step else None
        saved = saved[0] if isinstance(saved, list) else saved
        self.early_stopping_patience_counter = (saved or {}).get("attributes", {}).get(counted, 0)

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        """Count, if this is the set with the metric; the Trainer itself refuses a metric that no set has."""
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def add_own_callbacks(trainer: Any) -> None:
    """What a `DistillationTrainer` adds to the callbacks that it is given."""
    args: DistillationTrainingArguments = trainer.args
    trainer.add_callback(ObjectiveSteps(trainer))
    if args.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(args.early_stopping_patience, args.early_stopping_threshold))

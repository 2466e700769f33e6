"""How far each weight steps, as in the papers' recipes: multi-step schedules, weight decay of everything."""

from collections.abc import Sequence

import torch
from torch import nn

from .data import DataTrainer


class ScheduledTrainer(DataTrainer):
    """The part of `DistillationTrainer` that knows the papers' learning rates and weight decay."""

    _updates_per_epoch: float | None = None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As in `Trainer`, which spares biases and normalisation; or all of them."""
        if self.args.weight_decay_everywhere:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def set_initial_training_values(self, args, dataloader):
        """As in `Trainer`; remembers the optimizer steps per epoch for `lr_milestones`."""
        values = super().set_initial_training_values(args, dataloader)
        self._updates_per_epoch = values[1]
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """`lr_milestones` if given, else as in `Trainer`."""
        if self.args.lr_milestones and self.lr_scheduler is None:
            self.lr_scheduler = multi_step_schedule(
                optimizer or self.optimizer,
                milestones=self.args.lr_milestones,
                gamma=self.args.lr_gamma,
                updates_per_epoch=self._updates_per_epoch or num_training_steps / self.args.num_train_epochs,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
            )
            self._created_lr_scheduler = True
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        for group in (optimizer or self.optimizer).param_groups:
            group.setdefault("initial_lr", group["lr"])  # most schedulers do; the temperatures follow the ratio
        return scheduler


def multi_step_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    milestones: Sequence[float],
    gamma: float,
    updates_per_epoch: float,
    warmup_steps: int = 0,
) -> torch.optim.lr_scheduler.LambdaLR:
    r"""Multiply the learning rate by `gamma` after each of the given epochs, with an optional linear warm-up.

    \(lr(s) = lr \cdot \min(1, s / warmup) \cdot \gamma^{|\{m : s \ge m \cdot updates\_per\_epoch\}|}\)

    Args:
        optimizer: Whose learning rate it is.
        milestones: Epochs, e.g. `[150, 180, 210]`.
        gamma: The factor at each.
        updates_per_epoch: Optimizer steps per epoch.
        warmup_steps: Steps of linear warm-up from 0.
    """
    steps = [milestone * updates_per_epoch for milestone in milestones]

    def factor(step: int) -> float:
        warmup = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
        return warmup * gamma ** sum(step >= milestone for milestone in steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

"""The multi-step learning-rate schedule of the papers' recipes, which the Trainer lacks."""

from collections.abc import Sequence

import torch


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

"""What a number for each pair of classes takes: said, or refused, before it is allocated."""

import os
import warnings
from pathlib import Path

import torch
from torch import nn

WORTH_SAYING = 2**30
"""Bytes."""


def check_pairs(owner: str, num_labels: int, copies: int, device: torch.device, dtype: torch.dtype) -> None:
    """Warn of class-by-class matrices that take more than 1 GiB, and refuse those that have no room.

    Args:
        owner: Who needs them, for the message.
        num_labels: Classes.
        copies: How many such matrices there are at a time.
        device: Where.
        dtype: Of their numbers.

    Raises:
        ValueError: They take more than the device has in all.
    """
    needed = copies * num_labels**2 * dtype.itemsize
    if needed < WORTH_SAYING:
        return
    said = (
        f"{owner} needs {copies} numbers for each pair of the {num_labels:,} classes at a time: "
        f"{needed / 2**30:.1f} GiB on {device.type!r}"
    )
    there = device_memory(device)
    if there is not None and needed > there:
        raise ValueError(
            f"{said}, which has {there / 2**30:.1f} GiB in all. Use a method without such a matrix (`kd`, `dkd`, "
            "`dist`), or distil fewer classes."
        )
    warnings.warn(f"{said}, beside the models.", stacklevel=3)


def device_memory(device: torch.device) -> int | None:
    """Bytes that a device has in all, used or not; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.type == "cpu" else None
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes of a device that could be had now; all that it has where the system does not say, None if nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if device.type == "cpu" else []
    except OSError:  # not on every system
        lines = []
    said = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return said[0] if said else device_memory(device)


def identity_layer(size: int, bias: bool) -> nn.Linear:
    """A square linear layer that does nothing yet: that of task serialisation.

    Raises:
        ValueError: There is no room for it, its gradient and the two moments of Adam.
    """
    owner = "`DistillationObjective(task_serialization=True)`, with a gradient and an optimizer's state,"
    check_pairs(owner, size, 4, torch.device("cpu"), torch.get_default_dtype())
    layer = nn.Linear(size, size, bias=bias)
    nn.init.eye_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer

"""What a comparison ran on: numbers of seconds mean nothing without it."""

import os
import platform
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """Processor, cores, threads, memory and devices of this machine, as this process sees them.

    Memory is in bytes; None where the system does not say.
    """
    return {
        "platform": platform.platform(),
        "cpu": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory": _memory(),
        "devices": [
            {"name": found.name, "memory": found.total_memory}
            for found in (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        ],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None

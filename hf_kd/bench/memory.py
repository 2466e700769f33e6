"""How much memory training takes."""

import sys
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None

ON_CUDA = "peak of the device memory that torch allocated, in the first process"
RESIDENT = "growth of the process's resident memory since before data and models were loaded"


def resident_bytes() -> int | None:
    """What this process holds in memory now; on a system that does not say, the most it ever held; None on others."""
    statm = Path("/proc/self/statm")
    if statm.is_file() and resource is not None:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Memory:
    """The peak between `begin` and `end`. Made before anything is loaded."""

    def __init__(self):
        self.before = resident_bytes()
        self.most = self.before
        self.device = torch.device("cpu")

    @property
    def kind(self) -> str:
        """What is measured, in words."""
        return ON_CUDA if self.device.type == "cuda" else RESIDENT

    def begin(self, device: torch.device) -> None:
        """Watch from here; `sample` is called where the peak may be."""
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Look at resident memory; a CUDA device keeps its peak itself."""
        if self.device.type != "cuda" and self.before is not None:
            self.most = max(self.most, resident_bytes())

    def end(self) -> int | None:
        """The peak in bytes; None where the system does not say."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        self.sample()
        return None if self.before is None else self.most - self.before

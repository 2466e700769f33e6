"""Where the time of a training step goes, and how far the step is from a bare loop of the same models."""

from .advice import RULES, Profile, Rule, first_thing
from .cache import CacheEstimate
from .result import PARTS, BenchResult, Block, Spread, check_output, read_bench, write_bench
from .run import run_bench

__all__ = [
    "PARTS",
    "RULES",
    "BenchResult",
    "Block",
    "CacheEstimate",
    "Profile",
    "Rule",
    "Spread",
    "check_output",
    "first_thing",
    "read_bench",
    "run_bench",
    "write_bench",
]

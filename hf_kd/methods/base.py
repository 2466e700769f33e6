"""What an entry of the table of methods holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """Hyperparameters and the sentence, table or file they come from."""

    values: Mapping[str, Any]
    source: str


@dataclass(frozen=True)
class Method:
    """A published method.

    Args:
        title: One line for tables.
        strategy: Registry key of its temperature strategy.
        loss: Registry key of its loss, which gets `parameters`.
        sample_weight: Key of its sample weight in `WEIGHTS`; None for none.
        formula: The objective, in plain text.
        paper: Citation in one line.
        url: Where to read it.
        default: What `build_objective` uses without a benchmark.
        benchmarks: The paper's values per benchmark.
        pairs: `benchmark -> "teacher-student" -> values`, where the paper tunes per pair.
        parameters: Parameters beyond the weights, the warm-up and the strategy's own.
        hosts: Other strategies that may be plugged in under this name; None for any.
        notes: What to know before use.
    """

    title: str
    strategy: str
    formula: str
    paper: str
    url: str
    default: Setting
    benchmarks: Mapping[str, Setting] = field(default_factory=dict)
    pairs: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    loss: str = "kd"
    sample_weight: str | None = None
    parameters: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = ()
    notes: str = ""


def paper_url(arxiv: str) -> str:
    """Where to read an arXiv paper."""
    return f"https://huggingface.co/papers/{arxiv}"

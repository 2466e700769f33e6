"""Runs that a comparison needs done before it, such as its teacher's: trained by themselves, once."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..experiment.config import ExperimentConfig, load_mapping, parse_config
from ..experiment.run import RESULTS, run_experiment
from ..registry import ConfigError
from ..trainer.complete import last_complete
from .section import COMPARE
from .single import Event
from .watching import Steps


@dataclass(frozen=True)
class First:
    """A run that comes first.

    Args:
        path: Its file.
        config: What stands in it, with the data read from where the comparison reads them.
    """

    path: str
    config: ExperimentConfig

    @property
    def is_done(self) -> bool:
        """Whether it came to its end, in this start or an earlier one."""
        return (Path(self.config.output_dir) / RESULTS).is_file()


def first_runs(paths: Sequence[str], config: Mapping[str, Any]) -> list[First]:
    """Read them, and make their folders, so that what names them can be checked.

    Args:
        paths: Of their files.
        config: The comparison's run. Where one reads the same data set, it does so from the same `data.path`.

    Raises:
        ConfigError: Every problem found, each with its path.
    """
    found, problems = [], []
    for index, path in enumerate(paths):
        at = f"{COMPARE}.train_first[{index}]"
        try:
            mapping, wrong = load_mapping(path)
            found.append(First(path, parse_config(_going_on(_same_data(mapping, config)), wrong)))
        except ConfigError as error:
            problems += [f"{at}: {path}: {line.removeprefix(f'{path}: ')}" for line in error.problems]
    if problems:
        raise ConfigError(problems)
    for first in found:
        Path(first.config.output_dir).mkdir(parents=True, exist_ok=True)
    return found


def leave(runs: Sequence[First]) -> None:
    """Remove their folders, where nothing is in them."""
    for first in runs:
        with contextlib.suppress(OSError):  # it is not empty
            Path(first.config.output_dir).rmdir()


def _same_data(mapping: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    mapping = copy.deepcopy(dict(mapping))
    own, theirs = mapping.get("data"), config.get("data")
    if not isinstance(own, dict) or not isinstance(theirs, Mapping) or own.get("path") or not theirs.get("path"):
        return mapping
    if own.get("name") is not None and own["name"] == theirs.get("name"):
        own["path"] = theirs["path"]
    return mapping


def _going_on(mapping: dict[str, Any]) -> dict[str, Any]:
    """From its last checkpoint, where there is one."""
    training, folder = mapping.get("training", {}), mapping.get("output_dir")
    if not isinstance(training, dict) or not isinstance(folder, str):
        return mapping  # and the check says what is wrong
    checkpoint = last_complete(folder)[0] if Path(folder).is_dir() else None
    going_on = {} if checkpoint is None else {"resume_from_checkpoint": str(checkpoint)}
    return {**mapping, "training": {"disable_tqdm": True, **training, **going_on}}


def train_first(runs: Sequence[First], on_event: Event) -> None:
    """Train what is not done.

    Raises:
        ConfigError: One names what cannot be loaded or does not fit.
        TrainingStopped: SIGTERM came; a checkpoint is kept.
    """
    for first in runs:
        if first.is_done:
            continue
        steps = Steps(lambda done, of, first=first: on_event(_event("first", first, done=done, steps=of)))
        result = run_experiment(first.config, callbacks=[steps])
        on_event(_event("trained", first, metric=result.metric, test=result.test, seconds=result.total_seconds))


def _event(kind: str, first: First, **facts: Any) -> dict[str, Any]:
    return {"kind": kind, "path": first.path, "folder": first.config.output_dir, **facts}

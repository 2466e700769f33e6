"""The study of a search on disk: what was drawn and found, so that a search that was killed goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from ..registry import ConfigError
from ..search_space import SearchSpace, import_optuna
from .results import COMPLETE, FAILED, PRUNED, TrialRecord
from .section import SearchSection

DATABASE = "study.db"
_NAME, _SEARCH = "hf-kd", "search"
_RECORD = "record"
"""Where the study keeps what it is a search of, and a trial what came of it."""


class Study:
    """The trials of one search, in `study.db` of its output folder; Optuna's own tools read it.

    What a trial draws depends on the seed, on the number of trials before it and on what came of these alone. So a
    search that was killed draws, started again, what it would have drawn; a trial that broke off is drawn anew.

    Args:
        folder: The output folder.
        search: The section.
        identity: What must be the same for trials to be comparable, in plain values.
        greater_is_better: Which way the metric is better.

    Raises:
        ConfigError: The folder holds another search.
    """

    def __init__(self, folder: Path, search: SearchSection, identity: Mapping[str, Any], greater_is_better: bool):
        self.optuna, self.search = import_optuna("hf-kd tune"), search
        self.states = self.optuna.trial.TrialState
        verbosity = self.optuna.logging.get_verbosity()
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.study = self.optuna.create_study(
                storage=f"sqlite:///{(folder / DATABASE).resolve()}",
                study_name=_NAME,
                direction="maximize" if greater_is_better else "minimize",
                pruner=self._pruner(),
                load_if_exists=True,
            )
        finally:
            self.optuna.logging.set_verbosity(verbosity)
        self._check_same(folder, json.loads(json.dumps(identity)))
        for trial in self.study.get_trials(states=(self.states.RUNNING,)):
            self._finish(trial.number, trial.user_attrs.get(_RECORD))  # killed before its end, or just after

    def _pruner(self) -> Any:
        pruners = self.optuna.pruners
        kinds = {"none": pruners.NopPruner, "median": pruners.MedianPruner, "halving": pruners.SuccessiveHalvingPruner}
        return kinds[self.search.pruner]()

    def _check_same(self, folder: Path, identity: Mapping[str, Any]) -> None:
        known = self.study.user_attrs.get(_SEARCH)
        if known is None:
            self.study.set_user_attr(_SEARCH, identity)
        elif known != identity:
            changed = _differences(known, identity)
            raise ConfigError(
                [
                    f"output_dir: {str(folder)!r} holds another search, and its trials cannot be compared with these: "
                    f"{'; '.join(changed[:5])}. Take that back to go on with it, or choose another output_dir."
                ]
            )

    @property
    def records(self) -> list[TrialRecord]:
        """The trials that are over; not those that broke off."""
        found = [self._record(trial) for trial in self.study.get_trials(deepcopy=False)]
        return [record for record in found if record is not None]

    def _record(self, trial: Any) -> TrialRecord | None:
        kept = trial.user_attrs.get(_RECORD)
        if kept is None or not trial.state.is_finished():
            return None
        kinds = {self.states.COMPLETE: COMPLETE, self.states.PRUNED: PRUNED, self.states.FAIL: FAILED}
        evaluations = {int(step): value for step, value in trial.intermediate_values.items()}
        return TrialRecord(number=trial.number, state=kinds[trial.state], evaluations=evaluations, **kept)

    def ask(self, space: SearchSpace) -> tuple[Any, dict[str, Any]]:
        """A new trial and what it draws."""
        samplers = self.optuna.samplers
        seed = int(np.random.SeedSequence((self.search.seed, len(self.records))).generate_state(1)[0])
        kind = samplers.TPESampler if self.search.sampler == "tpe" else samplers.RandomSampler
        self.study.sampler = kind(seed=seed)
        trial = self.study.ask()
        return trial, space.suggest(trial)

    def tell(self, trial: Any, record: Mapping[str, Any]) -> TrialRecord:
        """Keep what came of a trial: complete with a value, failed with an error, else pruned."""
        trial.set_user_attr(_RECORD, json.loads(json.dumps(dict(record))))
        self._finish(trial.number, record)
        return next(done for done in self.records if done.number == trial.number)

    def _finish(self, number: int, record: Mapping[str, Any] | None) -> None:
        if record is not None and record.get("value") is not None:
            self.study.tell(number, record["value"])
        else:
            is_failed = record is None or record.get("error")
            self.study.tell(number, state=self.states.FAIL if is_failed else self.states.PRUNED)

    def close(self) -> None:
        """Let go of the file."""
        self.study._storage.remove_session()


class Reporter(TrainerCallback):
    """Tells the study of each evaluation during training, and ends a trial that is not worth going on.

    One that has come to its end is not pruned any more: its value is known.
    """

    def __init__(self, study: Study, trial: Any, metric: str):
        self.study, self.trial, self.metric = study, trial, metric
        self.steps: set[int] = set()

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        """Report the metric, once per step."""
        value = metrics.get(f"eval_{self.metric}")
        if value is None or state.global_step in self.steps:
            return
        self.steps.add(state.global_step)
        self.trial.report(value, state.global_step)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise self.study.optuna.TrialPruned


def _differences(then: Any, now: Any, path: str = "") -> list[str]:
    """Where two plain values differ, in words."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*then, *now])
        return [
            line for key in keys for line in _differences(then.get(key), now.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if then == now else [f"{path} was {then!r} and is {now!r}"]

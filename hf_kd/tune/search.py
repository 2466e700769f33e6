"""`tune`: draw, train, compare on the validation split, keep everything."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data import Task
from ..experiment.best_model import reported_metrics
from ..experiment.build import build_arguments
from ..experiment.config import ExperimentConfig, parse_config, with_values
from ..registry import ConfigError, suggestion
from ..search_space import SearchSpace, import_optuna
from ..training_args import is_greater_better
from .results import TrialRecord, TuneResult, write_results
from .section import SearchSection, checked_search
from .study import Reporter, Study
from .trials import Trials

logger = logging.get_logger(__name__)

SCRATCH, BEST = ".trial", "best"
_SAVES_NOTHING = {"save_strategy": "no"}


def tune(
    config: Mapping[str, Any],
    search: SearchSection | Mapping[str, Any],
    *,
    task: Task | None = None,
    on_trial: Callable[[TrialRecord, TuneResult], None] | None = None,
    on_start: Callable[[str, int, int], None] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> TuneResult:
    """Search a run's configuration for the best score on the validation split.

    Every trial is the configuration with drawn values, checked and trained as a run would be, with the same seed. The
    test split is not read. The teacher is asked once about each training row where that is the same as asking it in
    each trial. `output_dir` then holds `study.db`, `trials.json`, `trials.csv` and `best_config.yaml`, which `hf-kd
    train` takes as it is; they are written after each trial. Started again with the same configuration, the search
    goes on; only `search.trials` may change. One search per folder at a time.

    Args:
        config: The run, as plain mappings; a valid configuration by itself.
        search: What to search; see `SearchSection`.
        task: The data that `config` describes, where the caller has loaded them already.
        on_trial: Told each trial as it ends, and the result so far.
        on_start: Told once how the teacher takes part, how many trials are on record, and how many there shall be.
        on_progress: Told the split, the rows done and all its rows while the teacher answers.

    Raises:
        ConfigError: The configuration, the search, or what they name is wrong; or the folder holds another search.
        ImportError: Optuna is not installed.
    """
    optuna = import_optuna("hf-kd tune")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(["search: runs in one process. Start it without torchrun."])
    search, space = checked_search(config, search)
    first = _trial_config(config, next(space.corners()))
    trials = Trials(first, task, on_progress)
    metric, greater_is_better = _metric(search, first, trials.task)
    rows = None if trials.task.num_train_rows is None else len(trials.task.validation)
    identity = {
        "config": {key: value for key, value in config.items() if key != "output_dir"},
        "search": search.model_dump(exclude={"trials"}),
        "metric": metric,
        "data": {"fingerprint": trials.task.fingerprint, "validation_rows": rows},
    }
    study = Study(Path(config["output_dir"]), search, identity, greater_is_better)

    def result() -> TuneResult:
        task = trials.task
        return TuneResult(
            output_dir=str(config["output_dir"]),
            metric=metric,
            greater_is_better=greater_is_better,
            validation_rows=rows,
            seed=first.seed,
            search=search.model_dump(),
            teacher=trials.teacher_words,
            data={"name": task.name, "fingerprint": task.fingerprint, "description": task.description},
            trials=study.records,
        )

    try:
        if on_start is not None:
            on_start(trials.teacher_words, len(study.records), search.trials)
        while len(study.records) < search.trials:
            record = _run(config, space, study, trials, metric, optuna)
            so_far = result()
            _write(so_far, config)
            if on_trial is not None:
                on_trial(record, so_far)
        found = result()
        _write(found, config)
        return found
    finally:
        study.close()


def _run(
    config: Mapping[str, Any], space: SearchSpace, study: Study, trials: Trials, metric: str, optuna: Any
) -> TrialRecord:
    """One trial; what it does not survive is on record, but for what would break all of them."""
    trial, values = study.ask(space)
    record: dict[str, Any] = {"parameters": values}
    try:
        made = _trial_config(config, values)
        scores, error, seconds = trials.run(made, metric, Reporter(study, trial, metric))
        record |= {
            "value": scores[metric],
            "standard_error": error,
            "validation": scores,
            "seconds": round(seconds, 3),
        }
    except optuna.TrialPruned:
        pass
    except (FloatingPointError, torch.OutOfMemoryError) as failed:
        record["error"] = f"{type(failed).__name__}: {' '.join(str(failed).split())}"
    return study.tell(trial, record)


def _trial_config(config: Mapping[str, Any], values: Mapping[str, Any]) -> ExperimentConfig:
    """The checked configuration of a trial: in a folder of its own, which saves nothing that it does not need."""
    mapping, problems = with_values(config, values)
    training = {"disable_tqdm": True, **(mapping.get("training") or {})}
    if not training.get("load_best_model_at_end") and training.get("save_strategy") != "best":
        training |= _SAVES_NOTHING
    folder = str(Path(config["output_dir"]) / SCRATCH)
    return parse_config({**mapping, "training": training, "output_dir": folder}, problems)


def _metric(search: SearchSection, config: ExperimentConfig, task: Task) -> tuple[str, bool]:
    """What is improved, and whether more of it is better.

    Raises:
        ConfigError: Evaluations of these data do not have it.
    """
    named = search.metric or config.training.get("metric_for_best_model")
    metric = (named or task.metric).removeprefix("eval_")
    known = reported_metrics(build_arguments(config), task)
    if metric not in known:
        where = "search.metric" if search.metric else "training.metric_for_best_model"
        raise ConfigError([f"{where}: evaluations of these data have no {named!r}.{suggestion(metric, known)}"])
    said = search.greater_is_better
    if said is None and search.metric is None and named is not None:
        said = config.training.get("greater_is_better")
    return metric, is_greater_better(metric) if said is None else said


def _write(result: TuneResult, config: Mapping[str, Any]) -> None:
    """The results, with the best trial as a run of its own."""
    best = result.best
    if best is None:
        return write_results(result, None)
    mapping, problems = with_values(config, best.parameters)
    mapping["output_dir"] = str(Path(result.output_dir) / BEST)
    return write_results(result, parse_config(mapping, problems).to_mapping())

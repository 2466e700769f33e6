"""Hyperparameter search inside one trainer: each trial trains a fresh student with a fresh objective."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import BestRun, HPSearchBackend
from transformers.utils import logging

from ..methods import METHODS
from ..registry import ConfigError, prefixed, suggestion
from ..search_space import SearchSpace, import_optuna
from ..training_args import DistillationTrainingArguments, is_greater_better
from .hyperparameters import argument_changes, changed_arguments
from .schedule import ScheduledTrainer

logger = logging.get_logger(__name__)

_OWNER = "DistillationTrainer.hyperparameter_search"
_CREATE = ("storage", "sampler", "pruner", "study_name", "load_if_exists")
_OPTIMIZE = ("timeout", "gc_after_trial", "catch")
DIRECTIONS = ("minimize", "maximize")
HYPERPARAMETERS = "hyperparameters"
"""Where a trial of the study keeps what the search space answered, as `apply_hyperparameters` takes it."""


@dataclass
class Search:
    """What the trials of one search have in common.

    Args:
        compute: From the metrics of an evaluation to the number, or numbers, to improve.
        directions: Which way each of them is better.
        reported: Step and value of the last evaluation of the trial that is running.
    """

    compute: Callable[[dict[str, float]], Any]
    directions: list[str]
    reported: tuple[int, Any] | None = None


class Snapshot:
    """A trainer as it is now; `restore` brings it back, the same objects and the same arguments."""

    def __init__(self, trainer: Any):
        self.trainer, self.state = trainer, dict(vars(trainer))
        self.arguments = dict(vars(trainer.args))
        self.control = copy.copy(trainer.control)
        handler = trainer.callback_handler
        self.handler = {**vars(handler), "callbacks": list(handler.callbacks)}
        self.callbacks = [
            (callback, callback.state()["attributes"])
            for callback in handler.callbacks
            if isinstance(callback, ExportableState)
        ]

    def restore(self) -> None:
        """Put everything back that a training changes."""
        trainer = self.trainer
        if trainer.accelerator is not self.state["accelerator"]:
            trainer.accelerator.clear()
        vars(trainer).clear()
        vars(trainer).update(self.state)
        trainer.control = copy.copy(self.control)
        vars(trainer.args).clear()
        vars(trainer.args).update(self.arguments)
        vars(trainer.callback_handler).update({**self.handler, "callbacks": list(self.handler["callbacks"])})
        for callback, attributes in self.callbacks:
            vars(callback).update(attributes)
        trainer._bind_student()  # the teacher's classes were matched with another student's


class SearchingTrainer(ScheduledTrainer):
    """The part of `DistillationTrainer` that searches hyperparameters.

    The Trainer's own search keeps the value of a trial in `trainer.objective`, casts values blindly, only warns of
    unknown names, seeds a trial's student with the arguments of the trial before, and leaves those of the last behind.
    """

    _search: Search | None = None

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | Mapping[str, Any] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | None = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Search training arguments and parameters of the method with Optuna.

        Names are fields of the arguments, such as `learning_rate` and `kd_weight`, and `method.` followed by the path
        of a parameter, as in a configuration: `method.temperature`, `method.temperature.start`, `method.name`. Unknown
        names and values of another type are refused.

        Each trial begins with a student from `model_init`, an objective, optimizers and arguments of its own, and the
        same teacher. Its value is that of the student it ends with. One whose loss becomes NaN or infinite fails, and
        the search goes on. Nothing is pushed. Afterwards the trainer is as it was before; `apply_hyperparameters`
        takes over what was found.

        Args:
            hp_space: From an Optuna trial to `{name: value}`; or the space itself, as
                `hf_kd.search_space.SearchSpace` takes it: `{"learning_rate": {"low": 1e-5, "high": 1e-3}}`. None
                searches the learning rate, a factor of 10 to either side, and the temperature from 1 to 10 where the
                method has a constant one.
            compute_objective: From the metrics of an evaluation to the value; a list for several directions. None
                takes `args.metric_for_best_model`, else the first metric of a `compute_metrics` that `load_task` made,
                else `eval_loss`; a message says which.
            n_trials: How many.
            direction: "minimize" or "maximize". None where the metric says it; a `compute_objective` of your own does
                not.
            backend: "optuna", the only one.
            hp_name: From a trial to its name; by default `run-<number>`, which is also its folder.
            kwargs: Of `optuna.create_study`: `storage`, `sampler`, `pruner`, `study_name`, `load_if_exists`; of
                `Study.optimize`: `timeout`, `gc_after_trial`, `catch`. By default the sampler is seeded by
                `args.seed`, and Optuna's median pruner stops trials that lag at an evaluation.

        Returns:
            The best run: `run_id`, `objective`, `hyperparameters` (what `hp_space` answered), and the study as
            `run_summary`. A list of them for several directions.

        Raises:
            ConfigError: A name or value of the space is refused.
            ImportError: Optuna is not installed.
            RuntimeError: No trial came to an end.
            ValueError: There is no `model_init` or no evaluation set, or arguments that contradict each other.
        """
        optuna = import_optuna(_OWNER)
        self._check_search(n_trials, backend, kwargs)
        search = Search(*_goal(self, compute_objective, direction))
        space = self._space(hp_space)
        study = _create_study(optuna, search, self.args.seed, {k: v for k, v in kwargs.items() if k in _CREATE})
        options = {k: v for k, v in kwargs.items() if k in _OPTIMIZE}
        caught = options.pop("catch", ())
        caught = caught if isinstance(caught, tuple) else tuple(caught) if isinstance(caught, list) else (caught,)
        before = Snapshot(self)

        def run(trial: Any) -> Any:
            before.restore()
            self._search = Search(search.compute, search.directions)
            self.hp_search_backend, self.hp_space, self.hp_name = HPSearchBackend.OPTUNA, space, hp_name
            self.compute_objective = search.compute
            return self._run_trial(trial, space)

        try:
            study.optimize(run, n_trials=n_trials, catch=(FloatingPointError, *caught), **options)
        finally:
            before.restore()
        return _best(study, optuna)

    def apply_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Set training arguments and parameters of the method by name, all of them or, where one is refused, none.

        Args:
            parameters: `{name: value}`, as `hyperparameter_search` finds them.

        Raises:
            ConfigError: A name or value is refused.

        Example:
            >>> trainer.apply_hyperparameters({"learning_rate": 3e-4, "method.temperature": 2.0})  # doctest: +SKIP
        """
        own = self._given_objective is not None
        changed = changed_arguments(self.args, argument_changes(self.args, parameters, own))
        before = {name: getattr(self.args, name) for name in changed}, self._built_from
        vars(self.args).update(changed)
        try:
            if not own:
                self._build_objective()
        except ConfigError as error:
            vars(self.args).update(before[0])
            raise ConfigError(prefixed("method", error)) from error
        finally:
            self._built_from = before[1]

    def _check_search(self, n_trials: Any, backend: Any, kwargs: Mapping[str, Any]) -> None:
        """What cannot be searched, or not like this."""
        if backend not in (None, "optuna", HPSearchBackend.OPTUNA):
            raise ValueError(
                f"`{_OWNER}(backend={str(backend)!r})`: only Optuna can give each trial a clean objective here. Leave "
                "backend out."
            )
        if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
            raise ValueError(f"`{_OWNER}(n_trials={n_trials!r})` must be a positive integer. Pass e.g. 20.")
        known = (*_CREATE, *_OPTIMIZE)
        for name in kwargs:
            if name == "n_jobs" and kwargs[name] == 1:
                continue
            if name not in known:
                what = "trials share this one trainer" if name == "n_jobs" else "unknown"
                raise ValueError(f"`{_OWNER}({name}={kwargs[name]!r})`: {what}.{suggestion(name, known)}")
        if self.model_init is None:
            raise ValueError(
                f"`{_OWNER}` trains a fresh student in each trial, and was given a `model`. Make the trainer with "
                "`model_init`, a function that returns one."
            )
        if self.eval_dataset is None:
            raise ValueError(f"`{_OWNER}` compares trials by an evaluation, but has no `eval_dataset`. Pass one.")
        if self.args.world_size > 1 or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                f"`{_OWNER}` runs in one process: trials that are pruned in one and go on in another would wait for "
                "each other forever. Launch it without `torchrun`, or several searches on one `storage`."
            )

    def _space(self, given: Any) -> Callable[[Any], dict[str, Any]]:
        """The space as a function; one that is written down is checked at its corners first."""
        if callable(given):
            return given
        space = SearchSpace(_default_space(self) if given is None else given, "hp_space")
        before, built_from = dict(vars(self.args)), self._built_from
        problems: list[str] = []
        for values in space.corners():
            try:
                self.apply_hyperparameters(values)
            except ConfigError as error:
                problems += [line for line in error.problems if line not in problems]
            finally:
                vars(self.args).clear()
                vars(self.args).update(before)
                self._built_from = built_from
        if problems:
            raise ConfigError([f"hp_space: {line}" for line in problems])
        return space.suggest

    def _run_trial(self, trial: Any, space: Callable[[Any], dict[str, Any]]) -> Any:
        """Train one student, and the value of what came out."""
        parameters = space(trial)
        self.apply_hyperparameters(parameters)
        trial.set_user_attr(HYPERPARAMETERS, dict(parameters))
        self.args.push_to_hub = False
        if self._given_objective is not None:
            self._given_objective = self.objective = copy.deepcopy(self._given_objective)
        logger.info(f"Trial {trial.number}: {parameters}")
        self.train(trial=trial)
        step, value = self._search.reported or (None, None)
        if step != self.state.global_step or self.args.load_best_model_at_end:
            value = self._search.compute(self.evaluate())
        return value

    def _hp_search_setup(self, trial: Any) -> None:
        """What depends on the arguments, which `_run_trial` has set: before the student was made, as seeds must be."""
        self._trial = trial
        if self._search is not None and trial is not None:
            self._train_batch_size = self.args.train_batch_size
            self.create_accelerator_and_postprocess()

    def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Tell the study of an evaluation; it may say that the trial is not worth going on."""
        if self._search is None or trial is None:
            return
        value = self._search.compute(dict(metrics))
        self._search.reported = step, value
        if len(self._search.directions) > 1:
            return
        trial.report(value, step)
        if trial.should_prune():
            self.callback_handler.on_train_end(self.args, self.state, self.control)
            raise import_optuna(_OWNER).TrialPruned()


def _create_study(optuna: Any, search: Search, seed: int, options: Mapping[str, Any]) -> Any:
    study = optuna.create_study(directions=search.directions, **options)
    if options.get("sampler") is None:
        # a study that goes on must not draw again what it began with
        study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _goal(trainer: Any, compute: Any, direction: Any) -> tuple[Callable[[dict[str, float]], Any], list[str]]:
    """What is to be improved, and which way."""
    given = direction if isinstance(direction, list) else [direction]
    wrong = [way for way in given if way is not None and way not in DIRECTIONS]
    if wrong or not given:
        raise ValueError(f"`{_OWNER}(direction={direction!r})` must be 'minimize' or 'maximize', or a list of these.")
    if compute is not None:
        if None in given:
            raise ValueError(
                f"`{_OWNER}(compute_objective=..., direction={direction!r})`: only you know whether a greater value "
                "of your own objective is better. Pass direction='maximize' or 'minimize'."
            )
        return compute, given
    if isinstance(direction, list):
        raise ValueError(
            f"`{_OWNER}(direction={direction!r})`: several directions need a `compute_objective` that returns as many "
            "values. Pass it, or one direction."
        )
    metric, is_greater = default_metric(trainer)
    way = DIRECTIONS[is_greater]
    if direction not in (None, way):
        raise ValueError(
            f"`{_OWNER}(direction={direction!r})`: trials are compared by `{metric}`, which is to {way}. Leave "
            "direction out; or say in `args` by which metric (`metric_for_best_model`) and which way "
            "(`greater_is_better`)."
        )
    logger.warning(f"The search is to {way} `{metric}`.")
    return _Metric(metric), [way]


def default_metric(trainer: Any) -> tuple[str, bool]:
    """The metric that trials are compared by where nothing says so, and whether a greater one is better."""
    args: DistillationTrainingArguments = trainer.args
    if args.metric_for_best_model is not None:
        name = args.metric_for_best_model.removeprefix("eval_")
        is_greater = is_greater_better(name) if args.greater_is_better is None else args.greater_is_better
        return f"eval_{name}", bool(is_greater)
    name = getattr(trainer.compute_metrics, "first", "loss")
    return f"eval_{name}", is_greater_better(name)


@dataclass(frozen=True)
class _Metric:
    """One metric of an evaluation."""

    name: str

    def __call__(self, metrics: Mapping[str, float]) -> float:
        if self.name not in metrics:
            raise ValueError(
                f"`{_OWNER}`: evaluations of these data have no `{self.name}`.{suggestion(self.name, metrics)} Name "
                "one in `args.metric_for_best_model`, or pass a `compute_objective`."
            )
        return metrics[self.name]


def _default_space(trainer: Any) -> dict[str, Any]:
    args: DistillationTrainingArguments = trainer.args
    space = {"learning_rate": {"low": args.learning_rate / 10, "high": args.learning_rate * 10, "log": True}}
    given = (args.method_kwargs or {}).get("temperature", 1.0)
    is_built = trainer._given_objective is None
    if is_built and METHODS[args.method].strategy == "constant" and isinstance(given, (int, float)):
        space["method.temperature"] = {"low": 1.0, "high": 10.0, "log": True}
    return space


def _best(study: Any, optuna: Any) -> BestRun | list[BestRun]:
    """The best of the trials that came to an end."""
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        raise RuntimeError(
            f"`{_OWNER}`: none of {len(study.trials)} trials came to an end: all were pruned, or failed with a loss "
            "that became NaN or infinite. Search smaller learning rates, or prune later."
        )
    several = len(study.directions) > 1
    runs = [
        BestRun(
            str(trial.number),
            trial.values if several else trial.value,
            trial.user_attrs.get(HYPERPARAMETERS, trial.params),
            study,
        )
        for trial in (study.best_trials if several else [study.best_trial])
    ]
    return runs if several else runs[0]

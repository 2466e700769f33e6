"""By what the best model of a run is chosen: what the user says, else the metric that its data are quoted in."""

from typing import Any

from transformers.utils import logging

from ..data import Task
from ..model_card.record import OF_THE_TEACHER
from ..registry import ConfigError, suggestion
from ..trainer import DistillationTrainer
from ..training_args import DistillationTrainingArguments, is_greater_better
from .config import ExperimentConfig

logger = logging.get_logger(__name__)


def with_best_metric(config: ExperimentConfig, args: DistillationTrainingArguments, task: Task) -> ExperimentConfig:
    """Settle `metric_for_best_model` in `args`, and in the configuration that is written down.

    Where the best model is looked for and no metric is named, it is the task's own (`Task.metric`), not the loss: the
    loss begins to rise with overconfidence while accuracy still improves, and it is not what is reported.

    Args:
        config: What the user says.
        args: Made of it; changed in place.
        task: The data.

    Returns:
        The configuration with the choice spelled out.

    Raises:
        ConfigError: A metric is named that evaluations of these data do not have.
    """
    given = config.training
    named = given.get("metric_for_best_model")
    if named is not None:
        _check_known(named, args, task)
        return config
    best = args.save_strategy == "best"
    if not (args.load_best_model_at_end or args.early_stopping_patience is not None or best):
        return config
    args.metric_for_best_model = f"eval_{task.metric}"
    if given.get("greater_is_better") is None:
        args.greater_is_better = is_greater_better(task.metric)
    order = "higher" if args.greater_is_better else "lower"
    logger.info(f"The best model is the one with the {order} {args.metric_for_best_model}, the metric of these data.")
    chosen = {"metric_for_best_model": args.metric_for_best_model, "greater_is_better": args.greater_is_better}
    return config.model_copy(update={"training": {**given, **chosen}})


def reported_metrics(args: DistillationTrainingArguments, task: Task) -> list[str]:
    """What an evaluation on these data reports."""
    compute = task.compute_metrics
    top_k = getattr(compute, "top_k", None)
    known = ["loss", *compute.names, *([f"top_{top_k}_accuracy"] if top_k else [])]
    return [*known, *(OF_THE_TEACHER if args.evaluate_with_teacher else ())]


def _check_known(named: str, args: DistillationTrainingArguments, task: Task) -> None:
    """The Trainer would only notice after the first evaluation."""
    known = reported_metrics(args, task)
    if named.removeprefix("eval_") in known:
        return
    hint = suggestion(named.removeprefix("eval_"), known)
    if named.removeprefix("eval_") in OF_THE_TEACHER:
        hint = " Set training.evaluate_with_teacher=true to have it."
    raise ConfigError([f"training.metric_for_best_model: evaluations of these data have no {named!r}.{hint}"])


def best_model(config: ExperimentConfig, trainer: DistillationTrainer) -> dict[str, Any] | None:
    """Plain values on which model was kept, after training; None where none was looked for.

    Args:
        config: As the user gave it.
        trainer: After `train()`.
    """
    args, state = trainer.args, trainer.state
    if args.metric_for_best_model is None or state.best_metric is None:
        return None
    return {
        "metric": f"eval_{args.metric_for_best_model.removeprefix('eval_')}",
        "named_by": "the data" if config.training.get("metric_for_best_model") is None else "the configuration",
        "value": state.best_metric,
        "step": state.best_global_step,
        "is_saved": args.load_best_model_at_end and state.best_model_checkpoint is not None,
        "stopped_early": args.early_stopping_patience is not None and state.global_step < state.max_steps,
    }

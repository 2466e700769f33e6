"""Experiments: a strict configuration in, a trained, scored and saved student out."""

from .cached_teacher import FilledCache, fill_cache
from .config import ExperimentConfig, load_config, parse_config
from .evaluation import Evaluation, evaluate_model, write_evaluation
from .run import ExperimentResult, dump_resolved, run_experiment
from .run_folder import evaluate_run
from .running import TrainingStopped
from .stored_logits import StoredLogits, store_teacher_logits

__all__ = [
    "Evaluation",
    "ExperimentConfig",
    "ExperimentResult",
    "FilledCache",
    "StoredLogits",
    "TrainingStopped",
    "dump_resolved",
    "evaluate_model",
    "evaluate_run",
    "fill_cache",
    "load_config",
    "parse_config",
    "run_experiment",
    "store_teacher_logits",
    "write_evaluation",
]

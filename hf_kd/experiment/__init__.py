"""Experiments: a strict configuration in, a trained, scored and saved student out."""

from .config import ExperimentConfig, load_config, parse_config
from .evaluation import Evaluation, evaluate_model, write_evaluation
from .run import ExperimentResult, dump_resolved, run_experiment
from .run_folder import evaluate_run

__all__ = [
    "Evaluation",
    "ExperimentConfig",
    "ExperimentResult",
    "dump_resolved",
    "evaluate_model",
    "evaluate_run",
    "load_config",
    "parse_config",
    "run_experiment",
    "write_evaluation",
]

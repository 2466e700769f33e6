"""Experiments: a strict configuration in, a trained, scored and saved student out."""

from .config import ExperimentConfig, load_config, parse_config
from .run import ExperimentResult, dump_resolved, run_experiment
from .stored_logits import StoredLogits, store_teacher_logits

__all__ = [
    "ExperimentConfig",
    "ExperimentResult",
    "StoredLogits",
    "dump_resolved",
    "load_config",
    "parse_config",
    "run_experiment",
    "store_teacher_logits",
]

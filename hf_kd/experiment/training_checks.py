"""What `TrainingArguments` takes as it is, and would only fail over when all is loaded, or never say."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.training_args import ParallelMode, trainer_log_levels
from transformers.utils import is_liger_kernel_available

from ..registry import ConfigError, suggestion
from ..training_args import DistillationTrainingArguments
from .student_checks import one_line

_STEPS = 1_000
"""A schedule is tried over so many, where the arguments do not say how many there will be."""


_COMPILING = "ACCELERATE_DYNAMO_"


class NotInstalledError(ValueError):
    """A package is not installed here; elsewhere the same arguments may be right."""


def rehearse(args: DistillationTrainingArguments) -> None:
    """Build what the Trainer builds from the arguments alone: optimizer, schedule, data loader.

    Raises:
        ValueError: One of them cannot be built. A package that is missing here is not looked at.
    """
    for part in (_checkpointing, _loader, _schedule):
        try:
            with warnings.catch_warnings(action="ignore"):  # the training gives them again
                part(args)
        except NotInstalledError:
            pass
        except Exception as error:  # any library may raise anything at what it does not know
            raise ValueError(f"{one_line(error).rstrip('.')}.") from error


@contextmanager
def no_trace() -> Iterator[None]:
    """Arguments say in the environment how models are compiled: trying some must not change later trainings."""
    before = {key: value for key, value in os.environ.items() if key.startswith(_COMPILING)}
    try:
        yield
    finally:
        for key in [key for key in os.environ if key.startswith(_COMPILING)]:
            del os.environ[key]
        os.environ.update(before)


def check_here(args: DistillationTrainingArguments) -> None:
    """Refuse what this machine or launch lacks, before anything is loaded; a file may be checked on another.

    Raises:
        ConfigError: A package is not installed, or one process was started where there must be several.
    """
    problems = []
    try:
        _optimizer(args)
    except NotInstalledError as error:
        problems.append(
            f"training.optim: {args.optim.value!r} needs a package that is not installed ({error}). Install it, or "
            "choose another, such as adamw_torch."
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        problems.append(
            "training.use_liger_kernel: needs the package liger-kernel, which is not installed. Install it."
        )
    if args.fsdp and args.parallel_mode != ParallelMode.DISTRIBUTED:
        problems.append(
            "training.fsdp: shards a student over several processes, and this is the only one. Start the run with "
            "`accelerate launch`, or remove it."
        )
    if problems:
        raise ConfigError(problems)


def _optimizer(args: DistillationTrainingArguments) -> torch.optim.Optimizer:
    """As for a student of one number; layer-wise optimizers need its real layers, and only their names are read."""
    try:
        cls, settings = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(1, 1))
    except ImportError as error:
        raise NotInstalledError(one_line(error).rstrip(".")) from error
    except ValueError as error:
        if "install" in str(error).lower():  # some say so in other words
            raise NotInstalledError(one_line(error).rstrip(".")) from error
        raise
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    if args.optim_target_modules or not issubclass(cls, torch.optim.Optimizer):
        return torch.optim.SGD(parameters, lr=args.learning_rate)
    return cls(parameters, **{key: value for key, value in settings.items() if key not in ("params", "model")})


def _schedule(args: DistillationTrainingArguments) -> None:
    try:
        optimizer = _optimizer(args)
    except NotInstalledError:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    if args.lr_milestones:
        return  # they are the whole schedule
    steps = args.max_steps if args.max_steps > 0 else _STEPS
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )
    for factor in getattr(schedule, "lr_lambdas", ()):
        for step in (0, steps // 2, steps):
            factor(step)


def _loader(args: DistillationTrainingArguments) -> None:
    DataLoader(
        [0],
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
    )


def _checkpointing(args: DistillationTrainingArguments) -> None:
    for kind in ("gradient", "activation"):  # the newer name is not in all releases
        given = getattr(args, f"{kind}_checkpointing_kwargs", None)
        if getattr(args, f"{kind}_checkpointing", False) and given:
            checkpoint(lambda x: x * 2, torch.zeros(1, requires_grad=True), **{"use_reentrant": False, **given})


def name_problems(section: Mapping[str, Any]) -> list[str]:
    """Settings that take one of a few names, which the arguments do not look at."""
    problems = []
    for key, options in _NAMES.items():
        value = section.get(key)
        if isinstance(value, str) and value not in (known := options()):
            problems.append(f"training.{key}: unknown value {value!r}.{suggestion(value, known)}")
    return problems


def _compile_modes() -> list[str]:
    from torch._inductor import list_mode_options

    return sorted(list_mode_options())


_NAMES: dict[str, Callable[[], list[str]]] = {
    "log_level": lambda: list(trainer_log_levels),
    "log_level_replica": lambda: list(trainer_log_levels),
    "torch_compile_backend": lambda: sorted(backend.value.lower() for backend in DynamoBackend),
    "torch_compile_mode": _compile_modes,
}

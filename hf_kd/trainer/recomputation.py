"""Activation checkpointing: whether the student can, and gradients that reach what lies below a frozen layer."""

from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

logger = logging.get_logger(__name__)


def recomputes(args: Any) -> bool:
    """Whether training forgets activations and computes them again, under either name of the argument."""
    return bool(getattr(args, "activation_checkpointing", None) or getattr(args, "gradient_checkpointing", None))


def is_reentrant(args: Any) -> bool:
    """Whether it does so in a backward pass of its own, which starts only where an input has a gradient."""
    given = getattr(args, "activation_checkpointing_kwargs", None) or getattr(
        args, "gradient_checkpointing_kwargs", None
    )
    return recomputes(args) and bool((given or {}).get("use_reentrant", False))


def check_recomputation(model: nn.Module, args: Any, accelerator: Accelerator) -> None:
    """Refuse activation checkpointing where it cannot be, before anything runs.

    Raises:
        ValueError: The architecture cannot, or the gradients of several processes would be counted twice.
    """
    if not recomputes(args):
        return
    owner = "`DistillationTrainingArguments(activation_checkpointing=True)`"
    student = accelerator.unwrap_model(model)
    if not getattr(student, "supports_gradient_checkpointing", False):
        base = student.get_base_model() if hasattr(student, "get_base_model") else student
        raise ValueError(
            f"{owner}: {type(base).__name__} has no layers that transformers could compute again in the backward "
            "pass. Leave it out and use smaller micro-batches (`per_device_train_batch_size`) with "
            "`gradient_accumulation_steps`, which is the same step, or choose an architecture that supports it."
        )
    handler = getattr(accelerator, "ddp_handler", None)
    if is_reentrant(args) and accelerator.num_processes > 1 and getattr(handler, "find_unused_parameters", False):
        raise ValueError(
            f"{owner} with `use_reentrant: true` and `ddp_find_unused_parameters` on: weights get their gradients in "
            "a second backward pass, which DDP takes for a second step. Pass "
            "`activation_checkpointing_kwargs={'use_reentrant': False}`, or `ddp_find_unused_parameters=False`."
        )
    if any(isinstance(module, _BatchNorm) and module.track_running_stats for module in student.modules()):
        logger.warning_once(
            f"{owner}: `model` has batch norms, and those in layers that are computed again see each batch twice, so "
            "that their running statistics move twice as far per step. Its weights learn the same."
        )


def hides_gradients(student: nn.Module, args: Any) -> bool:
    """Whether trained weights behind frozen ones would get no gradient: see `with_gradients`."""
    return is_reentrant(args) and not all(parameter.requires_grad for parameter in student.parameters())


def with_gradients(columns: dict[str, Any]) -> dict[str, Any]:
    """The same inputs; numbers take part in the gradient, which nobody reads.

    A reentrant pass starts only where an input of the layer has a gradient. Behind frozen embeddings none has, so that
    an adapter in the layers would get no gradient at all, and only the head would learn. transformers marks the
    embeddings of tokens; images it leaves as they are.
    """
    return {name: _marked(value) for name, value in columns.items()}


def _marked(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if is_float else value

"""Adapter students: a PEFT adapter and the head are trained, the rest is frozen and can be its own teacher."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import logging

from .heads import head_layers
from .inputs import logits_of, model_columns
from .registry import ConfigError, suggestion

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.get_logger(__name__)

SELF = "self"
"""As a teacher: the student without its adapter."""

TYPES = {"lora": "LORA", "loha": "LOHA", "lokr": "LOKR"}
"""Adapters by name, and what PEFT calls them. Others can be made with `peft.get_peft_model`."""

_OURS = {
    "peft_type": "name it in `type`",
    "task_type": "it follows from the model",
    "auto_mapping": "PEFT sets it",
    "base_model_name_or_path": "it is the student's",
    "revision": "it is the student's",
    "inference_mode": "an adapter student is trained",
    "peft_version": "PEFT sets it",
    "runtime_config": "it cannot be saved",
}


def adapter_config_class(kind: Any) -> type["PeftConfig"]:
    """The configuration class of an adapter type.

    Raises:
        ConfigError: There is no such type here.
    """
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in TYPES:
        raise ConfigError(
            [
                f"type: unknown adapter {kind!r}.{suggestion(kind, TYPES)} Any other adapter that PEFT has can be "
                "made in Python with `peft.get_peft_model` and passed to `DistillationTrainer`."
            ]
        )
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[TYPES[kind]]]


def adapter_settings(kind: str) -> list[str]:
    """The settings of an adapter type that a student may choose."""
    names = adapter_config_class(kind).__dataclass_fields__
    return sorted(set(names) - set(_OURS))


def add_adapter(model: PreTrainedModel, settings: "Mapping[str, Any] | PeftConfig", **more: Any) -> "PeftModel":
    """Freeze a classifier, and give it an adapter to train beside its head.

    The head is trained too and saved with the adapter (`modules_to_save`), for image models as for text models: a head
    that is not would be random after loading. So is every batch norm, whose statistics move in training although its
    weights are frozen. Weights in half precision get an adapter in float32, as PEFT does by default.

    Args:
        model: A classifier from a checkpoint; it is changed in place and becomes the base of what is returned. The
            adapter is saved without it, so others need the checkpoint.
        settings: ``{"type": "lora", "r": 8, …}``, a `peft.LoraConfig` or the like. Where `target_modules` is left
            out, all linear layers of the backbone are adapted; in a backbone without any, all ungrouped convolutions.
        **more: Further settings, e.g. ``add_adapter(model, {"type": "lora"}, r=8)``.

    Returns:
        The student, as a `peft.PeftModel`.

    Raises:
        ConfigError: A setting or type is unknown.
        TypeError: `model` is no model of transformers, or has an adapter already.
        ValueError: There is no head to train, or PEFT refuses the settings.
    """
    from peft import PeftConfig, TaskType, get_peft_model

    if not isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
        raise TypeError(
            f"`add_adapter(model=...)` got {type(model).__name__}: it takes a plain classifier of transformers, "
            "without an adapter yet. Pass one, or pass your own PEFT model straight to `DistillationTrainer`."
        )
    if isinstance(settings, PeftConfig):
        config = copy.deepcopy(settings)
    else:
        given = {**settings, **more}
        kind = given.pop("type", None)
        cls = adapter_config_class(kind)
        known = adapter_settings(kind)
        odd = [f"{key}: {_why_not(key, kind, known)}" for key in given if key not in known]
        if odd:
            raise ConfigError(odd)
        config = cls(**given)
    heads = head_paths(model)
    if getattr(config, "target_modules", None) is None:
        config.target_modules = _adapted(model, heads)
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    asked = list(config.modules_to_save or [])
    config.modules_to_save = list(dict.fromkeys([*asked, *heads, *norms]))
    if config.task_type is None and model.main_input_name == "input_ids":
        config.task_type = TaskType.SEQ_CLS
    adapted = get_peft_model(model, config)
    adapted.train(model.training)
    return adapted


def _why_not(key: str, kind: str, known: list[str]) -> str:
    if key in _OURS:
        return f"does not belong here: {_OURS[key]}."
    return f"unknown setting of {kind!r}.{suggestion(key, known).split(' Available:')[0]}"


def head_paths(model: PreTrainedModel) -> list[str]:
    """The topmost modules outside of the backbone that hold weights."""
    backbone = getattr(model, model.base_model_prefix, None)
    children = [(name, child) for name, child in model.named_children() if child is not backbone]
    paths = [name for name, child in children if any(True for _ in child.parameters())]
    if not paths:  # a model of timm holds its head inside
        layers = head_layers(model)
        paths = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    if not paths:
        raise ValueError(
            f"`add_adapter(model=...)`: {type(model).__name__} has no head outside of its backbone, so nothing says "
            "what has to be trained and saved beside the adapter. Use `peft.get_peft_model` with `modules_to_save`."
        )
    return paths


def _adapted(model: PreTrainedModel, heads: list[str]) -> list[str]:
    """All linear layers of the backbone; all ungrouped convolutions where there are none."""
    inside = [
        (name, module)
        for name, module in model.named_modules()
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    ]
    linear = [name for name, module in inside if isinstance(module, nn.Linear)]
    convolutions = [name for name, m in inside if isinstance(m, nn.Conv2d) and m.groups == 1]
    if not linear and getattr(model.config, "tf_padding", False):
        raise ValueError(
            f"`add_adapter(model=...)`: {type(model).__name__} reads strides off its convolutions (`tf_padding`), "
            "which an adapter hides, and it has no linear layers to adapt. Train it as a whole."
        )
    return linear or convolutions


def merged_student(model: "PeftModel") -> PreTrainedModel:
    """The plain student that an adapter student amounts to: adapter and head put into a copy of the base model.

    It answers as `model` does, but for rounding, and its `save_pretrained` writes what any `from_pretrained` reads.

    Args:
        model: Not changed.

    Raises:
        TypeError: `model` has no adapter.
        ValueError: Merging gives NaN.
    """
    if not hasattr(model, "peft_config") or not hasattr(model, "merge_and_unload"):
        raise TypeError(
            f"`merged_student(model=...)` got {type(model).__name__}, which has no adapter that could be merged. Save "
            "it as it is."
        )
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    merged.requires_grad_(True)
    return merged.eval()


def plain_parameters(model: nn.Module) -> int:
    """The numbers in a model; of an adapter student, those in the plain one that it amounts to."""
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if hasattr(model, "peft_config") else None
    if prefix is None:
        return sum(parameter.numel() for parameter in model.parameters())
    own = ((name, value) for name, value in model.named_parameters() if ".modules_to_save." not in name)
    return sum(value.numel() for name, value in own if prefix not in name)


@contextmanager
def without_adapter(model: "PeftModel") -> Iterator[None]:
    """Within it, `model` is its base model, and in eval mode; after it, each module is in the mode it was in.

    Without dropout, that is: PEFT's own switch leaves it on, and a teacher with dropout answers noise. No random
    number is drawn.
    """
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad(), model.disable_adapter():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


class OwnBase:
    """The student without its adapter, as a teacher: a function from columns to logits, without a second copy.

    Args:
        student: A PEFT model.

    Raises:
        ValueError: It has no adapter, or the head below the adapter was never trained.
    """

    def __init__(self, student: nn.Module):
        self.bind(student)

    def bind(self, student: nn.Module) -> None:
        """Answer for `student` from now on; each run may train a new one."""
        if not hasattr(student, "peft_config") or not hasattr(student, "disable_adapter"):
            raise ValueError(
                f"`DistillationTrainer(teacher_model='self')`: `model` is a {type(student).__name__} without an "
                "adapter that could be switched off, so it would be taught what it already answers. Pass a PEFT model "
                "(`hf_kd.add_adapter`), or another teacher."
            )
        _check_base_head(student)
        self.student = student
        self.columns = model_columns(student)

    def __call__(self, **columns: Any) -> torch.Tensor:
        """Logits of the base model."""
        inputs = {name: v for name, v in columns.items() if self.columns is None or name in self.columns}
        with without_adapter(self.student):
            return logits_of(self.student(**inputs), "teacher_model")


def _check_base_head(model: "PeftModel") -> None:
    """Refuse a base model whose head was never trained: as a teacher, it would hand on random answers.

    A head as it was initialised has a bias of exactly 0 in transformers; a trained one has not.
    """
    layers = head_layers(model.get_base_model())
    bias = layers[0].bias if layers else None  # the head below stands before its trained copy
    if bias is not None and not bias.detach().any():
        raise ValueError(
            "`DistillationTrainer(teacher_model='self')`: the head of the base model was never trained (its bias is 0 "
            "in every place), so without its adapter the student answers at random. Start from a checkpoint that was "
            "fine-tuned for this task, with its own `num_labels`, or name another teacher."
        )


def warn_if_head_is_lost(student: nn.Module) -> None:
    """One warning where the adapter of a PEFT student is saved without its head, and the head is not trained."""
    if not hasattr(student, "peft_config") or not hasattr(student, "get_base_model"):
        return
    layers = head_layers(student.get_base_model())
    if layers and not any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        logger.warning_once(
            "`DistillationTrainer(model=...)`: the head of this PEFT model is neither trained nor saved with the "
            "adapter. If it is new, it answers at random and will be another one after loading: name it in "
            "`modules_to_save`, or use `hf_kd.add_adapter`."
        )

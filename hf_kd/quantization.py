"""Teachers whose weights are held in 8 or 4 bits, by bitsandbytes."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from .adapters import head_paths
from .registry import ConfigError

KEYS = ("load_in_8bit", "load_in_4bit")
"""The settings, as bitsandbytes calls them."""


def quantization_problems(load_in_8bit: bool, load_in_4bit: bool) -> list[str]:
    """What stands in the way of loading a model so, each line with the setting it is about."""
    asked = [key for key, value in zip(KEYS, (load_in_8bit, load_in_4bit), strict=True) if value]
    if len(asked) > 1:
        return ["load_in_8bit: and load_in_4bit exclude each other: each weight is held once. Remove one."]
    if asked and find_spec("bitsandbytes") is None:
        return [
            f"{asked[0]}: needs bitsandbytes, which is not installed. Run `pip install bitsandbytes`, or leave it out "
            "and hold the teacher in half precision (dtype=bfloat16)."
        ]
    return []


def quantization_config(
    auto: type, config: Any, *, load_in_8bit: bool, load_in_4bit: bool, dtype: str | torch.dtype, **code: Any
) -> BitsAndBytesConfig | None:
    """How to load a classifier in 8 or 4 bits; None to load it as it is.

    The head stays as it is: it is small, its answers are what is taught, and losses on features read its weight.

    Args:
        auto: The Auto class of the classifier.
        config: Its configuration.
        load_in_8bit: LLM.int8().
        load_in_4bit: 4-bit NormalFloat.
        dtype: What 4-bit weights are multiplied in; "auto" is float32.
        **code: `trust_remote_code`.

    Raises:
        ConfigError: Both are asked for, or bitsandbytes is missing.
        ValueError: The checkpoint is quantised already, or has no head that could be told from the rest.
    """
    problems = quantization_problems(load_in_8bit, load_in_4bit)
    if problems:
        raise ConfigError(problems)
    if not (load_in_8bit or load_in_4bit):
        return None
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "the checkpoint is quantised already and loads as it is. Leave load_in_8bit and load_in_4bit out."
        )
    with torch.device("meta"):  # only its modules' names are wanted
        kept = head_paths(auto.from_config(config, **code))
    compute = torch.float32 if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    given = {"load_in_8bit": True} if load_in_8bit else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    return BitsAndBytesConfig(**given, bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=kept)


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are held in a form that cannot be moved, cast or trained as usual."""
    return bool(getattr(model, "is_quantized", False))


def quantization_name(model: Any) -> str | None:
    """How a model is quantised, in a word; None for a plain one."""
    if not is_quantized(model):
        return None
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    settings = settings if isinstance(settings, dict) else settings.to_dict() if settings is not None else {}
    if settings.get("load_in_4bit") or settings.get("_load_in_4bit"):
        return f"4-bit {settings.get('bnb_4bit_quant_type', 'fp4')}"
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return "8-bit"
    return str(getattr(settings.get("quant_method"), "value", settings.get("quant_method")))


def number_of_parameters(model: nn.Module) -> int:
    """The numbers in a model; those of a quantised one as they are without: two of 4 bits lie in one byte."""
    counted = getattr(model, "num_parameters", None)
    if is_quantized(model) and callable(counted):
        return counted()
    return sum(parameter.numel() for parameter in model.parameters())


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a model by name, but for those of modules whose weights are packed.

    Not from its `state_dict`: on a CPU bitsandbytes packs 4-bit weights anew in the first pass, and asking for the
    state undoes that with a loss, so that a teacher that was looked at would answer otherwise afterwards.
    """
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        if all(value.is_floating_point() for value in module.parameters(recurse=False)):
            found |= {f"{path}.{name}" if path else name: value for name, value in own.items()}
    return found

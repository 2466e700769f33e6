"""What types alone cannot check in the section `student`, before any model is loaded."""

import difflib
import math
import re
import reprlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import ConfigDict, create_model
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from ..adapters import SELF, adapter_config_class, adapter_settings
from ..registry import ConfigError, suggestion
from ..teacher import auto_class
from .config import nearest, structure_problems

_CLASSES = ("num_labels", "id2label", "label2id")


def student_problems(student: Any, teacher: Any) -> list[str]:
    """Everything wrong with the section by itself, and with what it asks of the teacher."""
    if not isinstance(student, Mapping):
        return []
    given = {key: value for key, value in student.items() if value is not None}
    if "model" not in given and "config" not in given:
        return [
            "student: needs `model` (start from a checkpoint), `config` (start from scratch), or both (a checkpoint "
            "with settings changed)."
        ]
    problems = [
        *folder_problems("student.model", given.get("model")),
        *folder_problems("student.processor", given.get("processor")),
    ]
    settings = given.get("config")
    if "model" in given and isinstance(settings, Mapping):
        problems += _override_problems(given, settings)
    elif isinstance(settings, Mapping):
        problems += _architecture_problems(settings)
    if "model" not in given:
        for key in ("revision", "from_scratch", "trust_remote_code"):
            if given.get(key):
                problems.append(f"student.{key}: belongs to student.model, and student.config starts from scratch.")
    return [*problems, *_combination_problems(given), *_teacher_problems(given, teacher)]


def _combination_problems(given: Mapping[str, Any]) -> list[str]:
    if not isinstance(given.get("peft"), Mapping):
        return []
    others = [key for key in ("config", "from_scratch", "init_layers") if given.get(key)]
    if "model" in given and not others:
        return adapter_problems(given["peft"], "student.peft")
    why = f"student.{others[0]} makes" if others else "without student.model there is"
    return [
        f"student.peft: an adapter is saved without the model below it, which must be a checkpoint; {why} one that "
        "is saved nowhere. Train and save that student first, and name its folder in student.model.",
        *adapter_problems(given["peft"], "student.peft"),
    ]


def adapter_problems(section: Mapping[Any, Any], label: str) -> list[str]:
    """What is wrong with the settings of an adapter."""
    kind = section.get("type")
    if kind is None:
        return [*mistyped("type", section, label), f"{label}.type: is required, e.g. lora."]
    try:
        cls = adapter_config_class(kind)
    except ConfigError as error:
        return [f"{label}.{problem}" for problem in error.problems]
    known = adapter_settings(kind)
    given = {str(key): value for key, value in section.items() if key != "type"}
    problems = [
        f"{label}.{key}: unknown setting of {kind!r}.{nearest(key, known)}" for key in given if key not in known
    ]
    hints = typing.get_type_hints(cls)
    strict = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    schema = create_model("AdapterSection", __config__=strict, **{key: (hints[key], None) for key in known})
    problems += [f"{label}.{line}" for line in structure_problems(schema, given)]
    if problems:
        return problems
    try:
        cls(**given)
    except (ValueError, TypeError, ImportError) as error:
        return [f"{label}: {one_line(error)}"]
    return [f"{label}.r: must be at least 1, got {given['r']}."] if given.get("r", 1) < 1 else []


def _teacher_problems(given: Mapping[str, Any], teacher: Any) -> list[str]:
    name = teacher.get("model") if isinstance(teacher, Mapping) else None
    problems = []
    if given.get("init_layers") is not None and (name is None or name == SELF):
        problems.append(
            "student.init_layers: takes layers over from a teacher, and there is none. Give teacher.model."
        )
    if name == SELF:
        if "peft" not in given:
            problems.append(
                "teacher.model: is `self`, the student without its adapter, and the student has none: it would be "
                "taught what it already answers. Give student.peft, or another teacher."
            )
        own = [key for key in ("revision", "dtype", "trust_remote_code") if teacher.get(key) is not None]
        problems += [f"teacher.{key}: is the student's, because teacher.model is `self`. Remove it." for key in own]
    return problems


def _override_problems(given: Mapping[str, Any], settings: Mapping[Any, Any]) -> list[str]:
    """What is wrong with settings on top of a checkpoint's, as far as it lies in a folder; the Hub is asked later."""
    if "model_type" in settings:
        return ["student.config.model_type: comes from student.model. Remove it, or remove student.model."]
    path = given["model"]
    if not isinstance(path, str) or not is_there(f"{path}/config.json", Path.is_file):
        return []
    try:
        cls = type(AutoConfig.from_pretrained(path))
    except (OSError, ValueError, KeyError):
        return []  # loading says why, and may be allowed to run code for it
    return setting_problems(cls, settings, "student.config")


def _architecture_problems(settings: Mapping[Any, Any]) -> list[str]:
    label = "student.config"
    model_type = settings.get("model_type")
    if model_type is None:
        required = f"{label}.model_type: is required, e.g. vit, resnet, bert or distilbert."
        return [*mistyped("model_type", settings, label), required]
    if not isinstance(model_type, str):
        return [
            f"{label}.model_type: expected the name of an architecture, such as vit, got {reprlib.repr(model_type)}."
        ]
    if model_type not in CONFIG_MAPPING:
        hint = nearest(model_type, list(CONFIG_MAPPING))
        return [f"{label}.model_type: unknown architecture {model_type!r}.{hint} See `transformers.CONFIG_MAPPING`."]
    cls = CONFIG_MAPPING[model_type]
    try:
        auto_class(cls())
    except ValueError as error:
        return [f"{label}.model_type: {error}"]
    return setting_problems(cls, {key: value for key, value in settings.items() if key != "model_type"}, label)


def setting_problems(cls: type[PreTrainedConfig], settings: Mapping[Any, Any], label: str) -> list[str]:
    """What a configuration class does not know among `settings`, or does not take."""
    known = architecture_settings(cls)
    problems = []
    for key, value in settings.items():
        if key in _CLASSES:
            problems.append(f"{label}.{key}: comes from the data. Remove it.")
        elif key not in known:
            problems.append(f"{label}.{key}: unknown setting of {cls.model_type!r}.{nearest(key, known)}")
        else:
            problems += _setting_problems(cls, key, value, label)
    return problems


def architecture_settings(cls: type[PreTrainedConfig]) -> list[str]:
    """The settings a configuration class has of its own, aliases such as `hidden_size` of a DistilBERT included."""
    base = {field.name for field in fields(PreTrainedConfig)} | set(PreTrainedConfig().to_dict())
    own = {*cls().to_dict(), *cls.attribute_map} - (base - {"problem_type"})
    return sorted({*own, "model_type"} - {"problem_type"})


def _setting_problems(cls: type[PreTrainedConfig], key: str, value: Any, label: str) -> list[str]:
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{label}.{key}: expected a finite number, got {value}."]
    try:
        cls(**{key: value})
        return _range_problems(cls, key, value, label)
    except StrictDataclassError as error:
        reason = str(error).splitlines()[-1].strip().split(" Errors:")[0]
        wanted = re.search(r" expected ([\w\[\], |]+), got \w+ \(value: |match any type in \((.+)\)", reason)
        if wanted is None:
            return [f"{label}.{key}: {re.sub('^(Type|Value)Error: ', '', reason).rstrip('.')}."]
        kinds = re.sub(r"<class '(\w+)'>", r"\1", wanted[1] or wanted[2]).replace("NoneType", "null")
        got = "null" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"
        return [f"{label}.{key}: expected {kinds}, got {got}."]
    except (TypeError, ValueError, KeyError):
        return []  # it may fit together with the other settings: the whole is built before training


_NO_SIZE = re.compile(r"(^|_)(ids?|ind|index|indices)$")
_SHARE = re.compile(r"drop|prob")
_NOT_NEGATIVE = re.compile(r"drop|prob|eps(ilon)?$|(^|_)std$|initializer_range$|ratio$|rate$")
_ACTIVATION = re.compile(r"act(ivation|_fn|_func)?(_function)?$")


def _range_problems(cls: type[PreTrainedConfig], key: str, value: Any, label: str) -> list[str]:
    """Numbers that no layer can be built with, and functions that there are not.

    Many are taken without a word: -1 layers are none, a dropout above 1 fails in the first training step, and an
    epsilon below 0 makes a NaN of some row some day.
    """
    name = cls.attribute_map.get(key, key)
    default = getattr(cls(), name, None)
    if isinstance(value, str):
        if not _ACTIVATION.search(key) or default not in ACT2FN or value in ACT2FN:
            return []
        return [f"{label}.{key}: unknown function {value!r}.{suggestion(value, list(ACT2FN))}"]
    numbers = [entry for entry in _entries(value) if isinstance(entry, (int, float)) and not isinstance(entry, bool)]
    if any(entry < 0 for entry in _entries(default) if isinstance(entry, (int, float))):
        return []  # here a negative number has a meaning
    for number in numbers:
        sized = isinstance(number, int) and not _NO_SIZE.search(key)
        if number < 0 and (sized or _NOT_NEGATIVE.search(key)):
            return [f"{label}.{key}: must not be negative, got {value!r}."]
        if number > 1 and _SHARE.search(key):
            return [f"{label}.{key}: is a probability, so it must be in [0, 1], got {value!r}."]
    return []


def _entries(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
    return []


def folder_problems(path: str, value: Any) -> list[str]:
    """A name that can only be a folder (a Hub id has one slash at most) must be there."""
    if not isinstance(value, str) or is_there(value, Path.is_dir):
        return []
    if value.startswith((".", "/", "~")) or value.count("/") > 1:
        return [f"{path}: there is no folder {value!r}, and a Hub id has the form owner/name. Train or download it."]
    return []


def is_there(value: str, test: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether a path is there; what cannot be the name of a file, such as a text of 5,000 characters, is not."""
    try:
        return test(Path(value).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def mistyped(key: str, section: Mapping[Any, Any], label: str) -> list[str]:
    """A complaint about the key that was meant to be `key`, if `key` is missing and something is like it."""
    near = [] if key in section else difflib.get_close_matches(key, map(str, section), n=1)
    return [f"{label}.{name}: unknown key. Did you mean {key!r}?" for name in near]


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())

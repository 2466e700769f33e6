"""From named hyperparameters to training arguments: strict in names and types, and of the method by path."""

import copy
import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..registry import ConfigError, suggestion
from ..training_args import DistillationTrainingArguments

METHOD = "method."
OF_THE_METHOD = ("method", "method_kwargs", "ce_weight", "kd_weight")

_ONCE = "is read once, when the trainer is made, so a trial could not change it"
_COMPARED = "decides which trial is better, so trials would be compared by different rules"
_FIXED = {
    "metric_for_best_model": _COMPARED,
    "greater_is_better": _COMPARED,
    "local_rank": "is the launcher's",
    **dict.fromkeys(
        ("output_dir", "report_to", "push_to_hub", "label_names", "neftune_noise_alpha", "use_cpu", "bf16", "fp16"),
        _ONCE,
    ),
}
_FIXED_BEGIN = (
    *("hub_", "early_stopping_", "ddp_", "fsdp", "deepspeed", "accelerator_config", "parallelism_config", "tf32"),
    *("bf16_", "fp16_", "torch_compile", "logging_", "save_", "push_", "run_name", "disable_tqdm", "load_best_model"),
)


def argument_changes(
    args: DistillationTrainingArguments, parameters: Mapping[str, Any], has_own_objective: bool
) -> dict[str, Any]:
    """The fields of `args` that `parameters` set, with their values.

    Args:
        args: What the trainer has; unchanged.
        parameters: By the names of fields, and `method.` followed by a path.
        has_own_objective: The trainer was given an objective, so that the arguments build none.

    Raises:
        ConfigError: Every name that is unknown or cannot be searched, and every value of a wrong type.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigError([f"hyperparameters: expected a mapping from names to values, got {parameters!r}."])
    problems: list[str] = []
    changes: dict[str, Any] = {}
    for name, value in parameters.items():
        name = str(name)
        if has_own_objective and (name.startswith(METHOD) or name in OF_THE_METHOD):
            problems.append(
                f"{name}: the trainer was given its `objective` as an object, which the arguments do not build. Name "
                "a method in `args.method` instead, or leave this out."
            )
        elif not name.startswith(METHOD):
            found = _field_problems(args, name, value)
            problems += found
            if not found:
                changes[name] = value
    paths = {str(n): v for n, v in parameters.items() if str(n).startswith(METHOD)} if not has_own_objective else {}
    twice = [f"method.{name}" for name in ("ce_weight", "kd_weight") if name in changes and f"method.{name}" in paths]
    twice += ["method.name"] if "method" in changes and "method.name" in paths else []
    problems += [f"{name}: is set twice, by `{name.removeprefix(METHOD)}` too. Keep one of them." for name in twice]
    changes, more = _with_paths(args, changes, {name: v for name, v in paths.items() if name not in twice})
    if problems + more:
        raise ConfigError(problems + more)
    return changes


def changed_arguments(args: DistillationTrainingArguments, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `changes` come to once the arguments have checked and completed them; `args` stays as it is.

    Raises:
        ConfigError: The arguments refuse them.
    """
    # not made by the constructor: it would set the devices up anew, under the accelerator that is in use
    candidate = object.__new__(type(args))
    own = {name: copy.copy(value) if isinstance(value, (dict, list)) else value for name, value in vars(args).items()}
    vars(candidate).update({**own, "_setup_devices": args._setup_devices, **changes})
    try:
        candidate.__post_init__()
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError([f"{', '.join(changes)}: {' '.join(str(error).split())}"]) from error
    return {name: getattr(candidate, name) for name in changes}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.init and _fixed(field.name) is None)


def _fixed(name: str) -> str | None:
    """Why a field cannot be searched."""
    return _FIXED.get(name) or (_ONCE if name.startswith(_FIXED_BEGIN) else None)


def _field_problems(args: DistillationTrainingArguments, name: str, value: Any) -> list[str]:
    fields = [field.name for field in dataclasses.fields(args) if field.init]
    if name not in fields:
        near = suggestion(name, [*_names(type(args)), "method.name", "method.temperature"]).split(" Available:")[0]
        return [f"{name}: no such training argument.{near} Parameters of the method have the form method.temperature."]
    if _fixed(name) is not None:
        return [f"{name}: {_fixed(name)}. Leave it out of the search."]
    strict = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        TypeAdapter(_hints(type(args))[name], config=strict).validate_python(value)
    except ValidationError as error:
        said = dict.fromkeys(line["msg"].removeprefix("Input should be ").rstrip(".") for line in error.errors())
        return [f"{name}: expected {' or '.join(said)}, got {value!r} ({type(value).__name__})."]
    return []


def _with_paths(
    args: DistillationTrainingArguments, changes: dict[str, Any], paths: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """`changes` with what `method.` paths set, and the paths that lead nowhere."""
    if not paths:
        return changes, []
    changes, problems = dict(changes), []
    keywords = copy.deepcopy(dict(changes.get("method_kwargs", args.method_kwargs) or {}))
    for name, value in paths.items():
        parts = name.removeprefix(METHOD).split(".")
        if not all(parts):
            problems.append(f"{name}: has an empty part. Write e.g. method.temperature.")
        elif parts == ["name"]:
            found = _field_problems(args, "method", value)
            problems += [f"method.name{line.removeprefix('method')}" for line in found]
            changes["method"] = value
        elif parts in (["ce_weight"], ["kd_weight"]):
            found = _field_problems(args, parts[0], value)
            problems += [f"method.{line}" for line in found]
            changes[parts[0]] = value
        else:
            problems += _set(keywords, parts, value, name)
    return {**changes, "method_kwargs": keywords or None}, problems


def _set(tree: dict[str, Any], parts: Sequence[str], value: Any, path: str) -> list[str]:
    """Set the value at a path in place; a name that stands for a component becomes the mapping that it stands for."""
    place: Any = tree
    for index, part in enumerate(parts[:-1]):
        key = _key(place, part)
        if isinstance(place, list) and not _has(place, key):
            return [_outside(place, path)]
        inner = place[key] if isinstance(place, list) else place.get(key)
        if isinstance(inner, str):
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        if not isinstance(inner, (dict, list)):
            at = METHOD + ".".join(parts[: index + 1])
            return [f"{path}: {at} is {inner!r} and has no parts. Search {at} itself."]
        place[key] = inner
        place = inner
    key = _key(place, parts[-1])
    if isinstance(place, list) and not _has(place, key):
        return [_outside(place, path)]
    place[key] = value
    return []


def _outside(place: Sequence[Any], path: str) -> str:
    return f"{path}: leads into a list of {len(place)}, whose entries are numbered from 0."


def _key(place: Any, part: str) -> Any:
    return int(part) if isinstance(place, list) and part.isdigit() else part


def _has(place: Any, key: Any) -> bool:
    return isinstance(place, list) and isinstance(key, int) and key < len(place)

"""What types alone cannot check: methods, training arguments, architectures, and sections that need each other.

Everything here works on the raw sections, well-formed or not, so that all problems come out together, and nothing here
loads a model, a data set or anything from the network.
"""

import enum
import functools
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..losses import LOSSES, DistillationLoss, as_losses
from ..methods import METHODS, build_objective
from ..objective import DistillationObjective
from ..registry import accepted_arguments, check_number, suggestion
from ..temperatures import TEMPERATURES
from ..trainer.complete import checkpoints, defect, last_complete, none_in
from ..training_args import DistillationTrainingArguments
from .config import ExperimentConfig, structure_problems
from .data_checks import data_problems
from .student_checks import is_there, mistyped, one_line, student_problems
from .teacher_checks import teacher_problems
from .training_checks import name_problems, no_trace, rehearse

# Stands for the number of classes until the data are loaded; any number of two or more gives the same verdict.
_NUM_LABELS = 10

_ELSEWHERE = {
    "output_dir": "set `output_dir` at the top level",
    "seed": "set `seed` at the top level",
    "method": "name it in the section `method`",
    "method_kwargs": "give the parameters in the section `method`",
    "ce_weight": "set it in the section `method` or `objective`",
    "kd_weight": "set it in the section `method` or `objective`",
    "hub_token": "it would be written to disk; log in with `hf auth login` or set HF_TOKEN",
    "local_rank": "the launcher sets it",
    "do_train": "a run always trains",
    "do_eval": "a run always evaluates at the end; see `eval_strategy` for more often",
    "do_predict": "a run always scores the test split at the end",
    "label_names": "name the column in `data.label_column`",
    "parallelism_config": "set it up with `accelerate config`",
    "batch_eval_metrics": "the metrics of a run see all rows at once",
}

# What the Trainer would only find out in the middle of its own set-up, or not at all.
_LIMITS: dict[str, dict[str, float]] = {
    **dict.fromkeys(("learning_rate", "num_train_epochs", "weight_decay", "warmup_steps"), {"ge": 0.0}),
    **dict.fromkeys(("max_grad_norm", "eval_delay", "logging_steps", "dataloader_num_workers"), {"ge": 0}),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), {"ge": 1}),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "eval_accumulation_steps", "save_total_limit", "dataloader_prefetch_factor"),
        {"ge": 1},
    ),
    **dict.fromkeys(("save_steps", "eval_steps"), {"gt": 0}),  # 0 is never, or as often as it logs
    "label_smoothing_factor": {"ge": 0.0, "le": 1.0},
    "max_steps": {"ge": -1},
}


def section_problems(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The sections, with YAML's bare `no` put right, and all problems between and inside them."""
    given = dict(given)
    objective, problems = _objective_problems(given)
    problems += _output_problems(given.get("output_dir"))
    problems += teacher_problems(given, objective)
    problems += student_problems(given.get("student"), given.get("teacher"))
    problems += data_problems(given.get("data"), given.get("training"), objective)
    if isinstance(given.get("training"), Mapping):
        given["training"], more = _training_problems(given["training"], given.get("output_dir"))
        problems += more
    return given, problems


def _output_problems(output_dir: Any) -> list[str]:
    """A folder that cannot be made would be noticed when there is something to write: after loading everything."""
    if not isinstance(output_dir, str) or not output_dir.strip():
        return []  # the structure check has said so
    try:
        stands = next(path for path in (Path(output_dir), *Path(output_dir).parents) if path.exists())
    except OSError as error:
        return [f"output_dir: cannot be made ({error.strerror}). Name another folder."]
    if not stands.is_dir():
        return [f"output_dir: cannot be made, because {str(stands)!r} is a file. Name another folder."]
    return []


# ---------------------------------------------------------------------------------------------------------------------
# Method and objective
# ---------------------------------------------------------------------------------------------------------------------


def objective_from(section: Mapping[str, Any], num_labels: int) -> DistillationObjective:
    """The objective of a well-formed `objective` section."""
    specs = enumerate(section.get("losses", []))
    losses = [pair for index, spec in specs for pair in _weighted_losses(spec, f"losses.{index}", num_labels)]
    frame = {key: value for key, value in section.items() if key != "losses"}
    return DistillationObjective(losses, **frame)


def run_objective(config: ExperimentConfig, num_labels: int) -> DistillationObjective:
    """What a configuration minimises, to be asked what it needs; without a trace in the random streams."""
    with torch.random.fork_rng(devices=[]):
        if config.objective is not None:
            return objective_from(config.objective.model_dump(), num_labels)
        method = dict(config.method)
        return build_objective(method.pop("name"), num_labels=num_labels, **method)


def _weighted_losses(spec: Mapping[str, Any], path: str, num_labels: int) -> list[tuple[float, DistillationLoss]]:
    """Several for a list of temperatures, each with the weight."""
    parameters = {key: value for key, value in spec.items() if key != "loss_weight"}
    why = "it multiplies a loss that is minimised."
    weight = check_number("DistillationObjective", "loss_weight", spec.get("loss_weight", 1.0), why, low=0.0)
    return [(weight, loss) for loss in as_losses(parameters, path, num_labels=num_labels)]


def _objective_problems(given: Mapping[str, Any]) -> tuple[DistillationObjective | None, list[str]]:
    method, objective = given.get("method"), given.get("objective")
    if method is None and objective is None:
        return None, ["method: a run needs a `method`, e.g. method=kd, or an `objective`."]
    if method is not None and objective is not None:
        return None, ["objective: stands beside `method`, and each is the whole objective. Remove one of them."]
    with torch.random.fork_rng(devices=[]):
        if isinstance(method, Mapping):
            return _method_problems(method)
        if isinstance(objective, Mapping):
            return _mix_problems(objective)
    return None, []


def _method_problems(section: Mapping[Any, Any]) -> tuple[DistillationObjective | None, list[str]]:
    if not isinstance(section.get("name"), str):
        got = f", got {section['name']!r}" if "name" in section else ""
        required = f"method.name: expected the name of a method{got}.{suggestion('', METHODS)}"
        return None, [*mistyped("name", section, "method"), required]

    def make(spec: Mapping[str, Any]) -> DistillationObjective:
        return build_objective(spec["name"], num_labels=_NUM_LABELS, **{k: v for k, v in spec.items() if k != "name"})

    reserved = [f"method.{key}: the data set it." for key in section if key == "num_labels"]
    spec = {str(key): value for key, value in section.items() if key != "num_labels"}
    built, problems = probe(make, spec, "method", fatal=("name",))
    return built, reserved + problems + _flag_problems(spec, "method")


def _flag_problems(section: Mapping[Any, Any], label: str) -> list[str]:
    """Switches of strategies and losses set to something else than true or false, which Python would accept."""
    classes = [*TEMPERATURES.values(), *LOSSES.values()]
    switches = {name for cls in classes for name, p in accepted_arguments(cls).items() if isinstance(p.default, bool)}
    problems = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            problems += _flag_problems(value, f"{label}.{key}")
        elif isinstance(value, list):
            entries = (entry for entry in enumerate(value) if isinstance(entry[1], Mapping))
            problems += [line for i, entry in entries for line in _flag_problems(entry, f"{label}.{key}.{i}")]
        elif key in switches and not isinstance(value, bool):
            problems.append(f"{label}.{key}: expected true or false, got {value!r} ({type(value).__name__}).")
    return problems


def _mix_problems(section: Mapping[Any, Any]) -> tuple[DistillationObjective | None, list[str]]:
    losses = section.get("losses", [])
    if not isinstance(losses, list) or not all(isinstance(spec, Mapping) for spec in losses):
        return None, []  # the structure check has said so
    problems = []
    for index, spec in enumerate(losses):
        spec = {str(key): value for key, value in spec.items()}
        label = f"objective.losses.{index}"
        problems += probe(lambda part: _weighted_losses(part, "", _NUM_LABELS), spec, label, ("name",))[1]
        problems += _flag_problems(spec, label)
    known = ("ce_weight", "kd_weight", "losses", "warmup", "warmup_epochs", "task_serialization")
    frame = {key: section[key] for key in known if key in section}
    if problems or not {"ce_weight", "kd_weight"} <= frame.keys():
        return None, problems
    return probe(lambda part: objective_from(part, _NUM_LABELS), frame, "objective", ("ce_weight", "kd_weight"))


def probe(
    make: Callable[[Mapping[str, Any]], Any], spec: Mapping[str, Any], label: str, fatal: tuple[str, ...] = ()
) -> tuple[Any, list[str]]:
    """Build from `spec`, and after each failure again without the keys at fault, to learn of every problem.

    Args:
        make: The builder.
        spec: Its arguments.
        label: Where `spec` stands in the configuration.
        fatal: Keys without which there is no second attempt.

    Returns:
        What was built if nothing failed, and the problems.
    """
    problems: list[str] = []
    spec = dict(spec)
    while True:
        try:
            built = make(spec)
            return (None if problems else built), problems
        except (ValueError, TypeError) as error:
            located = [_locate(line, spec) for line in getattr(error, "problems", [str(error)])]
        problems += [f"{'.'.join([label, *path])}: {text}" for path, text in located]
        culprits = [path for path, _ in located if path and path[0] in spec]
        if not culprits or any(path[0] in fatal for path in culprits):
            return None, problems
        for path in culprits:
            spec = _without(spec, path)
        if ["benchmark"] in culprits:
            spec.pop("pair", None)  # a pair means nothing without its benchmark


def _without(spec: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """`spec` without the value at `path`, or without the deepest part of the path that is there."""
    head, *rest = path
    inner = spec.get(head)
    if rest and isinstance(inner, Mapping) and rest[0] in inner and rest != ["name"]:
        return {**spec, head: _without(inner, rest)}
    return {key: value for key, value in spec.items() if key != head}


def _locate(line: str, spec: Mapping[str, Any]) -> tuple[list[str], str]:
    """Split a problem line into its path below the section and the text."""
    match = re.match(r"([\w.\[\]-]+): ", line)
    path, text = (match[1].split("."), line[match.end() :]) if match else ([], line)
    if path[-1:] == ["name"] and isinstance(spec.get(path[0]), str) and len(path) == 2:
        path = path[:1]  # the short form, a bare name, has no key `name`
    argument = re.match(r"`\w+\((\w+)=", text)
    if not argument or path not in ([], ["temperature"]):
        return path, text
    # A component speaks of its own argument: find where that was written.
    name, nested = argument[1], spec.get("temperature")
    if isinstance(nested, Mapping) and name in nested:
        return ["temperature", name], text
    if name in spec:
        return [name], text
    got = re.search(r", got (.+?): ", text)
    same = [key for key, value in spec.items() if got and repr(value) == got[1]]
    return (same if len(same) == 1 else path), text


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def training_schema() -> type[BaseModel]:
    """`DistillationTrainingArguments` as a strict schema, less what is set elsewhere."""
    hints = typing.get_type_hints(DistillationTrainingArguments)
    hints["resume_from_checkpoint"] = bool | str | None
    names = [f.name for f in fields(DistillationTrainingArguments) if f.init and f.name not in _ELSEWHERE]
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    for name, limits in _LIMITS.items():
        hints[name] = Annotated[hints[name], Field(**limits)]
    return create_model("TrainingSection", __config__=strict, **{name: (hints[name], None) for name in names})


def _choices(name: str) -> list[str] | None:
    """The values of a field that takes an enum by name."""
    field = training_schema().model_fields.get(name)
    branches = [] if field is None else [field.annotation, *typing.get_args(field.annotation)]
    enums = [branch for branch in branches if isinstance(branch, type) and issubclass(branch, enum.Enum)]
    return [str(member.value) for member in enums[0]] if enums else None


def _training_problems(section: Mapping[Any, Any], output_dir: Any) -> tuple[dict[Any, Any], list[str]]:
    problems = [f"training.{key}: does not belong here: {_ELSEWHERE[key]}." for key in section if key in _ELSEWHERE]
    section = {key: value for key, value in section.items() if key not in _ELSEWHERE}
    for key, value in section.items():
        choices = _choices(str(key))
        if value is False and choices and "no" in choices:
            section[key] = "no"  # YAML reads a bare `no` as false
        elif isinstance(value, str) and choices and value not in choices:
            problems.append(f"training.{key}: unknown value {value!r}.{suggestion(value, choices)}")
    if section.get("enable_jit_checkpoint"):
        problems.append("training.enable_jit_checkpoint: a run saves at SIGTERM anyway, after the step. Remove it.")
    problems += name_problems(section)
    if section.get("max_steps") == 0 and section.get("max_steps") is not False:
        problems.append("training.max_steps: 0 would train for num_train_epochs. Give at least 1, or leave it out.")
    problems += [f"training.{line}" for line in structure_problems(training_schema(), section)]
    if not problems:
        problems = _resume_problems(section.get("resume_from_checkpoint"), output_dir)
        problems += _argument_problems(section) + _unread_problems(section)
    return section, problems


def _unread_problems(section: Mapping[str, Any]) -> list[str]:
    """What the arguments take as it is, and the Trainer refuses when everything is loaded."""
    settings, report = section.get("optim_args"), section.get("report_to")
    problems = []
    if settings and not all(re.fullmatch(r"[^=]+=[^=]+", part) for part in settings.split(",")):
        problems.append(f"training.optim_args: expected name=value, several with commas between, got {settings!r}.")
    known = [*INTEGRATION_TO_CALLBACK, "none", "all"]
    if "report_to" in section and report is None:
        problems.append("training.report_to: null names no tracker. Give 'none', or leave it out.")
    for name in [report] if isinstance(report, str) else report or ():
        if name not in known:
            problems.append(f"training.report_to: unknown value {name!r}.{suggestion(name, known)}")
    return problems


def _argument_problems(section: Mapping[str, Any]) -> list[str]:
    """What the arguments refuse, alone or together, e.g. a best model at the end without evaluations."""

    def make(values: Mapping[str, Any]) -> DistillationTrainingArguments:
        with no_trace():
            try:
                args = DistillationTrainingArguments(output_dir="unused", **values)
            except Exception as error:
                raise ValueError(f"{one_line(error).rstrip('.')}.") from error
            rehearse(args)
            return args

    values = {key: value for key, value in section.items() if key != "resume_from_checkpoint"}
    problems = probe(make, values, "training")[1]
    return [_blamed(make, values, line) if line.startswith("training: ") else line for line in problems]


_SWITCHES = ("optim", "lr_scheduler_type", "gradient_checkpointing", "activation_checkpointing")


def _blamed(make: Callable[[Mapping[str, Any]], Any], values: Mapping[str, Any], line: str) -> str:
    """The problem at the key without which there is none, where it names no key itself."""
    if any(re.search(rf"\b{re.escape(key)}\b", line) for key in values):
        return line
    said = line.removeprefix("training: ")
    for key in sorted(values, key=_SWITCHES.__contains__):  # what is more special first
        try:
            make({name: value for name, value in values.items() if name != key})
        except ValueError:
            continue
        unknown = re.search(r"got an unexpected keyword argument '(.+)'", line)
        if unknown is not None:
            return f"training.{key}.{unknown[1]}: unknown key."
        return f"training.{key}: {values[key]!r} is refused ({said.rstrip('.')})."
    return line


def _resume_problems(resume: Any, output_dir: Any) -> list[str]:
    key = "training.resume_from_checkpoint"
    if isinstance(resume, str) and not is_there(resume, Path.is_dir):
        return [f"{key}: there is no checkpoint folder {resume!r}. Give its path, or true for the last in output_dir."]
    if not isinstance(output_dir, str) or not output_dir.strip():
        return []
    if isinstance(resume, str):
        wrong = defect(Path(resume))
        return [] if wrong is None else [f"{key}: {resume!r} is not whole: {wrong}. Resume from another checkpoint."]
    is_folder = is_there(output_dir, Path.is_dir)
    last, defects = last_complete(output_dir) if is_folder else (None, {})
    if resume is True and last is None:
        return [f"{key}: is true, but {none_in(output_dir, defects)}"]
    present = checkpoints(output_dir) if is_folder else []
    if not resume and last is None and present:
        names = ", ".join(path.name for path in present)
        return [
            f"output_dir: {output_dir!r} holds {names} of a run that was killed before it had saved anything. Delete "
            "that, or choose another output_dir."
        ]
    if not resume and last is not None:
        return [
            f"output_dir: {output_dir!r} holds checkpoints of a run already ({last.name}), which a new one "
            f"would mix with its own. Resume it with {key}=true, or choose another output_dir."
        ]
    return []

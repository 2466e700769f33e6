"""From the section `student` to a model: a checkpoint, an architecture, or the first changed by the second."""

import copy
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..adapters import SELF, add_adapter, plain_parameters
from ..data import Task
from ..inputs import model_columns, student_inputs
from ..registry import ConfigError
from ..students import InitReport, init_from_teacher, student_from_config
from ..teacher import load_checkpoint
from ..trainer.hub import describe_model
from .blame import blamed, culprits
from .config import StudentSection, TeacherSection
from .student_checks import architecture_settings, one_line, setting_problems

AUTO_CLASSES = {"image": AutoModelForImageClassification, "text": AutoModelForSequenceClassification}
KINDS = {"image": "image", "text": "sequence"}


def build_student(section: StudentSection, task: Task, teacher: TeacherSection | None = None) -> PreTrainedModel:
    """The student, with the task's classes; its weights in `section.dtype`; with its adapter, if it has one.

    Args:
        section: What it is.
        task: The data it has to fit.
        teacher: Where it is "self", a student whose head had to be made anew is refused.

    Raises:
        ConfigError: It cannot be loaded, is no classifier of this modality, or does not fit the data's inputs.
    """
    classes = task.head
    dtype = section.dtype if section.dtype == "auto" else getattr(torch, section.dtype)
    if section.model is not None and not section.from_scratch:
        model = _from_checkpoint(section, task, classes, dtype, own_teacher=teacher and teacher.model == SELF)
        return model if section.peft is None else _with_adapter(model, section, task)
    try:
        config = _architecture(section, task, classes)
        model = _of_modality(config, task) and student_from_config(
            config, **({} if dtype == "auto" else {"dtype": dtype})
        )
        _try(model, task)
    except Exception as error:  # noqa: BLE001 - architectures raise anything at settings that do not fit together
        _refuse_settings(section, task, classes, error)
    return model


def _refuse_settings(section: StudentSection, task: Task, classes: Mapping[str, Any], error: Exception) -> NoReturn:
    """Say what is wrong at the key of `student.config` that is at fault, if one is, else at the section."""
    if isinstance(error, ConfigError):
        raise error
    given = section.config or {}

    def build(settings: dict[str, Any], device: str) -> None:
        config = _architecture(section.model_copy(update={"config": settings}), task, classes)
        with torch.device(device):
            _try(_of_modality(config, task) and student_from_config(config), task)

    keys = _culprits(build, given, fixed="model_type")
    if not keys and section.model is not None:
        refuse("student.model" if section.from_scratch or not given else "student.config", error)
    if not keys and set(given) <= {"model_type"}:
        refuse("student.config", error)
    raise ConfigError([blamed("student.config", keys, given, error)]) from error


def _architecture(section: StudentSection, task: Task, classes: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a student from scratch: what is given, then what the rows say."""
    if section.model is None:
        given = {**_input_settings(section.config, task), **section.config}
        return AutoConfig.for_model(**given, **classes)
    config = _changed_config(section, classes)
    given = {"model_type": config.model_type, **(section.config or {})}
    found = _input_settings(given, task) if config.model_type in CONFIG_MAPPING else {}
    for key, value in found.items():
        if key not in given:
            setattr(config, key, value)
    config.architectures = None
    return config


def _of_modality(config: PreTrainedConfig, task: Task) -> bool:
    auto = AUTO_CLASSES[task.modality]
    if type(config) not in auto._model_mapping and auto.__name__ not in (getattr(config, "auto_map", None) or {}):
        raise ValueError(f"{config.model_type!r} is no {KINDS[task.modality]} classifier in transformers.")
    return True


def _changed_config(section: StudentSection, classes: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of the checkpoint, with the section's settings and the data's classes."""
    options = {"revision": section.revision or "main", "trust_remote_code": section.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(section.model, **options)
    except (OSError, ValueError) as error:
        refuse("student.model", error)
    given = section.config or {}
    problems = setting_problems(type(config), given, "student.config")
    if problems:
        raise ConfigError(problems)
    depth = given.get("num_hidden_layers", given.get("n_layers"))
    kinds = getattr(config, "layer_types", None)
    if depth is not None and kinds and "layer_types" not in given and depth < len(kinds):
        given = {**given, "layer_types": list(kinds[:depth])}  # of the layers that stay
    if config.model_type == "timm_wrapper":  # a repository of timm says `num_classes`, which wins over names
        classes = {**classes, "num_labels": len(classes["id2label"])}
    try:
        return AutoConfig.from_pretrained(section.model, **options, **given, **classes)
    except Exception as error:  # architectures raise anything at settings that do not fit together
        keys = culprits(lambda some: AutoConfig.from_pretrained(section.model, **options, **some, **classes), given)
        raise ConfigError([blamed("student.config", keys, given, error)]) from error


def _from_checkpoint(
    section: StudentSection, task: Task, classes: dict[str, Any], dtype: Any, *, own_teacher: bool | None
) -> PreTrainedModel:
    config = _changed_config(section, classes)
    try:
        _of_modality(config, task)
        model, info = load_checkpoint(
            AUTO_CLASSES[task.modality],
            section.model,
            revision=section.revision or "main",
            config=config,
            dtype=dtype,
            ignore_mismatched_sizes=True,
            use_safetensors=section.use_safetensors,
            trust_remote_code=section.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError) as error:
        refuse("student.model", error)
    except Exception as error:
        if not section.config:
            raise
        _refuse_settings(section, task, classes, error)
    _check_loaded(section, task, model, info)
    head = [name for name in _fresh(info) if not name.startswith(f"{model.base_model_prefix}.")]
    if own_teacher and head:
        raise ConfigError(
            [
                f"teacher.model: is `self`, but the head of {section.model!r} was made anew ({', '.join(head[:4])}), "
                "so without its adapter the student answers at random. Name a checkpoint that was fine-tuned for "
                "these classes in student.model, or another teacher."
            ]
        )
    if section.config:
        try:
            _try(model, task)
        except Exception as error:  # noqa: BLE001 - as above
            _refuse_settings(section, task, classes, error)
    return model


def _fresh(info: Mapping[str, Any]) -> list[str]:
    return sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})


def _check_loaded(section: StudentSection, task: Task, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse weights that stay random although they belong to the backbone."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    odd = [e[0] for e in info["mismatched_keys"] if shapes.get(e[0], (task.num_labels,))[0] != task.num_labels]
    if odd and section.config:
        raise ConfigError(
            [
                f"student.config: leaves {', '.join(odd[:4])} with another shape than in {section.model!r}, so they "
                "would stay at random values. Change only what keeps the shapes (fewer layers, dropout), or set "
                "student.from_scratch=true to take the architecture alone."
            ]
        )
    if odd:
        raise ConfigError(
            [
                f"student.model: {section.model!r} does not fit its own architecture at {', '.join(odd[:4])}, which "
                "would stay at random values; only a classification head may be made anew."
            ]
        )
    prefix = f"{model.base_model_prefix}."
    lacking = [name for name in _fresh(info) if name.startswith(prefix) and re.search(r"\.\d+\.", name)]
    if lacking and section.config:
        raise ConfigError(
            [
                f"student.config: asks for layers that {section.model!r} lacks ({', '.join(lacking[:4])}), which "
                "would stay at random values. Ask for fewer, or set student.from_scratch=true."
            ]
        )


def _with_adapter(model: PreTrainedModel, section: StudentSection, task: Task) -> Any:
    try:
        adapted = add_adapter(model, section.peft)
        commit = describe_model(model, section.revision or "main")["commit"]
        for config in adapted.peft_config.values():
            config.revision = commit or section.revision  # branches move, and an adapter fits one base
        _try(adapted, task)
    except ConfigError as error:
        raise ConfigError([f"student.peft.{problem}" for problem in error.problems]) from error
    except Exception as error:  # noqa: BLE001 - PEFT raises anything at settings that do not fit the model
        _refuse_adapter(section, task, error)
    return adapted


def _culprits(build: Callable[[dict[str, Any], str], None], given: Mapping[str, Any], fixed: str) -> list[str]:
    """On shapes alone if the model can be called like that, else with real weights."""
    found = (culprits(functools.partial(build, device=device), given, fixed=fixed) for device in ("meta", "cpu"))
    return next(found) or next(found)


def _refuse_adapter(section: StudentSection, task: Task, error: Exception) -> NoReturn:
    """Say what is wrong at the key of `student.peft` that is at fault, if one is."""
    config = _changed_config(section, task.head)

    def build(settings: dict[str, Any], device: str) -> None:
        with torch.device(device):
            _try(add_adapter(student_from_config(copy.deepcopy(config)), settings), task)

    keys = _culprits(build, section.peft, fixed="type")
    raise ConfigError([blamed("student.peft", keys, section.peft, error)]) from error


def take_over_layers(
    section: StudentSection, student: PreTrainedModel, teacher: PreTrainedModel, source: TeacherSection, task: Task
) -> InitReport:
    """`init_from_teacher` as the section asks for it; embeddings only where both read the same tokens.

    Raises:
        ConfigError: The two do not fit.
    """
    try:
        same_tokens = task.modality != "text" or _reads_the_same(source, task)
        return init_from_teacher(student, teacher, section.init_layers, embeddings=same_tokens)
    except (ValueError, TypeError) as error:
        refuse("student.init_layers", error)


def _reads_the_same(source: TeacherSection, task: Task) -> bool:
    """Whether the teacher's tokenizer, if it comes with one, has the task's vocabulary."""
    try:
        theirs = AutoTokenizer.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, KeyError):
        return True
    return theirs.get_vocab() == task.processing_class.get_vocab()


def _input_settings(given: dict[str, Any], task: Task) -> dict[str, Any]:
    """What the rows say about the architecture: vocabulary and padding, or channels and image size.

    Raises:
        ConfigError: A setting given contradicts the rows.
    """
    known = architecture_settings(CONFIG_MAPPING[given["model_type"]])
    row = task.look()[0]
    if task.modality == "text":
        vocabulary = len(task.processing_class)
        if given.get("vocab_size", vocabulary) < vocabulary:
            raise ConfigError(
                [
                    f"student.config.vocab_size: is {given['vocab_size']}, but the tokenizer has {vocabulary} tokens: "
                    "larger ids would fall outside the embedding. Leave it out."
                ]
            )
        found = {"vocab_size": vocabulary, "pad_token_id": task.processing_class.pad_token_id}
    else:
        channels, height, width = torch.as_tensor(row["pixel_values"]).shape
        found = {"num_channels": channels, "image_size": height if height == width else [height, width]}
        for key, value in found.items():
            if key in known and given.get(key, value) != value:
                problem = f"is {given[key]}, but the images have {value}. Leave it out."
                raise ConfigError([f"student.config.{key}: {problem}"])
    return {key: value for key, value in found.items() if key in known}


@torch.no_grad()
def _try(model: PreTrainedModel, task: Task) -> None:
    """One row through the model, the longest text of the first ones, so that what does not fit fails now."""
    row = max(task.look(100 if task.modality == "text" else 1), key=lambda row: len(row.get("input_ids", ())))
    batch = student_inputs(task.collator([row]), model_columns(model))
    dtypes = {name: model.dtype if value.is_floating_point() else value.dtype for name, value in batch.items()}
    batch = {name: value.to(model.device, dtypes[name]) for name, value in batch.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()(**batch)
    for module, mode in modes:
        module.training = mode


def provenance(
    source: StudentSection | TeacherSection, model: Any, report: InitReport | None = None
) -> dict[str, Any]:
    """Where a model came from: name, the commit that was pulled (None for a folder), sizes, what it took over."""
    found = {
        "source": source.model,
        "commit": getattr(model.config, "_commit_hash", None) or describe_model(model, source.revision)["commit"],
        "architecture": type(getattr(model, "get_base_model", lambda: model)()).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": plain_parameters(model),
    }
    if isinstance(source, StudentSection):
        learned = (parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        found["trainable_parameters"] = sum(learned)
    return found if report is None else {**found, "initialised": str(report).splitlines()}


def refuse(path: str, error: Exception) -> NoReturn:
    """Turn what a loader said into a problem at `path`."""
    if isinstance(error, ConfigError):
        raise error
    raise ConfigError([f"{path}: {one_line(error)}"]) from error

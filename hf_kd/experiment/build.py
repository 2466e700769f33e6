"""From a checked configuration to the task, the student, the teacher and the training arguments."""

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedModel

from ..adapters import SELF
from ..data import Task, load_task
from ..models import OWN_TYPES, cifar_processor
from ..quantization import KEYS
from ..registry import ConfigError
from ..teacher import auto_class, load_teacher
from ..training_args import DistillationTrainingArguments
from .config import DataSection, ExperimentConfig, TeacherSection
from .student import AUTO_CLASSES, KINDS, refuse
from .student_checks import one_line
from .training_checks import check_here

_LOADING = ("revision", "dtype", "trust_remote_code", "use_safetensors")
_OF_TEACHERS = (*_LOADING, *KEYS, "attn_implementation", "channels_last", "torch_compile")


def build_arguments(config: ExperimentConfig) -> DistillationTrainingArguments:
    """The training arguments of a run, with its method by name.

    Raises:
        ConfigError: They need what is not installed here, or more processes than were started.
    """
    training = {key: value for key, value in config.training.items() if key != "resume_from_checkpoint"}
    method = dict(config.method or {})
    args = DistillationTrainingArguments(
        output_dir=config.output_dir,
        seed=config.seed,
        method=method.pop("name", None),
        ce_weight=method.pop("ce_weight", None),
        kd_weight=method.pop("kd_weight", None),
        method_kwargs=method or None,
        **training,
    )
    check_here(args)
    return args


def build_task(config: ExperimentConfig) -> Task:
    """The data, made into the student's inputs.

    Raises:
        ConfigError: The data or the processor cannot be loaded, or do not fit together.
    """
    data: DataSection = config.data
    options = data.model_dump(exclude={"name", "path"}, exclude_none=True)
    if config.teacher is not None:
        options["teacher_logits"] = config.teacher.column
    if isinstance(data.text_column, list):
        options["text_column"] = tuple(data.text_column)
    try:
        if data.name is not None and data.path is not None:
            options["path"] = data.path
        return load_task(data.name or data.path, processor=_processor(config), **options)
    except (ValueError, TypeError, OSError) as error:
        refuse("data", error)


def processor_source(config: ExperimentConfig) -> tuple[str, dict[str, Any]] | None:
    """Where the student's processor is loaded from, and with which options; None where one is built in.

    That is so for an embedded set, and for a student from scratch of the package's own architectures, unless there is
    a teacher of those, whose processor fits.

    Raises:
        ConfigError: Nothing says which.
    """
    student, embedded = config.student, (config.data.name or "").startswith("embedded/")
    if student.processor is not None:
        return student.processor, {}
    if student.model is not None:
        options = {"revision": student.revision or "main", "trust_remote_code": student.trust_remote_code}
        return student.model, options
    if embedded or _has_own_processor(config):
        return None
    if config.teacher is None or config.teacher.model is None:
        raise ConfigError(
            [
                "student.processor: is required, because a student from scratch has no tokenizer or image processor "
                "and there is no teacher to borrow one from. Give a Hub id or a folder."
            ]
        )
    teacher = config.teacher
    return teacher.model, {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code}


def _has_own_processor(config: ExperimentConfig) -> bool:
    """Whether the student is one of the package's own networks, and no teacher of those has a processor for it."""
    if (config.student.config or {}).get("model_type") not in OWN_TYPES:
        return False
    teacher = config.teacher
    if teacher is None or teacher.model is None:
        return True
    options = {"revision": teacher.revision, "trust_remote_code": teacher.trust_remote_code}
    try:
        return AutoConfig.from_pretrained(teacher.model, **options).model_type not in OWN_TYPES
    except (OSError, ValueError) as error:
        refuse("teacher.model", error)


def _processor(config: ExperimentConfig) -> Any:
    """The student's processor; None where an embedded set brings one."""
    source = processor_source(config)
    if source is not None:
        return _load_processor(source[0], "student.processor", **source[1])
    return None if (config.data.name or "").startswith("embedded/") else cifar_processor()


def _load_processor(source: str, path: str, **options: Any) -> Any:
    """The tokenizer or image processor saved with a model, whichever there is."""
    reasons = []
    for auto in (AutoImageProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(source, **options)
        except (OSError, ValueError, KeyError) as error:
            reasons.append(one_line(error))
    raise ConfigError([f"{path}: {source!r} holds no image processor and no tokenizer ({reasons[0]}; {reasons[1]})."])


def build_teacher(section: TeacherSection | None, task: Task) -> PreTrainedModel | str | None:
    """The teacher, refused if its head was never trained or if it is made for other inputs than the rows hold.

    "self" stays a name: the trainer knows what it means. None where there is none, or only what one answered earlier.

    Raises:
        ConfigError: It cannot be loaded or does not fit.
    """
    if section is None or section.model is None:
        return None
    if section.model == SELF:
        return SELF
    try:
        model = load_teacher(**section.model_dump(include=set(_OF_TEACHERS)), name_or_path=section.model)
    except (OSError, ValueError) as error:
        refuse("teacher.model", error)
    auto = AUTO_CLASSES[task.modality]
    if auto_class(model.config) is not auto:
        raise ConfigError(
            [
                f"teacher.model: {section.model!r} is a {model.config.model_type}, which is no "
                f"{KINDS[task.modality]} classifier, and the rows are {task.modality}s. Name a teacher of their kind."
            ]
        )
    return model

"""The frozen teacher: loaded with a trained head or refused, placed lazily, run without gradient, never saved."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import logging

from .adapters import SELF, OwnBase
from .functional import SINGLE_LABEL, upcast
from .inputs import TEACHER_LOGITS, TEACHER_PREFIX, logits_of, model_columns, teacher_inputs
from .label_map import LabelMap, match_models
from .quantization import is_quantized, quantization_config
from .registry import ConfigError

logger = logging.get_logger(__name__)


def auto_class(config: Any) -> type:
    """The Auto class that builds a classifier from `config`.

    Raises:
        ValueError: The architecture has no classification head.
    """
    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return AutoModelForImageClassification
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return AutoModelForSequenceClassification
    for auto in (AutoModelForImageClassification, AutoModelForSequenceClassification):
        if auto.__name__ in (getattr(config, "auto_map", None) or {}):  # its code comes with it
            return auto
    raise ValueError(
        f"`{config.model_type}` has neither an image nor a sequence classification head in transformers, so it gives "
        "no class scores to distil. Choose an architecture listed under `AutoModelForImageClassification` or "
        "`AutoModelForSequenceClassification`."
    )


def load_teacher(
    name_or_path: str,
    *,
    revision: str = "main",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    attn_implementation: str | None = None,
    channels_last: bool = False,
    torch_compile: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a classifier from the Hub or a folder and refuse one whose weights are not all there.

    Args:
        name_or_path: Hub id or local folder.
        revision: Branch, tag or commit.
        dtype: Precision to hold the teacher in; "auto" keeps the checkpoint's.
        trust_remote_code: Run code that comes with the model.
        use_safetensors: Read the safetensors format only; pickled weights can run code when they are read.
        load_in_8bit: Hold the weights of linear layers but the head's in 8 bits. Needs bitsandbytes.
        load_in_4bit: In 4 bits (NormalFloat), multiplied in `dtype`, in float32 for "auto". Needs bitsandbytes.
        attn_implementation: As in `from_pretrained`; None for what transformers chooses.
        channels_last: Hold the weights of convolutions channels last. Same numbers up to rounding.
        torch_compile: Compile it in place, at its first forward. Same numbers up to rounding.
        **kwargs: Handed to `from_pretrained`.

    Raises:
        ConfigError: bitsandbytes is missing, or both of its settings are asked for.
        OSError: It cannot be found, or has no weights in safetensors.
        ValueError: The checkpoint lacks weights (a freshly initialised head, typically), or the architecture has no
            classification head.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(name_or_path, **source)
    auto = auto_class(config)
    quantization = quantization_config(
        auto,
        config,
        load_in_8bit=load_in_8bit,
        load_in_4bit=load_in_4bit,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    model, info = load_checkpoint(auto, name_or_path, dtype=dtype, use_safetensors=use_safetensors, **source, **kwargs)
    fresh = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
    if fresh:
        raise ValueError(
            f"`load_teacher({name_or_path!r})`: loading left {', '.join(fresh[:4])}{' …' if len(fresh) > 4 else ''} "
            "freshly initialised, so the teacher would hand on random answers. Load a checkpoint that was fine-tuned "
            "for this task, with its own `num_labels`."
        )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if torch_compile:
        model.compile()
    return model


def load_checkpoint(auto: type, name_or_path: str, *, use_safetensors: bool, **kwargs: Any) -> tuple[Any, dict]:
    """A model and what loading left out, with words for where there are no safetensors.

    Raises:
        OSError: As `from_pretrained`.
    """
    # None, not False: what has both formats is read from the safe one even where the other is allowed
    allowed = True if use_safetensors else None
    try:
        return auto.from_pretrained(name_or_path, use_safetensors=allowed, output_loading_info=True, **kwargs)
    except OSError as error:
        if use_safetensors and "safetensors" in str(error):
            raise OSError(
                f"{name_or_path!r} has no weights in the safetensors format, and pickled ones can run code when they "
                "are read. Convert them (`save_pretrained` writes safetensors), or set `use_safetensors=False` if you "
                f"trust their source. ({error})"
            ) from error
        raise


class FrozenTeacher:
    """Runs the teacher: eval mode, no gradient, autocast like the student, on the accelerator's device.

    The model is never handed to `accelerator.prepare`: that would list it beside the student and change how the
    student is evaluated. It is moved on first use, so that nothing is bound to a device or an accelerator that may be
    rebuilt.

    Its answers leave through a `LabelMap`, in the student's classes. A `teacher_logits` column holds what the teacher
    answers, so it goes the same way.

    Args:
        model: A classifier, or any callable from the batch's columns to logits.
        student: The student, to refuse one that shares weights with the teacher, and to match the classes with.
        label_map: A `LabelMap`, or `{teacher name: student name}`, or a JSON or YAML file of that, for classes whose
            names differ. None matches them by name.

    Raises:
        TypeError: `model` cannot be called.
        ValueError: The teacher is the student, or their problems or classes do not correspond.
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        student: nn.Module,
        label_map: LabelMap | Mapping[Any, Any] | str | PathLike | None = None,
    ):
        if not callable(model):
            raise TypeError(
                f"`DistillationTrainer(teacher_model=...)` got {model!r}, which cannot be called. Pass a classifier, "
                "the name or path of one, or a function from the batch's columns to logits."
            )
        self.model = model
        self.columns = model_columns(model)
        self.is_vouched_for = False  # someone has checked its classes, or takes the responsibility
        self.answer: Tensor | None = None  # the latest logits of its own classes
        self._given_map = label_map
        self._device: torch.device | None = None
        self._is_module = isinstance(model, nn.Module)
        self.bind(student)
        if self._is_module:
            model.requires_grad_(False)
            model.eval()

    def bind(self, student: nn.Module) -> None:
        """Match the classes with a student's; a run may bring a new one, and "self" answers for it.

        Raises:
            ValueError: The teacher is the student, or their problems or classes do not correspond.
        """
        if isinstance(self.model, OwnBase):
            self.model.bind(student)
        if self._is_module:
            self._refuse_shared_weights(student)
        problem_type = check_problems(self.model, student)
        self.label_map = match_models(self.model, student, self._given_map, problem_type)
        self.problem_type = problem_type
        if self.label_map is not None:
            say_map(self.label_map, problem_type)

    @property
    def shared(self) -> tuple[int, ...] | None:
        """The ids of the student's classes that the teacher knows; None if it knows them all."""
        return None if self.label_map is None or self.label_map.is_complete else self.label_map.shared

    def _refuse_shared_weights(self, student: nn.Module) -> None:
        own = {id(parameter) for parameter in self.model.parameters()}
        if self.model is student or any(id(parameter) in own for parameter in student.parameters()):
            raise ValueError(
                "`DistillationTrainer(model=..., teacher_model=...)` got models that share weights: freezing the "
                "teacher would freeze the student, and a student that is its own teacher learns nothing from it. Load "
                "the teacher separately."
            )

    def logits(self, batch: dict[str, Any], accelerator: Accelerator) -> Tensor:
        """Teacher logits of a batch, at least float32, without gradient: its `teacher_logits` column or a forward.

        Shape:
            `(batch, shared)`: the student's classes that the teacher knows; usually all of them.
        """
        if TEACHER_LOGITS in batch:
            self.answer = upcast(batch[TEACHER_LOGITS]).detach()
        else:
            self.answer = self.ask(batch, accelerator)
        return self.answer if self.label_map is None else self.label_map(self.answer, self.problem_type)

    def ask(self, batch: dict[str, Any], accelerator: Accelerator) -> Tensor:
        """A forward: the logits of the teacher's own classes, at least float32, `(batch, its classes)`."""
        if self._is_module:
            self._place(accelerator.device)
            if self.model.training:
                self.model.eval()
        with torch.no_grad(), accelerator.autocast():
            outputs = self.model(**self._inputs(batch, accelerator))
        logits = torch.as_tensor(outputs) if _is_array(outputs) else logits_of(outputs, "teacher_model")
        return upcast(logits).detach().to(accelerator.device)

    def _inputs(self, batch: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
        inputs = teacher_inputs(batch, self.columns)
        if not inputs:
            raise ValueError(
                f"`teacher_model` reads {', '.join(self.columns or ['nothing'])} and the batch has "
                f"{', '.join(batch)}: it would run on nothing. Name its arguments after the columns, with or "
                f"without the prefix `{TEACHER_PREFIX}`; a function may take `**columns`."
            )
        if self._is_placed() and isinstance(getattr(self.model, "device", None), torch.device):
            inputs = {k: v.to(self.model.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        weights = (p for p in self.model.parameters() if p.is_floating_point()) if self._is_module else ()
        dtype = next((weight.dtype for weight in weights), None)
        if dtype is None or accelerator.native_amp:
            return inputs
        is_float = {k: isinstance(v, Tensor) and v.is_floating_point() for k, v in inputs.items()}
        return {k: v.to(dtype) if is_float[k] else v for k, v in inputs.items()}  # e.g. a bfloat16 teacher's pixels

    def _place(self, device: torch.device) -> None:
        if self._device == device:
            return
        if not self._is_placed():
            self.model.to(device)
        self._device = device

    def put_away(self) -> None:
        """Leave the device, until the teacher is asked again."""
        if self._device is not None:
            self._place(torch.device("cpu"))
            self._device = None

    def _is_placed(self) -> bool:
        """Whether loading put it where it is: quantised and dispatched models refuse to move."""
        return self._is_module and bool(is_quantized(self.model) or getattr(self.model, "hf_device_map", None))


def _is_array(outputs: Any) -> bool:
    return hasattr(outputs, "__array__") and not isinstance(outputs, Tensor)


def check_problems(teacher: Any, student: nn.Module) -> str:
    """The student's problem type, if the teacher's head is for the same or does not say.

    Raises:
        ValueError: Heads for different problems.
    """
    problems = [getattr(getattr(model, "config", None), "problem_type", None) for model in (teacher, student)]
    if None not in problems and problems[0] != problems[1]:
        raise ValueError(
            f"`teacher_model` has a head for {problems[0]} and `model` one for {problems[1]}: the numbers they answer "
            "with do not mean the same. Choose a teacher that was trained for the same problem, or correct "
            "`config.problem_type`."
        )
    return problems[1] or SINGLE_LABEL


def say_map(label_map: LabelMap, problem_type: str) -> None:
    """What of the match a user should know: once, and the whole table where logging is verbose."""
    if label_map.by == "position":
        names = "one side has no real names" if label_map.must_be_checked else "neither side has real names"
        logger.warning_once(
            f"The {len(label_map.groups)} classes of `teacher_model` and `model` are matched by position, because "
            f"{names} (`LABEL_0`, …). Set `id2label` and `label2id` in both configs to have them matched by name."
        )
    if not label_map.is_complete:
        missing = label_map.unknown
        rows = "" if problem_type != SINGLE_LABEL else ", and rows labelled with one of them learn from labels alone"
        logger.warning_once(
            f"`teacher_model` does not know {len(missing)} of the {len(label_map.groups)} classes of `model` "
            f"({', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}): distillation is over the others{rows}."
        )
    if not label_map.is_identity:
        logger.info(label_map.report())


def teacher_logits(
    teacher: FrozenTeacher | None, batch: dict[str, Any], accelerator: Accelerator, kd_weight: float
) -> Tensor:
    """The logits of a batch to distil from: the teacher's, or its `teacher_logits` column as it is.

    Raises:
        ValueError: There are none.
    """
    if teacher is not None:
        return teacher.logits(batch, accelerator)
    if TEACHER_LOGITS not in batch:
        raise ValueError(
            f"`DistillationTrainer` needs teacher logits at kd_weight={kd_weight:g}, but has no `teacher_model` and "
            f"the batch has no `{TEACHER_LOGITS}` column (it has {', '.join(batch)}). Pass one."
        )
    return batch[TEACHER_LOGITS].detach()


def _no_model(**columns: Any) -> Tensor:
    raise ValueError(
        f"`DistillationTrainer(teacher_model=None, label_map=...)` got a batch without a `{TEACHER_LOGITS}` column: "
        "there is nothing to map. Add the column, or pass a `teacher_model`."
    )


def resolve_teacher(
    teacher: Any, student: nn.Module, label_map: LabelMap | Mapping[Any, Any] | str | PathLike | None = None
) -> FrozenTeacher | None:
    """A `FrozenTeacher` from what users pass as `teacher_model`: nothing, a name, "self", a model or a callable.

    With a `LabelMap` and nothing else, one that reads the `teacher_logits` column.

    Raises:
        ConfigError: The teacher cannot be loaded.
        TypeError: It cannot be called.
        ValueError: It does not fit the student.
    """
    if teacher is None:
        return None if label_map is None else FrozenTeacher(_no_model, student, label_map)
    if teacher == SELF:
        teacher = OwnBase(student)
    return FrozenTeacher(loaded(teacher), student, label_map)


def loaded(teacher: Any) -> Any:
    """A teacher that is given by its name, loaded; any other as it is.

    Raises:
        ConfigError: It cannot be loaded.
    """
    if not isinstance(teacher, (str, PathLike)):
        return teacher
    try:
        return load_teacher(str(teacher))
    except OSError as error:
        raise ConfigError([f"teacher_model: {teacher!r} could not be loaded. {error}"]) from error

"""The configuration: one strict schema for YAML files, command-line overrides and Python mappings."""

import copy
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml import YAMLError

from ..registry import ConfigError, suggestion
from .plain import without_odd_parts

Name = Annotated[str, Field(pattern=r"\S")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """Base of every section: unknown keys and other types than the declared ones are refused, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TeacherSection(Section):
    """The trained classifier to distil from: a `model`, or what one answered earlier, a `column` of the data.

    Args:
        model: Hub id or local folder; "self" for the student without its adapter, which needs `student.peft`.
        column: The column of the training rows that holds a teacher's logits, as `hf-kd add-logits` writes it. No
            teacher is loaded then, and nothing else is to be said of it but `sanity_check`.
        revision: Branch, tag or commit on the Hub.
        dtype: Precision to hold it in; "auto" keeps the checkpoint's.
        processor: Hub id or folder of its tokenizer or image processor. By default that of `model`. Where it differs
            from the student's, the teacher gets inputs of its own.
        label_map: `{teacher class: student class}`, or a JSON or YAML file of that, for classes whose names differ;
            null as student class leaves one out, a number that is no name is a class id. The others are matched by
            name.
        sanity_check: Refuse a teacher that is near chance on labelled training rows.
        trust_remote_code: Run code that comes with `model`.
        use_safetensors: Read weights of the safetensors format only; false allows pickled ones, which can run code.
        load_in_8bit: Hold its linear layers but the head in 8 bits, which needs bitsandbytes.
        load_in_4bit: In 4 bits, multiplied in `dtype` (float32 for "auto"). See `hf_kd.load_teacher`.
        attn_implementation: How it computes attention, e.g. `sdpa`, `eager`, `flash_attention_2`; by default what
            transformers chooses. Another one rounds otherwise.
        channels_last: Hold the weights of convolutions channels last, which many devices compute faster. Rounds
            otherwise.
        torch_compile: Compile it. Rounds otherwise; the first steps take long.
    """

    model: Name | None = None
    column: Name | None = None
    revision: Name = "main"
    dtype: Dtype = "auto"
    processor: Name | None = None
    label_map: dict[str | int, str | int | None] | str | None = None
    sanity_check: bool = True
    trust_remote_code: bool = False
    use_safetensors: bool = True
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    attn_implementation: Name | None = None
    channels_last: bool = False
    torch_compile: bool = False


class StudentSection(Section):
    """The classifier to train: a checkpoint (`model`), an architecture (`config`), or the first changed by the second.

    Args:
        model: Hub id or local folder of a checkpoint to start from. A head that does not fit is made anew.
        config: Without `model`: `model_type` and settings of an architecture to start from scratch. Class names, and
            where they are left out vocabulary, image size and channels, come from the data. With `model`: settings
            that replace those of the checkpoint. Its weights are loaded wherever the changed architecture has them,
            e.g. the first four layers for `num_hidden_layers: 4`; a setting that leaves it with weights of another
            shape, or with layers that the checkpoint lacks, is refused.
        from_scratch: Take the architecture of `model` alone; all weights are fresh.
        init_layers: Take the layers over from the teacher, which must have the same architecture and widths: a list
            of teacher layers, one per student layer, or "first", "last" or "even". See `hf_kd.init_from_teacher`.
        peft: Train an adapter and the head only: `type: lora` and settings as in `peft.LoraConfig`. See
            `hf_kd.add_adapter`.
        revision: Branch, tag or commit of `model`.
        dtype: Precision of the weights; float32 unless you want pure half-precision training.
        processor: Hub id or folder of the tokenizer or image processor. By default that of `model`, else the one an
            embedded data set brings, else the teacher's.
        trust_remote_code: Run code that comes with `model`.
        use_safetensors: Read weights of the safetensors format only; false allows pickled ones, which can run code.
    """

    model: Name | None = None
    config: dict[str, Any] | None = None
    from_scratch: bool = False
    init_layers: Literal["first", "last", "even"] | list[int] | None = None
    peft: dict[str, Any] | None = None
    revision: Name | None = None
    dtype: Dtype = "float32"
    processor: Name | None = None
    trust_remote_code: bool = False
    use_safetensors: bool = True


class DataSection(Section):
    """The data: `name` or `path`, or both for a local copy of a benchmark; the rest as in `hf_kd.load_task`.

    Args:
        name: An embedded set, a benchmark of `hf_kd.data.BENCHMARKS`, or a data set on the Hub.
        path: A local file or folder.
        subset: The configuration of a Hub data set.
        revision: Branch, tag or commit of a Hub data set.
        text_column: The text, or two columns for sentence pairs. Detected where only one fits.
        image_column: The image. Detected where only one fits.
        label_column: The label. Detected where only one fits.
        splits: Which split of the data set serves as `train`, `validation`, `test`.
        missing_label: A value of the label column that means unlabelled, besides null and -100.
        problem_type: What the labels are, where not one class per row: `multi_label_classification`, `regression`.
        metrics: Metrics to report besides the usual ones, e.g. `[nll, brier, top_5_accuracy]`.
        max_samples: Keep at most so many rows of each split, or of the splits named.
        max_length: Cut texts after so many tokens.
        labelled: Keep the labels of so many training rows only; the others are distilled without.
        drop_unlabelled: Leave training rows without a label out, for a student without a teacher.
        class_weights: How much the labels of each class count: `balanced`, one number per class, or numbers by name.
        sample_weight: A column that says how much each training row's label counts.
        augmentation: Random changes of the training images, `mixup` and `cutmix` too: a name or a mapping, as in
            `hf_kd.load_task`.
        streaming: Read rows as they are needed and store none; needs `training.max_steps`.
        seed: Seed of these choices. Not the run's, so that runs and their teacher share the same split.
    """

    name: Name | None = None
    path: Name | None = None
    subset: Name | None = None
    revision: Name | None = None
    text_column: Name | list[Name] | None = None
    image_column: Name | None = None
    label_column: Name | None = None
    splits: dict[str, Name] | None = None
    missing_label: int | str | None = None
    problem_type: str | None = None
    metrics: list[str] = []
    max_samples: int | dict[str, int] | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    labelled: Annotated[int, Field(ge=0)] | None = None
    drop_unlabelled: bool = False
    class_weights: str | list[float] | dict[str, float] | None = None
    sample_weight: Name | None = None
    augmentation: str | dict[str, Any] | None = None
    streaming: bool = False
    seed: Seed = 0


class CacheSection(Section):
    """Where the teacher's answers are kept, so that it is asked once for any number of runs: see `hf_kd.TeacherCache`.

    Args:
        dir: A folder; filled on first use, or by `hf-kd cache`.
        dtype: How logits are rounded; `float32`, not at all, by default.
        top_k: Keep the so many largest logits of each row and the mass of the others.
        views: With `data.augmentation`: so many repeatable views of each training row, seen in turn.
    """

    dir: Name
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    views: Annotated[int, Field(ge=1)] | None = None


class ObjectiveSection(Section):
    """A free mix, instead of a published `method`: see `hf_kd.DistillationObjective`.

    Args:
        ce_weight: Weight of the cross-entropy with the labels.
        kd_weight: Multiplies the sum of the losses. At 0 no teacher is needed.
        losses: Each a `name`, its `loss_weight` (1.0) and the loss's own parameters. A list as `temperature` is the
            sum over its entries, each with that weight.
        warmup: Share of the run over which the distillation weight rises from 0.
        warmup_epochs: The same in epochs; overrides `warmup`.
        task_serialization: Classify on a learned layer over the logits that are distilled.
    """

    ce_weight: float
    kd_weight: float
    losses: list[dict[str, Any]] = []
    warmup: float = 0.0
    warmup_epochs: float | None = None
    task_serialization: bool = False


class ExperimentConfig(Section):
    """One run, checked. Build it with `load_config` or `parse_config`, which check what types alone cannot.

    Args:
        output_dir: Where everything the run makes goes.
        student: The classifier to train.
        data: What it learns from.
        seed: Of the student's initialisation and of training.
        teacher: The classifier to distil from; needed unless the distillation weight is 0.
        teacher_cache: Keep the teacher's answers in a folder; its name, or `dir` and settings.
        method: A published method: its name, or `name` and parameters as in `hf_kd.build_objective`.
        objective: A free mix of losses. Exactly one of `method` and `objective`.
        training: Fields of `hf_kd.DistillationTrainingArguments`.
    """

    output_dir: Name
    student: StudentSection
    data: DataSection
    seed: Seed = 42
    teacher: TeacherSection | None = None
    teacher_cache: CacheSection | None = None
    method: dict[str, Any] | None = None
    objective: ObjectiveSection | None = None
    training: dict[str, Any] = {}

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, defaults included, absent keys left out; `parse_config` of it is the same configuration."""
        return _plain(self)


def _plain(section: Section) -> dict[str, Any]:
    """Without the schema's absent keys; a null inside a free mapping is the user's and stays."""
    values = {name: getattr(section, name) for name in type(section).model_fields}
    return {
        name: _plain(value) if isinstance(value, Section) else copy.deepcopy(value)
        for name, value in values.items()
        if value is not None
    }


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Read a YAML file, apply overrides, check everything.

    Args:
        path: The file.
        overrides: `key=value`, dotted: `training.learning_rate=1e-4`, `objective.losses.0.temperature=2`. The value is
            YAML and replaces what stands there, so `method=ctkd` drops the file's method with all its parameters,
            while `method.name=ctkd` keeps them; `null` removes.

    Raises:
        ConfigError: Every problem found, each with its path, before any model or data set is touched.
    """
    return parse_config(*load_mapping(path, overrides))


def load_mapping(
    path: str | Path, overrides: Iterable[str] = (), added: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What a YAML file holds after the overrides, unchecked, and what is wrong with the overrides.

    Args:
        path: The file.
        overrides: As for `load_config`.
        added: Further sections, which overrides reach too.

    Raises:
        ConfigError: The file cannot be read, or has references or values that are not there.
    """
    config = _read(path)
    config.update(added or {})
    problems = [problem for text in overrides for problem in _override(config, text)]
    try:
        OmegaConf.resolve(config)
        missing = [f"{key}: has no value yet. Give it as {key}=..." for key in sorted(OmegaConf.missing_keys(config))]
        if missing:
            raise ConfigError(problems + missing)
        return OmegaConf.to_container(config), problems
    except OmegaConfBaseException as error:
        raise ConfigError([*problems, f"{error.full_key or path}: {_first_line(error)}."]) from error


def with_values(mapping: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`mapping` with values set by path, as overrides set them, and what is wrong with that; for `parse_config`."""
    config = OmegaConf.create(copy.deepcopy(dict(mapping)))
    problems = [problem for key, value in values.items() for problem in _set(config, key, value)]
    return OmegaConf.to_container(config), problems


def parse_config(mapping: Mapping[str, Any], problems: Sequence[str] = ()) -> ExperimentConfig:
    """Check a configuration given as plain mappings.

    Args:
        mapping: What a YAML file holds.
        problems: Already known ones, reported with the rest.

    Raises:
        ConfigError: Every problem found, each with its path.
    """
    from .checks import section_problems  # imports transformers; the schema alone stays light

    given, odd = without_odd_parts(mapping)
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(given.get("method"), str):
        given["method"] = {"name": given["method"]}
    if isinstance(given.get("teacher_cache"), str):
        given["teacher_cache"] = {"dir": given["teacher_cache"]}
    problems = [*problems, *odd, *structure_problems(ExperimentConfig, given)]
    known = {line.split(":")[0] for line in problems}
    given, more = section_problems(given)
    problems += [line for line in dict.fromkeys(more) if line.split(":")[0] not in known]
    if problems:
        order = list(ExperimentConfig.model_fields)
        places = {line: line.split(":")[0].split(".")[0] for line in problems}
        raise ConfigError(sorted(problems, key=lambda line: (order + [places[line]]).index(places[line])))
    return ExperimentConfig.model_validate(given)


def _read(path: str | Path) -> DictConfig:
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = suggestion(path.name, (p.name for p in folder.glob("*.y*ml")))
        raise ConfigError([f"{path}: there is no such file.{near}"])
    try:
        config = OmegaConf.load(path)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError([f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or error}."]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}."]) from error
    if not isinstance(config, DictConfig):
        raise ConfigError([f"{path}: expected sections such as `student:` and `data:`, got a list."])
    return config


def _override(config: DictConfig, text: str) -> list[str]:
    """Apply one override in place; the problems with it."""
    key, equals, value = text.partition("=")
    if not equals or not all(part and part == part.strip() for part in _parts(key)):
        return [f"{text}: an override has the form key=value, e.g. training.learning_rate=1e-4."]
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    except YAMLError as error:
        return [f"{key}: {value!r} is not valid YAML: {getattr(error, 'problem', None) or error}."]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        return [f"{key}: cannot be set: {_first_line(error)}."]
    return _set(config, key, parsed)


def _parts(key: str) -> list[str]:
    return key.replace("[", ".").replace("]", "").split(".")


def _set(config: DictConfig, key: str, value: Any) -> list[str]:
    """Put a value at a path, in place; the problems with it."""
    parts = _parts(key)
    for short, key_of_it in (("method", "name"), ("teacher_cache", "dir")):
        if parts[0] == short and len(parts) > 1 and isinstance(config.get(short), str):
            config[short] = {key_of_it: config[short]}
    try:
        OmegaConf.update(config, ".".join(parts), value, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        return [f"{key}: cannot be set: {_first_line(error)}."]
    return []


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def structure_problems(schema: type[BaseModel], given: Mapping[Any, Any]) -> list[str]:
    """What `schema` refuses in `given`, as `path: problem` lines with the nearest valid name."""
    try:
        schema.model_validate(given)
    except ValidationError as error:
        found: dict[str, list[tuple[str, Any]]] = {}
        for item in error.errors(include_url=False):
            path = _real_path(item["loc"], given, item["type"])
            found.setdefault(".".join(map(str, path)), []).append(_problem(schema, path, item))
        # a union complains about every branch that does not fit: the deepest complaint is about the one that was meant
        deepest = [path for path in found if not any(other.startswith(f"{path}.") for other in found)]
        return [_joined(path, found[path]) for path in deepest]
    return []


def _real_path(loc: Sequence[str | int], given: Any, kind: str) -> list[str | int]:
    """`loc` without the parts that name a branch of a union instead of a key."""
    path: list[str | int] = []
    for part in loc:
        if part in given if isinstance(given, Mapping) else isinstance(given, list) and isinstance(part, int):
            given = given[part]
        elif kind != "missing" or part != loc[-1]:
            continue
        path.append(part)
    return path


def _problem(schema: type[BaseModel], path: Sequence[str | int], item: Mapping[str, Any]) -> tuple[str, Any]:
    """The words for one pydantic error, and the value to quote (a sentinel of its own if there is none)."""
    if item["type"] == "extra_forbidden" and path == ["search"]:
        return "this section is for `hf-kd tune`, which trains many students. Leave it out for one run.", _NOTHING
    if item["type"] == "extra_forbidden" and path == ["compare"]:
        return "this section is for `hf-kd compare`, which trains many students. Leave it out for one run.", _NOTHING
    if item["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key.{nearest(path[-1], _fields(schema, path[:-1]))}", _NOTHING
    if item["type"] == "missing":
        return "this key is required.", _NOTHING
    if item["type"] in ("model_type", "dict_type"):
        fields = _fields(schema, path)
        return "a mapping" + (f" with the keys {', '.join(fields)}" if fields else ""), item["input"]
    if item["type"] == "string_pattern_mismatch":
        return "a name and not blanks", item["input"]
    if item["type"] == "is_instance_of":
        return "one of the names it takes", item["input"]  # an enumeration
    return item["msg"].removeprefix("Input should be ").removeprefix("a valid ").rstrip("."), item["input"]


_NOTHING = object()


def nearest(name: Any, options: Sequence[str], most: int = 25) -> str:
    """`suggestion`, without the list of all options where it would be longer than anyone reads."""
    hint = suggestion(name, options)
    return hint if len(options) <= most else hint.split(" Available:")[0]


def _joined(path: str, entries: list[tuple[str, Any]]) -> str:
    words = " or ".join(dict.fromkeys(text for text, _ in entries))
    value = entries[0][1]
    if value is _NOTHING:
        return f"{path}: {words}"
    got = "null" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"
    return f"{path}: expected {words}, got {got}."


def _fields(schema: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The valid keys at `path`; empty where any key goes."""
    for part in path:
        field = schema.model_fields.get(str(part))
        branches = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        models = [branch for branch in branches if isinstance(branch, type) and issubclass(branch, BaseModel)]
        if not models:
            return []
        schema = models[0]
    return list(schema.model_fields)

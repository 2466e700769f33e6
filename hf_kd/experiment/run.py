"""Run a configuration: train, evaluate, save, and write down what was run on what."""

import json
import platform
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import PrinterCallback, TrainerCallback, set_seed

from ..adapter_files import is_merged
from ..adapters import SELF, plain_parameters
from ..data import Task
from ..methods import METHODS, plugs_in, resolved_settings
from ..metrics import class_scores
from ..objective import DistillationObjective
from ..publish import PushError, write_merged
from ..test_rows import rows_of_evaluation, write_test_rows
from ..trainer import DistillationTrainer
from ..trainer.hub import environment
from ..training_args import DistillationTrainingArguments
from .best_model import best_model, with_best_metric
from .build import build_arguments, build_task, build_teacher
from .cached_teacher import CachedSide, cached_provenance, cached_side, fill_for
from .checks import objective_from, training_schema
from .config import ExperimentConfig, parse_config
from .pulled import pulled
from .running import SaveAtSignal, only_run_in
from .student import build_student, provenance, take_over_layers
from .teacher_side import TeacherSide, checked_teacher, stored_teacher, teacher_side

RESOLVED_CONFIG = "resolved_config.yaml"
ENVIRONMENT = "environment.json"
RESULTS = "results.json"
TEACHER = "teacher.json"
PER_CLASS = "per_class.json"
_RESUMING = ("resume_from_checkpoint", "resume_with_changes")


@dataclass(frozen=True)
class ExperimentResult:
    """What came of a run; `results.json` holds the same.

    Args:
        output_dir: Where the student, the resolved configuration and this are.
        method: The published method; None for a free objective.
        seed: Of the run.
        validation: Metrics on the validation split: `loss` (nats), `accuracy` and what else the task measures.
        test: The same on the test split, scored once, at the end.
        student_parameters: How many the student has, any adapter merged.
        teacher_parameters: How many the teacher has; None without one.
        train_rows: Training rows; None of a stream.
        labelled_rows: Those with a label; None of a stream.
        train_steps: Optimizer steps.
        train_seconds: Wall-clock seconds of training, evaluations during it included.
        total_seconds: Wall-clock seconds of the whole run, loading included.
        data: What `data.name` or `data.path` said.
        data_fingerprint: Changes when the rows do.
        data_description: What was read, chosen and made of it.
        metric: The key that results on these data are quoted in.
        student_initialised: What `student.init_layers` took over from the teacher, line by line.
        best_model: Where the best model was looked for: by which metric, who named it, its value on the validation
            split and step, whether it is the one that is saved, and whether training stopped early.
    """

    output_dir: str
    method: str | None
    seed: int
    validation: dict[str, float]
    test: dict[str, float]
    student_parameters: int
    teacher_parameters: int | None
    train_rows: int | None
    labelled_rows: int | None
    train_steps: int
    train_seconds: float
    total_seconds: float
    data: str
    data_fingerprint: str
    data_description: str
    metric: str
    student_initialised: list[str] | None = None
    best_model: dict[str, Any] | None = None


class WithTrainer(TrainerCallback):
    """A callback that is told its trainer before training."""

    trainer: DistillationTrainer


def run_experiment(
    config: ExperimentConfig | Mapping[str, Any],
    *,
    task: Task | None = None,
    teacher: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ExperimentResult:
    """Train the student that `config` describes, score it, and save it.

    `output_dir` then holds the student with its processor, loadable by `from_pretrained`; `results.json`;
    `resolved_config.yaml`, which is the same run with every default spelled out; `environment.json`, the versions it
    ran on and the commits of models, processors and data; `distillation.json`, which of these made the student;
    `teacher.json`, which of the teacher's classes is which and how often it was right on labelled training rows; for
    an adapter student also `merged`, the plain one; with `training.evaluate_with_teacher` `per_class.json`, what the
    student lost against its teacher on the test split, class by class; `test_rows.safetensors`, what it answered on
    each test row; a model card with plots; and the Trainer's checkpoints and log. With `training.push_to_hub` all but
    the checkpoints is pushed at the end. Only `output_dir` and the caches of Hugging Face and matplotlib are written
    to.
    Launched on several processes, the first one writes.

    Args:
        config: A checked configuration, or a mapping to check.
        task: The data that `config.data` describes, where the caller has loaded it already.
        teacher: The teacher that `config.teacher` describes, likewise.
        callbacks: Added to the trainer's; those of `WithTrainer` are told which that is.

    Raises:
        ConfigError: The configuration is wrong, or what it names cannot be loaded or does not fit together.
        FloatingPointError: The loss became NaN or infinite.
        TrainingStopped: SIGTERM came; a checkpoint is in `output_dir`. It is a `SystemExit`.
        PushError: The Hub refused the push; everything is in `output_dir`, and the error's `result` is the run's.
    """
    if not isinstance(config, ExperimentConfig):
        config = parse_config(config)
    started = time.perf_counter()
    args = build_arguments(config)
    task = build_task(config) if task is None else task
    asked, config = config, with_best_metric(config, args, task)
    set_seed(config.seed)  # the student's fresh weights are drawn here, before anything the teacher does
    student, teacher, models = _models(config, task, teacher)
    side, cached = side_of(config, teacher, student, task, teacher_splits(args))
    task = side.task
    trainer = build_trainer(config, args, side, student, teacher, callbacks, cached)
    if cached is not None:
        fill_for(trainer, cached, task, teacher_splits(args))
        models["teacher"] = cached_provenance(trainer.stored_teacher)
    trainer.pulled = pulled(config, task, side)
    score = checked_teacher(trainer, task, config.teacher)
    folder = Path(config.output_dir)
    with only_run_in(folder, args.process_index == 0):
        if args.process_index == 0:
            found = {**environment(args), "platform": platform.platform(), "models": models, **trainer.pulled}
            _write_start(folder, config, found, None if config.teacher is None else side.facts(score))
        with SaveAtSignal().watching(trainer):
            output = trainer.train(resume_from_checkpoint=config.training.get("resume_from_checkpoint"))
        best = best_model(asked, trainer)
        validation, test = (scores_on(trainer, rows) for rows in (task.validation, task.test))
        _write_per_class(trainer, task, folder)
        _write_test_rows(trainer, task, folder)
        trainer.save_model(_internal_call=True)  # pushed below, when there are results to push
        trainer.save_state()
        if config.student.peft is not None and args.process_index == 0 and not is_merged(folder):
            write_merged(student, folder, task.processing_class)
        result = ExperimentResult(
            output_dir=config.output_dir,
            method=(config.method or {}).get("name"),
            seed=config.seed,
            validation=validation,
            test=test,
            student_parameters=plain_parameters(student),
            teacher_parameters=_size(trainer, teacher),
            train_rows=task.num_train_rows,
            labelled_rows=task.num_labelled,
            train_steps=output.global_step,
            train_seconds=round(output.metrics["train_runtime"], 3),
            total_seconds=round(time.perf_counter() - started, 3),
            data=config.data.name or config.data.path,
            data_fingerprint=task.fingerprint,
            data_description=task.description,
            metric=task.metric,
            student_initialised=models["student"].get("initialised"),
            best_model=best,
        )
        _publish(trainer, folder, result)
        return result


def _size(trainer: DistillationTrainer, teacher: Any) -> int | None:
    if trainer.teacher_cache is not None:
        return trainer.stored_teacher.get("parameters")
    return None if teacher in (None, SELF) else teacher.num_parameters()


def side_of(
    config: ExperimentConfig, teacher: Any, student: Any, task: Task, splits: Sequence[str]
) -> tuple[TeacherSide, CachedSide | None]:
    """The teacher's inputs and classes, and its cache, if it has one."""
    if config.teacher_cache is None:
        return teacher_side(config, teacher, student, task, splits), None
    return cached_side(config, task, student, splits, teacher)


def build_trainer(
    config: ExperimentConfig,
    args: DistillationTrainingArguments,
    side: TeacherSide,
    student: Any,
    teacher: Any,
    callbacks: Sequence[TrainerCallback],
    cached: CachedSide | None = None,
) -> DistillationTrainer:
    """The trainer of a run, with all that is settled."""
    task = side.task
    if cached is not None:
        teacher = cached.teacher
    trainer = DistillationTrainer(
        model=student,
        args=args,
        data_collator=task.collator,
        train_dataset=task.train,
        eval_dataset=task.validation,
        processing_class=task.processing_class,
        compute_metrics=task.compute_metrics,
        teacher_model=teacher,
        objective=_objective(config, side),
        teacher_processing_class=side.processor,
        label_map=side.label_map,
        teacher_cache=None if cached is None else cached.cache,
        callbacks=list(callbacks),
    )
    trainer.revisions = {
        "teacher": config.teacher and config.teacher.revision,
        "student": config.student.revision or "main",
    }
    for callback in callbacks:
        if isinstance(callback, WithTrainer):
            callback.trainer = trainer
    if cached is None:
        trainer.stored_teacher = _stored_teacher(config)
    trainer.told = {"data_section": _identity(config, task)}
    if args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)  # it would print every log record instead
    return trainer


def _stored_teacher(config: ExperimentConfig) -> dict[str, Any] | None:
    """The teacher that gave the logits the run learns from, as far as known; None with another one, or none."""
    is_stored = config.teacher is not None and config.teacher.column is not None
    return stored_teacher(config.data.path) if is_stored else None


def _identity(config: ExperimentConfig, task: Task) -> dict[str, Any]:
    """What a resumed run must share of the data: the rows by their fingerprint, wherever they lie."""
    said = config.data.model_dump(exclude={"name", "path", "revision", "metrics"})
    return {"fingerprint": task.fingerprint, **said}


def teacher_splits(args: DistillationTrainingArguments) -> tuple[str, ...]:
    """Where the teacher answers."""
    return ("train", "validation", "test") if args.evaluate_with_teacher else ("train",)


def _objective(config: ExperimentConfig, side: TeacherSide) -> DistillationObjective | None:
    """The free mix of the configuration, over the classes that both models know."""
    if config.objective is None:
        return None
    classes = side.task.num_labels if side.label_map is None else len(side.label_map.shared)
    return objective_from(config.objective.model_dump(), classes)


def _write_start(
    folder: Path, config: ExperimentConfig, found: Mapping[str, Any], teacher: Mapping[str, Any] | None
) -> None:
    """What is known before training, of the teacher too, so that a run that breaks off can be told apart."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESOLVED_CONFIG).write_text(dump_resolved(config), encoding="utf-8")
    _write_json(folder / ENVIRONMENT, found)
    if teacher is not None:
        _write_json(folder / TEACHER, teacher)


def _models(config: ExperimentConfig, task: Task, teacher: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Student and teacher, and where they came from."""
    student = build_student(config.student, task, config.teacher)
    is_needed = config.teacher_cache is None or config.student.init_layers is not None
    if is_needed and teacher is None:  # else only if the cache lacks answers
        teacher = build_teacher(config.teacher, task)
    taken = None
    if config.student.init_layers is not None:
        taken = take_over_layers(config.student, student, teacher, config.teacher, task)
    models = {"student": provenance(config.student, student, taken)}
    if teacher not in (None, SELF) and config.teacher_cache is None:
        models["teacher"] = provenance(config.teacher, teacher)
    elif stored := _stored_teacher(config):
        models["teacher"] = stored
    return student, teacher, models


def _publish(trainer: DistillationTrainer, folder: Path, result: ExperimentResult) -> None:
    """Write the results and the card, then push if asked; an error brings the result along, which is on disk."""
    if trainer.args.process_index == 0:
        _write_json(folder / RESULTS, asdict(result))
    trainer.create_model_card()
    if trainer.args.push_to_hub:
        try:
            trainer.push_to_hub()
        except PushError as error:
            error.result = result
            raise


def scores_on(trainer: DistillationTrainer, rows: Any) -> dict[str, float]:
    """The scores on `rows`, without the Trainer's prefix and timings."""
    prefix = "eval_"
    timings = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    scores = trainer.evaluate(rows, metric_key_prefix=prefix.rstrip("_"))
    scores = {key.removeprefix(prefix): value for key, value in scores.items() if key.startswith(prefix)}
    return {key: value for key, value in scores.items() if key not in timings}


def _write_per_class(trainer: DistillationTrainer, task: Task, folder: Path) -> None:
    """Where the student is worse than its teacher, on the split that was scored last, the test split."""
    if not trainer.args.evaluate_with_teacher or trainer.args.process_index != 0:
        return
    shared = trainer.objective.shared
    taught = None if shared is None else shared.classes
    measure, classes = class_scores(trainer.last_evaluation.arrays(), task.label_names, taught)
    if classes:
        content = {"split": "test", "measure": measure, "classes": [asdict(entry) for entry in classes]}
        _write_json(folder / PER_CLASS, content)


def _write_test_rows(trainer: DistillationTrainer, task: Task, folder: Path) -> None:
    """The student's answer on each row of the split that was scored last, the test split, in the split's order."""
    order, shared = None, trainer.objective.shared
    if trainer.args.train_sampling_strategy == "group_by_length" and isinstance(task.test, Sized):
        order = list(trainer._get_eval_sampler(trainer._remove_unused_columns(task.test, "evaluation")))
    if trainer.args.process_index == 0:
        taught = None if shared is None else shared.classes
        rows = rows_of_evaluation(trainer.last_evaluation.arrays(), task.label_names, taught=taught, order=order)
        if rows is not None:
            write_test_rows(folder, rows)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The resolved configuration
# ---------------------------------------------------------------------------------------------------------------------


def dump_resolved(config: ExperimentConfig) -> str:
    """`config` as YAML with every default spelled out: itself a configuration, of the same run.

    A resumed run is the run it resumes, so what says how to resume is left out.
    """
    values = config.to_mapping()
    if config.method is not None:
        values["method"] = resolved_method(config.method)
    given = {key: value for key, value in values.pop("training").items() if key not in _RESUMING}
    defaults = {key: value for key, value in _training_defaults().items() if key not in given}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + "training:\n"
    for comment, section in (("", given), ("  # Defaults of the installed versions:\n", defaults)):
        block = yaml.safe_dump(section, sort_keys=False, allow_unicode=True) if section else ""
        text += comment + "".join(f"  {line}\n" for line in block.splitlines())
    return text


def resolved_method(section: Mapping[str, Any]) -> dict[str, Any]:
    """A `method` section with the table's values filled in, benchmark and pair settings included."""
    given = {key: value for key, value in section.items() if key != "name"}
    name, method = section["name"], METHODS[section["name"]]
    arguments = method.strategy_arguments
    values = resolved_settings(name, **given)
    if plugs_in(method, values.get("temperature")):  # a plugged strategy has arguments of its own
        values = {key: value for key, value in values.items() if key == "temperature" or key not in arguments}
    return {"name": name, **{key: value for key, value in values.items() if value is not None or key in given}}


def _training_defaults() -> dict[str, Any]:
    """Every training argument's default that a configuration can state; null ones say nothing."""
    known = training_schema().model_fields
    values = {}
    for field in fields(DistillationTrainingArguments):
        if field.name in known:
            value = field.default if field.default_factory is MISSING else field.default_factory()
            values[field.name] = getattr(value, "value", value)
    return {key: value for key, value in values.items() if value is not None}

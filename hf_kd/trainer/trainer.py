"""`DistillationTrainer`: the Hugging Face Trainer with a teacher and a temperature strategy in its loss."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from ..adapters import warn_if_head_is_lost
from ..heads import fold, reset
from ..inputs import (
    LABEL_WEIGHT,
    ROW_WEIGHT,
    DistillationCollator,
    collator_for,
    logits_of,
    model_columns,
    student_inputs,
)
from ..label_map import LabelMap
from ..methods import build_objective
from ..mixing import Mixing
from ..objective import Batch, DistillationObjective
from ..teacher import FrozenTeacher, teacher_logits
from ..teacher_cache import TeacherCache
from ..temperatures import Progress
from ..training_args import DistillationTrainingArguments
from . import checks
from .attempts import begin_attempt
from .evaluation import EvaluationRows, check_not_mixed, mean_over_labelled, mean_task_loss, row_values
from .extras import ExtraTensors, distilled_classes, serialized_layer, sizes
from .objective_state import ObjectiveState, initialized, join_optimizer
from .problem_types import check_label_shape, check_problem_type, problem_type_of
from .recomputation import check_recomputation, hides_gradients, with_gradients
from .scaling import forget_evaluation, gather_batch, mixed_labels
from .search import SearchingTrainer
from .stopping import add_own_callbacks
from .teacher_check import TeacherCheck
from .telemetry import Telemetry, warn_if_saturated


class DistillationTrainer(SearchingTrainer):
    r"""Trains `model` (the student) on its labels and on what `teacher_model` answers.

    The loss is a `DistillationObjective`: cross-entropy over the labelled rows plus any distillation losses over all
    rows, each with any temperature strategy. It is normalised by the rows of the whole optimizer step on all
    processes, so one step on the same rows is the same step for every split into micro-batches and processes, labelled
    or not. Cross-entropy comes from the logits, never from the model's own loss, so a baseline at `kd_weight=0` is
    scaled the same way. In evaluation `eval_loss` is the plain cross-entropy of the student and predictions are its
    logits.

    The student's `config.problem_type` says what its labels are. For several labels per row, binary cross-entropy of
    each label stands where this says cross-entropy, for a regression squared error.

    Args:
        model: The student: a sequence or image classifier, or a regression head.
        args: `DistillationTrainingArguments`.
        data_collator: As in `Trainer`. Labels of -100 or None mean "no label"; NaN or None for a regression. A column
            `label_weight` weighs the rows' labels, not the distillation: their loss is an exact weighted mean.
        train_dataset: As in `Trainer`. Columns of either model are kept; columns prefixed `teacher_` go to the teacher
            alone; a `teacher_logits` column stands in for the teacher.
        eval_dataset: As in `Trainer`.
        processing_class: The student's tokenizer or image processor; saved with the student.
        model_init: As in `Trainer`.
        compute_loss_func: Refused: the objective is the loss.
        compute_metrics: As in `Trainer`; sees the student's logits.
        callbacks: As in `Trainer`.
        optimizers: As in `Trainer`; for the student. Learned temperatures have their own.
        optimizer_cls_and_kwargs: As in `Trainer`.
        preprocess_logits_for_metrics: As in `Trainer`.
        teacher_model: A classifier, its Hub id or path, or a callable from the batch's columns to logits. May be None
            at `kd_weight=0` or with a `teacher_logits` column. It is frozen, put in eval mode and never saved.
            "self" is a PEFT student without its adapter and its dropout.
        objective: What to minimise; None builds `args.method`.
        teacher_processing_class: The teacher's tokenizer or image processor: `teacher_` columns are collated for it,
            padded by a tokenizer, stacked otherwise.
        label_map: Which of the teacher's classes is which of the student's: `{teacher name: student name}`, a JSON or
            YAML file of that, or a `LabelMap`. None matches them by name; see `LabelMap`.
        mixing: mixup and CutMix of training batches, for both models alike; None takes the `mixing` of a collator that
            has one, as that of `load_task` may. A collator, or dataset, that mixes by itself gives `labels_mix`, the
            second labels, and `mix_lambda`, the share of the first.
        teacher_cache: A `TeacherCache`, or its folder: what the teacher answered is read there, and the teacher is
            asked about rows that are missing, once. Where none is, `teacher_model` may be None.

    Raises:
        TypeError: `args` or the teacher is of the wrong kind.
        ValueError: Arguments that contradict each other, a teacher that does not fit, or labels outside the classes.
    """

    loss_is_scaled_for_ga = True
    teacher: FrozenTeacher | None
    _built_from: tuple | None = None

    def __init__(
        self,
        model: nn.Module | None = None,
        args: DistillationTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        *,
        teacher_model: nn.Module | str | PathLike | Callable[..., Any] | None = None,
        objective: DistillationObjective | None = None,
        teacher_processing_class: Any = None,
        label_map: LabelMap | Mapping[Any, Any] | str | PathLike | None = None,
        mixing: Mixing | Mapping[str, Any] | None = None,
        teacher_cache: TeacherCache | str | PathLike | None = None,
    ):
        if args is None:
            args = DistillationTrainingArguments(output_dir="tmp_trainer")
        checks.check_arguments(args, compute_loss_func, objective, optimizers[1])
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        checks.check_parallelism(self.accelerator, teacher_model)
        checks.check_milestones(args.lr_milestones, train_dataset)
        self.label_name = checks.single_label_name(self.label_names)
        self._bind_student()
        self._set_cache(teacher_cache, teacher_model, label_map)
        teacher_collator = collator_for(teacher_processing_class)
        classes = checks.num_labels(self.model)
        self.data_collator = DistillationCollator(
            self.data_collator, teacher_collator, self.label_name, problem_type=self.problem_type, num_labels=classes
        )
        self._given_objective = objective
        self._initial_objective_state = None
        self.objective = objective if objective is not None else self._build_objective()
        checks.check_teacher_presence(self.objective, self.teacher, train_dataset, args.evaluate_with_teacher)
        self._bind_objective()
        self._check_data(mixing, data_collator)
        self._forget_run()
        self._evaluation_rows = self.last_evaluation = None
        add_own_callbacks(self)

    def _bind_student(self) -> None:
        """What is read off the student, while it is still the bare model; it may be a new one in each run."""
        student = self.accelerator.unwrap_model(self.model)
        check_recomputation(student, self.args, self.accelerator)
        self._hides_gradients = hides_gradients(student, self.args)
        self.problem_type = problem_type_of(self.model)
        self._student_columns = model_columns(student)
        warn_if_head_is_lost(student)
        if getattr(self, "teacher", None) is not None:
            self.teacher.bind(student)
        self._signature_columns = None

    def _forget_run(self) -> None:
        """What belongs to one `train()` alone."""
        self._objective_state: ObjectiveState | None = None
        self._telemetry: Telemetry | None = None
        self._extras: ExtraTensors | None = None
        self._resumed: tuple[dict[str, Tensor], dict[str, Any]] = ({}, {})
        self._first_loss_step = self._last_flush_step = 0
        self._last_saved: str | None = None
        self._warned: set[str] = set()
        self._teacher_check: TeacherCheck | None = None

    def _objective_settings(self) -> tuple:
        """The arguments that the objective is built from."""
        args = self.args
        return args.method, repr(args.method_kwargs), args.ce_weight, args.kd_weight

    def _build_objective(self) -> DistillationObjective:
        """The objective that the arguments name; with its own random stream, so that it changes no other draw."""
        args = self.args
        weights = {name: getattr(args, name) for name in ("ce_weight", "kd_weight") if getattr(args, name) is not None}
        self._built_from = self._objective_settings()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)
            return build_objective(
                args.method,
                num_labels=distilled_classes(self.model, self.teacher),
                **{**(args.method_kwargs or {}), **weights},
            )

    def _bind_objective(self) -> None:
        """Give the objective what depends on both models' sizes; with its own random stream."""
        checks.check_learned_parts(self.objective, self.accelerator, self.args.optim.value)
        classes = checks.num_labels(self.model)
        check_problem_type(self.objective, self.problem_type, classes, self.args.label_smoothing_factor)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed)
            student = self.accelerator.unwrap_model(self.model)
            self._serialized_layer = serialized_layer(self.objective, student)
            has_bias = self._serialized_layer is None or self._serialized_layer.bias is not None
            widths = sizes(self.objective, student, self.teacher)
            shared = None if self.teacher is None else self.teacher.shared
            self.objective.bind(widths, bias=has_bias, problem_type=self.problem_type, shared=shared)
        self.objective.to(self.accelerator.device)

    # ---- Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The objective of a micro-batch, as its share of the whole optimizer step.

        In eval mode, the task's plain loss over the labelled rows.

        Args:
            model: The student as the Trainer wrapped it. It is the one that is called.
            inputs: The batch.
            return_outputs: Also return `{"logits": …}`.
            num_items_in_batch: Rows, labelled rows and their weight in the optimizer step, over all processes; None
                takes this batch's mean.
        """
        # the teacher first: afterwards its memory serves the student's activations, which are kept for the backward
        answer = self._teacher_logits(inputs) if model.training and self.objective.needs_teacher else None
        columns = student_inputs(inputs, self._student_columns)
        if self._hides_gradients and model.training:
            columns = with_gradients(columns)
        student_logits = logits_of(model(**columns), "model")
        labels = inputs.get(self.label_name)
        check_label_shape(labels, student_logits, self.problem_type)
        if model.training:
            loss = self._training_loss(student_logits, answer, inputs, labels, num_items_in_batch)
        else:
            loss = mean_task_loss(self.objective.classify(student_logits), labels, self.problem_type)
        return (loss, {"logits": self.objective.classify(student_logits)}) if return_outputs else loss

    def _training_loss(
        self,
        student_logits: Tensor,
        answer: Tensor | None,
        inputs: dict[str, Any],
        labels: Tensor | None,
        counts: Tensor | None,
    ) -> Tensor:
        (num_rows, num_labelled, labels_weigh), taught = (None, None, None), None
        if counts is not None:
            # DDP averages gradients over processes, so each one's share is scaled up by their number
            (num_rows, num_labelled), taught = counts[:, :2] / self.accelerator.num_processes
            labels_weigh = counts[0, 2] / self.accelerator.num_processes
        is_first = self._telemetry is not None and "first batch" not in self._warned
        if is_first:
            self._warned.add("first batch")
            checks.check_first_batch(student_logits, answer, labels, self.problem_type, self.objective.shared)
        progress = self._progress()
        extras = {} if self._extras is None else self._extras.take(student_logits)
        mixed = mixed_labels(inputs)
        known = self.objective.known_labels(labels, mixed)
        batch = Batch(student_logits, answer, known, extras)
        output = self.objective(
            student_logits,
            answer,
            labels,
            progress=progress,
            label_smoothing=self.args.label_smoothing_factor,
            num_rows=num_rows,
            num_labelled=num_labelled,
            taught_counts=taught,
            row_weight=inputs.get(ROW_WEIGHT),
            label_weight=inputs.get(LABEL_WEIGHT),
            labels_weigh=labels_weigh,
            whole_batch=gather_batch(batch, inputs, self.accelerator) if self.objective.has_relations else None,
            extras=extras,
            mixed=mixed,
        )
        if is_first:
            checks.check_temperatures(output)
        if self._telemetry is not None:
            labels, row_weight = self.objective.distilled_rows(known, inputs.get(ROW_WEIGHT))
            self._telemetry.update(output, answer, labels, self.state.global_step, row_weight)
            self._teacher_check.observe(answer, labels, row_weight)
            self._objective_state.observe(output, progress)
        return output.loss

    def _teacher_logits(self, inputs: dict[str, Any]) -> Tensor:
        return teacher_logits(self.teacher, inputs, self.accelerator, self.objective.kd_weight)

    def _progress(self) -> Progress:
        """Where training is: the same for all micro-batches of an optimizer step."""
        fraction = self.state.global_step / self.state.max_steps if self.state.max_steps > 0 else 0.0
        return Progress(epoch=self._epochs_done(), fraction=min(fraction, 1.0))

    # ---- Training

    def _inner_training_loop(self, batch_size: int | None = None, **kwargs: Any) -> TrainOutput:
        """Bind everything that belongs to one run, then train; again if that ran out of memory."""
        begin_attempt(self, kwargs, batch_size)
        self._begin_run()
        if self._attempt is not None:
            self._attempt.keep_objective()
        try:
            output = super()._inner_training_loop(batch_size, **kwargs)
            self._attempt = None
        finally:
            self._telemetry = None
            if self._extras is not None:
                self._extras.close()
                self._extras = None
        if self._serialized_layer is not None:  # from here on the student is plain in memory too
            fold(self._serialized_layer, self.objective.serialization)
            reset(self.objective.serialization)
        return output

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None):
        """As in `Trainer`; after the last micro-batch of a step, what is learned outside the wrapper is averaged."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._objective_state is not None and self.accelerator.sync_gradients:
            self._objective_state.average()
        return loss

    def _begin_run(self) -> None:
        """Per-run state: the model may be a new one (`model_init`), the arguments another trial's."""
        args = self.args
        self._forget_run()
        self.model_wrapped = forget_evaluation(self.model, self.model_wrapped, self.accelerator)
        self._bind_student()
        is_stale = self.model_init is not None or self._objective_settings() != self._built_from
        if self._given_objective is None and is_stale:
            self.objective = self._build_objective()
        self._bind_objective()
        if self._given_objective is not None and self.model_init is not None:
            self._initial_objective_state = initialized(self.objective, self._initial_objective_state)
        checks.check_teacher_presence(self.objective, self.teacher, self.train_dataset, args.evaluate_with_teacher)
        self._objective_state = ObjectiveState(
            self.objective,
            self.accelerator,
            learning_rate=args.temperature_learning_rate,
            momentum=args.temperature_momentum,
            weight_decay=args.temperature_weight_decay,
        )
        if self.objective.needs:
            self._extras = ExtraTensors(self.objective, self.accelerator.unwrap_model(self.model), self.teacher)
        self._telemetry = Telemetry(args.device, self.problem_type)
        self._teacher_check = TeacherCheck(
            self.teacher, distilled_classes(self.model, self.teacher), self.problem_type
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`, with groups for what the objective learns beside the student."""
        optimizer = super().create_optimizer(model)
        added = join_optimizer(optimizer, self.objective, self.args.weight_decay)
        if added and self.lr_scheduler is not None:
            raise ValueError(
                "`DistillationTrainer(optimizers=(optimizer, scheduler))`: the objective learns a projector or a "
                "serialisation layer, which joins the optimizer as a group that this scheduler does not know. Pass "
                "`optimizers=(optimizer, None)` and name the schedule in `args`."
            )
        return optimizer

    def _finalize_training(self, trial, num_train_samples, start_time) -> TrainOutput:
        """As in `Trainer`, with the mean loss over all processes and, also after a resume, over the whole run."""
        self._tr_loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean()
        output = super()._finalize_training(trial, num_train_samples, start_time)
        return TrainOutput(output.global_step, output.metrics["train_loss"], output.metrics)

    # ---- Evaluation

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """As in `Trainer`, with a loss that is the exact mean over labelled rows, repeated rows left out."""
        self._evaluation_rows = self.last_evaluation = EvaluationRows()
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            metrics = self._evaluation_rows.metrics(metric_key_prefix)
        finally:
            self._evaluation_rows = None
        output.metrics.pop(f"{metric_key_prefix}_loss", None)
        output.metrics.update(metrics)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The student's loss, logits and labels; logits only, whatever else the model returns."""
        check_not_mixed(inputs)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get(self.label_name)
        with torch.no_grad(), self.compute_loss_context_manager():
            student_logits = logits_of(model(**student_inputs(inputs, self._student_columns)), "model").detach()
            check_label_shape(labels, student_logits, self.problem_type)
            student_logits = self.objective.classify(student_logits)
            teacher_logits = self._teacher_logits(inputs) if self.args.evaluate_with_teacher else None
            rows = row_values(student_logits, teacher_logits, labels, self.problem_type, self.objective.shared)
        if self._evaluation_rows is not None:
            self._evaluation_rows.add(rows, self.gather_function)
        loss = None if labels is None else mean_over_labelled(rows["loss"], rows["labelled"])
        return (loss, None, None) if prediction_loss_only else (loss, student_logits, labels)

    # ---- Logging

    def log(self, logs: dict[str, float], start_time: float | None = None, *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`; training records also carry the components and temperatures of their window."""
        if self._telemetry is not None and ("loss" in logs or "train_loss" in logs):
            self._telemetry.raise_if_non_finite(self.accelerator, self._last_saved)
        if self._telemetry is not None and "loss" in logs:
            steps = self.state.global_step - self._last_flush_step
            self._last_flush_step = self.state.global_step
            record = self._telemetry.flush(self.accelerator, steps)
            warn_if_saturated(self.objective, record, self._warned)
            self._teacher_check.report(self.accelerator)
            logs.update(record)
        if self._telemetry is not None and "train_loss" in logs:
            steps = self.state.global_step - self._first_loss_step
            logs["train_loss"] = self._total_loss_scalar / max(steps, 0.001)
        super().log(logs, start_time, *args, **kwargs)

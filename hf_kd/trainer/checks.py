"""What the trainer refuses, in words: before training where it can be known, at the first batch otherwise."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from transformers.trainer_utils import has_length

from ..adapters import SELF
from ..batches import SharedClasses
from ..inputs import TEACHER_LOGITS
from ..objective import DistillationObjective, ObjectiveOutput
from ..quantization import is_quantized
from ..teacher import FrozenTeacher
from ..training_args import DistillationTrainingArguments
from .problem_types import check_label_values


def check_arguments(args: Any, compute_loss_func: Callable | None, objective: Any, scheduler: Any) -> None:
    """Argument conflicts that would silently change the loss.

    Raises:
        TypeError: `args` or `objective` is of the wrong class.
        ValueError: A second loss function or schedule, several devices in one process, or no objective at all.
    """
    if not isinstance(args, DistillationTrainingArguments):
        raise TypeError(
            f"`DistillationTrainer(args=...)` got {type(args).__name__}, which has no `method`. Pass "
            "`DistillationTrainingArguments`; it takes everything `TrainingArguments` takes."
        )
    if compute_loss_func is not None:
        raise ValueError(
            "`DistillationTrainer(compute_loss_func=...)` sees outputs and labels but not the inputs, so no teacher "
            "can run in it, and beside the objective it would be ignored. Write a `DistillationLoss` and pass "
            "`objective=DistillationObjective([(1.0, loss)], …)`."
        )
    if args.lr_milestones and scheduler is not None:
        raise ValueError(
            f"`DistillationTrainer(optimizers=(…, {type(scheduler).__name__}))` and `lr_milestones` in `args` are two "
            "learning-rate schedules, and one would be ignored. Pass one of them."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"`DistillationTrainer` found {args.n_gpu} devices in one process, where the Trainer would use "
            "`DataParallel`: it replicates the student but not the teacher and counts rows wrongly. Launch with "
            "`accelerate launch` or `torchrun`, or show the process one device (CUDA_VISIBLE_DEVICES=0)."
        )
    if objective is not None and not isinstance(objective, DistillationObjective):
        raise TypeError(
            f"`DistillationTrainer(objective=...)` got {type(objective).__name__}. Pass a `DistillationObjective`, or "
            "name a method in `args.method`."
        )
    if objective is None and args.method is None:
        raise ValueError(
            "`DistillationTrainer` got neither `objective` nor `args.method`, so there is nothing to minimise. "
            "Pass one."
        )


def check_parallelism(accelerator: Accelerator, teacher: Any = None) -> None:
    """Refuse launches whose processes do not each hold rows of their own of one training.

    Raises:
        ValueError: Processes that do not know of each other, or get uneven batches; tensor, context or sequence
            parallelism; "self" as teacher of a sharded student; a quantised teacher under ZeRO-3.
    """
    launched = os.environ.get("WORLD_SIZE", "")
    if launched.isdecimal() and int(launched) > 1 and accelerator.num_processes == 1:
        raise ValueError(
            f"`DistillationTrainer` was launched as one of {launched} processes and is alone in its group: each would "
            "train by itself, on the same rows, and write into the same folder. On machines without a GPU pass "
            "`use_cpu=True`; else start one process, without the launcher."
        )
    if teacher == SELF and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"`DistillationTrainer(teacher_model='self')` was launched with {accelerator.distributed_type.value}, "
            "which shards the student, so that its base model cannot be called by itself. Use DDP (`torchrun`), or "
            "load the base model as the teacher."
        )
    plugin = getattr(getattr(accelerator, "state", None), "deepspeed_plugin", None)
    if is_quantized(teacher) and getattr(plugin, "zero_stage", 0) == 3:
        raise ValueError(
            "`DistillationTrainer(teacher_model=...)` got a quantised teacher and was launched with DeepSpeed ZeRO-3, "
            "which shards what is loaded beside the student too, and packed weights cannot be put together again. "
            "Use ZeRO-2 or DDP, or load the teacher in half precision (`dtype='bfloat16'`)."
        )
    if getattr(accelerator, "num_processes", 1) > 1 and not accelerator.even_batches:
        raise ValueError(
            "`DistillationTrainingArguments(accelerator_config={'even_batches': False})`: the processes would get "
            "batches of different numbers, and one would wait for ever for the gradients of the other. Leave it out: "
            "rows that only fill up the last batch weigh nothing here."
        )
    config = getattr(accelerator, "parallelism_config", None)
    kinds = {"tp": "tensor", "cp": "context", "sp": "sequence"}
    used = [kind for key, kind in kinds.items() if getattr(config, f"{key}_enabled", False)]
    if used:
        raise ValueError(
            f"`DistillationTrainer` was launched with {' and '.join(used)} parallelism, in which processes share rows "
            "and the exact row counts no longer hold. Use data parallelism (DDP, FSDP or DeepSpeed ZeRO)."
        )


def check_milestones(milestones: Sequence[float] | None, dataset: Any) -> None:
    """Refuse epochs as a unit where nobody knows how long one is.

    Raises:
        ValueError: `lr_milestones` over rows without a length.
    """
    if milestones and dataset is not None and not has_length(dataset):
        raise ValueError(
            f"`DistillationTrainingArguments(lr_milestones={list(milestones)!r})` counts epochs, and `train_dataset` "
            f"({type(dataset).__name__}) has no length: the Trainer takes the whole training for one epoch, and "
            "no milestone would be reached. Name a schedule that counts steps, e.g. `lr_scheduler_type='cosine'`, or "
            "give the data set a `__len__`."
        )


def num_labels(model: nn.Module) -> int | None:
    """The student's number of classes, where its config says."""
    return getattr(getattr(model, "config", None), "num_labels", None)


def single_label_name(label_names: Sequence[str]) -> str:
    """The one column that holds the classes.

    Raises:
        ValueError: There are several.
    """
    if len(label_names) > 1:
        raise ValueError(
            f"`DistillationTrainingArguments(label_names={list(label_names)!r})`: a classifier has one label column. "
            "Name one."
        )
    return label_names[0] if label_names else "labels"


def check_teacher_presence(
    objective: DistillationObjective, teacher: FrozenTeacher | None, dataset: Any, evaluate_with_teacher: bool
) -> None:
    """Refuse a distillation term without anything to distil from.

    Raises:
        ValueError: No teacher and no `teacher_logits` column.
    """
    columns = getattr(dataset, "column_names", None)  # unknown for a plain torch dataset: its first batch tells
    if teacher is None and objective.needs_teacher and columns is not None and TEACHER_LOGITS not in columns:
        raise ValueError(
            f"`DistillationTrainer(teacher_model=None)` at kd_weight={objective.kd_weight:g}: there is nothing to "
            f"distil from. Pass a `teacher_model`, a `{TEACHER_LOGITS}` column, or kd_weight=0 for a baseline."
        )
    if teacher is None and evaluate_with_teacher and TEACHER_LOGITS not in (columns or ()):
        raise ValueError(
            "`DistillationTrainingArguments(evaluate_with_teacher=True)` needs a `teacher_model` to compare with."
        )


def check_learned_parts(objective: DistillationObjective, accelerator: Accelerator, optim: str) -> None:
    """Refuse optimizers that cannot take in what is learned beside the student.

    Raises:
        ValueError: A projector, or task serialisation, under FSDP or DeepSpeed, or with a layer-wise optimizer.
    """
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    learned = [loss.name for loss in objective.active_losses if loss.learnable]
    if not learned and not objective.task_serialization:
        return
    what = f"the projector of `{learned[0]}`" if learned else "the layer of `task_serialization`"
    if optim.endswith("layerwise"):
        raise ValueError(
            f"`DistillationTrainingArguments(optim={optim!r})` steps each weight of `model` in its own backward pass "
            f"and nothing else, so that {what} would stay as it was made. Use an optimizer that is not layer-wise."
        )
    if sharded:
        raise ValueError(
            f"`DistillationTrainer` was launched with {accelerator.distributed_type.value}, whose sharded optimizer "
            f"cannot take in {what}. Use DDP (`torchrun`), or losses on logits without task serialisation."
        )


def check_first_batch(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    problem_type: str,
    shared: SharedClasses | None = None,
) -> None:
    """What only data can show, looked at once.

    Raises:
        ValueError: Non-finite teacher logits, another number of classes, or labels that are none.
    """
    if teacher_logits is None and labels is None:
        raise ValueError(
            "`DistillationTrainer` got a batch without labels and without a teacher: there is nothing to learn from. "
            "Check the label column's name (`label_names`), or distil from a teacher with kd_weight > 0."
        )
    if teacher_logits is not None:
        compared = student_logits if shared is None else shared.logits(student_logits)
        if teacher_logits.shape != compared.shape:
            raise ValueError(
                f"`teacher_model` answered with logits of shape {tuple(teacher_logits.shape)}, `model` with "
                f"{tuple(compared.shape)}: they are compared row by row and class by class. Load both with the "
                "same `num_labels` and `label2id`, or say which class is which with a `LabelMap`, as `label_map`."
            )
        bad = int((~torch.isfinite(teacher_logits)).any(-1).sum())
        if bad:
            raise ValueError(
                f"`teacher_model` gave NaN or infinite logits on {bad} of {len(teacher_logits)} rows of the first "
                "batch: the student would learn nothing else. Check the teacher's inputs and precision "
                "(`dtype=float32`)."
            )
    if labels is not None:
        check_label_values(labels.unique().tolist(), problem_type, student_logits.shape[-1], "the first batch")


def check_temperatures(output: ObjectiveOutput) -> None:
    """Refuse a strategy whose temperatures cannot divide logits.

    Raises:
        ValueError: A temperature of the first batch is 0, negative or non-finite.
    """
    for term in output.terms:
        if term.output.temperatures is None:
            continue
        for side in ("student", "teacher"):
            value = getattr(term.output.temperatures, side).detach()
            if not bool((torch.isfinite(value) & (value > 0)).all()):
                raise ValueError(
                    f"The {side} temperature of loss `{term.name}` runs from {value.min().item():.4g} to "
                    f"{value.max().item():.4g} in the first batch; it must be positive and finite. Check the strategy "
                    "(DTKD needs its guard on few classes)."
                )


def check_weights(model: nn.Module, accelerator: Accelerator, step: int, last_checkpoint: str | None) -> None:
    """Refuse to save weights that an update has broken after a loss that was still finite.

    Raises:
        FloatingPointError: A weight is NaN or infinite on any process.
    """
    parts = [getattr(p, "_local_tensor", p).detach() for p in (*model.parameters(), *model.buffers())]
    broken = torch.zeros(1, device=accelerator.device)
    for part in parts:
        if part.is_floating_point():
            broken += (~part.isfinite()).any().to(broken)
    if accelerator.gather(broken).any():
        kept = f" The last checkpoint, {last_checkpoint}, is from before and stays usable." if last_checkpoint else ""
        raise FloatingPointError(
            f"`DistillationTrainer` stopped before saving: weights of `model` are non-finite after step {step}, whose "
            f"loss was finite. Lower the learning rate, or clip gradients (`max_grad_norm`).{kept}"
        )

"""The floor: the loop that one would write by hand for the same two models, without the Trainer and without us."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer
from transformers.trainer_pt_utils import find_batch_size

from ..adapters import OwnBase
from ..functional import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..inputs import TEACHER_LOGITS, logits_of, model_columns, student_inputs, teacher_inputs
from ..trainer import DistillationTrainer
from .clocks import Clock

TEMPERATURE = 4.0
"""Of the floor's loss, whatever the configuration distils with."""

_WITH_A_FLOOR = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)


def floor_problem(trainer: DistillationTrainer) -> str | None:
    """Why there is no bare loop to compare with; None where there is one."""
    kind = trainer.accelerator.distributed_type
    if kind not in _WITH_A_FLOOR:
        return f"The bare loops were not measured: they are written for one process and for DDP, not for {kind.value}."
    return None


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None, trainer: DistillationTrainer
) -> Tensor:
    r"""\(w_{ce} CE + w_{kd} T^2 KL\), means over the rows of a batch: the simplest loss of its kind.

    Without a teacher cross-entropy alone; for several labels per row, and for a regression, binary cross-entropy and
    squared errors stand in their places.
    """
    logits, objective, problem_type = student_logits.float(), trainer.objective, trainer.problem_type
    # without any label the student alone has nothing to learn, and its backward pass is as long as ever
    loss = 0.0 * logits.sum() if labels is None else task_loss(logits, labels, problem_type)
    if teacher_logits is None:
        return loss
    shared = objective.shared
    logits = logits if shared is None else logits[:, list(shared.classes)]
    teacher_logits = teacher_logits.float()
    if problem_type == SINGLE_LABEL:
        log_q, log_p = (F.log_softmax(z / TEMPERATURE, dim=-1) for z in (logits, teacher_logits))
        taught = TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    else:
        taught = F.mse_loss(logits, teacher_logits)
    return objective.ce_weight * loss + objective.kd_weight * taught


def task_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The mean over labelled rows; 0 where there are none."""
    if problem_type == REGRESSION:
        labels = labels.reshape(logits.shape)
        known = ~labels.isnan()
        return (logits - labels.nan_to_num()).square().mul(known).sum() / known.sum().clamp(min=1)
    if problem_type == MULTI_LABEL:
        known = labels != IGNORE_INDEX
        rows = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none")
        return (rows * known).sum() / known.sum().clamp(min=1)
    known = (labels != IGNORE_INDEX).sum().clamp(min=1)
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum") / known


class BareLoop:
    """Plain PyTorch on the same rows in the same order: forwards, backward, clipping, the same optimizer, autocast.

    The learning rate is constant; there is no log, no callback, and no loss but `kd_loss`. The means are over each
    micro-batch. Rows are not mixed (mixup, CutMix).

    Args:
        trainer: Whose rows, teacher, precision and settings.
        student: Another one of the same kind, which this trains.
    """

    def __init__(self, trainer: DistillationTrainer, student: nn.Module):
        self.trainer, args = trainer, trainer.args
        self.device, self.precision = trainer.accelerator.device, trainer.accelerator.mixed_precision
        student = student.to(self.device).train()
        if args.gradient_checkpointing:
            _checkpoint_activations(student, args.gradient_checkpointing_kwargs)
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        self.optimizer = _optimizer(trainer, student)
        self.columns = model_columns(student)
        self.teacher = None if trainer.teacher is None else trainer.teacher.model
        if isinstance(self.teacher, OwnBase):
            self.teacher = OwnBase(student)
        if args.torch_compile:
            student = torch.compile(student, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        if trainer.accelerator.num_processes > 1:
            devices = None if self.device.type == "cpu" else [self.device.index]
            handler = trainer.accelerator.ddp_handler  # what the arguments say of it, as the Trainer reads them
            options = {} if handler is None else handler.to_kwargs()
            student = DistributedDataParallel(student, device_ids=devices, **options)
        self.student = student
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def run(self, warmup: int, steps: int, with_teacher: bool) -> tuple[Clock, int]:
        """Train.

        Args:
            warmup: Steps that are not timed.
            steps: Those that are.
            with_teacher: Ask the teacher; else train on the labels alone.

        Returns:
            The stopped clock, and the rows of this process.
        """
        rows, clock = 0, Clock(self.device)
        for index, batches in enumerate(islice(self._groups(), warmup + steps)):
            self.step(batches, with_teacher)
            rows += sum(find_batch_size(batch) or 0 for batch in batches) if index >= warmup else 0
            if index == warmup - 1:
                clock.start()
        return clock.stop(), rows

    def step(self, batches: list[dict[str, Any]], with_teacher: bool) -> None:
        """One optimizer step over micro-batches."""
        for index, batch in enumerate(batches):
            batch = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
            is_last = index == len(batches) - 1
            self.student.require_backward_grad_sync = is_last  # of DDP; plain models do not look at it
            with self._autocast():
                answer = self._answer(batch) if with_teacher else None
                logits = logits_of(self.student(**student_inputs(batch, self.columns)), "model")
            loss = kd_loss(logits, answer, batch.get(self.trainer.label_name), self.trainer)
            self.scaler.scale(loss / len(batches)).backward()
        if self.trainer.args.max_grad_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.trainer.args.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def _autocast(self) -> torch.autocast:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    @torch.no_grad()
    def _answer(self, batch: dict[str, Any]) -> Tensor:
        """The teacher's logits, in the student's classes where theirs are others."""
        frozen = self.trainer.teacher
        if TEACHER_LOGITS in batch:
            answer = batch[TEACHER_LOGITS]
        else:
            inputs = teacher_inputs(batch, frozen.columns)
            if self.precision == "no" and isinstance(self.teacher, nn.Module):
                dtype = next(p.dtype for p in self.teacher.parameters() if p.is_floating_point())
                inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            answer = logits_of(self.teacher(**inputs), "teacher_model")
        label_map = None if frozen is None else frozen.label_map
        return answer if label_map is None else label_map(answer.float(), self.trainer.problem_type)

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step, epoch after epoch, as the trainer's loader orders them."""
        trainer = self.trainer
        prepared = trainer.get_train_dataloader()
        is_alone = trainer.accelerator.num_processes == 1  # else accelerate deals the batches
        loader = getattr(prepared, "base_dataloader", prepared) if is_alone else prepared
        for epoch in count():
            if hasattr(prepared, "set_epoch"):
                prepared.set_epoch(epoch)
            trainer._epoch.set(epoch)
            batches, is_empty = iter(loader), True
            while group := list(islice(batches, trainer.args.gradient_accumulation_steps)):
                is_empty = False
                yield group
            if is_empty:
                return


def _checkpoint_activations(student: nn.Module, options: dict[str, Any] | None) -> None:
    """As the Trainer does; the name of both the setting and the method changed within transformers 5."""
    given = dict(options or {})
    own = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
    kind = "activation" if hasattr(student, "activation_checkpointing_enable") else "gradient"
    enable = getattr(student, f"{kind}_checkpointing_enable")
    enable(**{f"{kind}_checkpointing_kwargs": given or None}, **own)


def _optimizer(trainer: DistillationTrainer, student: nn.Module) -> torch.optim.Optimizer:
    """What the Trainer itself would make for the student, without what the objective learns."""
    before, trainer.optimizer = trainer.optimizer, None
    try:
        return Trainer.create_optimizer(trainer, student)
    finally:
        trainer.optimizer = before

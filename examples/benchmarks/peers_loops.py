"""The loops of `peers.py` that need no other package: bare ones, ours, the plain Trainer's, and two forms that are
copied from tutorials."""

import time
from typing import Any

import torch
import torch.nn.functional as F
from peers_work import ADAMW, CE_WEIGHT, KD_WEIGHT, LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, Ran, Work
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_kd import DistillationTrainer, DistillationTrainingArguments
from hf_kd.bench.clocks import BlockTimer, Clock

FILLING = "seconds to fill the cache"


# ---- Bare loops: the floor


def bare_loop(work: Work) -> Ran:
    """Both models, plain PyTorch."""
    return _bare(work, work.teacher().to(work.device))


def bare_student(work: Work) -> Ran:
    """The student on its labels, plain PyTorch."""
    return _bare(work, None)


def _bare(work: Work, teacher: nn.Module | None) -> Ran:
    student, clock = work.student().to(work.device).train(), Clock(work.device)
    optimizer = torch.optim.AdamW(student.parameters(), **ADAMW)
    for batch in work.timed(work.loader(), clock):
        batch = {name: value.to(work.device, non_blocking=True) for name, value in batch.items()}
        labels = batch.pop("labels")
        with work.autocast():
            taught = None
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(**batch).logits
            logits = student(**batch).logits
        kd_loss(logits.float(), None if taught is None else taught.float(), labels).backward()
        nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
    return Ran(clock, student)


def kd_loss(logits: Tensor, taught: Tensor | None, labels: Tensor) -> Tensor:
    """What every loop minimises; without a teacher cross-entropy alone."""
    ce = F.cross_entropy(logits, labels)
    if taught is None:
        return ce
    log_q, log_p = (F.log_softmax(z / TEMPERATURE, dim=-1) for z in (logits, taught))
    kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return CE_WEIGHT * ce + KD_WEIGHT * TEMPERATURE**2 * kl


# ---- Loops of the Trainer


def settings(work: Work) -> dict[str, Any]:
    """Training arguments of every Trainer here; what is not named is the Trainer's default."""
    return {
        "max_steps": work.all_steps,
        "per_device_train_batch_size": work.batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "optim": "adamw_torch_fused",
        "weight_decay": ADAMW["weight_decay"],
        "train_sampling_strategy": "sequential",
        "bf16": work.bf16,
        "use_cpu": work.device.type == "cpu",
        "dataloader_pin_memory": work.device.type == "cuda",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def arguments(work: Work, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> TrainingArguments:
    """The same, made."""
    return kind(output_dir=str(work.folder / "run"), remove_unused_columns=False, **settings(work), **more)


def train(trainer: Trainer, work: Work) -> Ran:
    """A block of any Trainer."""
    timer = BlockTimer(work.device, work.warmup)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(timer)
    trainer.train()
    if not timer.is_done:
        raise RuntimeError(f"the Trainer ended after {trainer.state.global_step} of {work.all_steps} steps")
    return Ran(timer.clock, trainer.model)


def plain_trainer(work: Work) -> Ran:
    """The student on its labels, in the Trainer as it is."""
    return train(Trainer(work.student(), arguments(work), train_dataset=work.rows), work)


def _ours(work: Work, **more: Any) -> DistillationTrainer:
    method = {"method": "kd", "method_kwargs": {"temperature": TEMPERATURE}}
    weights = {"ce_weight": CE_WEIGHT, "kd_weight": KD_WEIGHT, "per_device_eval_batch_size": work.batch_size}
    args = arguments(work, DistillationTrainingArguments, **method, **weights)
    return DistillationTrainer(work.student(), args, train_dataset=work.rows, **more)


def online(work: Work) -> Ran:
    """`DistillationTrainer`, the teacher asked in each step."""
    return train(_ours(work, teacher_model=work.teacher()), work)


def cached(work: Work) -> Ran:
    """`DistillationTrainer`, the teacher asked before, once; how long that takes is said apart."""
    folder = work.folder / "cache"
    if FILLING not in work.said:
        filling = _ours(work, teacher_model=work.teacher(), teacher_cache=folder)
        began = time.perf_counter()
        filling.stored_answers(work.rows, is_training=True)
        work.said[FILLING] = time.perf_counter() - began
    return train(_ours(work, teacher_cache=folder), work)


# ---- Forms that are copied from tutorials, in our words, with what is wrong in them


class GuideTrainer(Trainer):
    """In the form of transformers' guide to distillation of image classifiers.

    Left as the guide has it: the labels go to the teacher too, which computes a loss that nobody reads; the teacher is
    not under autocast, so with bf16 it runs in float32; the student is called by its own name and not by the argument,
    so that on several processes no gradient is shared; targets are probabilities, whose logarithm the divergence takes
    again; the model's own loss is added to one of its logits, so with bf16 two gradients are rounded before they meet;
    nothing counts the rows of accumulated micro-batches, so n of them give n times the gradient. Changed:
    `temperature` 4 for 5.
    """

    def __init__(
        self, teacher_model: nn.Module, student_model: nn.Module, temperature: float, lambda_param: float, **kw
    ):
        super().__init__(model=student_model, **kw)
        self.teacher, self.student = teacher_model, student_model
        self.divergence = nn.KLDivLoss(reduction="batchmean")
        self.teacher.to(self.args.device)  # mended: the guide takes the first device that it finds
        self.teacher.eval()
        self.temperature, self.lambda_param = temperature, lambda_param

    def compute_loss(self, student, inputs, return_outputs=False, **kwargs):  # mended: the guide has no **kwargs
        answer = self.student(**inputs)
        with torch.no_grad():
            taught = self.teacher(**inputs)
        soft_teacher = F.softmax(taught.logits / self.temperature, dim=-1)
        soft_student = F.log_softmax(answer.logits / self.temperature, dim=-1)
        distilled = self.divergence(soft_student, soft_teacher) * self.temperature**2
        loss = (1.0 - self.lambda_param) * answer.loss + self.lambda_param * distilled
        return (loss, answer) if return_outputs else loss


def guide(work: Work) -> Ran:
    """`GuideTrainer`."""
    models = {"teacher_model": work.teacher(), "student_model": work.student()}
    loss = {"temperature": TEMPERATURE, "lambda_param": KD_WEIGHT}
    return train(GuideTrainer(**models, **loss, args=arguments(work), train_dataset=work.rows), work)


class NotebookArguments(TrainingArguments):
    """Two attributes and no fields, as in the notebook: neither the command line nor a saved file knows them."""

    def __init__(self, *args, alpha=0.5, temperature=2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha, self.temperature = alpha, temperature


class NotebookTrainer(Trainer):
    """In the form of the text notebook that most are copied from.

    Left as it has it: the labels go to the teacher too; the teacher is not under autocast; the divergence is built
    anew in each step, over probabilities; rounding with bf16 and the scale with accumulation are as in the guide.
    """

    def __init__(self, *args, teacher_model: nn.Module, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher_model
        self._move_model_to_device(self.teacher, self.model.device)
        self.teacher.eval()

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):  # mended: the notebook has no **kwargs
        outputs_student = model(**inputs)
        student_loss = outputs_student.loss
        with torch.no_grad():
            outputs_teacher = self.teacher(**inputs)
        assert outputs_student.logits.size() == outputs_teacher.logits.size()
        divergence = nn.KLDivLoss(reduction="batchmean")
        soft = divergence(
            F.log_softmax(outputs_student.logits / self.args.temperature, dim=-1),
            F.softmax(outputs_teacher.logits / self.args.temperature, dim=-1),
        )
        loss = self.args.alpha * student_loss + (1.0 - self.args.alpha) * soft * self.args.temperature**2
        return (loss, outputs_student) if return_outputs else loss


def notebook(work: Work) -> Ran:
    """`NotebookTrainer`."""
    args = arguments(work, NotebookArguments, alpha=CE_WEIGHT, temperature=TEMPERATURE)
    return train(NotebookTrainer(work.student(), args, teacher_model=work.teacher(), train_dataset=work.rows), work)

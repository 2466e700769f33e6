"""The loops of `peers.py` that run other packages, as they were published. Imports are inside: any may be missing."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from peers_loops import settings
from peers_work import ADAMW, CE_WEIGHT, KD_WEIGHT, MAX_GRAD_NORM, TEMPERATURE, Ran, Tuples, Work
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, default_data_collator

from hf_kd.bench.clocks import BlockTimer, Clock

# ---- timm


class TimmModel(nn.Module):
    """Mended: timm calls a model with an image, wants logits, and reads these attributes off a student."""

    in_chans = 3
    pretrained_cfg = {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }  # of both: nothing is converted

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.num_classes = model, model.config.num_labels

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def timm(work: Work) -> Ran:
    """`timm.task.LogitDistillationTask` in the loop of timm's training script: every step waits for its loss."""
    from timm.optim import create_optimizer_v2
    from timm.task import LogitDistillationTask
    from timm.utils import AverageMeter, dispatch_clip_grad

    student, clock = work.student(), Clock(work.device)
    task = LogitDistillationTask(
        TimmModel(student).to(work.device),
        TimmModel(work.teacher()).to(work.device),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=CE_WEIGHT,
        distill_loss_weight=KD_WEIGHT,
        temperature=TEMPERATURE,
        device=work.device,
        verbose=False,
    )
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="adamw", **ADAMW)
    loader = DataLoader(Tuples(work.tensors), batch_size=work.batch_size, pin_memory=work.device.type == "cuda")
    losses, data_time = AverageMeter(), AverageMeter()
    task.get_trainable_module().train()
    optimizer.zero_grad()
    began = time.time()
    for images, labels in work.timed(loader, clock):
        images, labels = images.to(device=work.device), labels.to(device=work.device)
        data_time.update(time.time() - began)
        with work.autocast():
            loss = task(images, labels)["loss"]
        loss.backward()
        dispatch_clip_grad(task.get_clip_parameters(), value=MAX_GRAD_NORM, mode="norm")
        optimizer.step()
        losses.update(loss.item(), len(images))
        optimizer.zero_grad()
        began = time.time()
    return Ran(clock, student)


# ---- torchdistill


def torchdistill(work: Work) -> Ran:
    """Its `DistillationBox` in the loop of its example scripts: every step waits for its loss."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.datasets.registry import register_collate_func
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    student, clock = work.student(), Clock(work.device)
    is_image = work.pair.is_image
    register_collate_func(default_data_collator)
    accelerator = None if is_image else _torchdistill_accelerator(work)
    box = get_distillation_box(
        work.teacher(),
        student,
        {"train": Tuples(work.tensors) if is_image else work.rows},
        _torchdistill_config(work),
        work.device,
        None,
        False,
        1,
        accelerator,
    )
    box.pre_epoch_process(epoch=0)
    logger = MetricLogger(delimiter="  ")
    logger.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    logger.add_meter("rows/s", SmoothedValue(window_size=10, fmt="{value}"))
    for batch in work.timed(logger.log_every(box.train_data_loader, 1000, "Epoch: [0]"), clock):
        began = time.time()
        # its image script knows no autocast; its text script has accelerate's
        with work.autocast() if is_image else nullcontext():
            if is_image:
                images, targets, supplement = batch
                images, targets = images.to(work.device), targets.to(work.device)
                loss = box.forward_process(images, targets, supplement)
            else:
                # mended: its text script passes no targets, and without them its loss is the divergence alone, without
                # cross-entropy and without T², whatever alpha says
                loss = box.forward_process(batch, targets=batch["labels"], supp_dict=None)
        box.post_forward_process(loss=loss)
        logger.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        logger.meters["rows/s"].update(work.batch_size / (time.time() - began))
        if is_image and (torch.isnan(loss) or torch.isinf(loss)):
            raise ValueError(f"the loss is {loss}")
    box.clean_modules()
    return Ran(clock, student)


def _torchdistill_accelerator(work: Work) -> Any:
    """As its text script makes one."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16" if work.bf16 else "no", cpu=work.device.type == "cpu")
    accelerator.state.use_fp16 = False  # mended: its box reads this, and accelerate has it no more
    return accelerator


def _torchdistill_config(work: Work) -> dict[str, Any]:
    """What its YAML files say; the published ones read the logits off the classifiers as well."""
    forward = "forward_batch_only" if work.pair.is_image else "forward_batch_only_as_kwargs"
    hooked = {"forward_proc": forward, "forward_hook": {"input": [], "output": ["classifier"]}}
    where = {f"{side}_module_{part}": value for side in ("student", "teacher") for part, value in _LOGITS.items()}
    weights = {"temperature": TEMPERATURE, "alpha": CE_WEIGHT, "beta": KD_WEIGHT, "reduction": "batchmean"}
    kd = {"criterion": {"key": "KDLoss", "kwargs": where | weights}, "weight": 1.0}
    loader = {"batch_size": work.batch_size, "num_workers": 0, "pin_memory": work.device.type == "cuda"}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": SequentialSampler},
            "kwargs": loader,
            "requires_supp": work.pair.is_image,
            **({} if work.pair.is_image else {"collate_fn": default_data_collator.__name__}),
        },
        "teacher": {**hooked, "requires_grad": False},
        "student": {**hooked, "requires_grad": True},
        "optimizer": {"key": "AdamW", "kwargs": dict(ADAMW), "max_grad_norm": MAX_GRAD_NORM, "grad_accum_step": 1},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd}}},
    }


_LOGITS = {"path": "classifier", "io": "output"}


# ---- txtai


def txtai(work: Work) -> Ran:
    """`HFTrainer(...)(base, train, teacher=..., distillation=(T, alpha))` on texts that give the same tokens."""
    from txtai.pipeline.train import hftrainer

    found: list[Ran] = []

    class Clocked(hftrainer.DistillationTrainer):
        """The pipeline takes no callbacks: this hangs the clock on its trainer, and changes nothing that it does."""

        def train(self, *args: Any, **kwargs: Any) -> Any:
            timer = BlockTimer(work.device, work.warmup)
            self.remove_callback(PrinterCallback)
            self.add_callback(timer)
            answer = super().train(*args, **kwargs)
            found.append(Ran(timer.clock, self.model))
            return answer

    own, hftrainer.DistillationTrainer = hftrainer.DistillationTrainer, Clocked
    try:
        tokenizer = words(work.pair.vocabulary, work.pair.size)
        said = work.tensors["input_ids"].tolist()
        labels = work.tensors["labels"].tolist()
        rows = [{"text": " ".join(map(str, ids)), "label": label} for ids, label in zip(said, labels, strict=True)]
        hftrainer.HFTrainer()(
            (work.student(), tokenizer),
            rows,
            teacher=(work.teacher(), tokenizer),
            distillation=(TEMPERATURE, KD_WEIGHT),
            **settings(work),
        )
    finally:
        hftrainer.DistillationTrainer = own
    return found[0]


PADDING = "[PAD]"


def words(vocabulary: int, length: int) -> Any:
    """A tokenizer whose words are the numbers of their tokens; 0 pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {str(token) if token else PADDING: token for token in range(vocabulary)}
    backend = Tokenizer(models.WordLevel(known, unk_token=PADDING))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": PADDING, "unk_token": PADDING, "model_input_names": ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **names)

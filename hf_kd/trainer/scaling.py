"""Exact scale: rows are counted over the whole optimizer step, on all processes, and repeated rows weigh nothing."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset
from transformers.trainer_pt_utils import find_batch_size

from ..batches import EXTRAS_OF_ROWS, Batch, MixedLabels, counts_of, label_parts, parts_mass
from ..functional import labelled_rows
from ..inputs import LABEL_WEIGHT, LABEL_WEIGHT_MIX, LABELS_MIX, MIX_LAMBDA, ROW_WEIGHT, ROWS_EVERYWHERE
from ..objective import DistillationObjective


def with_repeats_marked(batches: Iterator[dict[str, Any]], accelerator: Accelerator) -> Iterator[dict[str, Any]]:
    """The same batches; rows that only fill up an epoch's last sharded batch get the weight 0.

    With several processes, accelerate deals the last batches round and completes them with rows from the beginning, so
    that every process steps equally often. The real rows fill the processes' slots in order, so how many this one
    holds follows from how many there are.
    """
    for batch in batches:
        if accelerator.num_processes > 1 and accelerator.gradient_state.end_of_dataloader:
            size, rows = find_batch_size(batch), _rows_of_last_round(accelerator)
            if size is not None and rows > 0:
                real = min(max(rows - size * accelerator.process_index, 0), size)
                if real < size:
                    batch[ROW_WEIGHT] = (torch.arange(size) < real).float()
        yield batch


def _rows_of_last_round(accelerator: Accelerator) -> int:
    """Real rows of the epoch's last batches, over all processes; 0 if they are all real or nobody knows."""
    loader = accelerator.gradient_state.active_dataloader
    if isinstance(loader.dataset, IterableDataset):
        return max(loader.remainder, 0)
    sampler = loader.batch_sampler
    while not hasattr(sampler, "batch_size") and hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler  # a resumed epoch skips through one that has no batch size
    size = getattr(sampler, "batch_size", None)
    if size is None or getattr(sampler, "drop_last", False):
        return 0
    rows = getattr(getattr(sampler, "batch_sampler", sampler), "sampler", loader.dataset)
    return len(rows) % (size if getattr(sampler, "split_batches", False) else size * accelerator.num_processes)


def count_rows(
    batches: list[dict[str, Any]], label_name: str, objective: DistillationObjective, accelerator: Accelerator
) -> Tensor | None:
    """Rows, labelled rows and what all labels weigh, of an optimizer step, over micro-batches and processes: `(2, 3)`.

    The second line is of the rows that distillation looks at (their weight is not used); the same unless the teacher
    lacks some classes. One collective. None if a batch has no size to read.
    """
    counts = torch.zeros(2, 3, device=accelerator.device)
    for batch in batches:
        size = find_batch_size(batch)
        if size is None:
            return None
        labels, weight = batch.get(label_name), batch.get(ROW_WEIGHT)
        is_plain = weight is None and LABEL_WEIGHT not in batch and LABELS_MIX not in batch
        if is_plain and objective.shared is None:
            counts[0, 0] += size
            if labels is not None:  # each label weighs 1
                counts[0, 1:] += labelled_rows(labels, objective.problem_type).sum().to(counts.device)
            continue
        weight = weight if weight is None or labels is None else weight.to(labels.device)
        mixed = mixed_labels(batch)
        views = [(labels, weight)]
        if objective.shared is not None:
            views.append(objective.distilled_rows(objective.known_labels(labels, mixed), weight))
        for line, pair in zip(counts, views, strict=False):
            for index, part in enumerate(counts_of(*pair, size, objective.problem_type)):
                line[index] += part.to(counts.device) if isinstance(part, Tensor) else part
        if labels is not None:
            parts = label_parts(labels, batch.get(LABEL_WEIGHT), mixed)
            counts[0, 2] += parts_mass(parts, weight, objective.problem_type).to(counts.device)
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts, reduction="sum")
    return counts if objective.shared is not None else counts[:1].expand(2, -1)


def mixed_labels(batch: dict[str, Any]) -> MixedLabels | None:
    """The second labels of a batch of mixed rows; None if they are not mixed."""
    if LABELS_MIX not in batch:
        return None
    return MixedLabels(batch[LABELS_MIX], batch[MIX_LAMBDA], batch.get(LABEL_WEIGHT_MIX))


def note_rows_everywhere(batches: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """Write into each micro-batch how many of its rows count, process by process.

    One collective and one read per optimizer step, so that gathering the rows themselves needs no other.
    """
    if accelerator.num_processes == 1:
        return
    weights = [batch.get(ROW_WEIGHT) for batch in batches]
    own = [find_batch_size(b) if w is None else int(w.sum()) for b, w in zip(batches, weights, strict=True)]
    table = accelerator.gather(torch.tensor([own], device=accelerator.device)).t().tolist()
    for batch, rows in zip(batches, table, strict=True):
        batch[ROWS_EVERYWHERE] = rows


def gather_batch(batch: Batch, inputs: dict[str, Any], accelerator: Accelerator) -> Batch | None:
    """The counted rows of all processes, in their order; None on one process, where the batch has them all.

    Gradients flow back to the process a row came from. Every process must call this, in the same order.
    """
    rows = inputs.get(ROWS_EVERYWHERE)
    if rows is None:
        return None
    parts = [None if part is None else gather_rows(part, rows) for part in batch[:3]]
    extras = {k: gather_rows(v, rows) if k in EXTRAS_OF_ROWS else v for k, v in batch.extras.items()}
    return Batch(*parts, extras)


def gather_rows(part: Tensor, rows: list[int]) -> Tensor:
    """The first `rows[i]` rows of process i's `part`, for every i, one after the other."""
    size = max(rows)
    kept = part[: rows[dist.get_rank()]]
    padded = torch.cat([kept, kept.new_zeros(size - len(kept), *kept.shape[1:])])
    return torch.cat([one[:count] for one, count in zip(_GatherPadded.apply(padded), rows, strict=True)])


class _GatherPadded(torch.autograd.Function):
    """`all_gather` of equal shapes; backward, each process gets the sum of all processes' gradients of its part."""

    @staticmethod
    def forward(ctx, part):
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[dist.get_rank()]


def forget_evaluation(model: nn.Module, wrapped: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Let a model that was evaluated before its first training be wrapped for training.

    An evaluation prepares the model without the wrapper that averages gradients and marks it as prepared, so that a
    training that follows would leave it bare: one model per process, each trained on its own rows.

    Args:
        model: The bare student.
        wrapped: What the Trainer would train.
        accelerator: Which prepares it.

    Returns:
        What the Trainer is to wrap: `model`, unless `wrapped` does average gradients.
    """
    is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    if accelerator.num_processes == 1 or is_sharded or _averages_gradients(wrapped):
        return wrapped
    if getattr(model, "_is_accelerate_prepared", False) or model is not wrapped:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # also undoes the autocast of its forward
        model._is_accelerate_prepared = False
    return model


def _averages_gradients(wrapped: nn.Module) -> bool:
    return any(isinstance(module, DistributedDataParallel) for module in wrapped.modules())

"""Exact scale: rows are counted over the whole optimizer step, on all processes, and repeated rows weigh nothing."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_pt_utils import find_batch_size

from ..functional import IGNORE_INDEX
from ..inputs import ROW_WEIGHT


def mark_repeated_rows(batches: list[dict[str, Any]], accelerator: Accelerator) -> None:
    """Give the rows that only fill up an epoch's last sharded batch the weight 0.

    With several processes, accelerate deals the last batches round and completes them with rows from the beginning, so
    that every process steps equally often. The real rows fill the processes' slots in order, so how many this one
    holds follows from the remainder.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not batches or not state.end_of_dataloader or state.remainder < 1:
        return
    size = find_batch_size(batches[-1])
    real = min(max(state.remainder - size * accelerator.process_index, 0), size)
    if size is not None and real < size:
        batches[-1][ROW_WEIGHT] = (torch.arange(size) < real).float()


def count_rows(batches: list[dict[str, Any]], label_name: str, accelerator: Accelerator) -> Tensor | None:
    """Rows and labelled rows of one optimizer step, `(2,)`, over micro-batches and, in one collective, processes.

    None if a batch has no size to read.
    """
    counts = torch.zeros(2, device=accelerator.device)
    for batch in batches:
        size = find_batch_size(batch)
        if size is None:
            return None
        labels, weight = batch.get(label_name), batch.get(ROW_WEIGHT)
        rows = torch.full((), float(size), device=counts.device) if weight is None else weight.sum().to(counts.device)
        labelled = torch.zeros((), device=counts.device)
        if labels is not None:
            is_labelled = (labels != IGNORE_INDEX).float()
            labelled = (is_labelled if weight is None else is_labelled * weight.to(labels.device)).sum()
        counts += torch.stack([rows, labelled.to(counts.device)])
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts, reduction="sum")
    return counts

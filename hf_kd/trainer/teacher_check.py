"""The teacher's first answers on labelled training rows, compared with guessing."""

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from ..functional import IGNORE_INDEX, SINGLE_LABEL
from ..sanity import ROWS, TeacherScore, score_teacher
from ..teacher import FrozenTeacher

logger = logging.get_logger(__name__)

MOST_ROWS = 2**16
"""Rows kept between two logs, per process."""


class TeacherCheck:
    """Keeps choices and labels on the device until there are enough of them, and is asked at each log.

    Args:
        teacher: The teacher; None if a column of logits stands in for it.
        num_classes: Classes that the teacher and the student share; None if unknown.
        problem_type: Of the student; only for one class per row is there a right choice.
    """

    def __init__(self, teacher: FrozenTeacher | None, num_classes: int | None, problem_type: str):
        self.teacher, self.num_classes = teacher, num_classes
        self.parts: list[Tensor] = []
        self.num_kept = 0
        """Rows seen so far, on this process."""
        self.is_done = num_classes is None or problem_type != SINGLE_LABEL

    def observe(self, teacher_logits: Tensor | None, labels: Tensor | None, row_weight: Tensor | None) -> None:
        """Add a micro-batch; rows of weight 0, or without a label, do not count."""
        if self.is_done or teacher_logits is None or labels is None:
            return
        if self.num_kept > MOST_ROWS:
            return
        labels = labels.to(teacher_logits.device)
        if row_weight is not None:
            labels = torch.where(row_weight.to(labels.device) > 0, labels, IGNORE_INDEX)
        self.parts.append(torch.stack([teacher_logits.argmax(-1), labels.long()], dim=-1))
        self.num_kept += len(labels)

    def report(self, accelerator: Accelerator) -> TeacherScore | None:
        """Say once, in words, if the teacher is near chance or its classes seem exchanged. Every process asks.

        Returns:
            The score, once there are enough rows; None before and after.

        Raises:
            ValueError: The classes were matched by position because one side has no names, and the answers speak
                against it.
        """
        if self.is_done:
            return None
        empty = torch.zeros((0, 2), dtype=torch.long, device=accelerator.device)
        own = torch.cat([empty, *(part.to(accelerator.device) for part in self.parts)])
        own = own[own[:, 1] != IGNORE_INDEX]
        self.parts, self.num_kept = [own], len(own)
        counts = accelerator.gather(torch.tensor([len(own)], device=own.device)).tolist()
        if sum(counts) < ROWS:
            return None
        padded = torch.cat([own, own.new_zeros(max(counts) - len(own), 2)])
        table = accelerator.gather(padded[None])
        table = torch.cat([part[:count] for part, count in zip(table, counts, strict=True)]).cpu().numpy()
        self.is_done, self.parts = True, []
        score = score_teacher(table[:, 0], table[:, 1], self.num_classes)
        label_map = None if self.teacher is None else self.teacher.label_map
        if score.is_doubtful:
            said = score.words(label_map, "labelled training rows, the first ones")
            if label_map is not None and label_map.must_be_checked and not self.teacher.is_vouched_for:
                raise ValueError(f"{said} Only one side names its classes, so nothing else vouches for their order.")
            logger.warning(said)
        return score

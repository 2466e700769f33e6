"""Metrics of an evaluation that arrives in batches, without keeping the logits of all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..functional import IGNORE_INDEX
from .compute import ClassificationMetrics
from .reduction import labelled_rows


class BatchedMetrics:
    """Collects batches, then scores them as `compute_metrics` would score all rows at once.

    Of one class per row only a few numbers are kept (see `reduce_logits`): 22,000 classes on 50,000 rows would be
    4 GB of logits. Average precision ranks all rows, so for other problems the logits themselves are kept.

    Args:
        compute_metrics: Of a `Task`, or from `metrics_for`.
    """

    def __init__(self, compute_metrics: Any) -> None:
        self.compute_metrics = compute_metrics
        self.parts: list[dict[str, np.ndarray]] = []

    @property
    def _reduces(self) -> bool:
        return isinstance(self.compute_metrics, ClassificationMetrics)

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch; rows without a label are left out of what is kept."""
        if not self._reduces:
            self.parts.append({"logits": logits, "labels": labels})
        elif (labels != IGNORE_INDEX).any():
            logits, labels = labelled_rows("compute_metrics", logits, labels)
            self.parts.append({"labels": labels, **self.compute_metrics.reduce(logits, labels)})

    def rows(self) -> dict[str, np.ndarray]:
        """What is kept of each row, by name; empty where no row came."""
        names = self.parts[0] if self.parts else ()
        return {name: np.concatenate([part[name] for part in self.parts]) for name in names}

    def compute(self) -> dict[str, float]:
        """The metrics; none where no row had a label."""
        rows = self.rows()
        if not rows:
            return {}
        if self._reduces:
            labels = rows.pop("labels")
            return self.compute_metrics.score(rows, labels)
        return self.compute_metrics(EvalPrediction(rows["logits"], rows["labels"]))

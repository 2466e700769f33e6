"""Callbacks of a run that is one of many: how far it is, how it began, and how it did on the test split by epoch."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..experiment.run import WithTrainer

START, ORDER = ".start.json", "data_order.json"
BATCHES = 64
"""Micro-batches that tell one order of rows from another."""

EVERY = 0.5
"""Seconds between two reports."""


class Steps(TrainerCallback):
    """Hands the step count to whoever draws it."""

    def __init__(self, report: Callable[[int, int], None]):
        self.report, self.last = report, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report, not too often."""
        if time.monotonic() - self.last >= EVERY or state.global_step == state.max_steps:
            self.last = time.monotonic()
            self.report(state.global_step, state.max_steps)


class Beginning(WithTrainer):
    """Notes by which weights and rows a run began, so that runs can be shown to have begun alike.

    The weights are hashed before the first step, the order of the rows by the labels and token ids of the first
    batches. Both survive an interruption: the first lies in the run's folder, the second in its checkpoints.

    Args:
        folder: Of the run.
        checkpoint: From which the run goes on; None of a new one.
    """

    def __init__(self, folder: Path, checkpoint: Path | None):
        self.folder, self.checkpoint = folder, checkpoint
        self.initial_weights: str | None = None
        self.batches, self.digest = 0, ""

    @property
    def data_order(self) -> str | None:
        """The hash; None where the first batches were not seen."""
        return self.digest[:16] or None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Hash the weights, or read what was noted; then look at the batches."""
        if self.checkpoint is None:
            self.initial_weights = weights_hash(model)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / START).write_text(json.dumps({"initial_weights": self.initial_weights}), encoding="utf-8")
        else:
            self.initial_weights = _read(self.folder / START).get("initial_weights")
            noted = _read(self.checkpoint / ORDER)
            self.batches, self.digest = noted.get("batches", BATCHES), noted.get("digest", "")
        step = self.trainer.training_step

        def watched(model: Any, inputs: Mapping[str, Any], *rest: Any, **keywords: Any) -> Tensor:
            self._see(inputs)
            return step(model, inputs, *rest, **keywords)

        self.trainer.training_step = watched

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lay what was seen beside what was learned from it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            content = {"batches": self.batches, "digest": self.digest}
            (folder / ORDER).write_text(json.dumps(content), encoding="utf-8")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the trainer as it was."""
        self.trainer.__dict__.pop("training_step", None)

    def _see(self, inputs: Mapping[str, Any]) -> None:
        if self.batches >= BATCHES:
            return
        self.batches += 1
        seen = hashlib.sha256(self.digest.encode())
        for name in (self.trainer.label_name, "input_ids"):
            values = inputs.get(name)
            if isinstance(values, Tensor):
                seen.update(values.detach().cpu().contiguous().numpy().tobytes())
        self.digest = seen.hexdigest()


class ScoresByEpoch(WithTrainer):
    """Scores the test split after each epoch, as some papers do; see `hf_kd.compare.section.BEST_TEST`.

    Args:
        rows: The test split.
    """

    def __init__(self, rows: Any):
        self.rows = rows

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate; what the Trainer wants to do after the epoch is left as it is."""
        wanted = control.should_evaluate, control.should_log, control.should_save
        self.trainer.evaluate(self.rows, metric_key_prefix="test")
        control.should_evaluate, control.should_log, control.should_save = wanted

    def best(self, metric: str, greater_is_better: bool) -> tuple[float, int] | None:
        """The best score over the epochs, those before an interruption included, and its epoch, from 1."""
        key = f"test_{metric}"
        found = [record for record in self.trainer.state.log_history if key in record]
        if not found:
            return None
        best = (max if greater_is_better else min)(found, key=lambda record: record[key])
        return float(best[key]), max(1, round(best["epoch"]))


@torch.no_grad()
def weights_hash(model: Any) -> str:
    """Of all parameters and buffers, their names included."""
    seen = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        seen.update(name.encode())
        if isinstance(value, Tensor):
            seen.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}

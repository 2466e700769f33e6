"""The objective's learnable state: stepped by its own SGD, averaged over processes, saved and resumed.

Files in a checkpoint: `distillation_state.safetensors` (tensors; pickle is never read) and
`distillation_manifest.json` (what they belong to).
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from ..objective import DistillationObjective, ObjectiveOutput
from ..temperatures import Progress

STATE_FILE = "distillation_state.safetensors"
MANIFEST_FILE = "distillation_manifest.json"
FORMAT = 1

GO_ON = " To go on all the same, set `resume_with_changes=True` in the training arguments."

logger = logging.get_logger(__name__)


class ObjectiveState:
    """Steps the learned temperatures of an objective beside the student's optimizer.

    Plain SGD, because under Adam the curriculum's factor on the gradient cancels; with a learning rate of its own that
    follows the student's schedule. The parameters are outside the student's wrapper, so their gradients are averaged
    here, and under fp16 they are unscaled before the scaler updates and skipped when the student's step is.

    Projectors and the layer of task serialisation are stepped by the student's optimizer, in groups of their own; they
    are outside its wrapper too, so their gradients are averaged and cleared here. `max_grad_norm` clips the student's
    gradients alone.

    Args:
        objective: Whose state it is; moved to the accelerator's device.
        accelerator: Collectives and the fp16 scaler.
        learning_rate: Before the schedule's factor.
        momentum: Of the SGD.
        weight_decay: Of the SGD.
    """

    def __init__(
        self,
        objective: DistillationObjective,
        accelerator: Accelerator,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
    ):
        self.objective = objective.to(accelerator.device)
        self.accelerator = accelerator
        self.learning_rate = learning_rate
        self.parameters = objective.temperature_parameters()
        self.student_side = [*objective.projector_parameters(), *objective.serialization_parameters()]
        self.adapting = [name for name, loss in zip(objective.names, objective.losses, strict=True) if loss.adapts]
        self.means: dict[str, Tensor] = {}  # of the adapting losses over the rows of this step, so far
        self.progress = Progress()
        self.optimizer = None
        if self.parameters:
            self.optimizer = torch.optim.SGD(
                self.parameters, lr=learning_rate, momentum=momentum, weight_decay=weight_decay
            )
            self.optimizer.zero_grad(set_to_none=True)  # a run that stopped half-way may have left gradients
        for parameter in self.student_side:
            parameter.grad = None
        if accelerator.num_processes > 1:  # every process starts from the first one's values
            for value in self.objective.state_dict().values():
                value.copy_(broadcast(value.clone()))

    def observe(self, output: ObjectiveOutput, progress: Progress) -> None:
        """Add a micro-batch's share to the step's means of the losses that adapt."""
        self.progress = progress
        for term in output.terms:
            if term.name in self.adapting and term.weight > 0:  # at weight 0 the step says nothing about the loss
                key = "kd_loss" if len(output.terms) == 1 else f"kd_loss/{term.name}"
                share = output.components[key] / term.weight
                self.means[term.name] = self.means.get(term.name, 0.0) + share

    def average(self) -> None:
        """Average what the student's optimizer steps for us; called after the last backward of a step.

        Before gradients are unscaled: whether fp16 overflowed must be the same answer on every process.
        """
        if self.student_side:
            self._write_back(self.student_side, self._averaged(self.student_side))

    def _averaged(self, parameters: list[torch.nn.Parameter]) -> Tensor:
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        return self.accelerator.reduce(flat, reduction="mean") if self.accelerator.num_processes > 1 else flat

    def _write_back(self, parameters: list[torch.nn.Parameter], flat: Tensor) -> None:
        for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = grad.view_as(parameter).to(parameter.dtype)

    def synchronize(self) -> None:
        """Average the gradients over processes and undo fp16 scaling; called before the student's optimizer steps."""
        if self.optimizer is None:
            return
        flat = self._averaged(self.parameters)
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            flat = flat / scaler.get_scale()
        self._write_back(self.parameters, flat)

    def step(self, schedule_factor: float) -> None:
        """One SGD step at `learning_rate * schedule_factor`, unless the student's step was skipped; losses adapt."""
        self._advance()
        for parameter in self.student_side:
            parameter.grad = None
        if self.optimizer is None:
            return
        if not self.accelerator.optimizer_step_was_skipped:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * schedule_factor
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _advance(self) -> None:
        for name, loss in zip(self.objective.names, self.objective.losses, strict=True):
            if name in self.means and not self.accelerator.optimizer_step_was_skipped:
                mean = self.accelerator.reduce(self.means[name], reduction="mean")
                loss.advance(mean, progress=self.progress)
        self.means = {}

    def state(self) -> dict[str, Tensor]:
        """Everything needed to go on: parameters, buffers and momentum."""
        state = {f"objective.{name}": value for name, value in self.objective.state_dict().items()}
        for index, parameter in enumerate(self.parameters):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                state[f"momentum.{index}"] = momentum
        # a strategy that two losses share is written under both names: safetensors wants memory of its own for each
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}

    def load_state(self, state: dict[str, Tensor], source: str) -> None:
        """Restore `state`.

        Raises:
            ValueError: It belongs to another objective.
        """
        own = {name.removeprefix("objective."): v for name, v in state.items() if name.startswith("objective.")}
        expected = self.objective.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in expected.items()}:
            raise ValueError(
                f"`train(resume_from_checkpoint={source!r})` found distillation state for {sorted(own)} but the "
                f"objective has {sorted(expected)}: it was saved by another method. Resume with the method the run "
                "was started with."
            )
        self.objective.load_state_dict(own)
        for index, parameter in enumerate(self.parameters):
            if f"momentum.{index}" in state:
                momentum = state[f"momentum.{index}"].to(parameter)
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.clone()


def initialized(objective: DistillationObjective, initial: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Give the objective the state of the first run back, but for what was made anew for a student of another size.

    Args:
        objective: Used in several runs.
        initial: What this returned before the first run; None then.
    """
    state = objective.state_dict()
    if initial is None:
        return {name: value.clone() for name, value in state.items()}
    objective.load_state_dict({k: initial[k] if initial[k].shape == v.shape else v for k, v in state.items()})
    return initial


def join_optimizer(optimizer: torch.optim.Optimizer, objective: DistillationObjective, weight_decay: float) -> bool:
    """Give projectors and the layer of task serialisation groups of their own in the student's optimizer.

    Projectors decay like the student's weights; the layer does not: decay would pull it away from the identity.

    Returns:
        Whether a group was added; none is for parameters that the optimizer already has.
    """
    present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    kinds = ((objective.projector_parameters(), weight_decay), (objective.serialization_parameters(), 0.0))
    added = False
    for parameters, decay in kinds:
        new = [parameter for parameter in parameters if id(parameter) not in present]
        if new:
            optimizer.add_param_group({"params": new, "weight_decay": decay})
            added = True
    return added


class ObjectiveSteps(TrainerCallback):
    """Steps the learned temperatures of a `DistillationTrainer` beside its student's optimizer."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """Continue a resumed run's logging window."""
        self.trainer._restore_window()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Average and unscale, before the fp16 scaler updates."""
        self.trainer._objective_state.synchronize()

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Step at the student's current schedule factor."""
        group = self.trainer.optimizer.param_groups[0]
        initial = group["initial_lr"]
        self.trainer._objective_state.step(float(group["lr"]) / initial if initial else 0.0)


def describe(objective: DistillationObjective) -> list[str]:
    """The objective in words and numbers, line by line, as the manifest keeps it."""
    return repr(objective).splitlines()


def write_checkpoint(folder: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Write both files; the manifest last, so that its presence says the tensors are complete."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / STATE_FILE)
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    content = {"format": FORMAT, **manifest, "versions": versions}
    (folder / MANIFEST_FILE).write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_checkpoint(
    folder: Path, objective: DistillationObjective, may_differ: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read both files of `folder`; two empty mappings where a run without learned state left none.

    Args:
        folder: The checkpoint.
        objective: The one to go on with.
        may_differ: Warn where the state belongs to another objective. What it learned is left out.

    Raises:
        ValueError: The state is missing though temperatures are learned, is unreadable, or belongs to another
            objective.
    """
    if not (folder / MANIFEST_FILE).is_file() or not (folder / STATE_FILE).is_file():
        if any(parameter.requires_grad for parameter in objective.parameters()):
            raise ValueError(
                f"`train(resume_from_checkpoint={str(folder)!r})` found no complete `{STATE_FILE}` there, so what is "
                "learned beside the student (temperatures, projectors) would start over. Resume from a checkpoint "
                "saved with `save_only_model=False`."
            )
        return {}, {}
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(_unreadable(folder, MANIFEST_FILE, error)) from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"`train(resume_from_checkpoint={str(folder)!r})` found distillation state of format "
            f"{manifest.get('format')!r}; this version reads format {FORMAT}. Resume with the version that wrote it."
        )
    is_same = _is_same_objective(folder, describe(objective), manifest["objective"], may_differ)
    try:
        tensors = load_file(folder / STATE_FILE)
    except SafetensorError as error:
        raise ValueError(_unreadable(folder, STATE_FILE, error)) from error
    if not is_same:  # what else there is counts other terms
        own = {f"objective.{name}": value.shape for name, value in objective.state_dict().items()}
        fits = own == {name: value.shape for name, value in tensors.items() if name.startswith("objective.")}
        kept = ("objective.", "momentum.", "student_layer.") if fits else ()
        return {name: value for name, value in tensors.items() if name.startswith(kept)}, {
            "run": manifest.get("run", {})
        }
    return tensors, manifest


def _is_same_objective(folder: Path, now: list[str], then: list[str], may_differ: bool) -> bool:
    if now == then:
        return True
    differing = [f"{a.strip()} (now: {b.strip()})" for a, b in zip(then, now, strict=False) if a != b]
    said = (
        f"`train(resume_from_checkpoint={str(folder)!r})` was saved with another objective: "
        f"{'; '.join(differing) or 'another number of losses'}."
    )
    if not may_differ:
        raise ValueError(f"{said} Resume with the settings the run was started with, or start a new run.{GO_ON}")
    logger.warning(f"{said} The run goes on with the new one, as `resume_with_changes` says.")
    return False


def _unreadable(folder: Path, name: str, error: Exception) -> str:
    return (
        f"`train(resume_from_checkpoint={str(folder)!r})` cannot read `{name}` ({error}): the file is damaged or was "
        "not written to its end. Resume from another checkpoint."
    )

"""One step with and without activation checkpointing: what one process and two both run."""

import torch
from architectures import build, rows
from tiny import Projected, Rows, train, weights

from hf_kd import DistillationObjective, KDLoss, add_adapter

SUPPORTED = (
    *("bert", "distilbert", "roberta", "electra", "modernbert", "xlm-roberta"),
    *("vit", "deit", "swin", "dinov2", "timm_wrapper"),
)
UNSUPPORTED = ("resnet", "convnext", "mobilenet_v2")
DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "vit": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
}
OFF = {name: dict.fromkeys(settings, 0.0) for name, settings in DROPOUT.items()}
KINDS = ("ctkd", "projector", "lora")


def student_for(name, kind, dropout=True):
    """A student, with dropout where the architecture has some; its adapter is what it would be in mid-run."""
    student = build(name, 0, **(DROPOUT.get(name, {}) if dropout else OFF.get(name, {})))
    if kind != "lora":
        return student
    with torch.random.fork_rng():
        torch.manual_seed(3)
        student = add_adapter(student, {"type": "lora", "r": 4, "lora_dropout": 0.1 * dropout})
        for parameter_name, parameter in student.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
    return student


def step(folder, name, kind, kwargs=None, *, size=8, dropout=True, **overrides):
    """The trainer after one step of `kind`, how often a layer ran in it, and where each weight was before.

    Args:
        folder: Of the run.
        name: The architecture.
        kind: One of `KINDS`.
        kwargs: Of activation checkpointing; None trains without.
        size: Rows per process, of eight in all.
        dropout: Whether the student has any; two processes draw other ones than one.
        **overrides: Training arguments.
    """
    student, calls = student_for(name, kind, dropout), []
    before = {key: value.detach().clone() for key, value in student.named_parameters()}
    inner = [module for key, module in student.named_modules() if _is_inner(key)][0]
    handle = inner.register_forward_hook(lambda *_: calls.append(1))
    given = {"method": "ctkd", "method_kwargs": {"curriculum": 0.0, "initial": -2.0}} if kind == "ctkd" else {}
    own = {}
    if kind == "projector":
        losses = [(1.0, KDLoss(4.0)), (0.5, Projected())]
        own = {"objective": DistillationObjective(losses, ce_weight=0.5, kd_weight=1.0)}
    trainer = train(
        folder,
        student,
        build(name, 1),
        Rows(rows(name, 8)),
        trainer=own,
        **{"per_device_train_batch_size": size, "max_steps": 1, "learning_rate": 1.0, **given, **overrides},
        temperature_learning_rate=10.0,
        activation_checkpointing=kwargs is not None,
        activation_checkpointing_kwargs=kwargs,
    )
    handle.remove()
    return trainer, len(calls), before


def moved(trainer, before):
    """How far each weight moved, and all that the objective learned."""
    ways = {name: value.detach() - before[name] for name, value in trainer.model.named_parameters()}
    return {**ways, **{f"objective.{name}": value for name, value in weights(trainer.objective).items()}}


def _is_inner(name):
    """Whether a module lies within a layer that is computed again."""
    last = name.rpartition(".")[-1]
    return "layer" in name and last in ("attention", "self_attn", "self_attention", "attn", "conv2", "mlp")

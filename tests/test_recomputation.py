"""Activation checkpointing changes the memory of a step, not the step. Two processes are in `test_distributed.py`."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from architectures import build, rows
from recomputing import KINDS, SUPPORTED, UNSUPPORTED, moved, step, student_for
from tiny import Rows, arguments, build_trainer, relative_difference

from hf_kd import add_adapter
from hf_kd.trainer.recomputation import check_recomputation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),  # the older name
]
TOLERANCE = 1e-6
"""Relative, of the whole step. The same operations on the same numbers: on a CPU nothing differs, but for Swin, whose
residual branches are summed in another order in the reentrant way, by 2e-6 in one weight."""
OF_ONE = 1e-5
"""Relative, of each weight: one that is left out is wrong by 1. A key's bias has no gradient but rounding."""
CELLS = list(itertools.product(SUPPORTED, KINDS, (False, True)))


def is_quick(name, kind, reentrant):
    """The default run has every architecture, every kind with text and images, and all adapters the reentrant way."""
    place = (SUPPORTED.index(name) + KINDS.index(kind)) % 3
    return place == int(reentrant) or (name in ("bert", "vit")) or (kind == "lora" and reentrant)


def check_same(found, expected):
    """Both as a whole and weight by weight."""
    flat = [torch.cat([value.flatten() for value in ways.values()]) for ways in (found, expected)]
    assert relative_difference(*flat) < TOLERANCE
    for key, value in expected.items():
        assert (found[key] - value).norm() <= OF_ONE * value.norm() + TOLERANCE * flat[1].norm() / 10, key


def _marked(cell):
    marks = () if is_quick(*cell) else pytest.mark.slow
    return pytest.param(*cell, id="-".join((*cell[:2], "reentrant" if cell[2] else "default")), marks=marks)


@pytest.mark.parametrize(("name", "kind", "reentrant"), [_marked(cell) for cell in CELLS])
def test_a_step_is_the_same_with_activation_checkpointing(name, kind, reentrant, tmp_path):
    """Adapters of image models got no gradient at all in the reentrant way: their head learned alone.

    With dropout: a pass that draws again what it forgot would be the gradient of another step.
    """
    if name == "timm_wrapper":
        pytest.importorskip("timm")
    whole, once, before = step(tmp_path / "whole", name, kind)
    again, twice, _ = step(tmp_path / "again", name, kind, {"use_reentrant": reentrant})
    assert once == 1
    assert twice >= 2  # indeed computed again, Swin's blocks also with their stages
    expected, found = moved(whole, before), moved(again, before)
    check_same(found, expected)
    trained = [key for key, value in whole.model.named_parameters() if value.requires_grad]
    still = [key for key in trained if not expected[key].any()]
    assert not [key for key in still if "lora_" in key], still
    records = [trainer.state.log_history[0] for trainer in (whole, again)]
    assert records[1]["loss"] == pytest.approx(records[0]["loss"], rel=TOLERANCE)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_frozen_beginning_lets_gradients_through(name, tmp_path):
    """As with adapters: whoever freezes embeddings and trains the rest would train the head alone."""
    ways = []
    for kwargs in (None, {"use_reentrant": True}):
        student = build(name, 0)
        student.base_model.embeddings.requires_grad_(False)
        before = {key: value.detach().clone() for key, value in student.named_parameters()}
        trainer = build_trainer(
            tmp_path, student, build(name, 1), Rows(rows(name, 8)), per_device_train_batch_size=8, max_steps=1,
            activation_checkpointing=kwargs is not None, activation_checkpointing_kwargs=kwargs,
        )  # fmt: skip
        trainer.train()
        ways.append(moved(trainer, before))
    check_same(ways[1], ways[0])


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_an_adapter_is_taught_by_its_own_base_with_activation_checkpointing(name, reentrant, tmp_path):
    """The base answers between the student's pass and the backward pass that computes the student's layers again: with
    its adapter, and its dropout, or else the gradient is of something else."""
    ways = []
    for index, kwargs in enumerate((None, {"use_reentrant": reentrant})):
        base = build(name, 0)
        head = base.classifier
        torch.nn.init.normal_(head.bias, std=0.1, generator=torch.Generator().manual_seed(0))
        student = add_adapter(base, {"type": "lora", "r": 4, "lora_dropout": 0.1})
        for key, parameter in student.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        before = {key: value.detach().clone() for key, value in student.named_parameters()}
        trainer = build_trainer(
            tmp_path / str(index), student, "self", Rows(rows(name, 8)), per_device_train_batch_size=8, max_steps=1,
            activation_checkpointing=kwargs is not None, activation_checkpointing_kwargs=kwargs,
        )  # fmt: skip
        trainer.train()
        ways.append(moved(trainer, before))
    assert all(value.any() for key, value in ways[0].items() if "lora_" in key)
    check_same(ways[1], ways[0])


@pytest.mark.parametrize("setting", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_architecture_that_cannot_says_so_before_anything_runs(name, setting, tmp_path):
    """transformers says it when training starts, and not what to do instead."""
    for student in (build(name, 0), None if name == "mobilenet_v2" else add_adapter(build(name, 0), {"type": "lora"})):
        if student is None:
            continue
        with pytest.raises(ValueError, match=r"ForImageClassification has no layers that.*gradient_accumulation"):
            build_trainer(tmp_path, student, build(name, 1), **{setting: True})


def test_a_model_of_ones_own_says_so_too(tmp_path):
    """Without the method it was an AttributeError."""
    with pytest.raises(ValueError, match="Linear has no layers that"):
        build_trainer(tmp_path, torch.nn.Linear(2, 5), build("bert", 1), activation_checkpointing=True)


def test_reentrant_passes_are_refused_where_ddp_looks_for_unused_weights(tmp_path):
    """The default of DDP for adapters; torch says that a parameter was "marked ready twice"."""
    student = student_for("bert", "lora")
    two = SimpleNamespace(
        num_processes=2, unwrap_model=lambda model: model, ddp_handler=SimpleNamespace(find_unused_parameters=True)
    )
    given = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match="ddp_find_unused_parameters=False"):
        check_recomputation(student, arguments(tmp_path, **given), two)
    two.ddp_handler.find_unused_parameters = False
    check_recomputation(student, arguments(tmp_path, **given), two)
    two.ddp_handler.find_unused_parameters = True
    check_recomputation(student, arguments(tmp_path, activation_checkpointing=True), two)
    two.num_processes = 1
    check_recomputation(student, arguments(tmp_path, **given), two)


def test_batch_norms_that_see_a_batch_twice_are_said(tmp_path, caplog):
    """The running statistics of a model of timm move twice as far: another momentum than the one that was set."""
    pytest.importorskip("timm")
    build_trainer(tmp_path, build("timm_wrapper", 0), build("timm_wrapper", 1), activation_checkpointing=True)
    assert "see each batch twice" in caplog.text
    caplog.clear()
    build_trainer(tmp_path, build("bert", 0), build("bert", 1), activation_checkpointing=True)
    assert "twice" not in caplog.text

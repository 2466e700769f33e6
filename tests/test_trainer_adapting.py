"""Losses with a state of their own are moved once per optimizer step, by the mean over the whole step."""

import pytest
import torch
from tiny import build_trainer, classifier, examples, table, train, weights

from hf_kd import DistillationObjective, Progress
from hf_kd.losses import KDLoss, TAIDLoss

STEPS = 6


def objective(**taid):
    losses = [(2.0, TAIDLoss(rate=0.5, momentum=0.5, **taid)), (1.0, KDLoss(4.0))]
    return DistillationObjective(losses, ce_weight=1.0, kd_weight=0.5)


def taid_run(folder, resume=None, **overrides):
    given = {"num_train_epochs": 3, "per_device_train_batch_size": 8, **overrides}
    rows = table(examples("bert", 16, "mixed"))
    trainer = build_trainer(
        folder, classifier("bert", 0), classifier("bert", 9), rows, trainer={"objective": objective()}, **given
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_state_follows_the_logged_loss_of_every_step(tmp_path):
    """Weights, warm-ups or a micro-batch's share handed in instead would move the target by something else."""
    trainer = taid_run(tmp_path)
    records = [record for record in trainer.state.log_history if "kd_loss/taid" in record]
    by_hand = TAIDLoss(rate=0.5, momentum=0.5)
    for step, record in enumerate(records):
        by_hand.advance(record["kd_loss/taid"] / (0.5 * 2.0), progress=Progress(fraction=step / STEPS))
    assert len(records) == STEPS
    assert trainer.objective.losses[0].risen > 0
    torch.testing.assert_close(trainer.objective.losses[0].risen, by_hand.risen, rtol=1e-5, atol=1e-7)


def test_micro_batches_move_it_like_one_batch(tmp_path):
    whole = taid_run(tmp_path)
    split = taid_run(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(split.objective.state_dict(), whole.objective.state_dict(), rtol=1e-5, atol=1e-6)


def test_its_state_is_resumed_bit_for_bit(tmp_path):
    whole = taid_run(tmp_path, save_strategy="steps", save_steps=3)
    resumed = taid_run(tmp_path / "resumed", str(tmp_path / "checkpoint-3"))
    torch.testing.assert_close(
        dict(resumed.objective.state_dict()), dict(whole.objective.state_dict()), rtol=0, atol=0
    )
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)


@pytest.mark.parametrize("skipped", [True, False])
def test_skipped_step_leaves_it(skipped, tmp_path, monkeypatch):
    rows = table(examples("bert", 16))
    given = objective()
    monkeypatch.setattr("accelerate.Accelerator.optimizer_step_was_skipped", property(lambda self: skipped))
    train(tmp_path, classifier("bert", 0), classifier("bert", 9), rows, trainer={"objective": given})
    assert (given.losses[0].risen > 0) != skipped

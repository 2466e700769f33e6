"""Rows without a length: whole passes are counted, and a run goes on in the pass it was in."""

import pytest
import torch
from test_inputs import Stream
from tiny import arguments, assert_same_run, build_trainer, classifier, examples, relative_difference, table, update
from tiny import weights as weights_of

from hf_kd import DistillationObjective, DistillationTrainer, KDLoss
from hf_kd.experiment import parse_config
from hf_kd.losses import AnnealingKDLoss
from hf_kd.registry import ConfigError
from hf_kd.temperatures import CTKDTemperature
from hf_kd.trainer import passes

ROWS = 12  # three batches of four in a pass


class Noted(AnnealingKDLoss):
    """Notes the epoch and the stage of every micro-batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def forward(self, *args, progress, **kwargs):
        self.seen.append((progress.epoch, self.stage(progress)))
        return super().forward(*args, progress=progress, **kwargs)


class Flipped(Stream):
    """Rows changed at random as they come."""

    def __iter__(self):
        for row in super().__iter__():
            yield {**row, "pixel_values": row["pixel_values"] * (1 if torch.rand(()) < 0.5 else -1)}


def annealed(folder, rows, **overrides):
    loss = Noted(4, first_phase_epochs=4.0)
    objective = DistillationObjective([(1.0, loss)], ce_weight=1.0, kd_weight=1.0)
    given = {"max_steps": 14, **overrides}
    trainer = build_trainer(
        folder, classifier("bert", 0), classifier("bert", 1), rows, trainer={"objective": objective}, **given
    )
    return trainer, loss


def test_an_epoch_of_a_stream_is_a_whole_pass(tmp_path):
    """The Trainer's own epoch of a stream grows by the share of the whole training: the stages of a schedule would
    come at other rows than those of a table, and at the first step of a pass as late as the pass before."""
    trainer, of_a_table = annealed(tmp_path, table(examples("bert", ROWS)))
    trainer.train()
    for rows in (Stream(examples("bert", ROWS)), table(examples("bert", ROWS)).to_iterable_dataset()):
        trainer, of_a_stream = annealed(tmp_path, rows)
        trainer.train()
        assert [epoch for epoch, _ in of_a_stream.seen] == [float(int(epoch)) for epoch, _ in of_a_table.seen]
        assert [stage for _, stage in of_a_stream.seen] == [stage for _, stage in of_a_table.seen]
    assert [stage for _, stage in of_a_table.seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0]


def test_parts_of_an_epoch_are_refused_for_a_stream(tmp_path):
    """How long one is, is not known; as a share of the run it is, and for rows with a length."""

    def built(rows, **first_phase):
        objective = DistillationObjective([(1.0, AnnealingKDLoss(4, **first_phase))], ce_weight=1.0, kd_weight=1.0)
        trainer = {"objective": objective}
        return build_trainer(
            tmp_path, classifier("bert", 0), classifier("bert", 1), rows, trainer=trainer, max_steps=2
        )

    rows = examples("bert", ROWS)
    with pytest.raises(ValueError, match=r"`AnnealingKDLoss` changes every 0\.5 epochs.*no length.*`first_phase`"):
        built(Stream(rows), first_phase_epochs=2.0).train()
    built(Stream(rows), first_phase=0.5).train()
    built(table(rows), first_phase_epochs=2.0).train()


@pytest.mark.parametrize(("epochs", "is_refused"), [(5, True), (20, False), (None, False)])
def test_a_configuration_of_parts_of_an_epoch_of_a_stream_is_refused(epochs, is_refused, tmp_path):
    """Before anything is loaded."""
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 0}')
    given = {
        "output_dir": str(tmp_path / "run"),
        "teacher": {"model": "owner/teacher"},
        "student": {"model": "owner/student"},
        "data": {"path": str(tmp_path), "streaming": True},
        "method": {"name": "annealing_kd"} | ({} if epochs is None else {"first_phase_epochs": epochs}),
        "training": {"max_steps": 3},
    }
    if not is_refused:
        parse_config(given)
        return
    with pytest.raises(ConfigError, match=r"data\.streaming: .*changes every 0\.5 epochs") as caught:
        parse_config(given)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("accumulation", "saved"), [(1, 2), (1, 3), (1, 5), (1, 6), (1, 7), (2, 5)])
def test_a_run_over_a_stream_is_resumed_in_the_pass_it_was_in(accumulation, saved, tmp_path):
    """The Trainer takes all steps for one pass: it skips more batches than there are, begins the next pass anew, and
    shows rows twice. Saved within the first pass, at its end, and within the second and third."""

    def run(folder, seed, resume=None):
        objective = DistillationObjective(
            [(1.0, KDLoss(CTKDTemperature(curriculum_epochs=3)))], ce_weight=1.0, kd_weight=1.0
        )
        student = classifier("vit", seed, hidden_dropout_prob=0.1)
        rows = Flipped(examples("vit", ROWS * accumulation))
        trainer = build_trainer(
            folder, student, classifier("vit", 9), rows, trainer={"objective": objective}, max_steps=8,
            gradient_accumulation_steps=accumulation, save_strategy="steps", save_steps=1, optim="adamw_torch",
            learning_rate=0.01, lr_scheduler_type="linear",
        )  # fmt: skip
        return trainer, trainer.train(resume_from_checkpoint=resume)

    whole = run(tmp_path, 0)
    assert_same_run(run(tmp_path / "resumed", 1, str(tmp_path / f"checkpoint-{saved}")), whole)


def test_more_steps_than_planned_go_on_in_the_same_pass(tmp_path):
    """A run that is made longer: which pass it was in follows from the steps it was planned with."""
    trainer, _ = annealed(tmp_path, Stream(examples("bert", ROWS)), max_steps=5, save_strategy="steps", save_steps=5)
    trainer.train()
    longer, loss = annealed(tmp_path / "longer", Stream(examples("bert", ROWS)), max_steps=8, resume_with_changes=True)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [epoch for epoch, _ in loss.seen] == [1.0, 2.0, 2.0]


def test_a_rest_of_micro_batches_is_left_out_of_a_stream_and_that_is_said_once(tmp_path, monkeypatch):
    """The Trainer keeps its gradients, scaled as a whole step, for the next pass's first step: that step is nearly
    twice as long."""

    def moved(rows, steps):
        student = classifier("bert", 0)
        before = weights_of(student)
        trainer = DistillationTrainer(
            student,
            arguments(tmp_path, gradient_accumulation_steps=2, max_steps=steps),
            train_dataset=rows,
            teacher_model=classifier("bert", 1),
        )
        trainer.train()
        return update(before, weights_of(student))

    said = []
    monkeypatch.setattr(passes.logger, "warning", said.append)
    rows = examples("bert", ROWS)  # one whole step and half of one
    assert relative_difference(moved(Stream(rows), 3), moved(Stream(rows[:8] * 3), 3)) < 1e-6
    assert [line for line in said if "1 of the 2 micro-batches" in line] == said
    assert len(said) == 1

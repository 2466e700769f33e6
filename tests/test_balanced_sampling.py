"""Balanced sampling: every class equally often, the same draw on every process and after a resume."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from tiny import PROBLEMS, Rows, build_trainer, classifier, examples, head, table, weights
from torch.utils.data import BatchSampler

from hf_kd import DistillationTrainingArguments, load_task
from hf_kd.experiment import parse_config, run_experiment
from hf_kd.registry import ConfigError
from hf_kd.trainer import sampling
from hf_kd.trainer.sampling import BalancedSampler

LABELS = np.array([0] * 20 + [1] * 6 + [2] * 3 + [-100] * 8)
"""20, 6 and 3 rows of the classes and 8 unlabelled; 29 draws for three classes."""

BALANCED = {"train_sampling_strategy": "balanced"}


def sampler(epoch=0, seed=0, labels=LABELS):
    return BalancedSampler(labels, seed, lambda: epoch)


def imbalanced(rows=16, labels="labelled"):
    """Twelve rows of class 0, four of class 1."""
    made = examples("bert", rows, labels)
    return [{**row, "labels": row["labels"] if row["labels"] == -100 else int(i >= 12)} for i, row in enumerate(made)]


def test_every_class_comes_equally_often():
    """An expectation would do over many epochs only; this holds in each."""
    for epoch in range(20):
        drawn = LABELS[list(sampler(epoch))]
        counts = np.bincount(drawn[drawn >= 0])
        assert sorted(counts) == [9, 10, 10]
    totals = sum(np.bincount(LABELS[sampler(epoch).draw(epoch)].clip(0)) for epoch in range(300)) / 300
    assert totals[1] == pytest.approx(totals[2], abs=0.2)  # the one that misses out is another each time


def test_an_epoch_is_as_long_as_ever():
    """Or schedules, warm-up and `num_train_epochs` would mean something else."""
    assert len(sampler()) == len(list(sampler())) == len(LABELS)


def test_rows_repeat_no_more_than_they_must():
    """All rows of a rare class equally often; none of a frequent one twice, and other ones in the next epoch."""
    first, second = list(sampler(0)), list(sampler(1))
    for drawn in (first, second):
        times = np.bincount(drawn, minlength=len(LABELS))
        assert times[:20].max() == 1
        assert np.ptp(times[20:26]) <= 1
        assert np.ptp(times[26:29]) <= 1
        assert times[26:29].min() >= 3
    assert set(first[:]) & set(range(20)) != set(second) & set(range(20))


def test_unlabelled_rows_come_once_per_epoch():
    """As without balancing: distillation alone learns from them, and they are no class."""
    for epoch in range(3):
        drawn = list(sampler(epoch))
        assert sorted(row for row in drawn if LABELS[row] == -100) == list(range(29, 37))


def test_seed_and_epoch_decide_the_draw():
    draws = [list(sampler(epoch, seed)) for seed in (0, 1) for epoch in (0, 1)]
    assert list(sampler(1, 0)) == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4
    state = torch.get_rng_state()
    list(sampler())
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_share_one_draw():
    """Each with a draw of its own, they would show the same rows twice and balance nothing together."""
    batches = BatchSampler(sampler(), 4, drop_last=False)
    shards = [[row for batch in BatchSamplerShard(batches, 2, index) for row in batch] for index in (0, 1)]
    rounds = zip(*(np.array_split(shard, len(shard) // 4) for shard in shards), strict=True)
    assert np.concatenate([part for pair in rounds for part in pair])[: len(LABELS)].tolist() == list(sampler())


def test_training_sees_balanced_classes(tmp_path):
    trainer = build_trainer(tmp_path, classifier("bert", 0), None, table(imbalanced()), kd_weight=0.0, **BALANCED)
    seen, step = [], trainer.compute_loss

    def compute_loss(model, inputs, *args, **keywords):
        seen.append(inputs["labels"])
        return step(model, inputs, *args, **keywords)

    trainer.compute_loss = compute_loss
    trainer.train()
    assert torch.cat(seen).bincount().tolist() == [8, 8]


@pytest.mark.parametrize(("saved_at", "workers"), [(3, 0), (4, 0), (6, 1)])
def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(saved_at, workers, tmp_path):
    """In the middle of an epoch and at its end, bit for bit; an epoch forgotten, and the first one comes again."""
    runs = []
    for seed, resume in ((0, None), (1, f"{tmp_path}/0/checkpoint-{saved_at}")):
        trainer = build_trainer(
            tmp_path / str(seed),
            classifier("bert", seed, hidden_dropout_prob=0.1),
            classifier("bert", 9),
            table(imbalanced(labels="mixed")),
            num_train_epochs=3,
            optim="adamw_torch",
            learning_rate=0.01,
            save_strategy="steps",
            save_steps=saved_at,
            dataloader_num_workers=workers,
            **BALANCED,
        )
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    torch.testing.assert_close(weights(runs[1].model), weights(runs[0].model), rtol=0, atol=0)
    losses = [[record.get("loss") for record in run.state.log_history] for run in runs]
    assert losses[0] == losses[1]


def test_data_seed_decides_if_there_is_one(tmp_path):
    """As for the Trainer's own samplers."""
    draws = []
    for given in ({"seed": 1}, {"seed": 2}, {"seed": 1, "data_seed": 5}, {"seed": 2, "data_seed": 5}):
        trainer = build_trainer(
            tmp_path, classifier("bert", 0), None, table(imbalanced()), kd_weight=0.0, **given, **BALANCED
        )
        draws.append(list(trainer._get_train_sampler()))
    assert draws[0] != draws[1]
    assert draws[2] == draws[3] != draws[0]


def test_labels_are_found_in_columns_and_attributes(tmp_path):
    """Null and NaN are unlabelled; a torch dataset may hold its labels as torchvision does."""
    labels = [0, 1, None, 1] * 4
    rows = [{**row, "labels": label} for row, label in zip(imbalanced(), labels, strict=True)]
    augmented = table(rows).with_transform(lambda batch: batch)
    plain = Rows(imbalanced())
    plain.targets = [0, 1, -100, 1] * 4
    numbers = table(rows).with_format("numpy")
    for dataset in (table(rows), augmented, plain, numbers, table(rows).rename_column("labels", "label")):
        trainer = build_trainer(tmp_path, classifier("bert", 0), None, dataset, kd_weight=0.0, **BALANCED)
        assert trainer._get_train_sampler().labels.tolist() == [0, 1, -100, 1] * 4


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: table(imbalanced()).to_iterable_dataset(), "`train_dataset` is a stream"),
        (lambda: Rows(imbalanced()), "no column or attribute `labels`"),
        (lambda: table(examples("bert", 8, "unlabelled")), "no labelled row"),
    ],
)
def test_what_cannot_be_balanced_is_refused(dataset, message, tmp_path):
    """At once, not at the first step; and never silently drawn as ever."""
    with pytest.raises(ValueError, match=message):
        build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), dataset(), max_steps=2, **BALANCED)


def test_several_labels_per_row_are_refused(tmp_path):
    problem = next(name for name, (kind, _) in PROBLEMS.items() if kind.startswith("multi"))
    rows = [{**row, "labels": [0.0] * PROBLEMS[problem][1]} for row in examples("bert", 4)]
    with pytest.raises(ValueError, match="needs one class per row"):
        build_trainer(tmp_path, head("bert", 0, problem), None, table(rows), kd_weight=0.0, **BALANCED)


def test_weights_beside_it_are_warned_of(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sampling, "logger", SimpleNamespace(warning_once=said.append))
    rows = [{**row, "label_weight": 1.0} for row in imbalanced()]
    build_trainer(tmp_path, classifier("bert", 0), None, table(rows), kd_weight=0.0, **BALANCED)
    assert "rare ones count twice over" in said[0]


def test_an_unknown_strategy_is_refused(tmp_path):
    """The Trainer takes it for 'random'."""
    with pytest.raises(ValueError, match="Did you mean 'balanced'"):
        DistillationTrainingArguments(str(tmp_path), train_sampling_strategy="balnced")
    assert DistillationTrainingArguments(str(tmp_path), train_sampling_strategy="sequential").seed == 42


def configuration(folder, data=None, **training):
    student = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "output_dir": str(folder / "run"),
        "student": {"config": student | {"patch_size": 4}},
        "data": {"name": "embedded/digits", "max_samples": 40, **(data or {})},
        "method": {"name": "kd", "kd_weight": 0},
        "training": {
            **{"max_steps": 2, "per_device_train_batch_size": 8, "disable_tqdm": True, "use_cpu": True},
            **BALANCED,
            **training,
        },
    }


def test_a_configuration_balances(tmp_path):
    given = configuration(tmp_path, {"augmentation": {"name": "crop_flip", "mixup": 0.5}, "labelled": 20})
    assert run_experiment(given).train_steps == 2


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        ({"streaming": True, "name": "imagenet-1k"}, {}, "train_sampling_strategy: balanced draws from all rows"),
        ({"class_weights": "balanced"}, {}, "train_sampling_strategy: .*together they count twice over"),
        ({"problem_type": "regression"}, {}, "train_sampling_strategy: balanced needs one class per row"),
        ({}, {"train_sampling_strategy": "balance"}, "train_sampling_strategy.*Did you mean 'balanced'"),
    ],
)
def test_a_configuration_that_cannot_balance_is_refused_before_anything_is_read(data, training, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        parse_config(configuration(tmp_path, data, **training))


def test_weights_of_ones_own_go_with_it(tmp_path):
    """What errors of a class cost is another question than how often it is seen."""
    assert parse_config(configuration(tmp_path, {"class_weights": {"3": 2.0}}))


def test_a_task_with_augmentation_is_balanced_by_its_column(tmp_path):
    task = load_task("embedded/digits", augmentation="crop_flip", max_samples={"train": 60}, labelled=30)
    assert isinstance(task.train, datasets.Dataset)
    student = classifier("vit", 0, classes=10, id2label=task.id2label)
    trainer = build_trainer(tmp_path, student, None, task.train, kd_weight=0.0, **BALANCED)
    drawn = trainer._get_train_sampler()
    assert len(drawn.unlabelled) == 30
    assert np.bincount(drawn.labels[drawn.draw(0)][drawn.labels[drawn.draw(0)] >= 0]).tolist() == [3] * 10

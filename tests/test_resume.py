"""Runs that break off in the middle of an epoch, or of a save, and go on as if they had not."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import assert_same_run, build_trainer, classifier, examples, table
from transformers import ViTImageProcessor, default_data_collator

from hf_kd.data.augmentation import Augmentation
from hf_kd.data.processing import ImageTransform

# --- Random draws on the data's side ---------------------------------------------------------------------------------

PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8})
SAVED_AT = 7  # of five steps an epoch: in the second one


def pictures(rows=17):
    """Small images, as they lie on a disk."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 12, 12, 3), dtype=np.uint8)
    return datasets.Dataset.from_list([{"pixel_values": p.tolist(), "labels": i % 5} for i, p in enumerate(pixels)])


def _open(batch):
    return {**batch, "pixel_values": [Image.fromarray(np.array(p, dtype=np.uint8)) for p in batch["pixel_values"]]}


class Augmented:
    """Opens, crops and mirrors, as `load_task(augmentation="crop_flip")` does."""

    def __init__(self):
        self.transform = ImageTransform(PROCESSOR, augmentation=Augmentation("crop_flip", PROCESSOR))

    def __call__(self, batch):
        return self.transform(_open(batch))


def noisy(rows):
    """A collator of the user's own, which draws from numpy."""
    batch = default_data_collator(rows)
    noise = np.random.standard_normal(batch["pixel_values"].shape)
    return {**batch, "pixel_values": batch["pixel_values"] + 0.1 * torch.from_numpy(noise).float()}


class Stream(torch.utils.data.IterableDataset):
    """Rows in order, changed at random as they come."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        for row in self.rows:
            pixels = torch.as_tensor(row["pixel_values"])
            yield {**row, "pixel_values": pixels.flip(-1) if torch.rand(()) < 0.5 else pixels}


def image_run(folder, seed, resume=None, *, rows=None, collator=default_data_collator, **overrides):
    """Three epochs of a student with dropout on images that are changed at random."""
    student = classifier("vit", seed, hidden_dropout_prob=0.1)
    rows = pictures().with_transform(Augmented()) if rows is None else rows
    given = {
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "train_sampling_strategy": "random",
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": SAVED_AT,
        **overrides,
    }
    trainer = build_trainer(folder, student, classifier("vit", 9), rows, trainer={"data_collator": collator}, **given)
    return trainer, trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"gradient_accumulation_steps": 2, "save_steps": 4},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"collator": noisy},
        {"train_sampling_strategy": "balanced"},
        {"accelerator_config": {"use_seedable_sampler": False}},
    ],
    ids=str,
)
def test_resume_within_an_epoch_draws_the_same_augmentations(given, tmp_path):
    """The loader draws one batch ahead, before the generators are restored: one batch of other crops, every time."""
    whole = image_run(tmp_path, 0, **given)
    checkpoint = tmp_path / f"checkpoint-{given.get('save_steps', SAVED_AT)}"
    resumed = image_run(tmp_path / "resumed", 1, str(checkpoint), **given)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_within_an_epoch_of_a_stream_draws_the_same(workers, tmp_path):
    """The skipped rows of a stream are drawn again, with nothing of the training between them."""
    given = {"rows": Stream(examples("vit", 17)), "dataloader_num_workers": workers}
    whole = image_run(tmp_path, 0, **given)
    resumed = image_run(tmp_path / "resumed", 1, str(tmp_path / f"checkpoint-{SAVED_AT}"), **given)
    assert_same_run(resumed, whole)


def test_resume_within_an_epoch_keeps_batches_by_length(tmp_path):
    """This sampler has no generator of its own: a resumed epoch would come in another order, rows twice or never."""
    rows = table(examples("bert", 17))
    rows = rows.map(
        lambda row, i: {k: row[k][: 3 + i % 5] for k in ("input_ids", "attention_mask")}, with_indices=True
    )

    def run(folder, seed, resume=None):
        student = classifier("bert", seed, hidden_dropout_prob=0.1)
        given = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 20, "logging_steps": 3}
        given |= {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 1, "max_steps": 30}
        trainer = build_trainer(folder, student, classifier("bert", 9), rows, **given)
        return trainer, trainer.train(resume_from_checkpoint=resume)

    whole = run(tmp_path, 0)
    assert_same_run(run(tmp_path / "resumed", 1, str(tmp_path / "checkpoint-20")), whole)


class Watched(torch.nn.Module):
    """Keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.bias, self.seen = torch.nn.Parameter(torch.zeros(5)), []

    def forward(self, pixel_values):
        self.seen.append(pixel_values.clone())
        return {"logits": self.bias.expand(len(pixel_values), -1)}


def test_augmentations_differ_from_epoch_to_epoch_and_not_between_workers(tmp_path):
    """The same crops in each epoch would be no augmentation at all."""
    drawn = []
    for given in ({}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}):
        student, rows = Watched(), pictures(4).with_transform(Augmented())
        given |= {"num_train_epochs": 4, "kd_weight": 0.0}
        trainer = {"data_collator": default_data_collator}
        build_trainer(tmp_path, student, None, rows, trainer=trainer, **given).train()
        drawn.append(torch.stack(student.seen))
    here, workers = drawn
    assert len(here) == 4
    assert all((here[i] != here[j]).any() for i in range(4) for j in range(i))
    torch.testing.assert_close(workers, here, rtol=0, atol=0)

"""Logits stored once teach what the live teacher teaches, and cannot belong to other rows or other views."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from tiny import arguments, classifier, weights
from transformers import PrinterCallback, ViTConfig, ViTForImageClassification

from hf_kd import DistillationTrainer, add_teacher_logits, load_task
from hf_kd.data.processing import ImageTransform
from hf_kd.teacher_logits import with_logits


@pytest.fixture(scope="module", params=["embedded/digits", "embedded/docstrings"])
def task(request):
    return load_task(request.param, labelled=30, max_samples=60)


@pytest.fixture(scope="module")
def digits():
    return load_task("embedded/digits", max_samples=60)


def model_for(task, seed):
    names = {"id2label": task.id2label, "label2id": task.label2id}
    classes = task.num_labels
    if task.modality == "text":
        size = len(task.processing_class)
        return classifier("bert", seed, classes=classes, vocab_size=size, max_position_embeddings=256, **names)
    return classifier("vit", seed, classes=classes, **names)


def run(folder, task, teacher):
    trainer = DistillationTrainer(
        model_for(task, 0),
        arguments(
            folder, method="kd", train_sampling_strategy="random", evaluate_with_teacher=True, num_train_epochs=2
        ),
        data_collator=task.collator,
        train_dataset=task.train,
        eval_dataset=task.validation,
        teacher_model=teacher,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer, trainer.evaluate()


def test_stored_logits_train_the_same_student(task, tmp_path):
    """A row paired with another row's logits still trains, on noise."""
    teacher = model_for(task, 9)
    live, scores = run(tmp_path, task, teacher)
    stored = add_teacher_logits(task, teacher, batch_size=7, splits=("train", "validation"))
    fed, fed_scores = run(tmp_path, stored, None)
    # batches of 7 and of 4, padded to other lengths: float32 rounding, then 30 steps of SGD
    torch.testing.assert_close(weights(fed.model), weights(live.model), rtol=1e-4, atol=2e-5)
    for key in ("eval_agreement", "eval_teacher_kl", "eval_teacher_accuracy"):
        assert fed_scores[key] == pytest.approx(scores[key], rel=1e-4)
    assert stored.test is task.test


def test_column_is_the_teachers_answer_in_float32(task):
    teacher = model_for(task, 9)
    stored = add_teacher_logits(task, teacher, batch_size=1).train
    assert stored.features["teacher_logits"] == datasets.List(datasets.Value("float32"), length=task.num_labels)
    assert set(task.train.column_names) | {"teacher_logits"} == set(stored.column_names)
    batch = task.collator([stored[i] for i in (3, 41)])
    columns = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask") if name in batch}
    with torch.no_grad():
        torch.testing.assert_close(batch["teacher_logits"], teacher.eval()(**columns).logits, rtol=1e-4, atol=1e-5)
    assert batch["teacher_logits"].dtype == torch.float32
    assert stored.format["type"] == task.train.format["type"]


def test_column_survives_the_disk(task, tmp_path):
    """What another machine answered is sent as a folder."""
    stored = add_teacher_logits(task, model_for(task, 9)).train
    stored.save_to_disk(tmp_path)
    again = datasets.load_from_disk(str(tmp_path))
    assert np.array_equal(again["teacher_logits"][:], stored["teacher_logits"][:])


def test_any_function_can_be_asked(task):
    """An API gives scores in some array; it is asked once per row."""
    seen = []

    def service(**columns):
        size = len(next(iter(columns.values())))
        seen.append(size)
        return np.tile(np.arange(task.num_labels, dtype=np.float64), (size, 1))

    stored = add_teacher_logits(task, service, batch_size=25).train
    assert seen == [25, 25, 10]
    assert stored[5]["teacher_logits"][:] == pytest.approx(list(range(task.num_labels)))


def test_images_that_are_read_when_asked_for_keep_their_transform(digits):
    """Large sets are processed row by row: the column must come through the transform."""
    lazy = digits.train.with_format(None).remove_columns("pixel_values").rename_column("image", "pixel_values")
    lazy = lazy.with_transform(ImageTransform(digits.processing_class))
    done = with_logits(lazy, np.ones((len(lazy), 10), dtype=np.float32))
    assert torch.equal(torch.as_tensor(done[4]["pixel_values"]), torch.as_tensor(lazy[4]["pixel_values"]))
    assert done[4]["teacher_logits"] == [1.0] * 10


def test_random_augmentation_is_refused(task):
    """The teacher saw one view, the student trains on another."""
    generator = torch.Generator().manual_seed(0)

    def jitter(batch):
        return {**batch, "noise": [torch.rand(2, generator=generator) for _ in batch["labels"]]}

    noisy = dataclasses.replace(task, train=task.train.with_transform(jitter))
    with pytest.raises(ValueError, match=r"`noise` of the split 'train' is another one each time"):
        add_teacher_logits(noisy, model_for(task, 9))


def test_what_cannot_be_stored_is_refused(task):
    teacher = model_for(task, 9)
    once = add_teacher_logits(task, teacher)
    with pytest.raises(ValueError, match="has a column `teacher_logits` already"):
        add_teacher_logits(once, teacher)
    with pytest.raises(ValueError, match="the splits train, validation, test"):
        add_teacher_logits(task, teacher, splits=("dev",))
    with pytest.raises(ValueError, match="nobody to ask"):
        add_teacher_logits(task, None)
    with pytest.raises(ValueError, match=r"shape \(\d+, 3\)"):
        add_teacher_logits(task, lambda **columns: torch.zeros(len(next(iter(columns.values()))), 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        add_teacher_logits(task, lambda **c: torch.full((len(next(iter(c.values()))), task.num_labels), torch.nan))
    with pytest.raises(ValueError, match="batch_size=0"):
        add_teacher_logits(task, teacher, batch_size=0)


def vit_of(names):
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.id2label = dict(enumerate(names))
    torch.manual_seed(0)
    return ViTForImageClassification(config)


def test_column_has_the_classes_of_the_data(digits):
    """Stored logits carry no names: a teacher of another order, kept as it is, would teach 9 as 0."""
    plain = vit_of([str(i) for i in range(10)])
    turned = vit_of([str(i) for i in reversed(range(10))])
    given = add_teacher_logits(
        digits, vit_of([f"c{i}" for i in range(10)]), label_map={f"c{i}": str(9 - i) for i in range(10)}
    )
    expected = torch.stack([row["teacher_logits"] for row in add_teacher_logits(digits, plain).train])
    for stored in (add_teacher_logits(digits, turned), given):
        assert torch.equal(torch.stack([row["teacher_logits"] for row in stored.train]), expected.flip(-1))


def test_teacher_of_fewer_classes_is_refused(digits):
    """A column has a number for each class; an invented one would be learned."""
    with pytest.raises(ValueError, match=r"does not know 2 of the 10 classes \(8, 9\)"):
        add_teacher_logits(digits, vit_of([str(i) for i in range(8)]))

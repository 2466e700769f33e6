"""Streams: the same rows and labels as read whole, trained on with `max_steps`, and refused where they cannot be."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_kd import DistillationTrainer, DistillationTrainingArguments, add_teacher_inputs
from hf_kd.data import load_task
from hf_kd.data import streaming as streaming_module
from hf_kd.data.wordpiece import train_wordpiece
from hf_kd.experiment import parse_config
from hf_kd.registry import ConfigError


@pytest.fixture
def parquet(tmp_path):
    """60 training images and 10 hidden and 20 labelled ones, as ImageNet lies on the Hub."""
    names = datasets.ClassLabel(names=["dark", "light"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    for split, count, hidden in (("train", 60, False), ("validation", 20, False), ("test", 10, True)):
        images = [Image.new("RGB", (9, 8), (200 * (i % 2), i, len(split))) for i in range(count)]
        labels = [-1 if hidden else i % 2 for i in range(count)]
        rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        (tmp_path / "set").mkdir(exist_ok=True)
        rows.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "set"


@pytest.fixture
def processor():
    return ViTImageProcessor(size={"height": 8, "width": 8})


@pytest.fixture
def task(parquet, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming_module, "HELD_OUT_ROWS", 12)
    return load_task("imagenet-1k", path=parquet, processor=processor, streaming=True, cache_dir=tmp_path / "cache")


def test_a_stream_of_ones_own_files_says_what_its_labels_are(parquet, processor, tmp_path):
    """Without a benchmark's word for it, classes were scored as numbers."""
    task = load_task(parquet, processor=processor, streaming=True, missing_label=-1, cache_dir=tmp_path / "cache")
    assert task.problem_type == "single_label_classification"
    assert task.head.keys() == {"id2label", "label2id"}
    assert task.metric == "accuracy"


def test_a_stream_has_the_rows_of_the_files(task, parquet, processor, tmp_path):
    """Validation serves as test; validation is cut off the front, and no row is in both."""
    train, validation, test = (list(getattr(task, split)) for split in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [48, 12, 20]
    assert (task.num_train_rows, task.num_labelled, task.label_names) == (None, None, ("dark", "light"))
    whole = load_task(parquet, processor=processor, missing_label=-1, cache_dir=tmp_path / "cache")
    stored = {row["pixel_values"].numpy().tobytes(): int(row["labels"]) for row in whole.train} | {
        row["pixel_values"].numpy().tobytes(): int(row["labels"]) for row in whole.test
    }
    seen = [(np.asarray(row["pixel_values"]).tobytes(), row["labels"]) for row in train + validation]
    assert len({pixels for pixels, _ in seen}) == 60
    assert all(stored[pixels] == label for pixels, label in seen)
    assert [row["labels"] for row in train] != [i % 2 for i in range(48)], "not in the order of the files"
    assert "validation is the first 12 training rows" in task.description
    assert "the published validation split serves as test" in task.description


def test_a_stream_is_trained_and_scored(task, tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4
    )
    for key, value in task.head.items():
        setattr(config, key, value)
    arguments = DistillationTrainingArguments(
        tmp_path / "run", max_steps=4, per_device_train_batch_size=16, report_to=[], disable_tqdm=True, use_cpu=True
    )
    trainer = DistillationTrainer(
        ViTForImageClassification(config),
        arguments,
        data_collator=task.collator,
        train_dataset=task.train,
        eval_dataset=task.validation,
        compute_metrics=task.compute_metrics,
        teacher_model=ViTForImageClassification(config),
    )
    output = trainer.train()
    assert (output.global_step, np.isfinite(output.training_loss)) == (4, True)  # more than an epoch of 48 rows
    assert 0.0 <= trainer.evaluate()["eval_accuracy"] <= 1.0
    assert len(trainer.predict(task.test).predictions) == 20


def test_streamed_texts_are_those_read_whole(tmp_path):
    tokenizer = train_wordpiece(["good film", "bad film"], vocab_size=60, max_length=8)
    (tmp_path / "set").mkdir()
    for split in ("train", "val", "test"):
        rows = [{"text": f"{('good', 'bad')[i % 2]} film", "label": ("good", "bad", None)[i % 3]} for i in range(9)]
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "set" / "labels.txt").write_text("bad\ngood\n")
    options = {"processor": tokenizer, "cache_dir": tmp_path / "cache"}
    whole, stream = (load_task(tmp_path / "set", streaming=streaming, **options) for streaming in (False, True))
    for row, other in zip(whole.test, stream.test, strict=True):
        assert {key: other[key] for key in ("input_ids", "labels")} == {
            key: row[key] for key in ("input_ids", "labels")
        }
    assert [len(list(load_task(tmp_path / "set", streaming=True, max_samples={"train": 5}, **options).train))] == [5]
    (tmp_path / "set" / "labels.txt").unlink()
    with pytest.raises(ValueError, match="cannot know the classes.*labels.txt"):
        load_task(tmp_path / "set", streaming=True, **options)
    (tmp_path / "set" / "labels.txt").write_text("bad\nugly\n")
    with pytest.raises(ValueError, match="met 'good', which is none of the 2 classes"):
        list(load_task(tmp_path / "set", streaming=True, **options).test)


def test_what_needs_all_rows_is_refused(parquet, processor, tmp_path):
    options = {"processor": processor, "streaming": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match="does not go with `labelled`"):
        load_task(parquet, labelled=10, missing_label=-1, **options)
    with pytest.raises(ValueError, match="found no test split"):
        load_task(parquet, splits={"train": "train"}, **options)
    with pytest.raises(ValueError, match="only files below a path"):
        load_task({"train": str(parquet)}, **options)


def test_a_configuration_without_steps_is_refused(parquet, tmp_path):
    """A stream has no length, so no epochs: the Trainer would say so after the models were loaded."""
    given = {
        "output_dir": str(tmp_path / "run"),
        "student": {"config": {"model_type": "vit"}},
        "data": {"path": str(parquet), "streaming": True, "labelled": 3},
        "method": {"name": "kd", "kd_weight": 0},
    }
    with pytest.raises(ConfigError, match="training.max_steps: is required with data.streaming") as caught:
        parse_config(given)
    assert "data.labelled: chooses among all rows" in str(caught.value)
    parse_config({**given, "data": {"path": str(parquet), "streaming": True}, "training": {"max_steps": 3}})


def test_a_teacher_with_its_own_image_processor_sees_the_same_view(parquet, processor, tmp_path, monkeypatch):
    """Made of the augmented image: another crop would be another question than the student's."""
    monkeypatch.setattr(streaming_module, "HELD_OUT_ROWS", 12)
    where = {"path": parquet, "streaming": True, "cache_dir": tmp_path / "cache"}
    task = load_task("imagenet-1k", processor=processor, augmentation="random_resized_crop", **where)
    theirs = ViTImageProcessor(size={"height": 12, "width": 12}, image_mean=[0.1] * 3)
    added = add_teacher_inputs(task, theirs, splits=("train", "test"))
    for rows in (added.train, added.test):
        for row in list(rows)[:4]:
            for made, column in ((processor, "pixel_values"), (theirs, "teacher_pixel_values")):
                expected = made([row["image"]])["pixel_values"][0]
                assert np.array_equal(np.asarray(row[column]), np.asarray(expected)), column
    assert "teacher_pixel_values" not in next(iter(added.validation))
    assert add_teacher_inputs(task, processor) is task


def test_a_teacher_with_its_own_tokenizer_reads_the_same_texts(tmp_path):
    texts = ["one two three", "three four", "five one two two"] * 4
    for split in ("train", "validation", "test"):
        lines = [json.dumps({"text": text, "label": index % 2}) for index, text in enumerate(texts)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "labels.txt").write_text("even\nodd\n")
    tokens = (
        train_wordpiece(texts, vocab_size=60, max_length=16),
        train_wordpiece(texts[:2], vocab_size=30, max_length=8),
    )
    task = load_task(tmp_path, processor=tokens[0], streaming=True, cache_dir=tmp_path / "cache")
    added = add_teacher_inputs(task, tokens[1], reads=["input_ids"], max_length=4)
    row = next(iter(added.test))
    assert row["input_ids"] == tokens[0](row["text"])["input_ids"]
    assert row["teacher_input_ids"] == tokens[1](row["text"], truncation=True, max_length=4)["input_ids"]
    assert "teacher_attention_mask" not in row
    batch = task.collator([row, row])
    assert "text" not in batch

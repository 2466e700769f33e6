"""Images kept in memory: the batches, the run and its resumption are those of the files, bit by bit; only faster."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TIMES, classifier
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor, default_data_collator

from hf_kd import DistillationObjective, DistillationTrainer, DistillationTrainingArguments, KDLoss, TeacherCache
from hf_kd.data import add_teacher_inputs, in_memory, load_task
from hf_kd.data.augmentation import Augmentation
from hf_kd.data.batched import BatchedAugmentation, PixelTable
from hf_kd.data.wordpiece import train_wordpiece
from hf_kd.experiment import parse_config, run_experiment
from hf_kd.inputs import DistillationCollator, WholeBatch
from hf_kd.mixing import Mixing
from hf_kd.registry import ConfigError
from hf_kd.seeding import seeded
from hf_kd.teacher_cache import KeyedRows, row_keys
from hf_kd.trainer.draws import Epoch, SeededCollator, SeededRows

HEIGHT, WIDTH, ROWS = 24, 32, 30
PLAIN = {"image_mean": [0.4, 0.6, 0.2], "image_std": [0.3, 0.2, 0.5]}
AUGMENTATIONS = {
    "crop-flip": "crop_flip",
    "padding": {"name": "crop_flip", "padding": 7},
    "flip-alone": {"name": "crop_flip", "padding": 0},
    "erased": {"name": "crop_flip", "random_erasing": 0.6},
    "erased-alone": {"random_erasing": 0.9},
    "one-by-one": {"name": ["crop_flip", "trivial_augment"]},
    "other-size": {"name": "random_resized_crop", "random_erasing": 0.3},
    "none": None,
}


def processor(height=HEIGHT, width=WIDTH, **settings):
    return ViTImageProcessor(size={"height": height, "width": width}, **{**PLAIN, **settings})


def table(rows=ROWS, size=(WIDTH, HEIGHT), seed=0, mode="RGB"):
    """Noise, in which every pixel tells where it comes from."""
    draw = np.random.default_rng(seed)
    shape = (size[1], size[0], 3)
    pictures = [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).convert(mode) for _ in range(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    return datasets.Dataset.from_dict({"image": pictures, "label": [i % 3 for i in range(rows)]}, features=features)


@pytest.fixture(scope="module")
def splits():
    return {"train": table(), "validation": table(9, seed=1), "test": table(9, seed=2)}


def both(splits, made_by=None, **options):
    """The task from files, and from memory."""
    made_by = processor() if made_by is None else made_by
    return [load_task(splits, processor=made_by, in_memory=kept, **options) for kept in (False, True)]


def batches(rows, collator, size=7, epoch=0):
    """One epoch, as the trainer's loader makes it."""
    number = Epoch()
    number.set(epoch)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3)).tolist()
    loader = DataLoader(
        SeededRows(rows, 5, number), batch_size=size, sampler=order, collate_fn=SeededCollator(collator)
    )
    return list(loader)


def same(ours, theirs):
    """Equal to the last bit, kinds included."""
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name]), name
    return True


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_those_of_the_files(splits, name):
    """A crop that is off by a pixel, a mirrored axis, another padding or other draws train another run."""
    files, kept = both(splits, augmentation=AUGMENTATIONS[name])
    assert isinstance(kept.train.__getitems__([0, 1]), WholeBatch)
    for epoch in range(2):
        made = batches(kept.train, kept.collator, epoch=epoch)
        assert same(made, batches(files.train, files.collator, epoch=epoch))
    if AUGMENTATIONS[name] is not None:
        assert not torch.equal(made[0]["pixel_values"], batches(kept.train, kept.collator)[0]["pixel_values"])


@pytest.mark.parametrize("made_by", [processor(), processor(40, 40), processor(do_resize=False, do_normalize=False)])
def test_evaluations_see_the_same_numbers(splits, made_by):
    files, kept = both(splits, made_by, augmentation="crop_flip")
    assert kept.test.__getitems__([3]).columns["pixel_values"].shape[1:] == files.test[3]["pixel_values"].shape
    assert (kept.test._made.maker.makers[0][2] is None) == (made_by.size["height"] == 40), "slow without need"
    for split in ("validation", "test"):
        loaders = [DataLoader(getattr(task, split), batch_size=4, collate_fn=task.collator) for task in (kept, files)]
        batches_of = [[{n: batch[n] for n in ("pixel_values", "labels")} for batch in loader] for loader in loaders]
        assert same(*batches_of)


@pytest.mark.parametrize("name", ["crop-flip", "erased", "one-by-one"])
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_draws_leave_the_generator_where_single_rows_leave_it(splits, name, rows):
    """Else the next draw of whoever shares the generator is another one."""
    files, kept = both(splits, augmentation=AUGMENTATIONS[name])
    with seeded(("here", rows)):
        expected = default_data_collator(files.train.__getitems__(list(range(rows))))
        after = torch.get_rng_state()
    with seeded(("here", rows)):
        made = kept.train.__getitems__(list(range(rows)))
        assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(made.columns["pixel_values"], expected["pixel_values"])


def test_slow_draws_are_the_fast_ones():
    """Another torch may make its numbers otherwise; the draws are then taken one by one."""
    change = BatchedAugmentation(Augmentation("crop_flip", processor()), HEIGHT, WIDTH)
    assert change._is_fast
    with seeded(("draws",)):
        fast = change.draw(201)
    change._is_fast = False
    with seeded(("draws",)):
        assert np.array_equal(change.draw(201), fast)


def test_offsets_are_uniform_and_mirroring_is_independent_of_them():
    change = BatchedAugmentation(Augmentation("crop_flip", processor()), HEIGHT, WIDTH)
    with seeded(("counts",)):
        top, left, flip = change.draw(40_000)[:, :3].T
    assert (top.max(), left.max(), top.min(), left.min()) == (2 * 3, 2 * 4, 0, 0)
    counts = np.zeros((7, 9, 2))
    np.add.at(counts, (top, left, flip), 1)
    expected = 40_000 / counts.size
    chi = ((counts - expected) ** 2 / expected).sum()  # 125 degrees of freedom: 125 +- 16
    assert 125 - 5 * 16 < chi < 125 + 5 * 16


def test_a_processor_has_a_table_only_if_it_looks_at_pixels_alone(splits):
    pictures = np.stack([np.asarray(row["image"]) for row in splits["train"].select(range(4))])

    def numbers(images):
        scale = torch.tensor([1.0, 2.0, 3.0])
        return [(torch.tensor(np.array(image), dtype=torch.float32) * scale).movedim(-1, 0) for image in images]

    assert PixelTable.of(numbers, pictures) is not None
    for other in (lambda image: image.roll(1, 2), lambda image: image.flip(0), lambda image: image[:, 1:]):
        assert PixelTable.of(lambda images, other=other: [other(one) for one in numbers(images)], pictures) is None


@pytest.mark.parametrize("own", [processor(image_mean=[0.5] * 3), processor(48, 48)])
def test_the_teacher_reads_the_same_view_through_its_own_processor(splits, own):
    tasks = [add_teacher_inputs(task, own) for task in both(splits, augmentation="crop_flip")]
    loaded = [batches(task.train, DistillationCollator(task.collator, default_data_collator)) for task in tasks]
    assert same(*loaded)
    assert "teacher_pixel_values" in loaded[0][0]
    assert isinstance(tasks[1].train.__getitems__([0]), WholeBatch)


def test_a_teacher_of_grey_images_still_gets_them(splits):
    grey = ViTImageProcessor(size={"height": HEIGHT, "width": WIDTH}, image_mean=[0.5], image_std=[0.5])
    tasks = [add_teacher_inputs(task, grey, channels=1) for task in both(splits, augmentation="crop_flip")]
    loaded = [batches(task.train, DistillationCollator(task.collator, default_data_collator)) for task in tasks]
    assert same(*loaded)
    assert loaded[0][0]["teacher_pixel_values"].shape[1] == 1


@pytest.mark.parametrize("name", ["crop-flip", "erased", "one-by-one"])
@pytest.mark.parametrize("mixing", [None, Mixing(cutmix=1.0, mixup=0.5)], ids=["alone", "mixed"])
def test_views_and_their_keys_are_those_of_the_files(splits, name, mixing):
    """A cache that was filled from files answers to these views."""
    keyed = []
    for task in both(splits, augmentation=AUGMENTATIONS[name]):
        rows = task.train.remove_columns([n for n in task.train.column_names if n not in ("pixel_values", "labels")])
        keyed.append(KeyedRows(rows, row_keys(task.train), 3, mixing))
    files, kept = keyed
    assert np.array_equal(files.known_by(1), kept.known_by(1))
    for view in (0, 2):
        rows = [list(one.read([4, 0, 11], view)) for one in (files, kept)]
        assert same(*[[{n: torch.as_tensor(row[n]) for n in row} for row in each] for each in rows])


@pytest.mark.parametrize(
    "changed",
    [
        lambda rows: rows.select([5, 3, 20, 3]).select([2, 0]),
        lambda rows: rows.select(range(10, 20)).shuffle(seed=1),
        lambda rows: rows.train_test_split(0.3, seed=2)["train"],
        lambda rows: rows.remove_columns(["labels"]),
        lambda rows: rows.with_format("numpy", columns=["labels"]),
        lambda rows: rows.add_column("name", [f"row {i}" for i in range(len(rows))]),
        lambda rows: rows.add_column("weight", [i / 3 for i in range(len(rows))]),
        lambda rows: datasets.concatenate_datasets([rows, rows]),
        lambda rows: rows.select([]),
    ],
)
def test_what_is_made_of_the_rows_holds_their_images(splits, changed):
    """Images that stay where they were while rows move are images of other classes."""
    rows = both(splits)[1].train
    rows.__getitems__([0])  # what is made for the first batch is not for what is made of the rows
    rows = changed(rows)
    order = list(range(len(rows)))[::-1]
    if not order:
        return
    expected = datasets.Dataset.__getitems__(rows, order)  # as `datasets` reads the files
    assert [set(row) for row in rows.__getitems__(order)] == [set(row) for row in expected]
    names = [name for name in expected[0] if name != "name"]
    ours, theirs = (
        [{name: torch.as_tensor(row[name]) for name in names} for row in each]
        for each in (rows.__getitems__(order), expected)
    )
    assert same(ours, theirs)


def task_of_digits(kept, **options):
    options = {"augmentation": {"name": "crop_flip", "random_erasing": 0.2}, "labelled": 20, **options}
    return load_task("embedded/digits", max_samples={"train": 40, "validation": 16}, in_memory=kept, **options)


def trained(task, folder, resume=None, cache=None, teacher="vit", **settings):
    """Eight steps, in the second epoch when they end, with checkpoints; the student, its log and scores."""
    args = {
        "per_device_train_batch_size": 6,
        "max_steps": 8,
        "save_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": True,
        "seed": 4,
    }
    trainer = DistillationTrainer(
        model=classifier("vit", 1, classes=10),
        args=DistillationTrainingArguments(output_dir=str(folder), **{**args, **settings}),
        data_collator=task.collator,
        train_dataset=task.train,
        eval_dataset=task.validation,
        processing_class=task.processing_class,
        compute_metrics=task.compute_metrics,
        teacher_model=None if teacher is None else classifier("vit", 2, classes=10),
        objective=DistillationObjective([(1.0, KDLoss(temperature=4.0))], ce_weight=0.5, kd_weight=0.5),
        teacher_cache=cache,
    )
    trainer.train(resume_from_checkpoint=resume)
    log = [
        {key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in trainer.state.log_history
    ]
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}, log[:-1]


def same_run(one, other):
    assert one[1] == other[1]
    return all(torch.equal(value, other[0][name]) for name, value in one[0].items())


MIXED = {"name": "crop_flip", "mixup": 0.8, "cutmix": 1.0}


@pytest.mark.parametrize("augmentation", [{"name": "crop_flip", "random_erasing": 0.2}, MIXED, None])
def test_a_run_is_the_same_run_and_either_resumes_the_other(tmp_path, augmentation):
    """Students, losses and scores, with unlabelled rows; resumed in the middle of an epoch."""
    options = {"augmentation": augmentation}
    files = trained(task_of_digits(False, **options), tmp_path / "files")
    kept = trained(task_of_digits(True, **options), tmp_path / "kept")
    assert same_run(kept, files)
    if augmentation is not None:  # else the files of so small a set become numbers in its table, which is another one
        resumed = trained(task_of_digits(True, **options), tmp_path / "on", tmp_path / "files" / "checkpoint-3")
        assert same_run(resumed, files)
    resumed = trained(task_of_digits("device", **options), tmp_path / "again", tmp_path / "kept" / "checkpoint-3")
    assert same_run(resumed, files)


@pytest.mark.parametrize("augmentation", ["crop_flip", MIXED])
def test_a_cache_filled_from_files_teaches_rows_in_memory(tmp_path, augmentation):
    options = {"augmentation": augmentation}
    files = trained(task_of_digits(False, **options), tmp_path / "files", cache=TeacherCache(tmp_path / "c", views=2))
    cache = TeacherCache(tmp_path / "c", views=2)
    assert same_run(trained(task_of_digits(True, **options), tmp_path / "kept", cache=cache, teacher=None), files)
    other = TeacherCache(tmp_path / "d", views=2)
    assert same_run(trained(task_of_digits(True, **options), tmp_path / "other", cache=other), files)


def test_workers_read_what_the_process_reads(splits):
    _, kept = both(splits, augmentation="crop_flip")
    loader = DataLoader(
        SeededRows(kept.train, 5, Epoch()), batch_size=7, num_workers=1, collate_fn=SeededCollator(kept.collator)
    )
    order = SeededRows(kept.train, 5, Epoch())
    alone = DataLoader(order, batch_size=7, collate_fn=SeededCollator(kept.collator))
    assert same(list(loader), list(alone))


def test_weights_and_labels_of_several_classes_come_along(splits):
    files, kept = both(splits, class_weights=[1.0, 2.0, 0.5], augmentation="crop_flip", labelled=10)
    made = batches(kept.train, kept.collator)
    assert same(made, batches(files.train, files.collator))
    assert {"label_weight", "labels", "pixel_values"} == set(made[0])


def test_a_collator_of_ones_own_gets_rows(splits):
    _, kept = both(splits, augmentation="crop_flip")
    assert kept.train.rows_at([], []) == []
    seen = []

    def own(rows):
        assert isinstance(rows, list)
        seen.extend(type(row) for row in rows)
        return default_data_collator(rows)

    batch = DistillationCollator(own)(kept.train.__getitems__([0, 1, 2]))
    assert seen == [dict] * 3
    assert batch["pixel_values"].shape == (3, 3, HEIGHT, WIDTH)


def test_images_of_two_sizes_are_refused(splits):
    mixed = datasets.concatenate_datasets([table(3), table(2, size=(20, 24))])
    with pytest.raises(ValueError, match=r"images of train differ in size \(32 x 24 and, in row 3 .* 20 x 24 pixels"):
        load_task({**splits, "train": mixed}, processor=processor(), in_memory=True)


def test_what_does_not_fit_is_refused_before_it_is_read(splits, monkeypatch):
    monkeypatch.setattr(in_memory, "free_memory", lambda device: 1000)
    monkeypatch.setattr(in_memory, "_decoded", None)
    with pytest.raises(ValueError, match="GiB decoded, and .* GiB are free here.*max_samples"):
        load_task(splits, processor=processor(), in_memory=True)


TEXTS = {"train": datasets.Dataset.from_dict({"text": list("abcdefghij") * 2, "label": ["x", "y"] * 10})}
TOKENIZER = train_wordpiece(["a b"], vocab_size=60, max_length=8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (TEXTS, {"in_memory": True, "processor": TOKENIZER}, "the rows are texts, and it is for images"),
        ("embedded/digits", {"in_memory": "gpu"}, "must be True, False or 'device', got 'gpu'"),
        ("embedded/digits", {"in_memory": True, "streaming": True}, "one keeps all rows and the other none"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_words(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_task(name, **options)


def test_workers_cannot_read_from_a_device(tmp_path):
    with pytest.raises(ValueError, match="dataloader_num_workers=2.*kept on the device"):
        trained(task_of_digits("device"), tmp_path, dataloader_num_workers=2)


QUIET = {"disable_tqdm": True, "use_cpu": True, "report_to": "none"}
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def configuration(folder, **data):
    return {
        "output_dir": str(folder),
        "student": {"config": {"model_type": "vit", "patch_size": 4, **SMALL}},
        "data": {"name": "embedded/digits", "augmentation": "crop_flip", "max_samples": 40, **data},
        "method": {"name": "kd", "kd_weight": 0},
        "training": {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 8, **QUIET},
    }


def test_a_configuration_says_it_and_a_resumed_run_may_say_otherwise(tmp_path):
    whole = run_experiment(configuration(tmp_path / "run", in_memory=False))
    given = configuration(tmp_path / "run", in_memory="device")
    given["training"]["resume_from_checkpoint"] = str(tmp_path / "run" / "checkpoint-1")
    resumed = run_experiment(given)
    assert resumed.test == whole.test
    assert resumed.data_fingerprint == whole.data_fingerprint


def test_a_configuration_is_refused_before_anything_is_read(tmp_path):
    given = configuration(tmp_path, in_memory="device", streaming=True)
    given["training"]["dataloader_num_workers"] = 2
    with pytest.raises(ConfigError) as error:
        parse_config(given)
    problems = "\n".join(error.value.problems)
    assert "data.in_memory: keeps all rows, and data.streaming none" in problems
    assert "training.dataloader_num_workers: 2 processes" in problems
    with pytest.raises(ConfigError, match="data.in_memory: expected"):
        parse_config(configuration(tmp_path, in_memory="gpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_made_on_a_gpu_are_those_of_the_files(splits, name):
    files = load_task(splits, processor=processor(), augmentation=AUGMENTATIONS[name])
    kept = load_task(splits, processor=processor(), augmentation=AUGMENTATIONS[name], in_memory="device")
    kept.train.to_device(torch.device("cuda", 0))
    made = batches(kept.train, kept.collator)
    assert {value.device.type for value in made[0].values()} == {"cuda"}
    made = [{key: value.cpu() for key, value in batch.items()} for batch in made]
    assert same(made, batches(files.train, files.collator))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
def test_a_gpu_trains_on_rows_it_keeps(tmp_path):
    """Pinning what lies on the device already would raise."""
    task = task_of_digits("device")
    student, log = trained(task, tmp_path, use_cpu=False)
    assert task.train._kept.pixels.is_cuda
    assert len(log) > 8

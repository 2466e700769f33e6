"""The files of a cache: what is written is what is read, whatever kills the writer, and damage is seen."""

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.numpy import load_file, save_file
from safetensors.torch import save

from hf_kd import TeacherCache
from hf_kd.teacher_cache import Asking, KeyedRows, cache, fill, row_key, row_keys, shards

CLASSES = 40
FACTS = {
    "teacher": {"name": "teacher", "weights": "0123456789ab", "precision": "float32"},
    "classes": [f"class {i}" for i in range(CLASSES)],
    "problem_type": "single_label_classification",
    "features": None,
    "columns": ["number"],
}


def answers(keys, classes=CLASSES, scale=4.0):
    """Logits that depend on the rows alone."""
    seeds = [abs(int(high)) % 2**31 for high, _ in keys]
    return torch.stack([scale * torch.randn(classes, generator=torch.Generator().manual_seed(s)) for s in seeds])


def written(folder, rows=100, **settings):
    made = TeacherCache(folder, **settings)
    made.claim(FACTS)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, (rows, 2))
    made.write(keys, np.arange(rows), answers(keys), -1)
    made.open()
    return made, keys


# ---- Precision


def test_float32_is_exact(tmp_path):
    made, keys = written(tmp_path / "cache")
    assert torch.equal(made.read(made.find(keys))["teacher_logits"], answers(keys))
    assert made.describe()["errors"] == {"rounding": 0.0}


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_rounds_to_its_digits_and_says_so(tmp_path, dtype, digits):
    made, keys = written(tmp_path / "cache", dtype=dtype)
    read, true = made.read(made.find(keys))["teacher_logits"], answers(keys)
    assert ((read - true).abs() <= true.abs() * 2.0**-digits + 1e-7).all()
    assert made.describe()["errors"]["rounding"] == pytest.approx(float((read - true).abs().max()), rel=1e-6)


def test_a_logit_too_large_for_float16_is_refused(tmp_path):
    made, keys = written(tmp_path / "cache", dtype="float16")
    with pytest.raises(ValueError, match=r"a logit of 7e\+04, which is infinite in float16"):
        made.write(keys[:1], np.arange(1), torch.full((1, CLASSES), 7e4), -1)


def test_a_feature_too_large_for_float16_is_refused(tmp_path):
    made = TeacherCache(tmp_path / "cache", dtype="float16")
    made.claim({**FACTS, "features": 2}, torch.zeros(CLASSES, 2))
    with pytest.raises(ValueError, match=r"a feature of 7e\+04, which is infinite in float16"):
        made.write(np.zeros((1, 2), np.int64), np.arange(1), torch.zeros(1, CLASSES), -1, torch.full((1, 2), 7e4))


def test_top_k_keeps_the_probabilities_of_what_it_keeps(tmp_path):
    """At temperature 1 those of the largest are exact and the rest has its whole mass; what else is lost is said."""
    made, keys = written(tmp_path / "cache", top_k=5)
    read, true = made.read(made.find(keys))["teacher_logits"], answers(keys)
    top = true.topk(5).indices
    torch.testing.assert_close(read.softmax(-1).gather(1, top), true.softmax(-1).gather(1, top), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(read.logsumexp(-1), true.logsumexp(-1), rtol=1e-5, atol=1e-5)
    said = made.describe()["errors"]
    for t in (1.0, 4.0):
        p, q = ((z.double() / t).log_softmax(-1) for z in (true, read))
        kl = (p.exp() * (p - q)).sum(-1)
        assert said[f"kl_t{t:g}"] == pytest.approx(float(kl.mean()), rel=1e-4)
        assert said[f"max_kl_t{t:g}"] == pytest.approx(float(kl.max()), rel=1e-4)
    assert said["rounding"] == 0.0
    assert 0 < said["kl_t1"] < said["max_kl_t1"]


def test_top_k_of_all_classes_is_all_of_them(tmp_path):
    made, keys = written(tmp_path / "cache", top_k=CLASSES)
    assert torch.equal(made.read(made.find(keys))["teacher_logits"], answers(keys))


def test_errors_of_several_files_are_those_of_all_rows(tmp_path):
    made = TeacherCache(tmp_path / "cache", top_k=3)
    made.claim(FACTS)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, (30, 2))
    for part in (slice(0, 20), slice(20, 30)):
        made.write(keys[part], np.arange(30)[part], answers(keys[part]), -1)
    made.open()
    whole = TeacherCache(tmp_path / "whole", top_k=3)
    whole.claim(FACTS)
    whole.write(keys, np.arange(30), answers(keys), -1)
    whole.open()
    expected = whole.describe()["errors"]
    assert made.describe()["errors"] == pytest.approx(expected)
    made.tidy()
    assert made.describe()["errors"] == pytest.approx(expected)
    assert made.describe()["files"] == 1


# ---- Many files


def test_rows_of_many_files_and_views_come_back_in_the_order_asked_for(tmp_path):
    made = TeacherCache(tmp_path / "cache")
    made.claim(FACTS)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, (90, 2))
    for start in range(0, 90, 7):
        part = slice(start, start + 7)
        made.write(keys[part], np.arange(90)[part], answers(keys[part]), -1)
        made.write(keys[part], np.arange(90)[part], -answers(keys[part]), 0)
    made.open()
    order = np.random.default_rng(1).permutation(90)
    for view, sign in ((-1, 1), (0, -1)):
        read = made.read(made.find(keys[order], view))["teacher_logits"]
        assert torch.equal(read, sign * answers(keys[order]))
    assert (made.find(keys, 1) == -1).all()
    assert made.digests(made.find(keys[order])).tolist() == order.tolist()
    made.tidy()
    assert len(made.shards) == 2
    assert torch.equal(made.read(made.find(keys[order], 0))["teacher_logits"], -answers(keys[order]))


def test_the_same_row_twice_is_one_row(tmp_path):
    """Two processes that answered at once, or a merge that was killed half-way."""
    made, keys = written(tmp_path / "cache", rows=20)
    made.write(keys[5:9], np.arange(5, 9), answers(keys[5:9]), -1)
    made.open()
    assert len(made) == 20
    assert torch.equal(made.read(made.find(keys))["teacher_logits"], answers(keys))


def test_unknown_rows_are_not_found_and_cannot_be_read(tmp_path):
    made, keys = written(tmp_path / "cache")
    places = made.find(np.concatenate([keys[:2], [[keys[0, 0], keys[0, 1] + 1], [7, 7]]]))
    assert (places[:2] >= 0).all()
    assert places[2:].tolist() == [-1, -1]
    with pytest.raises(ValueError, match="holds no answer for 2 of 4 rows"):
        made.read(places)


def test_places_of_before_the_files_were_joined_read_no_other_rows_answers(tmp_path):
    made = TeacherCache(tmp_path / "cache")
    made.claim(FACTS)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, (40, 2))
    for part in (slice(0, 10), slice(10, 40)):
        made.write(keys[part], np.arange(40)[part], answers(keys[part]), -1)
        made.open()
        places = made.find(keys[:10])
    first = places.copy()
    made.write(np.flip(keys[:10]) + 1, np.arange(10), answers(keys[:10]), -1)
    made.open()
    made.tidy()
    moved = made.find(keys[:10])
    assert first.tolist() != moved.tolist()
    with pytest.raises(RuntimeError, match="the answers at these places are to other rows"):
        made.read(first, keys[:10])
    assert torch.equal(made.read(moved, keys[:10])["teacher_logits"], answers(keys[:10]))


# ---- Damage


def test_a_flipped_bit_is_found(tmp_path):
    made, _ = written(tmp_path / "cache")
    assert made.damaged() == []
    path = made.shards[0].path
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert TeacherCache(tmp_path / "cache").damaged() == [path.name]


def test_a_file_cut_short_is_refused_when_it_is_opened(tmp_path):
    made, _ = written(tmp_path / "cache")
    path = made.shards[0].path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=f"{path.name} cannot be read.*Remove this file: its rows are then asked again"
    ):
        TeacherCache(tmp_path / "cache")


def test_damage_is_not_joined_into_a_file_with_a_right_checksum(tmp_path):
    made, keys = written(tmp_path / "cache")
    made.write(keys + 1, np.arange(100), answers(keys), -1)
    made.open()
    path = made.shards[0].path
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    made.tidy()
    assert made.damaged() == [path.name]


def test_a_last_layer_of_another_teacher_is_refused(tmp_path):
    made = TeacherCache(tmp_path / "cache")
    made.claim({**FACTS, "features": 8}, torch.zeros(CLASSES, 8))
    assert made.classifier_weight().shape == (CLASSES, 8)
    (tmp_path / "cache" / cache.CLASSIFIER).write_bytes(save({"weight": torch.ones(CLASSES, 8)}))
    assert TeacherCache(tmp_path / "cache").damaged() == [cache.CLASSIFIER]
    with pytest.raises(ValueError, match="does not hold the last layer of the teacher that answered"):
        made.classifier_weight()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds cat\.jpg and no cache\.json, so it is no cache"):
        TeacherCache(tmp_path / "photos")
    with pytest.raises(ValueError, match="this is a file"):
        TeacherCache(tmp_path / "photos" / "cat.jpg")


@pytest.mark.parametrize(("number", "words"), [(99, "a newer one made it. Install that"), (1, "fill it anew")])
def test_a_cache_of_another_format_is_refused(tmp_path, number, words):
    written(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").write_text(json.dumps({"format": number}))
    with pytest.raises(ValueError, match=f"is of format {number}.*{words}"):
        TeacherCache(tmp_path / "cache")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": "x", "classes": []}', '{"format": 2}', '{"format": 2, "classes": []}']
)
def test_a_manifest_that_says_nothing_is_refused(tmp_path, content):
    written(tmp_path / "cache")
    (tmp_path / "cache" / "cache.json").write_text(content)
    with pytest.raises(ValueError, match="does not say whose answers these are"):
        TeacherCache(tmp_path / "cache")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": "float16"}, r"was made with dtype float32 \(now: float16\)"),
        ({"top_k": 5}, r"was made with top_k None \(now: 5\)"),
        ({"dtype": "int8"}, "must be one of float32, bfloat16, float16"),
        ({"top_k": 0}, "`TeacherCache(top_k=0)` must be a positive integer"),
        ({"views": True}, "`TeacherCache(views=True)` must be a positive integer"),
    ],
)
def test_other_settings_than_the_caches_are_refused(tmp_path, settings, words):
    written(tmp_path / "cache")
    words = words if "\\" in words else words.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=words):
        TeacherCache(tmp_path / "cache", **settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {**FACTS["teacher"], "weights": "x"}}, "teacher.weights 0123456789ab .now: x."),
        ({"classes": [*FACTS["classes"][:-1], "cat"]}, "class 39 as 'class 39' .now: 'cat'."),
        ({"classes": FACTS["classes"][:-1]}, "40 classes .now: 39."),
        ({"problem_type": "regression"}, "problem_type single_label_classification"),
        ({"features": 8}, "no pooled features .now needed: 8 numbers per row."),
    ],
)
def test_another_identity_is_refused_by_name(tmp_path, change, words):
    made, _ = written(tmp_path / "cache")
    with pytest.raises(ValueError, match=words):
        made.claim({**FACTS, **change})


def test_a_moved_teacher_is_the_same_teacher(tmp_path):
    made, _ = written(tmp_path / "cache")
    made.claim({**FACTS, "teacher": {**FACTS["teacher"], "name": "elsewhere/teacher"}})


def test_top_k_of_what_is_no_distribution_is_refused(tmp_path):
    made = TeacherCache(tmp_path / "cache", top_k=3)
    with pytest.raises(ValueError, match="top_k=3.*regression"):
        made.claim({**FACTS, "problem_type": "regression"})


# ---- Keys


def pictures(names=("image",), size=4):
    images = [Image.new("RGB", (size, size), (40 * i, 9, 9)) for i in range(5)]
    columns = dict.fromkeys(names, images)
    features = {name: datasets.Image() for name in names}
    return datasets.Dataset.from_dict(
        {**columns, "labels": list(range(5))},
        features=datasets.Features({**features, "labels": datasets.Value("int64")}),
    )


def test_keys_are_of_what_rows_hold(tmp_path):
    rows = pictures()
    keys = row_keys(rows)
    assert len({tuple(key) for key in keys.tolist()}) == 5
    assert np.array_equal(row_keys(rows.select([3, 1])), keys[[3, 1]])
    assert np.array_equal(row_keys(rows.rename_column("image", "pixel_values")), keys), "a column's name"
    assert np.array_equal(row_keys(rows.remove_columns("labels")), keys), "labels"
    assert np.array_equal(row_keys(rows.with_transform(lambda batch: {"nothing": [0] * len(batch["image"])})), keys)
    rows.save_to_disk(tmp_path / "rows")
    assert np.array_equal(row_keys(datasets.load_from_disk(tmp_path / "rows")), keys), "on disk"
    rows.to_parquet(tmp_path / "rows.parquet")
    read = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path))
    assert np.array_equal(row_keys(read), keys), "in another format"


@pytest.mark.parametrize(
    "columns",
    [
        {"picture": [b"a", b"b"], "source": ["x", "x"]},
        {"words": [["a", "b"], ["ab"]], "language": ["en", "en"]},
        {"boxes": [[[1], [2, 3]], [[1, 2], [3]]]},
        {"boxes": [[[1, 2], [3, 4]], [[1, 2, 3, 4]]]},
        {"pixel_values": [np.zeros((2, 6)).tolist(), np.zeros((3, 4)).tolist()]},
    ],
    ids=["bytes", "words", "ragged", "folded", "shape"],
)
def test_whatever_a_row_holds_and_its_shape_are_in_its_key(columns):
    rows = datasets.Dataset.from_dict(columns)
    keys = row_keys(rows)
    assert len({tuple(key) for key in keys.tolist()}) == 2
    assert [row_key(row) for row in rows] == [tuple(key) for key in keys.tolist()], "of a stream too"


def test_a_missing_text_keeps_its_place_in_a_pair():
    pairs = [{"a": None, "b": "x"}, {"a": "x", "b": None}]
    assert len({row_key(row) for row in pairs}) == 2
    assert [tuple(key) for key in row_keys(datasets.Dataset.from_list(pairs)).tolist()] == [*map(row_key, pairs)]


def test_keys_tell_rows_apart_that_read_alike():
    pairs = datasets.Dataset.from_dict({"a": ["x", "xy", ""], "b": ["yz", "z", "xyz"]})
    assert len({tuple(key) for key in row_keys(pairs).tolist()}) == 3


def test_a_row_of_a_stream_has_the_key_of_the_table():
    texts = datasets.Dataset.from_dict({"text": ["one", "two"], "labels": [0, 1]})
    assert [row_key(row) for row in texts] == [tuple(key) for key in row_keys(texts).tolist()]
    tokens = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3]], "attention_mask": [[1, 1], [1]]})
    assert [row_key(row) for row in tokens.with_format("torch")] == [tuple(key) for key in row_keys(tokens).tolist()]


def test_remembered_keys_are_checked(tmp_path):
    pictures().save_to_disk(tmp_path / "rows")
    rows = datasets.load_from_disk(tmp_path / "rows")
    keys = row_keys(rows, tmp_path / "memory")
    (path,) = (tmp_path / "memory").iterdir()
    assert np.array_equal(load_file(path)["keys"], keys)
    save_file({"keys": keys[::-1].copy()}, path)  # of other rows, under the same name
    assert np.array_equal(row_keys(rows, tmp_path / "memory"), keys)


def on_disk(folder, name, **columns):
    datasets.Dataset.from_dict(columns).save_to_disk(folder / name)
    return datasets.load_from_disk(folder / name)


def test_remembered_keys_are_of_what_the_rows_hold_now(tmp_path):
    """One row of a hundred differs, which the few keys that are computed again do not show."""
    memory, texts = tmp_path / "memory", [f"text {i}" for i in range(100)]
    other = [*texts[:1], "other", *texts[2:]]

    def assert_told_apart(first, second):
        one, two = row_keys(first, memory), row_keys(second, memory)
        assert (one != two).any(1).nonzero()[0].tolist() == [len(first) - 99]

    rows = on_disk(tmp_path, "numbers", number=list(range(100)))
    assert_told_apart(rows.add_column("text", texts), rows.add_column("text", other))
    rows = on_disk(tmp_path, "texts", text=texts, clean=other)
    assert_told_apart(rows.select_columns("text"), rows.remove_columns("text").rename_column("clean", "text"))
    rows, more = rows.select_columns("text"), [datasets.Dataset.from_dict({"text": t}) for t in (texts, other)]
    assert_told_apart(*(datasets.concatenate_datasets([rows, added]) for added in more))


def test_an_image_file_that_is_changed_is_another_row(tmp_path):
    """Its path in the table is the same."""
    for i in range(40):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(40)]
    rows = on_disk(tmp_path, "paths", image=paths).cast_column("image", datasets.Image())
    rows = rows.map(lambda row: {}, cache_file_name=str(tmp_path / "rows.arrow"), new_fingerprint="x")
    keys = row_keys(rows, tmp_path / "memory")
    assert np.array_equal(row_keys(rows, tmp_path / "memory"), keys)
    said = (tmp_path / "1.png").stat()
    Image.new("RGB", (4, 4), (99, 0, 0)).save(tmp_path / "1.png")
    os.utime(tmp_path / "1.png", ns=(said.st_atime_ns, said.st_mtime_ns))
    assert (row_keys(rows, tmp_path / "memory") != keys).any(1).nonzero()[0].tolist() == [1]


def test_keys_need_not_be_remembered(tmp_path):
    """A folder that is only to be read, and a file that was cut short."""
    rows = on_disk(tmp_path, "rows", text=["a", "b"])
    (tmp_path / "file").write_bytes(b"")
    keys = row_keys(rows, tmp_path / "file" / "memory")
    assert np.array_equal(row_keys(rows, tmp_path / "memory"), keys)
    (path,) = (tmp_path / "memory").iterdir()
    path.write_bytes(path.read_bytes()[:9])
    assert np.array_equal(row_keys(rows, tmp_path / "memory"), keys)


def test_rows_without_anything_to_know_them_by_are_refused():
    with pytest.raises(ValueError, match="none of them is an input by which a row could be known"):
        row_keys(datasets.Dataset.from_dict({"labels": [1, 2]}))
    with pytest.raises(TypeError, match="got rows of type list"):
        row_keys([{"text": "a"}])


# ---- Filling


def numbers(rows):
    return datasets.Dataset.from_dict({"number": [[float(i)] * 3 for i in range(rows)]}).with_format("torch")


class Killed(BaseException):
    """Stands for a signal."""


def asking(calls, batch_size=8, dies_after=None):
    def ask(batch):
        if dies_after is not None and len(calls) >= dies_after:
            raise Killed
        calls.append(batch["number"][:, 0].tolist())
        return torch.outer(batch["number"][:, 0], torch.arange(CLASSES)), None

    collate = torch.utils.data.default_collate
    return Asking(ask, collate, None, Accelerator(), batch_size=batch_size)


@pytest.fixture
def _often(monkeypatch):
    """Every batch is written at once."""
    import importlib

    monkeypatch.setattr(importlib.import_module("hf_kd.teacher_cache.fill"), "FLUSH_SECONDS", -1.0)


@pytest.mark.usefixtures("_often")
def test_an_interrupted_filling_goes_on_where_it_was(tmp_path):
    rows, calls = numbers(60), []
    keys, made = row_keys(numbers(60)), TeacherCache(tmp_path / "cache")
    made.claim(FACTS)
    with pytest.raises(Killed):
        fill(made, KeyedRows(rows, keys), asking(calls, dies_after=4))
    assert len(TeacherCache(tmp_path / "cache")) == 32
    again = TeacherCache(tmp_path / "cache")
    assert fill(again, KeyedRows(rows, keys), asking(calls)) == 28
    assert sorted(number for call in calls for number in call) == list(range(60)), "each row once"
    read = again.read(again.find(keys))["teacher_logits"]
    assert torch.equal(read, torch.outer(torch.arange(60.0), torch.arange(CLASSES)))
    assert len(again.shards) == 1


def test_nan_is_never_stored(tmp_path):
    made = TeacherCache(tmp_path / "cache")
    made.claim(FACTS)
    bad = Asking(
        lambda batch: (torch.full((8, CLASSES), math.nan), None), torch.utils.data.default_collate, None, Accelerator()
    )
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        fill(made, KeyedRows(numbers(8), row_keys(numbers(8))), bad)
    assert len(TeacherCache(tmp_path / "cache")) == 0


SCRIPT = """
import sys
sys.path[:0] = {path!r}
import importlib
importlib.import_module("hf_kd.teacher_cache.fill").FLUSH_SECONDS = -1.0
import test_teacher_cache_files as t
made = t.TeacherCache({folder!r}); made.claim(t.FACTS); print("ready", flush=True)
t.fill(made, t.KeyedRows(t.numbers(4000), t.row_keys(t.numbers(4000))), t.asking([], batch_size=4))
"""


def test_a_killed_writer_loses_its_last_seconds_and_leaves_no_half_file(tmp_path):
    """SIGKILL while files are written every few rows; what is there is whole, and the rest can be added."""
    folder = tmp_path / "cache"
    script = textwrap.dedent(SCRIPT.format(path=sys.path, folder=str(folder)))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout.readline() == "ready\n"
        while len(list(folder.glob("*.safetensors"))) < 20:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    made, keys = TeacherCache(folder), row_keys(numbers(4000))
    assert 80 <= len(made) < 4000
    assert made.damaged() == []
    fill(made, KeyedRows(numbers(4000), keys), asking([], batch_size=500))
    assert torch.equal(made.read(made.find(keys))["teacher_logits"][:, 1], torch.arange(4000.0))


def test_the_same_answers_have_the_same_file_whoever_writes_them(tmp_path):
    made, keys = written(tmp_path / "cache")
    for _ in range(12):
        made.write(keys, np.arange(100), answers(keys), -1)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1


def test_a_process_killed_before_it_said_whose_cache_it_is_leaves_an_empty_one(tmp_path):
    folder = tmp_path / "cache"
    (folder / "keys").mkdir(parents=True)
    (folder / ".cache.0123.partial").write_bytes(b"{")
    (folder / cache.CLASSIFIER).write_bytes(save({"weight": torch.ones(CLASSES, 8)}))
    made = TeacherCache(folder)
    made.claim({**FACTS, "features": 8}, torch.zeros(CLASSES, 8))
    assert not made.classifier_weight().any()


def in_two_files(folder):
    made, keys = written(folder)
    made.write(keys + 1, np.arange(100), answers(keys), -1)
    made.open()
    assert len(made.shards) == 2
    return made, keys


def test_files_may_be_joined_while_others_read_and_open_them(tmp_path, monkeypatch):
    made, keys = in_two_files(tmp_path / "cache")
    reader, sent = TeacherCache(tmp_path / "cache"), pickle.dumps(made)
    places, opened = reader.find(keys), shards.open_shard

    def late(path):
        monkeypatch.setattr(shards, "open_shard", opened)
        made.tidy()  # between listing the files and mapping them
        return opened(path)

    monkeypatch.setattr(shards, "open_shard", late)
    assert len(TeacherCache(tmp_path / "cache")) == 200
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    assert torch.equal(reader.read(places, keys)["teacher_logits"], answers(keys)), "gone, but mapped"
    reader.tidy()
    assert reader.describe()["files"] == 1
    arrived = pickle.loads(sent)
    assert torch.equal(arrived.read(arrived.find(keys), keys)["teacher_logits"], answers(keys))


def test_where_nothing_can_be_written_a_sentence_says_so(tmp_path, monkeypatch):
    made, keys = written(tmp_path / "cache")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot be written there \(No space left on device\).*Make room"):
        made.write(keys, np.arange(100), 2 * answers(keys), -1)
    assert not list((tmp_path / "cache").glob(".*.partial"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be written there"):
        TeacherCache(tmp_path / "file" / "cache").claim(FACTS)


def test_a_file_system_without_hard_links_is_enough(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    made, keys = written(tmp_path / "cache")
    assert torch.equal(made.read(made.find(keys))["teacher_logits"], answers(keys))
    with pytest.raises(ValueError, match="problem_type"):
        TeacherCache(tmp_path / "cache").claim({**FACTS, "problem_type": "regression"})


def test_leftovers_of_the_killed_are_removed_when_nobody_can_be_writing_them(tmp_path):
    made, _ = written(tmp_path / "cache")
    old, fresh = (tmp_path / "cache" / f".{'0' * 32}.{name}.partial" for name in ("old", "fresh"))
    old.write_bytes(b"half"), fresh.write_bytes(b"half")
    os.utime(old, (0, 0))
    made.tidy()
    assert not old.exists()
    assert fresh.exists()


def test_the_first_process_says_whose_cache_it_is(tmp_path):
    first, second = TeacherCache(tmp_path / "cache"), TeacherCache(tmp_path / "cache")
    first.claim(FACTS)
    with pytest.raises(ValueError, match="teacher.weights"):
        second.claim({**FACTS, "teacher": {**FACTS["teacher"], "weights": "another"}})
    said = json.loads((tmp_path / "cache" / cache.MANIFEST).read_text())
    assert said["teacher"]["weights"] == FACTS["teacher"]["weights"]

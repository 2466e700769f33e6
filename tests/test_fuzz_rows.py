"""Rows that are broken, one at a time: each works as one expects, or one message names the file and the row."""

import io
import json
import os
import struct
import zlib
from datetime import date

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import classifier
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from hf_kd import DistillationTrainer, DistillationTrainingArguments
from hf_kd.data import load_task, processing
from hf_kd.data.opening import opened
from hf_kd.data.wordpiece import train_wordpiece

SPLITS = ("train", "validation", "test")
GREYS = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(["good film", "bad film", "a good day", "a bad day"], vocab_size=60, max_length=16)


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessor(size={"height": 4, "width": 4}, do_normalize=False)


@pytest.fixture
def load(tmp_path):
    """`load_task`, whose caches stay here; rows of all splits count."""

    def load_with(source, processor, **options):
        return load_task(source, processor=processor, cache_dir=tmp_path / "cache", **options)

    return load_with


def every_row(task):
    return [row for split in SPLITS for row in getattr(task, split)]


def one_line_of(error):
    """The words of a refusal, which must be our own."""
    said = str(error.value)
    assert type(error.value) in (ValueError, TypeError)
    assert said.startswith("`load_task(")
    assert "\n" not in said
    assert "Traceback" not in said
    return said


# ---- Images


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def noise(*shape, dtype=np.uint8, high=255):
    return GREYS.integers(0, high, shape).astype(dtype)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def huge_png():
    """60,000 by 60,000 pixels, it says, in a hundred bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def broken_png():
    content = bytearray(encoded(Image.fromarray(noise(64, 64, 3))))
    content[len(content) // 2 :][:30] = b""
    content[len(content) // 2 : len(content) // 2 + 30] = b"\xff" * 30
    return bytes(content)


def turned_photograph():
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    return encoded(Image.fromarray(np.full((8, 16, 3), 99, np.uint8)), "JPEG", exif=exif)


WHOLE = encoded(Image.fromarray(noise(64, 64, 3)))
BROKEN = {
    "corrupt": broken_png(),
    "truncated": WHOLE[: len(WHOLE) // 2],
    "header only": WHOLE[:20],
    "a text": b"not a picture\n",
    "zero bytes": b"",
    "a page of a web server": b"<html>404</html>",
    "larger than memory": huge_png(),
    "32-bit integers": encoded(Image.fromarray(noise(8, 8, dtype=np.int32, high=65535)), "TIFF"),
    "fractions": encoded(Image.fromarray(noise(8, 8).astype(np.float32)), "TIFF"),
}
RGB = Image.fromarray(noise(8, 8, 3))
GOOD = {
    "one pixel": encoded(Image.new("RGB", (1, 1), (10, 20, 30))),
    "a line": encoded(Image.new("RGB", (7, 1), (10, 20, 30))),
    "three by three": encoded(Image.fromarray(noise(3, 3, 3))),
    "grey": encoded(RGB.convert("L")),
    "black and white": encoded(RGB.convert("1")),
    "grey with alpha": encoded(RGB.convert("LA")),
    "CMYK": encoded(RGB.convert("CMYK"), "JPEG"),
    "alpha": encoded(RGB.convert("RGBA")),
    "a palette": encoded(RGB.convert("P")),
    "16 bits": encoded(Image.fromarray(noise(8, 8, dtype=np.uint16, high=65535))),
    "animated": encoded(
        Image.new("RGB", (8, 8), (0, 0, 9)), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    ),
    "a turned photograph": turned_photograph(),
    "JPEG called PNG": encoded(RGB, "JPEG"),
}


def image_set(folder, content, name="odd.png"):
    for index in range(24):
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * index, 0, 0)).save(path)
    (folder / "a" / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("lazily", [False, True], ids=["at once", "when read"])
@pytest.mark.parametrize("kind", BROKEN)
def test_an_image_that_cannot_be_read_is_named(kind, lazily, load, processor, tmp_path, monkeypatch):
    """`image file is truncated` after two hours, of a million files: which?"""
    monkeypatch.setattr(processing, "PRECOMPUTED_BYTES", 0 if lazily else 2**26)
    folder = image_set(tmp_path / "set", BROKEN[kind])
    with pytest.raises(ValueError, match=r"a/odd\.png'") as caught:
        every_row(load(folder, processor))
    said = one_line_of(caught)
    assert lazily or "row 12 of its table" in said


@pytest.mark.parametrize("lazily", [False, True], ids=["at once", "when read"])
def test_every_usual_kind_of_image_is_read(lazily, load, processor, tmp_path, monkeypatch):
    """Grey, transparent and indexed images are in every folder from the web; none may change the others' shape."""
    monkeypatch.setattr(processing, "PRECOMPUTED_BYTES", 0 if lazily else 2**26)
    for index, content in enumerate(GOOD.values()):
        image_set(tmp_path / "set", content, f"odd{index}.png")
    task = load(tmp_path / "set", processor)
    rows = [row for split in SPLITS for row in getattr(task, split).select_columns(["pixel_values"])]
    assert len(rows) == 24 + len(GOOD)
    assert {tuple(row["pixel_values"].shape) for row in rows} == {(3, 4, 4)}


def pixels_of(content):
    return np.asarray(opened({"path": None, "bytes": content}).convert("RGB"))


def test_what_becomes_of_each_kind_of_image():
    """The same as in `pipeline("image-classification")`, but for 16 bits, which Pillow would turn white."""
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert pixels_of(encoded(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert pixels_of(GOOD["a turned photograph"]).shape == (16, 8, 3)
    assert pixels_of(GOOD["animated"])[0, 0].tolist() == [0, 0, 9]
    assert pixels_of(GOOD["one pixel"]).tolist() == [[[10, 20, 30]]]
    see_through = Image.fromarray(np.full((2, 2, 4), (200, 100, 50, 0), np.uint8))
    assert pixels_of(encoded(see_through))[0, 0].tolist() == [200, 100, 50]  # alpha is dropped, not blended


def test_one_pixel_is_a_colour_and_no_row_of_channels(load, processor, tmp_path):
    """An array of one by one by three may be read as one channel of three pixels."""
    folder = image_set(tmp_path / "set", GOOD["one pixel"])
    rows = [np.asarray(row["pixel_values"]) for row in every_row(load(folder, processor))]
    odd = next(pixels for pixels in rows if pixels[1].max() > 0)
    assert odd[:, 0, 0] * 255 == pytest.approx([10, 20, 30], abs=0.01)
    assert np.ptp(odd, axis=(1, 2)).max() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_training_is_named(workers, load, processor, tmp_path, monkeypatch):
    """Only the training notices one that is read lazily, in a worker perhaps."""
    monkeypatch.setattr(processing, "PRECOMPUTED_BYTES", 0)
    task = load(image_set(tmp_path / "set", BROKEN["truncated"]), processor)
    loader = DataLoader(task.train, batch_size=64, collate_fn=task.collator, num_workers=workers)
    with pytest.raises(ValueError, match=r"cannot read the image '.*a/odd\.png'"):
        list(loader)
    arguments = DistillationTrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=64, use_cpu=True, report_to="none", kd_weight=0
    )
    trainer = DistillationTrainer(classifier("vit", 0, classes=2, image_size=4), arguments, task.collator, task.train)
    with pytest.raises(ValueError, match=r"cannot read the image '.*a/odd\.png'"):
        trainer.train()


def test_bytes_in_a_table_are_named_by_their_row(load, processor, tmp_path):
    """A Parquet file of images has no file names."""
    contents = [encoded(Image.new("RGB", (8, 8), (10 * i, 0, 0))) for i in range(24)]
    contents[7] = WHOLE[:100]
    pq.write_table(pa.table({"image": contents, "label": [i % 2 for i in range(24)]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="row 7 of its table") as caught:
        load(tmp_path / "train.parquet", processor, image_column="image")
    one_line_of(caught)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../outside.png", "row 3 of train, which leads out of the folder"),
        ("pictures/../../outside.png", "row 3 of train, which leads out of the folder"),
        ("../../../../../../../etc/passwd", "row 3 of train, which leads out of the folder"),
        ("/etc/passwd", r"cannot read the image '/etc/passwd'"),
        ("pictures/nowhere.png", "row 3 of train, and there is no such file"),
        ("pictures", "row 3 of train, and there is no such file"),
        ("https://192.0.2.1/x.png", "row 3 of train: nothing is downloaded"),
        ("x" * 5000, "row 3 of train, and there is no such file"),
    ],
)
def test_a_path_in_a_table_stays_below_it(path, said, load, processor, tmp_path):
    """A table from elsewhere chooses what is opened on this machine."""
    image_set(tmp_path / "set" / "pictures", GOOD["grey"])
    (tmp_path / "outside.png").write_bytes(GOOD["grey"])
    rows = [f"pictures/{'ab'[i % 2]}/{i}.png,{i % 2}" for i in range(24)]
    rows[3] = f"{path},1"
    (tmp_path / "set" / "train.csv").write_text("file,label\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path / "set" / "train.csv", processor, image_column="file")
    one_line_of(caught)


def test_paths_in_a_table_are_those_beside_it(load, processor, tmp_path, monkeypatch):
    """Relative to the working directory, the same table is another one elsewhere."""
    image_set(tmp_path / "set" / "pictures", GOOD["grey"])
    rows = [f"pictures/{'ab'[i % 2]}/{i}.png,{i % 2}" for i in range(24)]
    (tmp_path / "set" / "train.csv").write_text("file,label\n" + "\n".join(rows))
    monkeypatch.chdir("/")
    assert len(every_row(load(tmp_path / "set" / "train.csv", processor, image_column="file"))) == 24


def test_links_are_followed_to_images_and_to_nothing_else(load, processor, tmp_path):
    """Data stores link their files; a link to something else is not read into a row, nor one to nothing left out."""
    folder = image_set(tmp_path / "set", GOOD["grey"])
    (tmp_path / "outside.png").write_bytes(GOOD["alpha"])
    link = folder / "b" / "link.png"
    link.symlink_to(tmp_path / "outside.png")
    assert len(every_row(load(folder, processor))) == 26
    for target in ("/etc/passwd", tmp_path / "nowhere.png", "/dev/zero"):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(ValueError, match=r"b/link\.png'") as caught:
            load(folder, processor)
        one_line_of(caught)
    link.unlink()
    os.mkfifo(link)  # reading it would wait for ever
    with pytest.raises(ValueError, match=r"b/link\.png'.*no file"):
        load(folder, processor)


# ---- Texts and labels


def rows_of(numbers=False, count=24):
    names = (0, 1) if numbers else ("good", "bad")
    return [{"text": f"{('good', 'bad')[i % 2]} film {i}", "label": names[i % 2]} for i in range(count)]


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def table(rows):
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


def with_row(key, value, numbers=False):
    rows = rows_of(numbers)
    rows[5] = {**rows[5], key: value}
    return lines(rows)


TEXTS = {  # text -> what is said of it, or "" where it is a text like any other
    "empty": ("", "1 texts of train are blank"),
    "blank": ("  \t", "1 texts of train are blank"),
    "long": ("good " * 20_000, "Texts are cut"),
    "emoji": ("\U0001f600 good \U0001f9ea", ""),
    "right to left": ("\u202e\u05e9\u05dc\u05d5\u05dd", ""),
    "NUL": ("go\0od", ""),
    "lines": ("a\r\nb\u2028c", ""),
    "NA": ("NA", ""),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_odd_texts_are_texts(kind, load, tokenizer, tmp_path):
    """No row is lost, none is changed, and one without a word in it is counted."""
    text, said = TEXTS[kind]
    (tmp_path / "train.jsonl").write_text(with_row("text", text))
    task = load(tmp_path / "train.jsonl", tokenizer)
    rows = every_row(task)
    assert len(rows) == 24
    assert [row["labels"] for row in rows if row["text"] == text] == [0]  # "bad"
    assert said in task.description


@pytest.mark.parametrize("value", [None, 5, 1.5, True, ["a"], {"a": 1}], ids=str)
def test_what_is_no_text_is_refused_with_its_row(value, load, tokenizer, tmp_path):
    """`str(None)` is a text of four letters."""
    (tmp_path / "train.jsonl").write_text(with_row("text", value))
    with pytest.raises(ValueError, match=r"in row 5") as caught:
        load(tmp_path / "train.jsonl", tokenizer)
    one_line_of(caught)


UNLABELLED = [(True, None), (True, -100), (False, None), (False, -100), (True, float("nan"))]


@pytest.mark.parametrize(("numbers", "label"), UNLABELLED, ids=str)
def test_rows_without_a_label_are_kept_and_counted(numbers, label, load, tokenizer, tmp_path):
    """They are distilled without one, and whoever did not mean that reads it."""
    (tmp_path / "train.jsonl").write_text(with_row("label", label, numbers))
    task = load(tmp_path / "train.jsonl", tokenizer)
    assert len(every_row(task)) == 24
    assert [row["text"] for row in every_row(task) if row["labels"] == -100] == ["bad film 5"]
    assert "1 training rows have no label" in task.description
    assert task.num_labels == 2


ODD_LABELS = [
    (True, 0.5, "holds 0.5 of type float in row 5"),
    (True, True, "holds True in row 5"),
    (True, "good", "mixes names and numbers"),
    (True, [1], r"holds \[1\] of type list in row 5"),
    (True, {"a": 1}, "of type dict in row 5"),
    (True, 10**30, "of type float in row 5"),
    (True, "", "''"),
    (False, 1, "mixes names and numbers"),
    (False, 0.5, "holds 0.5 of type float in row 5"),
    (False, True, "holds True in row 5"),
    (False, "", "holds '' in row 5"),
    (False, "  ", "holds '  ' in row 5"),
    (False, " good", "holds 'good' in row 0 of train and ' good' in row 5"),
    (False, [1], "of type list in row 5"),
]


@pytest.mark.parametrize(("numbers", "label", "said"), ODD_LABELS, ids=str)
def test_a_label_that_is_no_class_is_refused(numbers, label, said, load, tokenizer, tmp_path):
    """It would be one more class, or be taken for another."""
    (tmp_path / "train.jsonl").write_text(with_row("label", label, numbers))
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path / "train.jsonl", tokenizer)
    one_line_of(caught)


@pytest.mark.parametrize("label", ["ugly", "Good", "good ", "", "nan", "None"])
def test_a_name_that_is_not_in_labels_txt_is_refused(label, load, tokenizer, tmp_path):
    """`Good` for `good` is a class that the teacher does not have."""
    (tmp_path / "train.jsonl").write_text(with_row("label", label))
    (tmp_path / "labels.txt").write_text("good\nbad\n")
    with pytest.raises(ValueError, match=f"has {label!r} in train, but labels.txt") as caught:
        load(tmp_path / "train.jsonl", tokenizer)
    one_line_of(caught)


@pytest.mark.parametrize("label", [7, -1])
def test_an_id_beyond_labels_txt_is_refused(label, load, tokenizer, tmp_path):
    """-1 counts from the end in Python."""
    (tmp_path / "train.jsonl").write_text(with_row("label", label, True))
    (tmp_path / "labels.txt").write_text("good\nbad\n")
    with pytest.raises(ValueError, match=f"has {label} in train, but labels.txt"):
        load(tmp_path / "train.jsonl", tokenizer)


def test_minus_one_among_ids_is_said(load, tokenizer, tmp_path):
    """Many tables mean unlabelled by it, and some a class."""
    (tmp_path / "train.jsonl").write_text(with_row("label", -1, True))
    task = load(tmp_path / "train.jsonl", tokenizer)
    assert "-1 is one of the classes (1 training rows; missing_label=-1" in task.description
    assert load(tmp_path / "train.jsonl", tokenizer, missing_label=-1).label_names == ("0", "1")


@pytest.mark.parametrize("word", ["NA", "None", "null", "N/A"])
def test_words_for_nothing_are_words(word, load, tokenizer, tmp_path):
    """pandas takes them for empty cells: Namibia, and every class called None, would lose its labels."""
    (tmp_path / "train.csv").write_text(table(rows_of()).replace(",good", f",{word}"))
    task = load(tmp_path / "train.csv", tokenizer)
    assert set(task.label_names) == {word, "bad"}
    assert f"{word!r} is taken for the name of a class" in task.description
    (tmp_path / "train.csv").write_text(table(rows_of(numbers=True)) + f"a film,{word}\n")
    with pytest.raises(ValueError, match=f"holds '{word}' in row 24 of train, and numbers otherwise"):
        load(tmp_path / "train.csv", tokenizer)


# ---- Files

SOUND = lines(rows_of())
REFUSED = {  # file name, content, what is said
    "broken line": ("train.jsonl", SOUND + '{"text": "x", "lab\n', r"could not read .*train\.jsonl"),
    "broken first line": ("train.jsonl", '{"text": "x", "lab\n' + SOUND, r"could not read .*train\.jsonl"),
    "key twice": ("train.jsonl", SOUND + '{"text":"x","label":"good","label":"bad"}\n', "specified twice"),
    "a list": ("train.jsonl", SOUND + "[1, 2]\n", "could not read"),
    "a number": ("train.jsonl", SOUND + "5\n", "could not read"),
    "null": ("train.jsonl", SOUND + "null\n", "without a value in the column 'text' of train, the first in row 24"),
    "no text": ("train.jsonl", SOUND + '{"label": "good"}\n', "the first in row 24"),
    "no label column": ("train.jsonl", lines([{"text": "x"}] * 24), "label_column=.* is needed"),
    "no text column": ("train.jsonl", lines([{"label": "x"}] * 24), "text_column=.* is needed"),
    "JSON in latin-1": ("train.jsonl", (SOUND + '{"text":"caf\xe9","label":"bad"}\n').encode("latin-1"), "UTF-8"),
    "JSON in UTF-16": ("train.jsonl", SOUND.encode("utf-16"), "UTF-8"),
    "half a character": ("train.jsonl", SOUND + '{"text":"\\ud83d","label":"bad"}\n', "surrogate"),
    "bytes": ("train.jsonl", bytes(range(256)), "could not read"),
    "an empty file": ("train.jsonl", b"", "it holds no row"),
    "blank lines": ("train.jsonl", b"\n\n", "it holds no row"),
    "JSON of another form": ("train.json", json.dumps({"data": rows_of()}), "label_column=.* is needed"),
    "a quote": ("train.csv", table(rows_of()).replace("good film 4", '"good film 4'), "string starting at row 5"),
    "a quote at the end": ("train.csv", table(rows_of()) + '"never,good\nx,bad\n', "string starting at row 25"),
    "one field more": ("train.csv", table(rows_of()) + "a,b,c\n", "Expected 2 fields in line 26, saw 3"),
    "an empty text": ("train.csv", table(rows_of()) + ",good\n", "the first in row 24"),
    "CSV in latin-1": ("train.csv", (table(rows_of()) + "caf\xe9,good\n").encode("latin-1"), "UTF-8"),
    "semicolons": ("train.csv", table(rows_of()).replace(",", ";"), "text;label"),
    "no header": ("train.csv", table(rows_of()).split("\n", 1)[1], "label_column=.* is needed"),
    "blanks in the header": ("train.csv", table(rows_of()).replace(",label", ", label"), "label_column=.* is needed"),
    "label twice": ("train.csv", "text,label,label\na,b,c\nd,e,f\n", "column 'label' twice"),
    "text twice": ("train.csv", "text,text,label\na,b,c\nd,e,f\n", "column 'text' twice"),
    "header only": ("train.csv", "text,label\n", "it holds no row"),
    "an empty table": ("train.csv", b"", "could not read"),
    "half a Parquet file": ("train.parquet", b"PAR1" + b"\0" * 50, r"could not read .*train\.parquet"),
    "no gzip": ("train.jsonl.gz", SOUND, r"could not read .*train\.jsonl\.gz"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_broken_file_is_named(kind, load, tokenizer, tmp_path):
    """`StopIteration`, `Instruction "train" corresponds to no data!`, `Parquet magic bytes not found`: of what?"""
    name, content, said = REFUSED[kind]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said) as caught:
        load(tmp_path / name, tokenizer)
    one_line_of(caught)


READ = {  # file name, content, rows
    "a byte order mark": ("train.jsonl", b"\xef\xbb\xbf" + SOUND.encode(), 24),
    "one key more": ("train.jsonl", SOUND + '{"text":"x","label":"good","more":1}\n', 25),
    "lines between": ("train.jsonl", SOUND.replace("\n", "\n\n"), 24),
    "a list of rows": ("train.json", json.dumps(rows_of()), 24),
    "CSV with a byte order mark": ("train.csv", b"\xef\xbb\xbf" + table(rows_of()).encode(), 24),
    "lines of Windows": ("train.csv", table(rows_of()).replace("\n", "\r\n"), 24),
    "two lines in quotes": ("train.csv", table(rows_of()) + '"two\nlines",good\n', 25),
    "a number as a text": ("train.csv", table(rows_of()) + "5,good\n", 25),
    "tabs": ("train.tsv", table(rows_of()).replace(",", "\t"), 24),
}


@pytest.mark.parametrize("kind", READ)
def test_an_odd_file_is_read_whole(kind, load, tokenizer, tmp_path):
    """A byte order mark is no part of a name, and a second line no row."""
    name, content, count = READ[kind]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    task = load(tmp_path / name, tokenizer)
    assert (len(every_row(task)), task.label_names) == (count, ("bad", "good"))


def _parquet(path, text, label):
    pq.write_table(pa.Table.from_arrays([pa.array(part) for part in (text, label)], names=["text", "label"]), path)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([float("inf")] * 24, "holds inf of type float in row 0"),
        ([b"good", b"bad"] * 12, "of type bytes in row 0"),
        ([date(2020, 1, 1)] * 24, "of type date in row 0"),
    ],
    ids=["infinite", "bytes", "dates"],
)
def test_columns_of_another_kind_are_refused(label, said, load, tokenizer, tmp_path):
    """Parquet holds anything."""
    _parquet(tmp_path / "train.parquet", [f"film {i}" for i in range(24)], label)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "train.parquet", tokenizer)


def test_bytes_that_are_no_text_are_refused(load, tokenizer, tmp_path):
    """A Parquet file may call anything a string."""
    bytes_ = pa.array([b"\xff\xfe"] * 24, pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 24, bytes_.buffers())
    _parquet(tmp_path / "train.parquet", texts, ["good", "bad"] * 12)
    with pytest.raises(ValueError, match="are no UTF-8"):
        load(tmp_path / "train.parquet", tokenizer)


def test_a_stream_names_its_broken_image(load, processor, tmp_path):
    """Of a stream nobody knows the row."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split in ("train", "validation", "test"):
        made = [encoded(Image.new("RGB", (8, 8), (10 * i, 0, 0))) for i in range(4)]
        made = [{"bytes": content, "path": f"{split}-{i}.png"} for i, content in enumerate(made)]
        if split == "train":
            made[2]["bytes"] = WHOLE[:100]
        rows = datasets.Dataset.from_dict({"image": made, "label": [0, 1, 0, 1]}, features=features)
        rows.to_parquet(tmp_path / "set" / f"{split}.parquet")
    task = load(tmp_path / "set", processor, streaming=True)
    assert len(list(task.test)) == 4
    with pytest.raises(ValueError, match=r"cannot read the image 'train-2\.png'"):
        list(task.train)

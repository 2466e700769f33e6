"""What is saved and pushed of an adapter student, without a Hub: which files, which card, which refusals."""

import json
import shutil
from types import SimpleNamespace

import datasets
import pytest
import tiny
import torch
from hub_worker import tokenizer
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification

from hf_kd import ConfigError, add_adapter
from hf_kd.adapter_files import is_merged
from hf_kd.data import origin
from hf_kd.experiment.build import processor_source
from hf_kd.experiment.config import parse_config
from hf_kd.experiment.pulled import pulled
from hf_kd.model_card import read_record, write_card
from hf_kd.publish import bundle, ensure_merged, remove_stale, write_merged
from hf_kd.publish.folder import check_folder, stale
from hf_kd.trainer.adapter_pushes import refuse_older_adapter, save_plain

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it

LORA = {"type": "lora", "r": 2}
SHA = "a" * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint in a folder, whose head is for five classes."""
    folder = tmp_path_factory.mktemp("base")
    tiny.classifier("bert", 3).save_pretrained(folder)
    return folder


def trained(folder, base, **overrides):
    student = add_adapter(AutoModelForSequenceClassification.from_pretrained(base), LORA)
    rows = tiny.table(tiny.examples("bert", 8))
    words = {"processing_class": tokenizer()}
    trainer = tiny.train(folder, student, tiny.classifier("bert", 1), rows, trainer=words, **overrides)
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """`(the trainer, its folder)`: the adapter alone, as the Trainer saves it."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    return trained(folder, base, save_strategy="epoch"), folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "run")


def logits(model):
    return tiny.logits(model, [{"input_ids": row["input_ids"]} for row in tiny.examples("bert", 4)])


def test_no_draft_of_a_card_is_left_by_peft(saved):
    """It is full of "More Information Needed", and would be taken for what a person wrote."""
    trainer, folder = saved
    assert not list(folder.rglob("README.md"))
    trainer.create_model_card(tags="mine", license="mit")
    before = (folder / "README.md").read_text()
    trainer.save_model()
    assert (folder / "README.md").read_text() == before
    (folder / "README.md").unlink()


def test_a_draft_that_is_there_is_replaced(folder):
    """Runs of before have one, and it names the folder of the base as its id."""
    from peft import PeftModel

    peft = PeftModel.from_pretrained(tiny.classifier("bert", 3), folder)
    peft.create_or_update_model_card(folder)
    assert "Model Card for Model ID" in (folder / "README.md").read_text()
    text = write_card(folder).read_text()
    assert "Model Card for Model ID" not in text
    assert ModelCard(text).data.base_model is None


def test_the_card_of_an_adapter_without_its_plain_student_says_so(folder, base):
    """Then PEFT is what loads it."""
    data = ModelCard.load(write_card(folder, base_model="org/base")).data
    assert (data.library_name, data["base_model_relation"]) == ("peft", "adapter")
    write_merged_by_hand(folder, base)
    data = ModelCard.load(write_card(folder, base_model="org/base")).data
    assert (data.library_name, data["base_model_relation"]) == ("transformers", "finetune")


def write_merged_by_hand(folder, base):
    ensure_merged(folder)
    assert str(base) in (folder / "adapter_config.json").read_text()


def test_both_snippets_run_where_the_folder_lies(folder):
    """The plain one and the adapter's answer the same."""
    import re

    ensure_merged(folder)
    found = re.findall(r"```python\n(.*?)```", write_card(folder).read_text(), flags=re.S)
    scopes = [{}, {}]
    for code, scope in zip(found[:2], scopes, strict=True):
        exec(compile(code, "README.md", "exec"), scope)
    torch.testing.assert_close(logits(scopes[0]["classifier"].model), logits(scopes[1]["model"]), rtol=0, atol=1e-5)


def test_a_base_that_is_not_on_the_hub_is_said_to_be_that(folder):
    """A snippet with a path of another computer helps nobody."""
    ensure_merged(folder)
    text = write_card(folder, repo_id="org/x").read_text()
    assert "for those who have its base model, which is not on the Hub" in text
    assert "PeftModel" not in text
    assert 'pipeline("text-classification", model="org/x")' in text


def test_what_is_made_from_the_folder_is_what_was_trained(saved, folder, tmp_path):
    """By the adapter's file and the base, or from the student in memory."""
    trainer, _ = saved
    plain = AutoModelForSequenceClassification.from_pretrained(ensure_merged(folder))
    torch.testing.assert_close(logits(plain), logits(trainer.model), rtol=0, atol=1e-5)
    other = shutil.copytree(saved[1], tmp_path / "other")
    memory = AutoModelForSequenceClassification.from_pretrained(write_merged(trainer.model, str(other)))
    torch.testing.assert_close(logits(memory), logits(plain), rtol=0, atol=0)
    check_folder(other)


def test_a_sharded_student_is_merged_from_what_was_saved(saved, folder):
    """Under FSDP no process holds all of it."""
    args = SimpleNamespace(output_dir=str(folder), push_to_hub=True, hub_strategy="every_save", hub_token=None)
    save_plain(SimpleNamespace(args=args, is_fsdp_enabled=True, is_deepspeed_enabled=False), folder)
    assert is_merged(folder)


@pytest.mark.parametrize("change", ["weights", "settings", "gone", "by hand"])
def test_a_plain_student_is_known_to_be_of_its_adapter(folder, change):
    """Trained again into the same folder, the older one must not go out as the new."""
    ensure_merged(folder)
    assert is_merged(folder)
    if change == "weights":
        path = folder / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif change == "settings":
        path = folder / "adapter_config.json"
        path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    elif change == "gone":
        (folder / "adapter_model.safetensors").unlink()
    else:
        (folder / "merged" / "_merged_from.json").write_text("[]")
    assert not is_merged(folder)


def test_weights_of_before_are_neither_kept_in_merged_nor_pushed(folder):
    """One file or many: what is left over is loaded first."""
    ensure_merged(folder)
    (folder / "merged" / "_merged_from.json").unlink()
    (folder / "merged" / "model-00001-of-00002.safetensors").write_bytes(b"old")
    for name in ("model.safetensors", "model-00009-of-00009.safetensors", "config.json"):
        (folder / name).write_bytes(b"{}")  # of a whole student that was here
    ensure_merged(folder)
    assert not (folder / "merged" / "model-00001-of-00002.safetensors").exists()
    pushed = bundle(folder)
    assert pushed["model.safetensors"] == folder / "merged" / "model.safetensors"
    assert pushed["config.json"] == folder / "merged" / "config.json"
    assert "model-00009-of-00009.safetensors" not in pushed
    assert pushed["adapter/adapter_model.safetensors"] == folder / "adapter_model.safetensors"
    assert not [place for place in pushed if place.startswith(("adapter_", "_", "merged"))]


def test_only_what_would_be_loaded_in_its_place_is_deleted():
    """Someone's ONNX export in a folder is none of our business; an adapter of an older push is."""
    present = ["model.safetensors", "onnx/model.safetensors", "adapter_config.json", "adapter/adapter_model.bin"]
    present += ["adapter/adapter_config.json", "pytorch_model.bin", "README.md", "notes.txt"]
    gone = {"adapter_config.json", "adapter/adapter_model.bin", "pytorch_model.bin"}
    assert set(stale(present, {"model.safetensors": None, "adapter/adapter_config.json": None})) == gone


def test_weights_of_an_earlier_student_are_removed_and_nothing_is_committed_for_nothing():
    """The Trainer's own pushes only add files: an adapter that was there would be put on the new student."""
    commits = []
    api = SimpleNamespace(
        list_repo_files=lambda repo, revision: ["model.safetensors", "adapter_config.json"],
        create_commit=lambda repo, operations, **kwargs: commits.append([o.path_in_repo for o in operations]),
    )
    remove_stale(api, "org/x", {"model.safetensors": None, "adapter_config.json": None}, None)
    assert commits == []
    remove_stale(api, "org/x", {"model.safetensors": None}, None)
    assert commits == [["adapter_config.json"]]


def test_a_base_that_lacks_what_the_student_had_is_refused(folder, tmp_path, base):
    """Weights that loading draws anew, and no file holds: the plain student would be another one each time."""
    other = shutil.copytree(base, tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(other)
    state = {name: value for name, value in model.state_dict().items() if "pooler" not in name}
    model.save_pretrained(other, state_dict=state)
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace(str(base), str(other)))
    with pytest.raises(ConfigError, match="was trained with bert.pooler.dense.bias"):
        ensure_merged(folder)


def test_labels_of_the_student_come_from_the_run(base, tmp_path):
    """The base has another head; PEFT's file knows nothing of names."""
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    plain = AutoModelForSequenceClassification.from_pretrained(base, ignore_mismatched_sizes=True, **names)
    rows = tiny.table(tiny.examples("bert", 8, classes=2))
    words = {"processing_class": tokenizer()}
    teacher = tiny.classifier("bert", 1, classes=2, **names)
    tiny.train(tmp_path, add_adapter(plain, LORA), teacher, rows, trainer=words).save_model()
    merged = AutoModelForSequenceClassification.from_pretrained(ensure_merged(tmp_path))
    assert merged.config.id2label == names["id2label"]
    assert read_record(tmp_path).config["id2label"] == {"0": "no", "1": "yes"}


def test_an_older_adapter_in_the_output_folder_ends_the_run_before_it_begins(folder):
    """It would be pushed with the new student and put on it."""
    with pytest.raises(ConfigError, match="holds the adapter of an earlier run"):
        refuse_older_adapter(tiny.classifier("bert", 0), folder)
    refuse_older_adapter(add_adapter(tiny.classifier("bert", 0), LORA), folder)


def test_an_unfinished_adapter_run_points_to_its_last_checkpoint(folder):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"its last checkpoint is .*checkpoint-2"):
        check_folder(folder)


# ---- Where things came from


class Info:
    """What `datasets` notes of a table."""

    def __init__(self, *sources):
        self.info = SimpleNamespace(download_checksums=dict.fromkeys(sources) or None)
        self.cache_files = []


def test_the_commit_of_data_is_what_was_noted_when_they_were_read():
    """The id too: old names of one word are moved."""
    rows = Info(f"hf://datasets/stanfordnlp/imdb@{SHA}/plain_text/train.parquet")
    found = {"name": "stanfordnlp/imdb", "revision": None, "commit": SHA}
    assert origin.hub_origin("imdb", None, {"train": rows}) == found
    cached = Info()
    cached.cache_files = [{"filename": f"/cache/org___x/default/0.0.0/{SHA}/x-train.arrow"}]
    assert origin.hub_origin("org/x", "v1", {"train": cached}) == {"name": "org/x", "revision": "v1", "commit": SHA}
    assert origin.hub_origin("org/x", SHA, {})["commit"] == SHA
    assert origin.hub_origin("org/x", None, {"train": Info()})["commit"] is None


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("?"), RuntimeError("anything")])
def test_a_stream_whose_commit_nobody_tells_is_no_failure(monkeypatch, error):
    """A number for the record is never worth a run."""

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(origin.HfApi, "dataset_info", refuse)
    stream = datasets.Dataset.from_dict({"x": [1]}).to_iterable_dataset()
    assert origin.hub_origin("org/x", None, {"train": stream}) == {"name": "org/x", "revision": None, "commit": None}


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ({"model": "org/s", "revision": "v2"}, ("org/s", "v2")),
        ({"model": "org/s"}, ("org/s", "main")),
        ({"model": "org/s", "processor": "org/p"}, ("org/p", None)),
        ({"config": {"model_type": "bert"}}, ("org/t", "v1")),
    ],
)
def test_the_processor_is_of_the_revision_of_its_model(student, expected):
    """A tokenizer of `main` under a teacher of last year."""
    config = parse_config(
        {
            "output_dir": "x",
            "student": student,
            "data": {"name": "org/d"},
            "teacher": {"model": "org/t", "revision": "v1"},
            "method": "kd",
        }
    )
    name, options = processor_source(config)
    assert (name, options.get("revision")) == expected


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [({}, "org/t", "v1"), ({"processor": "org/p"}, "org/p", "main")],
)
def test_the_teachers_own_processor_is_recorded_where_it_reads_its_own(given, name, revision):
    """Only then: else it reads the student's, which is recorded already."""
    config = parse_config(
        {
            "output_dir": "x",
            "student": {"model": "org/s"},
            "data": {"name": "org/d"},
            "teacher": {"model": "org/t", "revision": "v1", **given},
            "method": "kd",
        }
    )
    task = SimpleNamespace(origin=None)
    found = pulled(config, task, SimpleNamespace(processor=object()))
    assert found["teacher_processor"] == {"name": name, "revision": revision, "commit": None, "local": False}
    assert found["data"] is None
    assert "teacher_processor" not in pulled(config, task, SimpleNamespace(processor=None))


def test_provenance_is_read_back(folder):
    """`distillation.json` is the one file that a card needs."""
    path = folder / "distillation.json"
    data = {"name": "stanfordnlp/imdb", "revision": None, "commit": SHA}
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": data}))
    (folder / "resolved_config.yaml").write_text("data: {name: imdb}\n")
    text = write_card(folder).read_text()
    assert "`imdb`, which is [stanfordnlp/imdb](https://huggingface.co/datasets/stanfordnlp/imdb), at commit" in text
    assert ModelCard(text).data.datasets == ["stanfordnlp/imdb"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": None}))
    assert "huggingface.co/datasets" not in write_card(folder).read_text().split("---", 2)[2]

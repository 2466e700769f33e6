"""Adapter students between a user and the Hub; see `test_hub_adapters.py`."""

import re
import shutil
from pathlib import Path

import datasets
import tiny
import torch
import yaml
from hub_fault_jobs import under
from hub_worker import TEXTS, answers, command, config, image_processor, picture, teacher, tokenizer, upload
from huggingface_hub import HfApi, constants, hf_hub_download
from own_code import build, own_package, register
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from hf_kd.data import load_task

AUTO = {"text": AutoModelForSequenceClassification, "image": AutoModelForImageClassification}
LORA = {"type": "lora", "r": 2, "lora_alpha": 8}
WORDS = "org/text-teacher"
TWO = {0: "negative", 1: "positive"}


def adapter_config(folder, modality, name, *, student, taught_by=None, **training):
    """A configuration whose student is an adapter on a model of the Hub."""
    path = config(folder, modality, name, **training)
    content = yaml.safe_load(path.read_text())
    content["student"] = {**student, "peft": LORA}
    content["teacher"] = taught_by or content["teacher"]
    path.write_text(yaml.safe_dump(content))
    return path


def upload_base():
    """A checkpoint of three other classes, with a tokenizer of its own."""
    base = tiny.classifier("bert", seed=5, classes=3)
    base.push_to_hub("org/base")
    tokenizer().push_to_hub("org/base")
    return base


def origins():
    """Where the data say they are from: as a stream, from a branch, and from the cache without a network."""
    words = tokenizer()
    found = {"stream": load_task("org/text-data", processor=words, streaming=True).origin}
    HfApi().create_branch("org/text-data", repo_type="dataset", branch="old")
    found["branch"] = load_task("org/text-data", revision="old", processor=words).origin
    sha = found["branch"]["commit"]
    found["commit"] = load_task("org/text-data", revision=sha, processor=words).origin
    online, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    try:
        found["offline"] = load_task("org/text-data", processor=words).origin
    finally:
        datasets.config.HF_HUB_OFFLINE = online
    found["local"] = load_task("embedded/digits").origin
    return found


def logits(model, modality):
    if modality == "text":
        inputs = tokenizer()(TEXTS[:3], return_tensors="pt", padding=True)
    else:
        inputs = image_processor()([picture(row) for row in range(3)], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits.tolist()


def trained(base, folder, modality, **kwargs):
    """What the adapter in a run's folder answers on its base, by PEFT alone."""
    assert (folder / "adapter_model.safetensors").is_file(), "the run has failed"
    loaded = AUTO[modality].from_pretrained(base, ignore_mismatched_sizes=True, **kwargs)
    return logits(PeftModel.from_pretrained(loaded, folder), modality)


def publish(folder):
    folder, done = Path(folder), {}
    for modality in ("text", "image"):
        upload(modality)
    tuned, _ = teacher("image")
    torch.nn.init.normal_(tuned.classifier.bias)  # a head that was trained
    tuned.push_to_hub("org/image-teacher")
    base = upload_base()
    saves = {"save_strategy": "steps", "save_steps": 2}
    done["train text"] = command(
        "train", adapter_config(folder, "text", "text", student={"model": "org/base", "processor": WORDS}, **saves)
    )
    done["origins"] = origins()
    done["text logits"] = trained("org/base", folder / "text", "text", num_labels=2)
    done["checkpoint logits"] = trained("org/base", folder / "text" / "checkpoint-2", "text", num_labels=2)
    done["push text"] = command("push", folder / "text", "org/text-lora")
    # ---- The image student is its own teacher, and the Trainer pushes it
    hub = {"push_to_hub": True, "hub_model_id": "org/image-lora", "hub_strategy": "checkpoint"}
    own = {"student": {"model": "org/image-teacher"}, "taught_by": {"model": "self", "sanity_check": False}}
    done["train image"] = command(
        "train", adapter_config(folder, "image", "image", **own, **hub, hub_always_push=True, **saves)
    )
    done["image logits"] = trained("org/image-teacher", folder / "image", "image")
    # ---- One file there already, many files now
    for modality in ("text", "image"):
        sharded = Path(shutil.copytree(folder / modality, folder / f"{modality}-sharded"))
        done[f"single {modality}"] = command("push", sharded, f"org/{modality}-lora-sharded")
        plain = AUTO[modality].from_pretrained(sharded / "merged")
        (sharded / "merged" / "model.safetensors").unlink()
        plain.save_pretrained(sharded / "merged", max_shard_size="4KB")
        done[f"sharded {modality}"] = command("push", sharded, f"org/{modality}-lora-sharded")
    # ---- Folders that hold the adapter alone
    alone = Path(
        shutil.copytree(folder / "text", folder / "alone", ignore=shutil.ignore_patterns("merged", "checkp*"))
    )
    done["alone"] = command("push", alone, "org/text-lora-alone")
    done["checkpoint"] = command("push", folder / "text" / "checkpoint-2", "org/text-lora-checkpoint")
    done |= own_class(folder)
    # ---- Its base moves on
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(1.0)
    base.push_to_hub("org/base")
    done |= faults(folder, alone)
    return done


def own_class(folder):
    """A student whose code goes to the Hub, comes back as a teacher, and again as a student."""
    names = {"id2label": TWO, "label2id": {name: index for index, name in TWO.items()}}
    with own_package(folder / "code") as module:
        register(module)
        rows = tiny.table(tiny.examples("bert", 8, classes=2))
        words = {"processing_class": tokenizer()}
        student = build(module, words=len(tokenizer()), **names)
        rows = rows.map(lambda row: {"input_ids": [word % len(tokenizer()) for word in row["input_ids"]]})
        given = {"push_to_hub": True, "hub_model_id": "org/own", "trainer": words}
        tiny.train(
            folder / "own", student, tiny.classifier("bert", 1, classes=2, **names), rows, **given
        ).push_to_hub()
        done = {"own logits": logits(student, "text"), "own again": command("push", folder / "own", "org/own-again")}
    own = {"model": "org/own", "trust_remote_code": True, "sanity_check": False}
    done["own teacher"] = command("train", _taught(folder, "taught", teacher=own))
    done["own untrusted"] = command("train", _taught(folder, "untrusted", teacher={**own, "trust_remote_code": False}))
    again = {"model": "org/own", "trust_remote_code": True}
    done["own student"] = command("train", _taught(folder, "own-student", student=again))
    done["push own"] = command("push", folder / "own-student", "org/own-student", "--trust-remote-code")
    return done


def _taught(folder, name, **sections):
    path = config(folder, "text", name, max_steps=1)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))
    return path


def faults(folder, alone):
    done = {}

    def bare(name):
        return Path(shutil.copytree(alone, folder / name, ignore=shutil.ignore_patterns("merged")))

    def push(name, where):
        return lambda: command("push", where, f"org/{name}")

    done["moved base"] = push("moved", bare("moved"))()
    older = Path(shutil.copytree(alone, folder / "older"))
    shutil.copy(folder / "text" / "checkpoint-2" / "adapter_model.safetensors", older / "adapter_model.safetensors")
    done["older merged"] = push("older", older)()
    # ---- While the plain student is made
    for kind in ("gated", "unauthorized", "no_repo", "revision_gone"):
        shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--org--base", ignore_errors=True)
        done[kind] = under(kind, "/org/base/", push("refused", bare(kind)))
    shutil.rmtree(Path(constants.HF_HUB_CACHE) / "models--org--base", ignore_errors=True)
    constants.DOWNLOAD_CHUNK_SIZE = 1024
    done["dropped download"] = under("drop_download", "GET /cdn/", push("resumed", bare("resumed")), times=1)
    # ---- While it is sent
    with torch.no_grad():
        other = bare("other")
        plain = AutoModelForSequenceClassification.from_pretrained(alone / "merged")
        plain.classifier.bias.add_(1.0)  # weights that the Hub has not seen
        shutil.copytree(alone / "merged", other / "merged")
        plain.save_pretrained(other / "merged")
    done["dropped upload"] = under("drop_upload", "PUT /lfs/", push("dropped", other), times=1)
    done["slow down"] = under("rate_limited", "POST .*/preupload/", push("slow", other), times=1)
    done["forbidden"] = under("forbidden", "POST .*/commit/", push("half", other))
    done["broken commit"] = under("drop_upload", "POST .*/commit/", push("half", other))
    hub = {"push_to_hub": True, "hub_model_id": "org/lost", "max_steps": 1}
    done["lost push"] = under(
        "forbidden",
        "POST .*/commit/",
        lambda: command("train", adapter_config(folder, "text", "lost", student={"model": "org/base"}, **hub)),
    )
    done["again"] = push("lost", folder / "lost")()
    # ---- Folders that cannot be made whole
    for name, spoil in SPOILT.items():
        broken = bare(f"broken {name}")
        spoil(broken)
        done[name] = push("refused", broken)()
    done["foreign"] = push("refused", foreign(folder / "foreign"))()
    done["mixed"] = push("refused", mixed(folder))()
    return done


def _without_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def _half_weights(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def _of_nothing(folder):
    path = folder / "adapter_config.json"
    path.write_text(re.sub(r'"base_model_name_or_path": "[^"]*"', '"base_model_name_or_path": null', path.read_text()))


def _of_a_lost_folder(folder):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"org/base"', '"/nowhere/base"'))


def _of_another(folder):
    path = folder / "adapter_config.json"
    text = re.sub(r'"revision": "[^"]*"', '"revision": null', path.read_text())
    path.write_text(text.replace('"org/base"', '"org/image-teacher"'))


SPOILT = {
    "no weights": _without_weights,
    "half weights": _half_weights,
    "of nothing": _of_nothing,
    "of a lost folder": _of_a_lost_folder,
    "of another model": _of_another,
}


def foreign(folder):
    """A model that no run of ours wrote."""
    tiny.classifier("bert", seed=1, classes=2).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def mixed(folder):
    """A whole student, saved where an adapter was."""
    mixed = Path(shutil.copytree(folder / "taught", folder / "mixed"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "alone" / name, mixed / name)
    return mixed


def executed(repo, snippet):
    """The names that a snippet of a card leaves behind."""
    card = Path(hf_hub_download(repo, "README.md")).read_text()
    scope = {}
    exec(compile(re.findall(r"```python\n(.*?)```", card, flags=re.S)[snippet], "README.md", "exec"), scope)
    return scope


def card_adapter(repo):
    """The model that the second snippet of a card makes."""
    return executed(repo, 1)["model"]


def first_model(repo):
    """The model in the pipeline that the first one makes."""
    return executed(repo, 0)["classifier"].model


def read():
    """A stranger's first look: a plain pipeline, and the adapter by the card's own words."""
    found = {}
    for modality, repos in (
        ("text", ("text-lora", "text-lora-sharded", "text-lora-alone", "text-lora-checkpoint")),
        ("image", ("image-lora", "image-lora-sharded")),
    ):
        for repo in repos:
            model = card_adapter(f"org/{repo}")
            assert isinstance(model, PeftModel)
            found[repo] = {
                "plain": answers(f"org/{repo}", modality)["logits"],
                "class": type(AUTO[modality].from_pretrained(f"org/{repo}")).__name__,
                "adapter": logits(model, modality),
                "labels": AutoConfig.from_pretrained(f"org/{repo}").id2label,
            }
    for repo in ("own", "own-again", "own-student"):
        found[repo] = logits(first_model(f"org/{repo}"), "text")
    return found

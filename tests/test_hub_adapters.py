"""Adapter students go to a Hub and come back: the plain one for everybody, the adapter for those who have its base."""

import json
import re

import pytest
import torch
from hub_adapter_jobs import TWO, WORDS
from hub_server import READER, WRITER, running_hub
from hub_worker import COLORS
from huggingface_hub import ModelCard
from test_hub import run_job, succeeded

REPOS = ("text-lora", "text-lora-sharded", "text-lora-alone", "image-lora", "image-lora-sharded")
ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def story(hub, tmp_path_factory):
    """`(folder, what each command printed)`."""
    folder = tmp_path_factory.mktemp("adapters")
    return folder, run_job(hub, folder / "home", "hub_adapter_jobs", "publish", folder)[0]


@pytest.fixture(scope="module")
def done(story):
    return story[1]


@pytest.fixture(scope="module")
def loaded(hub, done, tmp_path_factory):
    """What a fresh process with an empty cache gets, by repository."""
    return run_job(hub, tmp_path_factory.mktemp("reader"), "hub_adapter_jobs", "read", token=READER)[0]


def close(found, expected):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("repo", REPOS)
def test_a_plain_pipeline_answers_as_the_trained_student(done, loaded, repo):
    """`pipeline(task, "org/name")` without PEFT in sight is what a student that ships means."""
    modality = repo.split("-")[0]
    succeeded(done, f"train {modality}")
    close(loaded[repo]["plain"], done[f"{modality} logits"])
    assert loaded[repo]["class"].startswith("Bert" if modality == "text" else "ViT")
    names = TWO if modality == "text" else dict(enumerate(COLORS))
    assert loaded[repo]["labels"] == {str(index): name for index, name in names.items()}


@pytest.mark.parametrize("repo", [*REPOS, "text-lora-checkpoint"])
def test_the_snippet_of_the_card_puts_the_adapter_on_its_base(done, loaded, repo):
    """The base had another head, and its `main` has moved on since: the adapter belongs to one commit."""
    modality = "checkpoint" if repo.endswith("checkpoint") else repo.split("-")[0]
    close(loaded[repo]["adapter"], done[f"{modality} logits"])


def test_a_checkpoint_of_an_adapter_is_pushed_as_what_it_was(done, loaded):
    """Not as the end of its run."""
    succeeded(done, "checkpoint")
    close(loaded["text-lora-checkpoint"]["plain"], done["checkpoint logits"])
    assert abs(torch.tensor(done["checkpoint logits"]) - torch.tensor(done["text logits"])).max() > 1e-3


@pytest.mark.parametrize("repo", REPOS)
def test_the_adapter_is_not_at_the_top(hub, done, loaded, repo):
    """There, transformers would put it on the student that has it already, or ask for the base model."""
    names = set(hub.files(f"org/{repo}"))
    assert names >= {"README.md", "config.json", "distillation.json", "results.json", "resolved_config.yaml", *ADAPTER}
    assert not [name for name in names if name.startswith(("adapter_", "merged/", "_"))]
    weights = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    assert (weights == {"model.safetensors"}) != repo.endswith("sharded")
    assert ("model.safetensors.index.json" in names) == repo.endswith("sharded")
    assert "model.safetensors" not in weights or len(weights) == 1


@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_card_says_what_lies_where(hub, done, modality):
    """The plain student is a model of transformers, fine-tuned from its base; PEFT's draft says otherwise."""
    text = hub.text(f"org/{modality}-lora", "README.md")
    data = ModelCard(text).data
    assert data.library_name == "transformers"
    assert data.base_model == ("org/base" if modality == "text" else "org/image-teacher")
    assert data["base_model_relation"] == "finetune"
    assert {"peft", "lora", "knowledge-distillation"} <= set(data.tags)
    assert "More Information Needed" not in text
    assert "### Framework versions" not in text
    assert 'subfolder="adapter"' in text
    assert ("itself without its adapter ([org/image-teacher]" in text) == (modality == "image")
    assert "callable" not in text
    assert "a `lora` adapter of rank 2 and the head" in text


def test_a_processor_from_elsewhere_is_named_with_its_commit(hub, story):
    """Another tokenizer under the same weights is another model."""
    folder, _ = story
    commit = hub.repos["models", WORDS].refs["refs/heads/main"]
    for name in ("environment.json", "distillation.json"):
        found = json.loads((folder / "text" / name).read_text())
        assert found["processor"] == {"name": WORDS, "revision": "main", "commit": commit, "local": False}
    said = f"The processor is that of [{WORDS}](https://huggingface.co/{WORDS}) at commit `{commit}`."
    assert said in hub.text("org/text-lora", "README.md")
    assert "processor is that of" not in hub.text("org/image-lora", "README.md")


@pytest.mark.parametrize("how", ["stream", "branch", "commit", "offline"])
def test_data_know_the_commit_that_they_are(hub, done, how):
    """From what was noted when they were read, so without a network too."""
    commit = hub.repos["datasets", "org/text-data"].refs["refs/heads/main"]
    revision = {"branch": "old", "commit": commit}.get(how)
    assert done["origins"][how] == {"name": "org/text-data", "revision": revision, "commit": commit}
    assert done["origins"]["local"] is None


def test_the_adapter_names_the_commit_of_its_base(hub, done):
    """`main` of `org/base` is another model by now."""
    settings = json.loads(hub.text("org/text-lora", "adapter/adapter_config.json"))
    repo = hub.repos["models", "org/base"]
    assert settings["base_model_name_or_path"] == "org/base"
    assert settings["revision"] in repo.commits
    assert settings["revision"] != repo.refs["refs/heads/main"]


def test_every_commit_of_a_training_that_pushes_holds_a_whole_student(hub, done):
    """The Trainer's own pushes have the adapter at the top and no student."""
    succeeded(done, "train image")
    repo = hub.repos["models", "org/image-lora"]
    trees = [
        tree for tree, message in repo.commits.values() if re.fullmatch(r"Training in progress, step \d", message)
    ]
    assert trees
    for tree in [*trees, repo.commits[repo.refs["refs/heads/main"]][0]]:
        assert {"config.json", "model.safetensors", "README.md", *ADAPTER} <= set(tree)
        assert not [name for name in tree if name.startswith(("adapter_", "merged/"))]
        card = ModelCard(hub.blobs[tree["README.md"][0]].decode())
        assert card.data.library_name == "transformers"
    assert "last-checkpoint/adapter_model.safetensors" in repo.commits[repo.refs["refs/heads/main"]][0]


def test_the_plain_student_is_made_where_it_is_missing(story):
    """`hf-kd push` of what the Trainer alone saved, its base moved on or not."""
    folder, done = story
    succeeded(done, "alone", "moved base", "dropped download")
    assert (folder / "moved" / "merged" / "model.safetensors").read_bytes() == (
        folder / "alone" / "merged" / "model.safetensors"
    ).read_bytes()


def test_a_plain_student_of_another_adapter_is_not_pushed(hub, story):
    """Trained again into the same folder, an older `merged` would be published as the new student."""
    folder, done = story
    succeeded(done, "older merged")
    pushed = hub.files("org/older")["model.safetensors"]
    assert pushed == hub.files("org/text-lora-checkpoint")["model.safetensors"]
    assert pushed != hub.files("org/text-lora")["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gated", ["its base model 'org/base' cannot be loaded", "gated"]),
        ("unauthorized", ["its base model 'org/base' cannot be loaded", "(401)"]),
        ("no_repo", ["its base model 'org/base' cannot be loaded", "no such repository"]),
        ("revision_gone", ["its base model 'org/base' cannot be loaded", "the revision does not exist there"]),
        ("no weights", ["there is no adapter_model.safetensors"]),
        ("half weights", ["adapter_model.safetensors: cannot be read"]),
        ("of nothing", ["does not say of which model"]),
        ("of a lost folder", ["its base model '/nowhere/base' cannot be loaded"]),
        ("of another model", ["org/image-teacher"]),
        ("foreign", ["there is no distillation.json", "hf upload"]),
        ("mixed", ["holds a whole model and the adapter of another run"]),
    ],
)
def test_what_cannot_be_made_whole_is_refused_before_anything_is_sent(hub, done, name, words):
    """Which model is missing, why, and what to do."""
    assert done[name]["code"] == 2, done[name]
    assert all(word in done[name]["err"] for word in words), done[name]["err"]
    assert ("models", "org/refused") not in hub.repos


def test_a_broken_connection_or_a_patient_hub_costs_nothing(hub, done):
    succeeded(done, "dropped upload", "slow down")
    for repo in ("dropped", "slow"):
        assert {"model.safetensors", *ADAPTER} <= set(hub.files(f"org/{repo}"))


def test_a_commit_that_fails_leaves_neither_student_nor_adapter(hub, done):
    """Half of the two would be a student with another one's adapter."""
    for name in ("forbidden", "broken commit"):
        assert done[name]["code"] == 1
        assert "hf-kd push" in done[name]["err"]
    assert hub.files("org/half") == {}


def test_a_training_whose_push_fails_keeps_both_and_says_how_to_push_them(hub, story):
    folder, done = story
    assert done["lost push"]["code"] == 1
    assert "accuracy" in done["lost push"]["out"]
    assert f"hf-kd push {folder / 'lost'} org/lost" in done["lost push"]["err"]
    succeeded(done, "again")
    assert {"model.safetensors", *ADAPTER} <= set(hub.files("org/lost"))


# ---- A class of one's own


def test_code_goes_along_and_runs_elsewhere(hub, done, loaded):
    """In a process that never saw the package, by the card's own words, to the last bit."""
    succeeded(done, "own again")
    for repo in ("own", "own-again"):
        assert {"modeling.py", "layers.py"} <= set(hub.files(f"org/{repo}"))
        torch.testing.assert_close(torch.tensor(loaded[repo]), torch.tensor(done["own logits"]), rtol=0, atol=0)


def test_code_comes_back_as_teacher_and_as_student(hub, done, loaded):
    """Only where it is trusted; and a student of such a class carries it on."""
    succeeded(done, "own teacher", "own student", "push own")
    assert done["own untrusted"]["code"] == 2
    assert "trust_remote_code" in done["own untrusted"]["err"]
    assert {"modeling.py", "layers.py"} <= set(hub.files("org/own-student"))
    assert loaded["own-student"] != loaded["own"]


def test_no_token_is_in_anything_that_was_sent_or_written(hub, story, loaded):
    assert f"Bearer {WRITER}" in hub.secrets
    assert not [name for name, content in hub.blobs.items() if WRITER.encode() in content]
    kept = [path for path in story[0].rglob("*") if path.is_file() and "home" not in path.parts]
    assert [path for path in kept if path.name == "adapter_config.json"]
    assert not [path for path in kept if WRITER.encode() in path.read_bytes()]

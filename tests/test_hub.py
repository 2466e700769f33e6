"""Students go to a Hub and come back: the real clients, over real sockets, against `tests/hub_server.py`.

The clients read `HF_ENDPOINT` when they are imported, so all of this runs in processes of its own: one that publishes,
and a fresh one that knows nothing but the names.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hub_server import READER, WRITER, running_hub
from hub_worker import MARK, answers
from huggingface_hub import ModelCard


def run_job(hub, home, module, job, *arguments, token=WRITER):
    """What `job` of `module` returns, run in a process whose Hub is `hub` and whose caches are in `home`."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**clean, **hub.environment(home, token), "MPLBACKEND": "Agg"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TRANSFORMERS_VERBOSITY": "warning"}
    command = [sys.executable, "-m", "hub_worker", module, job, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert MARK in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    outputs = done.stdout + done.stderr
    assert WRITER not in outputs
    assert READER not in outputs
    return json.loads(done.stdout.rsplit(MARK, 1)[1]), outputs


@pytest.fixture(scope="module")
def hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub, tmp_path_factory):
    """`(folder, what each command printed)`."""
    folder = tmp_path_factory.mktemp("published")
    return folder, run_job(hub, folder / "home", "hub_worker", "publish", folder)[0]


@pytest.fixture(scope="module")
def loaded(hub, published, tmp_path_factory):
    """What a fresh process with an empty cache gets, by repository."""
    return run_job(hub, tmp_path_factory.mktemp("reader"), "hub_worker", "read", token=READER)[0]


def succeeded(done, *names):
    for name in names:
        assert done[name]["code"] == 0, f"{name}: {done[name]['err']}"


def test_a_teacher_and_data_from_the_hub_make_a_student_on_the_hub(hub, published):
    """`hf-kd train` with ids, then `hf-kd push`: what the README promises, with nothing local."""
    folder, done = published
    succeeded(done, "train text", "push text")
    assert "org/text-student/commit/" in done["push text"]["out"]
    pushed = hub.files("org/text-student")
    wanted = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    wanted |= {"results.json", "resolved_config.yaml", "environment.json", "distillation.json", "trainer_state.json"}
    wanted |= {"teacher.json"}
    assert set(pushed) == wanted | {"temperature.png", "loss.png", "per_class.json"}
    assert pushed["model.safetensors"] == (folder / "text" / "model.safetensors").read_bytes()
    assert hub.repos["models", "org/text-student"].private


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("kind", ["student", "sharded"])
def test_a_plain_pipeline_in_a_fresh_process_gives_the_same_logits(published, loaded, modality, kind):
    """The student is what was trained, to the last bit, for whoever has `transformers` alone."""
    here = answers(str(published[0] / modality), modality)
    there = loaded[f"org/{modality}-{kind}"]
    torch.testing.assert_close(torch.tensor(there["logits"]), torch.tensor(here["logits"]), rtol=0, atol=0)
    assert there["said"] == here["said"]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_sharded_push_leaves_no_older_weights_beside_it(hub, published, modality):
    """`from_pretrained` takes `model.safetensors` before the shards: the old student would be loaded for ever."""
    succeeded(published[1], f"single {modality}", f"sharded {modality}")
    names = set(hub.files(f"org/{modality}-sharded"))
    assert "model.safetensors" not in names
    assert "model.safetensors.index.json" in names
    assert sum(name.endswith(".safetensors") for name in names) > 1


def test_each_push_is_one_commit(hub, published):
    """Between two commits of one push anybody would download half a model."""
    repo = hub.repos["models", "org/text-sharded"]
    assert [message for _, message in repo.commits.values()] == ["initial commit", *["Push a distilled student"] * 2]


def test_what_was_written_on_the_hub_survives_the_next_push(hub, published):
    """Cards are edited in the browser; a new student must not cost the text."""
    text = hub.text("org/image-sharded", "README.md")
    assert text.count("Written on the Hub.") == text.count("## Results") == 1
    assert ModelCard(text).data.license == "mit"
    assert "`mit`." in text


def test_pushing_the_same_again_changes_nothing(hub, published):
    succeeded(published[1], "push again")
    messages = [message for _, message in hub.repos["models", "org/text-student"].commits.values()]
    assert messages.count("Push a distilled student") == 2, "one push and one pull request"


def test_a_pull_request_leaves_main_alone(hub, published):
    succeeded(published[1], "pull request")
    assert published[1]["pull request"]["out"].strip().endswith("/org/text-student/discussions/1")
    card = ModelCard(hub.text("org/text-student", "README.md", "refs/pr/1"))
    assert card.data.license == "mit"
    assert ModelCard(hub.text("org/text-student", "README.md")).data.license is None


def test_the_trainer_pushes_to_a_private_branch_with_all_that_belongs_to_it(hub, published):
    """`training.push_to_hub`: upstream pushes before there are results, and never makes the branch."""
    folder, done = published
    succeeded(done, "train image")
    repo = hub.repos["models", "org/image-student"]
    assert repo.private
    assert repo.commits[repo.refs["refs/heads/main"]][0] == {}
    names = set(hub.files("org/image-student", "exp"))
    assert {"results.json", "resolved_config.yaml", "distillation.json", "temperature.png", "loss.png"} <= names
    assert not [name for name in names if name.startswith("checkpoint-")]
    card = hub.text("org/image-student", "README.md", "exp")
    assert 'model="org/image-student", revision="exp"' in card
    assert json.loads((folder / "image" / "results.json").read_text())["test"].keys() >= {"accuracy"}
    assert f"{json.loads((folder / 'image' / 'results.json').read_text())['test']['accuracy']:.4f}" in card


def test_every_pushed_checkpoint_has_our_card(hub, published):
    """A long run is looked at while it runs; upstream's draft would stand there until the end."""
    repo = hub.repos["models", "org/image-student"]
    steps = [tree for tree, message in repo.commits.values() if message.startswith("Training in progress")]
    assert 1 <= len(steps) <= 2  # they run in the background: steps as short as these may overtake one
    for tree in steps:
        assert {"model.safetensors", "config.json", "distillation.json", "resolved_config.yaml"} <= set(tree)
        card = hub.blobs[tree["README.md"][0]].decode()
        assert "knowledge-distillation" in ModelCard(card).data.tags
        assert "generated_from_trainer" not in card


@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_card_names_the_commit_of_the_teacher(hub, published, modality):
    """`main` moves; a student is of the teacher that was there."""
    repo = hub.repos["models", f"org/{modality}-teacher"]
    record = json.loads((published[0] / modality / "distillation.json").read_text())
    assert record["teacher"]["commit"] == repo.refs["refs/heads/main"]
    models = json.loads((published[0] / modality / "environment.json").read_text())["models"]
    assert models["teacher"]["commit"] == record["teacher"]["commit"]
    branch = "main" if modality == "text" else "exp"
    card = ModelCard(hub.text(f"org/{modality}-student", "README.md", branch))
    assert repo.refs["refs/heads/main"] in card.text
    assert f"teacher:org/{modality}-teacher" in card.data.tags
    assert card.data.datasets == [f"org/{modality}-data"]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_data_and_processor_are_named_with_their_commits(hub, published, modality):
    """Data sets are corrected and split anew under the same name; so are tokenizers."""
    data, teacher = (
        hub.repos[kind, f"org/{modality}-{what}"] for kind, what in (("datasets", "data"), ("models", "teacher"))
    )
    commit = data.refs["refs/heads/main"]
    for name in ("environment.json", "distillation.json"):
        found = json.loads((published[0] / modality / name).read_text())
        assert found["data"] == {"name": f"org/{modality}-data", "revision": None, "commit": commit}
        assert found["processor"]["commit"] == teacher.refs["refs/heads/main"]
    card = ModelCard(hub.text(f"org/{modality}-student", "README.md", "main" if modality == "text" else "exp"))
    assert f"(https://huggingface.co/datasets/org/{modality}-data), at commit `{commit}`" in card.text
    assert {result.dataset_revision for result in card.data.eval_results} == {commit}


def test_private_is_not_taken_for_granted(published):
    """`create_repo(private=True)` does nothing for a repository that is there: the weights would be public."""
    done = published[1]["public"]
    assert done["code"] == 2
    assert "exists and is public" in done["err"]


def test_no_token_is_in_anything_that_was_sent_or_written(hub, published):
    """Tokens are used (the server saw them) and appear nowhere else."""
    assert f"Bearer {WRITER}" in hub.secrets
    assert not [name for name, content in hub.blobs.items() if WRITER.encode() in content]
    kept = [path for path in published[0].rglob("*") if path.is_file() and "home" not in path.parts]
    assert not [path for path in kept if WRITER.encode() in path.read_bytes()]


def test_metadata_pass_the_check_of_the_hub(hub, published):
    """`create_commit` asks the Hub first; a card that it refuses stops every push."""
    assert hub.log.count("POST /api/validate-yaml 200") >= 6
    assert not [line for line in hub.log if re.search("validate-yaml 4", line)]

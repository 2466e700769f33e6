"""Students of a user's own class: their code goes with them, or a package is named, or they are not pushed."""

import json
import re
import shutil

import pytest
import tiny
import torch
from hub_worker import tokenizer
from own_code import build, own_package, register
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from hf_kd import ConfigError
from hf_kd.model_card import write_card
from hf_kd.publish.folder import bundle, check_folder

CODE = {"modeling.py", "layers.py"}


def trained(folder, student, **overrides):
    rows = tiny.table(tiny.examples("bert", 8))
    trainer = tiny.train(
        folder, student, tiny.classifier("bert", 1), rows, trainer={"processing_class": tokenizer()}, **overrides
    )
    trainer.save_model()
    return trainer


def record(folder):
    return json.loads((folder / "distillation.json").read_text())["student"]["code"]


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A student whose code goes with it."""
    folder = tmp_path_factory.mktemp("registered")
    with own_package(folder / "code") as module:
        register(module)
        trained(folder / "run", build(module))
    return folder / "run"


@pytest.fixture
def copied(registered, tmp_path):
    return shutil.copytree(registered, tmp_path / "run")


def test_registered_code_is_saved_and_pushed(registered):
    """Weights without their code are numbers."""
    assert set(bundle(registered)) >= CODE | {"config.json", "model.safetensors"}
    assert record(registered)["carried"]
    check_folder(registered)
    check_folder(registered, trust_remote_code=True)


def test_the_card_says_that_code_is_run(registered):
    """Without `trust_remote_code=True` the snippet stops at a question, or with an error."""
    text = write_card(registered, repo_id="org/own").read_text()
    assert 'pipeline("text-classification", model="org/own", trust_remote_code=True)' in text
    assert "its code lies beside the weights" in text
    assert "pipeline_tag: text-classification" in text


def test_the_snippet_runs_the_code(registered, capsys):
    text = write_card(registered).read_text()
    exec(compile(re.search(r"```python\n(.*?)```", text, flags=re.S)[1], "README.md", "exec"), {})
    assert "LABEL_" in capsys.readouterr().out


def test_code_is_not_run_unasked(copied):
    """A folder from somewhere, pushed, must not do anything here."""
    (copied / "modeling.py").write_text((copied / "modeling.py").read_text() + "\nraise SystemExit('run')\n")
    check_folder(copied)
    with pytest.raises(SystemExit):
        check_folder(copied, trust_remote_code=True)


def _without(name):
    return lambda folder: (folder / name).unlink()


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _without_a_tensor(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_without("modeling.py"), "modeling.py: is missing"),
        (_without("layers.py"), "layers.py: is missing"),
        (_write("modeling.py", "class Other: pass"), "modeling.py: has no class BagConfig"),
        (_write("layers.py", "class Bag(:"), "layers.py: is no Python that could be run"),
        (_write("layers.py", "import helpers_of_mine"), "imports helpers_of_mine, which is no installed package"),
        (_without_a_tensor, "model.safetensors: cannot be read"),
        (_without("model.safetensors"), "there is no model.safetensors"),
    ],
)
def test_code_that_others_could_not_run_is_refused(copied, spoil, words):
    """It works where it was written, and nowhere else."""
    spoil(copied)
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_folder(copied)


def test_a_shard_without_its_tensors_is_refused(copied):
    """An index may promise more than its files hold."""
    tensors = load_file(copied / "model.safetensors")
    names = sorted(tensors)
    (copied / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in names[1:]}, copied / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=re.escape(f"model-1.safetensors: lacks {names[0]}")):
        check_folder(copied)


def test_code_of_the_configuration_alone_is_no_classifier(copied):
    edit(copied, auto_map={"AutoConfig": "modeling.BagConfig"})
    with pytest.raises(ConfigError, match="is no class of transformers"):
        check_folder(copied)


def test_code_without_that_of_the_configuration_is_refused(copied):
    edit(copied, auto_map={"AutoModelForSequenceClassification": "modeling.BagForSequenceClassification"})
    with pytest.raises(ConfigError, match="no code is named for its configuration"):
        check_folder(copied)


def test_code_that_stays_in_its_own_repository_is_not_looked_for_here(copied):
    """Students of a model with remote code, saved by transformers, name the repository it is in."""
    there = {"AutoConfig": "BagConfig", "AutoModelForSequenceClassification": "BagForSequenceClassification"}
    edit(copied, auto_map={name: f"org/own--modeling.{cls}" for name, cls in there.items()})
    for name in CODE:
        (copied / name).unlink()
    check_folder(copied)


# ---- Classes that are not registered


def _nothing(module):
    pass


def _the_model_alone(module):
    module.BagForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")


def _as_something_else(module):
    module.BagConfig.register_for_auto_class()
    module.BagForSequenceClassification.register_for_auto_class("AutoModel")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (_nothing, "BagForSequenceClassification is not registered"),
        (_the_model_alone, "BagConfig is not registered"),
        (_as_something_else, "is registered as AutoModel, which is no classifier"),
    ],
)
def test_a_student_that_nobody_could_load_is_refused_before_training(tmp_path, prepare, words):
    """Not after a night, and not by the first person who tries."""
    with own_package(tmp_path / "code") as module:
        prepare(module)
        with pytest.raises(ConfigError, match=re.escape(words)) as refusal:
            trained(tmp_path / "run", build(module), push_to_hub=True, hub_model_id="org/x")
    assert "register_for_auto_class('AutoModelForImageClassification')" in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_what_was_saved_of_it_is_not_pushed_either(tmp_path):
    with own_package(tmp_path / "code") as module:
        trained(tmp_path / "run", build(module))
        with pytest.raises(ConfigError, match="which is no class of transformers, and its code does not lie beside"):
            check_folder(tmp_path / "run")


def test_a_subclass_that_would_be_loaded_as_its_parent_is_refused(tmp_path):
    """`config.json` has the type of BERT, and transformers would leave the new layer out with a line in the log."""

    class Deeper(BertForSequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            self.extra = torch.nn.Linear(16, 16)

    trained(tmp_path, Deeper(tiny.classifier("bert", 2).config))
    AutoModelForSequenceClassification.from_pretrained(tmp_path)  # it does
    with pytest.raises(ConfigError, match="is a Deeper, which is no class of transformers"):
        check_folder(tmp_path)


def test_weights_that_would_be_left_out_are_refused(tmp_path):
    trained(tmp_path, tiny.classifier("bert", 2))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "extra.weight": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="extra.weight would be left out at every load"):
        check_folder(tmp_path)


def test_a_class_of_an_installed_package_is_named_on_the_card(tmp_path, capsys):
    """Then others can have it, and the snippet takes it from there."""
    with own_package(tmp_path / "code", "bagmodels", distribution=("bag-models", "1.2")) as module:
        trained(tmp_path / "run", build(module))
        code = record(tmp_path / "run")
        assert (code["carried"], code["package"], code["version"]) == (False, "bag-models", "1.2")
        check_folder(tmp_path / "run")
        text = write_card(tmp_path / "run").read_text()
        assert "it comes with the package `bag-models` 1.2" in text
        assert "trust_remote_code" not in text
        exec(compile(re.search(r"```python\n(.*?)```", text, flags=re.S)[1], "README.md", "exec"), {})
        assert "LABEL_" in capsys.readouterr().out


def test_packages_that_the_code_imports_are_named(tmp_path):
    with own_package(tmp_path / "code") as module:
        register(module)
        path = tmp_path / "code" / "ownmodels" / "layers.py"
        path.write_text(f"import yaml\n{path.read_text()}")
        trained(tmp_path / "run", build(module))
    assert record(tmp_path / "run")["imports"] == ["yaml"]
    assert "It imports `yaml`, which must be installed." in write_card(tmp_path / "run").read_text()

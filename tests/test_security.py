"""What comes from elsewhere is data: nothing in it runs, leaves its folder, or learns the user's token."""

import io
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig

import hf_kd
from hf_kd.data import load_task
from hf_kd.data.wordpiece import train_wordpiece
from hf_kd.experiment import load_config, parse_config, run_experiment
from hf_kd.experiment.config import StudentSection, TeacherSection
from hf_kd.experiment.evaluation import evaluate_model
from hf_kd.experiment.run_folder import evaluate_run
from hf_kd.label_map import read_mapping
from hf_kd.publish import push_folder
from hf_kd.publish.folder import bundle
from hf_kd.publish.push import check_local
from hf_kd.registry import ConfigError
from hf_kd.teacher import load_teacher

PACKAGE = Path(hf_kd.__file__).parent
QUICK = {
    "max_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}
TINY = {
    "student": {"config": {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
    "data": {"name": "embedded/digits", "max_samples": 40},
    "objective": {"ce_weight": 1.0, "kd_weight": 0.0},
    "training": QUICK,
}


class Planted:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    """Where a pickle that was run leaves its trace."""
    return tmp_path / "it-ran"


def plant(path, trace):
    """A pickle, in torch's form where the name is of such a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".pt", ".bin", ".pth"):
        torch.save({"weight": Planted(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Planted(trace)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with two checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "run"
    student = {**TINY["student"]["config"], "patch_size": 4}
    run_experiment({**TINY, "student": {"config": student}, "output_dir": str(folder)})
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run, to be tampered with."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_the_planted_pickle_works(trace, tmp_path):
    """Else nothing below would prove anything."""
    plant(tmp_path / "x.bin", trace)
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert trace.exists()


# ---- Source


def calls(pattern):
    return [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line) and "testing" not in path.parts
    ]


def test_the_package_itself_reads_no_pickle_and_runs_no_text():
    """One `torch.load` or `yaml.load` in a corner undoes all else here."""
    assert calls(r"torch\.load\(|pickle\.loads?\(|import joblib|allow_pickle=True|np\.load\(") == []
    assert calls(r"yaml\.(load|full_load|unsafe_load)\(|(?<![.\w])(eval|exec)\(|os\.system|shell=True") == []
    assert calls(r"trust_remote_code\s*(:\s*bool)?\s*=\s*True(?![`\x22])|extractall\(") == []


def test_remote_code_and_pickled_weights_are_off_unless_asked_for():
    """Every section, and every function that loads a model."""
    for section in (TeacherSection(model="x/y"), StudentSection(model="x/y")):
        assert (section.trust_remote_code, section.use_safetensors) == (False, True)
    for function in (load_teacher, evaluate_model):
        assert function.__kwdefaults__["trust_remote_code"] is False
        assert function.__kwdefaults__["use_safetensors"] is True
    assert push_folder.__kwdefaults__["trust_remote_code"] is False


# ---- Files that are read as text


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]"])
def test_yaml_makes_no_objects(tag, trace, tmp_path, monkeypatch):
    """A configuration, an override, a map of classes."""
    text = tag.format(trace)
    path = tmp_path / "x.yaml"
    path.write_text(f"seed: {text}\n")
    with pytest.raises(ConfigError):
        load_config(path)
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError):
        load_config(path, [f"seed={text}"])
    path.write_text(f"a: {text}\n")
    with pytest.raises(ValueError, match="neither JSON nor YAML"):
        read_mapping(path)
    assert not trace.exists()


def test_the_notes_of_a_run_make_no_objects(copy, trace):
    """`hf-kd evaluate FOLDER` reads the resolved configuration of somebody else's run."""
    (copy / "resolved_config.yaml").write_text(f"data: !!python/object/apply:os.mkdir [{trace}]\n")
    with pytest.raises(ConfigError):
        evaluate_run(copy)
    assert not trace.exists()


# ---- Pickles

LEFT_IN_A_MODEL = ("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "vocab.pkl")


@pytest.mark.filterwarnings("ignore")
def test_pickles_beside_a_model_are_not_read(copy, trace, tmp_path):
    """As teacher, as student, in an evaluation and in a push."""
    for name in LEFT_IN_A_MODEL:
        plant(copy / name, trace)
    teacher = {"model": str(copy), "sanity_check": False}
    config = {**TINY, "teacher": teacher, "output_dir": str(tmp_path / "new"), "student": {"model": str(copy)}}
    del config["objective"]
    run_experiment({**config, "method": {"name": "kd"}})
    evaluate_model(str(copy), "embedded/digits")
    check_local(copy)  # what `hf-kd push` does before it talks to the Hub
    assert not set(bundle(copy)) & set(LEFT_IN_A_MODEL), "nor handed on to others"
    assert not trace.exists()


def test_pickled_weights_alone_are_refused(copy, trace, tmp_path):
    """A folder that has no others must not make anyone read them."""
    (copy / "model.safetensors").unlink()
    plant(copy / "pytorch_model.bin", trace)
    config = {**TINY, "output_dir": str(tmp_path / "new")}
    with pytest.raises(ConfigError, match=r"student\.model: .*safetensors"):
        run_experiment({**config, "student": {"model": str(copy)}})
    with pytest.raises(OSError, match="safetensors"):
        load_teacher(str(copy))
    with pytest.raises(ConfigError, match="safetensors"):
        evaluate_model(str(copy), "embedded/digits")
    assert not trace.exists()


RESUMED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RESUMED)
def test_a_pickle_in_a_checkpoint_is_not_run(name, copy, trace):
    """Checkpoints are copied between machines and people; what cannot be read without running it is refused."""
    checkpoint = copy / "checkpoint-1"
    shutil.rmtree(copy / "checkpoint-2")
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    plant(checkpoint / name, trace)
    again = {**yaml.safe_load((copy / "resolved_config.yaml").read_text()), "output_dir": str(copy)}
    again["training"] = {**QUICK, "resume_from_checkpoint": True}
    if name == "training_args.bin":  # nobody needs it
        run_experiment(again)
    else:
        with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
            run_experiment(again)
    assert not trace.exists()


def test_pickles_are_no_rows(trace, tmp_path):
    """`datasets` reads pandas pickles if it is left to choose."""
    tokenizer = train_wordpiece(["good film", "bad film"], vocab_size=40, max_length=16)
    for name in ("train.pkl", "train.pickle", "train.pt", "data.bin"):
        folder = tmp_path / name.replace(".", "-")
        plant(folder / name, trace)
        for source in (folder, folder / name):
            with pytest.raises(ValueError, match=r"`load_task\("):
                load_task(source, processor=tokenizer, cache_dir=tmp_path / "cache")
    assert not trace.exists()


# ---- Code


def test_code_in_a_model_folder_is_not_imported(copy, trace, tmp_path):
    """`auto_map` names a file of the folder, which `from_pretrained` would import if it were told to."""
    code = f"import os\nos.mkdir({str(trace)!r})\n"
    config = AutoConfig.from_pretrained(copy)
    config.auto_map = {"AutoConfig": "own.Own", "AutoModelForImageClassification": "own.Own"}
    config.save_pretrained(copy)
    text = (copy / "config.json").read_text().replace('"model_type": "vit"', '"model_type": "own_kind"')
    (copy / "config.json").write_text(text)
    for name in ("own.py", "setup.py", "conftest.py", "sitecustomize.py"):
        (copy / name).write_text(code)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        evaluate_model(str(copy), "embedded/digits")
    config = {**TINY, "output_dir": str(tmp_path / "new"), "student": {"model": str(copy)}}
    with pytest.raises(ConfigError, match="trust_remote_code"):
        run_experiment(config)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_teacher(str(copy))
    assert not trace.exists()


def test_scripts_in_a_data_folder_are_not_run(trace, tmp_path):
    """Data sets came as scripts once: `rows/rows.py`."""
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(f"import os\nos.mkdir({str(trace)!r})\n")
    tokenizer = train_wordpiece(["good film", "bad film"], vocab_size=40, max_length=16)
    for source in (folder, folder / "rows.py"):
        with pytest.raises(ValueError, match=r"`load_task\("):
            load_task(source, processor=tokenizer, cache_dir=tmp_path / "cache")
    assert not trace.exists()


# ---- Folders


def test_an_archive_of_images_leaves_nothing_outside(tmp_path):
    """A zip file may hold `../../x`; here archives are not unpacked at all."""
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    folder = tmp_path / "set"
    folder.mkdir()
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("../../escaped.png", content.getvalue())
        archive.writestr("/tmp/escaped-from-an-archive.png", content.getvalue())
    with pytest.raises(ValueError):  # noqa: PT011 - whichever reason comes first
        load_task(folder, cache_dir=tmp_path / "cache")
    assert not (tmp_path.parent / "escaped.png").exists()
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-from-an-archive.png").exists()


# ---- Tokens

TOKEN = "hf_" + "aTokenThatNobodyMaySee" * 2


def test_a_token_in_a_configuration_is_refused_and_not_repeated(tmp_path, monkeypatch):
    """What a configuration says is written beside the model and pushed with it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    base = {**TINY, "output_dir": str(tmp_path / "run")}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(base))
    written = [
        lambda: parse_config({**base, "training": {**QUICK, "hub_model_id": f"owner/{TOKEN}"}}),
        lambda: parse_config({**base, "output_dir": TOKEN}),
        lambda: parse_config({**base, "data": {"name": "embedded/digits", "metrics": [TOKEN]}}),
        lambda: parse_config({**base, "training": {**QUICK, "hub_token": TOKEN}}),
        lambda: parse_config({**base, TOKEN: 1}),
        lambda: load_config(path, ["training.run_name=${oc.env:HF_TOKEN}"]),
        lambda: load_config(path, [f"training.hub_token={TOKEN}"]),
    ]
    for attempt in written:
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert TOKEN not in str(caught.value)
        assert "token" in str(caught.value)
    assert os.environ["HF_TOKEN"] == TOKEN

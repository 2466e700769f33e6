"""The section `student`: checkpoints, changed checkpoints, layers of the teacher, adapters; and what is refused."""

import json

import architectures
import pytest
import torch
from peft import PeftModel
from tiny import weights
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, pipeline

from hf_kd import ConfigError, load_teacher
from hf_kd.data import load_task
from hf_kd.experiment import dump_resolved, parse_config, run_experiment
from hf_kd.experiment.build import build_teacher
from hf_kd.experiment.config import StudentSection, TeacherSection
from hf_kd.experiment.student import build_student, provenance

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it

QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "learning_rate": 0.01,
}
PEFT = {"type": "lora", "r": 2}


@pytest.fixture(scope="module")
def digits():
    return load_task("embedded/digits", max_samples=40)


@pytest.fixture(scope="module")
def texts():
    return load_task("embedded/docstrings", max_samples=40)


@pytest.fixture(scope="module")
def checkpoint(digits, tmp_path_factory):
    """A classifier of digits with four layers, as if it was fine-tuned."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ViTConfig(
            image_size=8,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=32,
            id2label=digits.id2label,
            label2id=digits.label2id,
        )
        model = ViTForImageClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    digits.processing_class.save_pretrained(folder)
    return folder


def given(folder, output, **student):
    return {
        "output_dir": str(output / "run"),
        "student": student,
        "teacher": {"model": str(folder), "sanity_check": False},  # of random weights
        "data": {"name": "embedded/digits", "max_samples": 40},
        "method": {"name": "kd"},
        "training": dict(QUICK),
    }


def problems(mapping):
    with pytest.raises(ConfigError) as caught:
        parse_config(mapping)
    return caught.value.problems


def environment(output):
    return json.loads((output / "run" / "environment.json").read_text())["models"]


# ---- A checkpoint with settings changed


def test_fewer_layers_than_the_checkpoint_keep_its_first_ones(digits, checkpoint):
    section = StudentSection(model=str(checkpoint), config={"num_hidden_layers": 2, "hidden_dropout_prob": 0.5})
    model = build_student(section, digits)
    source = weights(load_teacher(str(checkpoint)))
    assert (model.config.num_hidden_layers, model.vit.layers[0].dropout.p) == (2, 0.5)
    torch.testing.assert_close(weights(model), {name: source[name] for name in weights(model)}, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_hidden_layers": 5}, r"student\.config: asks for layers that .* lacks \(vit\.layers\.4\."),
        ({"hidden_size": 8}, r"student\.config: leaves .* with another shape"),
        ({"num_attention_heads": 3}, r"student\.config: "),
    ],
)
def test_settings_that_leave_weights_at_random_are_refused(digits, checkpoint, settings, words):
    """`from_pretrained` loads what fits and fills up the rest in silence."""
    with pytest.raises(ConfigError, match=words):
        build_student(StudentSection(model=str(checkpoint), config=settings), digits)


def test_from_scratch_takes_the_architecture_alone(digits, checkpoint):
    section = StudentSection(model=str(checkpoint), config={"hidden_size": 8}, from_scratch=True)
    model = build_student(section, digits)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.dtype) == (8, 4, torch.float32)
    equal = build_student(StudentSection(model=str(checkpoint), from_scratch=True), digits)
    assert not torch.equal(weights(equal)["vit.layers.0.mlp.fc1.weight"], _source(checkpoint))


def _source(checkpoint):
    return weights(load_teacher(str(checkpoint)))["vit.layers.0.mlp.fc1.weight"]


def test_from_scratch_takes_the_inputs_from_the_data(digits, tmp_path):
    """A checkpoint for 32 pixels fails on 8 in the middle of its first forward."""
    ViTConfig(image_size=32, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        tmp_path
    )
    model = build_student(StudentSection(model=str(tmp_path), from_scratch=True), digits)
    assert (model.config.image_size, model.config.num_labels) == (8, 10)


def test_kinds_of_layers_follow_their_number(tmp_path):
    """ModernBERT lists a kind of attention per layer: with two layers of four its own check refuses the list."""
    task = load_task("embedded/docstrings", max_samples=20)
    source = architectures.build(
        "modernbert", 0, classes=6, num_hidden_layers=4, vocab_size=len(task.processing_class)
    )
    source.save_pretrained(tmp_path)
    section = StudentSection(model=str(tmp_path), config={"num_hidden_layers": 2, "max_position_embeddings": 256})
    model = build_student(section, task)
    assert model.config.layer_types == source.config.layer_types[:2]
    shared = {name: value for name, value in weights(source).items() if name in weights(model)}
    torch.testing.assert_close(weights(model), shared, rtol=0, atol=0)


# ---- Layers of the teacher


def test_layers_of_the_teacher_are_taken_over_and_reported(checkpoint, tmp_path):
    settings = {"num_hidden_layers": 2}
    student = {"model": str(checkpoint), "config": settings, "from_scratch": True, "init_layers": "last"}
    mapping = given(checkpoint, tmp_path, **student)
    mapping["training"]["learning_rate"] = 0.0  # so that the saved student is the one it started as
    result = run_experiment(mapping)
    saved = weights(AutoModelForImageClassification.from_pretrained(tmp_path / "run"))
    source = weights(load_teacher(str(checkpoint)))
    for layer, origin in ((0, 2), (1, 3)):
        name = "vit.layers.{}.mlp.fc1.weight"
        assert torch.equal(saved[name.format(layer)], source[name.format(origin)])
    assert torch.equal(saved["classifier.weight"], source["classifier.weight"])
    line = "Student layers 0 to 1 from teacher layers 2, 3; 40 of 40 tensors copied, 100.0% of 5,530 numbers."
    assert result.student_initialised == environment(tmp_path)["student"]["initialised"] == [line]


def test_layers_that_do_not_fit_are_refused(checkpoint, tmp_path):
    config = {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2, "patch_size": 4, "num_hidden_layers": 2}
    with pytest.raises(ConfigError, match=r"student\.init_layers: .*equal width"):
        run_experiment(given(checkpoint, tmp_path, config=config, init_layers=[0, 1]))


# ---- Adapters


@pytest.mark.parametrize("teacher", ["self", "checkpoint"])
def test_adapter_run_saves_adapter_and_merged_student(digits, checkpoint, tmp_path, teacher):
    """The adapter is for those who have the base, `merged` for everyone else: both answer as the run was scored."""
    mapping = given(checkpoint, tmp_path, model=str(checkpoint), peft={**PEFT, "lora_dropout": 0.1})
    if teacher == "self":
        mapping["teacher"] = {"model": "self", "sanity_check": False}
    result = run_experiment(mapping)
    run = tmp_path / "run"
    plain = AutoModelForImageClassification.from_pretrained(checkpoint)
    adapted = PeftModel.from_pretrained(plain, run).eval()
    merged = AutoModelForImageClassification.from_pretrained(run / "merged").eval()
    pixels = torch.stack([row["pixel_values"] for row in digits.test])
    with torch.no_grad():
        answers = adapted(pixels).logits
        torch.testing.assert_close(merged(pixels).logits, answers, rtol=1e-5, atol=1e-5)
        with adapted.disable_adapter():
            assert (adapted(pixels).logits - answers).abs().max() > 1e-3
    accuracy = (answers.argmax(-1) == digits.test["labels"][:]).float().mean().item()
    assert result.test["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert merged.config.id2label == digits.id2label
    assert len(pipeline("image-classification", str(run / "merged"), device="cpu")(digits.test[0]["image"])) == 5
    found = environment(tmp_path)
    assert found["student"]["parameters"] == result.student_parameters == merged.num_parameters()
    assert found["student"]["trainable_parameters"] < result.student_parameters / 2
    assert ("teacher" in found) == (teacher != "self")
    resolved = (run / "resolved_config.yaml").read_text()
    assert "type: lora" in resolved


def test_self_needs_a_head_that_was_trained(digits, checkpoint):
    """The bias that gives a new head away in Python is not needed here: loading says what it made."""
    model = ViTForImageClassification.from_pretrained(checkpoint, num_labels=3, ignore_mismatched_sizes=True)
    folder = checkpoint / "three"
    model.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"teacher\.model: is `self`, but the head of .*classifier\.bias"):
        build_student(StudentSection(model=str(folder), peft=PEFT), digits, TeacherSection(model="self"))
    assert build_student(StudentSection(model=str(folder), peft=PEFT), digits).config.num_labels == 10


def test_adapter_settings_that_do_not_fit_the_model_are_refused(digits, checkpoint):
    section = StudentSection(model=str(checkpoint), peft={**PEFT, "target_modules": ["nothing"]})
    with pytest.raises(ConfigError, match=r"student\.peft\.target_modules: .*nothing"):
        build_student(section, digits)


# ---- What is read


def test_pickled_weights_are_read_only_if_asked(digits, checkpoint, tmp_path):
    """Unpickling runs code."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"student\.model: .*no weights in the safetensors format"):
        build_student(StudentSection(model=str(tmp_path)), digits)
    with pytest.raises(ConfigError, match=r"teacher\.model: .*no weights in the safetensors format"):
        build_teacher(TeacherSection(model=str(tmp_path)), digits)
    loaded = build_student(StudentSection(model=str(tmp_path), use_safetensors=False), digits)
    torch.testing.assert_close(weights(loaded), weights(model), rtol=0, atol=0)
    assert build_teacher(TeacherSection(model=str(tmp_path), use_safetensors=False), digits).num_parameters()


REMOTE = """
from transformers import ViTConfig, ViTForImageClassification

class OwnConfig(ViTConfig):
    model_type = "own_vit"

class OwnForImageClassification(ViTForImageClassification):
    config_class = OwnConfig
"""


def test_code_of_a_checkpoint_runs_only_if_asked(digits, checkpoint, tmp_path):
    """An architecture of one's own on the Hub comes as code; whether to run it is the user's to say."""
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    model.save_pretrained(tmp_path)
    (tmp_path / "own_model.py").write_text(REMOTE)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own_vit",
        "auto_map": {
            "AutoConfig": "own_model.OwnConfig",
            "AutoModelForImageClassification": "own_model.OwnForImageClassification",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"student\.model: .*trust_remote_code"):
        build_student(StudentSection(model=str(tmp_path)), digits)
    student = build_student(StudentSection(model=str(tmp_path), trust_remote_code=True), digits)
    teacher = build_teacher(TeacherSection(model=str(tmp_path), trust_remote_code=True), digits)
    assert type(student).__name__ == type(teacher).__name__ == "OwnForImageClassification"
    torch.testing.assert_close(weights(student), weights(model), rtol=0, atol=0)


def test_commit_of_what_was_pulled_is_recorded(digits, checkpoint):
    """`main` is another model next month."""
    section = StudentSection(model=str(checkpoint))
    model = build_student(section, digits)
    assert provenance(section, model)["commit"] is None
    model.config._commit_hash = "0" * 40  # as loading from the Hub leaves it
    found = provenance(section, model)
    assert (found["commit"], found["source"], found["dtype"]) == ("0" * 40, str(checkpoint), "float32")


# ---- Refused before anything is loaded


@pytest.mark.parametrize(
    ("student", "teacher", "path"),
    [
        ({}, {}, "student"),
        ({"config": {"model_type": "vit"}, "from_scratch": True}, {}, "student.from_scratch"),
        ({"config": {"model_type": "vit"}, "trust_remote_code": True}, {}, "student.trust_remote_code"),
        ({"config": {"model_type": "vit"}, "revision": "main"}, {}, "student.revision"),
        ({"model": "FOLDER", "config": {"num_hiden_layers": 2}}, {}, "student.config.num_hiden_layers"),
        ({"model": "FOLDER", "config": {"num_hidden_layers": "2"}}, {}, "student.config.num_hidden_layers"),
        ({"model": "FOLDER", "config": {"model_type": "vit"}}, {}, "student.config.model_type"),
        ({"model": "FOLDER", "config": {"num_labels": 3}}, {}, "student.config.num_labels"),
        ({"model": "FOLDER", "init_layers": "odd"}, {}, "student.init_layers"),
        ({"model": "FOLDER", "init_layers": "even"}, None, "student.init_layers"),
        ({"model": "FOLDER", "peft": PEFT, "init_layers": "even"}, {}, "student.peft"),
        ({"model": "FOLDER", "peft": PEFT, "config": {"num_hidden_layers": 2}}, {}, "student.peft"),
        ({"config": {"model_type": "vit"}, "peft": PEFT}, {}, "student.peft"),
        ({"model": "FOLDER", "peft": {"r": 2}}, {}, "student.peft.type"),
        ({"model": "FOLDER", "peft": {"tipe": "lora"}}, {}, "student.peft.tipe"),
        ({"model": "FOLDER", "peft": {"type": "adalora"}}, {}, "student.peft.type"),
        ({"model": "FOLDER", "peft": {**PEFT, "dropout": 0.1}}, {}, "student.peft.dropout"),
        ({"model": "FOLDER", "peft": {**PEFT, "lora_dropout": "0.1"}}, {}, "student.peft.lora_dropout"),
        ({"model": "FOLDER", "peft": {**PEFT, "r": 0}}, {}, "student.peft.r"),
        ({"model": "FOLDER"}, {"model": "self"}, "teacher.model"),
        ({"model": "FOLDER", "peft": PEFT}, {"model": "self", "dtype": "bfloat16"}, "teacher.dtype"),
    ],
)
def test_sections_that_make_no_sense_are_refused(checkpoint, tmp_path, student, teacher, path):
    """Each of these would run, and do something else than what it says."""
    student = {key: str(checkpoint) if value == "FOLDER" else value for key, value in student.items()}
    mapping = given(checkpoint, tmp_path, **student)
    mapping["teacher"] = None if teacher is None else {**mapping["teacher"], **teacher}
    assert path in [line.split(":")[0] for line in problems(mapping)]


@pytest.mark.parametrize(
    "student",
    [
        {"config": {"num_hidden_layers": 2}, "init_layers": [0, 3]},
        {"from_scratch": True, "init_layers": "even"},
        {"peft": {**PEFT, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}},
        {"peft": {"type": "lokr", "r": 2}},
        {"trust_remote_code": True, "use_safetensors": False},
    ],
)
def test_what_makes_sense_is_its_own_resolved_configuration(checkpoint, tmp_path, student):
    """The file that a run leaves behind must be the same run."""
    import yaml

    config = parse_config(given(checkpoint, tmp_path, model=str(checkpoint), **student))
    assert parse_config(yaml.safe_load(dump_resolved(config))).student == config.student


# ---- Settings that are wrong, said at their key

BERT = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 8}
VIT = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
RESNET = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [8, 16], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("base", "changed", "said"),
    [
        (VIT, {"hidden_size": -8}, "hidden_size: must not be negative, got -8."),
        (VIT, {"num_hidden_layers": -1}, "num_hidden_layers: must not be negative, got -1."),
        (RESNET, {"hidden_sizes": [8, -16]}, "hidden_sizes: must not be negative, got [8, -16]."),
        (VIT, {"layer_norm_eps": -1.0}, "layer_norm_eps: must not be negative, got -1.0."),
        (VIT, {"initializer_range": -0.1}, "initializer_range: must not be negative, got -0.1."),
        (VIT, {"attention_probs_dropout_prob": 2.0}, "attention_probs_dropout_prob: is a probability, so it must be"),
        (VIT, {"hidden_act": "gelo"}, "hidden_act: unknown function 'gelo'. Did you mean 'gelu'?"),
        (RESNET, {"layer_type": "x"}, "layer_type: layer_type=x is not one of basic,bottleneck."),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_setting_out_of_range_is_refused_at_its_key(base, changed, said, tmp_path):
    """Fewer layers than none are none, without a word; a dropout above 1 fails in the first training step."""
    with pytest.raises(ConfigError) as caught:
        parse_config(given("owner/teacher", tmp_path, config={**base, **changed}))
    (problem,) = caught.value.problems
    assert problem.startswith(f"student.config.{said}")


def test_what_an_architecture_means_by_a_negative_number_is_taken(tmp_path):
    """-1 relative positions are as many as there are positions; -100 is a label that is ignored."""
    parse_config(given("owner/teacher", tmp_path, config={"model_type": "deberta-v2", "max_relative_positions": -1}))
    parse_config(given("owner/teacher", tmp_path, config={**BERT, "pad_token_id": -1}))


@pytest.mark.parametrize(
    ("base", "changed", "said"),
    [
        (VIT, {"hidden_size": 0}, "hidden_size: 0 makes no model that reads the data ("),
        (VIT, {"num_attention_heads": 0}, "num_attention_heads: 0 makes no model that reads the data (integer div"),
        (VIT, {"patch_size": 16}, "patch_size: 16 makes no model that reads the data (Calculated padded input size"),
        (VIT, {"patch_size": 0}, "patch_size: 0 makes no model that reads the data (integer division"),
        (RESNET, {"depths": []}, "depths: [] makes no model that reads the data (list index out of range)."),
        (RESNET, {"out_features": ["stage9"]}, "out_features: ['stage9'] makes no model that reads the data (out_fea"),
        (
            BERT,
            {"hidden_size": 9},
            "hidden_size: 9 does not go together with num_attention_heads=2, so there is no mo",
        ),
        (BERT, {"max_position_embeddings": 4}, "max_position_embeddings: 4 makes no model that reads the data (The e"),
        (BERT, {"pad_token_id": 10**6}, "pad_token_id: 1000000 makes no model that reads the data (Padding_idx must"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_setting_that_makes_no_model_is_refused_at_its_key(base, changed, said, digits, texts, tmp_path):
    """The library says `list index out of range`, or a shape, and not of which setting."""
    config = parse_config(given("owner/teacher", tmp_path, config={**base, **changed}))
    with pytest.raises(ConfigError) as caught:
        build_student(config.student, texts if base is BERT else digits)
    (problem,) = caught.value.problems
    assert problem.startswith(f"student.config.{said}")


def test_a_setting_on_top_of_a_checkpoint_is_refused_at_its_key(digits, checkpoint):
    """Its other settings are the checkpoint's, which are right."""
    settings = {"num_attention_heads": 0, "hidden_dropout_prob": 0.1}
    for from_scratch in (True, False):
        section = StudentSection(model=str(checkpoint), config=settings, from_scratch=from_scratch)
        with pytest.raises(ConfigError, match=r"student\.config\.num_attention_heads: 0 makes no model"):
            build_student(section, digits)


def test_an_adapter_setting_that_fits_no_layer_is_refused_at_its_key(digits, checkpoint):
    """PEFT says `between 0 and 1`, and not what."""
    for changed in ({"lora_dropout": 1.5}, {"target_modules": ["nothing"]}):
        section = StudentSection(model=str(checkpoint), peft={**PEFT, **changed})
        with pytest.raises(ConfigError, match=rf"student\.peft\.{next(iter(changed))}: .* makes no model"):
            build_student(section, digits)

"""Teachers in 8 and 4 bits: loaded as asked, left where they are, and recognised. Loading needs bitsandbytes."""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from architectures import build, rows
from tiny import Projected, Rows, batch_of, build_trainer, relative_difference
from transformers import ViTConfig, ViTForImageClassification

from hf_kd import ConfigError, DistillationObjective, KDLoss, load_teacher, quantization
from hf_kd.experiment import parse_config, run_experiment
from hf_kd.teacher import FrozenTeacher
from hf_kd.trainer.checks import check_parallelism
from hf_kd.trainer.hub import describe_model
from hf_kd.trainer.identity import digest_of

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes, which is not installed"
)
pytestmark = pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt:UserWarning", "ignore::DeprecationWarning:bitsandbytes", "ignore::FutureWarning:bitsandbytes"
)
CLOSE = {"load_in_8bit": 0.1, "load_in_4bit": 0.5}
"""Relative, to the plain teacher's logits. A weight is rounded to 1/127 of the largest of its row, or to the
nearest of 16 values, 1/10 of its size; through two layers of a random network of width 64."""
WIDE = {"hidden_size": 64, "intermediate_size": 128}
SAVED = {"bert": "BertForSequenceClassification", "vit": "ViTForImageClassification"}


@pytest.fixture
def folder(request, tmp_path):
    """A saved teacher of the architecture `request.param`."""
    build(request.param, 1, **WIDE).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


both = [
    pytest.mark.parametrize("folder", SAVED, indirect=True),
    pytest.mark.parametrize("bits", CLOSE),
    needs_bitsandbytes,
]


def every(marks):
    def apply(function):
        for mark in marks:
            function = mark(function)
        return function

    return apply


def architecture(folder):
    return json.loads((folder / "config.json").read_text())["model_type"]


def inputs_for(name):
    batch = batch_of(rows(name, 8))
    batch.pop("labels")
    return batch


@torch.no_grad()
def answers(model, name):
    return model.eval()(**inputs_for(name)).logits


@every(both)
def test_a_quantised_teacher_answers_nearly_what_the_plain_one_does(folder, bits):
    """Its head stays as it was: losses on features read its weight, and five classes fit no block of 4-bit weights."""
    name = architecture(folder)
    model = load_teacher(str(folder), **{bits: True})
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"load_in_8bit": "Linear8bitLt", "load_in_4bit": "Linear4bit"}[bits] in kinds
    assert type(model.classifier) is torch.nn.Linear
    expected = answers(load_teacher(str(folder)), name)
    found = answers(model, name)
    assert found.isfinite().all()
    assert 1e-4 < relative_difference(found, expected) < CLOSE[bits]
    # against the weights that it does hold
    plain = answers(load_teacher(str(folder), **{bits: True}).dequantize().float(), name)
    assert relative_difference(found, plain) < 0.05  # inputs are rounded to 8 bits, or products to half precision


@every(both)
def test_a_quantised_teacher_is_neither_moved_nor_cast(folder, bits, monkeypatch):
    """bitsandbytes refuses a cast, and on some devices to be moved; inputs go where the model is."""
    name = architecture(folder)
    model = load_teacher(str(folder), **{bits: True})
    for method in ("to", "float", "half", "cuda"):
        monkeypatch.setattr(model, method, lambda *_, **__: pytest.fail("it was moved or cast"))
    packed = {key: value.dtype for key, value in model.named_parameters() if not value.is_floating_point()}
    assert packed
    teacher = FrozenTeacher(model, build(name, 0))
    logits = teacher.logits(inputs_for(name), Accelerator(cpu=True))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, answers(model, name))
    assert packed == {key: value.dtype for key, value in model.named_parameters() if not value.is_floating_point()}
    assert not any(value.requires_grad for value in model.parameters())


@every(both)
def test_a_quantised_teacher_is_told_from_others_and_from_itself_never(folder, bits):
    """On a CPU, 4-bit weights are packed anew in the first pass, and unpacked with a loss for whoever asks for the
    state: a digest of it refused every resume, and changed the teacher at each checkpoint."""
    name = architecture(folder)
    model, plain = load_teacher(str(folder), **{bits: True}), load_teacher(str(folder))
    before = digest_of(model)
    first = answers(model, name)
    assert digest_of(model) == before == digest_of(load_teacher(str(folder), **{bits: True}))
    assert before != digest_of(plain)
    assert torch.equal(answers(model, name), first)  # looking at it changed nothing
    other = folder.parent / "other"
    build(name, 2, **WIDE).save_pretrained(other)
    assert digest_of(load_teacher(str(other), **{bits: True})) != before
    described = describe_model(model)
    assert described["parameters"] == describe_model(plain)["parameters"]
    assert described["quantization"] == {"load_in_8bit": "8-bit", "load_in_4bit": "4-bit nf4"}[bits]
    assert "quantization" not in describe_model(plain)


@every(both)
def test_a_student_learns_from_a_quantised_teacher_and_is_resumed(folder, bits, tmp_path):
    """Also from its features; and the plain teacher is another one."""
    name = architecture(folder)

    def trainer(place, **teacher):
        losses = [(1.0, KDLoss(4.0)), (0.5, Projected())]
        return build_trainer(
            tmp_path / place,
            build(name, 0),
            load_teacher(str(folder), **teacher),
            Rows(rows(name, 8)),
            trainer={"objective": DistillationObjective(losses, ce_weight=0.5, kd_weight=1.0)},
            num_train_epochs=2,
            save_strategy="epoch",
        )

    whole = trainer("whole", **{bits: True})
    whole.train()
    manifest = json.loads((tmp_path / "whole" / "checkpoint-2" / "distillation_manifest.json").read_text())
    assert manifest["run"]["teacher"]["quantization"].startswith(bits[8])
    assert all(torch.isfinite(torch.tensor(r["loss"])) for r in whole.state.log_history if "loss" in r)
    resumed = trainer("resumed", **{bits: True})
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="teacher.quantization"):
        trainer("plain").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


def configuration(tmp_path, **teacher):
    """A run on the digits, with a teacher that was saved beside it."""
    if not (tmp_path / "teacher").is_dir():
        names = {i: str(i) for i in range(10)}
        config = ViTConfig(
            **WIDE, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, num_channels=3,
            id2label=names, label2id={v: k for k, v in names.items()},
        )  # fmt: skip
        ViTForImageClassification(config).save_pretrained(tmp_path / "teacher")
    return {
        "output_dir": str(tmp_path / "run"),
        "student": {"config": {"model_type": "vit", "hidden_size": 8, "num_attention_heads": 2,
                               "num_hidden_layers": 1, "patch_size": 4}},
        "teacher": {"model": str(tmp_path / "teacher"), "sanity_check": False, **teacher},
        "data": {"name": "embedded/digits", "labelled": 200},
        "method": {"name": "kd"},
        "training": {"max_steps": 2, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 256,
                     "dataloader_pin_memory": False, "disable_tqdm": True, "use_cpu": True},
    }  # fmt: skip


@needs_bitsandbytes
@pytest.mark.parametrize("bits", CLOSE)
def test_the_configuration_asks_for_bits(bits, tmp_path):
    """The whole way: load, check the inputs, train, save, describe."""
    assert run_experiment(parse_config(configuration(tmp_path, **{bits: True}))).train_steps == 2
    described = [json.loads(path.read_text()) for path in (tmp_path / "run").rglob("*.json")]
    assert any("8-bit" in json.dumps(facts) or "4-bit nf4" in json.dumps(facts) for facts in described)


def problems(tmp_path, change=None, **teacher):
    given = configuration(tmp_path, **teacher)
    if change is not None:
        change(given)
    with pytest.raises(ConfigError) as caught:
        parse_config(given)
    return caught.value.problems


def test_without_bitsandbytes_the_configuration_says_what_to_install(tmp_path, monkeypatch):
    """transformers says it after everything else was loaded, in a traceback."""
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    for bits in CLOSE:
        (said,) = problems(tmp_path, **{bits: True})
        assert said.startswith(f"teacher.{bits}: needs bitsandbytes")
        assert "pip install bitsandbytes" in said
        with pytest.raises(ConfigError, match="pip install bitsandbytes"):
            load_teacher(str(tmp_path / "teacher"), **{bits: True})
    parse_config(configuration(tmp_path, load_in_8bit=False))


def test_what_bits_do_not_go_with_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: SimpleNamespace())
    said = problems(tmp_path, load_in_8bit=True, load_in_4bit=True)
    assert said == ["teacher.load_in_8bit: and load_in_4bit exclude each other: each weight is held once. Remove one."]
    (said,) = problems(tmp_path, lambda given: given["student"].update(init_layers="even"), load_in_4bit=True)
    assert said.startswith("teacher.load_in_4bit: student.init_layers takes over")

    def own(given):
        given["student"] = {"model": str(tmp_path / "teacher"), "peft": {"type": "lora"}}
        given["teacher"]["model"] = "self"

    assert any(
        line.startswith("teacher.load_in_8bit: 'self' is the student")
        for line in problems(tmp_path, own, load_in_8bit=True)
    )

    def stored(given):
        given["teacher"] = {"column": "teacher_logits", "load_in_8bit": True}

    assert any(
        line.startswith("teacher.load_in_8bit: is about a teacher that runs") for line in problems(tmp_path, stored)
    )


def test_a_checkpoint_that_is_quantised_already_is_loaded_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: SimpleNamespace())
    model = build("bert", 0)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="quantised already and loads as it is"):
        load_teacher(str(tmp_path), load_in_8bit=True)


def test_a_quantised_teacher_is_refused_under_zero_3():
    """There, transformers shards whatever is loaded."""
    plugin = SimpleNamespace(zero_stage=3)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    accelerator = SimpleNamespace(num_processes=2, even_batches=True, distributed_type="DEEPSPEED", state=state)
    quantised = SimpleNamespace(is_quantized=True)
    with pytest.raises(ValueError, match="quantised teacher and was launched with DeepSpeed ZeRO-3"):
        check_parallelism(accelerator, quantised)
    check_parallelism(accelerator, SimpleNamespace())
    plugin.zero_stage = 2
    check_parallelism(accelerator, quantised)

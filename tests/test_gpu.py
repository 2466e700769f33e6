"""What only a GPU can show: `pytest -m gpu`. Each test is skipped, in words, where the machine lacks what it needs.

Every launch trains two epochs over the same eight rows, then the second again from a checkpoint, and is compared with
one process on the CPU in float32. `test_launch.py` runs the same code on two processes without a GPU.
"""

import math
from importlib.util import find_spec

import launch_worker
import pytest
import torch
from safetensors.torch import load_file
from test_launch import FILES, launch, way
from tiny import relative_difference
from transformers import AutoModelForSequenceClassification

DEVICES = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICES == 0, reason="needs a CUDA device, and torch sees none"),
    pytest.mark.filterwarnings("default"),  # those of drivers are not ours
]
needs_two = pytest.mark.skipif(DEVICES < 2, reason=f"needs two CUDA devices, and torch sees {DEVICES}")
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed, which is not installed")

FLOAT32 = 1e-4
"""Relative. Sums in another order, and other kernels for softmax and GELU: units of 1e-6, over two steps."""
HALF = {"bf16": 5e-2, "fp16": 1e-2}
"""Relative. A product is rounded to 2^-9 (bf16) or 2^-12 (fp16); a gradient here goes through a dozen of them."""


def one_process(folder, **settings):
    """Two steps, or more, on one process of this machine, and its trainer."""
    trainer = launch_worker.run(folder, **settings)
    return trainer, way(folder)


@pytest.fixture
def expected(tmp_path):
    """What one process on the CPU learns in float32."""
    return one_process(tmp_path / "cpu")[1]


def check_students(folder, expected, tolerance):
    """Both are what the CPU learned, load without a missing key, and the resumed one is the other."""
    for name in ("whole", "resumed"):
        assert relative_difference(way(folder / name), expected) < tolerance
        _, info = AutoModelForSequenceClassification.from_pretrained(folder / name, output_loading_info=True)
        assert not any(info.values()), info
    assert relative_difference(way(folder / "resumed"), way(folder / "whole")) < tolerance


def test_float32_on_one_gpu_is_float32_on_the_cpu(tmp_path, expected):
    trainer, moved = one_process(tmp_path / "gpu", use_cpu=False)
    assert (trainer.accelerator.distributed_type.value, trainer.accelerator.device.type) == ("NO", "cuda")
    assert relative_difference(moved, expected) < FLOAT32


@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_bf16_learns_what_float32_learns(architecture, tmp_path):
    """The teacher is not prepared by accelerate: without autocast of its own it would answer in another precision, or
    not at all."""
    runs = {}
    for name, settings in {"cpu": {}, "gpu": {"use_cpu": False, "bf16": True}}.items():
        trainer = launch_worker.run(tmp_path / name, architecture=architecture, **settings)
        saved = load_file(tmp_path / name / "model.safetensors")
        assert all(value.dtype == torch.float32 for value in saved.values())
        runs[name] = way(tmp_path / name, architecture)
        assert trainer.accelerator.distributed_type.value == "NO"
    assert trainer.accelerator.mixed_precision == "bf16"
    assert relative_difference(runs["gpu"], runs["cpu"]) < HALF["bf16"]


def test_fp16_learns_what_float32_learns_in_the_steps_it_takes(tmp_path):
    """The scaler halves its factor at each step it leaves out, and the rows are the same in all: so many fewer."""
    trainer, moved = one_process(tmp_path / "gpu", use_cpu=False, fp16=True, num_train_epochs=8, learning_rate=0.02)
    assert (trainer.accelerator.distributed_type.value, trainer.accelerator.mixed_precision) == ("NO", "fp16")
    left_out = math.log2(2.0**16 / trainer.accelerator.scaler.get_scale())
    assert left_out == int(left_out) < 8
    _, expected = one_process(tmp_path / "cpu", num_train_epochs=8 - int(left_out), learning_rate=0.02)
    assert relative_difference(moved, expected) < HALF["fp16"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_are_float32_under_autocast(precision, tmp_path):
    """T^2 = 400 times a loss in fp16 leaves its range at 65504, and a KL in bf16 has two digits."""
    settings = {"use_cpu": False, precision: True, "method_kwargs": {"temperature": 20.0}, "num_train_epochs": 1}
    trainer = launch_worker.run(tmp_path / "half", **settings)
    reference = launch_worker.run(tmp_path / "cpu", method_kwargs={"temperature": 20.0}, num_train_epochs=1)
    record, expected = (t.state.log_history[0] for t in (trainer, reference))
    for name in ("ce_loss", "kd_loss"):
        assert record[name] == pytest.approx(expected[name], rel=HALF[precision])


@needs_two
@pytest.mark.parametrize(("name", "tolerance"), [("ddp", FLOAT32), ("ddp_bf16", HALF["bf16"])])
def test_ddp_learns_what_one_process_learns(name, tolerance, tmp_path, expected):
    reports = launch(FILES[name], tmp_path, world=2, use_cpu=False)
    for report in reports.values():
        assert (report["distributed_type"], report["processes"], report["device"]) == ("MULTI_GPU", 2, "cuda")
    check_students(tmp_path, expected, tolerance)


@needs_two
def test_fsdp2_learns_what_one_process_learns(tmp_path, expected):
    reports = launch(FILES["fsdp2"], tmp_path, world=2, use_cpu=False)
    assert {report["distributed_type"] for report in reports.values()} == {"FSDP"}
    check_students(tmp_path, expected, FLOAT32)


@needs_two
@needs_deepspeed
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_deepspeed_learns_what_one_process_learns(name, tmp_path, expected):
    reports = launch(FILES[name], tmp_path, world=2, use_cpu=False)
    assert {report["distributed_type"] for report in reports.values()} == {"DEEPSPEED"}
    check_students(tmp_path, expected, FLOAT32)

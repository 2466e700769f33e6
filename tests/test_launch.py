"""The launch configurations: what accelerate makes of each, and what starts when one is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsdp_worker
import launch_worker
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file
from tiny import TEXT, classifier, relative_difference, update, weights
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

FOLDER = Path(__file__).parents[1] / "configs" / "accelerate"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
LAUNCHED = {  # file -> the launcher's flag, precision, a setting that the file is for
    "multi_cpu": ("multi_gpu", "no", ("use_cpu", True)),
    "ddp": ("multi_gpu", "no", ("use_cpu", False)),
    "ddp_bf16": ("multi_gpu", "bf16", ("use_cpu", False)),
    "fsdp2": ("use_fsdp", "no", ("fsdp_version", 2)),
    "zero2": ("use_deepspeed", "no", ("zero_stage", 2)),
    "zero3": ("use_deepspeed", "no", ("zero_stage", 3)),
}
SECONDS = 300
TOLERANCE = 2e-5
"""Two steps; see `invariance.TOLERANCE`."""


def launch(file, folder, worker=launch_worker, **settings):
    """Run `launch_worker`, or another, under a configuration; its reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += ["--main_process_port", "0", worker.__file__, str(folder), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((folder / "reports.json").read_text())


def way(folder, architecture="bert"):
    """How far the saved student is from where it started."""
    auto = AutoModelForSequenceClassification if architecture in TEXT else AutoModelForImageClassification
    return update(weights(classifier(architecture, 0)), weights(auto.from_pretrained(folder)))


def test_every_file_is_expected():
    assert set(FILES) == set(LAUNCHED)


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_it_as_it_is_meant(name):
    """An unknown key ends the launch; a wrong value of a known one starts another kind of training."""
    load_config_from_file(str(FILES[name]))
    args = launch_command_parser().parse_args(["--config_file", str(FILES[name]), "script.py"])
    args, _, _ = _validate_launch_command(args)
    flag, precision, (setting, value) = LAUNCHED[name]
    assert [f for f in ("multi_gpu", "use_fsdp", "use_deepspeed", "cpu") if getattr(args, f)] == [flag]
    assert (args.num_processes, args.num_machines, args.mixed_precision) == (2, 1, precision)
    assert (getattr(args, setting) or False) == value


def test_fsdp_writes_students_that_can_be_loaded():
    """With a sharded state the Trainer's `save_model` writes nothing, and says nothing."""
    args = launch_command_parser().parse_args(["--config_file", str(FILES["fsdp2"]), "script.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.fsdp_state_dict_type == "FULL_STATE_DICT"
    args = launch_command_parser().parse_args(["--config_file", str(FILES["zero3"]), "script.py"])
    args, _, _ = _validate_launch_command(args)
    assert args.zero3_save_16bit_model is True


def test_two_processes_on_cpus_are_started_and_train_one_student(tmp_path):
    """`--cpu --num_processes 2`, and `distributed_type: MULTI_CPU`, start one process without a word."""
    reports = launch(FILES["multi_cpu"], tmp_path, world=2)
    for report in reports.values():
        assert (report["distributed_type"], report["processes"]) == ("MULTI_CPU", 2)
    launch_worker.run(tmp_path / "one")
    expected = way(tmp_path / "one")
    assert expected.norm() > 1e-2
    for name in reports:
        assert relative_difference(way(tmp_path / name), expected) < TOLERANCE
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_a_sharded_student_learns_is_saved_and_resumed_like_a_whole_one(architecture, tmp_path):
    """Wrapping by transformer blocks, FSDP's usual policy, ends in torch for BERT, whose embeddings are sharded twice;
    and an optimizer without a state cannot be resumed."""
    settings = {"use_cpu": True, "architecture": architecture}
    reports = launch(FILES["fsdp2"], tmp_path, fsdp_worker, world=2, **settings)
    assert [report["distributed_type"] for report in reports.values()] == ["FSDP", "FSDP"]
    launch_worker.run(tmp_path / "one", **settings)
    expected = way(tmp_path / "one", architecture)
    for name in reports:
        assert relative_difference(way(tmp_path / name, architecture), expected) < TOLERANCE

"""SIGTERM on several processes: one checkpoint, after the same step, and no process that waits for another.

The shortest of these is a case of `test_distributed.py`, where two processes run anyway.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sigterm_worker

from hf_kd.trainer.complete import last_complete

SECONDS = 120
FORWARDED = "0:begin+1:begin"  # what torchrun does
EARLY_LATE = "1:end+0:save"
ALONE = ("0:begin", "1:begin", "1:end")


def start(log, *command):
    """Two processes of `torchrun`, as a child of this one."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1"]
    return subprocess.Popen([*launcher, *command], env=environment, stdout=log, stderr=subprocess.STDOUT)


def ended(process):
    """Its exit code; one that hangs is ended first."""
    try:
        return process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(timeout=60)
        raise


def signalled(folder, *cases):
    """Run `sigterm_worker.py`; what each process reports, and the log."""
    with (folder / "log.txt").open("w") as log:
        code = ended(start(log, sigterm_worker.__file__, str(folder), *cases))
    text = (folder / "log.txt").read_text()
    reports = [folder / f"report-{rank}.json" for rank in range(2)]
    assert all(path.is_file() for path in reports), text[-6000:]
    assert code != 0
    assert "exitcode  : 143" in text, text[-3000:]
    return [json.loads(path.read_text()) for path in reports]


def assert_stopped(reports, *cases):
    for report in reports:
        assert list(report) == list(cases)
        for case in cases:
            assert report[case] == {"code": 143, "step": 3, "checkpoints": ["checkpoint-3"]}, case


@pytest.mark.slow
def test_whichever_process_hears_first(tmp_path):
    """A scheduler may signal the first process alone; torchrun signals all of them."""
    cases = (*ALONE, FORWARDED, EARLY_LATE, "0:end+1:save")
    assert_stopped(signalled(tmp_path, *cases), *cases)


@pytest.mark.slow
def test_without_a_group_of_their_own_they_ask_over_the_trainings(tmp_path, monkeypatch):
    """Where gloo is not built in, or finds no network."""
    monkeypatch.setenv("WITHOUT_GROUP", "1")
    assert_stopped(signalled(tmp_path, "1:begin"), "1:begin")


CONFIG = """
output_dir: {folder}
student: {{config: {{model_type: vit, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2,
                     intermediate_size: 16, patch_size: 4, hidden_dropout_prob: 0.1}}}}
data: {{name: embedded/digits, max_samples: 200}}
objective: {{ce_weight: 1.0, kd_weight: 0.0}}
training: {{max_steps: {steps}, per_device_train_batch_size: 4, learning_rate: 0.01, save_strategy: steps,
            save_steps: 100000, lr_scheduler_type: constant, eval_strategy: "no", logging_steps: 50,
            report_to: none, disable_tqdm: true, use_cpu: true, dataloader_pin_memory: false}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "first"])
def test_a_run_of_the_command_line_is_stopped_and_resumed(whom, tmp_path):
    """As a scheduler does it: SIGTERM to torchrun, or to the process that it knows."""
    (tmp_path / "run.yaml").write_text(CONFIG.format(folder=tmp_path / "run", steps=4000))
    with (tmp_path / "log.txt").open("w") as log:
        process = start(log, "-m", "hf_kd", "train", str(tmp_path / "run.yaml"))
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "run" / "environment.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(5)  # into the training
        pids = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        os.kill(process.pid if whom == "launcher" else int(pids[0]), signal.SIGTERM)
        assert ended(process) != 0
    text = (tmp_path / "log.txt").read_text()
    assert "Stopped by SIGTERM after step" in text, text[-4000:]
    last, defects = last_complete(tmp_path / "run")
    assert defects == {}
    step = int(last.name.removeprefix("checkpoint-"))
    assert 0 < step < 4000
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
    ends = []
    for name, resume in (("run", True), ("whole", None)):
        settings = [f"output_dir={tmp_path / name}", f"training.max_steps={step + 20}"]
        settings += ["training.resume_from_checkpoint=true"] if resume else []
        with (tmp_path / "log.txt").open("w") as log:
            code = ended(start(log, "-m", "hf_kd", "train", str(tmp_path / "run.yaml"), *settings))
        assert code == 0, (tmp_path / "log.txt").read_text()[-4000:]
        ends.append((tmp_path / name / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]

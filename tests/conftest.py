"""Offline, deterministic, on one thread: what every test runs under.

The environment is set at import time, before anything imports `transformers`: its caches and offline switches are read
once. Connections to anything but loopback are refused by `pytest-socket` (see `addopts` in `pyproject.toml`).
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

SCRATCH = Path(tempfile.mkdtemp(prefix="hf_kd_tests_"))
os.environ.update(
    HF_HOME=str(SCRATCH / "huggingface"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TORCH_HOME=str(SCRATCH / "torch"),
    MPLCONFIGDIR=str(SCRATCH / "matplotlib"),
    MPLBACKEND="Agg",
    HYPOTHESIS_STORAGE_DIRECTORY=str(SCRATCH / "hypothesis"),
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # for the processes that tests start
)
for variable in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_METRICS_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE"):
    os.environ.pop(variable, None)  # each would win over HF_HOME

import hypothesis  # noqa: E402  (after the environment)
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # tensors here are tiny: a second thread costs time and the order of sums

hypothesis.settings.register_profile("hf_kd", derandomize=True, deadline=None, database=None, max_examples=40)
hypothesis.settings.load_profile("hf_kd")


def pytest_unconfigure(config):
    """Leave nothing behind."""
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture
def generator():
    """A seeded generator of the test's own: no test depends on what ran before it."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_warnings():
    """`warning_once` remembers for the whole process; a test that expects a warning must not depend on the order."""
    yield
    if "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.warning_once.cache_clear()


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory):
    """An untrained ViT for digits, whose classes come in another order than the data's. It is only read."""
    from tiny import classifier

    from hf_kd import load_task

    folder = tmp_path_factory.mktemp("digits") / "teacher"
    names = [str(i) for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    classifier("vit", 9, classes=10, **ids).save_pretrained(folder)
    load_task("embedded/digits", max_samples=40).processing_class.save_pretrained(folder)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """How many rows teachers were asked about, call by call."""
    from hf_kd.teacher import FrozenTeacher

    counted, ask = [], FrozenTeacher.ask

    def counting(self, batch, accelerator):
        counted.append(len(next(iter(batch.values()))))
        return ask(self, batch, accelerator)

    monkeypatch.setattr(FrozenTeacher, "ask", counting)
    return counted

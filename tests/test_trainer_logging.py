"""What a run tells about itself: one record per logging step, sums that add up, and nothing read off the device for it
in between."""

import sys
from pathlib import Path

import pytest
import reference
import torch
from tiny import FROZEN, LogitTable, Rows, classifier, examples, table, train
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import hf_kd

TABLE_ROWS = [
    {"row": index, "labels": label, "teacher_logits": torch.tensor(answers, dtype=torch.float64)}
    for index, (label, answers) in enumerate(zip(reference.LABELS, reference.TEACHER, strict=True))
]


def training_records(trainer):
    return [record for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("labels", ["labelled", "mixed", "unlabelled"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", ["kd", "ctkd", "dtkd", "wttm"])
def test_one_record_per_logging_step_and_its_parts_add_up(method, accumulation, labels, tmp_path):
    """Logging from `compute_loss` gives one record per micro-batch; components logged before weighting, or averaged
    over another number of steps than the loss, never add up."""
    trainer = train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 24, labels)),
        method=method,
        gradient_accumulation_steps=accumulation,
        logging_steps=3,
        num_train_epochs=2,
    )
    records = training_records(trainer)
    steps = 12 // accumulation
    assert [record["step"] for record in records] == list(range(3, steps + 1, 3))
    for record in records:
        assert record["ce_loss"] + record["kd_loss"] == pytest.approx(record["loss"], rel=1e-5)
        assert (record["ce_loss"] == 0) is (labels == "unlabelled")
        parts = [value for key, value in record.items() if key.startswith("kd_loss/")]
        assert len(parts) == (2 if method == "dtkd" else 0)
        if parts:
            assert sum(parts) == pytest.approx(record["kd_loss"], rel=1e-5)


def test_a_window_is_the_mean_of_its_steps(tmp_path):
    """A record of three steps must say what three records of one step say."""
    runs = [
        train(
            tmp_path,
            classifier("bert", 0),
            classifier("bert", 1),
            table(examples("bert", 24, "mixed")),
            method="ctkd",
            logging_steps=every,
        )
        for every in (1, 3)
    ]
    single, windows = (training_records(run) for run in runs)
    for index, window in enumerate(windows):
        steps = single[3 * index : 3 * index + 3]
        for key in ("loss", "ce_loss", "kd_loss", "temperature/student_mean"):
            assert window[key] == pytest.approx(sum(step[key] for step in steps) / 3, rel=1e-5)
        for kind, pick in (("min", min), ("max", max)):
            key = f"temperature/student_{kind}"
            assert window[key] == pick(step[key] for step in steps)


@pytest.mark.parametrize("split", [(4, 1), (2, 2), (1, 4)])
def test_temperatures_of_each_row_are_in_the_record(split, tmp_path):
    """Means of micro-batch means, or the last micro-batch's extremes, are not what the rows had."""
    size, accumulation = split
    trainer = train(
        tmp_path,
        LogitTable(reference.STUDENT),
        None,
        Rows(TABLE_ROWS),
        method="dtkd",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        **FROZEN,
    )
    teachers, students = reference.dtkd_temperatures(reference.STUDENT, reference.TEACHER, 4.0)
    for record in training_records(trainer):
        for side, values in (("teacher", teachers), ("student", students)):
            base = f"temperature/kd_dtkd/{side}"
            assert record[f"{base}_mean"] == pytest.approx(reference.mean(values), rel=1e-6)
            assert record[f"{base}_min"] == pytest.approx(min(values), rel=1e-6)
            assert record[f"{base}_max"] == pytest.approx(max(values), rel=1e-6)
        assert record["temperature/kd_dtkd/guarded"] == 0
        assert record["temperature/kd_constant/student_mean"] == 4.0


def test_sample_weights_are_in_the_record(tmp_path):
    trainer = train(
        tmp_path,
        LogitTable(reference.STUDENT),
        None,
        Rows(TABLE_ROWS),
        method="wttm",
        method_kwargs={"gamma": 0.25},
        **FROZEN,
    )
    expected = reference.mean(reference.power_sums(reference.TEACHER, 0.25))
    assert training_records(trainer)[0]["temperature/weight_mean"] == pytest.approx(expected, rel=1e-6)


def test_train_loss_is_the_mean_over_all_steps(tmp_path):
    """The last window is not logged, but it was trained on."""
    trainer = train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 20)),
        logging_steps=3,
    )
    each = train(tmp_path, classifier("bert", 0), classifier("bert", 1), table(examples("bert", 20)))
    losses = [record["loss"] for record in training_records(each)]
    assert len(losses) == 5
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(sum(losses) / 5, rel=1e-6)


# --- No sync with the device between two logs ------------------------------------------------------------------------

PACKAGE = str(Path(hf_kd.__file__).parent)
PASSED_THROUGH = ("/torch/", "/accelerate/", "/tests/")
READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")
SYNCING = {"_local_scalar_dense", "is_nonzero", "nonzero", "_unique2", "equal", "masked_select"}


class Reads(TorchDispatchMode):
    """Notes each time our code makes the host wait for a value, or for a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.step = 0
        self.seen = []

    def note(self, what):
        frame = sys._getframe(1)
        while frame and any(part in frame.f_code.co_filename for part in PASSED_THROUGH):
            frame = frame.f_back
        if frame and frame.f_code.co_filename.startswith(PACKAGE):
            self.seen.append((self.step, what, f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        by_mask = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        if name in SYNCING or by_mask:
            self.note(name)
        return func(*args, **(kwargs or {}))


class Steps(TrainerCallback):
    """Tells `Reads` which step runs."""

    def __init__(self, reads):
        self.reads = reads

    def on_step_end(self, args, state, control, **kwargs):
        self.reads.step = state.global_step


@pytest.mark.parametrize("method", ["kd", "kd_annealed", "ctkd", "ctkd_instance", "dtkd", "wttm"])
def test_nothing_is_read_off_the_device_between_two_logs(method, tmp_path, monkeypatch):
    """One `.item()` per micro-batch and the GPU waits for Python: a third of the speed on small students."""
    reads = Reads()
    for name in READS:
        original = getattr(torch.Tensor, name)

        def noted(self, *args, _name=name, _original=original, **kwargs):
            reads.note(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, noted)
    with reads:
        trainer = train(
            tmp_path,
            classifier("bert", 0),
            classifier("bert", 1),
            Rows(examples("bert", 48, "mixed")),
            method=method,
            gradient_accumulation_steps=2,
            logging_steps=5,
            max_grad_norm=1.0,
            trainer={"callbacks": [Steps(reads)]},
        )
    assert trainer.state.global_step == 6
    assert any("checks.py" in where for step, _, where in reads.seen if step == 0)  # the first batch
    assert any("telemetry.py" in where for step, _, where in reads.seen if step == 5)  # a log
    assert [read for read in reads.seen if 0 < read[0] < 5] == []

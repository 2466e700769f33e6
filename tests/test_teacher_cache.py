"""A cached teacher teaches what the live one does, to exactly the rows it answered to, or the cache is refused."""

import numpy as np
import pytest
import torch
from tiny import classifier, examples, logits, table, train

from hf_kd import TeacherCache
from hf_kd.teacher_cache import row_keys

ROWS = 24


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert (value - second[name]).abs().max() <= tolerance * scale, name


def run(folder, *, teacher=None, cache=None, rows=None, architecture="bert", seed=0, **overrides):
    rows = table(examples(architecture, ROWS, "mixed")) if rows is None else rows
    student = classifier(architecture, 1)
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "train_sampling_strategy": "random",
        **overrides,
    }
    return train(folder, student, teacher, rows, trainer={"teacher_cache": cache}, seed=seed, **settings)


@pytest.mark.parametrize("architecture", ["bert", "vit"])
@pytest.mark.parametrize("method", ["kd", "ctkd", "dtkd", "wttm", "dist"])
def test_a_cached_run_is_the_live_run(tmp_path, architecture, method):
    teacher = classifier(architecture, 7)
    settings = {"method": method, "gradient_accumulation_steps": 2, "architecture": architecture}
    live = run(tmp_path / "live", teacher=teacher, **settings)
    filled = run(tmp_path / "filled", teacher=teacher, cache=tmp_path / "cache", **settings)
    again = run(tmp_path / "again", cache=tmp_path / "cache", **settings)
    assert filled.state.global_step == 9
    assert_close(weights(live), weights(filled), 1e-4)
    assert_close(weights(filled), weights(again), 0)
    live, again = (run.state.log_history for run in (live, again))
    assert [r["loss"] for r in live if "loss" in r] == pytest.approx(
        [r["loss"] for r in again if "loss" in r], rel=1e-5
    )


def test_stored_logits_are_the_teachers(tmp_path):
    teacher, rows = classifier("bert", 7), examples("bert", ROWS)
    run(tmp_path / "run", teacher=teacher, cache=tmp_path / "cache", rows=table(rows))
    cache = TeacherCache(tmp_path / "cache")
    order = np.random.default_rng(0).permutation(ROWS)
    places = cache.find(row_keys(table(rows))[order])
    torch.testing.assert_close(
        cache.read(places)["teacher_logits"], logits(teacher, rows)[order], rtol=1e-6, atol=1e-6
    )

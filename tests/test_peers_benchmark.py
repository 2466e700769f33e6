"""The comparison with other loops compares the same work, pairs what ran together and says what did not run."""

import atexit
import gc
import json
import sys
from pathlib import Path

import pytest
import torch

from hf_kd.bench import Block

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
AMOUNT = {"batch_size": 4, "steps": 4, "warmup": 1, "repeats": 2}
gc.freeze()  # every block starts with a full collection, which would walk all that was imported
atexit.register(gc.unfreeze)
WHERE = {"device": torch.device("cpu"), "bf16": False}


@pytest.fixture(scope="module")
def peers():
    """The script as a module; its neighbours are imported as when it runs."""
    sys.path.insert(0, str(FOLDER))
    try:
        import peers

        yield peers
    finally:
        sys.path.remove(str(FOLDER))
        for name in [name for name in sys.modules if name == "peers" or name.startswith("peers_")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def pairs(peers):
    image = peers.Pair(True, (16, 1, 2), (32, 2, 2), classes=5, size=8)
    return {"vit": image, "bert": peers.Pair(False, (16, 1, 2), (32, 2, 2), classes=3, size=8, vocabulary=50)}


@pytest.fixture(scope="module", params=["vit", "bert"])
def result(request, peers, pairs):
    return peers.measure(request.param, pairs[request.param], loops=peers.OWN, **AMOUNT, **WHERE)


def test_loops_do_the_same_work(peers, result):
    """A loop on other rows, with another loss, clipping or optimizer, would end elsewhere; ratios would mean nothing.

    Shares of the way that the bare loop's student went: 1e-5 for ours, which sum in the same order; others take the
    logarithm of rounded probabilities, which Adam's division by the size of a gradient can enlarge.
    """
    assert set(result.ends) == set(peers.OWN)
    assert result.failures == {}
    for name in (peers.BARE, peers.ONLINE, peers.CACHED, peers.PLAIN, peers.ALONE):
        assert result.ends[name] < 1e-5, name
    for name in ("guide", "notebook"):
        assert result.ends[name] < 1e-3, name


@pytest.mark.parametrize("weight", ["KD_WEIGHT", "CE_WEIGHT"])
def test_the_teacher_and_the_labels_both_count(peers, pairs, tmp_path, monkeypatch, weight):
    """What ends at the same weights is not two loops that ignore the same half of the loss."""

    def half(work):
        with monkeypatch.context() as patch:
            patch.setattr(peers.own, weight, 0.0)
            return peers.own.bare_loop(work)

    monkeypatch.setattr(peers, "LOOPS", {**peers.LOOPS, peers.BARE: peers.Loop("half of the loss", half)})
    assert settled(peers, pairs["vit"], [peers.BARE, peers.ONLINE], tmp_path).ends[peers.ONLINE] > 0.05


def settled(peers, pair, loops, folder):
    """Where loops end, without timing them."""
    result = peers.Result("", pair, {})
    work = peers.Work(pair, AMOUNT["batch_size"], AMOUNT["warmup"], AMOUNT["steps"], folder=folder, **WHERE)
    assert list(peers.settle(work, loops, result)) == loops
    return result


def test_blocks_rotate_and_every_repeat_has_each_loop_once(peers, result):
    """A loop that always came first would pay for a machine that slows down."""
    by_repeat = [[block for block in result.blocks if block.repeat == repeat] for repeat in range(2)]
    for blocks in by_repeat:
        assert sorted(block.loop for block in blocks) == sorted(peers.OWN)
        assert [block.place for block in blocks] == list(range(len(peers.OWN)))
        assert all(block.steps == 4 and block.rows == 16 for block in blocks)
        assert all(block.seconds > 0 and block.cpu_seconds > 0 for block in blocks)
    assert by_repeat[0][0].loop != by_repeat[1][0].loop


def test_ratios_are_paired_within_a_repeat(peers, pairs):
    """The machine halves its speed in the second repeat: the ratio of medians would say something else."""
    result = peers.Result("vit", pairs["vit"], {"batch_size": 4})
    for repeat, (bare, ours) in enumerate([(1.0, 1.5), (2.0, 3.0), (8.0, 4.0)]):
        result.blocks += [Block("bare", repeat, 0, 2, bare, 2 * bare), Block("hf_kd", repeat, 1, 2, ours, 3 * ours)]
    assert result.ratio("hf_kd", "bare") == pytest.approx((1.5, 1.0, 1.5))
    assert result.ratio("bare", "hf_kd", "cpu_seconds").median == pytest.approx(4 / 9)
    assert result.ratio("hf_kd", "timm") is None
    assert result.step_ms("bare").median == pytest.approx(1000.0)
    summary = result.summary()["hf_kd"]
    assert summary["rows_per_second"] == pytest.approx(4 / 1.5)
    assert list(summary["ratio_to"]) == ["bare", "hf_kd"]


def test_the_table_has_a_row_for_every_loop(peers, result):
    lines = list(peers.table(result))
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + len(peers.OWN)
    assert {line.count("|") for line in rows} == {peers.HEAD.count("|")}
    assert any("seconds to fill the cache" in line for line in lines)
    assert any("mended: `compute_loss` takes" in line for line in lines)


def test_what_cannot_run_has_its_reason_in_the_table(peers, pairs, monkeypatch):
    """A package that is missing, or fails, must not end the comparison of the others, nor vanish from it."""

    def missing(work):
        raise ModuleNotFoundError("No module named 'torchdistill'")

    loops = {**peers.LOOPS, "torchdistill": peers.Loop("torchdistill", missing, package="torchdistill")}
    monkeypatch.setattr(peers, "LOOPS", loops)
    chosen = [peers.BARE, "torchdistill", "txtai"]
    result = peers.measure("vit", pairs["vit"], loops=chosen, **{**AMOUNT, "repeats": 1}, **WHERE)
    assert result.loops == [peers.BARE]
    text = "\n".join(peers.table(result))
    assert "| torchdistill | could not run: ModuleNotFoundError: No module named 'torchdistill' |" in text
    assert "could not run: it is for texts alone" in text


def test_a_loop_of_ours_that_fails_is_not_a_row(peers, pairs, monkeypatch):
    def broken(work):
        raise RuntimeError("ours")

    monkeypatch.setattr(peers, "LOOPS", {**peers.LOOPS, peers.ONLINE: peers.Loop("hf_kd", broken)})
    with pytest.raises(RuntimeError, match="ours"):
        peers.measure("vit", pairs["vit"], loops=[peers.ONLINE], **AMOUNT, **WHERE)


def test_the_command_writes_every_block(peers, pairs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "PAIRS", pairs)
    file = tmp_path / "peers.json"
    options = ["--pairs", "vit", "--loops", "bare", "bare_student", "--batch-sizes", "2", "3", "--device", "cpu"]
    peers.main([*options, "--steps", "1", "--warmup", "1", "--repeats", "2", "--output", str(file)])
    content = json.loads(file.read_text(encoding="utf-8"))
    assert [found["settings"]["batch_size"] for found in content["results"]] == [2, 3]
    assert [len(found["blocks"]) for found in content["results"]] == [4, 4]
    assert content["results"][0]["summary"]["bare"]["end"] == 0
    assert content["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert capsys.readouterr().out.count(peers.HEAD) == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("timm", "vit"), ("torchdistill", "vit"), ("torchdistill", "bert"), ("txtai", "bert")]
)
def test_other_packages_do_the_same_work(peers, pairs, tmp_path, name, kind):
    """Where they are installed; two of them take the logarithm of probabilities."""
    pytest.importorskip(name)
    result = settled(peers, pairs[kind], [peers.BARE, name], tmp_path)
    assert result.ends[name] < (1e-5 if name == "timm" else 1e-3)

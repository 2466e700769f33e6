"""Two processes (gloo) do what one does: the same steps, the same numbers, the same end.

All two-process work is one launch, shared by the tests of this file; a hang ends it.
"""

import os
import subprocess
import sys
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from tiny import classifier, relative_difference, weights

SECONDS = 400
"""After which a launch counts as hanging. It takes about 40 on idle cores."""

TOLERANCE = 1e-5
"""Relative, on the weights' way: float32 sums in another order give 1e-6."""

CASES = worker.cases()
OTHER_CELLS = worker.other_cells()


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory):
    """The folder with the results of every case, run on two processes."""
    return launched(tmp_path_factory.mktemp("two_processes"), "cases")


@pytest.fixture(scope="session")
def other_cells(tmp_path_factory):
    """The folder with the results of the cells that the default run leaves out."""
    return launched(tmp_path_factory.mktemp("other_cells"), "other_cells")


def launched(folder, which):
    """Run `which` cases on two processes into `folder`; returns it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    log = folder / "log.txt"
    with log.open("w") as file:
        launch = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
                *("--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "--local_addr", "127.0.0.1"),
                *(str(Path(worker.__file__)), str(folder), str(SECONDS), which),
            ],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code = launch.wait(timeout=SECONDS + 30)  # the workers end themselves first and say where they were
        except subprocess.TimeoutExpired:
            launch.terminate()  # the launcher then ends its workers
            code = launch.wait(timeout=60)
    if code:
        done = sorted(path.stem for path in folder.glob("*.pt"))
        pytest.fail(f"two processes failed after {done}:\n{log.read_text()[-6000:]}", pytrace=False)
    return folder


@pytest.fixture
def both(request, two_processes, tmp_path):
    """The same case on one process and on two."""
    name = request.param
    return CASES[name](str(tmp_path)), load(two_processes, name)


def load(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=False)


def named(*prefixes):
    return pytest.mark.parametrize("both", [name for name in CASES if name.startswith(prefixes)], indirect=True)


def check_cell(one, two):
    assert [outcome["distributed_type"] for outcome in (one, two)] == ["NO", "MULTI_CPU"]
    assert two["is_equal_everywhere"]
    assert relative_difference(two["update"], one["update"]) < TOLERANCE
    for name in ("loss", "grad_norm"):
        assert two["records"][0][name] == pytest.approx(one["records"][0][name], rel=TOLERANCE)
    for name, value in one["objective"].items():
        torch.testing.assert_close(two["objective"][name], value, rtol=1e-5, atol=2e-6)


@named("cell-")
def test_one_step_is_the_same_for_two_processes_and_two_micro_batches(both):
    """The scale of a step depends on the architecture in the plain Trainer, with processes as with micro-batches.
    14 rows end in a micro-batch that two repeated rows complete. And a launch that went wrong is one process, whose
    step is right by itself."""
    check_cell(*both)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_CELLS)
def test_the_other_cells_are_the_same_on_two_processes(name, other_cells, tmp_path):
    check_cell(OTHER_CELLS[name](str(tmp_path)), load(other_cells, name))


@named("step-", "baseline-", "labels-on-one-process")
def test_one_step_is_the_same_on_two_processes(both):
    """Twice too long a step for heads that normalise by themselves, a mean of means for ragged tails, and an
    `eval_loss` twice as large: what the plain Trainer does, by architecture."""
    one, two = both
    assert relative_difference(two["update"], one["update"]) < TOLERANCE
    assert two["is_equal_everywhere"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
@named("recomputed-")
def test_activation_checkpointing_on_two_processes_is_the_step_of_one_without(both):
    """DDP counts a weight's gradients, and a reentrant pass brings them in a backward pass of its own."""
    one, two = both
    assert two["is_equal_everywhere"]
    assert one["update"].norm() > 1e-2
    assert relative_difference(two["update"], one["update"]) < TOLERANCE


@named("compiled-")
def test_a_compiled_student_on_two_processes_is_the_plain_one_of_one(both):
    """The wrapper that compiles lies around the one that averages: either could be left out, or saved."""
    one, two = both
    assert (one["wrapped"], two["wrapped"]) == ("BertForSequenceClassification", "OptimizedModule")
    assert two["is_equal_everywhere"]
    assert relative_difference(two["update"], one["update"]) < 10 * TOLERANCE  # four steps


@named("relation-", "mixed-relation-")
def test_batch_relations_are_the_same_on_two_processes(both):
    """Each process alone would compare its own half of the rows: another loss, under the same name. 14 rows end in a
    batch that two repeated rows complete; they are no part of the relation."""
    one, two = both
    assert relative_difference(two["update"], one["update"]) < 10 * TOLERANCE
    assert relative_difference(two["learned"], one["learned"]) < 10 * TOLERANCE
    for name, value in one["objective"].items():
        torch.testing.assert_close(two["objective"][name], value, rtol=1e-5, atol=1e-6)
    assert two["is_equal_everywhere"]
    for expected, record in zip(one["records"], two["records"], strict=True):
        for part in (expected, record):
            part.pop("total_flos", None)
        assert record == pytest.approx(expected, rel=2e-4, abs=1e-6)


@named("signal")
def test_a_signal_to_the_last_process_stops_all_after_the_same_step(both):
    """One that stops alone leaves the others waiting for its gradients until the launcher kills them. The run that
    goes on is compared, bit for bit, in each process."""
    assert both == ({"code": 143, "step": 3, "checkpoints": ["checkpoint-3"]},) * 2


def test_the_gradient_of_a_relation_goes_through_the_gather(two_processes):
    """Cut there, every process still answers for half of the relation but pulls its own rows only: half a step."""
    whole, cut = (load(two_processes, name)["update"] for name in ("relation-16", "cut-relation"))
    assert relative_difference(2 * cut, whole) < 1e-3
    assert relative_difference(cut, whole) == pytest.approx(0.5, abs=1e-3)


@named("projector-")
def test_what_is_learned_beside_the_student_is_the_same_on_two_processes(both):
    """Projector and serialisation layer are outside of the wrapper that averages gradients."""
    one, two = both
    tolerance = (
        1e-2 if one["optimizer"].startswith("adam") else 10 * TOLERANCE
    )  # Adam divides a gradient that is all rounding by its own size
    assert relative_difference(two["learned"], one["learned"]) < tolerance
    assert two["is_equal_everywhere"]


@named("trajectory-", "windows", "stream", "split-batches", "dispatch-batches")
def test_training_and_its_records_are_the_same_on_two_processes(both):
    """Rows that only fill up the last batch must weigh nothing: in the step, the components, the temperatures' mean
    and extremes, the teacher's accuracy and the mean loss."""
    one, two = both
    assert relative_difference(two["update"], one["update"]) < 10 * TOLERANCE  # four steps
    for name, value in one["objective"].items():
        torch.testing.assert_close(two["objective"][name], value, rtol=1e-5, atol=1e-6)
    assert two["is_equal_everywhere"]
    assert len(one["records"]) == len(two["records"])
    for expected, record in zip(one["records"], two["records"], strict=True):
        for part in (expected, record):
            part.pop("total_flos", None)  # repeated rows cost the same
        assert record == pytest.approx(expected, rel=2e-4, abs=1e-6)


@named("trajectory-cached")
def test_both_processes_fill_one_cache(both):
    """The other half of the rows missing, or every row twice, would be a hang or a wrong pairing later."""
    one, two = both
    assert one["answers"] == two["answers"] == worker.RAGGED


@pytest.mark.parametrize("method", ["ctkd", "ctkd_instance"])
def test_processes_end_with_the_same_weights_and_temperature(method, two_processes):
    """Calling the bare student instead of its wrapper trains one model per process, and nothing complains; a
    temperature outside the wrapper is nobody's to synchronise."""
    outcome = load(two_processes, f"apart-{method}")
    assert outcome["is_equal_everywhere"]
    start = torch.cat([value.double().flatten() for value in weights(classifier("bert", 0)).values()])
    assert (outcome["learned"][: len(start)] - start).norm() > 1e-2
    first = next(iter(outcome["objective"].values()))
    assert first.numel() > 1 or first != 1.0


@named("evaluated-first-")
def test_an_evaluation_first_does_not_leave_the_student_unwrapped(both):
    """The Trainer's own: after `evaluate()`, `train()` finds the model prepared and trains one per process."""
    one, two = both
    assert two["is_equal_everywhere"]
    assert relative_difference(two["learned"], one["learned"]) < 1e-2  # bfloat16 has three digits


@named("apart-")
def test_the_first_process_initialises_the_objective(both):
    """Averaged or mixed starting points would be a method nobody named."""
    one, two = both
    assert relative_difference(two["learned"], one["learned"]) < 10 * TOLERANCE


@named("evaluation-")
def test_evaluation_is_the_same_on_two_processes(both):
    """Thirteen rows on two processes: three are repeated, and the last batch weighs less."""
    one, two = both
    for expected, metrics in zip(one["metrics"], two["metrics"], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5)
    assert one["metrics"][0]["eval_rows"] == 13
    torch.testing.assert_close(two["predictions"], one["predictions"], rtol=1e-3, atol=1e-4)


@named("head-")
def test_heads_for_several_labels_and_numbers_are_the_same_on_two_processes(both):
    """The Trainer's own count is of entries, not of rows, and of a process's rows alone."""
    one, two = both
    assert two["is_equal_everywhere"]
    assert relative_difference(two["update"], one["update"]) < 10 * TOLERANCE  # two steps
    for expected, record in zip(one["records"], two["records"], strict=True):
        for part in (expected, record):
            part.pop("total_flos", None)  # repeated rows cost the same
        assert record == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert two["metrics"][0] == pytest.approx(one["metrics"][0], rel=1e-4)
    torch.testing.assert_close(two["predictions"], one["predictions"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["kd", "ctkd", "mixing"])
def test_interrupted_run_equals_the_uninterrupted_one_on_two_processes(method, two_processes):
    """Each process has its own half of the logging window and its own random state; and the loader that skips to the
    middle of an epoch no longer knows which rows of its end are repeated. Mixtures, and balanced draws, are those of
    the step and the epoch on each process."""
    outcome = load(two_processes, f"interrupted-{method}")
    whole, resumed = outcome["whole"], outcome["resumed"]
    assert torch.equal(resumed["learned"], whole["learned"])
    assert resumed["records"] == whole["records"]
    assert resumed["train_loss"] == whole["train_loss"]
    assert whole["is_equal_everywhere"]
    assert outcome["loading"] == {}


def test_non_finite_loss_on_one_process_stops_both(two_processes):
    """One process that raises alone leaves the other waiting in a collective until the time-out."""
    outcome = load(two_processes, "broken")
    assert len(outcome["said"]) == 2
    assert outcome["said"][0] == outcome["said"][1]
    assert "`ce_loss` became non-finite in step 2" in outcome["said"][0]
    assert outcome["saved"] == ["checkpoint-1"]

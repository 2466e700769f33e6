"""What a run carries from step to step: the learned temperature, its SGD, checkpoints, and the end of a bad run."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference
import torch
from tiny import (
    FROZEN,
    LogitTable,
    Rows,
    assert_same_run,
    build_trainer,
    classifier,
    examples,
    table,
    train,
    weights,
)
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import hf_kd
from hf_kd import build_objective
from hf_kd.trainer.objective_state import MANIFEST_FILE, STATE_FILE, ObjectiveState

TABLE_ROWS = [
    {"row": index, "labels": label, "teacher_logits": torch.tensor(logits, dtype=torch.float64)}
    for index, (label, logits) in enumerate(zip(reference.LABELS, reference.TEACHER, strict=True))
]


def learn_temperature(folder, rows=TABLE_ROWS, student=None, **keywords):
    """Train a temperature against a student that does not move; returns the trainer."""
    student = LogitTable(reference.STUDENT) if student is None else student
    return train(folder, student, None, Rows(rows), method="ctkd", **{**FROZEN, **keywords})


def raw_of(trainer):
    return trainer.objective.losses[0].temperature.raw.item()


# --- The learned temperature -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight_decay", "after"),
    [(0.0, (0.9999961587, 0.9999215161, 0.9998430322)), (5e-4, (0.9999711587, 0.9998965161, 0.9998180322))],
)
@pytest.mark.parametrize("case", [0, 1, 2])
def test_first_step_goes_where_the_paper_goes(case, weight_decay, after, tmp_path):
    """A lost or doubled sign, an optimizer that rescales, or the student's weight decay: each gives other digits.

    The reversal's strength after 1, 5 and 10 epochs of 10 is what the first of 10, 2 and 1 epochs has."""
    trainer = learn_temperature(
        tmp_path,
        kd_weight=0.9,
        method_kwargs={"curriculum_epochs": (10, 2, 1)[case]},
        temperature_weight_decay=weight_decay,
    )
    assert raw_of(trainer) == pytest.approx(after[case], abs=1.5e-7)  # raw is a float32 near 1


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_temperature_follows_a_float64_loop(schedule, accumulation, tmp_path):
    """Reversal, curriculum, momentum and the schedule's factor together, over ten steps."""
    steps, kd_weight, learning_rate, momentum, curriculum = 10, 0.9, 2.0, 0.9, 0.5
    trainer = learn_temperature(
        tmp_path,
        kd_weight=kd_weight,
        method_kwargs={"curriculum": curriculum},
        temperature_learning_rate=learning_rate,
        temperature_momentum=momentum,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=steps,
        lr_scheduler_type=schedule,
    )
    raw, velocity, temperatures = 1.0, 0.0, []
    for step in range(steps):
        temperature = reference.ctkd_temperature(raw)
        temperatures.append(temperature)
        slope = reference.kd_slope(reference.STUDENT, reference.TEACHER, temperature) * reference.ctkd_slope(raw)
        strength = reference.ctkd_lambda(step / steps, curriculum)
        velocity = momentum * velocity - strength * kd_weight * slope
        factor = 1.0 if schedule == "constant" else 1 - step / steps
        raw -= learning_rate * factor * velocity
    assert abs(raw - 1.0) > 0.04
    assert raw_of(trainer) == pytest.approx(raw, abs=1e-6)  # raw itself is a float32
    logged = [record["temperature/student_mean"] for record in trainer.state.log_history[:-1]]
    assert logged == pytest.approx(temperatures, rel=1e-6)


def test_temperature_makes_a_frozen_students_task_harder(tmp_path):
    """The adversary's promise, seen from outside: with the student held still its loss only rises."""
    trainer = learn_temperature(
        tmp_path, method_kwargs={"curriculum": 0.0}, temperature_learning_rate=5.0, num_train_epochs=8
    )
    losses = [record["kd_loss"] for record in trainer.state.log_history[:-1]]
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] * 1.0001


def test_students_optimizer_and_clipping_leave_the_temperature_alone(tmp_path):
    """Under AdamW the curriculum's factor cancels, and one norm over both lets the student brake the temperature."""
    plain = learn_temperature(tmp_path, num_train_epochs=5)
    other = learn_temperature(tmp_path, num_train_epochs=5, optim="adamw_torch", max_grad_norm=1e-9, weight_decay=0.1)
    assert raw_of(plain) != 1.0
    assert raw_of(other) == raw_of(plain)
    held = [p for group in other.optimizer.param_groups for p in group["params"]]
    assert len(held) == 1
    assert held[0] is other.model.answers


def test_temperature_follows_the_schedule_of_the_users_own_optimizer(tmp_path):
    """Not every scheduler notes the rate it started from, and `args.learning_rate` need not be the optimizer's."""
    expected = raw_of(learn_temperature(tmp_path, num_train_epochs=3))
    student = LogitTable(reference.STUDENT)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-30)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    own = learn_temperature(
        tmp_path,
        student=student,
        num_train_epochs=3,
        learning_rate=0.1,
        eval_strategy="epoch",
        metric_for_best_model="loss",
        trainer={"optimizers": (optimizer, scheduler), "eval_dataset": Rows(TABLE_ROWS)},
    )
    assert raw_of(own) == expected != 1.0


def test_skipped_student_step_skips_the_temperatures_step(tmp_path, monkeypatch):
    """When fp16 overflows, the student stays where it is; a temperature that moved on NaN gradients never returns."""
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: True))
    trainer = learn_temperature(tmp_path, num_train_epochs=3)
    assert raw_of(trainer) == 1.0
    assert trainer.objective.losses[0].temperature.raw.grad is None


def fake_accelerator(**overrides):
    return SimpleNamespace(
        **{"device": torch.device("cpu"), "num_processes": 1, "optimizer_step_was_skipped": False, **overrides}
    )


def one_sgd_step(gradient, accelerator):
    """The raw temperature after one step on `gradient`."""
    objective = build_objective("ctkd")
    state = ObjectiveState(objective, accelerator, learning_rate=0.5, momentum=0.9, weight_decay=0.0)
    raw = objective.temperature_parameters()[0]
    raw.grad = torch.tensor(gradient)
    state.synchronize()
    state.step(0.5)
    return raw.item()


def test_half_precision_gradients_are_unscaled_before_they_are_used():
    """The scaler multiplies the loss by 2^16: a temperature stepped with it is at an end of its interval."""
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 65536.0)
    expected = one_sgd_step(0.25, fake_accelerator())
    assert expected == 1.0 - 0.5 * 0.5 * 0.25
    assert one_sgd_step(0.25 * 65536.0, fake_accelerator(scaler=scaler)) == expected
    off = SimpleNamespace(is_enabled=lambda: False, get_scale=lambda: 65536.0)
    assert one_sgd_step(0.25, fake_accelerator(scaler=off)) == expected


def test_gradients_left_by_a_broken_run_are_forgotten():
    """A run that stopped half-way (out of memory, say) leaves half a gradient on the user's objective."""
    objective = build_objective("ctkd")
    raw = objective.temperature_parameters()[0]
    raw.grad = torch.tensor(1e6)
    ObjectiveState(objective, fake_accelerator(), learning_rate=0.5, momentum=0.9, weight_decay=0.0)
    assert raw.grad is None


# --- Save and resume -------------------------------------------------------------------------------------------------

ROWS = 17  # five steps an epoch, the last of one row
SAVED_AT = 7  # in the second epoch, and between the logs of steps 6 and 9


def long_run(folder, seed, resume=None, *, saved_at=SAVED_AT, dropout=0.1, **overrides):
    """Three epochs of a student with dropout under AdamW; `seed` is the student's."""
    student = classifier("bert", seed, hidden_dropout_prob=dropout)
    given = {
        "num_train_epochs": 3,
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "random",
        "logging_steps": 3,
        "save_strategy": "steps",
        "save_steps": saved_at,
    }
    rows = table(examples("bert", ROWS, "mixed"))
    trainer = build_trainer(folder, student, classifier("bert", 9), rows, **{**given, **overrides})
    return trainer, trainer.train(resume_from_checkpoint=resume)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("kd", {}),
        ("kd_annealed", {}),
        ("ctkd", {}),
        ("ctkd", {"saved_at": 5}),  # at the end of an epoch
        ("ctkd", {"gradient_accumulation_steps": 2, "saved_at": 4}),
        ("ctkd_instance", {}),
        ("dtkd", {}),
        ("wttm", {}),
    ],
    ids=str,
)
def test_interrupted_run_equals_the_uninterrupted_one(method, overrides, tmp_path):
    """A temperature, a momentum or a half-full logging window that starts over: the curves show a dent nobody can
    explain, and the reported train loss is off by the share of the run that was lost."""
    whole = long_run(tmp_path, 0, method=method, **overrides)
    checkpoint = tmp_path / f"checkpoint-{overrides.get('saved_at', SAVED_AT)}"
    resumed = long_run(tmp_path / "resumed", 1, str(checkpoint), method=method, **overrides)
    assert_same_run(resumed, whole)


def test_learned_temperature_and_momentum_are_in_the_checkpoint(tmp_path):
    """Files that the Trainer pushes or copies must be complete, and readable without unpickling anything."""
    from safetensors.torch import load_file

    long_run(tmp_path, 0, method="ctkd", method_kwargs={"curriculum": 0.0})
    tensors = load_file(tmp_path / f"checkpoint-{SAVED_AT}" / STATE_FILE)
    assert {"objective.losses.0.temperature.raw", "momentum.0"} <= set(tensors)
    assert tensors["momentum.0"].abs() > 0
    manifest = json.loads((tmp_path / f"checkpoint-{SAVED_AT}" / MANIFEST_FILE).read_text())
    assert any("CTKDTemperature" in line for line in manifest["objective"])


def test_our_code_never_unpickles_a_file():
    """A pickle from the Hub runs what its author wrote."""
    for path in Path(hf_kd.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("pickle", "load")}, path


def test_resume_without_the_learned_temperature_is_refused(tmp_path):
    """`save_only_model` keeps no optimizer: the student would go on with a temperature that starts over."""
    long_run(tmp_path, 0, method="ctkd", save_only_model=True)
    checkpoint = tmp_path / f"checkpoint-{SAVED_AT}"
    assert not (checkpoint / STATE_FILE).exists()
    with pytest.raises(ValueError, match="learned beside the student .* would start over"):
        long_run(tmp_path, 0, str(checkpoint), method="ctkd", save_only_model=True)


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"method_kwargs": {"temperature": 2.0}}, ["temperature=4.0", "temperature=2.0"]),
        ({"method": "ctkd"}, ["ConstantTemperature", "CTKDTemperature"]),
        ({"kd_weight": 0.5}, ["kd_weight=0.9", "kd_weight=0.5"]),
        ({"method": "dtkd"}, ["ConstantTemperature", "DTKDTemperature"]),
    ],
    ids=str,
)
def test_resume_with_another_objective_is_refused(now, named, tmp_path):
    """Half a run at T=4 and half at T=2 is neither, and no log says so."""
    long_run(tmp_path, 0)
    with pytest.raises(ValueError, match="saved with another objective") as error:
        long_run(tmp_path, 0, str(tmp_path / f"checkpoint-{SAVED_AT}"), **now)
    assert all(name in str(error.value) for name in named)


@pytest.mark.parametrize("name", [STATE_FILE, MANIFEST_FILE])
def test_damaged_state_is_refused_in_words(name, tmp_path):
    """A disk that filled up while saving."""
    long_run(tmp_path, 0, method="ctkd")
    file = tmp_path / f"checkpoint-{SAVED_AT}" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"cannot read `{name}`"):
        long_run(tmp_path, 0, str(file.parent), method="ctkd")


@pytest.mark.parametrize(
    ("architecture", "auto"), [("bert", AutoModelForSequenceClassification), ("vit", AutoModelForImageClassification)]
)
def test_exported_students_are_plain_models(architecture, auto, tmp_path):
    """A teacher or a temperature among the student's weights is dead weight for whoever loads it, and warns them."""
    trainer = train(
        tmp_path,
        classifier(architecture, 0),
        classifier(architecture, 1),
        table(examples(architecture, 8)),
        method="ctkd",
        save_strategy="epoch",
    )
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "checkpoint-2", tmp_path / "final"):
        model, info = auto.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(weights(model), weights(trainer.model), rtol=0, atol=0)
        assert model.config.problem_type == "single_label_classification"
    saved = torch.load(tmp_path / "checkpoint-2" / "optimizer.pt", weights_only=True)
    kept = sum(len(group["params"]) for group in saved["param_groups"])
    assert kept == len(list(trainer.model.parameters()))


# --- The end of a bad run --------------------------------------------------------------------------------------------


def poisoned(step, column):
    """Rows of an image task; those of `step` (batches of 4) hold NaN in `column`."""
    rows = examples("vit", 24)
    answers = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    for index, row in enumerate(rows):
        row["teacher_logits"] = answers[index].tolist()
        if index // 4 + 1 == step:
            row[column] = torch.full_like(torch.tensor(row[column]), torch.nan).tolist()
    return Rows(rows)


@pytest.mark.parametrize("logging_steps", [1, 100])
@pytest.mark.parametrize(
    ("column", "method", "said"),
    [
        ("pixel_values", "kd", "`ce_loss` became non-finite in step 4"),
        ("teacher_logits", "kd", "`kd_loss` became non-finite in step 4 at temperature 4"),
        ("teacher_logits", "ctkd", "`kd_loss` became non-finite in step 4 at temperature 15.6"),
        ("teacher_logits", "dtkd", "`kd_loss/kd_dtkd` became non-finite in step 4"),
    ],
)
def test_non_finite_loss_stops_the_run_and_the_checkpoint_stays(column, method, said, logging_steps, tmp_path):
    """The Trainer's filter replaces NaN by the mean of what came before, and saves ruined weights over good ones."""
    trainer = build_trainer(
        tmp_path,
        classifier("vit", 0),
        None,
        poisoned(4, column),
        method=method,
        logging_steps=logging_steps,
        save_strategy="steps",
        save_steps=2,
    )
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert said in str(error.value)
    assert f"{tmp_path}/checkpoint-2" in str(error.value)
    assert not (tmp_path / "checkpoint-4").exists()
    kept, info = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2", output_loading_info=True)
    assert not info["missing_keys"]
    assert all(value.isfinite().all() for value in kept.state_dict().values())
    assert trainer.state.log_history == [] or all(r["loss"] == r["loss"] for r in trainer.state.log_history)


def test_non_finite_loss_of_the_last_step_is_not_missed(tmp_path):
    """No log and no save comes after it: the run must not end as if all were well."""
    trainer = build_trainer(tmp_path, classifier("vit", 0), None, poisoned(6, "pixel_values"), logging_steps=100)
    with pytest.raises(FloatingPointError, match="in step 6"):
        trainer.train()


@pytest.mark.parametrize("save_only_model", [False, True])
def test_broken_weights_are_not_saved(save_only_model, tmp_path):
    """A step that is too long ruins the weights after a loss that was finite; the next loss comes too late."""
    trainer = build_trainer(
        tmp_path,
        classifier("vit", 0),
        None,
        poisoned(None, "labels"),
        learning_rate=1e38,
        ce_weight=1e4,
        save_strategy="steps",
        save_steps=1,
        save_only_model=save_only_model,
    )
    with pytest.raises(FloatingPointError, match="weights of `model` are non-finite after step 1"):
        trainer.train()
    assert not (tmp_path / "checkpoint-1").exists()

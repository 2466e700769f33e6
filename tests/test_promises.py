"""What users of the Trainer count on, for every method and strategy at once."""

import json

import numpy as np
import pytest
import torch
from test_search import searcher
from test_teacher import observed
from tiny import CLASSES, Projected, arguments, build_trainer, classifier, examples, table, train
from transformers import AutoModelForSequenceClassification

from hf_kd import METHODS, DistillationObjective, DistillationTrainingArguments, KDLoss, build_objective
from hf_kd.temperatures import TEMPERATURES

OF_LABELS_ALONE = ("bernoulli_kl",)  # for several labels per row
NAMED = [name for name in METHODS if name not in OF_LABELS_ALONE]


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if index % 4 == 0 else pytest.mark.slow) for index, name in enumerate(NAMED)],
)
def test_the_parts_of_every_method_add_up_to_the_logged_loss(method, tmp_path):
    """A component that is logged before its weight, or over another number of rows, misleads whoever tunes it."""
    trainer = train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 12, "mixed")),
        method=method,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=3,
    )
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        assert record["ce_loss"] + record["kd_loss"] == pytest.approx(record["loss"], rel=2e-5, abs=1e-6)
        assert all(np.isfinite(value) for value in record.values())
        of_each = [value for key, value in record.items() if key.startswith("kd_loss/") and key.count("/") == 1]
        if of_each:
            assert sum(of_each) == pytest.approx(record["kd_loss"], rel=2e-5, abs=1e-6)
    assert any(record["kd_loss"] > 0 for record in records)


@pytest.mark.parametrize("name", TEMPERATURES)
def test_arguments_with_every_strategy_are_saved_and_make_the_same_objective(name, tmp_path):
    """The Trainer pickles its arguments into every checkpoint and sends their JSON to trackers: an object among them
    ends the run at its first save, and what comes back must be the same method."""
    settings = {"temperature": {"name": name}}
    args = arguments(tmp_path, method="kd", method_kwargs=settings)
    torch.save(args, tmp_path / "training_args.bin")
    loaded = torch.load(tmp_path / "training_args.bin", weights_only=False)
    as_json = json.loads(args.to_json_string())
    again = DistillationTrainingArguments(
        str(tmp_path), use_cpu=True, method=as_json["method"], method_kwargs=as_json["method_kwargs"]
    )
    expected = repr(build_objective("kd", num_labels=CLASSES, **settings))
    assert TEMPERATURES[name].__name__ in expected
    for copy in (loaded, again):
        assert repr(build_objective(copy.method, num_labels=CLASSES, **copy.method_kwargs)) == expected


def projected():
    return DistillationObjective([(1.0, Projected()), (1.0, KDLoss(2.0))], ce_weight=1.0, kd_weight=1.0)


def test_predictions_are_logits_while_features_are_distilled(tmp_path):
    """Asking a model for hidden states makes `predictions` a tuple of all of them; hooks that stay would keep them."""
    rows = table(examples("bert", 8))
    given = {"objective": projected(), "eval_dataset": rows}
    trainer = build_trainer(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        rows,
        trainer=given,
        eval_strategy="steps",
        eval_steps=1,
    )
    shapes = []
    trainer.compute_metrics = lambda output: shapes.append(np.shape(output.predictions)) or {}
    trainer.train()
    assert shapes == [(8, CLASSES), (8, CLASSES)]
    output = trainer.predict(rows)
    assert output.predictions.shape == (8, CLASSES)


def test_a_projector_is_in_no_saved_student(tmp_path):
    """It is trained, resumed, and nobody's business who loads the student."""
    trainer = train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 8)),
        trainer={"objective": projected()},
        save_strategy="steps",
        save_steps=1,
    )
    trainer.save_model(str(tmp_path / "final"))
    folders = [*sorted(tmp_path.glob("checkpoint-*")), tmp_path / "final"]
    assert len(folders) == 3
    for folder in folders:
        _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info


def test_every_trial_of_a_search_autocasts_both_models_and_prepares_the_student_alone(tmp_path):
    """A search replaces the accelerator for each trial: a teacher that was prepared stays in the old one's precision,
    and one among the prepared models makes the next evaluation run the student without autocast."""
    seen = {"student": [], "teacher": []}
    trainer, _ = searcher(tmp_path, bf16=True, eval_strategy="epoch")
    observed(trainer.teacher.model.classifier, seen["teacher"])
    make = trainer.model_init
    prepared = []

    def model_init():
        student = make()
        observed(student.classifier, seen["student"])
        return student

    trainer.model_init = model_init
    evaluate = trainer.evaluate

    def evaluated(*args, **kwargs):
        metrics = evaluate(*args, **kwargs)
        prepared.append([trainer.accelerator.unwrap_model(m) is trainer.model for m in trainer.accelerator._models])
        return metrics

    trainer.evaluate = evaluated
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": (0.1, 0.01)[trial.number]}, n_trials=2, backend="optuna"
    )
    assert len(prepared) >= 2
    assert all(models == [True] for models in prepared), prepared
    for side, calls in seen.items():
        assert {dtype for _, _, dtype in calls} == {torch.bfloat16}, side
    assert {training for training, _, _ in seen["teacher"]} == {False}
    assert {training for training, _, _ in seen["student"]} == {True, False}

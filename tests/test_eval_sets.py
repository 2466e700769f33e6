"""Evaluation while a run goes on: several sets, the best model by the right metric, early stopping, trackers."""

import json

import pytest
import torch
from tiny import arguments, build_trainer, classifier, examples, table, train
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_kd import DistillationTrainingArguments
from hf_kd.cli.runs import best_model_line
from hf_kd.experiment import run_experiment
from hf_kd.metrics import classification_metrics
from hf_kd.registry import ConfigError
from hf_kd.trainer.stopping import EarlyStopping
from hf_kd.training_args import is_greater_better


def rows(seed, count=12):
    return table(examples("bert", count, seed=seed))


def models():
    return classifier("bert", 0), classifier("bert", 1)


# ---- Several sets


def test_several_sets_are_each_scored_as_alone(tmp_path):
    """Rows that one set leaves behind in the sums of the next are a number of neither."""
    sets = {"near": rows(1), "far": rows(2, 7)}
    trainer = build_trainer(
        tmp_path,
        *models(),
        rows(0),
        evaluate_with_teacher=True,
        trainer={"eval_dataset": sets, "compute_metrics": classification_metrics()},
    )
    found = trainer.evaluate()
    for name, part in sets.items():
        alone = trainer.evaluate(part, metric_key_prefix="alone")
        for key in ("loss", "accuracy", "agreement", "teacher_kl", "teacher_accuracy"):
            assert found[f"eval_{name}_{key}"] == pytest.approx(alone[f"alone_{key}"]), (name, key)
        assert len(trainer.last_evaluation.arrays()["label"]) == len(part)
    assert found["eval_near_loss"] != found["eval_far_loss"]


def test_the_best_model_may_be_chosen_on_one_of_several_sets(tmp_path):
    """And early stopping looks at that set alone."""
    trainer = train(
        tmp_path,
        *models(),
        rows(0),
        num_train_epochs=6,
        learning_rate=1e-30,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_far_accuracy",
        early_stopping_patience=2,
        trainer={"eval_dataset": {"near": rows(1), "far": rows(2, 7)}, "compute_metrics": classification_metrics()},
    )
    seen = [record["eval_far_accuracy"] for record in trainer.state.log_history if "eval_far_accuracy" in record]
    assert trainer.state.best_metric == seen[0]
    assert trainer.state.epoch == 3, "the first is the best, and two without a better one follow"


def test_labels_outside_the_classes_are_found_in_each_set(tmp_path):
    bad = rows(2).map(lambda row, index: {"labels": 9 if index == 3 else row["labels"]}, with_indices=True)
    with pytest.raises(ValueError, match=r"eval_dataset\['far'\]"):
        build_trainer(tmp_path, *models(), rows(0), trainer={"eval_dataset": {"near": rows(1), "far": bad}})


# ---- Early stopping


def stopping(tmp_path, *, learning_rate=1e-30, epochs=8, **overrides):
    """A run that gets no better after its first evaluation."""
    given = {"eval_strategy": "epoch", "early_stopping_patience": 3, **overrides}
    return train(
        tmp_path,
        *models(),
        rows(0),
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        trainer={"eval_dataset": rows(1), **given.pop("trainer", {})},
        **given,
    )


def test_training_stops_after_so_many_evaluations_without_a_better_one(tmp_path):
    assert stopping(tmp_path / "3").state.epoch == 4
    assert stopping(tmp_path / "1", early_stopping_patience=1).state.epoch == 2
    assert stopping(tmp_path / "off", early_stopping_patience=None).state.epoch == 8


def test_a_threshold_says_what_counts_as_better(tmp_path):
    """A loss that falls by a hair each time would go on for ever."""
    learning = {"learning_rate": 1e-3, "epochs": 5, "early_stopping_patience": 1}
    losses = [r["eval_loss"] for r in stopping(tmp_path / "a", **learning).state.log_history if "eval_loss" in r]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True), "the premise: each evaluation is a little better"
    assert stopping(tmp_path / "b", **learning, early_stopping_threshold=1.0).state.epoch == 2


def test_the_callback_of_transformers_works_too(tmp_path):
    given = {"callbacks": [EarlyStoppingCallback(2)]}
    trainer = stopping(tmp_path, early_stopping_patience=None, metric_for_best_model="loss", trainer=given)
    assert trainer.state.epoch == 3


def test_a_second_training_counts_from_the_start(tmp_path):
    """A count left by the first run would end every later trial of a search at once."""
    trainer = stopping(tmp_path)
    trainer.train()
    assert trainer.state.epoch == 4


def test_a_resumed_run_goes_on_counting(tmp_path):
    """Or a job that is preempted often enough never stops."""
    stopping(tmp_path, epochs=3, save_strategy="epoch")
    student, teacher = models()
    trainer = build_trainer(
        tmp_path,
        student,
        teacher,
        rows(0),
        num_train_epochs=8,
        learning_rate=1e-30,
        eval_strategy="epoch",
        save_strategy="epoch",
        early_stopping_patience=3,
        trainer={"eval_dataset": rows(1)},
    )
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.epoch == 4
    assert EarlyStopping.__name__ in trainer.state.stateful_callbacks


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"early_stopping_patience": 0, "eval_strategy": "epoch"}, "whole number >= 1, got 0"),
        ({"early_stopping_patience": 1.5, "eval_strategy": "epoch"}, "whole number >= 1, got 1.5"),
        ({"early_stopping_patience": 3}, "without evaluations during training there is nothing to stop by"),
        ({"early_stopping_threshold": -1.0}, "a finite number >= 0, got -1.0"),
        ({"early_stopping_threshold": 0.1}, "Pass `early_stopping_patience` too"),
    ],
    ids=str,
)
def test_early_stopping_that_cannot_be_is_refused_in_words(given, said, tmp_path):
    """`transformers` asserts, when training begins."""
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the words are compared below)
        arguments(tmp_path, **given)
    assert said in str(error.value)
    assert "`DistillationTrainingArguments(early_stopping" in str(error.value)


# ---- The best model


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("accuracy", True), ("eval_f1_macro", True), ("matthews", True), ("map", True), ("eval_agreement", True)]
    + [("loss", False), ("ece", False), ("eval_nll", False), ("mse", False), ("eval_far_brier", False)]
    + [("teacher_kl", False)],
)
def test_the_better_value_of_a_metric_is_known(metric, greater, tmp_path):
    """By its own rule the Trainer keeps the worst model by calibration error, and says nothing."""
    assert is_greater_better(metric) is greater
    assert arguments(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    asked = arguments(tmp_path, metric_for_best_model=metric, greater_is_better=not greater)
    assert asked.greater_is_better is not greater


def config(tmp_path, data=None, **training):
    return {
        "output_dir": str(tmp_path),
        "student": {
            "config": {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "intermediate_size": 16, "patch_size": 4}
        },
        "data": {"name": "embedded/digits", "max_samples": 60, **(data or {})},
        "objective": {"ce_weight": 1.0, "kd_weight": 0.0},
        "training": {
            "max_steps": 8,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 2,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            **training,
        },
    }  # fmt: skip


def test_the_best_model_of_a_run_is_chosen_by_the_metric_of_its_data(tmp_path):
    """By the loss, which rises with overconfidence, one keeps a model that is worse in what is reported."""
    result = run_experiment(config(tmp_path, load_best_model_at_end=True))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    seen = [record["eval_accuracy"] for record in state["log_history"] if "eval_accuracy" in record][:4]
    best = result.best_model
    assert best["metric"] == "eval_accuracy"
    assert best["value"] == max(seen)
    assert best["step"] == 2 * (seen.index(max(seen)) + 1)
    assert result.validation["accuracy"] == max(seen), "the saved student is that model"
    resolved = (tmp_path / "resolved_config.yaml").read_text()
    assert "metric_for_best_model: eval_accuracy" in resolved
    assert "greater_is_better: true" in resolved
    line = best_model_line(result)
    assert "the best eval_accuracy, the metric of these data," in line
    assert json.loads((tmp_path / "results.json").read_text())["best_model"] == best


def test_a_metric_that_is_named_is_taken(tmp_path):
    result = run_experiment(config(tmp_path, load_best_model_at_end=True, metric_for_best_model="ece"))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    seen = [record["eval_ece"] for record in state["log_history"] if "eval_ece" in record][:4]
    assert result.best_model["value"] == min(seen)
    assert result.best_model["named_by"] == "the configuration"


def test_early_stopping_of_a_run_is_by_the_metric_of_its_data(tmp_path):
    result = run_experiment(config(tmp_path, early_stopping_patience=1, learning_rate=1e-30, save_strategy="no"))
    assert result.train_steps == 4
    assert result.best_model["stopped_early"]
    assert not result.best_model["is_saved"]
    assert "Training stopped early, after step 4." in best_model_line(result)


def test_without_a_search_for_the_best_nothing_is_said(tmp_path):
    result = run_experiment(config(tmp_path, max_steps=2))
    assert result.best_model is None
    assert "metric_for_best_model" not in (tmp_path / "resolved_config.yaml").read_text()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("acuracy", "Did you mean 'accuracy'?"),
        ("top_5_accuracy", "Available: accuracy"),
        ("eval_agreement", "Set training.evaluate_with_teacher=true to have it."),
    ],
)
def test_a_metric_that_no_evaluation_has_is_refused_before_training(tmp_path, named, said):
    """The Trainer finds out at the first evaluation, an hour later."""
    given = config(tmp_path / "out", load_best_model_at_end=True, metric_for_best_model=named)
    with pytest.raises(ConfigError) as caught:
        run_experiment(given)
    (problem,) = caught.value.problems
    assert problem.startswith("training.metric_for_best_model: evaluations of these data have no")
    assert said in problem
    assert not (tmp_path / "out" / "trainer_state.json").exists()


# ---- Trackers


class Tracker(TrainerCallback):
    """What a tracker such as TensorBoard's callback is handed."""

    def __init__(self):
        self.logs, self.setup = [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self.setup = args.to_sanitized_dict()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_trackers_receive_components_temperatures_and_settings(tmp_path):
    """What is only in the log history is in nobody's dashboard."""
    tracker = Tracker()
    train(
        tmp_path,
        *models(),
        rows(0),
        method="ctkd",
        logging_steps=1,
        eval_strategy="epoch",
        evaluate_with_teacher=True,
        trainer={"eval_dataset": rows(1), "callbacks": [tracker]},
    )
    steps = [log for log in tracker.logs if "loss" in log]
    for name in ("kd_loss", "temperature/student_mean", "temperature/teacher_mean", "teacher_accuracy"):
        assert all(isinstance(log[name], float) for log in steps), name
    assert any("eval_agreement" in log and "eval_teacher_kl" in log for log in tracker.logs)
    assert not any(isinstance(value, torch.Tensor) for log in tracker.logs for value in log.values())
    assert tracker.setup["method"] == "ctkd"
    assert tracker.setup["temperature_learning_rate"] == 0.05


def test_the_arguments_know_no_stopping_by_default():
    assert DistillationTrainingArguments("unused", use_cpu=True).early_stopping_patience is None

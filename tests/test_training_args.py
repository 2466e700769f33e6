"""The arguments: plain data that pickles, goes to JSON, comes from a command line, and is checked."""

import json
import pickle
from dataclasses import fields

import pytest
import torch
from tiny import arguments, build_trainer, classifier, examples, table, train
from transformers import HfArgumentParser, TrainingArguments

from hf_kd import METHODS, DistillationTrainingArguments

OWN = {f.name for f in fields(DistillationTrainingArguments)} - {f.name for f in fields(TrainingArguments)}
VALUES = {
    "method": "dtkd",
    "method_kwargs": {"temperature": 2.0, "alpha": 0.5},
    "ce_weight": 0.25,
    "kd_weight": 1.5,
    "temperature_learning_rate": 0.01,
    "temperature_momentum": 0.5,
    "temperature_weight_decay": 5e-4,
    "evaluate_with_teacher": True,
    "lr_milestones": [150.0, 180.0, 210.5],
    "lr_gamma": 0.2,
    "weight_decay_everywhere": True,
    "early_stopping_patience": 3,
    "augmentation_views": 4,
    "resume_with_changes": True,
    "early_stopping_threshold": 0.01,
}
BESIDE = {"eval_strategy": "epoch"}
"""What these values need of the Trainer's own fields."""


def test_these_are_all_the_fields():
    assert set(VALUES) == OWN


def test_arguments_pickle_and_go_to_json(tmp_path):
    """The Trainer pickles them into every checkpoint and sends their JSON to every tracker."""
    args = arguments(tmp_path, **VALUES, **BESIDE)
    copy = pickle.loads(pickle.dumps(args))
    as_json = json.loads(args.to_json_string())
    for name, value in VALUES.items():
        assert getattr(copy, name) == value
        assert as_json[name] == value
    assert json.loads(json.dumps(args.to_sanitized_dict()))["method"] == "dtkd"


def test_saved_arguments_load_again(tmp_path):
    train(tmp_path, classifier("bert", 0), classifier("bert", 1), table(examples("bert", 4)), save_strategy="epoch")
    saved = torch.load(tmp_path / "checkpoint-1" / "training_args.bin", weights_only=False)
    assert isinstance(saved, DistillationTrainingArguments)
    assert saved.method == "kd"


def test_every_field_comes_from_a_command_line(tmp_path):
    """A field that the parser cannot read is one that `accelerate launch` users do not have."""
    line = ["--output_dir", str(tmp_path), "--eval_strategy", "epoch"]
    for name, value in VALUES.items():
        if isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        else:
            line += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    (parsed,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(line)
    assert {name: getattr(parsed, name) for name in VALUES} == VALUES
    (parsed,) = HfArgumentParser(DistillationTrainingArguments).parse_dict(
        {"output_dir": str(tmp_path), **VALUES, **BESIDE}
    )
    assert {name: getattr(parsed, name) for name in VALUES} == VALUES
    (plain,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(line[:2])
    assert plain.method == "kd"
    assert plain.method_kwargs is None
    assert plain.lr_milestones is None


def test_every_field_has_a_help_text():
    assert all(f.metadata.get("help") for f in fields(DistillationTrainingArguments) if f.name in OWN)


def test_non_finite_losses_are_not_filtered_away(tmp_path):
    """The Trainer's default hides NaN and syncs with the device for every micro-batch."""
    assert DistillationTrainingArguments(str(tmp_path), use_cpu=True).logging_nan_inf_filter is False


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "ctdk"}, "Did you mean 'ctkd'"),
        ({"ce_weight": -1.0}, "ce_weight=...)` must be a finite number >= 0, got -1.0"),
        ({"kd_weight": float("nan")}, "kd_weight=...)` must be a finite number >= 0, got nan"),
        ({"kd_weight": float("inf")}, "got inf"),
        ({"temperature_learning_rate": -0.1}, "temperature_learning_rate=...)` must be a finite number >= 0"),
        ({"temperature_momentum": 1.5}, "temperature_momentum=...)` must be in [0, 1], got 1.5"),
        ({"temperature_weight_decay": float("inf")}, "temperature_weight_decay=...)` must be"),
        ({"lr_milestones": [-1.0]}, "lr_milestones=...)` must be a finite number >= 0, got -1.0"),
        ({"lr_milestones": [1.0], "lr_gamma": 0.0}, "lr_gamma=...)` must be a positive finite number"),
        ({"lr_milestones": [1.0], "lr_scheduler_type": "cosine"}, "milestones are the whole schedule"),
        ({"method_kwargs": "temperature=2"}, "must be a mapping or its JSON, got 'temperature=2'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_in_words(given, said, tmp_path):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the words are compared below)
        arguments(tmp_path, **given)
    assert said in str(error.value)
    assert "`DistillationTrainingArguments(" in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ce_weight": True}, "got True"),
        ({"kd_weight": "1"}, "got '1'"),
        ({"lr_milestones": 150.0}, "lr_milestones=150.0)` must be a list of epochs"),
        ({"lr_milestones": ["150"]}, "got '150'"),
        ({"method_kwargs": {"temperature": object()}}, "does not go to JSON"),
        ({"method_kwargs": [4.0]}, "must be a mapping"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_values_of_another_kind_are_refused_in_words(given, said, tmp_path):
    """Objects here would break every checkpoint; numbers as strings come from hand-written configurations."""
    with pytest.raises(TypeError) as error:
        arguments(tmp_path, **given)
    assert said in str(error.value)


def test_methods_refuse_wrong_parameters_when_the_trainer_is_built(tmp_path):
    """A misspelt parameter that is ignored is a run at the default temperature with the wrong name on it."""
    for kwargs in ({"temprature": 2.0}, {"temperature": 0.0}, {"temperature": -1.0}, {"temperature": "warm"}):
        with pytest.raises(ValueError, match="temperature"):
            build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), method_kwargs=kwargs)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "bernoulli_kl"])  # for several labels per row
def test_every_method_is_trained_by_name(method, tmp_path):
    trainer = train(
        tmp_path, classifier("bert", 0), classifier("bert", 1), table(examples("bert", 8, "mixed")), method=method
    )
    first = trainer.state.log_history[0]
    assert first["loss"] > 0
    temperatures = [value for key, value in first.items() if key.endswith("teacher_mean")]
    assert bool(temperatures) == (METHODS[method].strategy is not None)
    assert all(value > 0 for value in temperatures)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_milestones_drop_the_learning_rate_after_their_epochs(accumulation, tmp_path):
    """The papers' recipes are milestones in epochs; the Trainer has no such schedule, in epochs or in steps."""
    trainer = train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 16)),
        lr_milestones=[1, 2.5],
        lr_gamma=0.1,
        num_train_epochs=4,
        learning_rate=0.5,
        gradient_accumulation_steps=accumulation,
    )
    rates = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    steps = 4 // accumulation
    assert len(rates) == 4 * steps
    for step, rate in enumerate(rates):
        epoch = step / steps
        assert rate == pytest.approx(0.5 if epoch < 1 else 0.05 if epoch < 2.5 else 0.005)


def test_milestones_follow_a_warm_up(tmp_path):
    trainer = train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 16)),
        lr_milestones=[1],
        warmup_steps=2,
        num_train_epochs=2,
        learning_rate=1.0,
    )
    rates = [record["learning_rate"] for record in trainer.state.log_history if "learning_rate" in record]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1])

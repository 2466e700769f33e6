"""A search in one trainer: every trial starts clean, nothing is misnamed or miscast, and nothing is left behind."""

import optuna
import pytest
import torch
from tiny import build_trainer, classifier, examples, table, weights
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.utils import logging as hf_logging

from hf_kd import METHODS, DistillationObjective, KDLoss
from hf_kd.metrics import classification_metrics
from hf_kd.registry import ConfigError
from hf_kd.search_space import SearchSpace
from hf_kd.temperatures import CTKDTemperature

optuna.logging.set_verbosity(optuna.logging.WARNING)
ROWS = table(examples("bert", 12))
HELD_OUT = table(examples("bert", 8, seed=1))


class Diary(TrainerCallback):
    """What a trial starts and ends with, as the user's own objects see it."""

    def __init__(self):
        self.trials = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        trainer = self.trainer
        self.trials.append(
            {
                "student": weights(model),
                "teacher": trainer.teacher.model if trainer.teacher else None,
                "objective": trainer.objective,
                "state": {k: v.clone() for k, v in trainer.objective.state_dict().items()},
                "arguments": {k: getattr(args, k) for k in ("learning_rate", "seed", "method", "method_kwargs")},
                "steps": 0,
            }
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.trials[-1]["steps"] += 1
        self.trials[-1]["after"] = {k: v.clone() for k, v in self.trainer.objective.state_dict().items()}


def searcher(folder, *, objective=None, callbacks=(), method="kd", teacher=True, compute_metrics=None, **overrides):
    """A trainer with `model_init`, and the diary of its trials."""
    diary = Diary()
    made = {"model_init": lambda: classifier("bert", torch.initial_seed() % 1000), "eval_dataset": HELD_OUT}
    made |= {"objective": objective, "callbacks": [diary, *callbacks], "compute_metrics": compute_metrics}
    teacher = classifier("bert", 7) if teacher else None
    overrides = {"method": method, **overrides}
    trainer = build_trainer(folder, None, teacher, ROWS, trainer=made, **overrides)
    diary.trainer = trainer
    return trainer, diary


def of(**values):
    """A space that answers the n-th value in the n-th trial."""
    return lambda trial: {name.replace("__", "."): value[trial.number] for name, value in values.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- Every trial starts clean


def test_parameters_of_the_method_reach_the_loss(tmp_path):
    """A strategy built once keeps its temperature whatever the arguments say later."""
    trainer, diary = searcher(tmp_path)
    space = of(method__temperature=[1.0, 8.0], method__kd_weight=[0.5, 0.25], learning_rate=[0.1, 0.2])
    trainer.hyperparameter_search(space, n_trials=2)
    objectives = [trial["objective"] for trial in diary.trials]
    assert [float(o.losses[0].temperature.temperature) for o in objectives] == [1.0, 8.0]
    assert [o.kd_weight for o in objectives] == [0.5, 0.25]
    assert [trial["arguments"]["learning_rate"] for trial in diary.trials] == [0.1, 0.2]


def test_paths_lead_into_a_strategy_and_to_another_method(tmp_path):
    trainer, diary = searcher(tmp_path, method="ctkd")
    space = of(method__temperature__start=[2.0, 3.0], method__range=[10.0, 5.0])
    trainer.hyperparameter_search(space, n_trials=2)
    assert [trial["objective"].losses[0].temperature.start for trial in diary.trials] == [2.0, 3.0]
    assert [trial["arguments"]["method_kwargs"] for trial in diary.trials] == [
        {"temperature": {"start": 2.0}, "range": 10.0},
        {"temperature": {"start": 3.0}, "range": 5.0},
    ]
    trainer.hyperparameter_search(of(method__name=["dtkd", "kd"]), n_trials=2)
    assert [trial["arguments"]["method"] for trial in diary.trials[2:]] == ["dtkd", "kd"]


@pytest.mark.parametrize("given", ["by name", "as an object"])
def test_a_learned_temperature_starts_fresh_in_each_trial(tmp_path, given):
    objective = DistillationObjective([(1.0, KDLoss(CTKDTemperature()))], ce_weight=1.0, kd_weight=1.0)
    trainer, diary = searcher(tmp_path, method="ctkd", objective=objective if given == "as an object" else None)
    trainer.hyperparameter_search(of(learning_rate=[0.1, 0.1, 0.1]), n_trials=3)
    starts = [trial["state"] for trial in diary.trials]
    assert same(starts[0], starts[1])
    assert same(starts[0], starts[2])
    assert not same(diary.trials[0]["after"], starts[0]), "nothing was learned, so nothing was tested"
    assert same(diary.trials[0]["after"], diary.trials[2]["after"]), "momentum of the trial before"


def test_a_given_objective_is_untouched_by_the_search(tmp_path):
    objective = DistillationObjective([(1.0, KDLoss(CTKDTemperature()))], ce_weight=1.0, kd_weight=1.0)
    trainer, _ = searcher(tmp_path, objective=objective)
    trainer.train()
    learned = {name: value.clone() for name, value in objective.state_dict().items()}
    trainer.hyperparameter_search(of(learning_rate=[0.1, 0.2]), n_trials=2)
    assert trainer.objective is objective
    assert same(objective.state_dict(), learned)


def test_every_trial_has_a_fresh_student_and_the_same_teacher(tmp_path):
    trainer, diary = searcher(tmp_path)
    trainer.hyperparameter_search(of(learning_rate=[0.1, 0.1]), n_trials=2)
    first, second = diary.trials
    assert same(first["student"], second["student"]), "a student that starts from the last one's end"
    assert first["teacher"] is second["teacher"] is trainer.teacher.model


def test_a_trials_seed_makes_its_own_student(tmp_path):
    """The Trainer seeds the student before it sets the trial's arguments: with the seed of the trial before."""
    trainer, diary = searcher(tmp_path)
    trainer.hyperparameter_search(of(seed=[1, 2, 1]), n_trials=3)
    first, second, third = (trial["student"] for trial in diary.trials)
    assert not same(first, second)
    assert same(first, third)


def test_equal_trials_have_equal_values_and_that_of_a_plain_run(tmp_path):
    """Whatever one trial leaves to the next shows here: schedules, momentum, random streams."""
    trainer, _ = searcher(tmp_path, method="ctkd", train_sampling_strategy="random")
    best = trainer.hyperparameter_search(of(learning_rate=[0.1, 0.3, 0.1]), n_trials=3)
    values = [trial.value for trial in best.run_summary.trials]
    assert values[0] == values[2] != values[1]
    trainer.args.learning_rate = 0.1
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == values[0]


def test_what_a_trial_does_not_set_is_as_the_user_set_it(tmp_path):
    """In a space with conditions, a trial must not go on with what another one drew."""
    trainer, diary = searcher(tmp_path, method_kwargs={"temperature": 3.0})
    spaces = [{"method.temperature": 8.0, "learning_rate": 0.2, "method.ce_weight": 5.0}, {"seed": 1}]
    trainer.hyperparameter_search(lambda trial: spaces[trial.number], n_trials=2)
    second = diary.trials[1]
    assert second["arguments"] == {
        "learning_rate": 0.1,
        "seed": 1,
        "method": "kd",
        "method_kwargs": {"temperature": 3.0},
    }
    assert second["objective"].ce_weight == METHODS["kd"].default.values["ce_weight"]
    assert second["objective"].losses[0].temperature.temperature == 3.0


def test_the_teachers_metrics_do_not_change_what_is_compared(tmp_path):
    """The Trainer sums all metrics into one objective."""
    values = []
    for with_teacher in (False, True):
        trainer, _ = searcher(tmp_path, evaluate_with_teacher=with_teacher)
        values.append(trainer.hyperparameter_search(of(learning_rate=[0.1]), n_trials=1).objective)
    assert values[0] == values[1]


def test_after_the_search_the_trainer_is_as_before(tmp_path):
    trainer, _ = searcher(tmp_path, method="ctkd")
    trainer.train()
    plain = {k: v for k, v in vars(trainer).items() if k not in ("control", "_signature_columns")}
    for name in ("gather_function", "_wrapped"):  # made anew at each evaluation, and with each data loader
        plain.pop(name)
    arguments, before = dict(vars(trainer.args)), weights(trainer.model)
    loss = trainer.evaluate()["eval_loss"]
    space = of(method__name=["kd", "dtkd"], gradient_accumulation_steps=[2, 3], per_device_train_batch_size=[2, 3])
    trainer.hyperparameter_search(space, n_trials=2)
    assert vars(trainer.args) == arguments
    changed = [k for k, v in plain.items() if vars(trainer)[k] is not v and k != "last_evaluation"]
    assert not [k for k in changed if vars(trainer)[k] != plain[k]]
    assert same(weights(trainer.model), before)
    assert trainer.evaluate()["eval_loss"] == loss


def test_a_refused_search_leaves_the_trainer_as_it_was(tmp_path):
    trainer, _ = searcher(tmp_path)
    objective, arguments = trainer.objective, dict(vars(trainer.args))
    with pytest.raises(ConfigError):
        trainer.hyperparameter_search(of(learning_rate=[0.1], no_such=[1]), n_trials=1)
    assert trainer.objective is objective
    assert vars(trainer.args) == arguments
    assert trainer.hp_search_backend is None
    trainer.train()


def test_what_was_found_can_be_taken_over(tmp_path):
    trainer, _ = searcher(tmp_path)
    space = {"learning_rate": {"low": 0.05, "high": 0.2}, "method.temperature": {"low": 1.0, "high": 8.0}}
    best = trainer.hyperparameter_search(space, n_trials=2)
    assert set(best.hyperparameters) == set(space)
    trainer.apply_hyperparameters(best.hyperparameters)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == best.objective
    assert float(trainer.objective.losses[0].temperature.temperature) == best.hyperparameters["method.temperature"]


# ---- Names and types

REFUSED = {
    "unknown name": ({"learning_rat": 0.1}, "learning_rat: no such training argument. Did you mean 'learning_rate'"),
    "temperature without method": ({"temperature": 2.0}, "Did you mean 'method.temperature'"),
    "text for a number": ({"learning_rate": "0.1"}, "learning_rate: expected a valid number, got '0.1' (str)"),
    "fraction for a count": ({"max_steps": 2.5}, "max_steps: expected"),
    "flag as text": ({"group_by_length": "False"}, "group_by_length"),
    "truth for a number": ({"weight_decay": True}, "weight_decay: expected a valid number, got True (bool)"),
    "negative weight": ({"kd_weight": -1.0}, "kd_weight"),
    "read once": ({"output_dir": "x"}, "output_dir: is read once"),
    "the rule itself": ({"metric_for_best_model": "loss"}, "metric_for_best_model: decides which trial is better"),
    "unknown parameter": (
        {"method.temperatur": 2.0},
        "method.temperatur: unknown parameter of method 'kd'. Did you mean",
    ),
    "unknown method": ({"method.name": "dkdd"}, "Did you mean 'dkd'"),
    "value out of range": ({"method.temperature": -2.0}, "method.temperature: `ConstantTemperature(temperature=...)`"),
    "weight as text": ({"method.ce_weight": "a"}, "method.ce_weight: expected"),
    "twice": ({"kd_weight": 1.0, "method.kd_weight": 1.0}, "method.kd_weight: is set twice"),
    "part of a number": ({"method.temperature": 2.0, "method.temperature.start": 1.0}, "is 2.0 and has no parts"),
    "empty part": ({"method..start": 1.0}, "has an empty part"),
    "no such schedule": ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type"),
}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    return searcher(tmp_path_factory.mktemp("refusing"))[0]


@pytest.mark.parametrize("case", REFUSED)
def test_unknown_names_and_wrong_types_are_refused_in_words(refusing, case):
    """The Trainer only warns of a name it does not know, and makes True of "False"."""
    parameters, said = REFUSED[case]
    arguments = dict(vars(refusing.args))
    with pytest.raises(ConfigError) as caught:
        refusing.hyperparameter_search(lambda trial: parameters, n_trials=1)
    assert said in str(caught.value)
    assert vars(refusing.args) == arguments


def test_a_written_space_is_refused_before_the_first_trial(refusing):
    """At the upper end of a range, or in the last of the choices, a fault would show after hours."""
    for spec, said in (
        ({"method.name": {"choices": ["kd", "dtkd", "kdd"]}}, "unknown method 'kdd'"),
        ({"method.temperature": {"low": -1.0, "high": 4.0}}, "temperature"),
        ({"learning_rate": {"low": 0.1, "high": 0.01}}, "low (0.1) must be below high (0.01)"),
        ({"weight_decay": {"choices": [0.0, "x"]}}, "weight_decay: expected a valid number, got 'x' (str)"),
    ):
        with pytest.raises(ConfigError) as caught:
            refusing.hyperparameter_search(spec, n_trials=1)
        assert said in str(caught.value)


def test_parameters_of_a_given_objective_are_refused(tmp_path):
    """They would change nothing, and the search would report the best of equal trials."""
    objective = DistillationObjective([(1.0, KDLoss(2.0))], ce_weight=1.0, kd_weight=1.0)
    trainer, _ = searcher(tmp_path, objective=objective)
    for name in ("method.temperature", "kd_weight", "method"):
        with pytest.raises(ConfigError, match="was given its `objective` as an object"):
            trainer.hyperparameter_search(lambda trial, name=name: {name: 1.0}, n_trials=1)


def test_searches_that_cannot_be_are_refused(refusing, tmp_path):
    for keywords, said in (
        ({"n_trials": 0}, "must be a positive integer"),
        ({"backend": "ray"}, "only Optuna"),
        ({"n_jobs": 2}, "trials share this one trainer"),
        ({"prunner": None}, "Did you mean 'pruner'"),
        ({"direction": "up"}, "'minimize' or 'maximize'"),
        ({"direction": "maximize"}, "compared by `eval_loss`, which is to minimize"),
        ({"compute_objective": len}, "only you know"),
    ):
        with pytest.raises(ValueError, match=said):
            refusing.hyperparameter_search(of(learning_rate=[0.1]), **keywords)
    plain = build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 7), ROWS)
    with pytest.raises(ValueError, match="Make the trainer with `model_init`"):
        plain.hyperparameter_search(of(learning_rate=[0.1]))


# ---- What is compared


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()), "ece": 0.5}


accuracy.first = "accuracy"


@pytest.mark.parametrize(
    ("arguments", "metrics", "name", "way"),
    [
        ({}, None, "eval_loss", "minimize"),
        ({}, accuracy, "eval_accuracy", "maximize"),
        ({"metric_for_best_model": "ece"}, accuracy, "eval_ece", "minimize"),
        ({"metric_for_best_model": "ece", "greater_is_better": True}, accuracy, "eval_ece", "maximize"),
    ],
)
def test_the_metric_and_its_direction_follow_the_task(tmp_path, arguments, metrics, name, way, monkeypatch):
    """The Trainer would minimise accuracy."""
    trainer, _ = searcher(tmp_path, compute_metrics=metrics, **arguments)
    said = []
    monkeypatch.setattr(hf_logging.get_logger("hf_kd.trainer.search"), "warning", said.append)
    best = trainer.hyperparameter_search(of(learning_rate=[0.1]), n_trials=1)
    assert said == [f"The search is to {way} `{name}`."]
    assert best.run_summary.direction.name.lower() == way
    if name == "eval_accuracy":
        assert 0 <= best.objective * len(HELD_OUT) == round(best.objective * len(HELD_OUT))


def test_a_metric_that_no_evaluation_has_is_named(tmp_path):
    trainer, _ = searcher(tmp_path, compute_metrics=accuracy, metric_for_best_model="acuracy")
    with pytest.raises(ValueError, match="no `eval_acuracy`. Did you mean 'eval_accuracy'"):
        trainer.hyperparameter_search(of(learning_rate=[0.1]), n_trials=1)


def test_the_value_is_that_of_the_student_a_trial_ends_with(tmp_path):
    """The Trainer takes the last evaluation, here that of step 2 of 3; and the last where the best is kept."""
    trainer, _ = searcher(tmp_path, eval_strategy="steps", eval_steps=2)
    value = trainer.hyperparameter_search(of(learning_rate=[0.1]), n_trials=1).objective
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == value
    saved = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
    trainer, _ = searcher(tmp_path / "best", num_train_epochs=3, **saved)
    best = trainer.hyperparameter_search(of(learning_rate=[5.0]), n_trials=1)
    steps = best.run_summary.trials[0].intermediate_values
    assert best.objective == pytest.approx(min(steps.values()), rel=1e-6)
    assert list(steps.values())[-1] > min(steps.values()), "the last is the best, so nothing was tested"


def test_pruning_stops_a_trial_and_the_next_starts_clean(tmp_path):
    class SecondOnly(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    patient = EarlyStoppingCallback(early_stopping_patience=100)
    keep = {"metric_for_best_model": "loss", "load_best_model_at_end": True}
    keep |= {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 3}
    trainer, diary = searcher(tmp_path, callbacks=[patient], method="ctkd", **keep)
    best = trainer.hyperparameter_search(of(learning_rate=[0.5, 0.5, 0.5]), n_trials=3, pruner=SecondOnly())
    assert [trial["steps"] for trial in diary.trials] == [9, 3, 9]
    states = [trial.state.name for trial in best.run_summary.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert best.run_summary.trials[0].value == best.run_summary.trials[2].value
    assert same(diary.trials[0]["after"], diary.trials[2]["after"])
    assert patient.early_stopping_patience_counter == 0


def test_a_diverging_trial_does_not_end_the_search(tmp_path):
    trainer, _ = searcher(tmp_path, num_train_epochs=2)
    scored, _ = searcher(tmp_path, max_steps=1, compute_metrics=classification_metrics())
    best = scored.hyperparameter_search(of(learning_rate=[1e30, 0.1]), n_trials=2)
    assert best.run_id == "1", "the metrics are the first to see it"
    best = trainer.hyperparameter_search(of(learning_rate=[1e30, 0.1]), n_trials=2)
    assert [trial.state.name for trial in best.run_summary.trials] == ["FAIL", "COMPLETE"]
    assert best.run_id == "1"
    with pytest.raises(RuntimeError, match="none of 1 trials came to an end"):
        trainer.hyperparameter_search(of(learning_rate=[1e30]), n_trials=1)


def test_a_seeded_search_draws_the_same_and_does_not_begin_again(tmp_path):
    """A study that goes on with a sampler seeded anew would spend its trials on what it has seen."""
    draws = []
    for part in ((4,), (2, 2)):
        storage = optuna.storages.InMemoryStorage()
        trainer, _ = searcher(tmp_path, max_steps=1, teacher=True)
        for count in part:
            best = trainer.hyperparameter_search(
                None, n_trials=count, storage=storage, study_name="x", load_if_exists=True
            )
        draws.append([trial.params["learning_rate"] for trial in best.run_summary.trials])
        assert set(best.run_summary.trials[0].params) == {"learning_rate", "method.temperature"}
    assert draws[0][:2] == draws[1][:2]
    assert len(set(draws[1])) == 4


def test_checkpoints_of_trials_lie_apart(tmp_path):
    trainer, _ = searcher(tmp_path, save_strategy="epoch")
    trainer.hyperparameter_search(of(learning_rate=[0.1, 0.2]), n_trials=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1"]


# ---- The space itself

BROKEN = {
    "nothing": ({}, "expected what to search"),
    "a bare value": ({"a": 3}, "a: expected a range or choices, got 3"),
    "both": ({"a": {"low": 1, "high": 2, "choices": [1]}}, "both a range and choices"),
    "one end": ({"a": {"low": 1}}, "a.high: a range needs this end"),
    "equal ends": ({"a": {"low": 2, "high": 2}}, "low (2) must be below high (2)"),
    "text": ({"a": {"low": "1e-5", "high": 1.0}}, "a.low: expected a finite number, got '1e-5' (str)"),
    "nan": ({"a": {"low": float("nan"), "high": 1.0}}, "a.low: expected a finite number"),
    "log of zero": ({"a": {"low": 0.0, "high": 1.0, "log": True}}, "must be positive"),
    "log and step": ({"a": {"low": 1, "high": 9, "log": True, "step": 2}}, "does not go with log"),
    "step that misses": ({"a": {"low": 1, "high": 10, "step": 2}}, "would never be drawn"),
    "typo": ({"a": {"low": 1, "high": 10, "logg": True}}, "a.logg: unknown key. Did you mean 'log'"),
    "no choice": ({"a": {"choices": []}}, "at least one value"),
    "a word": ({"a": {"choices": "kd"}}, "expected a list"),
    "twice": ({"a": {"choices": [1, 1]}}, "1 stands there twice"),
    "unknown condition": ({"a": {"low": 1, "high": 2, "when": {"b": 1}}}, "a.when.b: is no parameter with choices"),
    "condition that cannot be": (
        {"b": {"choices": ["kd"]}, "a": {"low": 1, "high": 2, "when": {"b": "dk"}}},
        "'dk' is none of its choices. Did you mean 'kd'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_spaces_are_refused_in_words(case):
    spec, said = BROKEN[case]
    with pytest.raises(ConfigError) as caught:
        SearchSpace(spec)
    assert said in str(caught.value)


def test_all_problems_of_a_space_come_out_together():
    with pytest.raises(ConfigError) as caught:
        SearchSpace({"a": {"low": 1}, "b": {"choices": []}})
    assert len(caught.value.problems) == 2


def test_values_are_drawn_as_they_are_written():
    """Whole ends give whole numbers; a choice of 1, 1.0 and true stays three, and a mapping a mapping."""
    space = SearchSpace(
        {
            "whole": {"low": 1, "high": 3},
            "real": {"low": 1.0, "high": 3},
            "choice": {"choices": [{"name": "dtkd"}, 4]},
            "only": {"low": 0.5, "high": 1.5, "step": 0.5, "when": {"choice": 4}},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.suggest(study.ask()) for _ in range(30)]
    assert {type(values["whole"]) for values in drawn} == {int}
    assert {type(values["real"]) for values in drawn} == {float}
    assert {str(values["choice"]) for values in drawn} == {"{'name': 'dtkd'}", "4"}
    assert all(("only" in values) == (values["choice"] == 4) for values in drawn)
    assert {values["only"] for values in drawn if "only" in values} == {0.5, 1.0, 1.5}


def test_corners_are_all_ends_of_all_choices():
    space = SearchSpace({"a": {"choices": ["x", "y"]}, "b": {"low": 1, "high": 2, "when": {"a": "y"}}})
    assert list(space.corners()) == [{"a": "x"}, {"a": "y", "b": 1}, {"a": "y", "b": 2}]

"""What a `Trainer` promises and this one keeps: evaluation, several runs of one trainer, and its private hooks."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    CLASSES,
    LABELS,
    batch_of,
    build_trainer,
    classifier,
    examples,
    logits,
    table,
    train,
    weights,
)
from transformers import Trainer, TrainerCallback

from hf_kd import DistillationObjective, DistillationTrainer, build_objective
from hf_kd.inputs import MIX_LAMBDA, ROW_WEIGHT, TEACHER_LOGITS
from hf_kd.losses import AnnealingKDLoss, TeacherFreeLoss
from hf_kd.trainer.checkpoints import CheckpointingTrainer
from hf_kd.trainer.data import DataTrainer
from hf_kd.trainer.passes import PassTrainer
from hf_kd.trainer.schedule import ScheduledTrainer

RAGGED = 14  # evaluated in batches of 4, 4, 4 and 2


def labels_of(rows):
    return torch.tensor([row["labels"] for row in rows])


def mean_cross_entropy(model, rows):
    return F.cross_entropy(logits(model, rows), labels_of(rows), ignore_index=-100).item()


# --- Evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["labelled", "mixed"])
@pytest.mark.parametrize("architecture", ["bert", "vit", "resnet"])
def test_eval_loss_is_the_mean_cross_entropy_of_the_labelled_rows(architecture, labels, tmp_path):
    """With the training loss in its place `eval_loss` depends on the method and compares with nothing; averaged over
    batches it over-weights the last one, and a batch of unlabelled rows is NaN or counts as 0."""
    rows = examples(architecture, RAGGED, labels)
    student = classifier(architecture, 0)
    trainer = build_trainer(
        tmp_path,
        student,
        classifier(architecture, 1),
        table(rows),
        trainer={"eval_dataset": table(rows)},
        label_smoothing_factor=0.3,
        method="ctkd",
    )
    expected = mean_cross_entropy(student, rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)  # before train()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean_cross_entropy(student, rows), rel=1e-6)
    assert trainer.predict(table(rows)).metrics["test_loss"] == pytest.approx(mean_cross_entropy(student, rows))


@pytest.mark.parametrize("labels", ["unlabelled", "none"])
def test_unlabelled_rows_are_evaluated_without_a_loss(labels, tmp_path):
    """Nothing to compare with is no loss of 0, and no reason to stop."""
    rows = examples("bert", RAGGED, labels)
    student, teacher = classifier("bert", 0), classifier("bert", 1)
    trainer = build_trainer(
        tmp_path, student, teacher, trainer={"eval_dataset": table(rows)}, evaluate_with_teacher=True
    )
    metrics = trainer.evaluate()
    assert "eval_loss" not in metrics
    assert "eval_teacher_accuracy" not in metrics
    assert 0 <= metrics["eval_agreement"] <= 1
    np.testing.assert_allclose(trainer.predict(table(rows)).predictions, logits(student, rows), rtol=1e-5, atol=1e-6)


def test_predictions_are_logits_whatever_else_the_model_returns(tmp_path):
    """With hidden states asked for, `predictions` becomes a tuple of all of them for the whole set."""
    rows = examples("bert", RAGGED)
    student = classifier("bert", 0, output_hidden_states=True, output_attentions=True)
    output = build_trainer(tmp_path, student, classifier("bert", 1)).predict(table(rows))
    assert isinstance(output.predictions, np.ndarray)
    assert output.predictions.shape == (RAGGED, CLASSES)
    assert output.label_ids.tolist() == labels_of(rows).tolist()


def accuracy(prediction):
    choice = prediction.predictions.argmax(-1) if prediction.predictions.ndim == 2 else prediction.predictions
    return {"accuracy": float((choice == prediction.label_ids).mean())}


class BatchAccuracy:
    """Metrics that see one batch at a time."""

    def __init__(self):
        self.right, self.rows = 0, 0

    def __call__(self, prediction, compute_result):
        self.right += int((prediction.predictions.argmax(-1) == prediction.label_ids).sum())
        self.rows += len(prediction.label_ids)
        return {"accuracy": self.right / self.rows} if compute_result else {}


@pytest.mark.parametrize("way", ["all at once", "by batch", "reduced"])
def test_metrics_see_every_row_once(way, tmp_path):
    rows = examples("bert", RAGGED)
    student = classifier("bert", 0)
    trainer = build_trainer(
        tmp_path,
        student,
        classifier("bert", 1),
        trainer={
            "eval_dataset": table(rows),
            "compute_metrics": BatchAccuracy() if way == "by batch" else accuracy,
            "preprocess_logits_for_metrics": (lambda given, _: given.argmax(-1)) if way == "reduced" else None,
        },
        batch_eval_metrics=way == "by batch",
    )
    metrics = trainer.evaluate()
    right = (logits(student, rows).argmax(-1) == labels_of(rows)).double().mean().item()
    assert metrics["eval_accuracy"] == pytest.approx(right)
    assert metrics["eval_loss"] == pytest.approx(mean_cross_entropy(student, rows), rel=1e-6)


def test_prediction_loss_only_keeps_nothing_else(tmp_path):
    rows = examples("bert", RAGGED)
    student = classifier("bert", 0)
    output = build_trainer(tmp_path, student, classifier("bert", 1), prediction_loss_only=True).predict(table(rows))
    assert output.predictions is None
    assert output.metrics["test_loss"] == pytest.approx(mean_cross_entropy(student, rows), rel=1e-6)


@pytest.mark.parametrize("labels", ["labelled", "mixed"])
def test_comparison_with_the_teacher_is_right(labels, tmp_path):
    """Agreement and divergence are over all rows, the teacher's accuracy over the labelled ones."""
    rows = examples("bert", RAGGED, labels)
    student, teacher = classifier("bert", 0), classifier("bert", 1)
    metrics = build_trainer(
        tmp_path, student, teacher, trainer={"eval_dataset": table(rows)}, evaluate_with_teacher=True
    ).evaluate()
    z, v, y = logits(student, rows), logits(teacher, rows), labels_of(rows)
    divergence = F.kl_div(F.log_softmax(z, -1), F.log_softmax(v, -1), reduction="batchmean", log_target=True)
    assert metrics["eval_agreement"] == pytest.approx((z.argmax(-1) == v.argmax(-1)).double().mean().item())
    assert metrics["eval_teacher_kl"] == pytest.approx(divergence.item(), rel=1e-5)
    right = (v.argmax(-1) == y)[y != -100].double().mean().item()
    assert metrics["eval_teacher_accuracy"] == pytest.approx(right)


def test_nan_in_an_evaluation_shows(tmp_path):
    """Dropping the rows that are NaN would report a broken student as a fine one."""
    rows = examples("vit", RAGGED)
    rows[3]["pixel_values"] = np.full((3, 8, 8), np.nan).tolist()
    metrics = build_trainer(
        tmp_path,
        classifier("vit", 0),
        classifier("vit", 1),
        trainer={"eval_dataset": table(rows)},
        evaluate_with_teacher=True,
    ).evaluate()
    assert np.isnan(metrics["eval_loss"])
    assert np.isnan(metrics["eval_teacher_kl"])


def test_evaluation_during_training_changes_nothing(tmp_path):
    """Rows of an evaluation must not end up in the training record, nor its mode in the next step."""
    rows = table(examples("bert", 16, "mixed"))
    runs = [
        train(
            tmp_path,
            classifier("bert", 0),
            classifier("bert", 1),
            rows,
            trainer={"eval_dataset": {"a": rows, "b": rows}},
            method="ctkd",
            logging_steps=2,
            evaluate_with_teacher=True,
            eval_strategy=strategy,
            eval_steps=1,
        )
        for strategy in ("no", "steps")
    ]
    silent, evaluated = runs
    torch.testing.assert_close(weights(evaluated.model), weights(silent.model), rtol=0, atol=0)
    records = [r for r in evaluated.state.log_history if "loss" in r]
    assert records == [r for r in silent.state.log_history if "loss" in r]
    assert sum("eval_a_loss" in r and "ce_loss" not in r for r in evaluated.state.log_history) == 4


# --- Several runs of one trainer -------------------------------------------------------------------------------------


class Starts(TrainerCallback):
    """What each run begins with."""

    def __init__(self):
        self.seen = []
        self.trainer = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        raw = self.trainer.objective.losses[0].temperature.raw.item()
        self.seen.append((raw, weights(model)))


@pytest.mark.parametrize("given", [False, True], ids=["method", "objective"])
def test_model_init_starts_every_run_afresh(given, tmp_path):
    """A search whose second trial goes on with the first one's temperature compares nothing."""
    models = []

    def model_init():
        models.append(classifier("bert", 0))
        return models[-1]

    objective = build_objective("ctkd", curriculum=0.0) if given else None
    starts = Starts()
    trainer = build_trainer(
        tmp_path,
        None,
        classifier("bert", 1),
        table(examples("bert", 8)),
        trainer={"model_init": model_init, "objective": objective, "callbacks": [starts]},
        method="ctkd",
        method_kwargs={"curriculum": 0.0},
        temperature_learning_rate=10.0,
    )
    starts.trainer = trainer
    ends = []
    for _ in range(2):
        trainer.train()
        assert trainer.model is models[-1]
        ends.append((trainer.objective.losses[0].temperature.raw.item(), weights(trainer.model)))
    assert len(models) == 3
    assert [raw for raw, _ in starts.seen] == [1.0, 1.0]
    assert ends[0][0] == ends[1][0] != 1.0
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=0, atol=0)


def test_smaller_batches_after_running_out_of_memory_start_afresh(tmp_path):
    """`auto_find_batch_size` runs the whole loop again: half a gradient and half a logging window must not stay."""
    sizes = []

    def runs_out(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes == [8, 8]:  # the second micro-batch of the first step
            raise RuntimeError("CUDA out of memory.")

    runs = []
    for size, auto_find in ((8, True), (7, False)):
        student = classifier("bert", 0)
        if auto_find:
            student.register_forward_pre_hook(runs_out, with_kwargs=True)
        runs.append(
            train(
                tmp_path,
                student,
                classifier("bert", 1),
                table(examples("bert", 28)),
                method="ctkd",
                method_kwargs={"curriculum": 0.0},
                gradient_accumulation_steps=2,
                per_device_train_batch_size=size,
                auto_find_batch_size=auto_find,
            )
        )
    assert sizes == [8, 8, 7, 7, 7, 7]
    found, asked = runs
    torch.testing.assert_close(weights(found.model), weights(asked.model), rtol=0, atol=0)
    torch.testing.assert_close(dict(found.objective.state_dict()), dict(asked.objective.state_dict()), rtol=0, atol=0)
    assert found.state.log_history[:-1] == asked.state.log_history[:-1]


def test_changed_arguments_change_the_objective(tmp_path):
    """A search sets attributes of the arguments: a strategy built once keeps T=4 while the trial says 2."""
    rows = table(examples("bert", 8))
    trainer = build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), rows)
    trainer.args.method_kwargs = {"temperature": 2.0}
    trainer.train()
    assert trainer.state.log_history[0]["temperature/student_mean"] == 2.0
    trainer.args.kd_weight = 0.0
    trainer.train()
    assert "kd_loss" not in trainer.state.log_history[0]


def test_building_the_objective_draws_no_random_number_of_others(tmp_path):
    """Another method must not mean another dropout mask and another order of rows."""
    states = []
    for method in ("kd", "ctkd_instance"):
        build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), method=method)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_weight_decay_everywhere_is_that_of_torch(tmp_path):
    """The papers' recipes decay biases and normalisation too; with them spared a repeated number is another one."""
    student = classifier("resnet", 0)
    expected = {name: 0.5 * value.detach().clone() for name, value in student.named_parameters()}
    args = {"optim": "sgd", "learning_rate": 1.0, "weight_decay": 0.5, "lr_scheduler_type": "constant", "max_steps": 1}
    trainer = build_trainer(tmp_path, student, classifier("resnet", 1), weight_decay_everywhere=True, **args)
    trainer.create_optimizer()
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    for name, value in student.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=0, atol=1e-7, msg=name)


# --- What this relies on ---------------------------------------------------------------------------------------------

OVERRIDDEN = [
    name
    for cls in (CheckpointingTrainer, PassTrainer, DataTrainer, ScheduledTrainer, DistillationTrainer)
    for name, value in vars(cls).items()
    if inspect.isfunction(value) and hasattr(Trainer, name)
]


def test_the_overrides_are_these():
    """A renamed method of the Trainer would leave ours behind, uncalled."""
    assert set(OVERRIDDEN) >= {
        "_finalize_training",
        "_get_num_items_in_batch",
        "_get_train_sampler",
        "_inner_training_loop",
        "_load_best_model",
        "_load_from_checkpoint",
        "_init_training_state",
        "_load_optimizer_and_scheduler",
        "_run_epoch",
        "_save",
        "_save_checkpoint",
        "_set_signature_columns_if_needed",
        "compute_loss",
        "create_optimizer",
        "create_scheduler",
        "evaluation_loop",
        "get_batch_samples",
        "get_decay_parameter_names",
        "log",
        "prediction_step",
        "set_initial_training_values",
        "training_step",
    }


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overrides_take_what_the_trainer_hands_them(name):
    """Private methods change between releases: a new argument must fail here, not in a user's run."""
    theirs = list(inspect.signature(getattr(Trainer, name)).parameters)
    ours = inspect.signature(getattr(DistillationTrainer, name)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in ours.values()):
        theirs = theirs[: sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in ours.values())]
    named = [key for key, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert named[: len(theirs)] == theirs


@pytest.mark.parametrize(
    "attribute",
    [
        "_tr_loss",
        "_total_loss_scalar",
        "_globalstep_last_logged",
        "_created_lr_scheduler",
        "_signature_columns",
        "_get_output_dir",
        "gather_function",
        "loss_is_scaled_for_ga",
    ],
)
def test_attributes_of_the_trainer_are_still_there(attribute):
    """Setting an attribute that nobody reads any more is silent."""
    assert attribute in inspect.getsource(Trainer)


@pytest.mark.parametrize("labels", LABELS)
def test_loss_of_a_batch_outside_training_is_its_own_mean(labels, tmp_path):
    """`compute_loss` is public: without a count it must not need one."""
    rows = examples("bert", 6, labels)
    student = classifier("bert", 0)
    trainer = build_trainer(tmp_path, student, classifier("bert", 1), ce_weight=1.0, kd_weight=0.0)
    loss, outputs = trainer.compute_loss(student.train(), batch_of(rows), return_outputs=True)
    expected = 0.0 if labels == "unlabelled" else mean_cross_entropy(student, rows)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert outputs["logits"].shape == (6, CLASSES)
    assert trainer.compute_loss(student.eval(), batch_of(rows)).item() == pytest.approx(expected, rel=1e-6)


def test_objective_that_needs_no_teacher_trains_without_one(tmp_path):
    """Tf-KD distils from the labels alone: a demand for a teacher would shut it out."""
    objective = DistillationObjective([(50.0, TeacherFreeLoss())], ce_weight=0.5, kd_weight=1.0)
    student = classifier("bert", 0)
    before = weights(student)
    trainer = train(tmp_path, student, None, table(examples("bert", 8, "mixed")), trainer={"objective": objective})
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == 2
    for record in records:
        assert record["kd_loss"] > 0
        assert record["loss"] == pytest.approx(record["ce_loss"] + record["kd_loss"], abs=2e-4)
    assert any(not torch.equal(before[name], value) for name, value in weights(student).items())


def test_phases_of_a_method_follow_the_run(tmp_path):
    """Annealing-KD's two phases come from the trainer's progress: the teacher alone, then the labels alone."""
    objective = DistillationObjective([(1.0, AnnealingKDLoss(2, first_phase=0.5))], ce_weight=1.0, kd_weight=1.0)
    rows = table(examples("bert", 16))
    trainer = train(tmp_path, classifier("bert", 0), classifier("bert", 1), rows, trainer={"objective": objective})
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert [record["ce_loss"] > 0 for record in records] == [False, False, True, True]
    assert [record["kd_loss"] > 0 for record in records] == [True, True, False, False]


# --- DeepSpeed -------------------------------------------------------------------------------------------------------


def test_where_inputs_are_cast_labels_weights_and_stored_logits_keep_their_precision(tmp_path, monkeypatch):
    """With DeepSpeed the Trainer casts every float of a batch to the engine's type: a stored logit of 70,000 becomes
    infinite, and weights and shares of mixtures are rounded to three digits."""
    engine = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.float16))
    trainer = build_trainer(tmp_path, classifier("vit", 0), classifier("vit", 1), table(examples("vit", 4)))
    monkeypatch.setattr(type(trainer.accelerator.state), "deepspeed_plugin", property(lambda state: engine))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    exact = {
        TEACHER_LOGITS: torch.full((4, CLASSES), 70_000.0),
        ROW_WEIGHT: torch.full((4,), 1 / 3),
        MIX_LAMBDA: torch.full((4,), 1 / 3),
        "teacher_pixel_values": torch.full((4, 3, 8, 8), 1 / 3),
        "labels": torch.full((4, CLASSES), 1 / 3),
    }
    prepared = trainer._prepare_inputs({"pixel_values": torch.zeros(4, 3, 8, 8), **exact})
    assert prepared["pixel_values"].dtype == torch.float16  # the engine's weights are
    for name, value in exact.items():
        assert torch.equal(prepared[name], value), name

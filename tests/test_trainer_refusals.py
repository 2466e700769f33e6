"""What the trainer refuses, in words: before training where it can be known, at the first batch otherwise."""

from types import SimpleNamespace

import pytest
import torch
from distributed_worker import Stream
from tiny import CLASSES, Projected, Rows, arguments, build_trainer, classifier, examples, table, train
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from hf_kd import DistillationObjective, DistillationTrainer, KDLoss
from hf_kd.temperatures import CTKDTemperature
from hf_kd.trainer.checks import check_parallelism


def refused(
    tmp_path, said, error=ValueError, *, student=None, teacher="default", rows=None, trainer=None, **overrides
):
    """Building the trainer raises `error`, and says `said`."""
    student = classifier("bert", 0) if student is None else student
    teacher = classifier("bert", 1) if teacher == "default" else teacher
    with pytest.raises(error, match=said):
        build_trainer(tmp_path, student, teacher, rows, trainer=trainer, **overrides)


def test_second_loss_function_is_refused(tmp_path):
    """It would be ignored, or the teacher would be."""
    refused(tmp_path, "compute_loss_func=", trainer={"compute_loss_func": lambda *_, **__: None})


def test_second_schedule_is_refused(tmp_path):
    student = classifier("bert", 0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = {"optimizers": (optimizer, schedule)}
    refused(tmp_path, "two learning-rate schedules", student=student, trainer=trainer, lr_milestones=[1])


def test_plain_training_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="got TrainingArguments, which has no `method`"):
        DistillationTrainer(classifier("bert", 0), TrainingArguments(str(tmp_path), use_cpu=True))


def test_several_devices_in_one_process_are_refused(tmp_path):
    """`DataParallel` replicates the student without its teacher."""
    args = arguments(tmp_path)
    assert args.n_gpu == 0
    args._n_gpu = 2
    with pytest.raises(ValueError, match="found 2 devices in one process.*accelerate launch"):
        DistillationTrainer(classifier("bert", 0), args, teacher_model=classifier("bert", 1))


def test_shared_rows_are_refused(tmp_path):
    """Under tensor parallelism two processes hold the same rows, and the count is twice too large."""
    check_parallelism(SimpleNamespace(parallelism_config=None))
    with pytest.raises(ValueError, match="tensor and sequence parallelism"):
        check_parallelism(SimpleNamespace(parallelism_config=SimpleNamespace(tp_enabled=True, sp_enabled=True)))


def test_processes_that_train_alone_are_refused(monkeypatch):
    """`torchrun` without a GPU and without `use_cpu`: accelerate forms no group, and all write into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"one of 2 processes and is alone in its group.*use_cpu=True"):
        check_parallelism(SimpleNamespace(num_processes=1))
    check_parallelism(SimpleNamespace(num_processes=2, even_batches=True))
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_parallelism(SimpleNamespace(num_processes=1))


def test_uneven_batches_of_several_processes_are_refused(tmp_path):
    """They end in a hang: one process has no more batches, and the other waits for its gradients."""
    with pytest.raises(ValueError, match=r"'even_batches': False.*wait for ever"):
        check_parallelism(SimpleNamespace(num_processes=2, even_batches=False))
    one = build_trainer(
        tmp_path, classifier("bert", 0), classifier("bert", 1), accelerator_config={"even_batches": False}
    )
    assert one.accelerator.even_batches is False


def test_milestones_over_rows_without_a_length_are_refused(tmp_path):
    """Run all the same, the rate never falls: the Trainer takes all steps for one epoch."""
    rows = Stream(examples("bert", 16))
    refused(tmp_path, "Stream.*has no length", rows=rows, lr_milestones=[1, 2], max_steps=12)
    build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), Rows(rows.rows.rows), lr_milestones=[1, 2])


def test_layerwise_optimizers_with_something_else_to_learn_are_refused(tmp_path):
    """Their `step` does nothing: a projector would be a random matrix for ever."""
    optimizer = LayerWiseDummyOptimizer()
    projector = torch.nn.Linear(2, 2)
    optimizer.add_param_group({"params": projector.parameters()})
    before = projector.weight.clone()
    projector(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(projector.weight, before)

    losses = {"projector of `projected`": [Projected()], "layer of `task_serialization`": []}
    for what, others in losses.items():
        parts = [(1.0, loss) for loss in (KDLoss(4.0), *others)]
        objective = DistillationObjective(parts, ce_weight=1.0, kd_weight=1.0, task_serialization=not others)
        for optim in ("galore_adamw_layerwise", "apollo_adamw_layerwise"):
            said = f"optim='{optim}'.*{what} would stay"
            refused(tmp_path, said, trainer={"objective": objective}, optim=optim, optim_target_modules=["query"])
    build_trainer(
        tmp_path, classifier("bert", 0), classifier("bert", 1), method="ctkd", optim="galore_adamw_layerwise"
    )  # temperatures have an optimizer of their own


def test_several_label_columns_are_refused(tmp_path):
    refused(tmp_path, "one label column", label_names=["start", "end"])


def test_objective_must_be_there_and_be_one(tmp_path):
    refused(tmp_path, "neither `objective` nor `args.method`", method=None)
    refused(tmp_path, "got KDLoss", TypeError, trainer={"objective": KDLoss(4.0)})
    build_trainer(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        trainer={"objective": DistillationObjective([(1.0, KDLoss(4.0))], ce_weight=1.0, kd_weight=1.0)},
        method=None,
    )


def test_distillation_without_a_teacher_is_refused(tmp_path):
    """At the latest at the first batch, where only a plain torch dataset shows its columns."""
    rows = examples("bert", 4)
    refused(tmp_path, "nothing to distil from", teacher=None, rows=table(rows))
    refused(tmp_path, "needs a `teacher_model`", teacher=None, kd_weight=0.0, evaluate_with_teacher=True)
    trainer = build_trainer(tmp_path, classifier("bert", 0), None, Rows(rows))
    with pytest.raises(ValueError, match=r"no\s+`teacher_model` and the batch has no `teacher_logits` column"):
        trainer.train()


def test_nothing_to_learn_from_is_refused(tmp_path):
    """A baseline whose label column has another name learns nothing, at a loss of 0."""
    trainer = build_trainer(tmp_path, classifier("bert", 0), None, table(examples("bert", 4, "none")), kd_weight=0.0)
    with pytest.raises(ValueError, match="nothing to learn from"):
        trainer.train()


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize(("value", "said"), [(CLASSES, "5"), (-1, "-1"), (70, "70")])
def test_labels_outside_the_classes_are_refused_before_training(value, said, name, tmp_path):
    """On a GPU this is a device-side assert, minutes later, without a word about labels."""
    rows = examples("bert", 8, "mixed")
    rows[5]["labels"] = value
    rows = [{name if key == "labels" else key: v for key, v in row.items()} for row in rows]
    said = f"found the labels {said} in {{}}\\['{name}'\\], but `model` has the classes 0 to 4"
    refused(tmp_path, said.format("train_dataset"), rows=table(rows))
    refused(tmp_path, said.format("eval_dataset"), trainer={"eval_dataset": table(rows)})
    refused(tmp_path, said.format(r"eval_dataset\['x'\]"), trainer={"eval_dataset": {"x": table(rows)}})


def test_labels_outside_the_classes_are_refused_at_the_first_batch(tmp_path):
    rows = examples("bert", 8)
    rows[2]["labels"] = 11
    trainer = build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), Rows(rows))
    with pytest.raises(ValueError, match="found the labels 11 in the first batch"):
        trainer.train()


@pytest.mark.parametrize("value", ["cat", 0.5, [0, 1, 0, 0, 1]], ids=str)
def test_labels_that_are_no_class_index_are_refused(value, tmp_path):
    rows = examples("bert", 4)
    for row in rows:
        row["labels"] = value
    refused(tmp_path, "one class index per row", rows=table(rows))
    if value != "cat":
        trainer = build_trainer(tmp_path, classifier("bert", 0), classifier("bert", 1), Rows(rows))
        with pytest.raises(ValueError, match="one class index per row"):
            trainer.train()


def test_temperatures_that_cannot_divide_are_refused_at_the_first_batch(tmp_path):
    """DTKD without its guard gives negative temperatures on few classes: the loss then rewards disagreement."""
    rows = [row | {"teacher_logits": [-3.0, -1.0, -2.0, -2.0, -4.0]} for row in examples("bert", 4)]
    trainer = build_trainer(
        tmp_path, classifier("bert", 0), None, table(rows), method="dtkd", method_kwargs={"guard": False}
    )
    with pytest.raises(ValueError, match=r"temperature of loss `kd_dtkd` runs from -?[\d.]+ to .* first batch"):
        trainer.train()


def test_saturated_temperature_is_reported(tmp_path, caplog):
    """At an end of its interval the sigmoid is flat: the temperature looks learned and is stuck."""
    objective = DistillationObjective([(1.0, KDLoss(CTKDTemperature(initial=8.0)))], ce_weight=1.0, kd_weight=1.0)
    train(
        tmp_path,
        classifier("bert", 0),
        classifier("bert", 1),
        table(examples("bert", 8)),
        trainer={"objective": objective},
    )
    assert caplog.text.count("has all but stopped learning") == 1

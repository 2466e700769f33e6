"""The runs that are compared between one process and two; `torchrun` executes this file, the tests import it.

Every case takes a folder and returns plain data. Batch sizes are per optimizer step and split over the processes, so
that the same case is the same training for any number of them.
"""

import faulthandler
import itertools
import os
import sys
from functools import partial
from pathlib import Path

import invariance
import recomputing
import sigterm_worker
import torch
from tiny import (
    LABELS,
    PROBLEMS,
    TEXT,
    Gram,
    Projected,
    Rows,
    build_trainer,
    classifier,
    examples,
    head,
    mixed_rows,
    table,
    train,
    update,
    weights,
    with_targets,
    without_times,
)
from torch.utils.data import IterableDataset
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_kd import DistillationObjective, KDLoss, build_objective
from hf_kd.losses import BernoulliKLLoss, LogitMSELoss
from hf_kd.temperatures import CTKDTemperature
from hf_kd.trainer import scaling

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
RAGGED = 14  # 4, 4, 4 and 2: the last process completes its batch with two rows it has seen
METHODS = ("ctkd", "ctkd_instance", "dtkd", "wttm", "dkd", "flsw", "dist", "mlkd", "wkd_l", "feature_mse")
AT_ONCE = {"curriculum": 0.0}


class Stream(IterableDataset):
    """Rows without a length."""

    def __init__(self, rows):
        self.rows = Rows(rows)

    def __iter__(self):
        return (self.rows[index] for index in range(len(self.rows)))


def everything(trainer):
    """All that was learned, as one vector."""
    parts = [*weights(trainer.model).values(), *trainer.objective.state_dict().values()]
    return torch.cat([part.double().flatten() for part in parts])


def result(trainer, before=None):
    """What a training left behind, and whether it left the same on every process."""
    vector = everything(trainer)
    gathered = trainer.accelerator.gather(vector[None])
    return {
        "distributed_type": trainer.accelerator.distributed_type.value,
        "is_equal_everywhere": bool((gathered == vector).all()),
        "update": vector if before is None else update(before, weights(trainer.model)),
        "objective": weights(trainer.objective),
        "records": without_times(trainer.state.log_history),
        "learned": vector,
        "optimizer": str(trainer.args.optim.value),
    }


def one_step(folder, architecture, rows, *, accumulation=2, **overrides):
    """One optimizer step over all rows: at once on one process, in micro-batches of 4 on two."""
    student = classifier(architecture, 0)
    before = weights(student)
    size, accumulation = (len(rows), 1) if WORLD == 1 else (4, accumulation)
    given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    trainer = train(
        folder,
        student,
        classifier(architecture, 1),
        Rows(rows),
        max_steps=1,
        learning_rate=1.0,
        **{**given, **overrides},
    )
    return result(trainer, before)


def cell(folder, which, rows):
    """One step of a cell of `invariance`: at once on one process, in two micro-batches of 4 on each of two."""
    trainer, moved = invariance.one_step(folder, which, rows, *((rows, 1) if WORLD == 1 else (4, 2)))
    return result(trainer) | {"update": moved}


def recomputed(folder, name, kind, reentrant):
    """One step of eight rows: without activation checkpointing on one process, with it on two."""
    kwargs = None if WORLD == 1 else {"use_reentrant": reentrant}
    trainer, _, before = recomputing.step(folder, name, kind, kwargs, size=8 // WORLD, dropout=False)
    ways = recomputing.moved(trainer, before).values()
    return result(trainer) | {"update": torch.cat([way.double().flatten() for way in ways])}


def compiled(folder, first, kind="bert"):
    """Two epochs, compiled on two processes; `first` evaluates before."""
    rows = Rows(examples(kind, RAGGED, "mixed"))
    trainer = build_trainer(
        folder,
        classifier(kind, 0),
        classifier(kind, 1),
        rows,
        trainer={"eval_dataset": rows},
        method="ctkd",
        per_device_train_batch_size=8 // WORLD,
        num_train_epochs=2,
        torch_compile_backend=None if WORLD == 1 else "eager",
    )
    if first:
        trainer.evaluate()
    trainer.train()
    return result(trainer, weights(classifier(kind, 0))) | {"wrapped": type(trainer.model_wrapped).__name__}


def other_head(folder, problem, labels):
    """Two steps of a head for several labels or numbers, then an evaluation of thirteen rows."""
    loss = BernoulliKLLoss(2.0) if problem == "several-labels" else LogitMSELoss()
    student = head("bert", 0, problem)
    before = weights(student)
    rows = with_targets(examples("bert", RAGGED, "none"), problem, labels)
    trainer = build_trainer(
        folder,
        student,
        head("bert", 1, problem),
        table(rows),
        trainer={
            "objective": DistillationObjective([(1.0, loss)], ce_weight=0.3, kd_weight=0.7),
            "eval_dataset": table(rows[:13]),
        },
        per_device_train_batch_size=8 // WORLD,
        evaluate_with_teacher=True,
    )
    trainer.train()
    output = trainer.predict(table(rows[:13]))
    predictions = torch.tensor(output.predictions)
    return result(trainer, before) | {"metrics": without_times([output.metrics]), "predictions": predictions}


def together(folder, objective, rows, *, steps=1, gather_rows=None, **overrides):
    """Steps over 16 rows each, in one micro-batch: all that a batch relation may see is the same."""
    student = classifier("bert", 0)
    before = weights(student)
    given = {"per_device_train_batch_size": 16 // WORLD, "max_steps": steps, "learning_rate": 0.1, **overrides}
    own, scaling.gather_rows = scaling.gather_rows, gather_rows or scaling.gather_rows
    try:
        trainer = train(
            folder,
            student,
            classifier("bert", 1),
            Rows(examples("bert", rows, "mixed")),
            trainer={"objective": objective()},
            **given,
        )
    finally:
        scaling.gather_rows = own
    return result(trainer, before)


def relation(**settings):
    """A batch relation at a learned temperature, alone."""
    strategy = CTKDTemperature(1.0, 5.0, **AT_ONCE)
    return DistillationObjective([(1.0, Gram(strategy))], **{"ce_weight": 0.0, "kd_weight": 1.0, **settings})


def projector():
    """Beside a projector, the layer of task serialisation: all that is learned outside of the student's wrapper."""
    losses = [(1.0, KDLoss(4.0)), (0.5, Projected())]
    return DistillationObjective(losses, ce_weight=0.5, kd_weight=1.0, task_serialization=True)


def without_gradient(part, rows):
    """Gathering whose backward stays at home: each process pulls its own rows, for its own share of the relation."""
    parts = list(GATHER(part.detach(), rows).split(rows))
    parts[RANK] = part[: rows[RANK]]
    return torch.cat(parts)


GATHER = scaling.gather_rows


def trajectory(folder, method, *, rows=RAGGED, dataset=Rows, **overrides):
    """Two epochs, 8 rows to a step."""
    student = classifier("bert", 0)
    before = weights(student)
    given = {"per_device_train_batch_size": 8 // WORLD, "num_train_epochs": 2, "learning_rate": 0.02, **overrides}
    trainer = train(
        folder, student, classifier("bert", 1), dataset(examples("bert", rows, "mixed")), method=method, **given
    )
    return result(trainer, before)


def cached(folder, method):
    """A run that fills a cache, each process its part, and one that reads it without a teacher."""
    before, cache = weights(classifier("bert", 0)), f"{folder}/cache-{method}"
    for teacher in (classifier("bert", 1), None):
        trainer = train(
            folder,
            classifier("bert", 0),
            teacher,
            table(examples("bert", RAGGED, "mixed")),
            trainer={"teacher_cache": cache},
            method=method,
            per_device_train_batch_size=8 // WORLD,
            num_train_epochs=2,
            learning_rate=0.02,
            train_sampling_strategy="random",
        )
    return result(trainer, before) | {"answers": len(trainer.teacher_cache)}


def fewer_classes(folder, method):
    """A teacher that knows three of the five classes, in another order; rows enough for a verdict on it."""
    names = ("cat", "dog", "emu", "fox", "gnu")
    student = classifier("bert", 0, id2label=dict(enumerate(names)))
    teacher = classifier("bert", 1, classes=3, id2label=dict(enumerate(("fox", "cat", "emu"))))
    rows, before = examples("bert", 246), weights(student)
    settings = {"per_device_train_batch_size": 128 // WORLD, "method": method}
    return result(train(folder, student, teacher, Rows(rows), **settings), before)


def evaluated_first(folder, bf16):
    """A training after an evaluation: what comes of measuring the student before it learns."""
    rows = Rows(examples("bert", 16))
    trainer = build_trainer(
        folder,
        classifier("bert", 0),
        classifier("bert", 1),
        rows,
        trainer={"eval_dataset": rows},
        method="ctkd",
        per_device_train_batch_size=8 // WORLD,
        bf16=bf16,
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    trainer.train()  # goes on with the wrapper it has
    return result(trainer)


def started_apart(folder, method):
    """Five steps from an objective that each process initialised in its own way."""
    if method == "ctkd":
        objective = build_objective("ctkd", initial=1.0 + RANK, **AT_ONCE)
    else:
        torch.manual_seed(RANK)
        objective = build_objective("ctkd_instance", num_labels=5, **AT_ONCE)
    trainer = train(
        folder,
        classifier("bert", 0),
        classifier("bert", 1),
        Rows(examples("bert", 24)),
        trainer={"objective": objective},
        per_device_train_batch_size=8 // WORLD,
        max_steps=5,
        temperature_learning_rate=1.0,
    )
    return result(trainer)


def counts(prediction):
    """Right answers among the labelled rows, and all rows."""
    choice = prediction.predictions.argmax(-1)
    return {"right": int((choice == prediction.label_ids).sum()), "rows": len(choice)}


def evaluation(folder, rows):
    """An evaluation before and after a training, and predictions."""
    trainer = build_trainer(
        folder,
        classifier("bert", 0),
        classifier("bert", 1),
        Rows(examples("bert", 8)),
        trainer={"eval_dataset": table(rows), "compute_metrics": counts},
        per_device_train_batch_size=8 // WORLD,
        evaluate_with_teacher=True,
    )
    before = trainer.evaluate()
    trainer.train()
    output = trainer.predict(table(rows))
    return {"metrics": without_times([before, output.metrics]), "predictions": torch.tensor(output.predictions)}


def interrupted(folder, method, *, architecture="bert", trainer=None, **overrides):
    """Three epochs of two steps; the second run goes on in the middle of an epoch and of a logging window."""
    runs = []
    given = {"train_sampling_strategy": "random", **overrides}
    for seed, resume in ((0, None), (1, f"{folder}/0/checkpoint-3")):
        made = build_trainer(
            f"{folder}/{seed}",
            classifier(architecture, seed, hidden_dropout_prob=0.1),
            classifier(architecture, 9),
            table(examples(architecture, RAGGED, "mixed")),
            trainer=trainer,
            method=method,
            method_kwargs=AT_ONCE if "ctkd" in method else None,
            per_device_train_batch_size=8 // WORLD,
            num_train_epochs=3,
            optim="adamw_torch",
            learning_rate=0.01,
            lr_scheduler_type="linear",
            logging_steps=2,
            save_strategy="steps",
            save_steps=3,
            **given,
        )
        output = made.train(resume_from_checkpoint=resume)
        runs.append(result(made) | {"train_loss": output.training_loss})
    auto = AutoModelForSequenceClassification if architecture in TEXT else AutoModelForImageClassification
    _, info = auto.from_pretrained(f"{folder}/0/checkpoint-3", output_loading_info=True)
    return {
        "whole": runs[0],
        "resumed": runs[1],
        "loading": {key: list(value) for key, value in info.items() if value},
    }


def broken(folder):
    """NaN in a row of the second step that only the last process holds."""
    rows = examples("vit", 24)
    rows[15]["pixel_values"] = torch.full((3, 8, 8), torch.nan).tolist()
    trainer = build_trainer(
        folder,
        classifier("vit", 0),
        classifier("vit", 1),
        Rows(rows),
        per_device_train_batch_size=8 // WORLD,
        logging_steps=100,
        save_strategy="steps",
        save_steps=1,
    )
    try:
        trainer.train()
    except FloatingPointError as error:
        said = str(error)
    else:
        said = ""
    all_said = [said]
    if WORLD > 1:
        all_said = [None] * WORLD
        torch.distributed.all_gather_object(all_said, said)
    return {"said": all_said, "saved": sorted(path.name for path in Path(folder).glob("checkpoint-*"))}


def stopped_by_signal(folder):
    """The last process gets SIGTERM in the third step, the others while they save; then the run goes on."""
    moments = ["end"] if RANK == WORLD - 1 else ["save"]
    trainer, stopped = sigterm_worker.run(folder, 0, moments=moments)
    checkpoints = sorted(path.name for path in Path(folder).glob("checkpoint-*"))
    resumed = sigterm_worker.end(sigterm_worker.run(folder, 1, resume=True)[0])
    whole = sigterm_worker.end(sigterm_worker.run(f"{folder}-whole", 0)[0])
    torch.testing.assert_close(resumed[0], whole[0], rtol=0, atol=0)
    assert resumed[1] == whole[1]
    return {"code": stopped.code, "step": trainer.state.global_step, "checkpoints": checkpoints}


def cases():
    """Name -> a function of the folder."""
    found = {}
    for which, rows in itertools.product(invariance.CELLS, (16, RAGGED)):
        if invariance.is_quick(*which) and (which[-1] == "kd" or rows == RAGGED):
            found[f"cell-{'-'.join(which)}-{rows}"] = partial(cell, which=which, rows=rows)
    for architecture in ("bert", "vit"):
        rows = examples(architecture, RAGGED, "mixed")
        found[f"baseline-{architecture}"] = partial(one_step, architecture=architecture, rows=rows, kd_weight=0.0)
    found["trajectory-cached"] = partial(cached, method="ctkd")
    one_sided = examples("bert", 8)[:4] + examples("bert", 8, "unlabelled")[4:]
    found["labels-on-one-process"] = partial(one_step, architecture="bert", rows=one_sided, accumulation=1)
    for name, kind, reentrant in (("bert", "ctkd", False), ("vit", "lora", True), ("vit", "projector", True)):
        found[f"recomputed-{name}-{kind}"] = partial(recomputed, name=name, kind=kind, reentrant=reentrant)
    for first in (False, True):
        found[f"compiled-{'evaluated-first' if first else 'at-once'}"] = partial(compiled, first=first)
    for problem, labels in itertools.product(PROBLEMS, LABELS):
        found[f"head-{problem}-{labels}"] = partial(other_head, problem=problem, labels=labels)
    weighed = examples("bert", RAGGED, "mixed")
    weighed = [{**row, "label_weight": 0.25 + index % 4} for index, row in enumerate(weighed)]
    for kd_weight in (0.0, 0.5):
        found[f"baseline-weighed-{kd_weight}"] = partial(
            one_step, architecture="bert", rows=weighed, kd_weight=kd_weight
        )
    for weighed in (False, True):
        rows = mixed_rows(RAGGED, weighed=weighed)
        found[f"step-mixed-rows-{weighed}"] = partial(one_step, architecture="bert", rows=rows)
    found["trajectory-balanced"] = partial(trajectory, method="kd", dataset=table, train_sampling_strategy="balanced")
    for method in METHODS:
        found[f"trajectory-{method}"] = partial(trajectory, method=method)
    for method in ("kd", "dkd", "dist"):
        found[f"trajectory-fewer-classes-{method}"] = partial(fewer_classes, method=method)
    found["windows"] = partial(trajectory, method="dtkd", logging_steps=3)
    found["stream"] = partial(trajectory, method="dtkd", dataset=Stream, max_steps=4)
    for name, objective in (("relation", relation), ("mixed-relation", partial(relation, ce_weight=0.5))):
        for rows, steps in ((16, 1), (RAGGED, 1), (30, 4)):
            found[f"{name}-{rows}"] = partial(together, objective=objective, rows=rows, steps=steps)
    found["cut-relation"] = partial(together, objective=relation, rows=16, gather_rows=without_gradient)
    for optim in ("sgd", "adamw_torch"):
        found[f"projector-{optim}"] = partial(
            together, objective=projector, rows=30, steps=4, optim=optim, learning_rate=0.01
        )
    for way, size in (("split", 8), ("dispatch", 8 // WORLD)):
        found[f"{way}-batches"] = partial(
            trajectory,
            method="dtkd",
            rows=13,
            accelerator_config={f"{way}_batches": True},
            per_device_train_batch_size=size,
        )
    for method in ("ctkd", "ctkd_instance"):
        found[f"apart-{method}"] = partial(started_apart, method=method)
    for bf16 in (False, True):
        found[f"evaluated-first-{'bf16' if bf16 else 'float32'}"] = partial(evaluated_first, bf16=bf16)
    for labels in LABELS:
        found[f"evaluation-{labels}"] = partial(evaluation, rows=examples("bert", 13, labels))
    for method in ("kd", "ctkd"):
        found[f"interrupted-{method}"] = partial(interrupted, method=method)
    mixing = {"mixing": {"mixup": 0.8, "cutmix": 1.0, "mix_probability": 0.8}}
    found["interrupted-mixing"] = partial(
        interrupted, method="kd", architecture="vit", trainer=mixing, train_sampling_strategy="balanced"
    )
    found["signal"] = stopped_by_signal
    return {**found, "broken": broken}


def other_cells():
    """The cells of `invariance` that `cases` leaves out."""
    every = itertools.product(invariance.CELLS, (16, RAGGED))
    found = {f"cell-{'-'.join(which)}-{rows}": partial(cell, which=which, rows=rows) for which, rows in every}
    return {name: case for name, case in found.items() if name not in cases()}


def main(folder, seconds, which="cases"):
    """Run every case of `cases`, or of `other_cells`; process 0 writes the results.

    The first failure ends the process, and with it the launch. A process that hangs ends itself after `seconds`, with
    a traceback of where it hangs.
    """
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    for name, case in globals()[which]().items():
        try:
            outcome = case(f"{folder}/runs/{name}")
        except Exception as error:
            raise RuntimeError(f"case {name} failed on process {RANK}") from error
        if RANK == 0:
            torch.save(outcome, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])

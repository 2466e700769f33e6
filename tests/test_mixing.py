"""mixup and CutMix: one mixture for both models, its exact loss for every split, and words where it means nothing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    PROBLEMS,
    Rows,
    build_trainer,
    classifier,
    examples,
    head,
    mixed_rows,
    relative_difference,
    table,
    train,
    update,
    weights,
    with_targets,
)
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from hf_kd import Mixing, add_teacher_inputs, add_teacher_logits, build_objective, load_task
from hf_kd.batches import MixedLabels
from hf_kd.data.augmentation import parse_augmentation, parse_mixing
from hf_kd.experiment import parse_config, run_experiment
from hf_kd.inputs import DistillationCollator
from hf_kd.losses import KDLoss
from hf_kd.objective import DistillationObjective
from hf_kd.registry import ConfigError
from hf_kd.trainer.data import DataTrainer

TOLERANCE = 1e-5
"""Relative, on a step's way: float32 sums in another order give 5e-7; a miscounted label 1e-2 and more."""


def generator(seed=0):
    return np.random.default_rng(seed)


def pictures(rows=6, size=8, seed=0):
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


# --- The mixture -----------------------------------------------------------------------------------------------------


def test_mixup_is_the_convex_combination_of_both_images():
    """The share belongs to the row's own image; exchanged, every label is the other one's."""
    x, labels = pictures(), torch.arange(6)
    mixed = Mixing(mixup=1.0)({"pixel_values": x, "labels": labels}, generator(1))
    share, partners = mixed["mix_lambda"][0], mixed["labels_mix"]
    assert 0 < share < 1
    assert sorted(partners.tolist()) == list(range(6))
    assert torch.allclose(mixed["pixel_values"], share * x + (1 - share) * x[partners], atol=1e-6)
    assert torch.equal(mixed["labels"], labels)


def test_the_share_of_cutmix_is_the_share_of_the_pixels_that_stayed():
    """A box that is cut off at the edge is smaller than drawn: uncorrected, labels say more than the image shows."""
    x, labels = pictures(size=13), torch.arange(6)
    shares = []
    for seed in range(40):
        mixed = Mixing(cutmix=1.0)({"pixel_values": x, "labels": labels}, generator(seed))
        partners, share = mixed["labels_mix"], mixed["mix_lambda"][0].item()
        moved = [row for row in range(6) if partners[row] != row]
        for row in moved:
            stayed = (mixed["pixel_values"][row] == x[row]).all(0)
            assert stayed.float().mean().item() == pytest.approx(share, abs=1e-6)
            assert torch.equal(mixed["pixel_values"][row][:, ~stayed], x[partners[row]][:, ~stayed])
        shares.append(share)
    assert len(set(shares)) > 20


def test_shares_are_beta_distributed():
    """Both parameters alpha: mean 1/2, variance 1 / (4 (2 alpha + 1)). 2,000 draws: 4 standard errors."""
    batch = {"pixel_values": pictures(1, 1), "labels": torch.zeros(1, dtype=torch.long)}
    drawn = np.random.default_rng(5)
    for alpha in (0.2, 1.0, 4.0):
        shares = np.array([Mixing(mixup=alpha)(batch, drawn)["mix_lambda"].item() for _ in range(2000)])
        variance = 1 / (4 * (2 * alpha + 1))
        assert shares.mean() == pytest.approx(0.5, abs=4 * (variance / 2000) ** 0.5)
        assert shares.var() == pytest.approx(variance, rel=0.1)


def test_probabilities_say_how_often_and_which():
    batch = {"pixel_values": pictures(4, 4), "labels": torch.arange(4)}
    drawn, mixing = np.random.default_rng(0), Mixing(1.0, 1.0, mix_probability=0.5, switch_probability=0.25)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for _ in range(400):
        mixed = mixing(batch, drawn)
        if "labels_mix" not in mixed:
            assert mixed.keys() == batch.keys()
            assert mixed["pixel_values"] is batch["pixel_values"]
            kinds["none"] += 1
        else:
            whole = torch.isin(mixed["pixel_values"], batch["pixel_values"]).all()
            kinds["cutmix" if whole else "mixup"] += 1
    assert kinds["none"] == pytest.approx(200, abs=40)  # 4 standard deviations
    assert kinds["cutmix"] == pytest.approx(50, abs=27)


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)], ids=repr)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_both_models_see_the_same_mixture(mixing, factor):
    """A teacher that answers for another mixture, or for none, teaches noise. With a size that is a multiple the
    teacher's mixture is the student's, enlarged, to the pixel."""
    x = pictures()
    batch = {"pixel_values": x, "labels": torch.arange(6)}
    batch["teacher_pixel_values"] = x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    mixed = mixing(batch, generator(4))
    enlarged = mixed["pixel_values"].repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    assert torch.equal(mixed["teacher_pixel_values"], enlarged)
    assert not torch.equal(mixed["teacher_pixel_values"], batch["teacher_pixel_values"])


@pytest.mark.parametrize("size", [5, 13, 30])
def test_the_teachers_box_is_off_by_half_a_pixel_at_most(size):
    """In the corner of the student's image, and in the corner of the teacher's: as parts of it, not as pixels."""
    x, y = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 8, 8), torch.arange(2.0).reshape(2, 1, 1, 1)
    batch = {"pixel_values": x, "teacher_pixel_values": y.expand(2, 3, size, size), "labels": torch.arange(2)}
    for seed in range(30):
        mixed = Mixing(cutmix=1.0)(batch, generator(seed))
        boxes = []
        for name in ("pixel_values", "teacher_pixel_values"):
            rows, columns = torch.nonzero(mixed[name][0, 0], as_tuple=True)
            side = mixed[name].shape[-1]
            boxes.append([e / side for part in (rows, columns) if len(part) for e in (part.min(), part.max() + 1)])
        if all(boxes):
            assert max(abs(a - b) for a, b in zip(*boxes, strict=True)) <= 0.5 / size + 1e-6


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(cutmix=1.0)], ids=repr)
def test_mixing_commutes_with_normalisation(mixing):
    """Mixing happens after each model's own processor; before it, it would give the same."""
    x = pictures()
    mean, deviation = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.1]))
    after, before = (
        mixing({"pixel_values": pixels, "labels": torch.arange(6)}, generator(2))["pixel_values"]
        for pixels in ((x - mean) / deviation, x)
    )
    assert torch.allclose(after, (before - mean) / deviation, atol=1e-5)  # float32, numbers up to 40


# --- The loss of a mixture -------------------------------------------------------------------------------------------


def reference(logits, first, second, shares, *, smoothing=0.0, weights=None):
    """Mixed cross-entropy in plain Python: the sum over labels that there are, and what they weigh."""
    total = mass = 0.0
    for row, pair in enumerate(zip(first, second, strict=True)):
        biggest = max(logits[row])
        log_sum = biggest + math.log(sum(math.exp(z - biggest) for z in logits[row]))
        log_q = [z - log_sum for z in logits[row]]
        for place, (label, share) in enumerate(zip(pair, (shares[row], 1 - shares[row]), strict=True)):
            if label == -100:
                continue
            weight = share * (1.0 if weights is None else weights[place][row])
            total -= weight * ((1 - smoothing) * log_q[label] + smoothing * sum(log_q) / len(log_q))
            mass += weight
    return total, mass


LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
FIRST, SECOND = [0, 2, -100, 1, -100, 2], [1, -100, 0, 1, -100, 0]
SHARES = [0.3, 0.6, 0.9, 0.5, 0.2, 0.0]
WEIGHTS = [[0.1, 2.0, 3.0, 0.5, 1.0, 4.0], [0.7, 1.0, 0.2, 0.5, 1.0, 0.3]]


def arguments_of(rows, weighed=False):
    mixed = MixedLabels(torch.tensor(SECOND)[rows], torch.tensor(SHARES, dtype=torch.float64)[rows])
    given = {"label_weight": None}
    if weighed:
        given["label_weight"], other = (torch.tensor(part, dtype=torch.float64)[rows] for part in WEIGHTS)
        mixed = mixed._replace(label_weight=other)
    return given | {"mixed": mixed, "labels": torch.tensor(FIRST)[rows]}


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_mixtures_is_the_mean_over_the_mass_of_their_labels(smoothing, weighed):
    """Over rows instead, a member without label would pull the loss down; shares exchanged, or a weight taken from
    the other member's row, teach the other class. In parts, and whole."""
    total, mass = reference(
        LOGITS.tolist(), FIRST, SECOND, SHARES, smoothing=smoothing, weights=WEIGHTS if weighed else None
    )
    objective = DistillationObjective(ce_weight=1.0, kd_weight=0.0)
    everything = slice(0, 6)
    whole = objective(LOGITS, None, label_smoothing=smoothing, **arguments_of(everything, weighed))
    assert whole.loss.item() == pytest.approx(total / mass, abs=1e-12)
    shares = [
        objective(
            LOGITS[part], None, label_smoothing=smoothing, labels_weigh=mass, **arguments_of(part, weighed)
        ).loss.item()
        for part in (slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6))
    ]
    assert sum(shares) == pytest.approx(total / mass, abs=1e-12)


def test_mixtures_without_any_label_give_a_finite_zero():
    objective = DistillationObjective(ce_weight=1.0, kd_weight=0.0)
    logits = LOGITS[4:5].clone().requires_grad_()
    loss = objective(logits, None, **arguments_of(slice(4, 5))).loss
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_several_labels_per_row_mix_linearly():
    """Binary cross-entropy with soft targets, as if the 0 and 1 had been mixed themselves; a row without labels has
    no part in it."""
    first, second = torch.tensor([[1.0, 0, 1], [0, 0, 1]]).double(), torch.tensor([[0.0, 0, 1], [-100] * 3]).double()
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    objective = DistillationObjective(ce_weight=1.0, kd_weight=0.0)
    objective.bind({"num_labels": 3}, problem_type="multi_label_classification")
    loss = objective(LOGITS[:2], None, first, mixed=MixedLabels(second, shares)).loss
    soft = 0.25 * first[0] + 0.75 * second[0]
    expected = F.binary_cross_entropy_with_logits(LOGITS[0], soft) + 0.75 * F.binary_cross_entropy_with_logits(
        LOGITS[1], first[1]
    )
    assert loss.item() == pytest.approx(expected.item() / 1.75, abs=1e-12)


def test_distillation_takes_every_mixture_as_an_unlabelled_row():
    teacher = LOGITS.flip(0)
    objective = DistillationObjective([(1.0, KDLoss(2.0))], ce_weight=1.0, kd_weight=1.0)
    mixed = objective(LOGITS, teacher, **arguments_of(slice(0, 6))).components["kd_loss"]
    assert torch.equal(mixed, objective(LOGITS, teacher, torch.full((6,), -100)).components["kd_loss"])


def test_a_mixture_with_a_class_that_the_teacher_does_not_know_is_left_to_the_cross_entropy():
    """The teacher must put a picture that is half a class it never saw among its own. A share of 0 is no member."""
    objective = DistillationObjective([(1.0, KDLoss(2.0))], ce_weight=1.0, kd_weight=1.0)
    objective.bind({"num_labels": 3}, shared=[0, 1])
    first, second = torch.tensor([0, 2, 0, 0, -100]), torch.tensor([1, 0, 2, 2, 1])
    mixed = MixedLabels(second, torch.tensor([0.5, 0.9, 0.9, 1.0, 0.4]))
    known, taught = objective.distilled_rows(objective.known_labels(first, mixed))
    assert taught.tolist() == [1, 0, 0, 1, 1]
    assert known.tolist() == [-100, -100, -100, 0, -100]
    teacher = LOGITS[:5, :2].flip(0)
    kept = [0, 3, 4]
    expected = objective(LOGITS[kept], teacher[kept], torch.full((3,), -100)).components["kd_loss"]
    actual = objective(LOGITS[:5], teacher, first, mixed=mixed).components["kd_loss"]
    assert actual.item() == pytest.approx(expected.item(), abs=1e-12)


# --- Rows that come mixed: the columns are the contract --------------------------------------------------------------


def one_step(folder, rows, size, accumulation, **keywords):
    student = classifier("bert", 0)
    before = weights(student)
    given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    trainer = train(
        folder, student, classifier("bert", 1), Rows(rows), max_steps=1, learning_rate=1.0, **given, **keywords
    )
    return update(before, weights(student)), trainer


@pytest.mark.parametrize("weighed", [False, True])
def test_one_step_is_the_same_for_every_split(weighed, tmp_path):
    """Every micro-batch has a mass of labels of its own; ragged ends, and masses far below 1, included."""
    rows = mixed_rows(8, weighed=weighed)
    whole, _ = one_step(tmp_path, rows, 8, 1)
    assert whole.norm() > 1e-2
    for size, accumulation in ((4, 2), (2, 4), (1, 8), (3, 3)):
        split, _ = one_step(tmp_path, rows, size, accumulation)
        assert relative_difference(split, whole) < TOLERANCE, (size, accumulation)


@pytest.mark.parametrize("method", ["kd", "ctkd"])
def test_one_step_is_the_same_for_every_split_with_a_teacher_of_fewer_classes(method, tmp_path):
    """Rows that are left to the cross-entropy are no rows of the distillation, in any micro-batch."""
    names, steps = ("cat", "dog", "emu", "fox", "gnu"), []
    for size, accumulation in ((8, 1), (4, 2), (3, 3), (1, 8)):
        student = classifier("bert", 0, id2label=dict(enumerate(names)))
        before = weights(student)
        teacher = classifier("bert", 1, classes=3, id2label=dict(enumerate(("fox", "cat", "emu"))))
        given = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        trainer = train(tmp_path, student, teacher, Rows(mixed_rows(8)), method=method, learning_rate=1.0, **given)
        steps.append(update(before, weights(student)))
        assert trainer.state.log_history[0]["kd_loss"] > 0
    assert all(relative_difference(step, steps[0]) < TOLERANCE for step in steps[1:])


def test_one_step_goes_where_the_loop_written_by_hand_goes(tmp_path):
    rows = mixed_rows(8, weighed=True)
    student, teacher = classifier("bert", 0).train(), classifier("bert", 1).eval()
    before = weights(student)
    columns = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    logits, targets = student(**columns).logits, teacher(**columns).logits.detach()
    total = mass = 0.0
    for index, row in enumerate(rows):
        for tail, share in (("", row["mix_lambda"]), ("_mix", 1 - row["mix_lambda"])):
            label, weight = row[f"labels{tail}"], share * row[f"label_weight{tail}"]
            if label != -100:
                total = total + weight * F.cross_entropy(logits[index : index + 1], torch.tensor([label]))
                mass += weight
    kd = 16 * F.kl_div((logits / 4).log_softmax(-1), (targets / 4).softmax(-1), reduction="batchmean")
    (0.1 * total / mass + 0.9 * kd).backward()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    expected = update(before, weights(student))
    actual, trainer = one_step(tmp_path, rows, 4, 2, ce_weight=0.1, kd_weight=0.9)
    assert relative_difference(actual, expected) < TOLERANCE
    assert trainer.state.log_history[0]["ce_loss"] == pytest.approx(0.1 * total.item() / mass, rel=1e-5)


def test_one_share_for_all_rows_will_do(tmp_path):
    """As torchvision's and timm's mixing give it."""
    rows = mixed_rows(8)
    for row in rows:
        row["mix_lambda"] = 0.3
    expected, _ = one_step(tmp_path, rows, 4, 2)

    def collate(share):
        def collator(features):
            names = [name for name in features[0] if name != "mix_lambda"]
            batch = {name: torch.stack([torch.as_tensor(row[name]) for row in features]) for name in names}
            return batch | {"mix_lambda": share}

        return collator

    for share in (0.3, torch.tensor(0.3), torch.tensor([0.3])):
        actual, _ = one_step(tmp_path, rows, 4, 2, trainer={"data_collator": collate(share)})
        assert relative_difference(actual, expected) < TOLERANCE


def test_unmixed_batches_beside_mixed_ones_share_one_denominator(tmp_path):
    """A count of labelled rows for the one and a mass of labels for the other do not add up to one mean."""

    def collate(features):
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in features]) for name in features[0]}
        is_plain = bool((batch["mix_lambda"] == 1).all())
        return {name: value for name, value in batch.items() if not (is_plain and "mix" in name)}

    rows = mixed_rows(8)
    for row in rows[4:]:
        row["mix_lambda"] = 1.0
    expected, _ = one_step(tmp_path, rows, 8, 1)
    actual, _ = one_step(tmp_path, rows, 4, 2, trainer={"data_collator": collate})
    assert relative_difference(actual, expected) < TOLERANCE


def test_no_second_label_may_be_written_as_none(tmp_path):
    """As no first one may."""
    rows = mixed_rows(8)
    expected, _ = one_step(tmp_path, rows, 4, 2)
    rows = [{**row, "labels_mix": None if row["labels_mix"] == -100 else row["labels_mix"]} for row in rows]
    actual, _ = one_step(tmp_path, rows, 4, 2)
    assert torch.equal(actual, expected)


def test_columns_of_a_table_are_kept(tmp_path):
    """The Trainer drops columns that the model does not name."""
    rows = mixed_rows(8)
    expected, _ = one_step(tmp_path, rows, 8, 1)
    student = classifier("bert", 0)
    before = weights(student)
    train(
        tmp_path,
        student,
        classifier("bert", 1),
        table(rows),
        max_steps=1,
        learning_rate=1.0,
        per_device_train_batch_size=8,
    )
    assert relative_difference(update(before, weights(student)), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("mix_lambda"), "without mix_lambda"),
        (lambda row: row.pop("labels_mix"), "without labels_mix"),
        (lambda row: row.update(label_weight=1.0), "without label_weight_mix"),
        (lambda row: row.update(mix_lambda=1.2), r"`mix_lambda` from 1\.2 to 1\.2"),
        (lambda row: row.update(mix_lambda=[0.5, 0.5]), r"`mix_lambda` of shape \(4, 2\)"),
        (lambda row: row.update(labels_mix=9), r"found the labels 9 in `labels_mix` of the first batch"),
    ],
)
def test_incomplete_mixtures_are_refused_in_words(change, message, tmp_path):
    """A forgotten column, and only the first label would be learned, in full."""
    rows = mixed_rows(8)
    for row in rows:
        change(row)
    with pytest.raises(ValueError, match=message):
        one_step(tmp_path, rows, 4, 2)


def test_an_evaluation_of_mixtures_is_refused(tmp_path):
    """A collator of one's own mixes both: accuracy on mixtures is no accuracy."""
    rows = Rows(mixed_rows(8))
    trainer = build_trainer(tmp_path, classifier("bert", 0), None, rows, kd_weight=0.0)
    with pytest.raises(ValueError, match="evaluate a batch with `labels_mix`"):
        trainer.evaluate(rows)


def test_a_collator_that_mixes_for_the_student_alone_is_refused():
    """Called again for the teacher's columns it would draw another mixture."""

    def mixes(features):
        batch = {key: torch.stack([torch.as_tensor(f[key]) for f in features]) for key in features[0]}
        return Mixing(mixup=1.0)(batch, generator())

    rows = [{"pixel_values": p, "labels": 0, "teacher_pixel_values": p} for p in pictures(2)]
    with pytest.raises(ValueError, match="teacher reads columns of its own"):
        DistillationCollator(mixes)(rows)


# --- In training -----------------------------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """A teacher that remembers what it was shown."""

    def __init__(self, seed=1):
        super().__init__()
        self.model = classifier("vit", seed)
        self.config, self.batches = self.model.config, []

    def forward(self, pixel_values):
        self.batches.append(pixel_values.clone())
        return self.model(pixel_values=pixel_values)


def shown(folder, mixing, rows=8, **overrides):
    """What the student and the teacher saw in training, with labels; and the trainer."""
    student, teacher, batches = classifier("vit", 0), Seen(), []
    data = overrides.pop("data", None) or table(examples("vit", rows))
    trainer = build_trainer(folder, student, teacher, data, trainer={"mixing": mixing}, **overrides)
    step = trainer.compute_loss

    def compute_loss(model, inputs, *args, **keywords):
        batches.append({key: torch.as_tensor(value).clone() for key, value in inputs.items()})
        return step(model, inputs, *args, **keywords)

    trainer.compute_loss = compute_loss
    trainer.train()
    return batches, teacher.batches, trainer


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=str)
def test_training_shows_both_models_the_mixture(mixing, tmp_path):
    """Mixed for the student alone, the teacher answers for an image that nobody sees."""
    batches, seen, trainer = shown(tmp_path, mixing)
    plain = [torch.tensor(row["pixel_values"]) for row in examples("vit", 8)]
    unmixed, answered = seen[::2], seen[1::2]  # before each mixture, the rows as they are, to see if it knows anything
    assert len(batches) == len(answered) == 2
    for number, batch in enumerate(batches):
        x = torch.stack(plain[4 * number : 4 * number + 4])
        assert torch.equal(unmixed[number], x)
        assert torch.equal(answered[number], batch["pixel_values"])
        assert not torch.equal(batch["pixel_values"], x)
        assert batch["mix_lambda"].shape == batch["labels_mix"].shape == (4,)
    assert trainer.state.log_history[0]["kd_loss"] > 0


def test_evaluation_sees_the_images_as_they_are(tmp_path):
    student, teacher = classifier("vit", 0), Seen()
    rows = table(examples("vit", 8))
    given = {"trainer": {"mixing": Mixing(mixup=1.0), "eval_dataset": rows}, "evaluate_with_teacher": True}
    trainer = build_trainer(tmp_path, student, teacher, rows, eval_strategy="epoch", **given)
    trainer.train()
    plain = torch.tensor([row["pixel_values"] for row in examples("vit", 8)])
    assert torch.equal(torch.cat(teacher.batches[-2:]), plain)


def test_the_draws_are_those_of_the_seed_and_of_nothing_else(tmp_path):
    """Workers, dropout and the order of other draws must not matter; the seed, the step and the micro-batch must."""
    given = {"mixup": 0.8, "cutmix": 1.0}
    columns = ("pixel_values", "labels_mix", "mix_lambda")

    def run(**overrides):
        batches, _, _ = shown(tmp_path, given, rows=16, gradient_accumulation_steps=2, **overrides)
        return [[batch[name] for name in columns] for batch in batches]

    first = run()
    for same in (run(), run(dataloader_num_workers=2)):
        assert all(torch.equal(a, b) for x, y in zip(first, same, strict=True) for a, b in zip(x, y, strict=True))
    assert len({batch[2][0].item() for batch in first}) == 4
    other = run(seed=1)
    assert not any(torch.equal(x[2], y[2]) for x, y in zip(first, other, strict=True))


def test_mixing_changes_no_other_draw(tmp_path):
    """Dropout masks and the order of rows are those of the run without."""
    orders, states = [], []
    for mixing in (None, {"mixup": 0.8, "mix_probability": 1.0}):
        batches, _, _ = shown(tmp_path, mixing, rows=12, train_sampling_strategy="random")
        orders.append([batch["labels"].tolist() for batch in batches])
        states.append(torch.get_rng_state())
    assert orders[0] == orders[1]
    assert torch.equal(*states)


@pytest.mark.parametrize("saved_at", [2, 3, 4])
def test_a_resumed_run_mixes_what_the_uninterrupted_one_mixes(saved_at, tmp_path):
    """In the middle of an epoch, at its end, with accumulation: bit for bit, as without mixing."""
    runs = []
    for seed, resume in ((0, None), (1, tmp_path / "0" / f"checkpoint-{saved_at}")):
        trainer = build_trainer(
            tmp_path / str(seed),
            classifier("vit", seed, hidden_dropout_prob=0.1),
            classifier("vit", 9),
            table(examples("vit", 13)),
            trainer={"mixing": Mixing(mixup=0.8, cutmix=1.0, mix_probability=0.8)},
            num_train_epochs=3,
            gradient_accumulation_steps=2,
            optim="adamw_torch",
            learning_rate=0.01,
            train_sampling_strategy="random",
            save_strategy="steps",
            save_steps=saved_at,
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        runs.append(trainer)
    torch.testing.assert_close(weights(runs[1].model), weights(runs[0].model), rtol=0, atol=0)
    losses = [[record.get("loss") for record in run.state.log_history] for run in runs]
    assert losses[0] == losses[1]


def test_the_teacher_is_judged_on_images_as_they_are(tmp_path):
    """On mixtures no label is right: a good teacher would look like guessing, or nothing would be said at all."""
    _, seen, trainer = shown(tmp_path, {"mixup": 1.0}, rows=8)
    assert trainer._teacher_check.num_kept == 8
    assert "teacher_accuracy" not in trainer.state.log_history[0]
    _, _, plain = shown(tmp_path, None, rows=8)
    assert "teacher_accuracy" in plain.state.log_history[0]
    parts = [torch.cat(t._teacher_check.parts) for t in (trainer, plain)]
    assert torch.equal(*parts)


def test_the_collator_of_a_task_brings_the_mixing_along(tmp_path):
    task = load_task("embedded/digits", augmentation={"mixup": 0.8}, max_samples={"train": 8})
    assert task.collator.mixing == Mixing(mixup=0.8)
    assert "Training batches are mixed: Mixing(mixup=0.8, cutmix=0" in task.description
    plain = load_task("embedded/digits", max_samples={"train": 8})
    assert torch.equal(task.train[:]["pixel_values"], plain.train[:]["pixel_values"])
    assert task.collator([task.train[0]]).keys() == plain.collator([plain.train[0]]).keys()
    student = classifier("vit", 0, classes=10, id2label=task.id2label)
    given = {"data_collator": task.collator}
    trainer = build_trainer(tmp_path, student, None, task.train, trainer=given, kd_weight=0.0)
    assert trainer.mixing == Mixing(mixup=0.8)
    given["mixing"] = Mixing(cutmix=1.0)
    trainer = build_trainer(tmp_path, student, None, task.train, trainer=given, kd_weight=0.0)
    assert trainer.mixing == Mixing(cutmix=1.0)
    loader = DataLoader(task.train, batch_size=4, collate_fn=trainer.data_collator, num_workers=1)
    assert "labels_mix" not in next(iter(loader))


def test_heads_for_several_labels_train_on_mixtures(tmp_path):
    problem = next(name for name, (kind, _) in PROBLEMS.items() if kind.startswith("multi"))
    rows = table(with_targets(examples("vit", 8), problem, "mixed"))
    given = {"trainer": {"mixing": {"mixup": 1.0}}, "method": "bernoulli_kl"}
    trainer = train(tmp_path, head("vit", 0, problem), head("vit", 1, problem), rows, **given)
    assert trainer.state.log_history[0]["ce_loss"] > 0


def test_a_teacher_with_inputs_of_its_own_gets_them_mixed(tmp_path):
    task = load_task("embedded/digits", augmentation={"cutmix": 1.0, "name": "crop_flip"}, max_samples={"train": 16})
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.3] * 3, image_std=[0.2] * 3)
    task = add_teacher_inputs(task, processor)
    teacher = Seen()
    teacher.model = classifier("vit", 1, classes=10, image_size=16, id2label=task.id2label)
    teacher.config = teacher.model.config
    student = classifier("vit", 0, classes=10, id2label=task.id2label)
    given = {"data_collator": task.collator, "teacher_processing_class": processor}
    trainer = build_trainer(tmp_path, student, teacher, task.train, trainer=given)
    assert trainer.mixing is not None
    trainer.train()
    assert teacher.batches[0].shape == (4, 3, 16, 16)
    assert not torch.equal(teacher.batches[0], teacher.batches[1])


# --- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dkd", "nkd", "wsld", "ofa"])
def test_losses_that_need_one_label_are_refused(method, tmp_path):
    """At the start, and where rows come mixed."""
    rows = table(examples("vit", 8))
    with pytest.raises(ValueError, match=r"mixing=Mixing\(mixup=0.8.*treats the one labelled class"):
        build_trainer(
            tmp_path,
            classifier("vit", 0),
            classifier("vit", 1),
            rows,
            trainer={"mixing": {"mixup": 0.8}},
            method=method,
        )
    with pytest.raises(ValueError, match="needs the one class of a row, of which a mixture has two"):
        one_step(tmp_path, mixed_rows(8), 4, 2, method=method)
    objective = build_objective(method, num_labels=3, kd_weight=0.0)
    assert objective(LOGITS, None, **arguments_of(slice(0, 6))).loss > 0


def test_numbers_cannot_be_mixed(tmp_path):
    rows = [{**row, "labels": 0.5} for row in examples("vit", 8)]
    student = classifier("vit", 0, classes=1, problem_type="regression")
    with pytest.raises(ValueError, match="not linear in the labels"):
        build_trainer(tmp_path, student, None, table(rows), trainer={"mixing": {"mixup": 1.0}}, kd_weight=0.0)
    rows = [{**row, "labels_mix": 0.2, "mix_lambda": 0.5} for row in rows]
    trainer = build_trainer(tmp_path, student, None, table(rows), kd_weight=0.0)
    with pytest.raises(ValueError, match="squared error is not linear"):
        trainer.train()


def test_stored_logits_belong_to_unmixed_rows(tmp_path):
    rows = [{**row, "teacher_logits": [0.0] * 5} for row in examples("vit", 8)]
    with pytest.raises(ValueError, match="`teacher_logits` of `train_dataset` was stored for unmixed rows"):
        build_trainer(tmp_path, classifier("vit", 0), None, table(rows), trainer={"mixing": {"mixup": 1.0}})
    trainer = build_trainer(tmp_path, classifier("vit", 0), None, Rows(rows), trainer={"mixing": {"mixup": 1.0}})
    with pytest.raises(ValueError, match="stored logits belong to the unmixed rows"):
        trainer.train()
    task = load_task("embedded/digits", augmentation={"mixup": 0.8}, max_samples={"train": 8})
    with pytest.raises(ValueError, match="logits stored now would belong to the unmixed rows"):
        add_teacher_logits(task, lambda pixel_values: torch.zeros(len(pixel_values), 10))


def test_what_else_a_model_reads_must_not_stay_unmixed(tmp_path):
    """A teacher that looks its answer up by the row's number answers for the unmixed row."""
    rows = [{**row, "number": index} for index, row in enumerate(examples("vit", 8))]

    def teacher(number):
        return torch.zeros(len(number), 5)

    trainer = build_trainer(tmp_path, classifier("vit", 0), teacher, table(rows), trainer={"mixing": {"mixup": 1.0}})
    with pytest.raises(ValueError, match="models also read number"):
        trainer.train()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": torch.zeros(2, 3)}, "needs `pixel_values` of shape .* got none"),
        ({"pixel_values": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "floating point, got Tensor of torch.uint8"),
        ({"pixel_values": torch.zeros(2, 3), "labels": torch.zeros(2)}, r"shape \(2, 3\)"),
        ({"pixel_values": torch.zeros(2, 3, 4, 4), "labels_mix": torch.zeros(2)}, "mixed already"),
    ],
)
def test_batches_that_cannot_be_mixed_are_refused_in_words(batch, message):
    with pytest.raises(ValueError, match=message):
        Mixing(mixup=1.0)(batch, generator())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "would mix nothing"),
        ({"mixup": -1}, ValueError, "mixup=.*finite number >= 0"),
        ({"mixup": "0.8"}, TypeError, "mixup=.*finite number"),
        ({"mixup": 1, "mix_probability": 1.5}, ValueError, r"in \[0, 1\]"),
        ({"mixpu": 1}, ConfigError, "mixing.mixpu: unknown setting. Did you mean 'mixup'"),
        (3, TypeError, "Pass `Mixing"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, error, message, tmp_path):
    with pytest.raises(error, match=message):
        build_trainer(
            tmp_path, classifier("vit", 0), None, table(examples("vit", 4)), trainer={"mixing": given}, kd_weight=0.0
        )


# --- By name ---------------------------------------------------------------------------------------------------------


def test_mixing_stands_beside_the_other_augmentations():
    spec = {"name": "crop_flip", "padding": 2, "mixup": 0.8, "cutmix": 1, "mix_probability": 0.9}
    assert parse_augmentation(spec) == (["crop_flip"], {"padding": 2})
    assert parse_mixing(spec) == Mixing(0.8, 1.0, 0.9)
    assert parse_augmentation({"mixup": 0.8}) == ([], {})
    assert parse_mixing("crop_flip") is None
    assert parse_mixing({"name": "crop_flip", "mixup": 0, "cutmix": 0}) is None


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        ("mixup", ["augmentation.name: 'mixup' is a setting, with a strength"]),
        ({"mixup": -1, "cutmix": "a"}, ["augmentation.mixup:", "augmentation.cutmix:"]),
        ({"mixup": 0.8, "switch_probability": 0.5}, ["augmentation.switch_probability: chooses between"]),
        ({"name": "crop_flip", "mix_probability": 0.5}, ["augmentation.mix_probability: says how often"]),
        ({"name": "crop_flip", "paddin": 3, "mix_probability": 2}, ["augmentation.paddin", "mix_probability"]),
        ({"mixup": 0.8, "cutmx": 1.0}, ["augmentation.cutmx: unknown setting. Did you mean 'cutmix'"]),
    ],
)
def test_all_that_is_wrong_is_said_at_once(spec, messages):
    with pytest.raises(ConfigError) as error:
        parse_augmentation(spec)
    assert all(message in str(error.value) for message in messages)
    assert len(error.value.problems) == len(messages)


def configuration(folder, **sections):
    student = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "output_dir": str(folder / "run"),
        "student": {"config": student | {"patch_size": 4}},
        "data": {"name": "embedded/digits", "augmentation": {"mixup": 0.8, "cutmix": 1.0}, "max_samples": 40},
        "method": {"name": "kd", "kd_weight": 0},
        "training": {"max_steps": 2, "per_device_train_batch_size": 8, "disable_tqdm": True, "use_cpu": True},
        **sections,
    }


def test_a_configuration_mixes(tmp_path, monkeypatch):
    seen = []
    mixed = DataTrainer._mixed
    monkeypatch.setattr(DataTrainer, "_mixed", lambda *args: seen.append(mixed(*args)) or seen[-1])
    result = run_experiment(configuration(tmp_path))
    assert result.train_steps == 2
    assert all("labels_mix" in batch for batch in seen)
    assert "Training batches are mixed" in result.data_description


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"method": {"name": "dkd"}, "teacher": {"model": "somewhere/else"}},
            "data.augmentation.mixup: mixes labels, and the loss `dkd` treats",
        ),
        (
            {"data": {"name": "embedded/digits", "problem_type": "regression", "augmentation": {"cutmix": 1.0}}},
            "data.augmentation.cutmix: mixes labels, and squared error",
        ),
        (
            {"data": {"name": "embedded/digits", "augmentation": {"name": "crop_flip", "mixup": "much"}}},
            "data.augmentation.mixup: .*must be a finite number",
        ),
    ],
)
def test_a_configuration_that_cannot_mix_is_refused_before_anything_is_read(sections, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        parse_config(configuration(tmp_path, **sections))

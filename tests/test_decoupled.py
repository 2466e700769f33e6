"""Losses that treat the labelled class or the rows apart: extreme logits, missing labels, two classes, weights."""

import math
import warnings

import pytest
import torch

from hf_kd import ConfigError, DistillationLoss, LossOutput, Progress, build_objective
from hf_kd.functional import merge_others, split_target
from hf_kd.losses import WEIGHTS, DKDLoss, KDLoss, LogitMSELoss, NKDLoss, SampleWeight, SampleWeightedLoss, as_loss
from hf_kd.testing import check_refuses

LABEL_LOSSES = [DKDLoss, NKDLoss, lambda: SampleWeightedLoss(KDLoss(2.0), "wsld")]


def pair(generator, classes=5, rows=6, dtype=torch.float64):
    return 3 * torch.randn(2, rows, classes, generator=generator, dtype=dtype)


# --- extreme logits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [80.0, 104.0, 200.0, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_sure_models_give_finite_values_and_gradients(loss, gap, sign):
    """From a gap of about 104 on, one minus the target's probability is 0 in float32, and its logarithm infinite."""
    student = torch.tensor([[sign * gap, 0.0, 1.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, gap, -gap, 1.0]])
    for labels in (torch.tensor([0]), torch.tensor([1])):
        value = loss()(student, teacher, labels).loss.sum()
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_target_term_is_exact_where_probabilities_are_not():
    """Student sure by a gap of 200, teacher undecided about the target: KL is -ln 2 - (ln 2 - 200) / 2."""
    student = torch.tensor([[200.0, 0.0, 0.0]])
    teacher = torch.tensor([[math.log(2), 0.0, 0.0]])
    tckd = DKDLoss(1.0, 0.0, temperature=1.0)(student, teacher, torch.tensor([0])).loss
    assert tckd.item() == pytest.approx(100 - 1.5 * math.log(2), abs=1e-4)


@pytest.mark.parametrize("temperature", ["ctkd", "dtkd", "standardized", "norm", "wttm"])
@pytest.mark.parametrize("loss", [DKDLoss, NKDLoss])
def test_temperatures_with_gradient_stay_finite_over_it(loss, temperature):
    """Masking the target with a large negative number gives NaN to a temperature that carries gradient."""
    loss = loss(temperature=temperature)
    student = torch.tensor([[30.0, 0.0, 1.0], [-40.0, 60.0, 5.0]], requires_grad=True)
    teacher = torch.tensor([[90.0, 1.0, 0.0], [1.0, -100.0, 3.0]])
    loss(student, teacher, torch.tensor([0, 2]), progress=Progress(fraction=1.0)).loss.sum().backward()
    gradients = [student.grad, *(p.grad for p in loss.parameters())]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_splitting_at_the_label_keeps_order_and_mass(generator):
    logits, _ = pair(generator, classes=4)
    labels = torch.tensor([0, 1, 2, 3, -100, 99])
    target, others = split_target(logits, labels)
    for row, label in enumerate([0, 1, 2, 3, 0, 0]):
        kept = [logits[row, k].item() for k in range(4) if k != label]
        assert (target[row].item(), others[row].tolist()) == (logits[row, label].item(), kept)
    torch.testing.assert_close(merge_others(logits, labels).logsumexp(-1), logits.logsumexp(-1))


@pytest.mark.parametrize("loss", [DKDLoss, NKDLoss])
def test_weight_of_the_strategy_multiplies_the_whole_row(loss, generator):
    """WTTM is TTM with a weight; a term that lost it would be balanced differently on every row."""
    student, teacher = pair(generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    plain = loss(temperature={"name": "ttm", "gamma": 0.25})(student, teacher, labels)
    weighted = loss(temperature={"name": "wttm", "gamma": 0.25})(student, teacher, labels)
    torch.testing.assert_close(weighted.loss, weighted.temperatures.weight * plain.loss)


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_unlabelled_rows_count_nothing_and_wrong_labels_are_nan(loss, generator):
    student, teacher = pair(generator)
    student.requires_grad_()
    labels = torch.tensor([0, -100, 2, -100, 4, 1])
    value = loss()(student, teacher, labels).loss
    value.sum().backward()
    assert (value != 0).tolist() == (labels >= 0).tolist()
    assert student.grad.any(-1).tolist() == (labels >= 0).tolist()
    assert loss()(student, teacher, torch.tensor([0, 5, 2, -1, 4, 1])).loss.isnan().tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("loss", LABEL_LOSSES)
def test_no_labels_at_all_is_refused_in_words(loss, generator):
    with pytest.raises(ValueError, match=r"needs labels.*-100 on unlabelled rows"):
        loss()(*pair(generator))


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld"])
def test_mean_is_over_the_labelled_rows(name, generator):
    """Over all rows, half the labels would halve the distillation."""
    student, teacher = pair(generator)
    labels = torch.tensor([0, -100, 2, -100, 4, -100])
    objective = build_objective(name, ce_weight=0.0, warmup=0.0)
    kept = labels >= 0
    few = objective(student[kept], teacher[kept], labels[kept]).loss
    torch.testing.assert_close(objective(student, teacher, labels).loss, few)


# --- two classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k: DKDLoss(num_labels=k), r"DKDLoss\(num_labels=2\).*`alpha` times KD"),
        (lambda k: DKDLoss(0.0, 1.0, num_labels=k), "the loss teaches nothing"),
        (lambda k: NKDLoss(num_labels=k), "the term of the others is 0"),
        (lambda k: KDLoss("standardized", num_labels=k), r"KDLoss\(num_labels=2\).*`StandardizedTemperature`"),
        (lambda k: KDLoss({"name": "norm"}, num_labels=k), "its gradient is almost 0"),
        (lambda k: KDLoss({"name": "warmup", "temperature": "norm"}, num_labels=k), "its gradient is almost 0"),
        (lambda k: build_objective("dkd", num_labels=k), "DKDLoss"),
        (lambda k: build_objective("lskd", num_labels=k), "StandardizedTemperature"),
        (lambda k: build_objective("normkd", num_labels=k), "NormTemperature"),
    ],
)
def test_two_classes_are_warned_of_once_at_construction(make, message):
    """A loss without gradient trains for hours on cross-entropy alone."""
    with pytest.warns(UserWarning, match=message) as caught:
        make(2)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(3)
        make(None)


def test_what_can_teach_two_classes_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (KDLoss, lambda num_labels: DKDLoss(1.0, 0.0, num_labels=num_labels)):
            make(num_labels=2)
        NKDLoss(0.0, num_labels=2)


@pytest.mark.parametrize("temperature", ["standardized", "norm"])
def test_two_classes_leave_no_gradient_of_standardised_logits(temperature, generator):
    """What the warning says. KD's gradient on the same rows is seven orders of magnitude larger."""
    student, teacher = pair(generator, classes=2)
    student.requires_grad_()
    sizes = [
        torch.autograd.grad(KDLoss(t)(student, teacher).loss.sum(), student)[0].norm() for t in (temperature, 4.0)
    ]
    assert sizes[0] < 1e-5 * sizes[1]


def test_dkd_of_two_classes_is_alpha_times_kd(generator):
    student, teacher = pair(generator, classes=2)
    output = DKDLoss(3.0, 8.0)(student, teacher, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert not output.parts["nckd"].any()
    torch.testing.assert_close(output.loss, 3 * KDLoss(4.0)(student, teacher).loss)


# --- sample weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_per_row_at_least_zero_and_without_gradient(name, generator):
    student, teacher = pair(generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    student.requires_grad_()
    teacher.requires_grad_()
    output = SampleWeightedLoss(KDLoss(4.0), name)(student, teacher, labels)
    weight = output.parts["sample_weight"]
    assert weight.shape == (6,)
    assert (weight >= 0).all()
    assert (weight <= 1).all()
    assert not weight.requires_grad
    plain = KDLoss(4.0)(student, teacher).loss
    torch.testing.assert_close(output.loss, weight * plain)
    expected = torch.autograd.grad((weight * plain).sum(), student)[0]
    torch.testing.assert_close(torch.autograd.grad(output.loss.sum(), student)[0], expected)


def test_teacher_weights_reach_their_ends():
    teacher = torch.tensor([[1e4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    weights = {name: WEIGHTS[name]()(teacher, teacher) for name in ("teacher_confidence", "teacher_entropy")}
    assert weights["teacher_confidence"].tolist() == pytest.approx([1.0, 0.25], abs=1e-12)
    assert weights["teacher_entropy"].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_teacher_weights_soften_with_their_temperature(generator):
    _, teacher = pair(generator)
    sharp, soft = (WEIGHTS["teacher_confidence"](t)(teacher, teacher) for t in (1.0, 4.0))
    assert (soft < sharp).all()
    check_refuses(lambda value: WEIGHTS["teacher_entropy"](value), "temperature")


def test_any_loss_of_a_configuration_takes_a_weight(generator):
    student, teacher = pair(generator)
    labels = torch.tensor([0, 1, 2, 3, 4, -100])
    for spec in ({"name": "kd", "temperature": 2.0}, {"name": "dkd", "temperature": "dtkd"}, {"name": "logit_mse"}):
        loss = as_loss({**spec, "sample_weight": {"name": "teacher_entropy", "temperature": 2.0}})
        plain = as_loss(spec)
        assert isinstance(loss, SampleWeightedLoss)
        assert (loss.uses_temperature, loss.shift_invariant) == (plain.uses_temperature, plain.shift_invariant)
        output = loss(student, teacher, labels)
        torch.testing.assert_close(output.loss, output.parts["sample_weight"] * plain(student, teacher, labels).loss)
    assert isinstance(as_loss({"name": "kd", "sample_weight": None}), KDLoss)


def test_weighted_loss_needs_labels_if_either_side_does():
    assert SampleWeightedLoss(KDLoss(4.0), "wsld").needs_labels
    assert SampleWeightedLoss(DKDLoss(), "teacher_entropy").needs_labels
    assert not SampleWeightedLoss(KDLoss(4.0), "teacher_entropy").needs_labels


def test_learned_temperature_of_a_weighted_loss_is_found_and_saved_once():
    objective = build_objective("wsld", temperature="ctkd")
    assert len(objective.temperature_parameters()) == 1
    assert [name.rsplit(".", 1)[-1] for name in objective.state_dict()] == ["raw"]
    assert [strategy.name for _, strategy in objective.strategies()] == ["ctkd"]


class Relation(DistillationLoss):
    name = "relation"
    row_wise = False

    def forward(self, student_logits, teacher_logits, labels=None, *, progress=None):
        return LossOutput((student_logits - teacher_logits).mean())


class Mine(SampleWeight):
    name = "mine"

    def forward(self, student_logits, teacher_logits, labels=None):
        return student_logits[:, 0].exp()


def test_own_weight_is_used_without_gradient(generator):
    student, teacher = pair(generator)
    student.requires_grad_()
    assert not SampleWeightedLoss(KDLoss(4.0), Mine())(student, teacher).parts["sample_weight"].requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleWeightedLoss(Relation(), "wsld"), r"Relation.*no rows to weight.*Leave `sample_weight` out"),
        (lambda: SampleWeightedLoss("kd", "wsdl"), r"sample_weight.name: unknown sample weight 'wsdl'. Did you mean"),
        (lambda: as_loss({"name": "kd", "sample_weight": "x"}, "losses.0"), "losses.0.sample_weight.name: unknown"),
        (lambda: as_loss({"name": "kdd"}), "loss.name: unknown distillation loss 'kdd'. Did you mean 'kd'"),
        (lambda: DKDLoss(0.0, 0.0), "nothing would be learned"),
        (
            lambda: LogitMSELoss(temperature="standardized"),
            r"LogitMSELoss\(temperature=Standardized.*can only scale",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_words(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()


def test_centred_logits_may_be_standardised(generator):
    assert LogitMSELoss(center=True, temperature="standardized")(*pair(generator)).loss.isfinite().all()


@pytest.mark.parametrize("argument", ["alpha", "beta"])
def test_bad_weights_are_refused_by_name(argument):
    values = [-1, float("nan"), True, "1"]
    check_refuses(lambda value: DKDLoss(**{argument: value}), argument, values)
    check_refuses(lambda value: NKDLoss(value), "gamma", values)

"""Batch relations: published values, what they ignore, what a batch's size does to them, and their singular points.

The values come from numpy scripts that agree with the authors' functions where those could be run. A value printed to
ten decimals is off by at most 5e-11; gradients are pinned by their Frobenius norm.
"""

import warnings
from functools import partial

import numpy as np
import pytest
import reference_companion as companion
import reference_relations as ref
import torch
from reference_companion import LABELS, STUDENT, TEACHER

from hf_kd.functional import cross_entropy
from hf_kd.losses import (
    LOSSES,
    CLKDClassLoss,
    CLKDCorrelationLoss,
    CLKDInstanceLoss,
    ComparativeLoss,
    DistillationLoss,
    DISTLoss,
    KDLoss,
    LossOutput,
    MLKDBatchLoss,
    MLKDClassLoss,
    PKTLoss,
    R2KDLoss,
    SampleWeightedLoss,
    SPLoss,
    as_loss,
)
from hf_kd.losses.relations import gram_gap
from hf_kd.temperatures import CTKDTemperature, Progress, Temperatures, TemperatureStrategy, as_strategy
from hf_kd.testing import check_loss, check_refuses, logit_cases

S, T, Y = (torch.tensor(x) for x in (STUDENT, TEACHER, LABELS))
PRINTED = 5e-11 + 1e-13  # half a unit of the tenth decimal, and the order of float64 sums

RELATIONS = {  # every loss that gives one value per batch
    "dist": DISTLoss,
    "dist-intra": partial(DISTLoss, 0.0),
    "r2kd": R2KDLoss,
    "mlkd_batch": MLKDBatchLoss,
    "mlkd_class": MLKDClassLoss,
    "clkd_class": CLKDClassLoss,
    "clkd_correlation": CLKDCorrelationLoss,
    "clkd_correlation-class": partial(CLKDCorrelationLoss, "class"),
    "comparative": ComparativeLoss,
    "pkt": PKTLoss,
    "sp": SPLoss,
}
HALVES = {"dist-inter": partial(DISTLoss, 1.0, 0.0), "r2kd-rows": partial(R2KDLoss, gamma=0.0)}
ROW_WISE = {**HALVES, "clkd_instance": CLKDInstanceLoss}
TEMPERED = {"dist": DISTLoss, "r2kd": R2KDLoss, "mlkd_batch": MLKDBatchLoss, "mlkd_class": MLKDClassLoss, **HALVES}


def value_and_gradient(loss, student=S, teacher=T, weight=1.0):
    student = student.detach().clone().requires_grad_()
    value = weight * loss(student, teacher).loss.mean()
    value.backward()
    return value.item(), student.grad


VALUES = {  # key: (loss, loss weight of the method, reference, value, gradient norm if one was printed)
    "dist inter": (
        DISTLoss(1.0, 0.0),
        1,
        lambda s: ref.mean(ref.dist_inter(s, TEACHER)),
        0.2017377442,
        0.2728763466,
    ),
    "dist intra": (DISTLoss(0.0, 1.0), 1, lambda s: ref.dist_intra(s, TEACHER), 0.1335994017, 0.2216515640),
    "dist": (DISTLoss(), 1, lambda s: ref.dist(s, TEACHER), 0.3353371459, 0.4871437038),
    "dist CIFAR": (DISTLoss(temperature=4.0), 2, lambda s: 2 * ref.dist(s, TEACHER, 4.0), 5.9706639504, 8.2023827561),
    "r2kd": (R2KDLoss(), 2, lambda s: 2 * ref.r2kd(s, TEACHER), 2.3971537812, 1.0102839071),
    "mlkd batch": (MLKDBatchLoss(), 1, lambda s: ref.mlkd_batch(s, TEACHER), 0.0027090903, 0.0006458543),
    "mlkd class": (MLKDClassLoss(), 1, lambda s: ref.mlkd_class(s, TEACHER), 0.0052549067, 0.0032205398),
    "clkd instance": (
        CLKDInstanceLoss(),
        1,
        lambda s: ref.mean(ref.clkd_instance(s, TEACHER)),
        0.0267452535,
        0.0361729665,
    ),
    "clkd class": (CLKDClassLoss(), 1, lambda s: ref.clkd_class(s, TEACHER), 0.0235756257, 0.0467091163),
    "clkd cc": (
        CLKDCorrelationLoss(),
        1,
        lambda s: ref.clkd_correlation(s, TEACHER),
        3.1914644263,
        0.8602741227,
    ),
    "clkd cc, classes": (
        CLKDCorrelationLoss("class"),
        1,
        lambda s: ref.clkd_correlation(s, TEACHER, "class"),
        3.3250840191,
        None,
    ),
    "comparative": (ComparativeLoss(), 1, lambda s: ref.comparative(s, TEACHER), 2.5274053750, 1.0054661357),
    "pkt": (PKTLoss(), 1, lambda s: ref.pkt(s, TEACHER), 0.0013420809, 0.0074367718),
    "sp": (SPLoss(), 1, lambda s: ref.sp(s, TEACHER), 0.0154203274, 0.0553398714),
}


@pytest.mark.parametrize("case", VALUES)
def test_value_and_gradient_norm_as_printed(case):
    loss, weight, _, value, norm = VALUES[case]
    actual, gradient = value_and_gradient(loss, weight=weight)
    assert actual == pytest.approx(value, abs=PRINTED)
    if norm is not None:
        assert gradient.norm().item() == pytest.approx(norm, abs=PRINTED)


@pytest.mark.parametrize("case", VALUES)
def test_reference_gives_value_and_gradient(case):
    """Entry by entry, so that two errors cannot cancel in a norm."""
    loss, weight, reference, value, _ = VALUES[case]
    assert reference(STUDENT) == pytest.approx(value, abs=PRINTED)
    actual, gradient = value_and_gradient(loss, weight=weight)
    assert actual == pytest.approx(reference(STUDENT), rel=1e-12)
    np.testing.assert_allclose(gradient.numpy(), companion.numeric_gradient(reference, STUDENT), atol=1e-9)


@pytest.mark.parametrize("scale", [0.02, 1.0, 8.0])
def test_other_batches_equal_the_reference(scale, generator):
    """No single batch decides; from logits that hardly differ to ones that are nearly one-hot, up to ten digits."""
    student, teacher = scale * torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    z, v = student.tolist(), teacher.tolist()
    for loss, expected in (
        (DISTLoss(temperature=2.0), ref.dist(z, v, 2.0)),
        (R2KDLoss(), ref.r2kd(z, v)),
        (MLKDBatchLoss(2.0), ref.mlkd_batch(z, v, 2.0)),
        (MLKDClassLoss(2.0), ref.mlkd_class(z, v, 2.0)),
        (CLKDClassLoss(), ref.clkd_class(z, v)),
        (CLKDCorrelationLoss(), ref.clkd_correlation(z, v)),
        (CLKDCorrelationLoss("class"), ref.clkd_correlation(z, v, "class")),
        (ComparativeLoss(), ref.comparative(z, v)),
        (PKTLoss(), ref.pkt(z, v)),
        (SPLoss(), ref.sp(z, v)),
    ):
        assert loss(student, teacher).loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12), loss
    for loss, rows in ((DISTLoss(1.0, 0.0), ref.dist_inter(z, v)), (CLKDInstanceLoss(), ref.clkd_instance(z, v))):
        assert loss(student, teacher).loss.tolist() == pytest.approx(rows, rel=1e-10, abs=1e-12), loss


def test_many_classes_equal_the_reference(generator):
    """A column of probabilities around 1/200 varies by less than that, and is not constant for it."""
    student, teacher = 0.05 * torch.randn(2, 6, 200, generator=generator, dtype=torch.float64)
    expected = ref.dist_intra(student.tolist(), teacher.tolist())
    assert DISTLoss(0.0)(student, teacher).loss.item() == pytest.approx(expected, rel=1e-10)


def test_mlkd_as_in_the_authors_program():
    """Both views alike. Their masks multiply batch means, so each is the share of rows or classes up to the median."""
    student = S.clone().requires_grad_()
    p = T.softmax(-1)
    row_share = (p.amax(-1) <= p.amax(-1).quantile(0.5)).double().mean()
    class_share = (p.sum(0) <= p.sum(0).quantile(0.5)).double().mean()
    temperatures = (4.0, 3.0, 5.0, 2.0, 6.0)
    instance = sum(KDLoss(t)(student, T).loss.mean() for t in temperatures)
    batch = sum(MLKDBatchLoss(t)(student, T).loss for t in temperatures)
    classes = sum(MLKDClassLoss(t)(student, T).loss for t in temperatures)
    ce = 0.1 * 2 * cross_entropy(student, Y).mean()
    terms = [ce, 0.9 * (row_share * instance + instance), 0.9 * class_share * classes, 0.9 * row_share * batch]
    assert instance.item() == pytest.approx(3.6555753974, abs=PRINTED)
    printed = [0.1431269811, 4.9350267865, 0.0324583743, 0.0204618362]
    assert [term.item() for term in terms] == pytest.approx(printed, abs=PRINTED)
    sum(terms).backward()
    assert sum(terms).item() == pytest.approx(5.1310739780, abs=PRINTED)
    assert student.grad.norm().item() == pytest.approx(1.9595092950, abs=PRINTED)


# --- one value, two halves -------------------------------------------------------------------------------------------


def test_dist_is_the_weighted_sum_of_its_parts():
    output = DISTLoss(0.5, 3.0, temperature=4.0)(S, T)
    torch.testing.assert_close(output.loss, 0.5 * output.parts["inter"] + 3.0 * output.parts["intra"])
    assert output.parts["intra"].item() == pytest.approx(ref.dist_intra(STUDENT, TEACHER, 4.0), rel=1e-12)
    assert set(DISTLoss(1.0, 0.0)(S, T).parts) == {"inter"}
    assert set(DISTLoss(0.0, 1.0)(S, T).parts) == {"intra"}


def test_compensation_is_the_squared_temperature():
    for make in (DISTLoss, R2KDLoss):
        bare = make(temperature=4.0, compensate=False)(S, T).loss
        torch.testing.assert_close(make(temperature=4.0)(S, T).loss, 16 * bare)
    torch.testing.assert_close(MLKDBatchLoss(compensate=True)(S, T).loss, 16 * MLKDBatchLoss()(S, T).loss)


@pytest.mark.parametrize("name", HALVES)
def test_half_over_rows_takes_every_strategy_and_row_weights(name):
    for strategy in ("standardized", "norm", "dtkd", "flsw", "wttm"):
        assert HALVES[name](temperature=strategy)(S, T).loss.shape == (4,)
    weighted = HALVES[name](temperature={"name": "wttm", "temperature": 4.0}, compensate=False)
    plain = HALVES[name](temperature={"name": "ttm", "temperature": 4.0}, compensate=False)
    weights = (T.softmax(-1) ** 0.25).sum(-1)
    torch.testing.assert_close(weighted(S, T).loss, weights * plain(S, T).loss)
    sample_weighted = SampleWeightedLoss(HALVES[name](), "teacher_entropy")(S, T)
    torch.testing.assert_close(
        sample_weighted.loss, sample_weighted.parts["sample_weight"] * HALVES[name]()(S, T).loss
    )
    with pytest.raises(ValueError, match="no rows to weight"):
        SampleWeightedLoss(HALVES[name].func(), "teacher_entropy")


def test_half_over_rows_is_the_row_by_row_formula():
    np.testing.assert_allclose(DISTLoss(1.0, 0.0)(S, T).loss.numpy(), ref.dist_inter(STUDENT, TEACHER), rtol=1e-12)
    rows = DISTLoss(1.0, 0.0)(T, T).loss
    assert rows.abs().max() < 1e-6  # but for the 1e-8 in the denominator


@pytest.mark.parametrize("make", [DISTLoss, R2KDLoss, MLKDBatchLoss, MLKDClassLoss])
@pytest.mark.parametrize(
    ("strategy", "what"),
    [
        ("standardized", "temperature of its own"),
        ("dtkd", "temperature of its own"),
        ("flsw", "temperature of its own"),
        ("ctkd_instance", "temperature of its own"),
        ({"name": "warmup", "temperature": "norm"}, "temperature of its own"),
        ("wttm", "weights each row"),
        ({"name": "scaled", "temperature": {"name": "clamped", "temperature": "wttm"}}, "weights each row"),
    ],
)
def test_relations_refuse_strategies_that_treat_rows_apart(make, strategy, what):
    """Rows at different temperatures are not comparable: a formula no paper has would train without a word."""
    with pytest.raises(ValueError, match=rf"{make.__name__}.*{what}.*row-wise loss"):
        make(temperature=as_strategy(strategy, num_labels=5))


def test_standardisation_passes_on_that_its_base_weights_rows():
    assert as_strategy({"name": "standardized", "temperature": "wttm"}).weights_rows
    assert not as_strategy("standardized").weights_rows


class Expanded(TemperatureStrategy):
    """One temperature for all rows, spelt out for each."""

    name = "expanded"

    def forward(self, student_logits, teacher_logits, labels=None, *, progress=Progress()):
        temperature = torch.full((len(student_logits), 1), 4.0, dtype=torch.float64)
        per_row = torch.full((len(student_logits),), 16.0, dtype=torch.float64)
        return Temperatures(temperature, temperature, per_row, torch.ones_like(per_row))


def test_one_temperature_spelt_out_per_row_still_gives_one_value():
    torch.testing.assert_close(DISTLoss(temperature=Expanded())(S, T).loss, DISTLoss(temperature=4.0)(S, T).loss)


# --- R2KD's ranks ----------------------------------------------------------------------------------------------------


def test_r2kd_rank_moves_the_value_and_nothing_else():
    """The printed value was made with ranks in single precision."""
    plain, with_rank = R2KDLoss(), R2KDLoss(rank_weight=2.0)
    value, gradient = value_and_gradient(plain)
    other, other_gradient = value_and_gradient(with_rank)
    assert other - value == pytest.approx(0.0500004387, abs=1e-6)
    assert other - value == pytest.approx(2 * ref.r2kd_rank(STUDENT, TEACHER), abs=1e-12)
    assert torch.equal(gradient, other_gradient)
    assert with_rank(S, T).parts["rank"].item() == pytest.approx(ref.r2kd_rank(STUDENT, TEACHER), rel=1e-9)


def test_r2kd_rank_alone_is_refused():
    with pytest.raises(ValueError, match="nothing else has a gradient"):
        R2KDLoss(0.0, 0.0, rank_weight=2.0)


# --- what a batch's size does ----------------------------------------------------------------------------------------


def halves_mean(loss):
    return torch.stack([loss(S[rows], T[rows]).loss.mean() for rows in (slice(0, 2), slice(2, 4))]).mean().item()


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_do_not_add_up_over_micro_batches(name):
    """What the documentation warns of. Nobody should set `row_wise` because a test batch happens to agree."""
    loss = RELATIONS[name]()
    assert not loss.row_wise
    assert halves_mean(loss) != pytest.approx(loss(S, T).loss.item(), rel=0.01)


@pytest.mark.parametrize("name", ROW_WISE)
def test_row_wise_ones_add_up_over_micro_batches(name):
    loss = ROW_WISE[name]()
    assert loss.row_wise
    assert halves_mean(loss) == pytest.approx(loss(S, T).loss.mean().item(), rel=1e-12)


def test_dist_intra_of_two_halves_as_printed():
    """Two rows correlate perfectly or not at all: three times the value of the four rows together."""
    assert halves_mean(DISTLoss(0.0)) == pytest.approx(0.400, abs=5e-4)
    assert DISTLoss(0.0)(S, T).loss.item() == pytest.approx(0.134, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("dist", 1.0),
        ("r2kd", 1.0),
        ("mlkd_batch", 2.0),
        ("mlkd_class", 4.0),
        ("clkd_class", 0.5),
        ("clkd_correlation", 4.0),
        ("clkd_correlation-class", 4.0),
        ("comparative", 1.0),
        ("pkt", 0.5),
        ("sp", 0.5),
    ],
)
def test_twice_the_batch(name, factor):
    """Published loss weights belong to a batch size wherever the factor is not 1. The slack is for epsilons."""
    loss = RELATIONS[name]()
    twice = loss(S.repeat(2, 1), T.repeat(2, 1)).loss.item()
    assert twice == pytest.approx(factor * loss(S, T).loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dist-intra", 1.0), ("clkd_correlation", 0.0), ("comparative", 0.0), ("pkt", 0.0), ("sp", 0.0)],
)
def test_one_row_teaches_nothing(name, value):
    actual, gradient = value_and_gradient(RELATIONS[name](), S[:1], T[:1])
    assert actual == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_one_row_leaves_signs_to_clkd_class_and_products_to_mlkd():
    value, gradient = value_and_gradient(CLKDClassLoss(), S[:1], T[:1])
    assert value == pytest.approx((S[0].sign() - T[0].sign()).square().mean().item(), abs=1e-12)
    assert gradient.abs().max() < 1e-12
    assert value_and_gradient(MLKDClassLoss(), S[:1], T[:1])[1].any()


# --- what they ignore ------------------------------------------------------------------------------------------------

SHIFT = torch.linspace(-1.0, 2.0, 4, dtype=torch.float64).unsqueeze(-1)
FACTOR = torch.linspace(0.5, 2.0, 4, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("name", [*RELATIONS, *ROW_WISE])
def test_a_constant_per_row_matters_to_the_ones_without_a_softmax(name):
    loss = {**RELATIONS, **ROW_WISE}[name]()
    value = loss(S, T).loss.mean().item()
    shifted = loss(S + SHIFT, T).loss.mean().item(), loss(S, T + SHIFT).loss.mean().item()
    assert loss.shift_invariant == loss.uses_temperature
    for other in shifted:
        assert (other == pytest.approx(value, rel=1e-12)) == loss.shift_invariant


@pytest.mark.parametrize(
    ("make", "ignores"), [(CLKDInstanceLoss, True), (PKTLoss, True), (DISTLoss, False), (SPLoss, False)]
)
def test_a_factor_per_row(make, ignores):
    value = make()(S, T).loss.mean().item()
    for other in (make()(S * FACTOR, T), make()(S, T * FACTOR)):
        assert (other.loss.mean().item() == pytest.approx(value, rel=1e-5)) == ignores


def test_comparative_frees_a_constant_per_class():
    torch.testing.assert_close(ComparativeLoss()(S + S[0] - 3.0, T).loss, ComparativeLoss()(S, T).loss)


# --- two classes -----------------------------------------------------------------------------------------------------


def test_dist_says_what_two_classes_leave_of_it():
    with pytest.warns(UserWarning, match=r"`DISTLoss\(num_labels=2\)`.*only intra teaches"):
        DISTLoss(num_labels=2)
    with pytest.warns(UserWarning, match="the loss teaches nothing"):
        as_loss({"name": "dist", "gamma": 0.0}, num_labels=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DISTLoss(0.0, 1.0, num_labels=2)
        R2KDLoss(num_labels=2)
    assert DISTLoss(1.0, 0.0).needs_two_plus_classes
    assert not DISTLoss().needs_two_plus_classes


def test_two_classes_teach_through_columns_and_through_cosines():
    pairs = S[:, :2], T[:, :2]
    assert value_and_gradient(DISTLoss(1.0, 0.0), *pairs)[1].norm() < 1e-5  # from the 1e-8 alone
    for loss in (DISTLoss(0.0, 1.0), R2KDLoss(), R2KDLoss(gamma=0.0)):
        assert value_and_gradient(loss, *pairs)[1].norm() > 0.01


# --- singular points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dist", "dist-intra", "dist-inter", "clkd_instance", "clkd_class"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_head_that_starts_at_zero_gets_an_ordinary_gradient(name, dtype):
    """The published forms divide by 1e-8 or 0 there: 1e7 times too much, or NaN. One step must help, too."""
    loss = {**RELATIONS, **ROW_WISE}[name]()
    zero, teacher = torch.zeros(4, 5, dtype=dtype), T.to(dtype)
    value, gradient = value_and_gradient(loss, zero, teacher)
    assert 0.01 < gradient.norm() < 10.0
    assert loss(-0.1 * gradient / gradient.norm(), teacher).loss.mean() < value - 0.01


@pytest.mark.parametrize("name", ["pkt", "sp"])
def test_products_of_zero_logits_have_no_gradient(name):
    """As the documentation says; and no NaN."""
    value, gradient = value_and_gradient(RELATIONS[name](), torch.zeros_like(S), T)
    assert np.isfinite(value)
    assert not gradient.any()


@pytest.mark.parametrize("name", ["dist", "dist-inter", "dist-intra"])
def test_one_constant_row_or_column_does_not_drown_the_others(name):
    student = S.clone()
    student[1] = 0.7
    _, gradient = value_and_gradient({**RELATIONS, **ROW_WISE}[name](), student, T)
    assert gradient.norm() < 1.0
    student = S.clone() - 1e4 * torch.eye(5, dtype=torch.float64)[2]  # a class without any mass
    assert value_and_gradient({**RELATIONS, **ROW_WISE}[name](), student, T)[1].norm() < 1.0


def test_pkt_survives_opposed_rows_in_single_precision(generator):
    """A cosine of -1 rounds beyond it, about once in ten pairs too far, and a negative share has no logarithm."""
    for _ in range(100):
        row = 30 * torch.randn(1, 1000, generator=generator)
        opposed, alike = torch.cat([row, -row]), torch.cat([row, row])
        for pair in ((opposed, alike), (alike, opposed)):
            value, gradient = value_and_gradient(PKTLoss(), *pair)
            assert np.isfinite(value)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", TEMPERED)
def test_learned_temperature_gets_a_finite_gradient(name):
    """Through both sides' softmax and the compensation; one NaN ends a run of CTKD."""
    for case, (student, teacher) in logit_cases(dtype=torch.float32).items():
        strategy = CTKDTemperature(curriculum=0.0)
        TEMPERED[name](temperature=strategy)(student, teacher).loss.mean().backward()
        assert strategy.raw.grad.isfinite(), case
        if case == "random":
            assert strategy.raw.grad != 0


def test_learned_temperature_ascends_dist():
    """The gradient handed over is the reversed slope of the reference; differences of step 1e-2 give ten digits."""
    strategy = CTKDTemperature(curriculum=0.0).double()
    DISTLoss(temperature=strategy)(S, T).loss.backward()

    def at(raw):
        return ref.dist(STUDENT, TEACHER, 1.0 + 20.0 / (1.0 + np.exp(-raw)))

    h = 1e-2
    slope = (at(1 - 2 * h) - 8 * at(1 - h) + 8 * at(1 + h) - at(1 + 2 * h)) / (12 * h)
    assert -strategy.raw.grad.item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", RELATIONS)
def test_autocast_does_not_round_products(name):
    """A matrix product is what autocast rounds to eight bits, and relations are differences of such products."""
    student, teacher = S.float(), T.float()
    expected = RELATIONS[name]()(student, teacher).loss
    with torch.autocast("cpu", torch.bfloat16):
        actual = RELATIONS[name]()(student, teacher).loss
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


# --- words -----------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused_by_name():
    for make in (DISTLoss, R2KDLoss):
        for argument in ("beta", "gamma"):
            check_refuses(lambda value, m=make, a=argument: m(**{a: value}), argument, [-1, float("nan"), True, "1"])
        check_refuses(lambda value, m=make: m(compensate=value), "compensate", ["false", 1])
        check_refuses(lambda value, m=make: m(temperature=value), "temperature")
        with pytest.raises(ValueError, match=r"beta=0, gamma=0.*nothing would be learned"):
            make(0, 0)
    check_refuses(lambda value: R2KDLoss(rank_weight=value), "rank_weight", [-1, True, "1"])
    check_refuses(MLKDBatchLoss, "temperature")
    check_refuses(CLKDCorrelationLoss, "reading", ["rows", None, 1])
    with pytest.raises(ValueError, match="class by class"):
        PKTLoss()(S, T[:, :4])


def test_unsettled_loss_says_so():
    assert "unsettled" in repr(CLKDCorrelationLoss())
    assert "Unsettled" in CLKDCorrelationLoss.__doc__


@pytest.mark.parametrize("cls", {type(make()) for make in RELATIONS.values()}, ids=lambda cls: cls.__name__)
def test_every_relation_warns_of_gradient_accumulation(cls):
    """Where users look: in the class they configure."""
    assert "with gradient accumulation" in " ".join(cls.__doc__.split())
    assert "one row" in " ".join(cls.__doc__.split())


def test_every_registered_relation_is_tested_here():
    registered = {cls for cls in LOSSES.values() if not cls.row_wise}
    assert registered == {type(make()) for make in RELATIONS.values()}


# --- the public check ------------------------------------------------------------------------------------------------


class Broken(DistillationLoss):
    """A correct relation, to be broken in one place each."""

    name = "broken"
    row_wise = False

    def forward(self, student_logits, teacher_logits, labels=None, *, progress=Progress()):
        raised = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student_logits, teacher_logits))
        student, teacher = (x.softmax(-1) for x in raised)
        return LossOutput(self.between(student, teacher))

    def between(self, student, teacher):
        return (student @ student.mT - teacher @ teacher.mT).square().mean()


class NotReduced(Broken):
    def between(self, student, teacher):
        return (student @ student.mT - teacher @ teacher.mT).square().mean(-1)


class DependsOnOrder(Broken):
    def between(self, student, teacher):
        return ((student[1:] - student[:-1]) - (teacher[1:] - teacher[:-1])).square().sum()


class DividesByRowsLessOne(Broken):
    def between(self, student, teacher):
        return super().between(student, teacher) * len(student) / (len(student) - 1)


class Offset(Broken):
    def between(self, student, teacher):
        return super().between(student, teacher) + 0.01


class PullsWhenEqual(Broken):
    def between(self, student, teacher):
        gap = student[:, 0].mean() - student[:, 0].mean().detach()
        return super().between(student, teacher) + 0.01 * gap


class WrongDirection(Broken):
    def between(self, student, teacher):
        return -super().between(student, teacher)


class LevelDependent(Broken):
    def forward(self, student_logits, teacher_logits, labels=None, *, progress=Progress()):
        output = super().forward(student_logits, teacher_logits)
        return output._replace(loss=output.loss + (student_logits - teacher_logits).float().mean().square())


class SingularWhereConstant(Broken):
    def between(self, student, teacher):
        spreads = [(x - x.mean(-1, keepdim=True)).square().sum(-1).sqrt() for x in (student, teacher)]
        return (spreads[0].mean() - spreads[1].mean()).square()


class TakesEveryStrategy(DISTLoss):
    def __init__(self, temperature=1.0):
        super().__init__(1.0, 0.0, temperature=temperature)
        self.row_wise, self.gamma = False, 1.0
        self.is_divergence = True


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (NotReduced, r"loss of shape \(\)"),
        (DependsOnOrder, "order of the rows"),
        (DividesByRowsLessOne, "batch of one row"),
        (Offset, "be 0 where"),
        (PullsWhenEqual, "no gradient where"),
        (WrongDirection, "be >= 0"),
        (LevelDependent, "constant is added"),
        (SingularWhereConstant, "be finite on zero logits"),
        (TakesEveryStrategy, "refuse the strategy"),
        (Broken, None),
    ],
)
def test_checks_find_the_broken_relation(broken, promise):
    """The checks are public: one that passes everything would be worse than none."""
    if promise is None:
        check_loss(broken)
    else:
        with pytest.raises(AssertionError, match=promise):
            check_loss(broken)


@pytest.mark.parametrize(("rows", "closeness"), [(3, 1.0), (40, 1.0), (40, 1e-6)])
def test_the_smaller_product_is_the_larger_one(rows, closeness):
    """The squared norms, expanded, would leave nothing of a difference of 1e-6 in float32."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(rows, 7, generator=generator)
    second = first + closeness * torch.randn(rows, 7, generator=generator)
    exact = second.double().requires_grad_()
    expected = (first.double() @ first.double().mT - exact @ exact.mT).square().sum()
    expected.backward()
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        given = second.detach().to(dtype).requires_grad_()
        value = gram_gap(first.to(dtype), given)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        assert (given.grad - exact.grad).norm() <= tolerance * exact.grad.norm()

"""Divergences, logit regressions and label losses: the published methods' values on one batch, in float64.

The digits come from a numpy script, reproduced by the authors' own functions where those could be run; a value printed
to ten decimals is off by at most 5e-11. The Frobenius norm of the gradient pins which statistics carry gradient.
"""

import math
import warnings

import numpy as np
import pytest
import reference_companion as ref
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_kd.losses import (
    AlphaBetaLoss,
    AnnealingKDLoss,
    BinaryCrossEntropyLoss,
    HardLabelLoss,
    HellingerLoss,
    JeffreysLoss,
    JensenShannonLoss,
    KDLoss,
    LogitHuberLoss,
    LogitMSELoss,
    OFALoss,
    RenyiLoss,
    ReverseKLLoss,
    SampleWeightedLoss,
    SkewKLLoss,
    SoftCrossEntropyLoss,
    TAIDLoss,
    TeacherFreeLoss,
    TotalVariationLoss,
)
from hf_kd.objective import DistillationObjective
from hf_kd.temperatures import Progress
from hf_kd.testing import check_refuses

S, T, Y = torch.tensor(ref.STUDENT), torch.tensor(ref.TEACHER), torch.tensor(ref.LABELS)

VALUES = {  # key: (loss, value, gradient norm or None)
    "kd T=1": (KDLoss(1.0), 0.3442789720, 0.2104885731),
    "kd T=2": (KDLoss(2.0), 0.6434406607, 0.2786413119),
    "kd T=4": (KDLoss(4.0), 0.7558618491, 0.2898308455),
    "kd T=4 no T^2": (KDLoss(4.0, compensate=False), 0.0472413656, None),
    "kd T=4 element mean": (KDLoss(4.0, element_mean=True), 0.1511723698, 0.0579661691),
    "reverse kl": (ReverseKLLoss(1.0), 0.4739179501, 0.2556025377),
    "reverse kl T=4": (ReverseKLLoss(4.0), 0.7457324926, None),
    "jeffreys": (JeffreysLoss(1.0), 0.4090984611, None),
    "js": (JensenShannonLoss(), 0.0919747209, 0.0502487615),
    "generalised jsd beta=.1": (JensenShannonLoss(0.1), 0.0311404744, 0.0184665764),
    "skew kl": (SkewKLLoss(), 0.2822268485, None),
    "total variation": (TotalVariationLoss(), 0.3384772294, 0.1141801155),
    "hellinger": (HellingerLoss(), 0.0965763121, 0.0534623299),
    "renyi .5": (RenyiLoss(0.5), 0.2063590653, 0.1237667386),
    "alpha-beta .8,.3 T=1": (AlphaBetaLoss(0.8, 0.3, temperature=1.0), 0.2978955352, 0.1823511155),
    "alpha-beta .8,.3 T=4": (AlphaBetaLoss(), 0.0401667558, 0.0152496018),
    "alpha-beta .5,0 limit": (AlphaBetaLoss(0.5, 0.0, temperature=1.0), 1.2227717409, None),
    "alpha-beta .5,0 authors": (
        AlphaBetaLoss(0.5, 0.0, temperature=1.0, author_limits=True),
        0.6113858705,
        0.2447859301,
    ),
    "soft cross-entropy T=4": (SoftCrossEntropyLoss(4.0), 24.5899515585, 0.2898308455),
    "soft cross-entropy T=1 element mean": (SoftCrossEntropyLoss(1.0, element_mean=True), 0.2032729210, None),
    "hard teacher label": (HardLabelLoss(), 0.8031349054, 0.3191774422),
    "bce": (BinaryCrossEntropyLoss(), 0.6744882639, 0.0917107386),
    "mse logits": (LogitMSELoss(), 1.5778672500, 0.5617592456),
    "mse logits, half sum": (LogitMSELoss(half_sum=True), 3.9446681250, 1.4043981140),
    "mse logits, centred": (LogitMSELoss(center=True), 1.4396328400, 0.5365878940),
    "mse logits / 4": (LogitMSELoss(temperature=4.0), 0.0986167031, None),
    "smooth l1 logits": (LogitHuberLoss(), 0.5883887750, 0.1727103862),
    "ofa 1": (OFALoss(1.0), 1.0163646051, 0.2104885731),
    "ofa 1.5": (OFALoss(1.5), 1.0770717124, 0.3367023679),
    "taid t=.4": (TAIDLoss(), 0.0811279054, 0.1010028527),
    "tf-kd reg": (TeacherFreeLoss(), 0.0707339821, 0.0381759305),
}


def value_and_norm(loss, labels=Y):
    student = S.clone().requires_grad_()
    value = loss.double()(student, T, labels).loss.mean()
    return value.item(), torch.autograd.grad(value, student)[0].norm().item()


@pytest.mark.parametrize("key", VALUES)
def test_value_and_gradient_are_the_published_methods(key):
    loss, value, norm = VALUES[key]
    actual = value_and_norm(loss)
    assert actual[0] == pytest.approx(value, abs=1e-10)
    if norm is not None:
        assert actual[1] == pytest.approx(norm, abs=1e-10)


BASELINE = DistillationObjective(ce_weight=1.0, kd_weight=0.0)
MIXED = DistillationObjective([(1.0, KDLoss(4.0))], ce_weight=0.1, kd_weight=0.9)
TOTALS = {  # key: (objective, label smoothing, value, gradient norm or None)
    "ce": (BASELINE, 0.0, 0.7156349054, 0.2958785457),
    "ce, smoothed": (BASELINE, 0.1, 0.8416249054, 0.2541296869),
    "0.1 ce + 0.9 kd": (MIXED, 0.0, 0.7518391547, None),
}


@pytest.mark.parametrize("key", TOTALS)
def test_totals_are_the_published_ones(key):
    objective, smoothing, value, norm = TOTALS[key]
    student = S.clone().requires_grad_()
    actual = objective(student, T, Y, label_smoothing=smoothing).loss
    assert actual.item() == pytest.approx(value, abs=1e-10)
    if norm is not None:
        assert torch.autograd.grad(actual, student)[0].norm().item() == pytest.approx(norm, abs=1e-10)


# --- against the references, on random rows -------------------------------------------------------------------------

REFERENCES = {
    "reverse_kl": (ReverseKLLoss(3.0), lambda z, v: 9 * ref.reverse_kl(z, v, 3.0)),
    "jeffreys": (JeffreysLoss(2.0, reverse_weight=0.9), lambda z, v: 4 * ref.jeffreys(z, v, 2.0, 0.9)),
    "jensen_shannon": (JensenShannonLoss(0.3, temperature=2.0), lambda z, v: ref.jensen_shannon(z, v, 0.3, 2.0)),
    "jensen_shannon-compensated": (
        JensenShannonLoss(0.5, temperature=2.0, compensate=True),
        lambda z, v: 4 * ref.jensen_shannon(z, v, 0.5, 2.0),
    ),
    "skew_kl": (SkewKLLoss(0.2, temperature=2.0), lambda z, v: ref.skew_kl(v, z, 0.2, 2.0)),
    "skew_kl-reverse": (SkewKLLoss(0.2, reverse=True), lambda z, v: ref.skew_kl(z, v, 0.2)),
    "total_variation": (TotalVariationLoss(2.0), lambda z, v: ref.total_variation(z, v, 2.0)),
    "hellinger": (HellingerLoss(2.0), lambda z, v: 4 * ref.hellinger(z, v, 2.0)),
    "renyi": (RenyiLoss(0.3, temperature=2.0), lambda z, v: 4 * ref.renyi(z, v, 0.3, 2.0)),
    "renyi-2": (RenyiLoss(2.0), lambda z, v: ref.renyi(z, v, 2.0)),
    "alpha_beta": (AlphaBetaLoss(0.3, 1.4), lambda z, v: ref.alpha_beta(z, v, 0.3, 1.4, 4.0)),
    "alpha_beta-limit": (AlphaBetaLoss(0.4, 0.0), lambda z, v: ref.alpha_beta_limit(v, z, 0.4, 4.0)),
    "alpha_beta-reverse-limit": (
        AlphaBetaLoss(0.0, 2.0, author_limits=True),
        lambda z, v: ref.alpha_beta_limit(z, v, 2.0, 4.0, author=True),
    ),
    "alpha_beta-log": (AlphaBetaLoss(0.0, 0.0), lambda z, v: ref.log_ratio_square(z, v, 4.0)),
    "soft_cross_entropy": (SoftCrossEntropyLoss(2.0), lambda z, v: 4 * ref.soft_cross_entropy(z, v, 2.0)),
    "soft_cross_entropy-element-mean": (
        SoftCrossEntropyLoss(2.0, compensate=False, element_mean=True),
        lambda z, v: ref.soft_cross_entropy(z, v, 2.0) / 4,
    ),
    "kd-element-mean": (
        KDLoss(2.0, element_mean=True),
        lambda z, v: ref.kl_of_probabilities(ref.softmax(v, 2.0), ref.softmax(z, 2.0)),  # T² = K = 4
    ),
    "hard_label": (HardLabelLoss(), ref.hard_label),
    "binary_cross_entropy": (BinaryCrossEntropyLoss(2.0), lambda z, v: ref.binary_cross_entropy(z, v, 2.0)),
    "logit_mse": (LogitMSELoss(), ref.logit_mse),
    "logit_mse-half-sum": (LogitMSELoss(half_sum=True), lambda z, v: 2 * ref.logit_mse(z, v)),
    "logit_mse-temperature": (LogitMSELoss(temperature=3.0), lambda z, v: ref.logit_mse(z, v) / 9),
    "logit_mse-compensated": (LogitMSELoss(temperature=3.0, compensate=True), ref.logit_mse),
    "logit_mse-center": (
        LogitMSELoss(center=True),
        lambda z, v: ref.logit_mse(ref.centred(z), ref.centred(v)),
    ),
    "logit_huber": (LogitHuberLoss(0.7), lambda z, v: ref.logit_huber(z, v, 0.7)),
    "logit_huber-center": (
        LogitHuberLoss(2.0, center=True, temperature=2.0),
        lambda z, v: ref.logit_huber(ref.centred(z) / 2, ref.centred(v) / 2, 2.0),
    ),
    "ofa": (OFALoss(0.7, temperature=2.0), lambda z, v: ref.ofa(z, v, np.array([2, 0, 3]), 0.7, 2.0)),
    "ofa-compensated": (
        OFALoss(2.0, temperature=2.0, compensate=True),
        lambda z, v: 4 * ref.ofa(z, v, np.array([2, 0, 3]), 2.0, 2.0),
    ),
    "teacher_free": (TeacherFreeLoss(5.0), lambda z, v: ref.teacher_free(z, np.array([2, 0, 3]), 5.0, 0.99) / 4),
    "teacher_free-sum": (
        TeacherFreeLoss(0.5, confidence=0.7, element_mean=False),
        lambda z, v: ref.teacher_free(z, np.array([2, 0, 3]), 0.5, 0.7),
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_rows_and_gradients_equal_the_reference(case, generator):
    """Row by row, so that no mean hides a permutation; both sides far apart, so that they cannot be swapped."""
    loss, reference = REFERENCES[case]
    student, teacher = 2 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([2, 0, 3])
    student.requires_grad_()
    value = loss.double()(student, teacher, labels).loss
    rows, teachers = student.detach().numpy(), teacher.numpy()
    np.testing.assert_allclose(value.detach().numpy(), reference(rows, teachers), atol=1e-11)
    expected = ref.numeric_gradient(lambda z: reference(z, teachers).sum(), rows)
    np.testing.assert_allclose(torch.autograd.grad(value.sum(), student)[0].numpy(), expected, atol=1e-8)


# --- identities -----------------------------------------------------------------------------------------------------

IDENTITIES = {
    "alpha-beta (1, 0) is kd": (AlphaBetaLoss(1.0, 0.0, temperature=1.0), KDLoss(1.0)),
    "generalised js at 0 is kd": (JensenShannonLoss(0), KDLoss(1.0)),
    "alpha-beta (0, 1) is reverse kl": (AlphaBetaLoss(0.0, 1.0, temperature=1.0), ReverseKLLoss(1.0)),
    "generalised js at 1 is reverse kl": (JensenShannonLoss(1), ReverseKLLoss(1.0)),
    "skew kl without skew is kd": (SkewKLLoss(0.0), KDLoss(1.0)),
    "reverse skew kl without skew is reverse kl": (SkewKLLoss(0.0, reverse=True), ReverseKLLoss(1.0)),
    "renyi of order 1 is kd": (RenyiLoss(1.0), KDLoss(1.0)),
    "jeffreys without reverse is kd": (JeffreysLoss(2.0, reverse_weight=0.0), KDLoss(2.0)),
    "jeffreys without forward is reverse kl": (JeffreysLoss(2.0, reverse_weight=1.0), ReverseKLLoss(2.0)),
    "ofa without enhancement is soft cross-entropy": (OFALoss(1.0), SoftCrossEntropyLoss(1.0)),
    "author's limit at 1 is the limit": (AlphaBetaLoss(1.0, 0.0, author_limits=True), AlphaBetaLoss(1.0, 0.0)),
}


@pytest.mark.parametrize("identity", IDENTITIES)
def test_ends_of_the_families_meet(identity):
    first, second = IDENTITIES[identity]
    torch.testing.assert_close(first(S, T, Y).loss, second(S, T, Y).loss, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("near", "limit"),
    [
        (AlphaBetaLoss(0.5, 0.01, temperature=1.0), AlphaBetaLoss(0.5, 0.0, temperature=1.0)),
        (AlphaBetaLoss(0.01, 0.5, temperature=1.0), AlphaBetaLoss(0.0, 0.5, temperature=1.0)),
        (AlphaBetaLoss(0.01, 0.01, temperature=1.0), AlphaBetaLoss(0.0, 0.0, temperature=1.0)),
        (RenyiLoss(0.99), RenyiLoss(1.0)),
    ],
    ids=["beta", "alpha", "both", "renyi"],
)
def test_limits_continue_their_families(near, limit):
    """A sweep over an order must not jump at its end, as the authors' factor of alpha-beta does (by 2 at 0.5).

    The distance to the limit is about an order of 0.01 times the batch's log-probabilities, which go down to -7.
    """
    torch.testing.assert_close(near(S, T).loss, limit(S, T).loss, rtol=0.1, atol=0)


def test_authors_factor_is_refused_where_it_changes_nothing():
    for orders in ((0.8, 0.3), (0.0, 0.0)):
        with pytest.raises(ValueError, match="exactly one of them is 0"):
            AlphaBetaLoss(*orders, author_limits=True)


@given(scale=st.floats(0.1, 300.0), beta=st.floats(0.0, 1.0), alpha=st.floats(0.01, 0.99))
def test_bounded_divergences_keep_their_bounds(scale, beta, alpha):
    """Their point is that one hopeless row cannot dominate; in float32, with the rounding of five classes."""
    student, teacher = scale * S.float(), -scale * T.float()
    slack = 1e-5
    if 0 < beta < 1:
        assert (JensenShannonLoss(beta)(student, teacher).loss <= math.log(2) + slack).all()
    assert (SkewKLLoss(alpha)(student, teacher).loss <= -math.log(alpha) + slack).all()
    for loss in (TotalVariationLoss(), HellingerLoss()):
        assert (loss(student, teacher).loss <= 1 + slack).all()


def test_half_the_centred_squared_error_is_kd_at_large_temperatures():
    """The reason to centre: the limit is blind to the level of the logits. Terms of third order fall like 1/T."""
    expected = 0.5 * LogitMSELoss(center=True)(S, T).loss
    torch.testing.assert_close(KDLoss(1e5)(S, T).loss, expected, rtol=1e-4, atol=0)


def test_soft_cross_entropy_has_the_gradient_of_kd():
    """Value apart, by the teacher's entropy, which a fixed temperature keeps constant."""
    norms = [value_and_norm(loss)[1] for loss in (KDLoss(3.0), SoftCrossEntropyLoss(3.0))]
    assert norms[0] == pytest.approx(norms[1], abs=1e-13)


@pytest.mark.parametrize("make", [LogitMSELoss, LogitHuberLoss, BinaryCrossEntropyLoss])
def test_regressions_say_that_the_level_of_the_logits_matters(make):
    """A wrong trait lets a strategy that stands for shifted logits through. BCE ignores the teacher's level only."""
    loss = make()
    assert not loss.shift_invariant
    assert not loss.is_divergence
    assert (loss(S + 1.0, T).loss != loss(S, T).loss).all()
    same = torch.allclose(loss(S, T + 1.0).loss, loss(S, T).loss)
    assert same == (make is BinaryCrossEntropyLoss)


def test_huber_does_not_follow_a_wild_logit():
    """The slope per logit is at most delta / K, where the squared error's grows with the difference."""
    student = S.clone().requires_grad_()
    wild = T.clone()
    wild[0, 0] = 1e6
    gradient = torch.autograd.grad(LogitHuberLoss(0.5)(student, wild).loss.sum(), student)[0]
    assert gradient[0, 0].item() == pytest.approx(-0.5 / 5)


def test_a_teacher_with_nan_is_not_taken_at_its_word():
    """`argmax` of a row with NaN is the NaN's place, which looks like any other choice."""
    teacher = T.clone()
    teacher[1, 2] = math.nan
    rows = HardLabelLoss()(S, teacher).loss
    assert rows.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("key", VALUES)
def test_two_classes_are_enough_to_learn_from(key):
    """Half of the logit methods lose their gradient on binary tasks; these do not, so they need not warn about it."""
    loss = VALUES[key][0]
    assert not loss.needs_two_plus_classes
    student = S[:, :2].clone().requires_grad_()
    value = loss.double()(student, T[:, :2], Y % 2).loss.mean()
    assert torch.autograd.grad(value, student)[0].norm() > 5e-3


LABEL_LOSSES = {"ofa": OFALoss(), "teacher_free": TeacherFreeLoss()}


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_rows_without_a_class_teach_nothing_or_say_so(name):
    """-100 is no label; another number outside the classes is a mistake, which 0 would hide."""
    student = S.clone().requires_grad_()
    rows = LABEL_LOSSES[name](student, T, torch.tensor([0, -100, 5, -1])).loss
    assert rows.isnan().tolist() == [False, False, True, True]
    assert rows[1] == 0
    gradient = torch.autograd.grad(rows[:2].sum(), student)[0]
    assert gradient[0].any()
    assert not gradient[1].any()
    with pytest.raises(ValueError, match="needs labels"):
        LABEL_LOSSES[name](S, T)


def test_enhancement_shifts_weight_from_the_other_classes_to_the_target():
    """The gradient of the target's logit grows with gamma, the share of the others in the target sum shrinks."""
    gradients = []
    for gamma in (0.5, 1.0, 2.0):
        student = torch.zeros_like(S).requires_grad_()
        OFALoss(gamma)(student, T, Y).loss.sum().backward()
        gradients.append(-student.grad[0, 0].item())
    assert gradients == sorted(gradients)


def test_enhancement_differentiates_where_a_teacher_probability_underflows():
    """The slope of a root is infinite at 0: powers of probabilities would give a learned temperature NaN."""
    loss = OFALoss(0.5, temperature="ctkd")
    loss(S.float(), 1000 * T.float(), Y, progress=Progress(fraction=1.0)).loss.sum().backward()
    gradients = [parameter.grad for parameter in loss.parameters()]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_teacher_free_objective_runs_without_a_teacher():
    """Otherwise the one method that needs no teacher could not be trained without one."""
    objective = DistillationObjective([(2.0, TeacherFreeLoss())], ce_weight=0.5, kd_weight=1.0)
    assert not objective.needs_teacher
    labels = torch.tensor([0, -100, 3, 4])
    output = objective(S, None, labels)
    expected = 2.0 * TeacherFreeLoss()(S, None, labels).loss.sum() / 3
    torch.testing.assert_close(output.components["kd_loss"], expected)
    assert torch.equal(objective(S, torch.full_like(T, math.nan), labels).loss, output.loss)


def test_teacher_free_loss_beside_another_needs_that_ones_teacher():
    objective = DistillationObjective([(1.0, TeacherFreeLoss()), (1.0, KDLoss())], ce_weight=0.5, kd_weight=1.0)
    assert objective.needs_teacher
    with pytest.raises(ValueError, match="no teacher logits at kd_weight=1"):
        objective(S, None, Y)


# --- methods that move through the run ------------------------------------------------------------------------------


def test_annealing_in_stage_3_is_the_published_value():
    """Value and gradient of stage 3 of 10, reached by the run's share and by epochs."""
    moments = [
        (AnnealingKDLoss(first_phase=0.5), Progress(fraction=0.125)),
        (AnnealingKDLoss(first_phase_epochs=200), Progress(epoch=40.0, fraction=0.9)),
    ]
    for loss, progress in moments:
        student = S.clone().requires_grad_()
        value = loss(student, T, progress=progress).loss.mean()
        assert value.item() == pytest.approx(0.1769266145, abs=1e-10)
        assert torch.autograd.grad(value, student)[0].norm().item() == pytest.approx(0.1881098692, abs=1e-10)


def test_annealing_equals_the_reference_in_every_stage(generator):
    student, teacher = 2 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    loss = AnnealingKDLoss(4, first_phase=0.8)
    for stage, fraction in ((1, 0.0), (2, 0.3), (3, 0.59), (4, 0.799)):
        rows = loss(student, teacher, progress=Progress(fraction=fraction)).loss
        expected = ref.logit_mse(student.numpy(), teacher.numpy() * stage / 4)
        np.testing.assert_allclose(rows.numpy(), expected, atol=1e-12)


def test_annealing_stages_change_with_the_authors_epochs():
    """200 epochs in 10 stages: one step up every 20, the full teacher for the last 20, then no teacher."""
    loss = AnnealingKDLoss(first_phase_epochs=200)
    stages = [loss.stage(Progress(epoch=float(epoch))) for epoch in range(300)]
    assert stages == [epoch // 20 + 1 for epoch in range(200)] + [0] * 100
    loss = AnnealingKDLoss(100, first_phase_epochs=100)
    assert [loss.stage(Progress(epoch=float(epoch))) for epoch in range(101)] == [*range(1, 101), 0]


def test_annealing_by_share_ends_where_it_says():
    loss = AnnealingKDLoss()
    assert [loss.stage(Progress(fraction=f)) for f in (0.0, 0.0667, 0.6, 0.666, 2 / 3, 1.0)] == [1, 2, 10, 10, 0, 0]
    whole = AnnealingKDLoss(3, first_phase=1.0)
    assert [whole.stage(Progress(fraction=f)) for f in (0.0, 0.34, 0.99, 1.0)] == [1, 2, 3, 3]


def test_annealing_hands_the_student_over_to_the_labels():
    """Teacher alone, then labels alone: with both all the way the last stages would fight over the logits' level."""
    objective = DistillationObjective([(2.0, AnnealingKDLoss())], ce_weight=0.7, kd_weight=1.0)
    student = S.clone().requires_grad_()
    first = objective(student, T, Y, progress=Progress(fraction=0.6))
    assert first.components["ce_loss"] == 0
    assert first.components["kd_loss"].item() == pytest.approx(2.0 * 1.5778672500, abs=1e-9)
    second = objective(student, T, Y, progress=Progress(fraction=0.7))
    assert second.components["kd_loss"] == 0
    assert second.loss.item() == pytest.approx(0.7 * 0.7156349054, abs=1e-9)
    gradient = torch.autograd.grad(second.loss, student)[0]
    assert gradient.norm().item() == pytest.approx(0.7 * 0.2958785457, abs=1e-9)


def test_annealing_is_silent_without_a_distillation_weight():
    """At kd_weight=0 the run is a plain baseline, from its first step."""
    objective = DistillationObjective([(1.0, AnnealingKDLoss())], ce_weight=1.0, kd_weight=0.0)
    assert objective(S, None, Y).loss.item() == pytest.approx(0.7156349054, abs=1e-9)


def test_sample_weights_keep_the_phases():
    weighted = SampleWeightedLoss(AnnealingKDLoss(), "teacher_confidence")
    assert [weighted.ce_factor(Progress(fraction=f)) for f in (0.0, 0.9)] == [0.0, 1.0]


def taid_positions(losses, fractions, **options):
    loss = TAIDLoss(**options).double()
    positions = []
    for value, fraction in zip(losses, fractions, strict=True):
        loss.advance(value, progress=Progress(fraction=fraction))
        positions.append(loss.t(Progress(fraction=fraction)).item())
    return positions


@pytest.mark.parametrize("options", [{}, {"rate": 0.3, "momentum": 0.5}, {"start": 0.0, "end": 0.7, "rate": 1.0}])
def test_taid_moves_as_the_reference_does(options):
    """A falling loss, a rising one, a level one; the linear schedule takes over where the adaptive one lags."""
    losses = [2.0, 1.0, 0.5, 4.0, 4.0, 0.1, 0.1, 3.0]
    fractions = [i / len(losses) for i in range(len(losses))]
    assert taid_positions(losses, fractions, **options) == pytest.approx(ref.taid(losses, fractions, **options))


def test_taid_rises_faster_while_the_loss_falls():
    falling = taid_positions([4.0, 3.0, 2.0, 1.0], [0.0] * 4, rate=0.5, momentum=0.0)
    rising = taid_positions([1.0, 2.0, 3.0, 4.0], [0.0] * 4, rate=0.5, momentum=0.0)
    assert falling[0] == rising[0] == 0.4
    assert all(a > b for a, b in zip(falling[1:], rising[1:], strict=True))
    assert rising == sorted(rising)


def test_taid_without_calls_follows_the_linear_schedule():
    fractions = (0.0, 0.25, 0.5, 1.0)
    expected = [0.4, 0.55, 0.7, 1.0]
    for adaptive in (True, False):
        loss = TAIDLoss(adaptive=adaptive).double()
        assert [loss.t(Progress(fraction=f)).item() for f in fractions] == pytest.approx(expected)
    loss.advance(1.0)
    loss.advance(0.1)
    assert loss.t(Progress()).item() == 0.4, "not adaptive"


def test_taid_from_the_student_itself_is_no_divergence_at_first():
    """At t = 0 it is 0 for any student, so 0 does not mean that both agree."""
    assert not TAIDLoss(0.0)(S, T).loss.any()
    assert not TAIDLoss(0.0).is_divergence
    assert TAIDLoss().is_divergence


def test_taid_does_not_learn_from_a_loss_that_is_not_finite():
    """One skipped fp16 step would leave NaN in the state for the rest of the run."""
    losses = [2.0, math.nan, 1.0, math.inf, 0.5]
    clean = taid_positions([2.0, 1.0, 0.5], [0.0] * 3, rate=0.5)
    broken = taid_positions(losses, [0.0] * 5, rate=0.5)
    assert [broken[0], broken[2], broken[4]] == pytest.approx(clean)
    assert broken[1] == broken[0]
    assert broken[3] == broken[2]


def test_taid_state_is_saved_and_calls_of_the_loss_leave_it_alone():
    """Otherwise a resumed run starts with another target, and every micro-batch moves it."""
    loss = TAIDLoss(rate=0.5).double()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(S, T)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    for value in (2.0, 1.0, torch.tensor(0.5)):
        loss.advance(value)
    resumed = TAIDLoss(rate=0.5).double()
    resumed.load_state_dict(loss.state_dict())
    for each in (loss, resumed):
        each.advance(0.25)
    assert resumed.t(Progress()) == loss.t(Progress()) > 0.4
    assert loss(S, T).parts["t"] == loss.t(Progress())
    expected = ref.taid_loss(S.numpy(), T.numpy(), loss.t(Progress()).item())
    np.testing.assert_allclose(resumed(S, T).loss.numpy(), expected, atol=1e-12)


def test_compensation_keeps_the_gradients_scale_of_smooth_divergences():
    """T² is the right factor wherever the divergence is locally a square, so also where the sources leave it out."""
    smooth = {
        "kd": KDLoss,
        "reverse_kl": ReverseKLLoss,
        "jeffreys": JeffreysLoss,
        "jensen_shannon": JensenShannonLoss,
        "skew_kl": SkewKLLoss,
        "hellinger": HellingerLoss,
        "renyi": RenyiLoss,
    }
    for name, make in smooth.items():
        norms = [value_and_norm(make(temperature=t, compensate=True))[1] for t in (50.0, 100.0)]
        assert norms[0] == pytest.approx(norms[1], rel=0.05), name
    norms = [value_and_norm(TotalVariationLoss(t))[1] * t for t in (50.0, 100.0)]
    assert norms[0] == pytest.approx(norms[1], rel=0.05), "total variation shrinks like 1/T"


def test_bad_arguments_are_refused_by_name():
    fractions = [-0.1, 1.1, float("nan"), True, "0.5"]
    check_refuses(lambda value: JensenShannonLoss(value), "beta", fractions)
    check_refuses(lambda value: SkewKLLoss(value), "alpha", [*fractions, 1, 1.0])
    check_refuses(lambda value: JeffreysLoss(reverse_weight=value), "reverse_weight", fractions)
    check_refuses(lambda value: RenyiLoss(value), "alpha", [0, -1.0, float("inf"), 0.995, 1.001, True])
    check_refuses(lambda value: AlphaBetaLoss(value, 0.3), "alpha", [-0.1, 0.001, float("nan"), True])
    check_refuses(lambda value: AlphaBetaLoss(0.3, value), "beta", [-0.1, 0.001, float("nan"), True])
    for make in (KDLoss, ReverseKLLoss, TotalVariationLoss, AlphaBetaLoss):
        check_refuses(lambda value, make=make: make(compensate=value), "compensate", ["false", 0, None])
    check_refuses(lambda value: KDLoss(element_mean=value), "element_mean", ["false", 1])
    check_refuses(lambda value: SkewKLLoss(reverse=value), "reverse", ["false", 1])
    check_refuses(lambda value: SoftCrossEntropyLoss(element_mean=value), "element_mean", ["false", 1])
    for make in (LogitMSELoss, LogitHuberLoss):
        check_refuses(lambda value, make=make: make(center=value), "center", ["false", 1])
    check_refuses(lambda value: LogitMSELoss(half_sum=value), "half_sum", ["false", 1])
    check_refuses(lambda value: LogitHuberLoss(value), "delta")
    check_refuses(lambda value: OFALoss(value), "gamma")
    check_refuses(lambda value: TeacherFreeLoss(value), "temperature")
    check_refuses(lambda value: AnnealingKDLoss(value), "stages", [0, 1.5, -1, float("nan"), True, "10"])
    check_refuses(lambda value: AnnealingKDLoss(first_phase=value), "first_phase", [0, 1.1, -1, float("nan"), True])
    check_refuses(lambda value: AnnealingKDLoss(first_phase_epochs=value), "first_phase_epochs")
    for name in ("start", "rate", "momentum"):
        check_refuses(lambda value, name=name: TAIDLoss(**{name: value}), name, fractions)
    check_refuses(lambda value: TAIDLoss(end=value), "end", [*fractions, 0, 0.3])
    check_refuses(lambda value: TAIDLoss(value), "start", [1, 1.0])
    check_refuses(lambda value: TAIDLoss(adaptive=value), "adaptive", ["false", 1])
    check_refuses(lambda value: TeacherFreeLoss(confidence=value), "confidence", [-0.1, 1.1, float("nan"), True])
    check_refuses(lambda value: TeacherFreeLoss(element_mean=value), "element_mean", ["false", 1])


@pytest.mark.parametrize("make", [lambda: AlphaBetaLoss(), lambda: JensenShannonLoss(0.1), lambda: KDLoss()])
def test_hyperparameters_are_in_the_repr(make):
    """The manifest of a checkpoint compares it: two losses that differ must not look alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = repr(make())
    assert "ConstantTemperature" in text
    assert "compensate" in text or make()._get_name() == "KDLoss"

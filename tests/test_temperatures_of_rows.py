"""Strategies that read the spread or the ease of each row, and those that wrap another strategy."""

import pytest
import torch

from hf_kd import Progress
from hf_kd.losses import KDLoss
from hf_kd.registry import ConfigError
from hf_kd.temperatures import (
    ClampedTemperature,
    CTKDTemperature,
    CWSMTemperature,
    DTKDTemperature,
    FLSWTemperature,
    NormTemperature,
    ScaledTemperature,
    StandardizedTemperature,
    TTMTemperature,
    WarmupTemperature,
    as_strategy,
)
from hf_kd.testing import check_refuses


def pair(generator, rows=6, classes=5):
    return 3 * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)


def at(strategy, fraction, logits=None):
    logits = torch.tensor([[3.0, 1.0, -1.0]], dtype=torch.float64) if logits is None else logits
    return strategy(logits, 2 * logits, progress=Progress(fraction=fraction))


# --- spread ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [StandardizedTemperature, NormTemperature])
def test_scale_of_the_students_logits_does_not_count(make, generator):
    """The student is free in its scale: the point of standardising."""
    student, teacher = pair(generator)
    scale = torch.tensor([[0.1], [0.5], [1.0], [2.0], [7.0], [30.0]], dtype=torch.float64)
    expected = KDLoss(make(2.0))(student, teacher).loss
    torch.testing.assert_close(KDLoss(make(2.0))(student * scale, teacher).loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ddof", "spread"), [(1, 2.0), (0, (8 / 3) ** 0.5)])
def test_spread_is_that_of_the_definition(ddof, spread):
    """By hand: 3, 1, -1 has squared deviations 4, 0, 4."""
    for strategy, epsilon in ((StandardizedTemperature(2.0, ddof=ddof), 1e-7), (NormTemperature(2.0, ddof=ddof), 0.0)):
        temperatures = at(strategy, 0.0)
        assert temperatures.student.item() == pytest.approx(2 * (spread + epsilon), abs=1e-12)
        assert temperatures.teacher.item() == pytest.approx(2 * (2 * spread + epsilon), abs=1e-12)
    assert at(StandardizedTemperature(3.0, ddof=ddof), 0.0).compensation.item() == 9.0
    assert at(NormTemperature(2.0, ddof=ddof), 0.0).compensation.item() == pytest.approx((4 * spread) ** 2, abs=1e-12)


@pytest.mark.parametrize("make", [StandardizedTemperature, NormTemperature])
@pytest.mark.parametrize("side", [0, 1])
def test_constant_rows_act_as_if_their_spread_were_one(make, side, generator):
    """A head that starts at zero: 1e7 times the gradient, or NaN, in the first step. Its neighbours stay."""
    logits = list(pair(generator))
    logits[side] = logits[side].clone()
    logits[side][2] = 4.2
    student = logits[0].requires_grad_()
    output = KDLoss(make(2.0))(student, logits[1])
    assert output.temperatures.parts["unscaled"].tolist() == [0, 0, 1, 0, 0, 0]
    value = (output.temperatures.student, output.temperatures.teacher)[side][2].item()
    assert value == pytest.approx(2.0, abs=1e-6)
    gradient = torch.autograd.grad(output.loss.sum(), student)[0]
    assert gradient.isfinite().all()
    assert gradient[2].norm() < 100
    bare = KDLoss(make(2.0, guard=False))(student, logits[1])
    rest = torch.arange(6) != 2
    torch.testing.assert_close(output.loss[rest], bare.loss[rest])


def test_bare_formulas_are_the_authors(generator):
    """What the guard is for: huge gradients of one, NaN of the other."""
    _, teacher = pair(generator)
    student = torch.zeros_like(teacher).requires_grad_()
    bare = KDLoss(StandardizedTemperature(2.0, guard=False))(student, teacher).loss.sum()
    assert torch.autograd.grad(bare, student)[0].norm() > 1e6
    assert KDLoss(NormTemperature(2.0, guard=False))(student, teacher).loss.isnan().all()


def test_base_temperature_sees_standardised_logits(generator):
    """DTKD divides by largest logits, which mean something only once levels and scales are gone."""
    student, teacher = pair(generator)
    strategy = StandardizedTemperature(DTKDTemperature(3.0), epsilon=0.0)
    z, v = ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) for x in (student, teacher))
    expected = KDLoss(DTKDTemperature(3.0))(z, v).loss
    torch.testing.assert_close(KDLoss(strategy)(student, teacher).loss, expected, rtol=1e-10, atol=1e-12)


# --- batch-relative --------------------------------------------------------------------------------------------------


def test_batch_relative_strategies_say_so(generator):
    student, teacher = pair(generator)
    for strategy in (FLSWTemperature(), CWSMTemperature()):
        assert not strategy.row_wise
        temperatures = strategy(student, teacher).student
        assert temperatures.mean().item() == pytest.approx(4.0, abs=1e-9)
        assert temperatures.unique().numel() == 6


def test_hard_rows_get_the_lower_temperature():
    student = torch.tensor([[5.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 5.0]])
    for strategy in (FLSWTemperature(), CWSMTemperature()):
        easy, hard = strategy(student, teacher).student.flatten().tolist()
        assert hard < 4.0 < easy


def test_extreme_hardness_is_held_in_the_interval():
    """With 1000 classes the bare rule reaches -300 here: a negative temperature inverts the objective."""
    student = torch.zeros(3, 1000)
    student[0, 0] = 50.0
    student[1, 1] = 50.0
    bare = CWSMTemperature(guard=False)(student, student).student.flatten()
    held = CWSMTemperature()(student, student)
    assert bare[2] < 0
    assert held.student.flatten().tolist() == pytest.approx([7.6, 7.6, 0.4], abs=1e-6)
    assert held.parts["guarded"].tolist() == [1.0, 1.0, 1.0]


# --- wrappers --------------------------------------------------------------------------------------------------------


def test_clamp_touches_only_what_lies_outside():
    for inner, expected in ((1.0, 2.0), (3.0, 3.0), (9.0, 5.0)):
        temperatures = at(ClampedTemperature(inner, 2.0, 5.0), 0.0)
        assert temperatures.student.item() == temperatures.teacher.item() == expected
        assert temperatures.compensation.item() == expected**2


def test_compensation_that_is_no_product_stays():
    """TTM's loss has no T²: a clamp that put one there would multiply its loss weight."""
    temperatures = at(ClampedTemperature(TTMTemperature(10.0), 0.5, 5.0), 0.0)
    assert (temperatures.student.item(), temperatures.teacher.item()) == (1.0, 5.0)
    assert temperatures.compensation.item() == 1.0
    plain = at(StandardizedTemperature(3.0), 0.0)
    assert at(ScaledTemperature(StandardizedTemperature(3.0), 2.0), 0.0).compensation.item() == 9.0
    assert at(ScaledTemperature(StandardizedTemperature(3.0), 2.0), 0.0).student == 2 * plain.student


def test_clamped_learned_temperature_learns_inside_only():
    for high, learns in ((20.0, True), (10.0, False)):
        strategy = ClampedTemperature(CTKDTemperature(curriculum=0.0), 0.5, high)
        logits = torch.tensor([[1.0, 0.0, 2.0]])
        KDLoss(strategy)(logits, -logits).loss.sum().backward()
        assert bool(strategy.inner.raw.grad) == learns


@pytest.mark.parametrize(("fraction", "share"), [(0.0, 0.0), (0.1, 0.25), (0.2, 0.5), (0.4, 1.0), (1.0, 1.0)])
def test_warmup_goes_straight_from_start_to_the_strategy(fraction, share):
    inner = at(DTKDTemperature(4.0), fraction)
    temperatures = at(WarmupTemperature(DTKDTemperature(4.0), 1.0, until=0.4), fraction)
    for side in ("student", "teacher"):
        expected = 1.0 + share * (getattr(inner, side).item() - 1.0)
        assert getattr(temperatures, side).item() == pytest.approx(expected, abs=1e-12)
    product = (temperatures.student * temperatures.teacher).item()
    assert temperatures.compensation.item() == pytest.approx(product, abs=1e-12)


def test_scaled_multiplies_both_sides_along_its_curve():
    strategy = ScaledTemperature(DTKDTemperature(4.0), {"name": "linear", "start": 2.0, "end": 0.5})
    inner = at(DTKDTemperature(4.0), 0.0)
    for fraction, factor in ((0.0, 2.0), (0.5, 1.25), (1.0, 0.5)):
        temperatures = at(strategy, fraction)
        assert temperatures.student.item() == pytest.approx(factor * inner.student.item(), abs=1e-12)
        assert temperatures.teacher.item() == pytest.approx(factor * inner.teacher.item(), abs=1e-12)
        assert temperatures.compensation.item() == pytest.approx(factor**2 * inner.compensation.item(), abs=1e-12)


def test_wrappers_nest_in_a_configuration():
    spec = {
        "name": "clamped",
        "high": 9.0,
        "temperature": {"name": "warmup", "until": 0.5, "temperature": {"name": "ctkd_instance", "hidden_size": 3}},
    }
    strategy = as_strategy(spec, num_labels=7)
    assert [m.name for m in (strategy, strategy.inner, strategy.inner.inner)] == ["clamped", "warmup", "ctkd_instance"]
    assert strategy.inner.inner.num_labels == 7
    assert (strategy.learnable, strategy.per_sample, strategy.row_wise) == (True, True, True)


def test_traits_are_those_of_the_wrapped_strategy():
    for make in (ClampedTemperature, WarmupTemperature, ScaledTemperature):
        assert not make("flsw").row_wise
        assert not make("dtkd").shift_invariant
        assert make("standardized").needs_shift_invariance
        assert not make("standardized").compensates_product
        assert make("norm").needs_two_plus_classes
        assert not make(4.0).learnable


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClampedTemperature(4.0, 5.0, 2.0), r"low=5.0, high=2.0.*interval is empty"),
        (lambda: ScaledTemperature(4.0, "dtkd"), r"must be a number or a schedule, got DTKDTemperature"),
        (lambda: as_strategy({"name": "warmup", "temperature": "dtdk"}), r"^temperature.temperature.name: unknown"),
        (lambda: as_strategy({"name": "scaled", "factor": "linaer"}), r"^temperature.factor.name: unknown"),
    ],
)
def test_what_cannot_work_is_refused_in_words(make, message):
    with pytest.raises((ValueError, ConfigError), match=message):
        make()


@pytest.mark.parametrize(
    ("make", "argument", "values"),
    [
        (NormTemperature, "temperature", None),
        (FLSWTemperature, "temperature", None),
        (CWSMTemperature, "temperature", None),
        (lambda v: ClampedTemperature(4.0, v), "low", None),
        (lambda v: ClampedTemperature(4.0, 0.5, v), "high", None),
        (lambda v: WarmupTemperature(4.0, v), "start", None),
        (lambda v: WarmupTemperature(until=v), "until", [0, 1.5, True, "1"]),
        (lambda v: StandardizedTemperature(ddof=v), "ddof", [2, -1, 0.5, True, "1"]),
        (lambda v: NormTemperature(ddof=v), "ddof", [2]),
        (lambda v: StandardizedTemperature(epsilon=v), "epsilon", [-1e-7, float("nan"), "0"]),
        (lambda v: StandardizedTemperature(detach=v), "detach", [1, "true", None]),
        (lambda v: NormTemperature(guard=v), "guard", [0, "false"]),
        (lambda v: FLSWTemperature(gamma=v), "gamma", [0, -1.0]),
        (lambda v: CWSMTemperature(beta=v), "beta", [-1.0, float("inf")]),
    ],
)
def test_bad_arguments_are_refused_by_name(make, argument, values):
    check_refuses(make, argument, *([] if values is None else [values]))

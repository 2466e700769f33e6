"""The tensor maths, against values worked by hand and the float64 references."""

import math

import pytest
import reference as ref
import torch
import torch.nn.functional as F

from hf_kd.functional import (
    cosine_curriculum,
    cross_entropy,
    gradient_reversal,
    kl_divergence,
    power_sum,
    upcast,
)


def test_kl_by_hand():
    """p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)."""
    student = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    value = kl_divergence(torch.zeros(1, 2, dtype=torch.float64), student)
    assert value.tolist() == pytest.approx([0.5 * math.log(4 / 3)], abs=1e-15)


def test_kl_is_of_the_student_from_the_teacher(generator):
    """Guards the direction and both temperatures: swapping either is still a plausible number."""
    student, teacher = torch.randn(2, 6, 7, generator=generator, dtype=torch.float64) * 3
    expected = [ref.kl(v, z, 5.0, 2.0) for z, v in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert kl_divergence(teacher, student, 5.0, 2.0).tolist() == pytest.approx(expected, abs=1e-13)


def test_kl_takes_one_temperature_per_row(generator):
    student, teacher = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    temperatures = torch.tensor([[0.5], [2.0], [9.0]], dtype=torch.float64)
    expected = [
        ref.kl(v, z, t, t) for z, v, t in zip(student.tolist(), teacher.tolist(), (0.5, 2.0, 9.0), strict=True)
    ]
    assert kl_divergence(teacher, student, temperatures, temperatures).tolist() == pytest.approx(expected, abs=1e-13)


def test_kl_differentiates_where_a_target_underflows():
    """`F.kl_div` gives NaN for the temperature's gradient there, which is what broke CTKD over DKD."""
    teacher, student = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    temperature = torch.tensor(1.0, requires_grad=True)
    value = kl_divergence(teacher, student, temperature, temperature)
    value.sum().backward()
    assert value.isfinite().all()
    assert temperature.grad.isfinite()
    probability = torch.tensor([[1.0, 0.0]], requires_grad=True)
    F.kl_div(student.log_softmax(-1), probability, reduction="sum").backward()
    assert probability.grad.isnan().any(), "the accident this guards against no longer happens upstream"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_before_the_softmax(dtype):
    """In float16 the softmax of ordinary teacher logits drops classes that a high temperature brings back."""
    teacher = torch.tensor([[40.0, 20.0, 0.0]], dtype=dtype)
    value = kl_divergence(teacher, torch.zeros_like(teacher), 10.0, 1.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, kl_divergence(teacher.float(), torch.zeros(1, 3), 10.0, 1.0), rtol=0, atol=0)


def test_upcast_only_raises():
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert upcast(torch.zeros(1, dtype=dtype)).dtype == expected


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_torch_and_the_reference(generator, smoothing):
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64) * 3
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    value = cross_entropy(logits, labels, smoothing)
    assert value.shape == (6,)
    expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    reference = ref.cross_entropy(logits.tolist(), labels.tolist(), smoothing)
    assert value.mean().item() == pytest.approx(reference, abs=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_zero_on_unlabelled_rows(generator, smoothing):
    logits = torch.randn(3, 5, generator=generator).requires_grad_()
    value = cross_entropy(logits, torch.tensor([-100, 2, -100]), smoothing)
    assert value[[0, 2]].tolist() == [0.0, 0.0]
    value.sum().backward()
    assert not logits.grad[[0, 2]].any()
    assert logits.grad[1].any()


@pytest.mark.parametrize("label", [5, -1, -99, 10**6])
def test_label_out_of_range_is_nan_on_its_row_alone(label):
    """On CUDA torch's own check is a device-side assert: nothing in the process works afterwards."""
    value = cross_entropy(torch.zeros(3, 5), torch.tensor([0, label, -100]))
    assert value.isnan().tolist() == [False, True, False]


def test_power_sum_by_hand():
    """Uniform over four at gamma 1/2: 4 * sqrt(1/4) = 2; one-hot: 1 whatever gamma."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [500.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert power_sum(logits, 0.5).tolist() == pytest.approx([2.0, 1.0], abs=1e-14)
    assert power_sum(logits, 1.0).tolist() == pytest.approx([1.0, 1.0], abs=1e-14)


def test_power_sum_keeps_what_underflows_as_a_probability():
    """e^-200 is 0 in float32, but its power .05 is e^-10: raising probabilities loses the whole tail."""
    value = power_sum(torch.tensor([[200.0, 0.0, 0.0]]), 0.05)
    assert value.item() == pytest.approx(1 + 2 * math.exp(-10), abs=2e-7)  # two float32 units of 1


def test_gradient_reversal_is_identity_forward_and_negative_backward(generator):
    tensor = torch.randn(4, generator=generator, requires_grad=True)
    for strength in (0.0, 0.25, 1.0):
        (gradient,) = torch.autograd.grad(gradient_reversal(tensor, strength).square().sum(), tensor)
        assert torch.equal(gradient_reversal(tensor, strength), tensor)
        torch.testing.assert_close(gradient, -strength * 2 * tensor.detach())


def test_cosine_curriculum_rises_from_0_to_1_and_stays():
    values = [cosine_curriculum(position / 20) for position in range(-5, 30)]
    assert values == sorted(values)
    assert values[:6] == [0.0] * 6
    assert values[25:] == [1.0] * 10
    assert cosine_curriculum(0.5) == pytest.approx(0.5, abs=1e-15)

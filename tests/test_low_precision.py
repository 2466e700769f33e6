"""Every method's whole objective at the edges of its numbers: half precision, huge logits, many classes, one row."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import LOSS_CASES, NUM_LABELS, TEMPERATURE_CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kd import build_objective, memory
from hf_kd.methods import METHODS
from hf_kd.temperatures import Progress
from hf_kd.testing.extras import prepared

MANY = 21_843  # ImageNet-21k
HALFWAY = Progress(epoch=2.0, fraction=0.5)
QUADRATIC = {"wkd_l": "WKDLoss", "aekt_reconstruction": "task_serialization=True"}
"""Methods with a number per pair of classes, and who has it: at `MANY` that is 2 GB per matrix."""


def made(name, classes):
    """The method's objective, bound."""
    objective = build_objective(name, num_labels=classes)
    objective.bind({"num_labels": classes, "student_features": 3, "teacher_features": 4})
    return objective


def extras_for(objective, rows, classes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = {"student_features": (rows, 3), "teacher_features": (rows, 4), "teacher_classifier_weight": (classes, 4)}
    return {need: torch.randn(shapes[need], generator=generator).to(dtype) for need in objective.needs}


def value_and_gradient(name, student, teacher, labels, objective=None, autocast=None):
    """The loss, and its gradient with respect to the student's logits and what is learned."""
    rows, classes = student.shape
    objective = objective or made(name, classes)
    student = student.detach().clone().requires_grad_()
    extras = extras_for(objective, rows, classes)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):  # backward has no business in there
        loss = objective(student, teacher, labels, progress=HALFWAY, extras=extras).loss
    parameters = [p for p in objective.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [student, *parameters], allow_unused=True, materialize_grads=True)
    return loss.detach(), gradients


def pair(rows=6, classes=NUM_LABELS, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[1::3] = -100
    return *(scale * torch.randn(2, rows, classes, generator=generator)), labels


def is_finite(loss, gradients):
    return math.isfinite(loss) and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_an_objective_of_half_precision_logits_is_that_of_the_same_numbers_in_float32(name, dtype):
    """Nothing is computed before it is raised, under autocast or not: rounding is the models', not the loss's.

    Same numbers, same operations, so equal to the last bit; the gradient is rounded on its way out, term by term.
    """
    student, teacher, labels = pair()
    student, teacher = student.to(dtype), teacher.to(dtype)
    torch.manual_seed(0)
    objective = made(name, NUM_LABELS)
    expected, raised = value_and_gradient(name, student.float(), teacher.float(), labels, objective)
    value, gradients = value_and_gradient(name, student, teacher, labels, objective)
    again, under_autocast = value_and_gradient(name, student, teacher, labels, objective, dtype)
    assert value.dtype == again.dtype == torch.float32
    torch.testing.assert_close(torch.stack([value, again]), expected.expand(2), rtol=1e-6, atol=1e-7)
    digits = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}[dtype]
    for found in (gradients, under_autocast):
        assert (found[0].float() - raised[0]).norm() <= 3 * digits * raised[0].norm()
        for gradient, other in zip(found[1:], raised[1:], strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-6)


def edges(classes=NUM_LABELS):
    """Name -> student and teacher logits: each side alone at an edge, and both."""
    student, teacher, _ = pair(classes=classes)
    huge = torch.full_like(student, -1e4).scatter(1, student.argmax(1, keepdim=True), 1e4)
    one_hot = 1e4 * F.one_hot(torch.arange(6) % classes, classes).float()
    uniform = torch.zeros_like(student)
    found = {"huge-both": (huge, -huge), "uniform-both": (uniform, uniform), "huge-agree": (huge, huge)}
    for name, edge in {"huge": huge, "one-hot": one_hot, "uniform": uniform}.items():
        found |= {f"{name}-student": (edge, teacher), f"{name}-teacher": (student, edge)}
    return found


EDGES = edges()


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", METHODS)
def test_an_objective_is_finite_at_every_edge(name, edge):
    """A logarithm of a probability of 0, or a division by a spread of 0, is NaN in every weight one step later."""
    _, _, labels = pair()
    assert is_finite(*value_and_gradient(name, *EDGES[edge], labels))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in QUADRATIC])
def test_an_objective_is_finite_and_alive_with_very_many_classes(name):
    """A mean over classes that nobody asked for, or a floor on probabilities, shows here first."""
    student, teacher, labels = pair(2, MANY)
    loss, gradients = value_and_gradient(name, student, teacher, labels)
    assert is_finite(loss, gradients)
    assert gradients[0].norm() > 1e-6


@pytest.mark.parametrize(("name", "owner"), QUADRATIC.items())
def test_matrices_of_very_many_classes_are_said_before_they_are_made(name, owner, monkeypatch):
    """The system ends a process that takes more than there is, without a word; a GPU names bytes, and no method."""
    monkeypatch.setattr(memory, "device_memory", lambda device: 2**32)
    monkeypatch.setattr(torch.nn, "Linear", lambda *_, **__: pytest.fail("it was allocated"))
    monkeypatch.setattr(torch, "expm1", lambda *_: pytest.fail("it was allocated"))
    student, teacher, labels = pair(2, MANY)
    said = rf"{owner}.*21,843 classes.*7\.1 GiB on 'cpu', which has 4\.0 GiB in all"
    with pytest.raises(ValueError, match=said):
        value_and_gradient(name, student, teacher, labels)


def test_matrices_of_many_classes_that_fit_are_a_warning(monkeypatch):
    monkeypatch.setattr(memory, "WORTH_SAYING", 4 * 300**2 * 4)
    with pytest.warns(UserWarning, match=r"4 numbers for each pair of the 300 classes.*0\.0 GiB on 'cpu', beside"):
        made("aekt_reconstruction", 300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made("aekt_reconstruction", 299)


def test_this_machine_has_some_memory_and_an_unknown_device_none():
    assert memory.device_memory(torch.device("cpu")) > 2**28
    assert memory.device_memory(torch.device("meta")) is None


@pytest.mark.parametrize("name", METHODS)
def test_an_objective_of_one_row_is_finite_labelled_or_not(name):
    student, teacher, _ = pair(1)
    for label in (2, -100):
        assert is_finite(*value_and_gradient(name, student, teacher, torch.tensor([label])))


# --- properties ------------------------------------------------------------------------------------------------------

FEW = settings(derandomize=True, deadline=None, max_examples=5)
seeds = st.integers(0, 2**16)
scales = st.sampled_from([0.1, 1.0, 8.0])
FREE = [name for name, make in LOSS_CASES.items() if not make().needs and not make().needs_labels]


def drawn(seed, scale, rows=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_LABELS, (rows,), generator=generator)
    order = torch.randperm(NUM_LABELS, generator=generator)
    return *(scale * torch.randn(2, rows, NUM_LABELS, generator=generator, dtype=torch.float64)), labels, order


def is_symmetric(case):
    """A network that reads the logits in their order is not, nor is a cost per pair of classes."""
    return "ctkd_instance" not in case and "wkd_l" not in case


@pytest.mark.parametrize("case", [case for case in FREE if is_symmetric(case)])
@FEW
@given(seed=seeds, scale=scales)
def test_a_loss_without_labels_does_not_depend_on_the_order_of_the_classes(case, seed, scale):
    """A class id that leaks into a loss favours a class; sums in another order differ in float64's last digits."""
    torch.manual_seed(0)
    loss = prepared(LOSS_CASES[case], NUM_LABELS)().double()
    student, teacher, _, order = drawn(seed, scale)
    value = loss(student, teacher).loss
    torch.testing.assert_close(loss(student[:, order], teacher[:, order]).loss, value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", TEMPERATURE_CASES)
@FEW
@given(seed=seeds, scale=scales)
def test_weights_and_temperatures_of_rows_are_never_negative(case, seed, scale):
    """A negative weight rewards disagreement on its row."""
    student, teacher, labels, _ = drawn(seed, scale)
    found = TEMPERATURE_CASES[case]()(student.float(), teacher.float(), labels, progress=HALFWAY)
    for side in (found.student, found.teacher):
        assert side.isfinite().all()
        assert (side > 0).all()
    for weight in (found.compensation, found.weight):
        assert weight is None or (torch.as_tensor(weight) >= 0).all()

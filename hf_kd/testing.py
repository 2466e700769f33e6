"""Contract checks for temperature strategies and distillation losses of your own.

A strategy or loss that passes works in the objective and in the trainer: in half precision, on unlabelled rows, split
into micro-batches, saved and resumed. Each check is a free function that raises `AssertionError` with the broken
promise; `check_temperature` and `check_loss` run all of them.

Example:
    >>> from hf_kd.temperatures import ConstantTemperature
    >>> check_temperature(lambda: ConstantTemperature(4.0))
    >>> check_loss(KDLoss)
"""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .losses import DistillationLoss, KDLoss
from .temperatures import TEMPERATURES, Progress, Temperatures, TemperatureStrategy, as_strategy

__all__ = [
    "BAD_TEMPERATURES",
    "LOSS_CHECKS",
    "TEMPERATURE_CHECKS",
    "check_loss",
    "check_refuses",
    "check_temperature",
    "logit_cases",
]

BAD_TEMPERATURES = (0, -1, float("nan"), float("inf"), True, "4")
"""What no temperature-like argument may accept."""

_BATCH = 6
_FIELDS = ("student", "teacher", "compensation", "weight")
_MOMENTS = (Progress(), Progress(epoch=3.5, fraction=0.4), Progress(epoch=1000.0, fraction=1.0))


def logit_cases(num_labels: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, tuple[Tensor, Tensor]]:
    """Student and teacher logits that have broken temperature rules before, by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> Tensor:
        values = scale * torch.randn(_BATCH, num_labels, generator=generator, dtype=torch.float64)
        return values.clamp(-1e4, 1e4).to(dtype)

    zero = torch.zeros(_BATCH, num_labels, dtype=dtype)
    cases = {
        "random": (normal(2.0), normal(4.0)),
        "zero": (zero, zero.clone()),
        "an untrained student": (zero.clone(), normal(4.0)),
        "constant": (zero + 2.5, zero - 2.5),
        "negative": (-normal(2.0).abs() - 1.0, -normal(4.0).abs() - 1.0),
        "opposite signs": (-normal(2.0).abs() - 1.0, normal(4.0).abs() + 1.0),
        "tiny": (normal(1e-4), normal(1e-4)),
        "huge": (normal(1e4), normal(1e4)),
        "huge and tiny": (normal(1e-4), normal(1e4)),
        "certain and opposed": (zero.clone(), zero.clone()),
    }
    student, teacher = cases["certain and opposed"]
    student[:, 0], teacher[:, -1] = 1e4, 1e4
    return cases


def check_temperature(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Run every check of `TEMPERATURE_CHECKS` on a strategy.

    Args:
        factory: Makes a fresh strategy, e.g. the class itself.
        num_labels: Classes of the logits the checks draw.

    Raises:
        AssertionError: A promise of `TemperatureStrategy` or `Temperatures` is broken; the message says which.
    """
    for check in TEMPERATURE_CHECKS:
        check(factory, num_labels=num_labels)


def check_loss(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """Run every check of `LOSS_CHECKS` on a loss.

    Args:
        factory: Makes a fresh loss, e.g. the class itself or a `functools.partial` of it. Of a loss that uses a
            temperature, it must accept `temperature=<strategy>`.
        num_labels: Classes of the logits the checks draw.

    Raises:
        AssertionError: A promise of `DistillationLoss` or `LossOutput` is broken; the message says which.
    """
    for check in LOSS_CHECKS:
        check(factory, num_labels=num_labels)


def check_refuses(make: Callable[[Any], Any], argument: str, values: Sequence[Any] = BAD_TEMPERATURES) -> None:
    """`make(value)` raises a `TypeError` or `ValueError` that names `argument` and the value, for each of `values`.

    Raises:
        AssertionError: A value was accepted, or the message does not help.
    """
    for value in values:
        try:
            made = make(value)
        except (TypeError, ValueError) as error:
            message = str(error)
            if argument not in message or repr(value) not in message:
                raise AssertionError(f"`{argument}` and {value!r} must be named in the error: {message}") from error
        else:
            raise AssertionError(f"`{type(made).__name__}` accepts {argument}={value!r}")


def _require(holds: Any, subject: Any, promise: str) -> None:
    if not holds:
        raise AssertionError(f"`{type(subject).__name__}` must {promise}")


def _close(actual: Tensor, expected: Tensor, subject: Any, promise: str, tolerance: float = 1e-9) -> None:
    """Equal up to `tolerance`, relative and absolute: float64 sums in another order, through a softmax or two."""
    try:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)
    except AssertionError as error:
        raise AssertionError(f"`{type(subject).__name__}` must {promise}: {error}") from None


def _rows(temperatures: Temperatures, batch: int, subject: Any) -> Tensor:
    """The four fields as `(batch, 4)`, which also checks that they broadcast to the documented shapes."""
    columns = []
    for name, value in zip(_FIELDS, temperatures, strict=False):
        target = (batch, 1) if name in ("student", "teacher") else (batch,)
        try:
            columns.append(value.expand(target).reshape(batch))
        except (AttributeError, RuntimeError):
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            _require(False, subject, f"return `{name}` as a tensor broadcastable to {target}, got {got}")
    return torch.stack(columns, dim=-1)


def _same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(map(torch.equal, tensors, others))


def _labels(num_labels: int) -> Tensor:
    return torch.arange(_BATCH) % num_labels


def _random(num_labels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return logit_cases(num_labels, dtype)["random"]


def _nudged(module: nn.Module) -> nn.Module:
    """Parameters moved off their initial values, so that a copy that starts afresh is found out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.125)
    return module


def _copies(factory: Callable[[], nn.Module], module: nn.Module) -> dict[str, nn.Module]:
    loaded = factory().double()
    loaded.load_state_dict(module.state_dict())
    return {
        "copy.deepcopy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
        "a state_dict": loaded,
    }


def check_temperature_traits(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """What the class declares is what it does."""
    strategy = factory()
    _require(isinstance(strategy, TemperatureStrategy), strategy, "be a `TemperatureStrategy`")
    _require(isinstance(getattr(strategy, "name", None), str), strategy, "declare a `name`")
    trained = any(p.requires_grad for p in strategy.parameters())
    _require(trained == strategy.learnable, strategy, "be `learnable` exactly if it has trainable parameters")
    for student, teacher in logit_cases(num_labels, torch.float32).values():
        values = _rows(strategy(student, teacher), _BATCH, strategy)[:, :2]
        if not strategy.per_sample:
            _require((values == values[:1]).all(), strategy, "be `per_sample` if rows differ in temperature")
        if strategy.bounds is not None:
            low, high = strategy.bounds
            _require(((values >= low) & (values <= high)).all(), strategy, f"stay within its `bounds` {low}, {high}")


def check_temperature_values(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Temperatures are positive and finite, compensations and weights finite and >= 0, on any logits, at any time."""
    strategy = factory()
    for name, (student, teacher) in logit_cases(num_labels, torch.float32).items():
        for progress in _MOMENTS:
            rows = _rows(strategy(student, teacher, progress=progress), _BATCH, strategy)
            where = f"on {name} logits at {progress}, got {rows.tolist()}"
            _require(rows.isfinite().all(), strategy, f"return finite values {where}")
            _require((rows[:, :2] > 0).all(), strategy, f"return positive temperatures {where}")
            _require((rows[:, 2:] >= 0).all(), strategy, f"return compensation and weight >= 0 {where}")


def check_temperature_shapes(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Shapes broadcast as documented for any batch size; `parts` are detached, one value or one per row."""
    strategy = factory()
    student, teacher = _random(num_labels)
    for size in (1, 2, _BATCH):
        temperatures = strategy(student[:size], teacher[:size])
        _rows(temperatures, size, strategy)
        _check_parts(temperatures.parts, size, strategy)


def check_temperature_precision(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Half-precision logits and autocast give float32 temperatures, float64 stays float64."""
    strategy = _nudged(factory())
    for dtype in (torch.bfloat16, torch.float16):
        student, teacher = _random(num_labels, dtype)
        expected = strategy(student.float(), teacher.float())
        for name, value, wanted in zip(_FIELDS, strategy(student, teacher), expected, strict=False):
            _require(value.dtype == torch.float32, strategy, f"return `{name}` in float32 for {dtype}")
            _close(value, wanted, strategy, f"raise {dtype} before any arithmetic", 1e-6)
    student, teacher = _random(num_labels, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = _rows(strategy(student, teacher), _BATCH, strategy)
    _close(actual, _rows(strategy(student, teacher), _BATCH, strategy), strategy, "not lose digits to autocast", 1e-6)
    double = _rows(factory().double()(*_random(num_labels)), _BATCH, strategy).dtype == torch.float64
    _require(double, strategy, "keep float64: raise logits with `hf_kd.functional.upcast`, not `.float()`")


def check_temperature_rows(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Reordering rows reorders temperatures; if `row_wise`, a row alone gets what it gets among others."""
    strategy = _nudged(factory().double())
    student, teacher = _random(num_labels)
    labels = _labels(num_labels)
    rows = _rows(strategy(student, teacher, labels), _BATCH, strategy)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = _rows(strategy(student[order], teacher[order], labels[order]), _BATCH, strategy)
    _close(shuffled, rows[order], strategy, "not depend on the order of rows")
    if strategy.row_wise:
        singles = zip(student.split(1), teacher.split(1), labels.split(1), strict=True)
        alone = [_rows(strategy(*single), 1, strategy) for single in singles]
        _close(torch.cat(alone), rows, strategy, "give a row alone the same temperatures, or set `row_wise = False`")


def check_temperature_purity(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """A call changes neither its inputs nor the next call: there is no hidden clock."""
    strategy = factory().double()
    student, teacher = _random(num_labels)
    before = student.clone(), teacher.clone()
    first = _rows(strategy(student, teacher), _BATCH, strategy)
    strategy(student, teacher, progress=_MOMENTS[-1])
    again = _rows(strategy(student, teacher), _BATCH, strategy)
    _require(torch.equal(first, again), strategy, "depend on `progress` alone, not on earlier calls")
    _require(_same((student, teacher), before), strategy, "not write to its inputs")


def check_temperature_copies(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """`copy.deepcopy`, `pickle` and `state_dict` carry everything."""
    strategy = _nudged(factory().double())
    student, teacher = _random(num_labels)
    expected = _rows(strategy(student, teacher, progress=_MOMENTS[1]), _BATCH, strategy)
    for how, other in _copies(factory, strategy).items():
        actual = _rows(other(student, teacher, progress=_MOMENTS[1]), _BATCH, other)
        _require(torch.equal(actual, expected), strategy, f"survive {how} with the same temperatures")


def check_temperature_labels(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Works without labels, with labels, and on unlabelled rows."""
    strategy, given = factory(), _labels(num_labels)
    student, teacher = _random(num_labels, torch.float32)
    for labels in (None, given, given.where(given % 2 == 0, -100), torch.full_like(given, -100)):
        rows = _rows(strategy(student, teacher, labels), _BATCH, strategy)
        _require(rows.isfinite().all(), strategy, f"work with labels={labels}")


def check_temperature_gradients(factory: Callable[[], TemperatureStrategy], *, num_labels: int = 5) -> None:
    """Under `KDLoss`, the student's gradient is finite on any logits and a learnable temperature gets one."""
    for name, (student, teacher) in logit_cases(num_labels, torch.float32).items():
        strategy = factory()
        student = student.clone().requires_grad_()
        loss = KDLoss(strategy)(student, teacher, progress=_MOMENTS[-1]).loss.mean()
        loss.backward()
        _require(loss.isfinite(), strategy, f"keep the loss finite on {name} logits")
        gradients = [student.grad, *(p.grad for p in strategy.parameters() if p.grad is not None)]
        _require(all(g.isfinite().all() for g in gradients), strategy, f"keep gradients finite on {name} logits")
        _require(not teacher.requires_grad, strategy, "leave the teacher's logits without gradient")
        if name == "random" and strategy.learnable:
            moved = any(bool(p.grad.any()) for p in strategy.parameters() if p.grad is not None)
            _require(moved, strategy, "pass gradient to its parameters once training is under way")


TEMPERATURE_CHECKS = (
    check_temperature_traits,
    check_temperature_values,
    check_temperature_purity,
    check_temperature_shapes,
    check_temperature_precision,
    check_temperature_rows,
    check_temperature_copies,
    check_temperature_labels,
    check_temperature_gradients,
)
"""Every check of `check_temperature`."""


def _check_parts(parts: dict[str, Tensor], batch: int, subject: Any) -> None:
    for key, value in parts.items():
        _require(not value.requires_grad, subject, f"detach the part {key!r}")
        _require(value.shape in ((), (batch,)), subject, f"return the part {key!r} as a scalar or one value per row")


def _declares(loss: DistillationLoss, trait: str) -> bool:
    """Whether the loss and, if it has one, its strategy declare `trait`."""
    return getattr(loss, trait) and (not loss.uses_temperature or getattr(loss.temperature, trait))


def _gradient(loss: DistillationLoss, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and student gradient; the loss is summed, so that rows do not mix."""
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher, labels).loss
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def check_loss_traits(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """What the class declares is what it returns."""
    loss = factory()
    _require(isinstance(loss, DistillationLoss), loss, "be a `DistillationLoss`")
    _require(isinstance(getattr(loss, "name", None), str), loss, "declare a `name`")
    output = loss(*_random(num_labels), _labels(num_labels))
    if loss.uses_temperature:
        held = isinstance(getattr(loss, "temperature", None), TemperatureStrategy)
        _require(held, loss, "hold a strategy in `self.temperature`, or not set `uses_temperature`")
        _require(output.temperatures is not None, loss, "return the temperatures it used")
    _check_parts(output.parts, _BATCH, loss)


def check_loss_shapes(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """Unreduced: one value per row if `row_wise`, else a scalar; rows do not see each other, or order, or copies."""
    loss = factory().double()
    student, teacher = _random(num_labels)
    labels = _labels(num_labels)
    for size in (1, _BATCH):
        shape = tuple(loss(student[:size], teacher[:size], labels[:size]).loss.shape)
        expected = (size,) if loss.row_wise else ()
        _require(shape == expected, loss, f"return a loss of shape {expected}, got {shape}")
    if _declares(loss, "row_wise"):
        value = loss(student, teacher, labels).loss
        alone = [loss(*row).loss for row in zip(student.split(1), teacher.split(1), labels.split(1), strict=True)]
        _close(torch.cat(alone), value, loss, "give a row alone the same loss, or set `row_wise = False`")
        twice = loss(student.repeat(2, 1), teacher.repeat(2, 1), labels.repeat(2)).loss
        _close(twice.mean(), value.mean(), loss, "keep its mean when the batch is duplicated")


def check_loss_divergence(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """If `is_divergence`: >= 0 everywhere, and no loss and no gradient for the student that already agrees."""
    loss = factory().double()
    if not loss.is_divergence:
        return
    labels = _labels(num_labels)
    for name, (student, teacher) in logit_cases(num_labels).items():
        value = loss(student, teacher, labels).loss
        _require((value >= -1e-9).all(), loss, f"be >= 0 on {name} logits, got {value.tolist()}")
    _, teacher = _random(num_labels)
    temperatures = loss(teacher, teacher, labels).temperatures
    agreeing = teacher if temperatures is None else teacher * temperatures.student / temperatures.teacher
    value, gradient = _gradient(loss, agreeing.detach(), teacher, labels)
    _close(value, torch.zeros_like(value), loss, "be 0 where both tempered distributions agree")
    _close(gradient, torch.zeros_like(gradient), loss, "have no gradient where both tempered distributions agree")


def check_loss_shift_invariance(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """If loss and strategy declare it: a constant on a row's logits changes nothing, so the gradient sums to 0."""
    loss = factory().double()
    if not _declares(loss, "shift_invariant"):
        return
    student, teacher = _random(num_labels)
    labels = _labels(num_labels)
    value, gradient = _gradient(loss, student, teacher, labels)
    shift = torch.linspace(-9.0, 7.0, _BATCH, dtype=student.dtype).unsqueeze(-1)
    for shifted in (loss(student + shift, teacher, labels), loss(student, teacher - shift, labels)):
        _close(shifted.loss, value, loss, "not change when a constant is added to a row, or declare it")
    sums = gradient.sum(-1)
    _close(sums, torch.zeros_like(sums), loss, "have a gradient that sums to 0 over classes")


def check_loss_precision(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """At least float32, whatever comes in; value and gradient finite for logits up to 1e4 in every dtype."""
    labels = _labels(num_labels)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name, (student, teacher) in logit_cases(num_labels, dtype).items():
            loss = factory()
            value, gradient = _gradient(loss, student, teacher, labels)
            _require(value.dtype == torch.float32, loss, f"return float32 for {dtype} logits, got {value.dtype}")
            finite = value.isfinite().all() and gradient.isfinite().all()
            _require(finite, loss, f"be finite on {name} logits in {dtype}, value and gradient")
            expected = loss(student.float(), teacher.float(), labels).loss
            _close(value, expected.detach(), loss, f"raise {dtype} before any arithmetic", 1e-5)
    loss = factory().double()
    _require(loss(*_random(num_labels), labels).loss.dtype == torch.float64, loss, "keep float64")


def check_loss_labels(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """Needs no labels unless it says so; one that does gives 0 on unlabelled rows."""
    loss = factory()
    student, teacher = _random(num_labels, torch.float32)
    value = loss(student, teacher, torch.full((_BATCH,), -100)).loss
    _require(value.isfinite().all(), loss, "be finite on unlabelled rows")
    if loss.needs_labels:
        _require(not value.any(), loss, "be 0 on unlabelled rows, as it needs labels")
    else:
        _require(loss(student, teacher).loss.isfinite().all(), loss, "work without labels, or set `needs_labels`")


def check_loss_copies(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """`copy.deepcopy`, `pickle` and `state_dict` carry everything; a call leaves its inputs alone."""
    loss = _nudged(factory().double())
    student, teacher = _random(num_labels)
    before = student.clone(), teacher.clone()
    labels = _labels(num_labels)
    expected = loss(student, teacher, labels, progress=_MOMENTS[1]).loss
    for how, other in _copies(factory, loss).items():
        actual = other(student, teacher, labels, progress=_MOMENTS[1]).loss
        _require(torch.equal(actual, expected), loss, f"survive {how} with the same value")
    _require(_same((student, teacher), before), loss, "not write to its inputs")


def check_loss_strategies(factory: Callable[..., DistillationLoss], *, num_labels: int = 5) -> None:
    """Every registered strategy works under the loss, or is refused in words at construction."""
    if not factory().uses_temperature:
        return
    labels = _labels(num_labels)
    for name in TEMPERATURES:
        strategy = as_strategy(name, num_labels=num_labels)
        try:
            loss = factory(temperature=strategy)
        except ValueError as error:
            _require(len(str(error).split()) > 5, factory, f"say why it refuses the strategy {name!r}, not {error}")
            continue
        student, teacher = _random(num_labels, torch.float32)
        value, gradient = _gradient(loss, student, teacher, labels)
        _require(value.isfinite().all() and gradient.isfinite().all(), loss, f"be finite over the strategy {name!r}")
        _require(gradient.any(), loss, f"teach something over the strategy {name!r}")


LOSS_CHECKS = (
    check_loss_traits,
    check_loss_shapes,
    check_loss_divergence,
    check_loss_shift_invariance,
    check_loss_precision,
    check_loss_labels,
    check_loss_copies,
    check_loss_strategies,
)
"""Every check of `check_loss`."""

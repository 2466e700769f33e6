"""What the checks share: logits that have broken something before, and how a broken promise is said."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..temperatures import Progress, Temperatures

BAD_TEMPERATURES = (0, -1, float("nan"), float("inf"), True, "4")
"""What no temperature-like argument may accept."""

BATCH = 6
FIELDS = ("student", "teacher", "compensation", "weight")
MOMENTS = (Progress(), Progress(epoch=3.5, fraction=0.4), Progress(epoch=1000.0, fraction=1.0))


def logit_cases(num_labels: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, tuple[Tensor, Tensor]]:
    """Student and teacher logits that have broken temperature rules before, by name."""
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> Tensor:
        values = scale * torch.randn(BATCH, num_labels, generator=generator, dtype=torch.float64)
        return values.clamp(-1e4, 1e4).to(dtype)

    zero = torch.zeros(BATCH, num_labels, dtype=dtype)
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


def require(holds: Any, subject: Any, promise: str) -> None:
    """Say who breaks which promise, unless it holds."""
    if not holds:
        raise AssertionError(f"`{type(subject).__name__}` must {promise}")


def close(actual: Tensor, expected: Tensor, subject: Any, promise: str, tolerance: float = 1e-9) -> None:
    """Equal up to `tolerance`, relative and absolute: float64 sums in another order, through a softmax or two."""
    try:
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)
    except AssertionError as error:
        raise AssertionError(f"`{type(subject).__name__}` must {promise}: {error}") from None


def rows_of(temperatures: Temperatures, batch: int, subject: Any) -> Tensor:
    """The four fields as `(batch, 4)`, which also checks that they broadcast to the documented shapes."""
    columns = []
    for name, value in zip(FIELDS, temperatures, strict=False):
        target = (batch, 1) if name in ("student", "teacher") else (batch,)
        try:
            columns.append(value.expand(target).reshape(batch))
        except (AttributeError, RuntimeError):
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            require(False, subject, f"return `{name}` as a tensor broadcastable to {target}, got {got}")
    return torch.stack(columns, dim=-1)


def same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether all pairs are equal, bit for bit."""
    return all(map(torch.equal, tensors, others))


def some_labels(num_labels: int) -> Tensor:
    """One label per row of `logit_cases`, each class in turn."""
    return torch.arange(BATCH) % num_labels


def random_logits(num_labels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Student and teacher logits without anything odd about them."""
    return logit_cases(num_labels, dtype)["random"]


def nudged(module: nn.Module) -> nn.Module:
    """Parameters moved off their initial values, so that a copy that starts afresh is found out."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.125)
    return module


def copies_of(factory: Callable[[], nn.Module], module: nn.Module) -> dict[str, nn.Module]:
    """`module` after each way of copying it, by name."""
    loaded = factory().double()
    loaded.load_state_dict(module.state_dict())
    return {
        "copy.deepcopy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
        "a state_dict": loaded,
    }


def check_parts(parts: dict[str, Tensor], batch: int, subject: Any) -> None:
    """What is only to be logged carries no gradient, and is a scalar or one value per row."""
    for key, value in parts.items():
        require(not value.requires_grad, subject, f"detach the part {key!r}")
        require(value.shape in ((), (batch,)), subject, f"return the part {key!r} as a scalar or one value per row")

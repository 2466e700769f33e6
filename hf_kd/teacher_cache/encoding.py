"""How logits are written down: all of them in some precision, or the largest with the mass of the rest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ERROR_TEMPERATURES = (1.0, 4.0)
"""At which the error of leaving classes out is measured."""

LOGITS = "logits"
VALUES, CLASSES, REST = "values", "classes", "rest"


@dataclass(frozen=True)
class Dense:
    """Every logit, rounded to `dtype`: exact where that is the teacher's precision."""

    dtype: str
    num_classes: int

    @property
    def bytes_per_row(self) -> int:
        """What a row takes on disk."""
        return self.num_classes * DTYPES[self.dtype].itemsize

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """`(rows, classes)` as they are written.

        Raises:
            ValueError: A logit is too large for `dtype`.
        """
        return {LOGITS: rounded(logits, self.dtype)}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The logits in float32, `(rows, classes)`."""
        return parts[LOGITS].float()


@dataclass(frozen=True)
class TopK:
    r"""The \(k\) largest logits, and \(r = \log \sum_{j \notin \mathrm{top}} e^{z_j}\) of the others.

    Read back, each of the \(K-k\) others has \(r - \log(K-k)\). Probabilities of the kept classes are then exact at
    temperature 1 up to the rounding to `dtype`; at other temperatures, and among the others, they are not:
    `left_out` measures by how much.
    """

    dtype: str
    num_classes: int
    k: int

    @property
    def bytes_per_row(self) -> int:
        """What a row takes on disk."""
        return self.k * (DTYPES[self.dtype].itemsize + 4) + 4

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """`(rows, classes)` as they are written.

        Raises:
            ValueError: A logit is too large for `dtype`.
        """
        values, classes = logits.topk(self.k, dim=-1)
        others = logits.scatter(-1, classes, -math.inf)
        return {
            VALUES: rounded(values, self.dtype),
            CLASSES: classes.to(torch.int32),
            REST: others.logsumexp(-1).float(),
        }

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The logits in float32, `(rows, classes)`."""
        each = parts[REST].float() - math.log(self.num_classes - self.k)
        filled = each[:, None].expand(-1, self.num_classes)
        return filled.scatter(-1, parts[CLASSES].long(), parts[VALUES].float())


Encoding = Dense | TopK


def encoding_of(dtype: str, num_classes: int, top_k: int | None) -> Encoding:
    """The one that the settings name; with as many classes kept as there are, all are."""
    return Dense(dtype, num_classes) if top_k is None or top_k >= num_classes else TopK(dtype, num_classes, top_k)


def rounding_error(logits: Tensor, parts: Mapping[str, Tensor], encoding: Encoding) -> dict[str, float]:
    r"""What is lost on the way, summed or taken at its largest over the rows.

    `rounding`: the largest difference of a kept logit. For `TopK` also `kl_t1`, `kl_t4` (sums over rows, in nats) and
    `max_kl_t1`, `max_kl_t4`: \(\mathrm{KL}(\mathrm{softmax}(z/T) \| \mathrm{softmax}(\hat z/T))\).
    """
    if not len(logits):
        return {}
    decoded = encoding.decode(parts)
    if isinstance(encoding, Dense):
        return {"rounding": float((decoded - logits).abs().max())}
    kept = parts[CLASSES].long()
    found: dict[str, Any] = {"rounding": float((decoded.gather(-1, kept) - logits.gather(-1, kept)).abs().max())}
    for temperature in ERROR_TEMPERATURES:
        true, told = ((z.double() / temperature).log_softmax(-1) for z in (logits, decoded))
        divergences = (true.exp() * (true - told)).sum(-1)
        found[f"kl_t{temperature:g}"] = float(divergences.sum())
        found[f"max_kl_t{temperature:g}"] = float(divergences.max())
    return found


def rounded(values: Tensor, dtype: str, kind: str = "logit") -> Tensor:
    """Numbers of the teacher in `dtype`.

    Raises:
        ValueError: One is too large for it.
    """
    rounded_ = values.to(DTYPES[dtype])
    if not bool(torch.isfinite(rounded_).all()):
        raise ValueError(
            f"`TeacherCache(dtype={dtype!r})`: the teacher gave a {kind} of {float(values.abs().max()):.4g}, which is "
            f"infinite in {dtype}. Use dtype='float32' or 'bfloat16'."
        )
    return rounded_

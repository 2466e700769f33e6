"""Words and numbers as they are shown, and what hostile strings lose on the way in."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
SHARES = ("accuracy", "f1", "f1_macro", "f1_micro", "map", "exact_match", "agreement", "ece", "teacher_accuracy")
LOWER_IS_BETTER = ("loss", "mse", "nll", "brier", "ece")
MANY_ROWS = 1000
"""From so many test rows on, a second decimal of a percentage is more than the weight of one row."""

_KEPT_CONTROLS = "\n\t"


def clean(value: Any) -> Any:
    """`value` as read from JSON with strings that any file and any font can take, all the way down.

    Control characters and halves of surrogate pairs, which no UTF-8 file can hold, become U+FFFD; characters that turn
    the direction of what follows them are dropped, because they reach past the end of their own string.
    """
    if isinstance(value, str):
        return "".join(_clean_character(c) for c in value)
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(entry) for entry in value]
    return value


def _clean_character(c: str) -> str:
    if c in _KEPT_CONTROLS:
        return c
    if c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c":
        return ""
    return "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c


def shortened(text: str, length: int) -> str:
    """`text` with its middle left out where it is longer than `length` characters."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def number(mapping: Any, *path: str) -> float | None:
    """The finite number at `path` in nested mappings; None for anything else."""
    for key in path:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    if isinstance(mapping, bool) or not isinstance(mapping, (int, float)) or not math.isfinite(mapping):
        return None
    return mapping


def section(mapping: Any, key: str) -> dict[str, Any]:
    """The mapping under `key`, empty where there is none."""
    found = mapping.get(key) if isinstance(mapping, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def signed(value: float, decimals: int) -> str:
    """With its sign; zero, and what rounds to it, has none."""
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def plain(value: float, decimals: int) -> str:
    """A number with a real minus sign."""
    text = f"{value:.{decimals}f}"
    return text.replace("-", MINUS) if float(text) != 0 else text.lstrip("-")


def count(value: float | None) -> str:
    """A whole number with thousands apart."""
    return NOTHING if value is None else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    """To three decimals; what is smaller is said to be so."""
    if value is None:
        return NOTHING
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0") if value < 1 else "1"


def duration(seconds: float | None) -> str:
    """Seconds in words that fit their size."""
    if seconds is None:
        return NOTHING
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 5999.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def plural(n: int, word: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Scale:
    """How a metric is shown: a share in percent and its differences in percentage points, anything else as it is.

    Args:
        metric: Its key, as in `results.json`.
        decimals: Of a percentage, or of the number.
        is_share: Whether it lies in [0, 1] and is shown in percent.
    """

    metric: str
    decimals: int
    is_share: bool

    @classmethod
    def of(cls, metric: str, rows: float | None = None) -> "Scale":
        """The scale of `metric` on so many test rows."""
        is_share = metric in SHARES or (metric.startswith("top_") and metric.endswith("_accuracy"))
        if not is_share:
            return cls(metric, 4, False)
        return cls(metric, 2 if rows is None or rows >= MANY_ROWS else 1, True)

    @property
    def factor(self) -> float:
        """What a value is multiplied with to be shown."""
        return 100.0 if self.is_share else 1.0

    @property
    def unit(self) -> str:
        """Behind a value."""
        return "%" if self.is_share else ""

    @property
    def difference_unit(self) -> str:
        """Behind a difference."""
        return "points" if self.is_share else ""

    @property
    def word(self) -> str:
        """The metric in words, within a sentence."""
        known = {"ece": "ECE", "mse": "MSE", "map": "mAP", "nll": "NLL", "f1": "F1"}
        return known.get(self.metric, self.metric.replace("_", " ").replace("f1 ", "F1 "))

    @property
    def title(self) -> str:
        """The same at the start of a line."""
        return self.word if self.word == "mAP" else self.word[:1].upper() + self.word[1:]

    def value(self, value: float | None) -> str:
        """A value without its unit."""
        return NOTHING if value is None else plain(value * self.factor, self.decimals)

    def spread(self, mean: float | None, sd: float | None) -> str:
        """`mean ± sd`; the mean alone where one run has no spread."""
        return self.value(mean) if sd is None or mean is None else f"{self.value(mean)} ± {self.value(sd)}"

    def difference(self, value: float | None) -> str:
        """A difference with its sign."""
        return NOTHING if value is None else signed(value * self.factor, self.decimals)

    def interval(self, ends: Any) -> str:
        """`[low, high]`, with signs; empty where there is none."""
        pair = finite_pair(ends)
        return "" if pair is None else f"[{self.difference(pair[0])}, {self.difference(pair[1])}]"


def finite_pair(ends: Any) -> tuple[float, float] | None:
    """Two finite numbers, or None."""
    if not isinstance(ends, (list, tuple)) or len(ends) != 2:
        return None
    values = [number({"": end}, "") for end in ends]
    return None if None in values else (values[0], values[1])

"""How large a teacher cache would be."""

from dataclasses import dataclass

MANY_CLASSES, TOP_K = 1000, 100
"""Beyond so many classes, keeping the strongest ones alone is worth a thought; so many of them are sized."""

_FLOAT32, _FLOAT16, _INDEX, _REST, _KEY = 4, 2, 4, 4, 24


@dataclass(frozen=True)
class CacheEstimate:
    """What one answer per training row takes.

    Args:
        rows: Training rows; None of a stream.
        classes: Of the teacher's answers.
        why_not: Why stored answers would not be the live ones; None where they would.
        is_varied: Rows are changed at random, so that each of so many views takes as much.
    """

    rows: int | None
    classes: int
    why_not: str | None = None
    is_varied: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by format, keys included: a number per class, or, of many classes, the strongest with their places."""
        if self.rows is None:
            return {}
        found = {"float32": _FLOAT32, "float16": _FLOAT16}
        found = {name: self.rows * (self.classes * size + _KEY) for name, size in found.items()}
        if self.classes > MANY_CLASSES:
            found[f"float16, top {TOP_K}"] = self.rows * (TOP_K * (_FLOAT16 + _INDEX) + _REST + _KEY)
        return found

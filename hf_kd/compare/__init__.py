"""Methods by seeds by pairs under one budget, with the statistics that say which differences are real."""

from .compare import Comparison, compare
from .section import CompareSection, PairSection, load_comparison

__all__ = ["CompareSection", "Comparison", "PairSection", "compare", "load_comparison"]

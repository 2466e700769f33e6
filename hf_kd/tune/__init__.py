"""Search the configuration of a run: which learning rate, temperature, method, size of the student."""

from .results import TrialRecord, TuneResult
from .search import tune
from .section import SearchSection, load_search

__all__ = ["SearchSection", "TrialRecord", "TuneResult", "load_search", "tune"]

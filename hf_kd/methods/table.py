"""The table of methods, in the order they are printed."""

from .base import Method
from .decoupled import DECOUPLED_METHODS
from .temperatures import TEMPERATURE_METHODS

METHODS: dict[str, Method] = {**TEMPERATURE_METHODS, **DECOUPLED_METHODS}

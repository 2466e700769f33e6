"""Random draws that depend on a place alone, and leave no trace in the generators."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = tuple[Any, Any, torch.Tensor]


def random_state() -> State:
    """Of the generators of Python, numpy and torch, in this process."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_random_state(state: State) -> None:
    """Go back to what `random_state` gave."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def seed_all(place: tuple) -> None:
    """Seed the three generators by a hash of `place`."""
    number = seed_torch(place)
    random.seed(number)
    np.random.seed(number % 2**32)


def seed_torch(place: tuple) -> int:
    """Seed the one generator of torch on the processor, as `seed_all` does; for those who draw from no other."""
    number = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
    torch.default_generator.manual_seed(number)  # of the processor alone: no data loader draws on a device
    return number


@contextmanager
def draws_kept() -> Iterator[None]:
    """Whatever is drawn inside, the draws after it are those that they would have been."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


@contextmanager
def seeded(place: tuple) -> Iterator[None]:
    """Draws inside depend on `place` alone, and those after it on nothing inside."""
    with draws_kept():
        seed_all(place)
        yield

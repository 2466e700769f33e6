"""Random draws on the data's side (augmentation, collators), the same whenever a batch is drawn, and by whom.

A run resumed in the middle of an epoch does not draw the batches that it skips, and the data loader draws one batch
ahead, before the Trainer has restored the generators. Draws from the generators as they stand then would be others
than the uninterrupted run's; so would those of workers, which start over.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

State = tuple[Any, Any, torch.Tensor]


def _state() -> State:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_state(state: State) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


def _seed_all(place: tuple) -> None:
    number = int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=8).digest(), "big")
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)  # of the processor alone: no data loader draws on a device


def generator_states() -> tuple[State, list[torch.Tensor]]:
    """All generators that a training draws from, devices' too."""
    return _state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_generator_states(states: tuple[State, list[torch.Tensor]]) -> None:
    """Go back to `generator_states`."""
    _set_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


@contextmanager
def seeded(place: tuple) -> Iterator[None]:
    """Draws inside depend on `place` alone, and those after it on nothing inside."""
    before = _state()
    _seed_all(place)
    try:
        yield
    finally:
        _set_state(before)


class Epoch:
    """The number of the current epoch.

    Args:
        is_shared: Keep it where workers that outlive an epoch see it change.
    """

    def __init__(self, is_shared: bool = False):
        self.value = torch.zeros((), dtype=torch.int64)
        if is_shared:
            self.value.share_memory_()
        self._view = self.value.numpy()  # the same memory; reading a tensor looks like waiting for a device

    def __getstate__(self) -> torch.Tensor:
        """The memory alone: a view would be pickled as a copy."""
        return self.value

    def __setstate__(self, value: torch.Tensor) -> None:
        """As in the process that sent it."""
        self.value, self._view = value, value.numpy()

    def set(self, number: int) -> None:
        """Note that this epoch begins or goes on."""
        self._view[()] = number

    def get(self) -> int:
        """The number, from 0."""
        return int(self._view)


class _Batch(list):
    """Rows of a batch that know where in the run they belong."""

    place: tuple = ()


class SeededRows(Dataset):
    """The same rows, whose random draws depend on the seed, the epoch and which rows a batch has.

    A row that comes twice in an epoch, in another batch, is drawn anew. Generators that a dataset keeps for itself are
    not reached.

    Args:
        rows: Any dataset that has an index.
        seed: Of the draws.
        epoch: Which one it is.
    """

    def __init__(self, rows: Any, seed: int, epoch: Epoch):
        self.rows, self.seed, self.epoch = rows, seed, epoch

    def __getattr__(self, name: str) -> Any:
        """Everything else is the dataset's own, such as `set_epoch`."""
        if name == "rows" or name.startswith("__"):  # while it is unpickled there are no rows yet
            raise AttributeError(name)
        return getattr(self.rows, name)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """One row, where batches are made by the dataset itself."""
        with seeded((self.seed, self.epoch.get(), index)):
            return self.rows[index]

    def __getitems__(self, indices: list) -> list:
        """The rows of one batch."""
        place = (self.seed, self.epoch.get(), list(indices))
        with seeded(place):
            many = getattr(self.rows, "__getitems__", None)
            batch = _Batch(many(indices) if callable(many) else [self.rows[index] for index in indices])
        batch.place = place
        return batch


class SeededCollator:
    """The same collator, with draws that depend on the place of the batch."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, rows: Any) -> Any:
        """The batch."""
        if not isinstance(rows, _Batch):
            return self.collator(rows)
        with seeded((*rows.place, "collated")):  # not the same draws again as for the rows
            return self.collator(rows)


class EpochDraws:
    """A random state of its own for everything that happens while an epoch's batches are drawn.

    A resumed run reads a stream from the beginning of the epoch, skipped rows included: what matters is where the
    epoch starts, and that nothing of the training comes between. So it is with a sampler that draws the order.
    """

    def __init__(self):
        self.place: tuple | None = None
        self.state: State | None = None

    @contextmanager
    def __call__(self, place: tuple) -> Iterator[None]:
        """Continue the state of the epoch that `place` names, or begin it."""
        before = _state()
        if self.state is None or place != self.place:
            _seed_all((*place, "epoch"))
            self.place = place
        else:
            _set_state(self.state)
        try:
            yield
        finally:
            self.state = _state()
            _set_state(before)


def is_stream(dataset: Any) -> bool:
    """Whether rows come one by one, without an index."""
    return isinstance(dataset, IterableDataset)

"""Random draws on the data's side (augmentation, collators), the same whenever a batch is drawn, and by whom.

A run resumed in the middle of an epoch does not draw the batches that it skips, and the data loader draws one batch
ahead, before the Trainer has restored the generators. Draws from the generators as they stand then would be others
than the uninterrupted run's; so would those of workers, which start over.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import datasets
import torch
from torch.utils.data import Dataset, IterableDataset

from ..inputs import WholeBatch, draws_nothing
from ..seeding import State, random_state, seed_all, seeded, set_random_state


def generator_states() -> tuple[State, list[torch.Tensor]]:
    """All generators that a training draws from, devices' too."""
    return random_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_generator_states(states: tuple[State, list[torch.Tensor]]) -> None:
    """Go back to `generator_states`."""
    set_random_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


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
    """Rows of a batch that know where in the run they belong, and what was answered to them."""

    place: tuple = ()
    answers: dict[str, torch.Tensor] | None = None
    whole: WholeBatch | None = None

    def fill(self, rows: Any) -> None:
        """Take the rows; those that are one batch already stay that."""
        if isinstance(rows, WholeBatch):
            self.whole = rows
        else:
            self[:] = rows


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
        # a table without a transform of the user's draws nothing, and seeding three generators takes its time
        self.is_drawn = not isinstance(rows, datasets.Dataset) or rows.format["type"] == "custom"
        self.is_drawn = self.is_drawn and not getattr(rows, "draws_nothing", False)

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

    def batch_of(self, indices: list) -> "_Batch":
        """No rows yet, but where in the run they belong."""
        batch = _Batch()
        batch.place = (self.seed, self.epoch.get(), list(indices))
        return batch

    def __getitems__(self, indices: list) -> list:
        """The rows of one batch."""
        batch = self.batch_of(indices)
        with seeded(batch.place) if self.is_drawn else nullcontext():
            many = getattr(self.rows, "__getitems__", None)
            batch.fill(many(indices) if callable(many) else [self.rows[index] for index in indices])
        return batch


class SeededCollator:
    """The same collator, with draws that depend on the place of the batch."""

    def __init__(self, collator: Callable):
        self.collator = collator
        self.is_drawn = not draws_nothing(collator)

    def __call__(self, rows: Any) -> Any:
        """The batch."""
        if not isinstance(rows, _Batch):
            return self.collator(rows)
        with (
            seeded((*rows.place, "collated")) if self.is_drawn else nullcontext()
        ):  # not the same draws again as for the rows
            batch = self.collator(rows if rows.whole is None else rows.whole)
        return batch if rows.answers is None else {**batch, **rows.answers}


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
        before = random_state()
        if self.state is None or place != self.place:
            seed_all((*place, "epoch"))
            self.place = place
        else:
            set_random_state(self.state)
        try:
            yield
        finally:
            self.state = random_state()
            set_random_state(before)


@contextmanager
def kept_on_device(dataset: Any, args: Any) -> Iterator[None]:
    """Rows that are to be kept on the device go there; what comes from there is not pinned, which cannot be.

    Args:
        dataset: Any.
        args: The training arguments.

    Raises:
        ValueError: Other processes were to read the rows.
    """
    if not getattr(dataset, "is_kept_on_device", False):
        yield
        return
    if args.dataloader_num_workers:
        raise ValueError(
            f"`DistillationTrainingArguments(dataloader_num_workers={args.dataloader_num_workers})`: the rows are "
            "kept on the device (`in_memory='device'`), which workers cannot read from. Set it to 0: batches are made "
            "on the device, and there is nothing for workers to do."
        )
    dataset.to_device(args.device)
    pinned, args.dataloader_pin_memory = (
        args.dataloader_pin_memory,
        args.dataloader_pin_memory and (args.device.type == "cpu"),
    )
    try:
        yield
    finally:
        args.dataloader_pin_memory = pinned


def is_stream(dataset: Any) -> bool:
    """Whether rows come one by one, without an index."""
    return isinstance(dataset, IterableDataset)

"""The pickles in a checkpoint that the Trainer reads: none runs code, and one that cannot be read is named."""

import pickle
import struct
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils.memory import should_reduce_batch_size
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers.trainer_pt_utils import safe_globals

from .complete import another_than

SCALER = ("scaler.pt",)
GENERATORS = ("rng_state*.pth",)
PICKLED = ("optimizer.pt", "scheduler.pt", *SCALER, *GENERATORS)
WEIGHTS = ("pytorch_model*.bin", "adapter_model.bin")

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError)


def foreign_names(path: Path) -> list[str]:
    """Functions and classes that a file of `torch.save` names beyond what tensors and plain values need.

    The file is disassembled, not loaded. Where that cannot be done nothing is found: the loader refuses more.
    """
    try:
        with safe_globals():  # arrays, as the state of numpy's generator has them
            return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except (*_UNREADABLE, struct.error):
        return []


@contextmanager
def pickles_in_words(
    checkpoint: str, patterns: tuple[str, ...], owners: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Refuse files that name code, before any is read; say which one could not be read inside, and why.

    torch refuses them too, in words that advise to switch the check off.

    Args:
        checkpoint: The folder.
        patterns: Of the names of the files that are read inside.
        owners: Whose state a file is, by the file's name.

    Raises:
        ValueError: A file names code, is damaged, or is the state of something else.
    """
    folder = Path(checkpoint)
    owner = f"`train(resume_from_checkpoint={checkpoint!r})`"
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        named = foreign_names(path)
        if named:
            raise ValueError(
                f"{owner} found `{path.name}` naming {', '.join(named[:4])}{' …' if len(named) > 4 else ''}, which no "
                "state of a training needs and which loading it could run. Nothing was loaded or run. Do not use a "
                "checkpoint that is not yours; if a class of your own is in it, allow that one with "
                "`torch.serialization.add_safe_globals`."
            )
    try:
        yield
    except _UNREADABLE as error:
        if should_reduce_batch_size(error):  # out of memory
            raise
        name = _being_read(error, folder, owners or {})
        what = f"`{name}`" if name else " or ".join(f"`{pattern}`" for pattern in patterns)
        raise ValueError(
            f"{owner} cannot read {what} ({_reason(error)}): the file is damaged, or the state of something else than "
            f"this run has. No code in it was run.{another_than(folder)}"
        ) from error


def _being_read(error: BaseException, folder: Path, owners: Mapping[str, Any]) -> str | None:
    """The file whose loading, or whose state, an error comes from: the innermost one on the way to it."""
    name = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, str) and value.startswith(str(folder)) and Path(value).parent == folder:
                name = Path(value).name
        this = frame.f_locals.get("self")
        name = next((file for file, owner in owners.items() if this is owner), name)
    return name


def _reason(error: BaseException) -> str:
    """What went wrong, without torch's advice."""
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    lines = text.splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"

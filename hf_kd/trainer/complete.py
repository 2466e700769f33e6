"""Which checkpoints are whole: a run that was killed leaves one that was half written, or half deleted."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)

from .objective_state import GO_ON, MANIFEST_FILE, STATE_FILE

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"
"""What the Trainer writes last, before it deletes older checkpoints: without it a checkpoint is not whole."""

UNFINISHED = "checkpoint-is-incomplete.txt"
"""What `transformers` lays into a checkpoint while it saves at a signal."""

NO_OPTIMIZER = "it has no optimizer"
NO_MANIFEST = f"it has no `{MANIFEST_FILE}`"
OPTIMIZER = ("optimizer.pt", "scheduler.pt")
_INDICES = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
_WEIGHTS = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME, *_INDICES)
_FOLDER = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def defect(folder: Path) -> str | None:
    """Why a checkpoint is not whole; None if it is.

    Reads the ends and heads of files, not their contents: a file that was not written to its end is found, a flipped
    bit is not.
    """
    if (folder / UNFINISHED).exists():
        return f"`{UNFINISHED}` says that it was being written"
    if not (folder / STATE).is_file():
        return f"`{STATE}`, which is written last, is missing"
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if not _is_readable(path):
            return f"cannot read `{path.name}`: the file is damaged or was not written to its end"
    return _missing(folder, {path.name for path in files})


def _missing(folder: Path, names: set[str]) -> str | None:
    is_sharded = any(path.is_dir() for path in folder.iterdir())  # FSDP and DeepSpeed keep their own folders
    if not is_sharded and not names.intersection(_WEIGHTS):
        return "it has no weights"
    wanted: set[str] = set()
    for index in names.intersection(_INDICES):
        wanted |= set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
    if STATE_FILE in names:
        wanted.add(MANIFEST_FILE)
    if MANIFEST_FILE in names:  # written unless only the model is saved
        processes = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")).get("num_processes", 1)
        wanted.add(STATE_FILE)
        wanted |= set() if is_sharded else set(OPTIMIZER)
        wanted |= {"rng_state.pth"} if processes == 1 else {f"rng_state_{index}.pth" for index in range(processes)}
    missing = sorted(wanted - names)
    return f"{', '.join(f'`{name}`' for name in missing)} is missing" if missing else None


def _is_readable(path: Path) -> bool:
    """Whether a file has its end; True for kinds that do not tell."""
    if path.suffix == ".json":
        try:
            return isinstance(json.loads(path.read_text(encoding="utf-8")), (dict, list))
        except ValueError:
            return False
    if path.suffix == ".safetensors":
        return _has_whole_tensors(path)
    if path.suffix in (".pt", ".pth"):  # an archive, whose table of contents is its end
        return zipfile.is_zipfile(path)
    return True


def _has_whole_tensors(path: Path) -> bool:
    """Whether the file is as long as its head says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            head = json.loads(file.read(length))
        except ValueError:
            return False
    ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
    return size == 8 + length + max(ends, default=0)


def checkpoints(folder: str | PathLike) -> list[Path]:
    """The checkpoints of a run, whole or not, the last first."""
    if not Path(folder).is_dir():
        return []
    found = [(_FOLDER.fullmatch(path.name), path) for path in Path(folder).iterdir() if path.is_dir()]
    numbered = [(int(match.group(1)), path) for match, path in found if match is not None]
    return [path for _, path in sorted(numbered, reverse=True)]


def lack(folder: Path) -> str | None:
    """What a checkpoint without a `defect` does not have; None if it has all that a run goes on from.

    It is one of `save_only_model` or of another trainer, or one that was half deleted, state last.
    """
    names = {path.name for path in folder.iterdir()}
    if any(path.is_dir() for path in folder.iterdir()):  # FSDP and DeepSpeed keep the optimizer there
        return None
    if not names.issuperset(OPTIMIZER):
        return NO_OPTIMIZER
    return None if MANIFEST_FILE in names else NO_MANIFEST


def last_complete(folder: str | PathLike) -> tuple[Path | None, dict[Path, str]]:
    """The last whole checkpoint of a run, and what is wrong with each one after it.

    One that lacks the optimizer or the manifest is passed over as long as there is one that has them: it may be half
    deleted.
    """
    defects: dict[Path, str] = {}
    lacking: dict[Path, str] = {}
    for path in checkpoints(folder):
        wrong = defect(path)
        if wrong is not None:
            defects[path] = wrong
            continue
        missing = lack(path)
        if missing is None:
            return path, defects | lacking
        lacking[path] = missing
    return next(iter(lacking), None), defects


def check_has_optimizer(folder: Path, may_differ: bool) -> None:
    """Refuse to go on from the student alone, or say what starts over.

    Raises:
        ValueError: There is no optimizer, and the run may not differ.
    """
    if lack(folder) != NO_OPTIMIZER:
        return
    said = (
        f"`train(resume_from_checkpoint={str(folder)!r})` holds the student without its optimizer (`save_only_model`):"
        " the optimizer, the schedule of the learning rate and the random draws would start over within the run"
    )
    if not may_differ:
        raise ValueError(
            f"{said}. Start a new run from these weights: the folder is a model that can be loaded. To have runs that "
            f"can be resumed, save with `save_only_model=False`.{GO_ON}"
        )
    logger.warning(f"{said.replace('would start', 'start')}, as `resume_with_changes` says.")


def checkpoint_to_resume(
    resume: bool | str | PathLike, output_dir: str, *, is_writer: bool, meet: Callable[[], Any] = lambda: None
) -> str:
    """The checkpoint that `train(resume_from_checkpoint=...)` means.

    Half-written ones that come after the last whole one are said and deleted: nothing can be done with them, and the
    Trainer would count them among those it keeps.

    Args:
        resume: A checkpoint, or True for the last whole one.
        output_dir: Where the run's checkpoints are.
        is_writer: Whether this process deletes.
        meet: Waits until every process has looked.

    Raises:
        ValueError: It is not whole, or there is none.
    """
    if resume is not True:
        folder = Path(resume)
        owner = f"`train(resume_from_checkpoint={str(folder)!r})`"
        if not folder.is_dir():
            raise ValueError(f"{owner}: there is no such folder. Give a checkpoint, or True for the last one.")
        wrong = defect(folder)
        if wrong is not None:
            cannot = wrong if wrong.startswith("cannot") else f"cannot go on from there: {wrong}"
            raise ValueError(f"{owner} {cannot}.{another_than(folder)}")
        return str(folder)
    last, defects = last_complete(output_dir)
    meet()
    if last is None:
        raise ValueError(f"`train(resume_from_checkpoint=True)`: {none_in(output_dir, defects)}")
    for path, wrong in defects.items():
        logger.warning(f"{path} is not whole ({wrong}): it is passed over, and the run goes on from {last.name}.")
        if is_writer and wrong not in (NO_OPTIMIZER, NO_MANIFEST):
            shutil.rmtree(path, ignore_errors=True)
    return str(last)


def none_in(output_dir: str, defects: dict[Path, str]) -> str:
    """That there is nothing to resume, in words."""
    found = "; ".join(f"{path.name}: {wrong}" for path, wrong in defects.items())
    what = f"holds no whole checkpoint ({found})" if found else "holds no checkpoint"
    return f"{str(output_dir)!r} {what}. Leave it out to start from the beginning."


def another_than(folder: Path) -> str:
    """Which checkpoint to resume from instead of one that cannot be."""
    last, _ = last_complete(folder.parent)
    named = _FOLDER.fullmatch(folder.name) is not None and last not in (None, folder)
    return f" The last whole one beside it is {str(last)!r}." if named else " Resume from another checkpoint."


def clear(folder: Path) -> None:
    """Make way for a checkpoint: what lies there from a run before is not whole from its first missing file on."""
    if not folder.is_dir():
        return
    (folder / STATE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name != UNFINISHED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def write_errors_in_words(folder: Path, last_saved: str | None) -> Iterator[None]:
    """Say that a checkpoint could not be written, and why, whatever library found out.

    Raises:
        OSError: It could not be written: the disk is full, say, or may not be written to.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        of_torch = isinstance(error, RuntimeError) and "inline_container" in str(error)  # its archives
        if not of_torch and not isinstance(error, (OSError, SafetensorError)):
            raise
        kept = f" The last whole one is {last_saved}." if last_saved else ""
        free = _free(folder)
        raise OSError(
            f"the checkpoint {folder} could not be written: {' '.join(str(error).split())}"
            f"{'' if free is None else f' ({free})'}.{kept} Make room, or keep fewer (`save_total_limit`), and resume."
        ) from error


def _free(folder: Path) -> str | None:
    for place in (folder, *folder.parents):
        if place.exists():
            return f"{shutil.disk_usage(place).free / 2**20:,.0f} MiB free"
    return None

"""An adapter student on disk: the adapter at the top of a folder, and in `merged` the plain student it amounts to."""

import hashlib
import json
from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MERGED = "merged"
"""Where in a run's folder the plain student is."""

ON_HUB = "adapter"
"""Where in a repository the adapter is; the plain student is at its top."""

_NOTE = "_merged_from.json"


def is_adapter(folder: Path) -> bool:
    """Whether what was saved at the top of a folder is an adapter and no whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_weights(folder: Path) -> Path | None:
    """The file that holds an adapter's weights; None where it is missing."""
    return next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)


def note_merged(folder: Path) -> None:
    """Note which adapter the plain student in `merged` was made of."""
    (folder / MERGED / _NOTE).write_text(json.dumps({"adapter_sha256": _digest(folder)}) + "\n", encoding="utf-8")


def is_merged(folder: Path) -> bool:
    """Whether `merged` holds the plain student of the very adapter that is in `folder`, not of an older one."""
    note = folder / MERGED / _NOTE
    if not note.is_file() or not (folder / MERGED / "config.json").is_file():
        return False
    try:
        return json.loads(note.read_text(encoding="utf-8"))["adapter_sha256"] == _digest(folder) is not None
    except (ValueError, KeyError, TypeError):
        return False


def _digest(folder: Path) -> str | None:
    """Of the weights and of what says how they are applied."""
    weights = adapter_weights(folder)
    if weights is None or not is_adapter(folder):
        return None
    digest = hashlib.sha256((folder / ADAPTER_CONFIG).read_bytes())
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

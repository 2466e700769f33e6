"""From an adapter student to the plain one that others can load."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from ..adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MERGED, adapter_weights, is_merged, note_merged
from ..adapters import merged_student
from ..model_card import read_record
from ..registry import ConfigError
from ..teacher import auto_class
from .folder import PROCESSORS, is_weights
from .words import hidden, one_line, reason

VOCABULARIES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)
"""What slow tokenizers keep their words in."""


def write_merged(student: Any, folder: str | Path, processor: Any = None) -> Path:
    """Save the plain student of an adapter student whose adapter lies in `folder`, in `merged` below it.

    Args:
        student: The adapter student; not changed.
        folder: Where its adapter was saved.
        processor: Saved along; by default the one in `folder` is copied.

    Returns:
        The folder of the plain student.
    """
    folder = Path(folder)
    merged = folder / MERGED
    plain = merged_student(student)
    merged.mkdir(parents=True, exist_ok=True)
    for path in merged.iterdir():  # one file or many: what an older student leaves would be loaded first
        if is_weights(path.name) or path.name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS):
            path.unlink()
    plain.save_pretrained(merged)
    if processor is not None:
        processor.save_pretrained(merged)
    else:
        for path in folder.iterdir():
            if path.name in (*PROCESSORS, *VOCABULARIES):
                shutil.copy(path, merged / path.name)
    note_merged(folder)
    return merged


def ensure_merged(folder: Path, token: str | None = None) -> Path:
    """The plain student of the adapter in `folder`, made from its base model unless it is there already.

    Args:
        folder: Of a run, or a checkpoint of one.
        token: For the base model, where it is on the Hub.

    Raises:
        ConfigError: The base cannot be loaded, or the two do not fit.
    """
    if is_merged(folder):
        return folder / MERGED
    from peft import PeftConfig, PeftModel

    try:
        settings = PeftConfig.from_pretrained(str(folder))
        name, source = settings.base_model_name_or_path, {"revision": settings.revision, "token": token}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError([f"{folder}: holds no adapter that could be read: {one_line(error)}."]) from error
    if not name:
        raise ConfigError([f"{folder}: is an adapter that does not say of which model. {_by_hand(folder)}"])
    source = {key: value for key, value in source.items() if value is not None}
    told = (read_record(folder).provenance.get("student") or {}).get("config") or {}
    try:
        config = AutoConfig.from_pretrained(name, **source)
        config = type(config).from_dict({**config.to_dict(), **told})
        base, info = auto_class(config).from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **source
        )
    except (OSError, ValueError, RuntimeError, KeyError, HfHubHTTPError) as error:
        why = hidden(_why(error), token)
        raise ConfigError(
            [
                f"{folder}: is an adapter, and its base model {name!r} cannot be loaded to make the plain student of "
                f"it: {why} {_by_hand(folder)}"
            ]
        ) from error
    _refuse_random(folder, name, info)
    try:
        student = PeftModel.from_pretrained(base, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ConfigError([f"{folder}: its adapter does not fit {name!r}: {one_line(error)}."]) from error
    return write_merged(student, folder)


def _by_hand(folder: Path) -> str:
    return f"Make it where the base is: `hf_kd.publish.write_merged(student, {str(folder)!r})`."


def _why(error: BaseException) -> str:
    """The Hub's answer in words where there is one below the loader's error."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, HfHubHTTPError):
            return reason(below)
        below = below.__cause__ or below.__context__
    return f"{one_line(error)}."


def _in_base(key: str) -> str:
    """An adapter's tensor by its name in the base model."""
    return key.removeprefix("base_model.model.")


def _refuse_random(folder: Path, name: str, info: dict[str, Any]) -> None:
    """Weights that the base lacks and the adapter does not bring: the student was trained on other ones."""
    path = adapter_weights(folder)
    brought: set[str] = set()
    if path is not None and path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                brought = set(map(_in_base, file.keys()))
        except (OSError, SafetensorError) as error:
            raise ConfigError([f"{path}: cannot be read ({one_line(error)}). Save the student again."]) from error
    fresh = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
    odd = sorted(fresh - brought)
    if odd:
        raise ConfigError(
            [
                f"{folder}: the student was trained with {', '.join(odd[:4])}{' …' if len(odd) > 4 else ''}, which "
                f"neither its adapter nor {name!r} holds, so its plain student cannot be made here. "
                f"{_by_hand(folder)}"
            ]
        )

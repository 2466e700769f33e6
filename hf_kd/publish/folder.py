"""What is pushed of a folder, and whether anybody could load it; nothing here talks to the Hub."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MERGED, ON_HUB, adapter_weights, is_adapter
from ..model_card import CARD, PROVENANCE, read_record
from ..registry import ConfigError
from ..teacher import auto_class
from ..test_rows import TEST_ROWS
from .code import carries_code, check_code, code_names, is_own_class
from .words import TOKEN, one_line

NOT_PUSHED = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "distillation_state.*")
NOT_PUSHED += ("distillation_manifest.json", "*.lock", "*.tmp", ".*", "_*")
NOT_PUSHED += ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", TEST_ROWS)
"""Files of a folder that are no part of the model: what a run needs to go on, pickles, hidden ones, labels of rows."""

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
"""Files that an older push may have left and that would be loaded in place of the new ones."""

PROCESSORS = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")
TEXTS = (".json", ".yaml", ".yml", ".md", ".txt", ".py")


def bundle(folder: Path) -> dict[str, Path]:
    """What is pushed of a folder: each file by its place in the repository. Folders inside it stay here.

    Of an adapter student the plain one is at the top, so that whoever has `transformers` alone can load it, and the
    adapter in `adapter/`. Both at the top would not do: the adapter would be put on the plain student again.
    """
    top = {path.name: path for path in _own_files(folder)}
    if not is_adapter(folder):
        return top
    adapter = {f"{ON_HUB}/{name}": top.pop(name) for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) if name in top}
    top = {name: path for name, path in top.items() if not is_weights(name)}
    plain = {path.name: path for path in _own_files(folder / MERGED) if path.name != CARD}
    return {**top, **plain, **adapter}


def is_weights(path: str) -> bool:
    """Whether a path is of weights that `from_pretrained` would look for at the top of a repository."""
    return "/" not in path and any(fnmatch(path, pattern) for pattern in WEIGHTS)


def stale(present: list[str], pushed: dict[str, Path]) -> list[str]:
    """Files of older pushes that would be loaded in place of what is pushed, or beside it as if of it."""
    adapters = {place for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS) for place in (name, f"{ON_HUB}/{name}")}
    return [path for path in present if path not in pushed and (is_weights(path) or path in adapters)]


def _own_files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [path for path in files if not any(fnmatch(path.name, pattern) for pattern in NOT_PUSHED)]


def check_run(folder: Path) -> None:
    """Refuse a folder that no run of ours wrote, or of which it is not clear which student it holds.

    Raises:
        ConfigError: Why, in words.
    """
    if not folder.is_dir():
        raise ConfigError([f"{folder}: there is no such folder. Give the output folder of a run."])
    whole = (folder / "config.json").is_file()
    if not whole and not is_adapter(folder):
        raise ConfigError([f"{folder}: holds no complete model: there is no config.json.{_hint(folder)}"])
    if is_adapter(folder) and adapter_weights(folder) is None:
        raise ConfigError(
            [f"{folder}: holds no complete adapter: there is no {ADAPTER_WEIGHTS[0]}. Save the student again."]
        )
    if not (folder / PROVENANCE).is_file():
        raise ConfigError(
            [
                f"{folder}: was not written by hf_kd: there is no {PROVENANCE}, so nothing says what the model was "
                f"distilled from, and its card would be empty. Give the output folder of a run, or push it as it is "
                f"with `hf upload`."
            ]
        )
    student = read_record(folder).provenance.get("student") or {}
    if whole and is_adapter(folder) and not missing_weights(folder) and "config" not in student:
        raise ConfigError(
            [
                f"{folder}: holds a whole model and the adapter of another run ({ADAPTER_CONFIG}), which would be put "
                "on it at every load. Remove the files that are not of the student."
            ]
        )


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a folder that plain `transformers` could not load as a classifier, all weights in place.

    Args:
        folder: With an adapter student, its plain one is in `merged`.
        trust_remote_code: Run code that lies in the folder. Without it, such a model is checked unloaded: its code
            must be all there, and its weights whole.

    Raises:
        ConfigError: What is missing, in words.
    """
    check_run(folder)
    model = folder / MERGED if is_adapter(folder) else folder
    missing = missing_weights(model)
    if missing:
        shown = ", ".join(missing[:4]) + (" …" if len(missing) > 4 else "")
        raise ConfigError([f"{model}: holds no complete model: there is no {shown}.{_hint(folder)}"])
    if not set(PROCESSORS) & set(bundle(folder)):
        raise ConfigError(
            [
                f"{folder}: holds no tokenizer and no image processor, without which nobody can use the model. Save "
                "one there with `processor.save_pretrained(...)`."
            ]
        )
    config = _config(model)
    code = (read_record(folder).provenance.get("student") or {}).get("code") or {}
    if carries_code(config):
        check_code(model, config)
    elif is_own_class(config) and not code.get("package"):
        name = code_names(config)
        raise ConfigError(
            [
                f"{folder}: is a {name}, which is no class of transformers, and its code does not lie beside it: "
                "nobody could load it. Register its classes before the student is saved "
                "(`MyModel.register_for_auto_class('AutoModelForImageClassification')` or "
                "`'AutoModelForSequenceClassification'`, and `MyConfig.register_for_auto_class()`), or define them in "
                "a package that others can install."
            ]
        )
    if trust_remote_code or not is_own_class(config):
        _check_loading(model, trust_remote_code)
    else:
        _check_files(model)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read ({one_line(error)}). Save the student again."]) from error


def _check_loading(folder: Path, trust_remote_code: bool) -> None:
    """Load it, and refuse what would be random or left out at every load."""
    again = "Save the student again from the run that trained it."
    trust = {"trust_remote_code": trust_remote_code}
    try:
        auto = auto_class(AutoConfig.from_pretrained(folder, **trust))
        model, info = auto.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True, **trust)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError([f"{folder}: holds no complete model: {one_line(error)}. {again}"]) from error
    mismatched = [entry[0] for entry in info["mismatched_keys"]]
    for names, what in (
        ({*info["missing_keys"], *mismatched}, "freshly initialised"),
        (set(info["unexpected_keys"]), "left out"),
    ):
        if names:
            shown = ", ".join(sorted(names)[:4]) + (" …" if len(names) > 4 else "")
            raise ConfigError(
                [f"{folder}: holds no complete {type(model).__name__}: {shown} would be {what} at every load. {again}"]
            )


def _check_files(folder: Path) -> None:
    """Weights of a model that is not loaded here: every file whole, every tensor where the index says."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    whole = (folder / SAFE_WEIGHTS_NAME).is_file()
    weights = {} if whole else json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for name in [SAFE_WEIGHTS_NAME] if whole else sorted(set(weights.values())):
        try:
            with safe_open(folder / name, framework="pt") as file:
                held = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise ConfigError([f"{folder / name}: cannot be read ({one_line(error)}). Save the student again."]) from (
                error
            )
        lacking = sorted(key for key, place in weights.items() if place == name and key not in held)
        if lacking:
            raise ConfigError([f"{folder / name}: lacks {', '.join(lacking[:4])}. Save the student again."])


def missing_weights(folder: Path) -> list[str]:
    """Weight files that a folder lacks."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return []
    if not index.is_file():
        return [SAFE_WEIGHTS_NAME]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError([f"{index}: cannot be read ({one_line(error)}). Save the student again."]) from error
    return sorted(name for name in shards if not (folder / name).is_file())


def _hint(folder: Path) -> str:
    saved = [path.parent for name in ("config.json", ADAPTER_CONFIG) for path in folder.glob(f"checkpoint-*/{name}")]
    if saved:
        return f" If the run was not finished, its last checkpoint is {max(saved, key=os.path.getmtime)}."
    return " Give the output folder of a finished run."


def refuse_secrets(folder: Path, token: str | None = None) -> None:
    """Refuse to push a text file that holds an access token.

    Raises:
        ConfigError: Which file; not which token.
    """
    known = [value for value in (token, get_token()) if isinstance(value, str) and value]
    for path in bundle(folder).values():
        if path.suffix in TEXTS:
            text = path.read_text(encoding="utf-8", errors="replace")
            if TOKEN.search(text) or any(value in text for value in known):
                raise ConfigError(
                    [
                        f"{path}: holds what looks like an access token of the Hub, and would be published. Remove it "
                        "there, and revoke the token if anyone else has seen the file."
                    ]
                )

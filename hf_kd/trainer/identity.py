"""What makes a run this run: teacher, classes, data and what is done to them, so that no other one resumes it."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from ..adapters import OwnBase
from ..quantization import is_quantized, plain_tensors, quantization_name
from .hub import describe_model

SAMPLES = 16
"""So many values of each of the teacher's tensors, and so many rows, stand for all."""

SETTINGS = (
    "temperature_learning_rate",
    "temperature_momentum",
    "temperature_weight_decay",
    "label_smoothing_factor",
    "train_sampling_strategy",
    "seed",
    "data_seed",
)
"""Arguments that a resumed run must share: what the objective does, and in which order rows come."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity(trainer: Any) -> dict[str, Any]:
    """What the manifest of a checkpoint says of its run, beside the objective; plain values.

    The student's size is not in it: its weights say that. Nor are settings that a run may change, such as the number
    of processes.
    """
    teacher, rows = trainer.teacher, trainer.train_dataset
    label_map = None if teacher is None or teacher.label_map is None else teacher.label_map.to_dict()
    cache = trainer.teacher_cache
    stored = None if cache is not None else trainer.stored_teacher  # whose answers are in a cache, `teacher` says
    facts = {
        "teacher": None if teacher is None else _teacher(teacher.model),
        "stored_teacher": None if stored is None else dict(stored),
        "answers": "as given" if cache is None else cache.words(),
        "label_map": label_map,
        "mixing": None if trainer.mixing is None else repr(trainer.mixing),
        "views": trainer._views,
        "problem_type": trainer.problem_type,
        "data": _data(rows),
        "settings": {name: _plain(getattr(trainer.args, name)) for name in SETTINGS},
        **trainer.told,
    }
    return json.loads(json.dumps(facts, default=str))


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words; what either does not say is passed over."""
    old, new = (_flat(facts) for facts in (then, now))
    wrong = [
        f"{name} {_short(old[name])} (now: {_short(new[name])})"
        for name in old
        if name in new and old[name] != new[name] and name != "teacher.name"
    ]
    if old.get("teacher.weights", 0) is None and old.get("teacher.name") != new.get("teacher.name"):
        wrong.append(f"teacher.name {_short(old.get('teacher.name'))} (now: {_short(new.get('teacher.name'))})")
    for name in ("teacher", "label_map", "stored_teacher"):  # there and not there
        if name in then and name in now and (then[name] is None) != (now[name] is None):
            wrong.append(f"{name} {_short(then[name])} (now: {_short(now[name])})")
    return wrong


def _teacher(model: Any) -> dict[str, Any]:
    """Its weights by a digest, so that a folder may be moved, and a teacher trained anew in the same one is seen."""
    if isinstance(model, OwnBase):
        return {"name": "self", "weights": None}
    if getattr(model, "is_stored", False):  # the same run as with the teacher whose answers are stored
        return {key: model.facts.get(key) for key in ("name", "class", "num_labels", "weights")}
    described = describe_model(model)
    facts = {key: described.get(key) for key in ("name", "class", "num_labels")}
    facts |= {"quantization": quantization_name(model)}
    return facts | {"weights": digest_of(model) if isinstance(model, nn.Module) else None}


@torch.no_grad()
def digest_of(model: nn.Module) -> str:
    """Twelve hexadecimal digits over evenly spaced values of every tensor, at single precision.

    Of a quantised model, of the tensors that are as they were: see `plain_tensors`.
    """
    digest = hashlib.sha256()
    tensors = plain_tensors(model) if is_quantized(model) else model.state_dict()
    parts: list[Tensor] = []
    for name, value in sorted(tensors.items()):
        if not isinstance(value, Tensor) or value.is_meta:
            continue
        digest.update(f"{name} {tuple(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        places = torch.linspace(0, max(len(flat) - 1, 0), min(SAMPLES, len(flat))).long()
        parts.append(flat[places.to(flat.device)].float())
    if parts:
        device = parts[0].device
        digest.update(torch.cat([part.to(device) for part in parts]).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _data(rows: Any) -> dict[str, Any]:
    columns = getattr(rows, "column_names", None)
    facts = {
        "rows": len(rows) if hasattr(rows, "__len__") else None,
        "columns": None if columns is None else sorted(columns),
    }
    transform = getattr(rows, "transform", None)
    if isinstance(rows, datasets.Dataset):
        facts["digest"] = _rows_digest(rows)
        transform = (rows.format.get("format_kwargs") or {}).get("transform")
    return facts | {"transform": None if transform is None else describe_function(transform)}


def _rows_digest(rows: datasets.Dataset) -> str:
    """Over evenly spaced rows as they are stored; the Dataset's own fingerprint changes with how it was made."""
    places = sorted({round(i * (len(rows) - 1) / max(SAMPLES - 1, 1)) for i in range(SAMPLES)}) if len(rows) else []
    table = rows.with_format("arrow").select(places)[:].to_pylist() if places else []
    content = [{key: _without_path(row[key]) for key in sorted(row)} for row in table]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def _without_path(value: Any) -> Any:
    """An image by its bytes or its file's name: where it lies may change."""
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return value["bytes"] or re.split(r"[\\/]", value["path"] or "")[-1]
    return value


def describe_function(function: Any) -> str:
    """A transform by what it says of itself, else by its name."""
    if type(function).__repr__ is not object.__repr__ and not hasattr(function, "__qualname__"):
        return _ADDRESS.sub("", repr(function))
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        flat |= inner
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"

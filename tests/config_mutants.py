"""Configurations that are wrong at one place: every key, with every kind of value that a file may hold by mistake."""

import copy
import math
from dataclasses import dataclass
from typing import Any

VALUES = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "minus one": -1,
    "a fraction": 1.5,
    "huge": 10**9,
    "huge float": 1e9,
    "beyond 64 bits": 10**30,
    "nan": math.nan,
    "inf": math.inf,
    "text": "x",
    "empty": "",
    "space": "  ",
    "a number in quotes": "3",
    "two lines": "a\nb: c",
    "unicode": "\u043a\u043b\u044e\u0447 \U0001f9ea \u202e\u05d0",
    "NUL": "a\0b",
    "long": "x" * 5000,
    "long path": "./" + "x/" * 3000,
    "surrogate": "a\udc80",
    "list": [1, "a"],
    "empty list": [],
    "nested list": [[1], {"a": None}],
    "mapping": {"a": 1},
    "empty mapping": {},
    "numbers as keys": {1: 2, None: 3},
    "name": {"name": "x"},
    "names": ["kd", {"name": "kd"}],
}
KEYS = {
    "word": "extra",
    "empty": "",
    "number": 1,
    "null": None,
    "bool": True,
    "dotted": "a.b",
    "two lines": "a\nb: c",
    "unicode": "\u043a\u043b\u044e\u0447 \U0001f9ea",
    "long": "k" * 5000,
    "dunder": "__class__",
    "self": "self",
}
"""Names no section has."""


@dataclass(frozen=True)
class Mutant:
    """A configuration and what was done to it.

    Args:
        path: The key that was changed, added or removed.
        what: How.
        mapping: The whole.
    """

    path: tuple[Any, ...]
    what: str
    mapping: dict[str, Any]

    def __str__(self):
        return f"{'.'.join(map(str, self.path))[:80]!r} {self.what}"


def places(node, prefix=()):
    """The path of every key and list entry, sections before what is in them."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


def mutants(mapping):
    """Every mutant of a configuration, one change each, always in the same order."""
    for path in list(places(mapping)):
        for what, value in VALUES.items():
            yield Mutant(
                path, f"set to {what}", _changed(mapping, path, lambda node, key, v=value: _set(node, key, v))
            )
        yield Mutant(path, "left out", _changed(mapping, path, lambda node, key: node.pop(key)))
        if isinstance(path[-1], str):
            typo = path[-1][:-1] + "q"
            made = _changed(mapping, path, lambda node, key, t=typo: _set(node, t, node.pop(key)))
            yield Mutant((*path[:-1], typo), "mistyped", made)
    sections = [(), *(path for path in places(mapping) if isinstance(_at(mapping, path), dict))]
    for section in sections:
        for what, name in KEYS.items():
            path = (*section, name)
            yield Mutant(path, f"added ({what})", _changed(mapping, path, lambda node, key: _set(node, key, 1)))


def _at(node, path):
    for key in path:
        node = node[key]
    return node


def _set(node, key, value):
    node[key] = copy.deepcopy(value)


def _changed(mapping, path, change):
    made = copy.deepcopy(mapping)
    change(_at(made, path[:-1]), path[-1])
    return made


# Every section and most keys in use. Names on the Hub, of which checking asks nothing.
EVERY_SECTION = {
    "output_dir": "outputs/every",
    "seed": 3,
    "teacher": {
        "model": "owner/teacher",
        "revision": "main",
        "dtype": "auto",
        "processor": "owner/processor",
        "label_map": {"cat": "dog", 3: None, "bird": 1},
        "sanity_check": True,
        "trust_remote_code": False,
        "use_safetensors": True,
    },
    "student": {
        "model": "owner/student",
        "init_layers": [0, 2],
        "config": {"num_hidden_layers": 2},
        "revision": "main",
        "dtype": "float32",
        "processor": "owner/student",
        "from_scratch": False,
        "trust_remote_code": False,
        "use_safetensors": True,
    },
    "data": {
        "name": "owner/rows",
        "subset": "plain",
        "revision": "main",
        "text_column": ["premise", "hypothesis"],
        "label_column": "label",
        "splits": {"train": "train", "test": "validation"},
        "missing_label": -1,
        "problem_type": "single_label_classification",
        "metrics": ["nll", "brier"],
        "max_samples": {"train": 100, "test": 10},
        "max_length": 32,
        "labelled": 50,
        "drop_unlabelled": False,
        "class_weights": {"x": 1.0, "y": 2.0},
        "sample_weight": "weight",
        "streaming": False,
        "seed": 1,
    },
    "objective": {
        "ce_weight": 0.5,
        "kd_weight": 1.0,
        "losses": [
            {"name": "kd", "loss_weight": 2.0, "temperature": {"name": "ctkd", "start": 2.0}},
            {"name": "dkd", "alpha": 1.0, "temperature": 4.0},
            {"name": "kd", "temperature": [4, {"name": "linear", "start": 3.0, "end": 1.0}]},
        ],
        "warmup": 0.1,
        "task_serialization": True,
    },
    "training": {
        "num_train_epochs": 2,
        "learning_rate": 0.001,
        "lr_scheduler_type": "constant",
        "lr_milestones": [1, 2],
        "lr_gamma": 0.1,
        "optim": "adamw_torch",
        "optim_args": "a=1",
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_strategy": "steps",
        "save_steps": 5,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "greater_is_better": True,
        "early_stopping_patience": 2,
        "evaluate_with_teacher": True,
        "temperature_learning_rate": 0.05,
        "bf16": False,
        "label_smoothing_factor": 0.1,
        "report_to": "none",
        "accelerator_config": {"split_batches": False},
        "logging_strategy": "no",
        "push_to_hub": False,
    },
}
OF_IMAGES = {
    "output_dir": "outputs/images",
    "teacher": {"column": "teacher_logits"},
    "student": {"config": {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [8, 16], "layer_type": "basic"}},
    "data": {"path": ".", "image_column": "image", "class_weights": [1.0, 2.0], "max_samples": 40},
    "method": {"name": "dkd", "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup_epochs": 1},
    "training": {"max_steps": 2, "resume_from_checkpoint": False, "train_sampling_strategy": "random"},
}
MIXED = {
    "output_dir": "outputs/mixed",
    "teacher": {"model": "owner/teacher"},
    "student": {"model": "owner/student", "peft": {"type": "lora", "r": 8, "target_modules": ["query", "value"]}},
    "data": {
        "name": "cifar100",
        "augmentation": {"name": ["crop_flip", "trivial_augment"], "padding": 4, "random_erasing": 0.25, "mixup": 0.8},
        "streaming": True,
    },
    "method": {"name": "ctkd", "start": 1.0, "curriculum_epochs": 10},
    "training": {"max_steps": 10, "report_to": ["none"]},
}

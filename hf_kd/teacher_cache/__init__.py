"""What a teacher answered, on disk: asked once, read by any number of runs, and never paired with another row."""

from .cache import AS_STORED, CLASSIFIER, KEY_MEMORY, MANIFEST, TEACHER_FEATURES, TeacherCache
from .fill import (
    Asking,
    agreed,
    check_answers,
    check_inputs,
    check_repeatable,
    check_stream,
    fill,
    fill_stream,
    finish,
)
from .identity import refuse_other
from .keys import input_digest, row_key, row_keys
from .rows import KeyedRows, probes
from .shards import shard_paths

__all__ = [
    "AS_STORED",
    "CLASSIFIER",
    "KEY_MEMORY",
    "MANIFEST",
    "TEACHER_FEATURES",
    "Asking",
    "KeyedRows",
    "TeacherCache",
    "agreed",
    "check_answers",
    "check_inputs",
    "check_repeatable",
    "check_stream",
    "fill",
    "fill_stream",
    "finish",
    "input_digest",
    "probes",
    "refuse_other",
    "row_key",
    "row_keys",
    "shard_paths",
]

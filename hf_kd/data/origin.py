"""Which repository and commit on the Hub rows came from."""

import re
from collections.abc import Mapping
from typing import Any

import datasets
from huggingface_hub import HfApi
from transformers.utils import logging

logger = logging.get_logger(__name__)

_SOURCE = re.compile(r"hf://datasets/(?P<name>[^@]+)@(?P<commit>[0-9a-f]{40})/")
_CACHED = re.compile(r"[/\\](?P<commit>[0-9a-f]{40})[/\\][^/\\]+$")
PATIENCE = 10
"""Seconds to wait for the Hub; nothing depends on its answer."""


def hub_origin(name: str, revision: str | None, splits: Mapping[str, Any]) -> dict[str, str | None]:
    """Where rows that `datasets.load_dataset(name)` gave came from.

    What `datasets` noted when it read them is looked up first, which needs no network and is right offline too. Only a
    stream leaves no note; then the Hub is asked.

    Args:
        name: As it was asked for.
        revision: As it was asked for.
        splits: What was read.

    Returns:
        `name`, `revision`, and `commit`, which is None where nothing says it: to know it is never worth a failure.
    """
    found = {"name": name, "revision": revision, "commit": None}
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return {**found, "commit": revision}
    for rows in splits.values():
        for source in getattr(rows.info, "download_checksums", None) or ():
            noted = _SOURCE.match(str(source))
            if noted:
                return {**found, "name": noted["name"], "commit": noted["commit"]}
        for file in getattr(rows, "cache_files", None) or ():
            cached = _CACHED.search(file["filename"])
            if cached:
                return {**found, "commit": cached["commit"]}
    if any(isinstance(rows, datasets.IterableDataset) for rows in splits.values()):
        found["commit"] = _asked(name, revision)
    return found


def _asked(name: str, revision: str | None) -> str | None:
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=PATIENCE).sha
    except Exception as error:  # noqa: BLE001 - the clients raise anything, the errors of their transport among it
        logger.info(f"The commit of {name} was not found: {type(error).__name__}.")
        return None

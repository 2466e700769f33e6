"""What no configuration can hold, wherever it stands: keys that are no words, and texts that are no text."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import get_token

NUL = "\0"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
_SECRET = (
    "holds an access token, which would be written to disk and pushed. Log in with `hf auth login` or set HF_TOKEN."
)


def without_odd_parts(given: Any, path: str = "") -> tuple[Any, list[str]]:
    """The values without what cannot be meant, and what was wrong with it.

    Args:
        given: A mapping, a list or a plain value.
        path: Where it stands.

    Returns:
        A copy without the keys that are neither words nor numbers (`null:`, `yes:`, which YAML reads as true) and
        without the texts that no file could hold; and a `path: problem` line for each.
    """
    if isinstance(given, Mapping):
        entries, problems = {}, []
        for key, value in given.items():
            name = "(a token)" if isinstance(key, str) and _is_secret(key) else str(key)
            at = f"{path}.{name}" if path else name
            wrong = _key_problem(key) or _text_problem(value)
            if wrong:
                problems.append(f"{at}: {wrong}")
                continue
            entries[key], more = without_odd_parts(value, at)
            problems += more
        return entries, problems
    if isinstance(given, list):
        wrong = {index: _text_problem(value) for index, value in enumerate(given)}
        problems = [f"{path}.{index}: {problem}" for index, problem in wrong.items() if problem]
        kept = [(index, value) for index, value in enumerate(given) if not wrong[index]]
        parts = [without_odd_parts(value, f"{path}.{index}") for index, value in kept]
        return [part for part, _ in parts], problems + [line for _, lines in parts for line in lines]
    return given, []


def _key_problem(key: Any) -> str:
    if isinstance(key, str):
        if not key.strip():
            return f"the key {key!r} is blank. Name it, or remove it."
        return _text_problem(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return ""  # a class id, where classes are meant
    said = {None: "null", True: "true", False: "false"}.get(key, str(key))
    return f"the key {said} is no word: YAML reads a bare null, yes or no as something else. Put it in quotes."


def _text_problem(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if _is_secret(value):
        return _SECRET
    if NUL in value:
        return f"holds a NUL character ({value[:40]!r}), which no name or path can. Remove it."
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"holds half a character ({value[:40]!r}), which no file can. Write it anew."
    return ""


def _is_secret(value: str) -> bool:
    """Whether a text holds the token of this machine, or what looks like anybody's."""
    own = get_token() or ""
    return bool(_TOKEN.search(value)) or (len(own) > 8 and own in value)

"""Images in a folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

SPLIT_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

_SPLIT_OF = {alias: ours for ours, aliases in SPLIT_ALIASES.items() for alias in aliases}
_SUFFIXES = frozenset(ImageFolder.EXTENSIONS)


def split_called(name: str) -> str | None:
    """Which of ours an owner's split name stands for; None for any other."""
    return _SPLIT_OF.get(name.lower())


def is_image(path: Path) -> bool:
    """Whether a path ends as an image file does."""
    return path.suffix.lower() in _SUFFIXES


def image_folder(folder: Path) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]] | None:
    """The images below a folder, labelled by the folders they lie in.

    `datasets` looks for the names of splits anywhere in a path, so that CIFAR-100's class "train" would become the
    training split. Here a folder is a split if it is called like one and folders of images lie in it. A folder of
    metadata files is left to `datasets`.

    Args:
        folder: With a folder per class, or a folder per split with a folder per class in each. A split whose images
            lie in no such folder has no labels.

    Returns:
        The splits by the owner's names, each with ``image`` and ``label`` (a class name or null), and what to say
        about them; None if the folder is none of images.
    """
    inner = _folders(folder)
    if not inner or any(folder.rglob("metadata.*")):
        return None
    splits = [path for path in inner if split_called(path.name)]
    if any(split_called(path.name) == "train" and any(map(_has_images, _folders(path))) for path in splits):
        others = [path.name for path in inner if path not in splits and _has_images(path)]
        notes = (f"folders left out: {', '.join(others)}",) if others else ()
        return {path.name: _table(path) for path in splits if _has_images(path)}, notes
    return ({"train": _table(folder)}, ()) if any(map(_has_images, inner)) else None


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith((".", "_"))]


def _images(folder: Path) -> Iterator[Path]:
    # a link that leads nowhere is kept: reading it says so, and leaving it out would be a row less without a word
    return (path for path in sorted(folder.rglob("*")) if is_image(path) and not path.is_dir())


def _has_images(folder: Path) -> bool:
    return next((True for path in folder.rglob("*") if is_image(path)), False)


def _table(folder: Path) -> datasets.Dataset:
    """Images of the class folders of one split, or all of a split without such."""
    inner = _folders(folder)
    if [path.name for path in inner] == ["images"]:
        classes = _annotations(folder)
        rows = [(str(path), classes.get(path.name)) for path in _images(inner[0])]
    else:
        rows = [(str(path), one.name) for one in inner for path in _images(one)]
    rows += [(str(path), None) for path in sorted(folder.iterdir()) if is_image(path)]
    return datasets.Dataset.from_dict(
        {"image": [path for path, _ in rows], "label": [name for _, name in rows]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")}),
    )


def _annotations(folder: Path) -> dict[str, str]:
    """Class by file name where all images lie in one folder, as in Tiny-ImageNet's `val/val_annotations.txt`."""
    path = folder / f"{folder.name}_annotations.txt"
    if not path.is_file():
        return {}
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}

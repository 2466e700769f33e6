"""From what a table holds of an image to an RGB image, or to words that name the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError

_DECODER = datasets.Image()
_SHOWN = 12  # bytes of a file that is no image, enough to see what it is
_ADDRESSES = ("http://", "https://", "ftp://")
_DEEP = ("I", "F")  # numbers whose range the file does not say


def undecoded(rows: Any, column: str) -> Any:
    """The same rows with the images as they lie there: `opened` decodes them, and can say which it was."""
    return rows.cast_column(column, datasets.Image(decode=False))


def opened(value: Any, where: str = "") -> Image.Image:
    """The image of a row; animations give their first frame, photographs are turned as their EXIF says.

    Args:
        value: An image, or the path and bytes that a column of images holds.
        where: Which row it is, in words.

    Raises:
        ValueError: It cannot be read, or its pixels have no known range; the message names the file.
    """
    if isinstance(value, Image.Image):
        image = value
    else:
        try:
            image = _DECODER.decode_example(_content(value))
        except Exception as error:
            unknown = isinstance(error, UnidentifiedImageError)
            said = "it is no image of a known kind" if unknown else " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"`load_task(...)` cannot read the image {_name(value, where)}: {said or type(error).__name__}. "
                "Replace it, or leave the row out."
            ) from error
    if image.mode.startswith("I;16"):  # Pillow would cut all above 255 off: a white image
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in _DEEP:
        raise ValueError(
            f"`load_task(...)` cannot use the image {_name(value, where)}: its pixels are "
            f"{'32-bit integers' if image.mode == 'I' else 'fractions'}, and which of them is white is not known. "
            "Convert it to 8 or 16 bits."
        )
    return image


def _content(value: Any) -> Any:
    """The row's value with the bytes of its file: an animation that is opened by path stays open.

    Raises:
        ValueError: It names an address, which reading a row must not call on, or a pipe, which would never end.
    """
    path = str(value["path"]) if isinstance(value, dict) and value["bytes"] is None else ""
    if not path:
        return value
    if path.startswith(_ADDRESSES) and not path.startswith(datasets.config.HF_ENDPOINT):
        raise ValueError("it is an address, and nothing is downloaded for a row. Download it first")
    if "://" in path:
        return value  # a stream from the Hub
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("it is no file")
    return {"path": path, "bytes": Path(path).read_bytes()}


def located(rows: datasets.Dataset, column: str, folder: Path | None, split: str) -> datasets.Dataset:
    """A column of paths as one of images, each of which is there.

    Args:
        rows: The table; other columns are left out.
        column: Its paths: absolute ones, or those below `folder` or, if not there, below the working directory.
        folder: Where the table lies.
        split: Which one it is, in words.

    Raises:
        ValueError: A path leads out of the folder by `..`, is an address, or names no file.
    """
    places = [*([folder] if folder is not None else []), Path()]
    found = []
    for row, value in enumerate(rows[column]):
        who = f"`load_task(image_column={column!r})` holds {value!r} in row {row} of {split}"
        if "://" in value:
            raise ValueError(f"{who}: nothing is downloaded for a row. Download the images, and name the files.")
        if os.path.normpath(value).startswith(".."):
            raise ValueError(
                f"{who}, which leads out of the folder of the table. Write a path below it, or an absolute one."
            )
        there = next((place / value for place in places if _is_file(place / value)), None)
        if there is None:
            raise ValueError(
                f"{who}, and there is no such file below {' or '.join(repr(str(p.absolute())) for p in places)}. "
                "Correct it, or leave the row out."
            )
        found.append(str(there))
    return datasets.Dataset.from_dict({column: found}, features=datasets.Features({column: datasets.Image()}))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no name of a file at all
        return False


def _name(value: Any, where: str) -> str:
    """The file, and the row where it is known."""
    path, content = (value["path"], value["bytes"]) if isinstance(value, dict) else (None, None)
    parts = [repr(str(path))] if path else []
    if where:
        parts.append(f"({where})" if parts else f"of {where}")
    if not parts:
        size = 0 if content is None else len(content)
        parts.append(f"without a file name ({size:,} bytes that begin with {(content or b'')[:_SHOWN]!r})")
    return " ".join(parts)

"""``embedded/digits``: scikit-learn's scanned digits, split once and for all."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTImageProcessor

from .rows import Rows, fingerprint_of
from .task import Source

LABEL_NAMES = tuple("0123456789")
HELD_OUT_PER_CLASS = 25  # rows of each digit in validation, and in test

DESCRIPTION = (
    "1,797 handwritten digits scanned at 8x8 (the test part of UCI's Optical Recognition of Handwritten Digits, as "
    "scikit-learn ships it), split 1,297/250/250 with 25 rows of each digit in validation and in test. Small enough "
    "for a CPU; not MNIST, not a benchmark: the split is this package's own."
)


def digits_processor() -> ViTImageProcessor:
    """The image processor of ``embedded/digits``: 8x8, three equal channels, pixels from [0, 255] to [-1, 1].

    Three channels, because `pipeline("image-classification")` turns every image into RGB before the processor sees it.
    """
    return ViTImageProcessor(
        do_resize=True,
        size={"height": 8, "width": 8},
        do_convert_rgb=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def digits_source() -> Source:
    """Read the digits from scikit-learn's package folder; nothing is downloaded or written.

    The ink of a pixel, 0 to 16, becomes a grey value from 0 to 255 (white on black). Within each digit the rows are
    ordered by a hash of their pixels, and the first 25 go to test, the next 25 to validation, the rest to train: the
    split depends on the images alone, and equal images lie in the same split (but for the edge of two).
    """
    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in range(len(LABEL_NAMES)):
        ordered = sorted(np.flatnonzero(labels == label).tolist(), key=digests.__getitem__)
        rows["test"] += ordered[:HELD_OUT_PER_CLASS]
        rows["validation"] += ordered[HELD_OUT_PER_CLASS : 2 * HELD_OUT_PER_CLASS]
        rows["train"] += ordered[2 * HELD_OUT_PER_CLASS :]
    for chosen in rows.values():
        chosen.sort(key=digests.__getitem__)  # classes mixed

    image = datasets.Features({"image": datasets.Image()})
    splits = {
        split: Rows(
            datasets.Dataset.from_dict({"image": [Image.fromarray(pixels[i]) for i in chosen]}, features=image),
            labels[chosen].astype(np.int64),
        )
        for split, chosen in rows.items()
    }
    parts = [f"scikit-learn {version('scikit-learn')}"]
    for split, chosen in rows.items():
        parts += [split, *(f"{labels[i]} {digests[i]}" for i in chosen)]
    return Source(
        modality="image",
        splits=splits,
        columns=("image",),
        label_names=LABEL_NAMES,
        fingerprint=fingerprint_of(parts),
        description=DESCRIPTION,
        processor=digits_processor(),
    )

"""Handwritten digits: the 1,797 images of 8×8 pixels in scikit-learn, so nothing is downloaded.

Source: the test part of "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, E. Alpaydin and C. Kaynak, 1998.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from dmsflow.datasets import ArraySplit, Dataset, resize, statistics, takes_no_argument
from dmsflow.errors import DmsflowError
from dmsflow.settings import Data

RESOLUTION = 32  # as CIFAR, so that the same networks and presets fit
BRIGHTEST = 16  # pixels of the file are 0..16
TEST_EVERY = 5  # 1,437 training and 360 test images


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """One channel, 32×32 unless `data.resolution` says otherwise.

    The split is fixed and stratified without any random generator: of the images ordered by class,
    every fifth is a test image.
    """
    takes_no_argument(data, argument)
    table = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)  # [1797, 64 pixels and a label]
    labels = table[:, -1].astype(np.int64)
    resolution = data.resolution or RESOLUTION
    pixels = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / BRIGHTEST)).astype(np.uint8)
    pixels = resize(pixels, resolution)
    held_out = np.zeros(len(labels), bool)
    held_out[np.argsort(labels, kind="stable")[::TEST_EVERY]] = True
    train, test = (ArraySplit(pixels[part], labels[part]) for part in (~held_out, held_out))
    mean, std = statistics(train.pixels)
    padding = round(3 * resolution / RESOLUTION)
    return Dataset(data.name, tuple("0123456789"), train, test, mean, std, crop_padding=padding)


def _file() -> Path:
    """The bundled table; found without importing scikit-learn, which takes a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        what = "scikit-learn, which contains it, is not installed"
        raise DmsflowError("--dataset digits", what, 'pip install "dmsflow[train]"')
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise DmsflowError(path, "is missing", "pip install --force-reinstall scikit-learn")
    return path

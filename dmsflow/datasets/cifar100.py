"""CIFAR-100: 50,000 training and 10,000 test images of 32×32 pixels in 100 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from dmsflow.datasets import Dataset
from dmsflow.datasets._cifar import Files, load_cifar
from dmsflow.settings import Data

FILES = Files(
    archive="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    names="fine_label_names.txt",
    label_bytes=2,  # of the coarse class and of the fine one
    folder="cifar-100-python",
    pickles={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    keys=("fine_labels", "fine_label_names"),
)


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """Three channels; augmented as usual: padding of 4 pixels, random crop, flip."""
    return load_cifar(FILES, argument, data, download)

"""CIFAR-10: 50,000 training and 10,000 test images of 32×32 pixels in 10 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from dmsflow.datasets import Dataset
from dmsflow.datasets._cifar import Files, load_cifar
from dmsflow.settings import Data

FILES = Files(
    archive="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    names="batches.meta.txt",
    label_bytes=1,
    folder="cifar-10-batches-py",
    pickles={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
    keys=("labels", "label_names"),
)


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """Three channels; augmented as usual: padding of 4 pixels, random crop, flip."""
    return load_cifar(FILES, argument, data, download)

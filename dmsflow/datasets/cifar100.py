"""CIFAR-100: 50,000 training and 10,000 test images of 32×32 pixels in 100 classes.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from dmsflow.datasets import Dataset
from dmsflow.datasets._torchvision import load_cifar
from dmsflow.settings import Data


def load(argument: str | None, data: Data, download: bool) -> Dataset:
    """Three channels; augmented as usual: padding of 4 pixels, random crop, flip."""
    return load_cifar("CIFAR100", argument, data, download)

"""torchvision's readers, and importing torchvision beside any build of torch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dmsflow.datasets import ArraySplit, Dataset, data_folder, statistics, takes_no_argument
from dmsflow.errors import DmsflowError
from dmsflow.settings import Data

# The signature that torchvision declares for its non-maximum suppression.
NMS_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not load.

    A torchvision built for CUDA cannot load them beside a CPU-only torch, and then fails on import
    because it refers to two of them. The readers need no operator: declaring those two is enough.

    Raises:
        DmsflowError: it is not installed, or does not fit the installed torch.
    """
    try:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _declare_operators()
            return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        right = 'pip install "dmsflow[train]", or a torchvision made for the installed torch'
        raise DmsflowError("torchvision", f"cannot be imported ({error})", right) from error


@functools.cache  # the declarations live as long as this object does
def _declare_operators() -> Any:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + NMS_SIGNATURE)  # type: ignore[no-untyped-call]
    return library


def load_cifar(kind: str, argument: str | None, data: Data, download: bool) -> Dataset:
    """CIFAR as arrays, through torchvision's reader, which checks the MD5 of every file.

    Args:
        kind: torchvision's name of the class, "CIFAR10" or "CIFAR100".

    Raises:
        DmsflowError: the files are missing or damaged, or cannot be downloaded.
    """
    takes_no_argument(data, argument)
    reader = import_torchvision().datasets.__dict__[kind]
    folder = data_folder(data)
    train, classes = _read(reader, folder, data.name, download, train=True)
    test, _ = _read(reader, folder, data.name, download=False, train=False)  # the same archive brings both
    mean, std = statistics(train.pixels)
    return Dataset(data.name, classes, train, test, mean, std, crop_padding=4, flip=True)


def _read(reader: Any, folder: Path, name: str, download: bool, *, train: bool) -> tuple[ArraySplit, tuple[str, ...]]:
    files = folder / reader.base_folder
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the manifest's path
            read = reader(str(folder), train=train, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            right = f"check the connection, or put {name} there and leave out --download"
            raise DmsflowError(files, f"{name} cannot be downloaded ({error})", right) from error
        what = f"{name} is damaged or incomplete" if files.is_dir() else f"{name} is missing"
        right = "use search --download, or name its folder with --data-dir"
        raise DmsflowError(files, what, right) from error
    return ArraySplit(np.ascontiguousarray(read.data), np.array(read.targets, np.int64)), tuple(read.classes)

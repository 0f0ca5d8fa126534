"""Importing torchvision beside any build of torch."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

from dmsflow.errors import DmsflowError

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

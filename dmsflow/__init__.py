"""Width search for binary neural networks, from images to a measured 1-bit file."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmsflow.api import Benched, Exported, Result, Searched, Trained, bench, export, load, search, train, widths
    from dmsflow.datasets import Dataset
    from dmsflow.datasets.arrays import make_dataset
    from dmsflow.errors import BudgetMissed, DmsflowError
    from dmsflow.network import INPUT, Layer, Network
    from dmsflow.terminal import Progress

__version__ = "0.1.0"

# GNU's OpenMP reads it when torch is imported. Threads that are done spin until the last one is, by default 30 times as
# long: with one other program on two cores, the last one waits for a core, and a training of 6 s took minutes.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
__all__ = [
    "INPUT",
    "Benched",
    "BudgetMissed",
    "Dataset",
    "DmsflowError",
    "Exported",
    "Layer",
    "Network",
    "Progress",
    "Result",
    "Searched",
    "Trained",
    "bench",
    "export",
    "load",
    "make_dataset",
    "search",
    "train",
    "widths",
]
_HOMES = {
    "dmsflow.datasets": ("Dataset",),
    "dmsflow.datasets.arrays": ("make_dataset",),
    "dmsflow.errors": ("BudgetMissed", "DmsflowError"),
    "dmsflow.network": ("INPUT", "Layer", "Network"),
    "dmsflow.terminal": ("Progress",),
}


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use, so that the command line starts quickly."""
    if name not in __all__:
        raise AttributeError(f"module 'dmsflow' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "dmsflow.api")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Writers of model files: `lce` for Larq Compute Engine (.tflite), `onnx` for ONNX.

Each file has `write(form, path)`, `census(path)` and `layer_bytes(path)`, and names two of its ops.

`FLOAT_CONV` and `PACKED_CONV` are the names under which a census counts convolutions with float
weights and with 1-bit weights. Where a file can be written in several ways, `VARIANTS` names them, the
usual one first, `OPTION` the setting of the export that chooses, and `write` takes a `variant`. Where
its kernels handle channels in words and blocks, `GRANULARITY` (`profile.Granularity`) says how many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dmsflow.deploying.integer_graph import IntegerGraph


class Exporter(Protocol):
    """What a file of this folder offers."""

    FLOAT_CONV: str
    PACKED_CONV: str

    def write(self, form: IntegerGraph, path: Path) -> None:
        """Write a model file, whole or not at all: float32 pixels [1, H, W, C] in, logits [1, classes] out."""
        ...

    def census(self, path: Path) -> dict[str, int]:
        """Ops of a written file, and how often each stands in it."""
        ...

    def layer_bytes(self, path: Path) -> dict[str, int]:
        """Bytes that the constants of each op of the integer graph take in a written file."""
        ...

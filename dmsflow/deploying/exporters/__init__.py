"""Writers of model files: `lce` for Larq Compute Engine (.tflite), `onnx` for ONNX.

Each file turns an integer graph into a model file, and says what is in such a file.

A file of this folder, or a user's own, offers what `Exporter` lists. It may also have

- `REQUIRES`, the modules of extra packages that it needs: `("onnx",)`. `dmsflow doctor` names those that are
  missing. It must itself be importable without them;
- `CONVERTERS`, the values of `--converter` among which `write(graph, path, converter)` chooses, the usual
  one first;
- `GRANULARITY` (`profile.Granularity`), where its kernels handle channels in words and blocks;
- `write_float(network, widths, weights, mean, std, path)`, if it writes float32 networks too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dmsflow.deploying.integer_graph import IntegerGraph


class Exporter(Protocol):
    """What every exporter offers.

    Attributes:
        FLOAT_CONV, PACKED_CONV: what `count_ops` calls convolutions with float and with 1-bit weights.
    """

    FLOAT_CONV: str
    PACKED_CONV: str

    def write(self, graph: IntegerGraph, path: Path) -> None:
        """Write a model file, whole or not at all: float32 pixels [1, H, W, C] in, logits [1, classes] out."""
        ...

    def count_ops(self, path: Path) -> dict[str, int]:
        """Ops of a written file, and how often each occurs."""
        ...

    def layer_bytes(self, path: Path) -> dict[str, int]:
        """Bytes that the constants of each op of the integer graph take in a written file."""
        ...

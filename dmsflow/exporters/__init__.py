"""Exporters; each file has `write(form, path, variant)`, `census(path)` and `layer_bytes(path)`, and names two of its ops.

`FLOAT_CONV` and `PACKED_CONV` are the names under which a census counts convolutions with float
weights and with 1-bit weights. `VARIANTS` are the ways in which it can write, the usual one first,
and `OPTION` is the setting of the export that chooses among them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dmsflow.deploy import DeployForm


class Exporter(Protocol):
    """What a file of this folder offers."""

    FLOAT_CONV: str
    PACKED_CONV: str
    OPTION: str
    VARIANTS: tuple[str, ...]

    def write(self, form: DeployForm, path: Path, variant: str = ...) -> None:
        """Write a model file, whole or not at all: float32 pixels [1, H, W, C] in, logits [1, classes] out."""
        ...

    def census(self, path: Path) -> dict[str, int]:
        """Ops of a written file, and how often each stands in it."""
        ...

    def layer_bytes(self, path: Path) -> dict[str, int]:
        """Bytes that the constants of each op of the deploy form take in a written file."""
        ...

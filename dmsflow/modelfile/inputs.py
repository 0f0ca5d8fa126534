"""What the inputs of a model file are (type, quantisation, free lengths, batch), and values that they take.

Readers, runners and devices all ask here. Devices get this file, so it imports NumPy and the errors alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError

Shape = tuple[int | str | None, ...]  # a name or None stands for a length that the file leaves open

TAKEN = ("float32", "float16", "int8", "uint8")  # types of inputs that can be filled
MOST_ELEMENTS = 1 << 28  # of an input: 1 GiB of float32
LONGEST_NAME = 200
FIX_LENGTHS = {  # how to give a file fixed lengths
    ".tflite": "convert the network again with a fixed input size",
    ".onnx": "fix them: python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {name} --input_shape {shape} IN OUT",
}


@dataclass
class Port:
    """An input or output of a file, or what an op puts out.

    Attributes:
        dtype: "float32", "int8", …; "" where the file does not tell.
        shape: None where the file does not tell.
        scale, zero_point: of a quantised one, whose integer q stands for scale · (q - zero_point).
    """

    name: str
    dtype: str
    shape: Shape | None
    scale: float | None = None
    zero_point: int | None = None

    @property
    def free_batch(self) -> bool:
        """Whether the file leaves its first length open; `sizes` has 1 for it."""
        return bool(self.shape) and not isinstance((self.shape or (1,))[0], int)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a run; only for what `check_inputs` let pass."""
        return tuple(length if isinstance(length, int) else 1 for length in self.shape or ())

    def __str__(self) -> str:
        quantised = f"(scale {self.scale:g}, zero point {self.zero_point})" if self.scale else ""
        return " ".join(filter(None, (self.name, self.dtype, format_shape(self.shape), quantised)))


def plain(text: str | bytes) -> str:
    """A name that others chose, safe to print: one line, no control characters, no more than a line can hold."""
    if isinstance(text, bytes):  # as protobuf gives back a name that is no UTF-8
        text = text.decode("utf-8", "replace")
    if len(text) <= LONGEST_NAME and text.isprintable():
        return text
    shown = "".join(character if character.isprintable() else "�" for character in text[: LONGEST_NAME + 1])
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


def format_shape(shape: Shape | None) -> str | None:
    """`1×32×32×3`; a length that the file leaves open is its name or a question mark."""
    if shape is None:
        return None
    return "×".join("?" if length is None else str(length) for length in shape) or "a number"


def check_inputs(path: Path, inputs: Sequence[Port], outputs: int) -> tuple[Port, ...]:
    """The inputs of a file, once it is known that values can be made for them.

    Raises:
        DmsflowError: there are none or no outputs, or one is of a type or shape that cannot be filled.
    """
    if not inputs or not outputs:
        what = f"has {len(inputs)} inputs and {outputs} outputs"
        raise DmsflowError(path, what, "give a network that computes something from its input")
    for port in inputs:
        if port.dtype not in TAKEN:
            what = f"has the input {port}"
            raise DmsflowError(path, what, f"give a file whose inputs are {', '.join(TAKEN[:-1])} or {TAKEN[-1]}")
        if port.shape is None or not all(isinstance(length, int) for length in port.shape[1:]):
            shape = ",".join(map(str, (*port.sizes[:1], *(port.shape or ("",))[1:]))).replace("None", "LENGTH")
            right = FIX_LENGTHS.get(path.suffix, "give a file of fixed lengths").format(name=port.name, shape=shape)
            raise DmsflowError(path, f"leaves more than the batch of its input open ({port})", right)
        if not 0 < math.prod(port.sizes) <= MOST_ELEMENTS or min(port.sizes, default=1) < 1:
            raise DmsflowError(path, f"has the input {port}", f"give one of 1 to {MOST_ELEMENTS:,} numbers")
    return tuple(inputs)


def inputs_of(session: Any) -> tuple[Port, ...]:
    """The inputs of a loaded file; a session that has only `input_shape` takes one float32 input of that shape."""
    named: tuple[Port, ...] | None = getattr(session, "inputs", None)
    return named or (Port("input", "float32", tuple(session.input_shape)),)


def images_per_run(inputs: Sequence[Port]) -> int:
    """The batch of a file that takes images, whose first input has four lengths; 1 of any other."""
    return inputs[0].sizes[0] if inputs and len(inputs[0].sizes) == 4 else 1


def draw_values(port: Port, random: np.random.Generator) -> NDArray[Any]:
    """Random numbers for an input: of floats whole ones from 0 to 255, as pixels are, of integers all that the type has."""
    drawn = random.integers(0, 256, port.sizes, np.uint8)
    return drawn.view(np.int8) if port.dtype == "int8" else drawn.astype(port.dtype)


def from_pixels(port: Port, pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels 0..255 as an input holds them: by its scale and zero point, rounded as TFLite rounds, clipped to its type."""
    if port.dtype not in ("int8", "uint8"):
        return np.asarray(pixels, port.dtype)
    limits = np.iinfo(port.dtype)
    steps = np.floor(np.asarray(pixels, np.float64) / (port.scale or 1.0) + 0.5) + (port.zero_point or 0)
    values: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(port.dtype)
    return values

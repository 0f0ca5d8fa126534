"""What the readers of all formats put out: the nodes of a file, and its tensors, called by number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.modelfile.inputs import Port, Shape

Values = Callable[[], "NDArray[np.generic] | None"]

BITS = "int32 of bits"  # the type of a tensor that holds 32 channels in each of its numbers


@dataclass
class Tensor(Port):
    """One tensor; a constant is one with `values`. Its type may also be BITS.

    Attributes:
        stored_bytes: of a constant, in the file.
        values: of a constant, read when called; it gives None where NumPy has no such type.
    """

    stored_bytes: int = 0
    values: Values | None = None

    @property
    def port(self) -> Port:
        return Port(self.name, self.dtype, self.shape, self.scale, self.zero_point)


@dataclass(frozen=True)
class Weights:
    """Where an op has its weights.

    Attributes:
        tensor: its number.
        axis: of the output channels.
        convolves: whether the op is a convolution; else it is a matrix product.
        bits: of each weight, where the op says it and the type of the tensor does not.
    """

    tensor: int
    axis: int
    convolves: bool
    bits: int | None = None


@dataclass
class Node:
    """One op.

    Attributes:
        part: the subgraph it stands in.
        inputs, outputs: numbers of tensors; absent ones are left out.
        computes_constants: with nothing but constants to read, it makes another constant as the file is loaded.
        unpacks: such an op takes several numbers out of one.
        looks_up: such an op takes rows of its first input, as its second says.
        keeps_values: such an op changes no more than the type or the scale.
        signs: such an op puts out the signs of its first input, scaled by the others if it has some.
        scales: such an op on signs puts out scaled ones, if what they are scaled by is one number a channel.
        channels_in, channels_out: None where the file does not tell.
        known: whether the reader knows what such an op does.
    """

    op: str
    name: str
    part: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: Weights | None = None
    computes_constants: bool = False
    unpacks: bool = False
    looks_up: bool = False
    keeps_values: bool = False
    signs: bool = False
    scales: bool = False
    channels_in: int | None = None
    channels_out: int | None = None
    known: bool = True


@dataclass
class Graph:
    """A whole file.

    Attributes:
        about: what else it says of itself, as labels and values, some of them empty.
        beside: bytes of the other files that hold constants of this one.
        inputs, outputs: numbers of tensors.
        nodes: of all subgraphs, in the order of the file.
    """

    format: str
    about: dict[str, str]
    beside: int = 0
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def elements(shape: Shape | None) -> int | None:
    """How many numbers a tensor of that shape has; None where a length is open."""
    lengths = [length for length in shape or () if isinstance(length, int)]
    return None if shape is None or len(lengths) < len(shape) else math.prod(lengths)


def whole(length: int | str | None) -> int | None:
    """A length of a shape as a number; None where it is open."""
    return length if isinstance(length, int) else None


def bits_of(dtype: str) -> int | None:
    """Bits of one number of a type: the number in its name."""
    digits = re.findall(r"\d+", dtype)
    return {"bool": 8, BITS: 1}.get(dtype) or (int(digits[0]) if digits else None)


def stored_size(dtype: str, shape: Shape | None) -> int | None:
    """Bytes that a constant of that type and shape takes; None where that is not fixed."""
    count, bits = elements(shape), bits_of(dtype)
    return None if count is None or bits is None else -(-count * bits // 8)


def numpy_type(dtype: str) -> np.dtype[Any] | None:
    """The type of a constant's numbers in the file; None where NumPy has none such."""
    try:
        return None if dtype.startswith("complex") else np.dtype(dtype).newbyteorder("<")
    except TypeError:
        return None

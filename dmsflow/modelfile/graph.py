"""What the readers of all formats put out: the nodes of a file, and its tensors, called by number."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int | str | None, ...]  # a name or None stands for a length that the file leaves open
Values = Callable[[], "NDArray[np.generic] | None"]

LONGEST_NAME = 200
BITS = "int32 of bits"  # the type of a tensor that holds 32 channels in each of its numbers


@dataclass
class Tensor:
    """One tensor; a constant is one with `values`.

    Attributes:
        dtype: "float32", "int8", "uint4", … or BITS; "" where the file does not tell.
        shape: None where the file does not tell.
        stored_bytes: of a constant, in the file.
        values: of a constant, read when called; it gives None where NumPy has no such type.
    """

    name: str
    dtype: str = ""
    shape: Shape | None = None
    stored_bytes: int = 0
    values: Values | None = None


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
        signs: such an op puts out signs.
        scales: such an op on signs puts out scaled ones, if what they are scaled by is one number a channel.
        channels_in, channels_out: None where the file does not tell.
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


@dataclass
class Graph:
    """A whole file.

    Attributes:
        about: what else it says of itself, as labels and values.
        inputs, outputs: numbers of tensors.
        nodes: of all subgraphs, in the order of the file.
    """

    format: str
    about: dict[str, str]
    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)


def plain(text: str | bytes) -> str:
    """A name that others chose, safe to print: one line, no control characters, no more than a line can hold."""
    if isinstance(text, bytes):  # as protobuf gives back a name that is no UTF-8
        text = text.decode("utf-8", "replace")
    if len(text) <= LONGEST_NAME and text.isprintable():
        return text
    shown = "".join(character if character.isprintable() else "�" for character in text[: LONGEST_NAME + 1])
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


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

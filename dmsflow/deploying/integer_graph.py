"""The integer graph: a trained network as signs, integer thresholds and a few float constants.

`folding` makes it. Every exporter walks the same short tuple of ops, and `run` computes it in NumPy:
what a written file must reproduce.

Tensors are NHWC and of two kinds: bits (1: the activation is on, i.e. its x exceeds alpha / 2) and
float32. A binary convolution counts in integers, `sum = Σ_on sign`, and puts out either bits
(`sum >= threshold`, batch norm and quantiser folded into one integer per channel) or floats (one
multiply and one add per channel, in the order of Larq Compute Engine's kernels). The stem's
weights are whole numbers so small that its sums are exact in float32, whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmsflow.network.network import INPUT

EXACT = 2**24 - 4  # up to here, and a little beyond, float32 holds every whole number

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One step. `name` is the layer's, and names the tensor it puts out; `inputs` are such names."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stem(Op):
    """Convolution of `pixel - mean` with zero padding, in float32 and yet exact.

    The weights are whole numbers, and |sum|, as well as |threshold| + |sum|, is at most EXACT + 2
    for any pixels and however far a sum has got. Puts out bits, `sum >= threshold`, or, without
    thresholds, the sums themselves.
    """

    weight: Float32  # [C_out, k, k, C_in], whole numbers
    mean: Float32  # [C_in]
    stride: int
    padding: int
    thresholds: Int32 | None = None  # [C_out]


@dataclass(frozen=True, kw_only=True, eq=False)
class BinaryConv(Op):
    """Convolution of bits (padded with 0) with ±1, in integers: `sum = Σ_on sign`.

    Puts out bits, `sum >= threshold`, or floats. With `disagreements = sum + negatives`, in 0..K for
    K weights, these are `float32(2 disagreements) * multiplier + offset`, each operation rounded.
    """

    signs: NDArray[np.int8]  # [C_out, k, k, C_in], ±1
    stride: int
    padding: int
    thresholds: Int32 | None = None  # [C_out]
    multiplier: Float32 | None = None  # [C_out]
    bias: Float32 | None = None  # [C_out]: what is added at 2 disagreements = K

    @property
    def count(self) -> int:
        """K: weights of one output channel."""
        return int(self.signs[0].size)

    @property
    def negatives(self) -> Int32:
        """[C_out]: weights of each output channel that are -1."""
        negatives: Int32 = np.count_nonzero(self.signs < 0, axis=(1, 2, 3)).astype(np.int32)
        return negatives

    @property
    def offset(self) -> Float32:
        """[C_out]: bias - K multiplier, in float64 and then rounded, as LCE does when it loads a file."""
        assert self.bias is not None and self.multiplier is not None
        return (self.bias.astype(np.float64) - self.count * self.multiplier.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Op):
    """Maximum over a window, of floats or of bits (their OR); padding never wins."""

    kernel: int
    stride: int
    padding: int
    binary: bool  # of bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Op):
    """float32: `x * multiplier + bias` per channel, each operation rounded."""

    multiplier: Float32  # [C]
    bias: Float32  # [C]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantize(Op):
    """Bits of floats: `x > threshold`, with threshold = alpha / 2."""

    threshold: np.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Relu(Op):
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool(Op):
    """Mean over the whole image: [H, W, C] -> [1, 1, C]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Op):
    weight: Float32  # [C_out, C_in]
    bias: Float32  # [C_out]


GraphOp: TypeAlias = Stem | BinaryConv | MaxPool | Scale | Quantize | Add | Relu | AveragePool | Dense


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegerGraph:
    """The ops in the order they are computed; the last one gives the logits.

    Attributes:
        name: the network's.
        channels, resolution: of the image, uint8 or float32 pixels 0..255.
        classes: number of logits.
    """

    name: str
    channels: int
    resolution: int
    classes: int
    ops: tuple[GraphOp, ...]

    def consumers(self, name: str) -> list[GraphOp]:
        return [op for op in self.ops if name in op.inputs]

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Height, width and channels of the image and of the tensor of each op."""
        shapes = {INPUT: (self.resolution, self.resolution, self.channels)}
        for op in self.ops:
            shapes[op.name] = _shape(op, shapes[op.inputs[0]])
        return shapes


def _shape(op: GraphOp, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    size, _, channels = shape
    kernel = 1
    if isinstance(op, Stem):
        channels, kernel = op.weight.shape[:2]
    elif isinstance(op, BinaryConv):
        channels, kernel = op.signs.shape[:2]
    elif isinstance(op, MaxPool):
        kernel = op.kernel
    elif isinstance(op, AveragePool):
        size = 1
    elif isinstance(op, Dense):
        channels = op.weight.shape[0]
    if isinstance(op, (Stem, BinaryConv, MaxPool)):
        size = (size + 2 * op.padding - kernel) // op.stride + 1
    return size, size, channels


# --- the reference ----------------------------------------------------------------------------

CHUNK = 2**23  # values of the largest tensor that are computed at a time


def run(form: IntegerGraph, images: NDArray[Any]) -> Float32:
    """Logits [N, classes] of images [N, H, W, C] with pixels 0..255: what a file must give."""
    size = max(1, CHUNK // max(height * width * channels for height, width, channels in form.shapes().values()))
    parts = [_run(form, images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate(parts) if parts else np.zeros((0, form.classes), np.float32)


def _run(form: IntegerGraph, images: NDArray[Any]) -> Float32:
    tensors = {INPUT: images.astype(np.float32)}
    for op in form.ops:
        tensors[op.name] = _compute(op, *(tensors[name] for name in op.inputs))
    return tensors[form.ops[-1].name].reshape(len(images), form.classes)


def _compute(op: GraphOp, x: Any, *others: Any) -> Any:
    """Bits (bool) or float32, [N, H, W, C]."""
    match op:
        case Stem():
            sums = _convolve(x - op.mean, op.weight, op.stride, op.padding)
            return sums if op.thresholds is None else sums >= op.thresholds
        case BinaryConv():
            sums = _convolve(x.astype(np.float32), op.signs.astype(np.float32), op.stride, op.padding)
            if op.thresholds is not None:
                return sums >= op.thresholds
            disagreements = sums + op.negatives.astype(np.float32)
            return 2 * disagreements * op.multiplier + op.offset
        case MaxPool():
            return np.maximum.reduce(
                [part for _, part in _taps(x, op.kernel, op.stride, op.padding, False if op.binary else -np.inf)]
            )
        case Scale():
            return x * op.multiplier + op.bias
        case Quantize():
            return x > op.threshold
        case Add():
            return x + others[0]
        case Relu():
            return np.maximum(x, np.float32(0))
        case AveragePool():
            return x.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
        case Dense():
            return (x.astype(np.float64) @ op.weight.T + op.bias).astype(np.float32)


def _convolve(x: Float32, weight: Float32, stride: int, padding: int) -> Any:
    """Sums of whole numbers below 2^24, so exact: [N, H, W, C_in] * [C_out, k, k, C_in] -> [N, H', W', C_out]."""
    outputs, kernel = weight.shape[:2]
    weight = np.ascontiguousarray(weight)  # with other strides NumPy multiplies without BLAS, fifty times slower
    total: Any = 0
    for (row, column), part in _taps(x, kernel, stride, padding, 0):
        shape = (*part.shape[:3], outputs)
        total = total + (part.reshape(-1, part.shape[3]) @ weight[:, row, column].T).reshape(shape)
    return total


def _taps(
    x: NDArray[Any], kernel: int, stride: int, padding: int, fill: Any
) -> Iterator[tuple[tuple[int, int], NDArray[Any]]]:
    """For each position in the window, what it sees: [N, H', W', C]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    height, width = ((size - kernel) // stride * stride + 1 for size in x.shape[1:3])
    for row in range(kernel):
        for column in range(kernel):
            yield (row, column), x[:, row : row + height : stride, column : column + width : stride]


# --- what it weighs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """Parameters of one op: signs at 8 to the byte, and everything else (float32, int32)."""

    name: str
    op: str
    binary_bytes: int
    float_bytes: int


def account(form: IntegerGraph) -> list[Bytes]:
    """Bytes of each op that has parameters, in order."""
    rows = []
    for op in form.ops:
        arrays = [array for array in vars(op).values() if isinstance(array, (np.ndarray, np.generic))]
        binary = sum(-(-array.size // 8) for array in arrays if array.dtype == np.int8)
        floats = sum(array.nbytes for array in arrays if array.dtype != np.int8)
        if arrays:
            rows.append(Bytes(name=op.name, op=type(op).__name__, binary_bytes=binary, float_bytes=floats))
    return rows

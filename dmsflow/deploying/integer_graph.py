"""The integer graph: a trained network as signs, integer thresholds and a few float constants.

`folding` makes it. Every exporter walks the same short tuple of ops, and `compute_logits` computes it in
NumPy: what a written file must reproduce.

Tensors are NHWC and of two kinds: bits (1: the activation is on, i.e. its x exceeds alpha / 2, or the
shift of a sign, whose off is -1) and float32. A binary convolution counts in integers, `sum = Σ_on sign`, and puts out either bits
(`sum >= threshold`, batch norm and quantiser folded into one integer per channel) or floats (one
multiply and one add per channel, in the order of Larq Compute Engine's kernels). The stem's
weights are whole numbers so small that its sums are exact in float32, whatever their order.

So every runtime gives these the same bits. A sum of floats has no such order: from the first one on,
`compute_with_margins` computes in float64, with a bound on how far float32 may be off. A tensor is float64
if and only if it is off at all.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dmsflow.network.network import INPUT

CHUNK = 2**23  # values of the largest tensor that are computed at a time
LARGEST_SUM = 2**24 - 4  # up to here, and a little beyond, float32 holds every whole number
UNIT = 2.0**-24  # largest relative error of one rounding to float32
CURVE_ROUNDINGS = 8  # of a sigmoid: its largest error in any runtime, in UNIT

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


class Op(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One step. `name` is the layer's name and the name of its output; `inputs` are such names."""

    name: str
    inputs: tuple[str, ...]


class Conv(Op, frozen=True, kw_only=True, eq=False):
    """The common part of convolutions: they write bits, `sum >= threshold`, or floats if there are no thresholds."""

    weight: NDArray[Any]  # [C_out, k, k, C_in], whole numbers but in a FloatConv
    stride: int
    padding: int
    thresholds: Int32 | None = None  # [C_out]

    @property
    def kernel(self) -> int:
        return int(self.weight.shape[1])

    @property
    def pads_same(self) -> bool:
        """Whether TFLite's SAME pads as this does: at stride 2 it pads an even image on one side only."""
        return self.stride == 1 and 2 * self.padding == self.kernel - 1


class Stem(Conv, frozen=True, kw_only=True, eq=False):
    """Convolution of `pixel - mean` with zero padding, in float32 and yet exact.

    The weights are float32, or int8 (then the mean is one for all channels, and pixels may be uint8), and |sum|, as well as |threshold| + |sum|, is at most LARGEST_SUM + 2
    for any pixels and however far a sum has got. Without thresholds it puts out the sums themselves.
    """

    mean: Float32  # [C_in]

    @property
    def counts_in_int8(self) -> bool:
        """Whether int8 weights by uint8 pixels become bits, without a float between."""
        return self.thresholds is not None and self.weight.dtype == np.int8


class BinaryConv(Conv, frozen=True, kw_only=True, eq=False):
    """Convolution of bits (padded with 0) with ±1 (int8), in integers: `sum = Σ_on sign`.

    One filter + - + over three channels, with the threshold 1: the bits 1 0 1 sum to 2, and 1 1 0 to 0.

    >>> signs, thresholds = np.array([[[[1, -1, 1]]]], np.int8), np.array([1], np.int32)
    >>> conv = BinaryConv(name="conv", inputs=("bits",), weight=signs, stride=1, padding=0, thresholds=thresholds)
    >>> [compute_op(conv, np.array([[[bits]]], np.bool_)).item() for bits in ((1, 0, 1), (1, 1, 0))]
    [True, False]

    Without thresholds it puts out floats. With `disagreements = sum + negatives`, in 0..K for K weights,
    these are `float32(2 disagreements) * multiplier + offset`, each operation rounded. If it rectifies, 2 disagreements
    count as K at most: a ReLU, of ±1.
    """

    multiplier: Float32 | None = None  # [C_out]
    bias: Float32 | None = None  # [C_out]: what is added at 2 disagreements = K
    rectifies: bool = False

    @property
    def count(self) -> int:
        """K: weights of one output channel."""
        return int(self.weight[0].size)

    @property
    def negatives(self) -> Int32:
        """[C_out]: weights of each output channel that are -1."""
        return np.asarray((self.weight < 0).sum((1, 2, 3)), np.int32)

    @property
    def offset(self) -> Float32:
        """[C_out]: bias - K multiplier, in float64 and then rounded, as LCE does when it loads a file."""
        assert self.bias is not None and self.multiplier is not None
        return (self.bias.astype(np.float64) - self.count * self.multiplier.astype(np.float64)).astype(np.float32)


class FloatConv(Conv, frozen=True, kw_only=True, eq=False):
    """Convolution of floats with zero padding, in float32; a runtime adds in any order. No thresholds.

    The weights are [C_out, k, k, C_in / groups]: each group of filters reads one of channels.
    """

    bias: Float32  # [C_out]


class DepthwiseConv(FloatConv, frozen=True, kw_only=True, eq=False):
    """The same with one filter for each channel: its weights are [C, k, k, 1]."""


class MaxPool(Op, frozen=True, kw_only=True, eq=False):
    """Maximum over a window, of floats or of bits (their OR); padding never wins."""

    kernel: int
    stride: int
    padding: int
    binary: bool  # of bits


class Scale(Op, frozen=True, kw_only=True, eq=False):
    """float32: `x * multiplier + bias` per channel, each operation rounded."""

    multiplier: Float32  # [C]
    bias: Float32  # [C]


class Quantize(Op, frozen=True, kw_only=True, eq=False):
    """Bits of floats: `x > threshold`, with threshold = alpha / 2, or one for each channel."""

    threshold: np.float32 | Float32  # [] or [C]


class Add(Op, frozen=True, kw_only=True, eq=False):
    """Sum of two tensors of floats."""


class Concat(Op, frozen=True, kw_only=True, eq=False):
    """Channels of several tensors of floats, one behind the other."""


class Multiply(Op, frozen=True, kw_only=True, eq=False):
    """Product of two tensors of floats of one shape, or [H, W, C] by [1, 1, C]."""


class Sigmoid(Op, frozen=True, kw_only=True, eq=False):
    """Of floats: 1 / (1 + exp(-x)), which every runtime rounds differently."""


class HardSigmoid(Op, frozen=True, kw_only=True, eq=False):
    """Of floats: min(max(x + 3, 0), 6) / 6, which every runtime rounds differently."""


class Relu(Op, frozen=True, kw_only=True, eq=False):
    """Of floats: max(x, 0)."""


class Relu6(Relu, frozen=True, kw_only=True, eq=False):
    """Of floats: min(max(x, 0), 6)."""


class PRelu(Op, frozen=True, kw_only=True, eq=False):
    """float32, per channel: with d = x - before, (d, or slope d if it is below 0) + after, each operation rounded."""

    slope: Float32  # [C]
    before: Float32  # [C]
    after: Float32  # [C]


class AveragePool(Op, frozen=True, kw_only=True, eq=False):
    """Mean over the whole image, [H, W, C] -> [1, 1, C], or over each window."""

    kernel: int = 0  # 0: the whole image
    stride: int = 1
    padding: int = 0  # always


class Dense(Op, frozen=True, kw_only=True, eq=False):
    weight: NDArray[Any]  # [C_out, C_in], float32, or int8 in steps of `scale`
    bias: Float32  # [C_out]
    scale: float = 1.0  # a float32

    @property
    def float_weight(self) -> Float32:
        """The weights as a runtime has them."""
        return np.asarray(self.weight.astype(np.float32) * np.float32(self.scale))


GraphOp: TypeAlias = (
    Stem
    | BinaryConv
    | FloatConv
    | MaxPool
    | Scale
    | Quantize
    | Add
    | Concat
    | Multiply
    | Sigmoid
    | HardSigmoid
    | Relu
    | PRelu
    | AveragePool
    | Dense
)


class IntegerGraph(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The ops in the order they are computed; the last one gives the logits.

    Attributes:
        name: the network's.
        channels, resolution: of the image.
        pixels: their type in a file, "float32" or "uint8", 0..255.
        classes: number of logits.
    """

    name: str
    channels: int
    resolution: int
    classes: int
    ops: tuple[GraphOp, ...]
    pixels: str = "float32"

    def consumers(self, name: str) -> list[GraphOp]:
        return [op for op in self.ops if name in op.inputs]

    def feeds_max_pool(self, op: Op) -> bool:
        """Whether a max pool reads `op`, so that exporters write its bits as their opposites."""
        return any(isinstance(reader, MaxPool) for reader in self.consumers(op.name))

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Height, width and channels of the image and of the tensor of each op."""
        shapes = {INPUT: (self.resolution, self.resolution, self.channels)}
        for op in self.ops:
            size, _, channels = shapes[op.inputs[0]]
            if isinstance(op, AveragePool) and not op.kernel:
                size = 1
            elif isinstance(op, Conv | MaxPool | AveragePool):
                size = (size + 2 * op.padding - op.kernel) // op.stride + 1
            if isinstance(op, Concat):
                channels = sum(shapes[name][2] for name in op.inputs)
            channels = len(op.weight) if isinstance(op, Conv | Dense) else channels
            shapes[op.name] = size, size, channels
        return shapes


def compute_logits(graph: IntegerGraph, images: NDArray[Any]) -> Float32:
    """Logits [N, classes] of images [N, H, W, C] with pixels 0..255: what a file must give."""
    return compute_with_margins(graph, images)[0].astype(np.float32)


def compute_with_margins(graph: IntegerGraph, images: NDArray[Any]) -> tuple[Float64, Float64]:
    """Logits as those of `compute_logits`, before they are rounded, and the margin [N] of each image.

    The margin is the least |x - threshold| / bound of all binarised values x that depend on a sum of floats: below
    1, rounding may decide a bit. It is infinite where no bit depends on one.
    """
    size = max(1, CHUNK // max(map(math.prod, graph.shapes().values())))
    logits, margins = [np.zeros((0, graph.classes))], [np.zeros(0)]
    for start in range(0, len(images), size):
        tensors: dict[str, Any] = {INPUT: images[start : start + size].astype(np.float32)}
        errors: dict[str, Any] = {INPUT: 0.0}
        margin = np.full(len(tensors[INPUT]), np.inf)
        for op in graph.ops:
            inputs, off = ([each[name] for name in op.inputs] for each in (tensors, errors))
            tensors[op.name] = compute_op(op, *inputs)
            errors[op.name] = _bound_error(op, tensors[op.name], inputs, off)
            if isinstance(op, Quantize) and np.ndim(off[0]):
                distance = np.full(off[0].shape, np.inf)
                np.divide(abs(inputs[0] - op.threshold), off[0], out=distance, where=off[0] > 0)
                margin = np.minimum(margin, distance.min((1, 2, 3)))
        logits.append(tensors[graph.ops[-1].name].reshape(-1, graph.classes).astype(np.float64))
        margins.append(margin)
    return np.concatenate(logits), np.concatenate(margins)


def _bound_error(op: GraphOp, y: Any, inputs: list[Any], errors: list[Any]) -> Any:
    """How far float32 may be from `y`, which an op computes of `inputs` that are off by `errors`; 0.0: not at all."""
    if y.dtype != np.float64 or isinstance(op, Dense):  # the dense layer's outputs are compared as they are
        return 0.0
    match op:
        case FloatConv():  # of magnitudes
            op = replace(op, weight=abs(op.weight), bias=UNIT * abs(op.bias))
            return compute_op(op, errors[0] + _bound_sum(op.weight[0].size) * abs(inputs[0])) + UNIT * abs(y)
        case AveragePool():
            count = op.kernel**2 or inputs[0][0, ..., 0].size
            return compute_op(op, errors[0] + _bound_sum(count) * abs(inputs[0])) + UNIT * abs(y)
        case Scale():
            return abs(op.multiplier) * (errors[0] + UNIT * abs(inputs[0])) + UNIT * abs(y)
        case PRelu():
            steepest = np.maximum(1, abs(op.slope))
            return steepest * (errors[0] + 2 * UNIT * abs(inputs[0] - op.before)) + UNIT * abs(y)
        case MaxPool():
            return compute_op(op, errors[0])
        case Add():
            return sum(errors) + UNIT * abs(y)
        case Concat():
            return np.concatenate([np.broadcast_to(off, x.shape) for x, off in zip(inputs, errors, strict=True)], -1)
        case Multiply():
            off, others = errors
            return abs(inputs[0]) * others + abs(inputs[1]) * off + off * others + UNIT * abs(y)
        case Sigmoid() | HardSigmoid():  # their slopes are 1/4 and 1/6 at most
            return np.broadcast_to(errors[0] / 4 + CURVE_ROUNDINGS * UNIT, y.shape)
    return errors[0]


def _bound_sum(count: int) -> float:
    """Largest error of a sum of so many products in float32, relative to the sum of their magnitudes.

    Never more than `count` roundings in the worst case; 4 √count but for one sum in 1,500, if roundings are
    independent (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4): in any order, fused or not. Two more
    are for a runtime that multiplies a factor, or adds a constant, to the weights or the bias instead.
    """
    return UNIT * (2 + min(count, 4 * math.sqrt(count)))


def compute_op(op: GraphOp, x: Any, *others: Any) -> Any:
    """What an op puts out, [N, H, W, C]: bits (bool), float32, or float64 if it is a sum of floats or reads one."""
    match op:
        case FloatConv():
            return _convolve(x, op, np.float64) + op.bias
        case Conv():
            sums = _convolve(x - op.mean if isinstance(op, Stem) else x, op)
            if op.thresholds is not None:
                return sums >= op.thresholds
            if isinstance(op, Stem):
                return sums
            counts = 2 * (sums + op.negatives.astype(np.float32))
            return (np.minimum(counts, op.count) if op.rectifies else counts) * op.multiplier + op.offset
        case MaxPool():
            return _windows(x, op, False if op.binary else -np.inf).max((4, 5))
        case Scale():
            return x * op.multiplier + op.bias
        case Quantize():
            return x > op.threshold
        case Add():
            return x + others[0]
        case Concat():
            return np.concatenate([x, *others], -1)
        case Relu6():
            return np.clip(x, np.float32(0), np.float32(6))
        case Multiply():
            return x * others[0]
        case Sigmoid():
            return np.exp(-np.logaddexp(0, -x.astype(np.float64)))
        case HardSigmoid():
            return np.clip(x.astype(np.float64) + 3, 0, 6) / 6
        case Relu():
            return np.maximum(x, np.float32(0))
        case AveragePool() if op.kernel:
            return _windows(x, op, 0).mean((4, 5), dtype=np.float64)
        case PRelu():
            below = x - op.before
            return np.where(below < 0, below * op.slope, below) + op.after
        case AveragePool():
            return x if x[0, ..., 0].size == 1 else x.mean((1, 2), keepdims=True, dtype=np.float64)
        case Dense():
            return x.astype(np.float64) @ op.float_weight.T + op.bias


def _convolve(x: NDArray[Any], conv: Conv, dtype: Any = np.float32) -> Any:
    """[N, H, W, C_in] -> [N, H', W', C_out]; sums of whole numbers are below 2^24, so float32 is exact."""
    weight = np.ascontiguousarray(conv.weight, dtype)  # with other strides NumPy takes fifty times as long
    windows, total, groups = _windows(x.astype(dtype), conv, 0), dtype(0), x.shape[3] // weight.shape[3]
    for row, column in np.ndindex(conv.kernel, conv.kernel):
        pixels, tap = windows[..., row, column].reshape(-1, windows.shape[3]), weight[:, row, column]
        if isinstance(conv, DepthwiseConv):
            total = total + pixels * tap.T
        else:
            parts = zip(np.split(pixels, groups, 1), np.split(tap, groups), strict=True)
            total = total + np.concatenate([part @ filters.T for part, filters in parts], 1)
    return total.reshape(*windows.shape[:3], -1)


def _windows(x: Any, op: Conv | MaxPool | AveragePool, fill: float) -> Any:
    """What each window reads: [N, H', W', C, k, k]."""
    around = op.padding, op.padding
    x = np.pad(x, ((0, 0), around, around, (0, 0)), constant_values=fill)
    view: Any = sliding_window_view  # NumPy's own stub lets it have one axis only
    return view(x, (op.kernel, op.kernel), (1, 2))[:, :: op.stride, :: op.stride]

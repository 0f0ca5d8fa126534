"""The mixed form of a binary network in ONNX: integers as far as they go, float32 behind them, all of it exact.

- Bits are uint8 0 and 1. A convolution that puts out bits is one QLinearConv on weights of ±1: its
  bias puts the threshold at one half of an output step, and every sum lies so near to it that the
  rounded output is 0 or 1 (`_bits_of`). No product of uint8 0 or 1 and int8 ±1 saturates the 16 bits
  in which processors without VNNI add pairs.
- A convolution that puts out floats counts in integers too. Up to 255 weights, the count is itself
  the uint8 output of a QLinearConv; beyond that, Gather lays out what each window sees, and one
  MatMulInteger counts: ConvInteger is several times slower in onnxruntime. What follows,
  `float32(count) * 2 multiplier + offset`, is what the integer graph computes: to double a float is exact.
- Only the stem is a float convolution: its sums are whole numbers that float32 holds.

Floats are channels-last, [1, H, W, C], which is how MatMulInteger wants and leaves them. QLinearConv
and MaxPool are channels-first in ONNX; onnxruntime runs them channels-last too and drops the Transpose
nodes between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dmsflow.deploying import integer_graph
from dmsflow.deploying.exporters._onnx_graph import Graph, channels_first, window_of
from dmsflow.errors import DmsflowError

UINT8_MAX = 255
# Weights of one output channel, beyond which float32, in which runtimes scale sums, does not tell all sums apart.
MOST_WEIGHTS = 2**20


@dataclass(frozen=True)
class Tensor:
    """A tensor of the integer graph as one of the graph."""

    name: str
    last: bool  # channels-last, or channels-first
    type: type[np.generic]  # np.uint8 or np.float32


class Mixed:
    """Writes each op of a integer graph into a graph."""

    def __init__(self, form: integer_graph.IntegerGraph) -> None:
        self.graph = Graph()
        self.shapes = form.shapes()
        self.tensors: dict[str, list[Tensor]] = {}  # each in all the ways it was made
        for op in form.ops:
            self.tensors[op.name] = [_WRITE[type(op)](self, op)]

    def get(self, name: str, *, last: bool, dtype: type[np.generic] | None = None) -> str:
        """The tensor of an op in a wanted layout and type (None: its own), made if it is not there yet."""
        made = self.tensors[name]
        dtype = dtype or made[0].type
        typed = next((tensor for tensor in made if tensor.type is dtype), None)
        if typed is None:
            typed = Tensor(self.graph.cast(made[0].name, dtype, f"{name}.{np.dtype(dtype).name}"), made[0].last, dtype)
            made.append(typed)
        for tensor in made:
            if (tensor.type, tensor.last) == (dtype, last):
                return tensor.name
        order = [0, 2, 3, 1] if last else [0, 3, 1, 2]
        turned = self.graph.node(
            "Transpose", typed.name, name=f"{typed.name}.{'last' if last else 'first'}", perm=order
        )
        made.append(Tensor(turned, last, dtype))
        return turned

    def floats(self, op: integer_graph.GraphOp) -> list[str]:
        """The inputs of an op on floats."""
        return [self.get(name, last=True, dtype=np.float32) for name in op.inputs]

    # --- convolutions ---

    def stem(self, op: integer_graph.Stem) -> Tensor:
        # Bits stay floats until they are needed as bits: a max pool comes first, and is quicker on floats.
        return Tensor(self.graph.stem(op), last=False, type=np.float32)

    def binary_conv(self, op: integer_graph.BinaryConv) -> Tensor:
        if op.count >= MOST_WEIGHTS:
            what = f"has {op.count} weights in each output channel"
            raise DmsflowError(op.name, what, f"fewer than {MOST_WEIGHTS} can be counted: search narrower widths")
        if op.thresholds is not None:
            return Tensor(self._bits_of(op, op.thresholds), last=False, type=np.uint8)
        if op.count <= UINT8_MAX:
            planes = self._quantised(op, op.negatives, 1, f"{op.name}.planes")
            count = self.graph.node("Transpose", planes, name=f"{op.name}.count", perm=[0, 2, 3, 1])
            return self._affine(op, self.graph.cast(count, np.float32, f"{op.name}.disagreements"))
        weight = self.graph.signs(op.name, op.signs.transpose(1, 2, 3, 0).reshape(op.count, -1), dtype=np.int8)
        total = self.graph.node("MatMulInteger", self._windows(op), weight, name=f"{op.name}.sum")
        sums = self.graph.cast(total, np.float32, f"{op.name}.float")
        negatives = self._spread(op, f"{op.name}.negatives", op.negatives)
        return self._affine(op, self.graph.node("Add", sums, negatives, name=f"{op.name}.disagreements"))

    def _bits_of(self, op: integer_graph.BinaryConv, thresholds: integer_graph.Int32) -> str:
        """`sum >= threshold` as round((sum - threshold + middle) / (2 middle - 1)).

        The quotient lies between 0 and 1, and passes one half between the threshold and the sum below it, at
        least 1 in 2^23 away on either side: float32 and any rule of rounding put both where they belong.
        """
        middle = 2 * op.count + 4
        never = op.count + 1
        bias = middle - np.clip(thresholds, -never, never)
        return self._quantised(op, bias, 2 * middle - 1, op.name)

    def _quantised(self, op: integer_graph.BinaryConv, bias: Any, step: int, name: str) -> str:
        """[1, C_out, H', W'], uint8: round((sum + bias) / step), saturated."""
        graph, one = self.graph, self.graph.scalar(1)
        zero, signed_zero = graph.scalar(0, np.uint8), graph.scalar(0, np.int8)
        bits = self.get(op.inputs[0], last=False, dtype=np.uint8)
        weight = graph.signs(op.name, channels_first(op.signs), dtype=np.int8)
        steps = graph.scalar(step)
        offset = graph.constant(f"{op.name}.bias", bias, np.int32)
        inputs = (bits, one, zero, weight, one, signed_zero, steps, zero, offset)
        return graph.node("QLinearConv", *inputs, name=name, **window_of(op, op.signs.shape[1]))

    def _windows(self, op: integer_graph.BinaryConv) -> str:
        """[1, H', W', K]: what each window sees, bits in the order of the weights."""
        graph, x = self.graph, self.get(op.inputs[0], last=True, dtype=np.uint8)
        height, width, channels = self.shapes[op.inputs[0]]
        kernel, (rows, columns, _) = op.signs.shape[1], self.shapes[op.name]
        if kernel == 1 and not op.padding:
            return self._every(x, op)
        flat = graph.node("Reshape", x, graph.integers(height * width, channels), name=f"{op.name}.pixels")
        if op.padding:  # one more row, of zeros
            flat = graph.node("Pad", flat, graph.integers(0, 0, 1, 0), name=f"{op.name}.padded")
        taps = graph.node("Gather", flat, self._taps(op), name=f"{op.name}.taps")
        return graph.node("Reshape", taps, graph.integers(1, rows, columns, op.count), name=f"{op.name}.windows")

    def _every(self, x: str, op: integer_graph.BinaryConv) -> str:
        """Every stride-th row and column."""
        if op.stride == 1:
            return x
        graph, shape, stride = self.graph, self.shapes[op.inputs[0]], op.stride
        ends = graph.integers(0, 0), graph.integers(*shape[:2]), graph.integers(1, 2), graph.integers(stride, stride)
        return graph.node("Slice", x, *ends, name=f"{op.name}.every")

    def _taps(self, op: integer_graph.BinaryConv) -> str:
        """[H', W', k, k], int32: the row of H W + 1 that each window sees at each tap; the last where there is padding.

        Made of two short constants when the file is loaded.
        """
        graph, kernel = self.graph, op.signs.shape[1]
        height, width, _ = self.shapes[op.inputs[0]]
        name = f"taps.{height}.{width}.{kernel}.{op.stride}.{op.padding}"
        if name not in graph.folded:
            graph.folded.add(name)
            down = self._along(height, self.shapes[op.name][0], op, kernel, width, height * width)
            across = self._along(width, self.shapes[op.name][1], op, kernel, 1, height * width)
            starts = graph.constant(f"{name}.down", down[:, None, :, None], np.int32)
            steps = graph.constant(f"{name}.across", across[None, :, None, :], np.int32)
            where = graph.node("Add", starts, steps, name=f"{name}.where")
            graph.node("Min", where, graph.scalar(height * width, np.int32), name=name)
        return name

    @staticmethod
    def _along(size: int, outputs: int, op: integer_graph.BinaryConv, kernel: int, step: int, beyond: int) -> Any:
        """[outputs, kernel]: where each tap lies along one axis; `beyond` for outside."""
        at = np.arange(outputs)[:, None] * op.stride + np.arange(kernel) - op.padding
        return np.where((at >= 0) & (at < size), at * step, beyond)

    # --- floats ---

    def _affine(self, op: integer_graph.BinaryConv, disagreements: str) -> Tensor:
        assert op.multiplier is not None
        doubled = self._spread(op, f"{op.name}.multiplier", 2 * op.multiplier)
        scaled = self.graph.node("Mul", disagreements, doubled, name=f"{op.name}.scaled")
        return self._float("Add", scaled, self._spread(op, f"{op.name}.offset", op.offset), name=op.name)

    def _spread(self, op: integer_graph.GraphOp, name: str, values: Any) -> str:
        """[W, C]: a constant for each channel of an op's output, spread over a row of pixels when the file is loaded.

        onnxruntime does with each span of a constant at a time what it does; a span of few channels is slow.
        """
        _, columns, channels = self.shapes[op.name]
        constant = self.graph.constant(name, values)
        return self.graph.node("Expand", constant, self.graph.integers(columns, channels), name=f"{name}.row")

    def _float(self, kind: str, *inputs: str, name: str, **attributes: Any) -> Tensor:
        return Tensor(self.graph.node(kind, *inputs, name=name, **attributes), last=True, type=np.float32)

    def max_pool(self, op: integer_graph.MaxPool) -> Tensor:
        x = self.get(op.inputs[0], last=False)
        kind = self.tensors[op.inputs[0]][0].type
        return Tensor(self.graph.node("MaxPool", x, name=op.name, **window_of(op, op.kernel)), last=False, type=kind)

    def quantize(self, op: integer_graph.Quantize) -> Tensor:
        threshold = self.graph.constant(f"{op.name}.threshold", op.threshold)
        on = self.graph.node("Greater", *self.floats(op), threshold, name=f"{op.name}.on")
        return Tensor(self.graph.cast(on, np.uint8, op.name), last=True, type=np.uint8)

    def scale(self, op: integer_graph.Scale) -> Tensor:
        multiplier = self._spread(op, f"{op.name}.multiplier", op.multiplier)
        scaled = self.graph.node("Mul", *self.floats(op), multiplier, name=f"{op.name}.scaled")
        return self._float("Add", scaled, self._spread(op, f"{op.name}.bias", op.bias), name=op.name)

    def average_pool(self, op: integer_graph.AveragePool) -> Tensor:
        return self._float("ReduceMean", *self.floats(op), self.graph.integers(1, 2), name=op.name)

    def dense(self, op: integer_graph.Dense) -> Tensor:
        (x,) = self.floats(op)
        self.graph.dense(x, op.name, op.weight, op.bias)
        return Tensor(op.name, last=True, type=np.float32)

    def same(self, op: integer_graph.Add | integer_graph.Relu) -> Tensor:
        """An op whose name in ONNX is the integer graph's."""
        return self._float(type(op).__name__, *self.floats(op), name=op.name)


_WRITE: dict[type, Any] = {
    integer_graph.Stem: Mixed.stem,
    integer_graph.BinaryConv: Mixed.binary_conv,
    integer_graph.MaxPool: Mixed.max_pool,
    integer_graph.Quantize: Mixed.quantize,
    integer_graph.Scale: Mixed.scale,
    integer_graph.Add: Mixed.same,
    integer_graph.Relu: Mixed.same,
    integer_graph.AveragePool: Mixed.average_pool,
    integer_graph.Dense: Mixed.dense,
}

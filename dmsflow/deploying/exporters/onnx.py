"""Writes .onnx files of standard ops (opset 18), node by node: integers where possible, float32 after them.

All but the last is exact. Weights lie in the file as bits, which onnxruntime unpacks when it loads the file.

- Bits are uint8 0 and 1. A convolution that puts out bits is one QLinearConv on weights of ±1: its
  bias puts the threshold at one half of an output step, and every sum is so near to it that the
  rounded output is 0 or 1 (`binary_conv`). No product of uint8 0 or 1 and int8 ±1 saturates the 16
  bits in which processors without VNNI add pairs.
- A convolution that puts out floats counts in integers too. Up to 255 weights, the count is itself
  the uint8 output of a QLinearConv; beyond that, Gather lays out what each window reads, and one
  MatMulInteger counts: ConvInteger is several times slower in onnxruntime. What follows,
  `float32(count) * 2 multiplier + offset`, is what the integer graph computes: to double a float is exact.
- The stem is a float convolution: its sums are whole numbers that float32 holds. One of int8 weights that puts out
  bits is a QLinearConv without rounding: `sum - threshold + 1`, which saturates at 0, clipped to 1. Its weights are
  uint8 beside a zero point of 128: two products of uint8 and int8 may saturate 16 bits.
- What a network has of float convolutions and averages beside it is the same in float32, and is not exact.

Input: raw pixels, uint8 or float32 [1, H, W, C]. Output: logits, float32 [1, classes]. Floats between are
channels-last, [1, H, W, C], which is how MatMulInteger takes and leaves them. QLinearConv and MaxPool are
channels-first in ONNX; onnxruntime runs them channels-last too and drops the Transpose nodes between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmsflow.deploying import integer_graph
from dmsflow.deploying.exporters._onnx_float32 import write_float as write_float
from dmsflow.deploying.exporters._onnx_graph import HARD_SIGMOID, Graph, channels_first, window_of
from dmsflow.deploying.folding import PRELU
from dmsflow.errors import DmsflowError
from dmsflow.modelfile.onnx_reader import read_graph
from dmsflow.network.network import INPUT

REQUIRES: tuple[str, ...] = ("onnx",)
FLOAT_CONV, PACKED_CONV = "Conv", "Conv with 1-bit weights"  # names of `count_ops`; the first has 8-bit weights too
UINT8_MAX, MIDDLE = 255, 128
# Weights of one output channel, beyond which float32, in which runtimes scale sums, does not tell all sums apart.
MOST_WEIGHTS = 2**20


def write(graph: integer_graph.IntegerGraph, path: Path) -> None:
    """Write an integer graph as an .onnx file, whole or not at all.

    Raises:
        DmsflowError: onnx is missing, a layer has more weights than can be counted, or the file
            cannot be written.
    """
    shape = (1, graph.resolution, graph.resolution, graph.channels)
    OnnxWriter(graph).graph.save(path, graph.name, shape, graph.ops[-1].name, graph.classes, graph.pixels)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the integer graph, as a tensor of the ONNX graph."""

    name: str
    last: bool  # channels-last, or channels-first
    type: type[np.generic]  # np.uint8 or np.float32


class OnnxWriter:
    """Adds each op of an integer graph to an ONNX graph.

    Attributes:
        graph: the ONNX graph.
        tensors: of each op, as it is computed; `get` gives other layouts and types.
    """

    def __init__(self, graph: integer_graph.IntegerGraph) -> None:
        self.graph, self.pixels = Graph(), graph.pixels
        self.shapes = graph.shapes()
        self.tensors: dict[str, Tensor] = {}
        for op in graph.ops:
            self.tensors[op.name] = self.add(op)

    def add(self, op: integer_graph.GraphOp) -> Tensor:
        """Add the nodes that compute `op`; its tensor."""
        graph, name = self.graph, op.name
        match op:
            case integer_graph.Stem():
                return self.stem(op)
            case integer_graph.BinaryConv():
                return self.binary_conv(op)
            case integer_graph.FloatConv():
                weight = graph.constant(f"{name}/weight", channels_first(op.weight))
                inputs = [self.get(op.inputs[0], last=False, dtype=np.float32), weight]
                inputs.append(graph.constant(f"{name}/bias", op.bias))
                conv = graph.node("Conv", *inputs, name=name, **window_of(op, self.groups(op)))
                return Tensor(conv, last=False, type=np.float32)
            case integer_graph.MaxPool():
                dtype = self.tensors[op.inputs[0]].type
                x = self.get(op.inputs[0], last=False)
                return Tensor(graph.node("MaxPool", x, name=name, **window_of(op)), last=False, type=dtype)
            case integer_graph.AveragePool() if op.kernel:
                x = self.get(op.inputs[0], last=False, dtype=np.float32)
                return Tensor(graph.node("AveragePool", x, name=name, **window_of(op)), last=False, type=np.float32)
            case integer_graph.Scale():
                multiplier = self.spread(op, "multiplier", op.multiplier)
                return self.affine(op, self.get(op.inputs[0], last=True, dtype=np.float32), multiplier, "bias", op.bias)
        floats = [self.get(each, last=True, dtype=np.float32) for each in op.inputs]
        match op:
            case integer_graph.Quantize():
                threshold = graph.constant(f"{name}/threshold", op.threshold)
                threshold = self.spread(op, "threshold", op.threshold) if np.ndim(op.threshold) else threshold
                on = graph.node("Greater", *floats, threshold, name=f"{name}/on")
                return Tensor(graph.cast(on, np.uint8, name), last=True, type=np.uint8)
            case integer_graph.AveragePool():
                graph.node("ReduceMean", *floats, graph.integers(1, 2), name=name)
            case integer_graph.Dense():
                graph.dense(floats[0], name, op.weight, op.bias, op.scale)
            case integer_graph.PRelu():
                graph.prelu(floats[0], name, *(self.spread(op, part, getattr(op, part)) for part in PRELU))
            case integer_graph.Concat():
                graph.node("Concat", *floats, name=name, axis=3)
            case integer_graph.Relu6():
                graph.node("Clip", *floats, graph.scalar(0), graph.scalar(6), name=name)
            case integer_graph.Multiply():
                graph.node("Mul", *floats, name=name)
            case integer_graph.HardSigmoid():
                graph.node("HardSigmoid", *floats, name=name, **HARD_SIGMOID)
            case integer_graph.Add() | integer_graph.Relu() | integer_graph.Sigmoid():
                graph.node(type(op).__name__, *floats, name=name)
        return Tensor(name, last=True, type=np.float32)

    def get(self, name: str, *, last: bool, dtype: type[np.generic] | None = None) -> str:
        """The tensor of an op in a wanted layout and type (None: its own), made if it is not there yet."""
        tensor, x = self.tensors[name], name
        if dtype not in (None, tensor.type):
            x = self.graph.cast(x, dtype, f"{x}/{np.dtype(dtype).name}")
        if last != tensor.last:
            order = [0, 2, 3, 1] if last else [0, 3, 1, 2]
            x = self.graph.node("Transpose", x, name=f"{x}/{'last' if last else 'first'}", perm=order)
        return x

    def stem(self, op: integer_graph.Stem) -> Tensor:
        """The sums, or their bits, which stay floats until they are needed as bits: a max pool is quicker on floats."""
        graph, name = self.graph, op.name
        if op.counts_in_int8:
            return self.int8_stem(op)
        image = graph.cast(INPUT, np.float32, "input/pixels") if self.pixels == "uint8" else INPUT
        inputs = [graph.planes(op.mean, image), graph.weight(f"{name}/weight", channels_first(op.weight))]
        # A clip that never clips: it keeps onnxruntime from folding a following Mul into the whole-number weights.
        limits = [-integer_graph.LARGEST_SUM, integer_graph.LARGEST_SUM]
        if op.thresholds is not None:
            inputs.append(graph.constant(f"{name}/bias", 1 - op.thresholds))
            limits = [0, 1]
        sums = graph.node("Conv", *inputs, name=f"{name}/sum", **window_of(op))
        return Tensor(graph.node("Clip", sums, *map(graph.scalar, limits), name=name), last=False, type=np.float32)

    def int8_stem(self, op: integer_graph.Stem) -> Tensor:
        assert op.thresholds is not None
        graph, name, one = self.graph, op.name, self.graph.scalar(1)
        image = graph.cast(INPUT, np.uint8, "input/pixels") if self.pixels == "float32" else INPUT
        planes = graph.node("Transpose", image, name="input/planes", perm=[0, 3, 1, 2])
        zero, mean, middle = (graph.scalar(each, np.uint8) for each in (0, int(op.mean[0]), MIDDLE))
        weight = graph.constant(f"{name}/weight", channels_first(op.weight.astype(np.int16) + MIDDLE), np.uint8)
        rest = one, zero, graph.constant(f"{name}/bias", 1 - op.thresholds, np.int32)
        sums = graph.node(
            "QLinearConv", planes, one, mean, weight, one, middle, *rest, name=f"{name}/sum", **window_of(op)
        )
        bits = graph.node("Clip", sums, zero, graph.scalar(1, np.uint8), name=name)
        return Tensor(bits, last=False, type=np.uint8)

    def binary_conv(self, op: integer_graph.BinaryConv) -> Tensor:
        if op.count >= MOST_WEIGHTS:
            what = f"has {op.count} weights in each output channel"
            raise DmsflowError(op.name, what, f"use narrower widths: an .onnx file can count fewer than {MOST_WEIGHTS}")
        if op.thresholds is not None:
            # sum >= threshold as round((sum - threshold + middle) / (2 middle - 1)). The quotient lies between 0 and 1,
            # and passes one half between the threshold and the sum below it, at least 1 in 2^23 away on either side:
            # float32 and any rule of rounding put both where they belong.
            middle, never = 2 * op.count + 4, op.count + 1
            bias = middle - np.clip(op.thresholds, -never, never)
            bits = self.quantised_conv(op, bias, 2 * middle - 1, op.name)
            return Tensor(bits, last=False, type=np.uint8)
        graph, name = self.graph, op.name
        if op.count <= UINT8_MAX:
            planes = self.quantised_conv(op, op.negatives, 1, f"{name}/planes")
            count = graph.node("Transpose", planes, name=f"{name}/count", perm=[0, 2, 3, 1])
            disagreements = graph.cast(count, np.float32, f"{name}/disagreements")
        elif self.groups(op) > 1:
            weight = graph.signs(name, channels_first(op.weight))
            bits, window = self.get(op.inputs[0], last=False, dtype=np.uint8), window_of(op, self.groups(op))
            total = graph.node("ConvInteger", bits, weight, name=f"{name}/planes", **window)
            count = graph.node("Transpose", total, name=f"{name}/sum", perm=[0, 2, 3, 1])
            disagreements = self.disagreements(op, count)
        else:
            weight = graph.signs(name, op.weight.transpose(1, 2, 3, 0).reshape(op.count, -1))
            total = graph.node("MatMulInteger", self.windows(op), weight, name=f"{name}/sum")
            disagreements = self.disagreements(op, total)
        assert op.multiplier is not None
        if op.rectifies:
            disagreements = graph.node("Min", disagreements, graph.scalar(op.count / 2), name=f"{name}/rectified")
        return self.affine(op, disagreements, self.spread(op, "multiplier", 2 * op.multiplier), "offset", op.offset)

    def disagreements(self, op: integer_graph.BinaryConv, sums: str) -> str:
        """[1, H', W', C_out], float32: of sums of signs, int32."""
        floats = self.graph.cast(sums, np.float32, f"{op.name}/float")
        negatives = self.spread(op, "negatives", op.negatives)
        return self.graph.node("Add", floats, negatives, name=f"{op.name}/disagreements")

    def groups(self, op: integer_graph.Conv) -> int:
        return int(self.shapes[op.inputs[0]][2]) // int(op.weight.shape[3])

    def quantised_conv(self, op: integer_graph.BinaryConv, bias: Any, step: int, name: str) -> str:
        """[1, C_out, H', W'], uint8: round((sum + bias) / step), saturated."""
        graph, one = self.graph, self.graph.scalar(1)
        zero, signed_zero = graph.scalar(0, np.uint8), graph.scalar(0, np.int8)
        bits = self.get(op.inputs[0], last=False, dtype=np.uint8)
        weight = graph.signs(op.name, channels_first(op.weight))
        rest = (graph.scalar(step), zero, graph.constant(f"{op.name}/bias", bias, np.int32))
        window = window_of(op, self.groups(op))
        return graph.node("QLinearConv", bits, one, zero, weight, one, signed_zero, *rest, name=name, **window)

    def windows(self, op: integer_graph.BinaryConv) -> str:
        """[1, H', W', K]: what each window reads, bits in the order of the weights."""
        graph, x = self.graph, self.get(op.inputs[0], last=True, dtype=np.uint8)
        height, width, channels = self.shapes[op.inputs[0]]
        stride, (rows, columns, _) = op.stride, self.shapes[op.name]
        if op.kernel == 1 and not op.padding:
            if stride == 1:
                return x
            ends = graph.integers(0, 0), graph.integers(height, width)
            steps = graph.integers(1, 2), graph.integers(stride, stride)
            return graph.node("Slice", x, *ends, *steps, name=f"{op.name}/every")
        flat = graph.node("Reshape", x, graph.integers(height * width, channels), name=f"{op.name}/pixels")
        if op.padding:  # one more row, of zeros
            flat = graph.node("Pad", flat, graph.integers(0, 0, 1, 0), name=f"{op.name}/padded")
        taps = graph.node("Gather", flat, self.taps(op), name=f"{op.name}/taps")
        return graph.node("Reshape", taps, graph.integers(1, rows, columns, op.count), name=f"{op.name}/windows")

    def taps(self, op: integer_graph.BinaryConv) -> str:
        """[H', W', k, k], int32: the row of H W + 1 that each window reads at each tap; the last where there is padding.

        Made of two short constants when the file is loaded.
        """
        graph, kernel = self.graph, op.kernel
        height, width, _ = self.shapes[op.inputs[0]]
        name = f"taps/{height}.{width}.{kernel}.{op.stride}.{op.padding}"

        def along(size: int, outputs: int, step: int) -> Any:
            """[outputs, kernel]: the position of each tap along one axis; H W for outside."""
            at = np.arange(outputs)[:, None] * op.stride + np.arange(kernel) - op.padding
            return np.where((at >= 0) & (at < size), at * step, height * width)

        rows, columns, _ = self.shapes[op.name]
        starts = graph.constant(f"{name}/down", along(height, rows, width)[:, None, :, None], np.int32)
        steps = graph.constant(f"{name}/across", along(width, columns, 1)[None, :, None, :], np.int32)
        where = graph.node("Add", starts, steps, name=f"{name}/where")
        return graph.node("Min", where, graph.scalar(height * width, np.int32), name=name)

    def affine(self, op: integer_graph.GraphOp, x: str, multiplier: str, addend: str, values: Any) -> Tensor:
        """`x * multiplier + values` for each channel, each of the two operations rounded; `addend` names the values."""
        scaled = self.graph.node("Mul", x, multiplier, name=f"{op.name}/scaled")
        self.graph.node("Add", scaled, self.spread(op, addend, values), name=op.name)
        return Tensor(op.name, last=True, type=np.float32)

    def spread(self, op: integer_graph.GraphOp, name: str, values: Any) -> str:
        """[W, C]: a constant for each channel of an op's output, spread over a row of pixels when the file is loaded.

        onnxruntime does with each span of a constant at a time what it does; a span of few channels is slow.
        """
        _, columns, channels = self.shapes[op.name]
        constant = self.graph.constant(f"{op.name}/{name}", values)
        return self.graph.node("Expand", constant, self.graph.integers(columns, channels), name=f"{constant}/row")


def count_ops(path: Path) -> dict[str, int]:
    """Ops of a written file and how often each occurs; those that onnxruntime folds on loading are not counted.

    A convolution, or a product that counts for one, whose weights are unpacked from bits counts as PACKED_CONV.
    """
    graph, counts = read_graph(path, path.read_bytes()), Counter[str]()
    constants = {number for number, tensor in enumerate(graph.tensors) if tensor.values}
    unpacked: set[int] = set()  # those computed from bits
    for node in graph.nodes:
        if constants.issuperset(node.inputs):
            constants.update(node.outputs)
            unpacked.update(node.outputs if node.unpacks or not unpacked.isdisjoint(node.inputs) else ())
        else:
            packed = node.weights is not None and node.weights.tensor in unpacked
            counts[PACKED_CONV if packed else FLOAT_CONV if node.op == "QLinearConv" else node.op] += 1
    return dict(counts)


def layer_bytes(path: Path) -> dict[str, int]:
    """Bytes that the constants of each op take in a written file."""
    sizes = Counter[str]()
    for tensor in read_graph(path, path.read_bytes()).tensors:
        if tensor.values:
            sizes[tensor.name.rpartition("/")[0]] += tensor.stored_bytes
    return dict(sizes)

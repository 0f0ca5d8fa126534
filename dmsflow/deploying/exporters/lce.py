"""Writes .tflite files with the ops of Larq Compute Engine (LCE), without TensorFlow.

LCE multiplies ±1 by ±1, kept as the bits of a sign: bit 1 is -1. Here bit 1 is "the activation is
on", so a bit b stands for s = 1 - 2b, and with weights w = ±1 a kernel that counts where s and w
differ counts `disagreements = sum + negatives` of the integer graph; padding with 0 bits is padding
with x = 0. A convolution that puts out bits compares that count with one threshold per channel.

`LceBMaxPool2d` is an AND, and a maximum is an OR: a convolution in front of one puts out the
opposite bits, and a subtraction from all ones inverts them behind it.

A stem of int8 weights that puts out bits is an int8 convolution whose bias is minus the threshold: it saturates, and
the sign stays. All its scales are 1, so nothing is rounded. Other weights of 8 bits are dequantised first, which a
runtime does once.

Input: raw pixels, uint8 or float32 [1, H, W, C]. Output: logits, float32 [1, classes].
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying import integer_graph
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters.official import convert
from dmsflow.files import write_atomically
from dmsflow.modelfile import tflite
from dmsflow.modelfile.tflite_reader import read_graph
from dmsflow.network.network import INPUT, WORD
from dmsflow.network.profile import PACKED_GRANULARITY, round_up

REQUIRES: tuple[str, ...] = ()
FLOAT_CONV, PACKED_CONV = "CONV_2D", "LceBconv2d"  # names of `count_ops`
DEPTHWISE_CONV = "DEPTHWISE_CONV_2D"  # also counted as FLOAT_CONV
CONVERTERS = ("direct", "official")
GRANULARITY = PACKED_GRANULARITY
SAME, VALID = 0, 1
RELU, RELU6 = 1, 3
CUSTOM = 32
CODES = {name: number for number, name in tflite.OPERATORS.items()}
OPTIONS = {"ADD": 11, "MUL": 21, "PAD": 22, "PADV2": 43, "PRELU": 0, "SUB": 28}  # keys of tflite.OPTIONS; 0: none
OPTIONS |= {"RELU": 0, "RELU6": 0}
OPTIONS |= {"AVERAGE_POOL_2D": 5, "CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 8, "MAX_POOL_2D": 5}
OPTIONS |= {"CAST": 0, "CONCATENATION": 10, "DEQUANTIZE": 0, "LOGISTIC": 0, "QUANTIZE": 0}
FLOATS, BITS, UINT8, INT8 = 0, 2, 3, 9  # types of tensors: float32, int32 (also for 32 bits each), uint8, int8
NUMBERS = {"float32": FLOATS, "int32": BITS, "uint8": UINT8, "int8": INT8}
DARKEST = -128  # the int8 that stands for a pixel of 0
ABSENT = -1  # an optional input

Shape: TypeAlias = tuple[int, ...]


def write(graph: integer_graph.IntegerGraph, path: Path, converter: str = CONVERTERS[0]) -> None:
    """Write an integer graph as a .tflite file, whole or not at all: directly, or by LCE's official converter.

    Raises:
        DmsflowError: a package that this needs is missing, or the file cannot be written.
    """
    if converter == "official":
        (content,) = convert.convert([convert.Program(graph)])
    else:
        content = _flatbuffer.dumps(LceWriter(graph).model())
    write_atomically(path, content)


class LceWriter:
    """Adds each op of an integer graph to a TFLite model; tensors are called by number."""

    def __init__(self, graph: integer_graph.IntegerGraph) -> None:
        self.graph, self.shapes = graph, graph.shapes()
        self.tensors: list[dict[str, Any]] = []
        self.buffers: list[dict[str, Any]] = [{}]  # the first one is empty: of every tensor that is no constant
        self.operators: list[dict[str, Any]] = []
        self.codes: list[str] = []
        self.constants: dict[tuple[Any, ...], int] = {}
        self.fused: set[str] = set()  # the ReLUs that the operator before them does itself
        image = self.tensor(INPUT, (1, *self.shapes[INPUT]), NUMBERS[graph.pixels], zero=0)
        self.numbers = {INPUT: image}  # of the integer graph's tensors
        for op in graph.ops:
            self.numbers[op.name] = self.add(op, *(self.numbers[name] for name in op.inputs))

    def model(self) -> dict[str, Any]:
        """The fields of the file."""
        ends = {"inputs": [self.numbers[INPUT]], "outputs": [self.numbers[self.graph.ops[-1].name]]}
        subgraph = {"tensors": self.tensors, **ends, "operators": self.operators, "name": "main"}
        codes = []
        for op in self.codes:
            code, custom = (CODES[op], {}) if op in CODES else (CUSTOM, {"custom_code": op})
            codes.append({"deprecated_builtin_code": code, "version": 1, "builtin_code": code, **custom})
        graph = {"version": 3, "operator_codes": codes, "subgraphs": [subgraph]}
        return {**graph, "description": f"{self.graph.name}, written by dmsflow", "buffers": self.buffers}

    def tensor(
        self, name: str, shape: Shape, dtype: int, buffer: int = 0, scale: float = 1, zero: int | None = None
    ) -> int:
        """A tensor; `scale` and `zero` point are of one that is quantised, as all of bytes are."""
        fields = {"shape": shape, "type": dtype, "buffer": buffer, "name": name}
        if zero is not None and dtype != FLOATS:
            fields["quantization"] = {"scale": [scale], "zero_point": [zero]}
        self.tensors.append(fields)
        return len(self.tensors) - 1

    def constant(self, name: str, values: NDArray[Any], scale: float = 1, zero: int | None = None) -> int:
        """A constant of float32, int32 or int8; an equal one is not stored twice."""
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        key = (content, values.shape, values.dtype, scale, zero)
        if key not in self.constants:
            self.buffers.append({"data": content})
            dtype = NUMBERS[values.dtype.name]
            self.constants[key] = self.tensor(name, values.shape, dtype, len(self.buffers) - 1, scale, zero)
        return self.constants[key]

    def shape(self, number: int) -> Shape:
        return tuple(self.tensors[number]["shape"])

    def operator(
        self,
        op: str,
        inputs: list[int],
        name: str,
        shape: Shape,
        dtype: int = FLOATS,
        zero: int | None = None,
        **options: int,
    ) -> int:
        """Add an operator with one output, of the zero point `zero` if it is quantised; the output's number."""
        if op not in self.codes:
            self.codes.append(op)
        fields: dict[str, Any] = {"opcode_index": self.codes.index(op), "inputs": inputs}
        if op not in OPTIONS:
            fields["custom_options"] = _flatbuffer.flexible(options) if options else b""
        elif kind := OPTIONS[op]:
            fields |= {"builtin_options_type": kind, "builtin_options": options}
        output = self.tensor(name, shape, dtype, zero=zero)
        self.operators.append(fields | {"outputs": [output]})
        return output

    def add(self, op: integer_graph.GraphOp, x: int, *others: int) -> int:
        """Add what computes `op`; the number of its tensor."""
        name, shape = op.name, (1, *self.shapes[op.name])
        match op:
            case integer_graph.Stem():
                return self.stem(op, x, shape)
            case integer_graph.BinaryConv():
                return self.binary_conv(op, x, shape)
            case integer_graph.FloatConv():
                return self.float_conv(op, *self.padded(op, x), op.weight, op.bias, name, **self.activation(name))
            case integer_graph.MaxPool():
                return self.max_pool(op, x, shape)
            case integer_graph.Scale():
                multiplier = self.constant(f"{name}/multiplier", op.multiplier)
                bias = self.constant(f"{name}/bias", op.bias)
                scaled = self.operator("MUL", [x, multiplier], f"{name}/scaled", shape)
                return self.addition([scaled, bias], name, shape)
            case integer_graph.Quantize():
                half = self.constant(f"{name}/half_alpha", np.atleast_1d(op.threshold))
                return self.sign_bits(self.operator("SUB", [half, x], f"{name}/below", shape), name)
            case integer_graph.Add():
                return self.addition([x, *others], name, shape)
            case integer_graph.Concat():
                return self.operator("CONCATENATION", [x, *others], name, shape, axis=3)
            case integer_graph.Multiply():
                return self.operator("MUL", [x, *others], name, shape)
            case integer_graph.Sigmoid():
                return self.operator("LOGISTIC", [x], name, shape)
            case integer_graph.HardSigmoid():
                three, sixth = (self.constant(f"{name}/{each}", np.array([each], np.float32)) for each in (3, 1 / 6))
                clipped = self.operator("ADD", [x, three], f"{name}/clipped", shape, fused_activation_function=RELU6)
                return self.operator("MUL", [clipped, sixth], name, shape)
            case integer_graph.Relu():
                kind = "RELU6" if isinstance(op, integer_graph.Relu6) else "RELU"
                return x if name in self.fused else self.operator(kind, [x], name, shape)
            case integer_graph.AveragePool() if op.kernel:
                return self.operator("AVERAGE_POOL_2D", [x], name, shape, **_window(op.kernel, op.stride))
            case integer_graph.PRelu():
                return self.prelu(op, x, shape)
            case integer_graph.AveragePool():
                size = self.shape(x)[1]
                return x if size == 1 else self.operator("AVERAGE_POOL_2D", [x], name, shape, **_window(size, size))
            case integer_graph.Dense():
                weight, bias = self.weight(name, op.weight, op.scale), self.constant(f"{name}/bias", op.bias)
                return self.operator("FULLY_CONNECTED", [x, weight, bias], name, (1, shape[3]))

    def weight(self, name: str, weight: NDArray[Any], scale: Any = 1) -> int:
        """Weights as float32, whatever they are stored as."""
        if weight.dtype != np.int8:
            return self.constant(f"{name}/weight", weight)
        stored = self.constant(f"{name}/weight", weight, float(scale), 0)
        return self.operator("DEQUANTIZE", [stored], f"{name}/float", weight.shape)

    def stem(self, op: integer_graph.Stem, x: int, shape: Shape) -> int:
        """The bias is a whole number too: with thresholds the result is negative where the bit is 1."""
        if op.counts_in_int8:
            return self.int8_stem(op, x, shape)
        if self.graph.pixels == "uint8":
            x = self.operator("CAST", [x], f"{op.name}/pixels", self.shape(x))
        name, weight, bias = op.name, op.weight, np.zeros(shape[3], np.float32)
        if op.thresholds is not None:
            name, pooled = f"{op.name}/sums", self.graph.feeds_max_pool(op)
            weight = weight if pooled else 0 - weight
            bias = (-op.thresholds if pooled else op.thresholds - 1).astype(np.float32)
        mean = self.constant(f"{op.name}/mean", op.mean)
        padded = self.padded(op, self.operator("SUB", [x, mean], f"{op.name}/centred", self.shape(x)))
        sums = self.float_conv(op, *padded, weight, bias, name)
        return sums if op.thresholds is None else self.sign_bits(sums, op.name)

    def int8_stem(self, op: integer_graph.Stem, x: int, shape: Shape) -> int:
        """Padding is the mean pixel, which the bias takes off: sum w (x - mean) = sum w x - mean sum w."""
        assert op.thresholds is not None
        name, mean = op.name, int(op.mean[0])
        x = self.operator("QUANTIZE", [x], f"{name}/pixels", self.shape(x), INT8, DARKEST)
        if op.padding:
            around = self.constant(f"{name}/around", np.array([mean + DARKEST], np.int8), zero=DARKEST)
            x = self.pad(x, name, op.padding, around)
        signs = 1 if self.graph.feeds_max_pool(op) else -1
        bias = -op.thresholds if signs > 0 else op.thresholds - 1
        bias = (bias - signs * mean * op.weight.sum((1, 2, 3), dtype=np.int32)).astype(np.int32)
        inputs = [
            x,
            self.constant(f"{name}/weight", signs * op.weight, zero=0),
            self.constant(f"{name}/bias", bias, zero=0),
        ]
        options = {"padding": VALID, "stride_w": op.stride, "stride_h": op.stride}
        options |= {"dilation_w_factor": 1, "dilation_h_factor": 1}
        sums = self.operator(FLOAT_CONV, inputs, f"{name}/sums", shape, INT8, 0, **options)
        return self.sign_bits(sums, name)

    def float_conv(
        self, op: integer_graph.Conv, x: int, padding: int, weight: Any, bias: Any, name: str, **options: int
    ) -> int:
        is_depthwise = isinstance(op, integer_graph.DepthwiseConv)
        weight = weight.transpose(3, 1, 2, 0) if is_depthwise else weight  # [1, k, k, C]
        inputs = [x, self.weight(op.name, weight), self.constant(f"{op.name}/bias", bias)]
        options |= {"padding": padding, "stride_w": op.stride, "stride_h": op.stride}
        options |= {"dilation_w_factor": 1, "dilation_h_factor": 1}
        if is_depthwise:
            return self.operator(
                DEPTHWISE_CONV, inputs, name, (1, *self.shapes[op.name]), depth_multiplier=1, **options
            )
        return self.operator(FLOAT_CONV, inputs, name, (1, *self.shapes[op.name]), **options)

    def sign_bits(self, x: int, name: str) -> int:
        """Bit 1 where x is negative."""
        return self.operator("LceQuantize", [x], name, _packed_shape(self.shape(x)), BITS)

    def binary_conv(self, op: integer_graph.BinaryConv, x: int, shape: Shape) -> int:
        signs, multiplier, bias, threshold = op.weight, ABSENT, ABSENT, ABSENT
        if op.thresholds is not None:
            least = op.thresholds + op.negatives - 1  # bit 1 where disagreements > least
            if self.graph.feeds_max_pool(op):  # of the opposite signs there are count - disagreements
                signs, least = -signs, op.count - 1 - least
            threshold = self.constant(f"{op.name}/threshold", least.astype(np.int32))
        else:
            assert op.multiplier is not None and op.bias is not None
            multiplier = self.constant(f"{op.name}/multiplier", -op.multiplier)
            bias = self.constant(f"{op.name}/bias", op.bias)
        x, padding = self.padded(op, x)
        inputs = [x, self.constant(f"{op.name}/weight", pack(signs < 0)), multiplier, bias, threshold]
        options: dict[str, Any] = {
            "channels_in": self.shapes[op.inputs[0]][2],
            "dilation_height_factor": 1,
            "dilation_width_factor": 1,
        }
        options |= {"fused_activation_function": RELU * op.rectifies, "pad_values": 1, "padding": padding}
        options |= {"stride_height": op.stride, "stride_width": op.stride}
        output = (shape, FLOATS) if op.thresholds is None else (_packed_shape(shape), BITS)
        return self.operator("LceBconv2d", inputs, op.name, *output, **options)

    def padded(self, op: integer_graph.Conv, x: int) -> tuple[int, int]:
        """Pad with zeros; the tensor to convolve, and the padding that is left to the convolution."""
        if op.padding == 0:
            return x, VALID
        size, out = self.shape(x)[1], self.shapes[op.name][0]
        pads_same = (out - 1) * op.stride + op.kernel - size == 2 * op.padding and out == -(-size // op.stride)
        return (x, SAME) if pads_same else (self.pad(x, op.name, op.padding), VALID)

    def pad(self, x: int, name: str, padding: int, fill: int | None = None) -> int:
        """Grow an image on all sides, by zeros or by `fill`, a constant's number."""
        amounts = self.constant(f"{name}/padding", np.array([[0, 0], [padding] * 2, [padding] * 2, [0, 0]], np.int32))
        batch, height, width, channels = self.shape(x)
        shape = (batch, height + 2 * padding, width + 2 * padding, channels)
        kind, filling = ("PAD", []) if fill is None else ("PADV2", [fill])
        dtype = self.tensors[x]["type"]
        zero = DARKEST if dtype == INT8 else None
        return self.operator(kind, [x, amounts, *filling], f"{name}/padded", shape, dtype, zero)

    def max_pool(self, op: integer_graph.MaxPool, x: int, shape: Shape) -> int:
        if op.padding:  # by what never wins: -1 is all ones, neutral in an AND
            lowest = np.array([-1], np.int32) if op.binary else np.array([np.finfo(np.float32).min], np.float32)
            x = self.pad(x, op.name, op.padding, self.constant(f"{op.name}/lowest", lowest))
        if not op.binary:
            return self.operator("MAX_POOL_2D", [x], op.name, shape, **_window(op.kernel, op.stride))
        options = {"padding": VALID, "stride_width": op.stride, "stride_height": op.stride}
        options |= {"filter_width": op.kernel, "filter_height": op.kernel}
        off = self.operator("LceBMaxPool2d", [x], f"{op.name}/off", _packed_shape(shape), BITS, **options)
        ones = self.constant(f"{op.name}/ones", pack(np.ones(shape[3], np.bool_)))
        return self.operator("SUB", [ones, off], op.name, _packed_shape(shape), BITS)

    def prelu(self, op: integer_graph.PRelu, x: int, shape: Shape) -> int:
        """Without the subtraction or the addition of nothing but zeros."""
        if op.before.any():
            x = self.operator("SUB", [x, self.constant(f"{op.name}/before", op.before)], f"{op.name}/moved", shape)
        shifts = bool(op.after.any())
        slope = self.constant(f"{op.name}/slope", op.slope[None, None])
        x = self.operator("PRELU", [x, slope], f"{op.name}/bent" if shifts else op.name, shape)
        return self.addition([x, self.constant(f"{op.name}/after", op.after)], op.name, shape) if shifts else x

    def addition(self, inputs: list[int], name: str, shape: Shape) -> int:
        return self.operator("ADD", inputs, name, shape, **self.activation(name))

    def activation(self, name: str) -> dict[str, int]:
        """The option of an operator that does a ReLU itself: the only reader of what it writes."""
        readers = self.graph.consumers(name)
        if len(readers) != 1 or not isinstance(readers[0], integer_graph.Relu):
            return {}
        self.fused.add(readers[0].name)
        return {"fused_activation_function": RELU6 if isinstance(readers[0], integer_graph.Relu6) else RELU}


def pack(bits: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[..., C] -> [..., ceil(C / 32)]: channel c is bit c % 32 of word c // 32, the rest is 0.

    >>> pack(np.array([True, False, True])).tolist()
    [5]
    """
    padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -bits.shape[-1] % WORD)])
    return np.packbits(padded, axis=-1, bitorder="little").view("<i4").astype(np.int32)


def _packed_shape(shape: Shape) -> Shape:
    return (*shape[:3], round_up(shape[3], WORD) // WORD)


def _window(kernel: int, stride: int) -> dict[str, int]:
    return {"padding": VALID, "stride_w": stride, "stride_h": stride, "filter_width": kernel, "filter_height": kernel}


def count_ops(path: Path) -> dict[str, int]:
    """Ops of a written file and how often each occurs."""
    ops = (node.op for node in read_graph(path, path.read_bytes()).nodes)
    return dict(Counter(FLOAT_CONV if op == DEPTHWISE_CONV else op for op in ops))


def layer_bytes(path: Path) -> dict[str, int]:
    """Bytes that the constants of each op take in a written file.

    The official converter leaves most constants without the name of their layer: they are of the
    first operator that reads them.
    """
    graph = read_graph(path, path.read_bytes())
    readers: dict[int, str] = {}
    for node in graph.nodes:
        for number in node.inputs:
            readers.setdefault(number, layer_of_tensor(node.name))
    sizes = Counter[str]()
    for number, tensor in enumerate(graph.tensors):
        sizes[layer_of_tensor(tensor.name) if "/" in tensor.name else readers.get(number, "")] += tensor.stored_bytes
    return dict(sizes)


def layer_of_tensor(name: str) -> str:
    """The layer of a tensor. The official converter joins the names of what it fuses; a ReLU has no constants."""
    names = name.split(";")
    return next((each for each in names if not each.endswith(("/Relu", "/Relu6"))), names[0]).partition("/")[0]

"""Writes .tflite files with the ops of Larq Compute Engine (LCE), without TensorFlow.

LCE multiplies ±1 by ±1, kept as the bits of a sign: bit 1 is -1. Here bit 1 is "the activation is
on", so a bit b stands for s = 1 - 2b, and with weights w = ±1 a kernel that counts where s and w
differ counts `disagreements = sum + negatives` of the integer graph; padding with 0 bits is padding
with x = 0. A convolution that puts out bits compares that count with one threshold per channel.

`LceBMaxPool2d` is an AND, and a maximum is an OR: a convolution in front of one puts out the
opposite bits, and a subtraction from all ones turns them back behind it.

Input: raw pixels, float32 [1, H, W, C]. Output: logits, float32 [1, classes].
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters.official import convert
from dmsflow.deploying.integer_graph import (
    Add,
    AveragePool,
    BinaryConv,
    Dense,
    GraphOp,
    IntegerGraph,
    MaxPool,
    Quantize,
    Relu,
    Scale,
    Stem,
)
from dmsflow.files import writing
from dmsflow.modelfile import tflite
from dmsflow.network.network import INPUT
from dmsflow.network.profile import Granularity

FLOAT_CONV, PACKED_CONV = "CONV_2D", "LceBconv2d"  # names in a census
OPTION, VARIANTS = "converter", ("direct", "official")
WORD = 32  # channels in an int32
GRANULARITY = Granularity(inputs=WORD, outputs=8)  # of what its kernels read and write
SAME, VALID = 0, 1
RELU = 1
CUSTOM = 32
BUILTIN = {  # code, and which of tflite.OPTIONS it takes
    "ADD": (0, 11),
    "AVERAGE_POOL_2D": (1, 5),
    "CONV_2D": (3, 1),
    "FULLY_CONNECTED": (9, 8),
    "MAX_POOL_2D": (17, 5),
    "MUL": (18, 21),
    "RELU": (19, 0),
    "PAD": (34, 22),
    "SUB": (41, 28),
    "PADV2": (60, 43),
}
TYPES = {np.dtype(np.float32): 0, np.dtype(np.int32): 2}
FLOATS, BITS = np.dtype(np.float32), np.dtype(np.int32)
ABSENT = -1  # an optional input


def write(form: IntegerGraph, path: Path, variant: str = VARIANTS[0]) -> None:
    """Write the integer graph as a .tflite file, whole or not at all: directly, or by LCE's official converter.

    Raises:
        DmsflowError: a package that this needs is missing, or the file cannot be written.
    """
    if variant == "official":
        convert.write(form, path)
        return
    content = _flatbuffer.dumps(_model(form))
    with writing(path) as partial:
        partial.write_bytes(content)


# --- the graph --------------------------------------------------------------------------------


class _Graph:
    """Tensors, constants and operators of a model in the making; tensors are called by number."""

    def __init__(self, form: IntegerGraph) -> None:
        self.form = form
        self.shapes = form.shapes()
        self.tensors: list[dict[str, Any]] = []
        self.buffers: list[dict[str, Any]] = [{}]  # the first one is empty: of every tensor that is no constant
        self.operators: list[dict[str, Any]] = []
        self.codes: list[str] = []
        self.constants: dict[tuple[Any, ...], int] = {}
        self.numbers = {INPUT: self.tensor(INPUT, (1, *self.shapes[INPUT]), FLOATS)}  # of the integer graph's tensors

    def tensor(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], buffer: int = 0) -> int:
        self.tensors.append({"shape": shape, "type": TYPES[dtype], "buffer": buffer, "name": name})
        return len(self.tensors) - 1

    def constant(self, name: str, values: NDArray[Any]) -> int:
        """A constant; an equal one is not stored twice."""
        content = values.astype(values.dtype.newbyteorder("<")).tobytes()
        key = (content, values.shape, values.dtype)
        if key not in self.constants:
            self.buffers.append({"data": content})
            self.constants[key] = self.tensor(name, values.shape, values.dtype, len(self.buffers) - 1)
        return self.constants[key]

    def operator(
        self, op: str, inputs: list[int], name: str, shape: tuple[int, ...], dtype: Any, **options: int
    ) -> int:
        """Add an operator with one output; its number."""
        if op not in self.codes:
            self.codes.append(op)
        fields: dict[str, Any] = {"opcode_index": self.codes.index(op), "inputs": inputs}
        if op not in BUILTIN:
            fields["custom_options"] = _flatbuffer.flexible(options) if options else b""
        elif kind := BUILTIN[op][1]:
            fields |= {"builtin_options_type": kind, "builtin_options": options}
        output = self.tensor(name, shape, np.dtype(dtype))
        self.operators.append(fields | {"outputs": [output]})
        return output

    def shape(self, number: int) -> tuple[int, ...]:
        return tuple(self.tensors[number]["shape"])


def _model(form: IntegerGraph) -> dict[str, Any]:
    graph = _Graph(form)
    for op in form.ops:
        graph.numbers[op.name] = _lower(graph, op, *(graph.numbers[name] for name in op.inputs))
    subgraph = {
        "tensors": graph.tensors,
        "inputs": [graph.numbers[INPUT]],
        "outputs": [graph.numbers[form.ops[-1].name]],
        "operators": graph.operators,
        "name": "main",
    }
    return {
        "version": 3,
        "operator_codes": [_code(op) for op in graph.codes],
        "subgraphs": [subgraph],
        "description": f"{form.name}, written by dmsflow",
        "buffers": graph.buffers,
    }


def _code(op: str) -> dict[str, Any]:
    code = BUILTIN[op][0] if op in BUILTIN else CUSTOM
    custom = {} if op in BUILTIN else {"custom_code": op}
    return {"deprecated_builtin_code": code, "version": 1, "builtin_code": code, **custom}


# --- from deploy ops to operators -------------------------------------------------------------


def _lower(graph: _Graph, op: GraphOp, x: int, *others: int) -> int:
    """Add what computes `op`; the number of its tensor."""
    height, width, channels = graph.shapes[op.name]
    shape = (1, height, width, channels)
    match op:
        case Stem():
            return _stem(graph, op, x, shape)
        case BinaryConv():
            return _binary_conv(graph, op, x, shape)
        case MaxPool():
            return _max_pool(graph, op, x, shape)
        case Scale():
            return _scale(graph, op, x)
        case Quantize():
            half = graph.constant(f"{op.name}/half_alpha", np.array([op.threshold], np.float32))
            below = graph.operator("SUB", [half, x], f"{op.name}/below", shape, FLOATS)
            return _signs(graph, below, op.name)
        case Add():
            return graph.operator("ADD", [x, *others], op.name, graph.shape(x), FLOATS, **_activation(graph, op))
        case Relu():
            return x if _fuses(graph, op.inputs[0]) else graph.operator("RELU", [x], op.name, graph.shape(x), FLOATS)
        case AveragePool():
            return _average_pool(graph, op, x, shape)
        case Dense():
            weight, bias = graph.constant(f"{op.name}/weight", op.weight), graph.constant(f"{op.name}/bias", op.bias)
            return graph.operator("FULLY_CONNECTED", [x, weight, bias], op.name, (1, channels), FLOATS)


def _stem(graph: _Graph, op: Stem, x: int, shape: tuple[int, ...]) -> int:
    """The bias is a whole number too: with thresholds the result is negative where the bit is 1."""
    name, weight, bias = op.name, op.weight, np.zeros(shape[3], np.float32)
    if op.thresholds is not None:
        pooled = _pooled(graph, op)
        weight = weight if pooled else 0 - weight
        bias = (-op.thresholds if pooled else op.thresholds - 1).astype(np.float32)
        name = f"{op.name}/sums"
    mean = graph.constant(f"{op.name}/mean", op.mean)
    centred = graph.operator("SUB", [x, mean], f"{op.name}/centred", graph.shape(x), FLOATS)
    x, padding = _padded(graph, op, centred, op.weight.shape[1])
    inputs = [x, graph.constant(f"{op.name}/weight", weight), graph.constant(f"{op.name}/bias", bias)]
    options = {
        "padding": padding,
        "stride_w": op.stride,
        "stride_h": op.stride,
        "dilation_w_factor": 1,
        "dilation_h_factor": 1,
    }
    sums = graph.operator("CONV_2D", inputs, name, shape, FLOATS, **options)
    return sums if op.thresholds is None else _signs(graph, sums, op.name)


def _signs(graph: _Graph, x: int, name: str) -> int:
    """Bit 1 where x is negative."""
    return graph.operator("LceQuantize", [x], name, _packed_shape(graph.shape(x)), BITS)


def _binary_conv(graph: _Graph, op: BinaryConv, x: int, shape: tuple[int, ...]) -> int:
    signs, multiplier, bias, threshold = op.signs, ABSENT, ABSENT, ABSENT
    if op.thresholds is not None:
        least = op.thresholds + op.negatives - 1  # bit 1 where disagreements > least
        if _pooled(graph, op):  # of the opposite signs there are count - disagreements
            signs, least = -signs, op.count - 1 - least
        threshold = graph.constant(f"{op.name}/threshold", least.astype(np.int32))
    else:
        assert op.multiplier is not None and op.bias is not None
        multiplier = graph.constant(f"{op.name}/multiplier", -op.multiplier)
        bias = graph.constant(f"{op.name}/bias", op.bias)
    kernel, channels_in = op.signs.shape[2:]
    x, padding = _padded(graph, op, x, kernel)
    inputs = [x, graph.constant(f"{op.name}/weight", pack(signs < 0)), multiplier, bias, threshold]
    packed = op.thresholds is not None
    return graph.operator(
        "LceBconv2d",
        inputs,
        op.name,
        _packed_shape(shape) if packed else shape,
        BITS if packed else FLOATS,
        channels_in=channels_in,
        dilation_height_factor=1,
        dilation_width_factor=1,
        fused_activation_function=0,
        pad_values=1,
        padding=padding,
        stride_height=op.stride,
        stride_width=op.stride,
    )


def pack(bits: NDArray[np.bool_]) -> NDArray[np.int32]:
    """[..., C] -> [..., ceil(C / 32)]: channel c is bit c % 32 of word c // 32, the rest is 0."""
    missing = -bits.shape[-1] % WORD
    padded = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, missing)])
    words = np.packbits(padded, axis=-1, bitorder="little").view("<i4")
    return words.astype(np.int32)


def _packed_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:3], -(-shape[3] // WORD))


def _pooled(graph: _Graph, op: GraphOp) -> bool:
    """Whether the bits of `op` go through a max pool, and so are written as their opposites."""
    return any(isinstance(reader, MaxPool) for reader in graph.form.consumers(op.name))


def _padded(graph: _Graph, op: Stem | BinaryConv, x: int, kernel: int) -> tuple[int, int]:
    """Pad with zeros; the tensor to convolve, and the padding that is left to the convolution.

    SAME pads as `op` does only at stride 1: at stride 2 it pads an even image on one side.
    """
    if op.padding == 0:
        return x, VALID
    if op.stride == 1 and 2 * op.padding == kernel - 1:
        return x, SAME
    return _pad(graph, x, op.name, op.padding), VALID


def _pad(graph: _Graph, x: int, name: str, padding: int, fill: Any = None) -> int:
    """Grow an image on all sides, by zeros or by `fill`, a constant's number."""
    amounts = graph.constant(f"{name}/padding", np.array([[0, 0], [padding] * 2, [padding] * 2, [0, 0]], np.int32))
    batch, height, width, channels = graph.shape(x)
    dtype = FLOATS if graph.tensors[x]["type"] == TYPES[FLOATS] else BITS
    inputs = [x, amounts] if fill is None else [x, amounts, fill]
    shape = (batch, height + 2 * padding, width + 2 * padding, channels)
    return graph.operator("PAD" if fill is None else "PADV2", inputs, f"{name}/padded", shape, dtype)


def _max_pool(graph: _Graph, op: MaxPool, x: int, shape: tuple[int, ...]) -> int:
    if op.padding:  # by what never wins: -1 is all ones, neutral in an AND
        lowest = np.array([-1], np.int32) if op.binary else np.array([np.finfo(np.float32).min], np.float32)
        x = _pad(graph, x, op.name, op.padding, graph.constant(f"{op.name}/lowest", lowest))
    if not op.binary:
        return graph.operator("MAX_POOL_2D", [x], op.name, shape, FLOATS, **_window(op.kernel, op.stride))
    options = {"padding": VALID, "stride_width": op.stride, "stride_height": op.stride}
    options |= {"filter_width": op.kernel, "filter_height": op.kernel}
    off = graph.operator("LceBMaxPool2d", [x], f"{op.name}/off", _packed_shape(shape), BITS, **options)
    ones = graph.constant(f"{op.name}/ones", pack(np.ones(shape[3], np.bool_)))
    return graph.operator("SUB", [ones, off], op.name, _packed_shape(shape), BITS)


def _average_pool(graph: _Graph, op: AveragePool, x: int, shape: tuple[int, ...]) -> int:
    size = graph.shape(x)[1]
    return x if size == 1 else graph.operator("AVERAGE_POOL_2D", [x], op.name, shape, FLOATS, **_window(size, size))


def _window(kernel: int, stride: int) -> dict[str, int]:
    return {"padding": VALID, "stride_w": stride, "stride_h": stride, "filter_width": kernel, "filter_height": kernel}


def _scale(graph: _Graph, op: Scale, x: int) -> int:
    multiplier, bias = (
        graph.constant(f"{op.name}/multiplier", op.multiplier),
        graph.constant(f"{op.name}/bias", op.bias),
    )
    scaled = graph.operator("MUL", [x, multiplier], f"{op.name}/scaled", graph.shape(x), FLOATS)
    return graph.operator("ADD", [scaled, bias], op.name, graph.shape(x), FLOATS, **_activation(graph, op))


def _activation(graph: _Graph, op: GraphOp) -> dict[str, int]:
    return {"fused_activation_function": RELU} if _fuses(graph, op.name) else {}


def _fuses(graph: _Graph, name: str) -> bool:
    """Whether an addition's only reader is a ReLU, which it then does itself."""
    adds = any(op.name == name and isinstance(op, (Add, Scale)) for op in graph.form.ops)
    readers = graph.form.consumers(name)
    return adds and len(readers) == 1 and isinstance(readers[0], Relu)


# --- what is in a file ------------------------------------------------------------------------


def census(path: Path) -> dict[str, int]:
    """Ops of a file and how often each stands in it.

    Raises:
        DmsflowError: not a .tflite file, or a damaged one.
    """
    model = tflite.read_model(path)
    names = [tflite.operator_name(code) for code in model["operator_codes"]]
    return dict(
        Counter(names[operator.get("opcode_index", 0)] for operator in model["subgraphs"][0].get("operators", ()))
    )


def layer_bytes(path: Path) -> dict[str, int]:
    """Bytes that the constants of each op take in a file.

    The official converter leaves most constants without the name of their layer: they are of the
    first operator that reads them.

    Raises:
        DmsflowError: not a .tflite file, or a damaged one.
    """
    model = tflite.read_model(path)
    graph = model["subgraphs"][0]
    tensors = graph["tensors"]
    readers: dict[int, str] = {}
    for operator in graph.get("operators", ()):
        for number in operator.get("inputs", ()):
            readers.setdefault(number, _layer(tensors[operator["outputs"][0]]))
    sizes: Counter[str] = Counter()
    for number, tensor in enumerate(tensors):
        layer = _layer(tensor) if "/" in tensor.get("name", "") else readers.get(number, "")
        sizes[layer] += len(model["buffers"][tensor.get("buffer", 0)].get("data", b""))
    return dict(sizes)


def _layer(tensor: dict[str, Any]) -> str:
    """Whose tensor it is. The official converter joins the names of what it fuses; a ReLU has no constants."""
    names: list[str] = tensor.get("name", "").split(";")
    return next((name for name in names if not name.endswith("/Relu")), names[0]).partition("/")[0]

"""Random files of LCE's operators, run by LiteRT with the delegate and by the official interpreter.

LCE's default kernels take no groups: those are compared with its reference ones. They are wrong with
zero-padding where a filter is wider than the image, and the reference ones round otherwise: there the
definition in NumPy, `convolve`, decides.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters.lce import ABSENT, CUSTOM, SAME, VALID, pack
from dmsflow.environment import ROOT, witness_python
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import _witness

FLOATS, BITS, BYTES, PIXELS = "float32", "int32", "int8", "uint8"
CODES = {FLOATS: 0, BITS: 2, BYTES: 9, PIXELS: 3}
BUILTINS = {name: code for code, name in tflite.OPERATORS.items()}
NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
KERNELS = ("avx512", "avx2", "neon-dotprod", "neon", "portable")


def words(channels: int) -> int:
    return -(-channels // 32)


# --- files --------------------------------------------------------------------------------------------


@dataclass
class Tensor:
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scale: Any = None  # of a tensor of bytes; of a filter also one for each index of its first side
    zero_point: int = 0

    def quantization(self) -> dict[str, Any]:
        scales = np.atleast_1d(self.scale)
        return {"scale": scales, "zero_point": [self.zero_point] * len(scales), "quantized_dimension": 0}


@dataclass
class Node:
    """An operator of LCE, or one of TFLite's own: `kind` is then the number of its options in tflite.OPTIONS."""

    op: str
    inputs: list[int]
    output: int
    options: dict[str, int] | bytes = field(default_factory=dict)
    kind: int = 0

    def code(self) -> dict[str, Any]:
        number = BUILTINS.get(self.op, CUSTOM)
        custom = {} if self.op in BUILTINS else {"custom_code": self.op}
        return {"deprecated_builtin_code": number, "builtin_code": number, "version": 1, **custom}

    def fields(self) -> dict[str, Any]:
        """Its options, as an entry in operators has them."""
        if self.op in BUILTINS:
            return {"builtin_options_type": self.kind, "builtin_options": self.options} if self.kind else {}
        options = self.options
        if not isinstance(options, bytes):
            options = _flatbuffer.flexible(options) if options else b""
        return {"custom_options": options}


@dataclass
class Graph:
    """Tensors and nodes; the first tensor is the input, the last node's output the output."""

    tensors: list[Tensor]
    nodes: list[Node]

    def add(self, *tensor: Any, **fields: Any) -> int:
        self.tensors.append(Tensor(*tensor, **fields))
        return len(self.tensors) - 1

    def constant(self, data: np.ndarray, **fields: Any) -> int:
        return self.add(data.shape, str(data.dtype), data, **fields)

    def dumps(self) -> bytes:
        buffers: list[dict[str, Any]] = [{}]
        tensors = []
        for number, tensor in enumerate(self.tensors):
            if tensor.data is not None:
                buffers.append({"data": tensor.data.tobytes()})
            place = 0 if tensor.data is None else len(buffers) - 1
            fields: dict[str, Any] = {"shape": tensor.shape, "type": CODES[tensor.dtype], "buffer": place}
            if tensor.scale is not None:
                fields["quantization"] = tensor.quantization()
            tensors.append(fields | {"name": f"t{number}"})
        codes = {node.op: node.code() for node in sorted(self.nodes, key=lambda node: node.op)}
        operators = []
        for node in self.nodes:
            fields = {"opcode_index": list(codes).index(node.op), "inputs": node.inputs, "outputs": [node.output]}
            operators.append(fields | node.fields())
        return _flatbuffer.dumps(
            {
                "version": 3,
                "operator_codes": list(codes.values()),
                "subgraphs": [
                    {
                        "tensors": tensors,
                        "inputs": [0],
                        "outputs": [self.nodes[-1].output],
                        "operators": operators,
                        "name": "main",
                    }
                ],
                "buffers": buffers,
            }
        )


@dataclass
class Case:
    """A file's graph, an input, and what to compare with.

    Attributes:
        expected: where no mode of LCE is right.
        reference: LCE's reference kernels are, its default ones are not.
    """

    name: str
    graph: Graph
    values: np.ndarray
    expected: np.ndarray | None = None
    reference: bool = False


# --- random cases -------------------------------------------------------------------------------------


def random_case(rng: np.random.Generator) -> Case:
    kind = rng.choice(["conv", "pool", "quantize", "dequantize", "chain"], p=[0.6, 0.12, 0.1, 0.08, 0.1])
    makers = {"conv": conv, "pool": pool, "quantize": quantize, "dequantize": dequantize, "chain": chain}
    return makers[kind](rng)


def bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Packed random bits of [..., channels]; mostly many of one kind, sometimes all."""
    return pack(rng.random(shape) < rng.choice([0.0, 0.1, 0.5, 0.5, 0.5, 0.9, 1.0]))


def random_width(rng: np.random.Generator, most: int = 150) -> int:
    width = int(rng.integers(1, most + 1))
    return min(-(-width // 32) * 32, most // 32 * 32) if rng.random() < 0.4 else width


@dataclass
class Conv:
    """A random LceBconv2d."""

    channels: int
    filters: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    same: bool
    zero_padding: bool
    activation: int
    dtype: str
    weights: np.ndarray  # bool [filters, height, width, channels / groups], True is -1
    multiplier: np.ndarray
    bias: np.ndarray
    thresholds: np.ndarray
    scale: float
    zero_point: int

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels from a filter's first to its last, and one."""
        (height, width), (down, right) = self.kernel, self.dilation
        return (height - 1) * down + 1, (width - 1) * right + 1

    def size(self, image: tuple[int, int]) -> tuple[int, int]:
        """Of the output."""
        pixels = zip(image, self.reach, self.stride, strict=True)
        height, width = (-(-side // step) if self.same else (side - reach) // step + 1 for side, reach, step in pixels)
        return height, width

    def add(self, graph: Graph, image: int) -> int:
        """Append it to a graph; the number of its output."""
        batch, *sides = graph.tensors[image].shape[:3]
        height, width = self.size((sides[0], sides[1]))
        packed = self.dtype == BITS
        inputs = [image, graph.constant(pack(self.weights))]
        inputs += [ABSENT] * 2 if packed else [graph.constant(self.multiplier), graph.constant(self.bias)]
        inputs += [graph.constant(self.thresholds)] if packed else [ABSENT]
        channels = words(self.filters) if packed else self.filters
        quantized = {"scale": self.scale, "zero_point": self.zero_point} if self.dtype == BYTES else {}
        output = graph.add((batch, height, width, channels), self.dtype, **quantized)
        graph.nodes.append(Node("LceBconv2d", inputs, output, self.options()))
        return output

    def options(self) -> dict[str, int]:
        return {
            "channels_in": self.channels,
            "dilation_height_factor": self.dilation[0],
            "dilation_width_factor": self.dilation[1],
            "fused_activation_function": self.activation,
            "pad_values": 0 if self.zero_padding else 1,
            "padding": SAME if self.same else VALID,
            "stride_height": self.stride[0],
            "stride_width": self.stride[1],
        }

    def defies(self, image: tuple[int, int]) -> bool:
        """Whether LCE's default kernels are wrong, and its reference ones round differently: with
        zero-padding, where the filter is wider than the image or has groups."""
        wider = any(reach > side for reach, side in zip(self.reach, image, strict=True))
        return self.zero_padding and (wider or self.groups > 1)


def random_conv(rng: np.random.Generator, image: tuple[int, int], channels: int | None = None) -> Conv:
    pair = lambda most: (int(rng.integers(1, most + 1)), int(rng.integers(1, most + 1)))  # noqa: E731
    groups = int(rng.choice([1, 1, 1, 1, 1, 1, 1, 2, 3, 4])) if channels is None else 1
    dtype = str(rng.choice([FLOATS, FLOATS, BYTES, BITS, BITS]))
    unit = groups * (32 if dtype == BITS and groups > 1 else 1)
    filters = random_width(rng, 100) if unit == 1 else unit * int(rng.integers(1, 64 // unit + 2))
    channels = channels or (random_width(rng) if groups == 1 else 32 * groups * int(rng.integers(1, 3)))
    kernel = (int(rng.choice([1, 3, 5])),) * 2 if rng.random() < 0.6 else pair(7)
    stride = pair(3) if rng.random() < 0.4 else (1, 1)
    dilation = pair(3) if rng.random() < 0.2 else (1, 1)
    same = bool(rng.random() < 0.6)
    if not same:
        dilation = (
            dilation[0] if (kernel[0] - 1) * dilation[0] < image[0] else 1,
            dilation[1] if (kernel[1] - 1) * dilation[1] < image[1] else 1,
        )
        kernel = min(kernel[0], image[0]), min(kernel[1], image[1])
    zero_padding = bool(same and dtype == FLOATS and rng.random() < 0.4)
    activation = NONE if zero_padding else int(rng.choice([NONE, NONE, RELU, RELU_N1_TO_1, RELU6]))
    count = kernel[0] * kernel[1] * channels // groups
    multiplier, bias, scale = transform(rng, filters, count, dtype)
    thresholds = (
        rng.integers(-3, count + 4, filters) if rng.random() < 0.3 else rng.integers(count // 3, count, filters)
    )
    thresholds[rng.random(filters) < 0.05] = rng.choice([-(2**31), 2**31 - 1])
    return Conv(
        channels=channels,
        filters=filters,
        groups=groups,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        same=same,
        zero_padding=zero_padding,
        activation=activation,
        dtype=dtype,
        multiplier=multiplier,
        bias=bias,
        scale=scale,
        weights=rng.random((filters, *kernel, channels // groups)) < rng.choice([0.2, 0.5, 0.5, 0.8]),
        thresholds=thresholds.astype(np.int32),
        zero_point=int(rng.integers(-128, 128)),
    )


def transform(rng: np.random.Generator, filters: int, count: int, dtype: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A multiplier and a bias for each filter, and the scale of an int8 output that keeps them in its range."""
    if rng.random() < 0.2:  # halves, whose rounding is a convention
        return np.full(filters, 0.5, np.float32), rng.integers(-9, 9, filters).astype(np.float32), 1.0
    multiplier = rng.normal(size=filters) * np.exp(rng.normal())
    bias = rng.normal(size=filters) * np.sqrt(count)
    if dtype == FLOATS:
        multiplier[rng.random(filters) < 0.05] = rng.choice([0.0, -0.0, 1e-30, 1e30, 1e-39, -1e-40])
        bias[rng.random(filters) < 0.05] = rng.choice([0.0, 1e-39, -1e-44])
    scale = float(np.float32(np.abs(multiplier).max() * np.sqrt(count) / 60 + 1e-3))
    return multiplier.astype(np.float32), bias.astype(np.float32), scale


def random_image(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(1, 15)), int(rng.integers(1, 15))


def conv(rng: np.random.Generator) -> Case:
    image, batch = random_image(rng), int(rng.choice([1, 1, 1, 2, 3]))
    made = random_conv(rng, image)
    graph = Graph([Tensor((batch, *image, words(made.channels)), BITS)], [])
    made.add(graph, 0)
    values = bits(rng, batch, *image, made.channels)
    expected = convolve(made, values) if made.defies(image) else None
    return Case(f"conv {made.dtype}", graph, values, expected, reference=made.groups > 1)


def pool(rng: np.random.Generator) -> Case:
    image, batch, channels = random_image(rng), int(rng.integers(1, 4)), random_width(rng)
    graph = Graph([Tensor((batch, *image, words(channels)), BITS)], [])
    add_pool(rng, graph, 0)
    return Case("pool", graph, bits(rng, batch, *image, channels))


def add_pool(rng: np.random.Generator, graph: Graph, image: int) -> int:
    batch, height, width, count = graph.tensors[image].shape
    same = bool(rng.random() < 0.5)
    window = [int(rng.integers(1, (4 if same else min(4, side)) + 1)) for side in (height, width)]
    stride = [int(rng.integers(1, 4)) for _ in range(2)]
    sides = zip((height, width), window, stride, strict=True)
    size = [-(-side // step) if same else (side - reach) // step + 1 for side, reach, step in sides]
    output = graph.add((batch, *size, count), BITS)
    options = {"filter_height": window[0], "filter_width": window[1], "padding": SAME if same else VALID}
    options |= {"stride_height": stride[0], "stride_width": stride[1]}
    graph.nodes.append(Node("LceBMaxPool2d", [image], output, options))
    return output


def random_shape(rng: np.random.Generator) -> tuple[int, ...]:
    rank = int(rng.choice([1, 2, 3, 4, 4, 4, 5]))
    return (*(int(side) for side in rng.integers(1, 7, rank - 1)), random_width(rng))


def quantize(rng: np.random.Generator) -> Case:
    shape = random_shape(rng)
    if rng.random() < 0.5:
        values = rng.normal(size=shape).astype(np.float32)
        special = rng.random(shape) < 0.3
        values[special] = rng.choice(np.array([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 1e38], np.float32), shape)[
            special
        ]
        graph = Graph([Tensor(shape, FLOATS)], [])
    else:
        values = rng.integers(-128, 128, shape).astype(np.int8)
        graph = Graph([Tensor(shape, BYTES, scale=0.5, zero_point=int(rng.integers(-128, 128)))], [])
    output = graph.add((*shape[:-1], words(shape[-1])), BITS)
    graph.nodes.append(Node("LceQuantize", [0], output))
    return Case("quantize", graph, values)


def dequantize(rng: np.random.Generator) -> Case:
    shape = random_shape(rng)
    graph = Graph([Tensor((*shape[:-1], words(shape[-1])), BITS)], [])
    if rng.random() < 0.5:
        output = graph.add(shape, FLOATS)
    else:
        scale = float(np.float32(rng.choice([1.0, 0.4, 2 / 3, 0.01, 0.003, 3.0, rng.random() + 1e-3])))
        output = graph.add(shape, BYTES, scale=scale, zero_point=int(rng.integers(-128, 128)))
    graph.nodes.append(Node("LceDequantize", [0], output))
    return Case("dequantize", graph, bits(rng, *shape))


def chain(rng: np.random.Generator) -> Case:
    """Quantize, some convolutions that put out bits, a pool between them, and a convolution of any kind."""
    image, channels = (int(rng.integers(6, 15)), int(rng.integers(6, 15))), random_width(rng)
    shape = (int(rng.choice([1, 1, 2])), *image, channels)
    graph = Graph([Tensor(shape, FLOATS)], [])
    last = graph.add((*shape[:3], words(channels)), BITS)
    graph.nodes.append(Node("LceQuantize", [0], last))
    for _ in range(int(rng.integers(1, 4))):
        image = graph.tensors[last].shape[1], graph.tensors[last].shape[2]
        made = random_conv(rng, image, channels)
        made.dtype, made.zero_padding = BITS, False
        last, channels = made.add(graph, last), made.filters
        if rng.random() < 0.4:
            last = add_pool(rng, graph, last)
    image = graph.tensors[last].shape[1], graph.tensors[last].shape[2]
    made = random_conv(rng, image, channels)
    made.zero_padding = made.zero_padding and not made.defies(image)
    made.add(graph, last)
    return Case("chain", graph, rng.normal(size=shape).astype(np.float32))


# --- the definition, for the cases that LCE gets wrong ---------------------------------------------------


def convolve(made: Conv, values: np.ndarray) -> np.ndarray:
    """A float convolution of packed bits with zero-padding, in LCE's order of float operations."""
    batch, height, width, _ = values.shape
    out_height, out_width = made.size((height, width))
    bools = np.unpackbits(values.view(np.uint8), axis=-1, bitorder="little")[..., : made.channels]
    signs, weights = 1 - 2 * bools.astype(np.int64), 1 - 2 * made.weights.astype(np.int64)
    ahead = [
        max((out - 1) * step + reach - side, 0) // 2
        for out, step, reach, side in zip(
            (out_height, out_width), made.stride, made.reach, (height, width), strict=True
        )
    ]
    sums = np.zeros((batch, out_height, out_width, made.filters), np.int64)
    outside = np.zeros_like(sums)
    for y, x, down, right in np.ndindex(out_height, out_width, *made.kernel):
        at_y = y * made.stride[0] - ahead[0] + down * made.dilation[0]
        at_x = x * made.stride[1] - ahead[1] + right * made.dilation[1]
        if 0 <= at_y < height and 0 <= at_x < width:
            seen = signs[:, at_y, at_x].reshape(batch, made.groups, 1, -1)
            met = weights[:, down, right].reshape(1, made.groups, -1, made.channels // made.groups)
            sums[:, y, x] += (seen * met).sum(-1).reshape(batch, -1)
        else:
            outside[:, y, x] += weights[:, down, right].sum(-1)
    count = made.kernel[0] * made.kernel[1] * made.channels // made.groups
    twice = (count - (sums + outside)).astype(np.float32)  # with what is outside taken for +1
    multiplier, bias = flushed(made.multiplier), flushed(made.bias)
    fused = flushed((bias + count * multiplier.astype(np.float64)).astype(np.float32))
    correction = flushed(-multiplier * outside.astype(np.float32))
    return flushed(flushed(flushed(twice * -multiplier) + fused) + correction)


def flushed(values: np.ndarray) -> np.ndarray:
    """Denormal numbers count as zero."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)


# --- the two runtimes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def silent() -> Any:
    """What compiled code writes to stderr meanwhile goes nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def open_litert(model: bytes, library: str, options: dict[str, str] | None = None, threads: int = 1) -> Any:
    """LiteRT's interpreter with the delegate and its options, tensors allocated."""
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    delegate = load_delegate(library, options)
    interpreter = Interpreter(model_content=model, experimental_delegates=[delegate], num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def run_litert(interpreter: Any, values: np.ndarray) -> np.ndarray:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


WITNESS = """
import os, sys
sys.path.append(sys.argv[1])
import numpy as np
from dmsflow.modelfile.runners import _witness, lce
given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
while (model := _witness.receive(given)) is not None:
    reference, values = bool(_witness.receive(given)), _witness.receive(given)
    interpreter = lce._interpreter()(model.tobytes(), 1, reference, False, False)
    _witness.send(answers, np.asarray(interpreter.predict([values])[0]))
"""


@cache
def witness() -> subprocess.Popen[bytes]:
    """A process that runs one model after the other in the official interpreter; it ends with this one."""
    pipe, command = subprocess.PIPE, [witness_python(), "-I", "-c", WITNESS, str(ROOT)]
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    atexit.register(child.communicate)
    return child


def run_lce(model: bytes, values: np.ndarray, reference: bool = False) -> np.ndarray:
    """The official interpreter: its default kernels, or its reference ones."""
    child = witness()
    assert child.stdin and child.stdout
    for part in (np.frombuffer(model, np.uint8), np.array(reference), values):
        _witness.send(child.stdin, part)
    output = _witness.receive(child.stdout)
    assert output is not None, "the official interpreter crashed"
    return output


def expected(case: Case) -> np.ndarray:
    return case.expected if case.expected is not None else run_lce(case.graph.dumps(), case.values, case.reference)


def available(library: str) -> list[str]:
    """The kernels that this processor can run."""
    from ai_edge_litert.interpreter import load_delegate

    found = []
    for name in KERNELS:
        with contextlib.suppress(ValueError):
            load_delegate(library, {"kernels": name})
            found.append(name)
    return found


def same_bits(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.shape == wanted.shape and got.dtype == wanted.dtype and got.tobytes() == wanted.tobytes()


def difference(seed: int, library: str, kernels: list[str], same: Counter[str]) -> str:
    """What differs in the case of this seed, with kernels and threads of its choice; equal cases are counted."""
    rng = np.random.default_rng(seed)
    case = random_case(rng)
    options = {"kernels": str(rng.choice(kernels)), "threads": str(rng.choice([1, 1, 2, 3]))}
    model, wanted = case.graph.dumps(), expected(case)
    with silent():
        interpreter = open_litert(model, library, options)
    for _ in range(2):
        got = run_litert(interpreter, case.values)
        if not same_bits(got, wanted):
            share = (got != wanted).mean() if got.shape == wanted.shape else 1
            return f"seed {seed}, {case.name}, {options}: {got.shape}, {share:.2%} of the values differ"
    same[f"{case.name}, {options['kernels']}"] += 1
    return ""

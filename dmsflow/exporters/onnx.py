"""Writes .onnx files of standard ops (opset 18), built node by node.

A binary network keeps its weights in the file as bits: eight a byte in a uint8 constant, unpacked
by standard ops that onnxruntime folds when it loads the file. What then runs is float32
convolution, yet exact: activations are 0 or 1, weights whole numbers, so every sum is a whole
number below 2^24, and `sum >= threshold` is `Clip(sum - (threshold - 1), 0, 1)`.

Input: raw pixels, float32 [1, H, W, C]. Output: logits, float32 [1, classes].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow import deploy, folding, manifest
from dmsflow.errors import DmsflowError
from dmsflow.network import INPUT, Layer, Network

OPSET, IR_VERSION = 18, 8  # of onnx 1.13: five years of runtimes read it
EPSILON = 1e-5  # of batch norm
FLOAT_CONV, PACKED_CONV = "Conv", "Conv with 1-bit weights"  # names in a census
OPTION, VARIANTS = "onnx_form", ("float",)
Weights = Mapping[str, NDArray[Any]]


class Graph:
    """Nodes and constants of a model in the making; tensors are called by name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name. The node has no other: names take bytes."""
        self.nodes.append(_onnx().helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = np.ascontiguousarray(values, dtype)
        return name

    def per_channel(self, name: str, values: Any) -> str:
        """A constant [C] for tensors [1, C, H, W]."""
        return self.constant(name, np.reshape(values, (-1, 1, 1)))

    def affine(self, x: str, multiplier: Any, bias: Any, name: str) -> str:
        """`x * multiplier + bias` for each channel, each of the two operations rounded."""
        scaled = self.node("Mul", x, self.per_channel(f"{name}.multiplier", multiplier), name=f"{name}.scaled")
        return self.node("Add", scaled, self.per_channel(f"{name}.bias", bias), name=name)

    def clip(self, x: str, low: float, high: float, name: str) -> str:
        return self.node(
            "Clip", x, self.constant(f"constant.{low}", low), self.constant(f"constant.{high}", high), name=name
        )

    def pixels(self, mean: Any) -> str:
        """The input, transposed to [1, C, H, W], less the mean."""
        if "input.mean" not in self.constants:
            planes = self.node("Transpose", INPUT, name="input.planes", perm=[0, 3, 1, 2])
            self.node("Sub", planes, self.per_channel("input.mean", mean), name="input.centred")
        return "input.centred"

    def signs(self, name: str, signs: NDArray[np.int8], magnitude: int) -> str:
        """Weights ±magnitude of the shape of `signs` (±1), stored as bits (1: +)."""
        packed = self.constant(f"{name}.bits", np.packbits(signs.reshape(-1) > 0)[:, None], np.uint8)  # [bytes, 1]
        shifts = self.constant("constant.shifts", range(7, -1, -1), np.uint8)  # [8]
        shifted = self.node("BitShift", packed, shifts, name=f"{name}.shifted", direction="RIGHT")  # [bytes, 8]
        bits = self.node("BitwiseAnd", shifted, self.constant("constant.bit", 1, np.uint8), name=f"{name}.unpacked")
        flat = self.node("Reshape", bits, self.constant("constant.flat", [-1], np.int64), name=f"{name}.flat")
        if signs.size % 8:
            ends = (
                self.constant("constant.begin", [0], np.int64),
                self.constant(f"{name}.count", [signs.size], np.int64),
            )
            flat = self.node("Slice", flat, *ends, name=f"{name}.kept")
        shaped = self.node(
            "Reshape", flat, self.constant(f"{name}.shape", signs.shape, np.int64), name=f"{name}.shaped"
        )
        ones = self.node("Cast", shaped, name=f"{name}.ones", to=_onnx().TensorProto.FLOAT)
        doubled = self.node(
            "Mul", ones, self.constant(f"constant.{2 * magnitude}", 2 * magnitude), name=f"{name}.doubled"
        )
        return self.node("Sub", doubled, self.constant(f"constant.{magnitude}", magnitude), name=f"{name}.weight")

    def save(self, path: Path, name: str, input_shape: Sequence[int], logits: str, classes: int) -> None:
        onnx = _onnx()
        tensor = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes,
            name,
            [tensor(INPUT, onnx.TensorProto.FLOAT, input_shape)],
            [tensor(logits, onnx.TensorProto.FLOAT, (1, classes))],
            [onnx.numpy_helper.from_array(values, name) for name, values in self.constants.items()],
        )
        opset = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="dmsflow")
        manifest.write_atomically(path, model.SerializeToString())


# --- the binary network -----------------------------------------------------------------------


def write(form: deploy.DeployForm, path: Path, variant: str = VARIANTS[0]) -> None:
    """Write a deploy form.

    Raises:
        DmsflowError: onnx is missing, or the file cannot be written.
    """
    graph = Graph()
    for op in form.ops:
        _WRITE[type(op)](graph, op)
    graph.save(path, form.name, (1, form.resolution, form.resolution, form.channels), form.ops[-1].name, form.classes)


def _window(op: Any, kernel: int) -> dict[str, list[int]]:
    return {"kernel_shape": [kernel] * 2, "strides": [op.stride] * 2, "pads": [op.padding] * 4}


def _planes(weights: NDArray[Any]) -> NDArray[Any]:
    """[C_out, k, k, C_in] -> [C_out, C_in, k, k]."""
    return weights.transpose(0, 3, 1, 2)


def _stem(graph: Graph, op: deploy.Stem) -> None:
    x = graph.pixels(op.mean)
    weight = graph.constant(f"{op.name}.weight", _planes(op.weight))
    window = _window(op, op.weight.shape[1])
    if op.thresholds is not None:
        bias = graph.constant(f"{op.name}.bias", 1 - op.thresholds)
        graph.clip(graph.node("Conv", x, weight, bias, name=f"{op.name}.sum", **window), 0, 1, op.name)
    else:
        # A clip that never clips: it keeps onnxruntime from folding a following Mul into the whole-number weights.
        sums = graph.node("Conv", x, weight, name=f"{op.name}.sum", **window)
        graph.clip(sums, -deploy.EXACT, deploy.EXACT, op.name)


def _binary_conv(graph: Graph, op: deploy.BinaryConv) -> None:
    window = _window(op, op.signs.shape[1])
    signs = _planes(op.signs)
    if op.thresholds is not None:
        weight, bias = graph.signs(op.name, signs, 1), graph.constant(f"{op.name}.bias", 1 - op.thresholds)
        graph.clip(graph.node("Conv", *op.inputs, weight, bias, name=f"{op.name}.sum", **window), 0, 1, op.name)
    else:
        weight, bias = graph.signs(op.name, signs, 2), graph.constant(f"{op.name}.negatives", 2 * op.negatives)
        counted = graph.node("Conv", *op.inputs, weight, bias, name=f"{op.name}.sum", **window)
        # Counts are never negative: this Relu only keeps onnxruntime from folding the Mul into the weights.
        graph.affine(graph.node("Relu", counted, name=f"{op.name}.counted"), op.multiplier, op.offset, op.name)


def _max_pool(graph: Graph, op: deploy.MaxPool) -> None:
    graph.node("MaxPool", *op.inputs, name=op.name, **_window(op, op.kernel))


def _quantize(graph: Graph, op: deploy.Quantize) -> None:
    on = graph.node("Greater", *op.inputs, graph.constant(f"{op.name}.threshold", op.threshold), name=f"{op.name}.on")
    graph.node("Cast", on, name=op.name, to=_onnx().TensorProto.FLOAT)


def _dense(graph: Graph, x: str, name: str, weight: Any, bias: Any) -> None:
    flat = graph.node("Flatten", x, name=f"{name}.flat")
    constants = graph.constant(f"{name}.weight", weight), graph.constant(f"{name}.bias", bias)
    graph.node("Gemm", flat, *constants, name=name, transB=1)


_WRITE: dict[type, Any] = {
    deploy.Stem: _stem,
    deploy.BinaryConv: _binary_conv,
    deploy.MaxPool: _max_pool,
    deploy.Quantize: _quantize,
    deploy.Scale: lambda graph, op: graph.affine(*op.inputs, op.multiplier, op.bias, op.name),
    deploy.Add: lambda graph, op: graph.node("Add", *op.inputs, name=op.name),
    deploy.Relu: lambda graph, op: graph.node("Relu", *op.inputs, name=op.name),
    deploy.AveragePool: lambda graph, op: graph.node("GlobalAveragePool", *op.inputs, name=op.name),
    deploy.Dense: lambda graph, op: _dense(graph, op.inputs[0], op.name, op.weight, op.bias),
}


# --- the float32 network of the same widths ---------------------------------------------------


def write_float(
    network: Network,
    widths: Mapping[str, int],
    weights: Weights | None,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Write the network in full precision: every binary conv a plain one, every quantiser a ReLU.

    A batch norm behind a convolution is folded into it, also through a max pool if its scale is
    positive.

    Args:
        network, widths: what to write.
        weights: as in train.safetensors, from `train --precision float`; None: random, always the same.
        mean, std: of each channel in pixels.
        path: of the file.

    Raises:
        DmsflowError: onnx is missing, a weight is missing, or the file cannot be written.
    """
    graph, weights = Graph(), weights or folding.random_weights(network, widths)
    names = {INPUT: graph.node("Div", graph.pixels(mean), graph.per_channel("input.std", std), name="input.normalised")}
    positive = set()  # layers whose tensor has no negative value: a ReLU behind them is none
    for layer in network.layers:
        inputs = [names[name] for name in layer.inputs]
        if layer.op in ("relu", "quantize"):
            names[layer.name] = (
                inputs[0] if layer.inputs[0] in positive else graph.node("Relu", *inputs, name=layer.name)
            )
            positive.add(layer.name)
        elif layer.op == "batch_norm" and _folds(network, layer, weights):
            names[layer.name] = inputs[0]
        else:
            names[layer.name] = layer.name
            _float_layer(graph, network, layer, inputs, weights)
    shape = (1, network.resolution, network.resolution, network.channels)
    graph.save(path, f"{network.name}_float32", shape, network.layers[-1].name, network.classes)


def _float_layer(graph: Graph, network: Network, layer: Layer, inputs: list[str], weights: Weights) -> None:
    if layer.op in ("conv", "binary_conv"):
        weight, bias = _folded(network, layer, weights)
        constants = graph.constant(f"{layer.name}.weight", weight), graph.constant(f"{layer.name}.bias", bias)
        graph.node("Conv", *inputs, *constants, name=layer.name, **_window(layer, layer.kernel))
    elif layer.op == "batch_norm":
        graph.affine(inputs[0], *_scale_and_shift(layer, weights), layer.name)
    elif layer.op == "max_pool":
        graph.node("MaxPool", *inputs, name=layer.name, **_window(layer, layer.kernel))
    elif layer.op == "average_pool":
        graph.node("GlobalAveragePool", *inputs, name=layer.name)
    elif layer.op == "add":
        graph.node("Add", *inputs, name=layer.name)
    else:
        parameters = (_weight(weights, f"{layer.name}.{name}") for name in ("weight", "bias"))
        _dense(graph, inputs[0], layer.name, *parameters)


def _folded(network: Network, conv: Layer, weights: Weights) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of a convolution, with the batch norm that follows it."""
    weight = _weight(weights, f"{conv.name}.weight")
    scale, shift = np.ones(len(weight)), np.zeros(len(weight))
    reader = network.consumers(conv.name)[0]
    norm = network.consumers(reader.name)[0] if reader.op == "max_pool" else reader
    if norm.op == "batch_norm" and _folds(network, norm, weights):
        scale, shift = _scale_and_shift(norm, weights)
    return weight * scale[:, None, None, None], shift


def _folds(network: Network, norm: Layer, weights: Weights) -> bool:
    """Whether a batch norm can be part of the convolution before it."""
    before = norm.inputs[0]
    pooled = before != INPUT and network.layer(before).op == "max_pool"
    chain = [before, network.layer(before).inputs[0]] if pooled else [before]
    if chain[-1] == INPUT or network.layer(chain[-1]).op not in ("conv", "binary_conv"):
        return False
    alone = all(len(network.consumers(name)) == 1 for name in chain)
    return alone and (not pooled or bool((_scale_and_shift(norm, weights)[0] > 0).all()))


def _scale_and_shift(norm: Layer, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    gamma, beta, mean, variance = (
        _weight(weights, f"{norm.name}.{name}").astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + EPSILON)
    return scale, beta - mean * scale


def _weight(weights: Weights, name: str) -> NDArray[Any]:
    if name not in weights:
        raise DmsflowError(name, "is not among the weights", "train the network again")
    return weights[name]


# --- what is in a file ------------------------------------------------------------------------


def census(path: Path) -> dict[str, int]:
    """Ops of a file and how often each stands in it; the ops that unpack weights are not counted.

    A convolution whose weights are unpacked from bits counts as PACKED_CONV.

    Raises:
        DmsflowError: not an ONNX file.
    """
    nodes = _load(path).node
    unpacked = _unpacked(nodes)
    counted: Counter[str] = Counter()
    for node in nodes:
        if node.output[0] not in unpacked:
            packed = node.op_type == "Conv" and node.input[1] in unpacked
            counted[PACKED_CONV if packed else node.op_type] += 1
    return dict(counted)


def layer_bytes(path: Path) -> dict[str, int]:
    """Bytes that the constants of each op take in a file.

    Raises:
        DmsflowError: not an ONNX file.
    """
    sizes: Counter[str] = Counter()
    for constant in _load(path).initializer:
        sizes[constant.name.rpartition(".")[0]] += len(constant.raw_data)
    return dict(sizes)


def _load(path: Path) -> Any:
    """The graph of a file."""
    onnx = _onnx()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path).graph
    except (OSError, DecodeError) as error:
        raise DmsflowError(path, f"is not an ONNX file ({error})", "export it again") from error


def _unpacked(nodes: Any) -> set[str]:
    """Tensors computed from bits, and from nothing else but constants."""
    tensors: set[str] = set()
    for node in nodes:
        if node.op_type == "BitShift" or (node.op_type != "Conv" and node.input[0] in tensors):
            tensors.update(node.output)
    return tensors


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise DmsflowError("onnx", "is not installed", "pip install 'dmsflow[onnx]'") from error
    return onnx

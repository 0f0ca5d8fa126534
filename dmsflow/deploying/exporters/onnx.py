"""Writes .onnx files of standard ops (opset 18), built node by node.

A binary network keeps its weights in the file as bits, which onnxruntime unpacks when it loads the
file. What then runs is, in the mixed form, integer arithmetic (`_onnx_mixed`), and in the float form
float32 convolution, yet exact: activations are 0 or 1, weights whole numbers, so every sum is a whole
number below 2^24, and `sum >= threshold` is `Clip(sum - (threshold - 1), 0, 1)`.

Input: raw pixels, float32 [1, H, W, C]. Output: logits, float32 [1, classes].
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from dmsflow.deploying import integer_graph
from dmsflow.deploying.exporters import _onnx_graph
from dmsflow.deploying.exporters._onnx_float32 import write_float as write_float
from dmsflow.deploying.exporters._onnx_graph import Graph, channels_first, window_of
from dmsflow.deploying.exporters._onnx_mixed import Mixed

FLOAT_CONV, PACKED_CONV = "Conv", "Conv with 1-bit weights"  # names in a census
CONVOLUTIONS = {"Conv": 1, "QLinearConv": 3, "MatMulInteger": 1}  # and which input holds the weights
OPTION, VARIANTS = "onnx_form", ("mixed", "float")


def write(form: integer_graph.IntegerGraph, path: Path, variant: str = VARIANTS[0]) -> None:
    """Write a integer graph.

    Raises:
        DmsflowError: onnx is missing, a layer has more weights than can be counted, or the file
            cannot be written.
    """
    graph = Mixed(form).graph if variant == "mixed" else _float_form(form)
    graph.save(path, form.name, (1, form.resolution, form.resolution, form.channels), form.ops[-1].name, form.classes)


# --- the float form ---------------------------------------------------------------------------


def _float_form(form: integer_graph.IntegerGraph) -> Graph:
    graph = Graph()
    for op in form.ops:
        _WRITE[type(op)](graph, op)
    return graph


def _binary_conv(graph: Graph, op: integer_graph.BinaryConv) -> None:
    window = window_of(op, op.signs.shape[1])
    signs = channels_first(op.signs)
    if op.thresholds is not None:
        weight, bias = graph.signs(op.name, signs), graph.constant(f"{op.name}.bias", 1 - op.thresholds)
        graph.clip(graph.node("Conv", *op.inputs, weight, bias, name=f"{op.name}.sum", **window), 0, 1, op.name)
    else:
        weight, bias = graph.signs(op.name, signs, 2), graph.constant(f"{op.name}.negatives", 2 * op.negatives)
        counted = graph.node("Conv", *op.inputs, weight, bias, name=f"{op.name}.sum", **window)
        # Counts are never negative: this Relu only keeps onnxruntime from folding the Mul into the weights.
        graph.affine(graph.node("Relu", counted, name=f"{op.name}.counted"), op.multiplier, op.offset, op.name)


def _max_pool(graph: Graph, op: integer_graph.MaxPool) -> None:
    graph.node("MaxPool", *op.inputs, name=op.name, **window_of(op, op.kernel))


def _quantize(graph: Graph, op: integer_graph.Quantize) -> None:
    on = graph.node("Greater", *op.inputs, graph.constant(f"{op.name}.threshold", op.threshold), name=f"{op.name}.on")
    graph.cast(on, "float32", op.name)


_WRITE: dict[type, Any] = {
    integer_graph.Stem: lambda graph, op: graph.stem(op),
    integer_graph.BinaryConv: _binary_conv,
    integer_graph.MaxPool: _max_pool,
    integer_graph.Quantize: _quantize,
    integer_graph.Scale: lambda graph, op: graph.affine(*op.inputs, op.multiplier, op.bias, op.name),
    integer_graph.Add: lambda graph, op: graph.node("Add", *op.inputs, name=op.name),
    integer_graph.Relu: lambda graph, op: graph.node("Relu", *op.inputs, name=op.name),
    integer_graph.AveragePool: lambda graph, op: graph.node("GlobalAveragePool", *op.inputs, name=op.name),
    integer_graph.Dense: lambda graph, op: graph.dense(*op.inputs, op.name, op.weight, op.bias),
}


# --- what is in a file ------------------------------------------------------------------------


def census(path: Path) -> dict[str, int]:
    """Ops of a file and how often each stands in it; those that onnxruntime folds on loading are not counted.

    A convolution, or a product that counts for one, whose weights are unpacked from bits counts as PACKED_CONV.

    Raises:
        DmsflowError: not an ONNX file.
    """
    graph = _onnx_graph.load(path)
    folded, unpacked = _onnx_graph.folded(graph)
    counted: Counter[str] = Counter()
    for node in graph.node:
        if node.output[0] not in folded:
            at = CONVOLUTIONS.get(node.op_type, len(node.input))
            packed = at < len(node.input) and node.input[at] in unpacked
            counted[PACKED_CONV if packed else node.op_type] += 1
    return dict(counted)


def layer_bytes(path: Path) -> dict[str, int]:
    """Bytes that the constants of each op take in a file.

    Raises:
        DmsflowError: not an ONNX file.
    """
    sizes: Counter[str] = Counter()
    for constant in _onnx_graph.load(path).initializer:
        sizes[constant.name.rpartition(".")[0]] += len(constant.raw_data)
    return dict(sizes)

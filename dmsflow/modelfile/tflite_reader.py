"""Reads .tflite files, with the ops of Larq Compute Engine (LCE) or without, of any number of subgraphs.

Interpreters insist on more than is needed to say what a file holds: `tflite.parse_model` checks the one
or the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dmsflow.modelfile import tflite
from dmsflow.modelfile.graph import BITS, Graph, Node, Tensor, Weights, numpy_type, stored_size, whole
from dmsflow.modelfile.inputs import plain

PACKED = ("LceBconv2d", "LceBMaxPool2d", "LceQuantize")
CONSTANT_MAKING = ("CAST", "DENSIFY", "DEQUANTIZE", "RESHAPE", "TRANSPOSE")  # ops that converters put behind constants
VALUE_KEEPING = ("CAST", "DENSIFY", "DEQUANTIZE")
WEIGHTS = {  # input, axis of the output channels, whether it is a convolution
    "CONV_2D": (1, 0, True),
    "CONV_3D": (1, 4, True),
    "DEPTHWISE_CONV_2D": (1, 3, True),
    "TRANSPOSE_CONV": (1, 0, True),
    "LceBconv2d": (1, 0, True),
    "FULLY_CONNECTED": (1, 0, False),
    # TensorFlow's own, left where the converter has none of TFLite's; [k, k, in, out].
    "Conv2D": (1, 3, True),
    "FlexConv2D": (1, 3, True),
}
KNOWN = {*tflite.OPERATORS.values(), *WEIGHTS, *PACKED, "LceDequantize"}
PASSING = ("PAD", "PADV2", "SUB", "LceBMaxPool2d")  # these leave packed channels packed
FAR = 2  # a smaller offset of a buffer stands for none


def read_graph(_: Path, data: bytes) -> Graph:
    """The graph of a .tflite file; tflite.Damaged if it is not whole, or no such file."""
    return _File(data).graph()


class _File:
    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.model = tflite.parse_model(data, runnable=False)
        self.buffers = [self.content(buffer) for buffer in self.model.get("buffers", ())]
        self.codes = [plain(tflite.operator_name(code)) for code in self.model.get("operator_codes", ())]
        self.tensors: list[Tensor] = []
        self.channels: dict[int, int] = {}  # of tensors whose shape counts words of 32 instead

    def content(self, buffer: dict[str, Any]) -> memoryview | None:
        """What a buffer holds; large ones lie behind the tables. None: nothing is stored."""
        start, size = buffer.get("offset", 0), buffer.get("size", 0)
        if start < FAR:
            return buffer.get("data")
        if start + size > len(self.data):
            raise tflite.Damaged(f"a buffer at byte {start} ends at {start + size} of {len(self.data)}")
        return self.data[start : start + size]

    def graph(self) -> Graph:
        model = self.model
        about = {
            "format": f"TFLite, schema version {model.get('version', 0)}",
            "description": model.get("description", ""),
            "signatures": ", ".join(entry.get("signature_key", "") for entry in model.get("signature_defs", ())),
            "metadata": ", ".join(entry.get("name", "") for entry in model.get("metadata", ())),
        }
        graph = Graph("TFLite", about, tensors=self.tensors)
        for index, part in enumerate(model["subgraphs"]):
            first = len(self.tensors)
            title = plain(part.get("name", "")) or f"subgraph {index}"
            self.tensors += [self.tensor(fields, number) for number, fields in enumerate(part.get("tensors", ()))]
            for operator in part.get("operators", ()):
                graph.nodes.append(self.node(operator, title, first))
        graph.inputs, graph.outputs = (_numbers(model["subgraphs"][0], key, 0) for key in ("inputs", "outputs"))
        return graph

    def tensor(self, fields: dict[str, Any], number: int) -> Tensor:
        tensor, place = Tensor(**vars(tflite.read_port(fields))), fields.get("buffer", 0)
        tensor.name = tensor.name or f"tensor {number}"
        stored = self.buffers[place]
        if stored is not None and place > 0:  # the first buffer is that of all tensors that are computed
            expected = stored_size(tensor.dtype, tensor.shape)
            if expected != len(stored) and "shape" not in fields:
                tensor.shape = expected = None
            if expected not in (None, len(stored)) and not fields.get("sparsity"):
                raise tflite.Damaged(f"{tensor.name} has {len(stored)} bytes, its shape says {expected}")
            tensor.stored_bytes = len(stored)
            dtype = None if fields.get("sparsity") else numpy_type(tensor.dtype)
            sizes = [length for length in tensor.shape or () if isinstance(length, int)]
            tensor.values = lambda: None if dtype is None else np.frombuffer(stored, dtype).reshape(sizes)
        return tensor

    def node(self, operator: dict[str, Any], part: str, first: int) -> Node:
        op, listed = self.codes[operator.get("opcode_index", 0)], operator.get("inputs", [])
        inputs, outputs = (_numbers(operator, key, first) for key in ("inputs", "outputs"))
        position, axis, convolves = WEIGHTS.get(op, (len(listed), 0, False))
        weights = None
        if position < len(listed) and listed[position] >= 0:
            tensor = self.tensors[first + listed[position]]
            packed = op == "LceBconv2d" and tensor.dtype == "int32"
            tensor.dtype = BITS if packed else tensor.dtype
            weights = Weights(first + listed[position], axis, convolves, bits=1 if packed else None)
        node = Node(
            op=op,
            name=self.tensors[outputs[0]].name if outputs else op,
            part=part,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            weights=weights,
            computes_constants=op in CONSTANT_MAKING,
            keeps_values=op in VALUE_KEEPING,
            known=op in KNOWN,
        )
        self.set_channels(node, operator)
        return node

    def set_channels(self, node: Node, operator: dict[str, Any]) -> None:
        """Set the channels of a node, from weights and options where packed tensors hide them in words of 32."""
        source = next((number for number in node.inputs if not self.tensors[number].values), None)
        node.channels_in = None if source is None else self.channels.get(source) or _last(self.tensors[source])
        if node.op in ("LceBconv2d", "LceBMaxPool2d"):
            options = tflite.parse_flexbuffer(operator.get("custom_options", memoryview(b"")))
            node.channels_in = options.get("channels_in", node.channels_in)
        if node.weights:
            shape = self.tensors[node.weights.tensor].shape or ()
            node.channels_out = whole(next(iter(shape[node.weights.axis :]), None))
            if node.weights.axis == len(shape) - 1 > 1 and node.op.endswith("Conv2D"):
                node.channels_in = whole(shape[-2])
        elif node.op in ("LceQuantize", "LceDequantize", *PASSING):
            node.channels_out = node.channels_in
        for output in node.outputs:
            tensor = self.tensors[output]
            bits = node.op in PACKED or any(self.tensors[number].dtype == BITS for number in node.inputs[:2])
            if tensor.dtype == "int32" and bits and (node.op in PACKED or node.op in PASSING) and node.channels_out:
                tensor.dtype = BITS
                self.channels[output] = node.channels_out
            elif node.channels_out is None:
                node.channels_out = _last(tensor)


def _numbers(fields: dict[str, Any], key: str, first: int) -> list[int]:
    """Numbers in the whole file of the tensors that a subgraph or operator lists, without the absent ones."""
    return [first + number for number in fields.get(key, ()) if number >= 0]


def _last(tensor: Tensor) -> int | None:
    return whole(tensor.shape[-1]) if tensor.shape and tensor.dtype != BITS else None

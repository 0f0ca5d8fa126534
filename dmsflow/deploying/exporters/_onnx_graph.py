"""Builds models of standard ONNX ops (opset 18).

Binary weights lie in the file as bits, eight a byte in a uint8 constant. Standard ops look each byte's
eight signs up in a table; onnxruntime folds them, and whatever else comes from constants alone, when
it loads the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dmsflow.files import write_atomically
from dmsflow.modelfile.onnx_reader import import_onnx
from dmsflow.network.network import INPUT

HARD_SIGMOID = {"alpha": 1 / 6, "beta": 0.5}  # of min(max(alpha x + beta, 0), 1)
OPSET, IR_VERSION = 18, 8  # of onnx 1.13: five years of runtimes read it


class Graph:
    """Nodes and constants of a model under construction; tensors that are no layer's have names with a slash, as no layer has."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.names: set[str] = set()  # what the nodes put out

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output, unless it is there already; returns the output's name.

        A name of its own takes bytes, so a node has one only if it completes a layer, or if onnxruntime
        fuses it or changes its layout: then its tensors get other names.
        """
        if name not in self.names:
            self.names.add(name)
            called = name if op in ("Conv", "QLinearConv") or "/" not in name else None
            self.nodes.append(import_onnx().helper.make_node(op, inputs, [name], called, **attributes))
        return name

    def constant(self, name: str, values: Any, dtype: DTypeLike = np.float32) -> str:
        self.constants[name] = np.ascontiguousarray(values, dtype)
        return name

    def scalar(self, value: float, dtype: DTypeLike = np.float32) -> str:
        """A constant; equal values share one."""
        return self.constant(f"constant/{np.dtype(dtype).name}.{value}", value, dtype)

    def integers(self, *values: int) -> str:
        """A list of int64, such as a shape, axes or paddings."""
        return self.constant("constant/" + ".".join(map(str, values)), values, np.int64)

    def per_channel(self, name: str, values: Any) -> str:
        """A constant [C] for tensors [1, C, H, W]."""
        return self.constant(name, np.reshape(values, (-1, 1, 1)))

    def cast(self, x: str, dtype: DTypeLike, name: str) -> str:
        return self.node("Cast", x, name=name, to=import_onnx().helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def planes(self, mean: Any, image: str = INPUT) -> str:
        """The input, transposed to [1, C, H, W], less the mean."""
        planes = self.node("Transpose", image, name="input/planes", perm=[0, 3, 1, 2])
        return self.node("Sub", planes, self.per_channel("input/mean", mean), name="input/centred")

    def weight(self, name: str, weight: Any, scale: Any = 1) -> str:
        """Weights as float32; int8 ones are dequantised when the file is loaded."""
        if weight.dtype != np.int8:
            return self.constant(name, weight)
        stored = self.constant(f"{name}8", weight, np.int8)
        return self.node("DequantizeLinear", stored, self.scalar(scale), name=name)

    def dense(self, x: str, name: str, weight: Any, bias: Any, scale: Any = 1) -> str:
        flat = self.node("Flatten", x, name=f"{name}/flat")
        constants = self.weight(f"{name}/weight", weight, scale), self.constant(f"{name}/bias", bias)
        return self.node("Gemm", flat, *constants, name=name, transB=1)

    def prelu(self, x: str, name: str, slope: str, before: str, after: str) -> str:
        moved = self.node("Sub", x, before, name=f"{name}/moved")
        return self.node("Add", self.node("PRelu", moved, slope, name=f"{name}/bent"), after, name=name)

    def signs(self, name: str, signs: NDArray[np.int8]) -> str:
        """Weights ±1 of the shape of `signs`, int8, stored as bits (1: +)."""
        packed = self.constant(f"{name}/bits", np.packbits(signs.reshape(-1) > 0), np.uint8)  # [bytes]
        rows = self.cast(packed, np.int32, f"{name}/rows")
        weights = self.node("Gather", self.sign_table(), rows, name=f"{name}/signs")  # [bytes, 8]
        if signs.size % 8:
            flat = self.node("Reshape", weights, self.integers(-1), name=f"{name}/flat")
            weights = self.node("Slice", flat, self.integers(0), self.integers(signs.size), name=f"{name}/kept")
        return self.node("Reshape", weights, self.integers(*signs.shape), name=f"{name}/weight")

    def sign_table(self) -> str:
        """[256, 8]: the eight signs that each byte stands for, made when the file is loaded."""
        name = "table/int8.1"
        every = self.constant("table/bytes", np.arange(256)[:, None], np.uint8)
        shifts = self.constant("table/shifts", range(7, -1, -1), np.uint8)
        shifted = self.node("BitShift", every, shifts, name=f"{name}/shifted", direction="RIGHT")
        bits = self.node("BitwiseAnd", shifted, self.scalar(1, np.uint8), name=f"{name}/bits")
        ones = self.cast(bits, np.float32, f"{name}/ones")
        doubled = self.node("Mul", ones, self.scalar(2), name=f"{name}/doubled")
        return self.cast(self.node("Sub", doubled, self.scalar(1), name=f"{name}/floats"), np.int8, name)

    def save(
        self, path: Path, name: str, input_shape: Sequence[int], logits: str, classes: int, pixels: str = "float32"
    ) -> None:
        onnx = import_onnx()
        tensor, kind = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
        ends = (
            [tensor(INPUT, kind(np.dtype(pixels)), input_shape)],
            [tensor(logits, onnx.TensorProto.FLOAT, (1, classes))],
        )
        constants = [onnx.numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        graph = onnx.helper.make_graph(self.nodes, name, *ends, constants)
        opset = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="dmsflow")
        write_atomically(path, model.SerializeToString())


def window_of(op: Any, groups: int = 1) -> dict[str, Any]:
    """Attributes of an ONNX op with the window of a layer or of an op of the integer graph."""
    window = {"kernel_shape": [op.kernel] * 2, "strides": [op.stride] * 2, "pads": [op.padding] * 4}
    return window | ({"group": groups} if groups > 1 else {})


def channels_first(weights: NDArray[Any]) -> NDArray[Any]:
    """[C_out, k, k, C_in] -> [C_out, C_in, k, k]."""
    return weights.transpose(0, 3, 1, 2)

"""The TFLite file format (schema version 3): its tables, and reading a file into plain dicts.

Reading checks every offset and length before it follows it. The interpreters do not: they crash on
a damaged file.

Source: tensorflow/lite/schema/schema.fbs; fields stand in the order of their ids.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from dmsflow.errors import DmsflowError

IDENTIFIER = b"TFL3"

ABSENT = -1  # in place of an optional input
MAP, INTEGER = 9, 1  # kinds of FlexBuffer values
SCALARS = {"bool": "?", "i8": "b", "u8": "B", "i32": "i", "u32": "I", "i64": "q", "u64": "Q", "f32": "f"}

# Field and type. A type is a scalar, str, a table, a list of one of these, or the union that the
# field before it selects from OPTIONS.
SCHEMA: dict[str, dict[str, str]] = {
    "Model": {
        "version": "u32",
        "operator_codes": "[OperatorCode]",
        "subgraphs": "[SubGraph]",
        "description": "str",
        "buffers": "[Buffer]",
        "metadata_buffer": "[i32]",
        "metadata": "[Metadata]",
        "signature_defs": "[SignatureDef]",
    },
    "OperatorCode": {"deprecated_builtin_code": "i8", "custom_code": "str", "version": "i32", "builtin_code": "i32"},
    "SubGraph": {
        "tensors": "[Tensor]",
        "inputs": "[i32]",
        "outputs": "[i32]",
        "operators": "[Operator]",
        "name": "str",
    },
    "Tensor": {
        "shape": "[i32]",
        "type": "i8",
        "buffer": "u32",
        "name": "str",
        "quantization": "Quantization",
        "is_variable": "bool",
        "sparsity": "Sparsity",
        "shape_signature": "[i32]",
        "has_rank": "bool",
        "variant_tensors": "[Variant]",
    },
    "Operator": {
        "opcode_index": "u32",
        "inputs": "[i32]",
        "outputs": "[i32]",
        "builtin_options_type": "u8",
        "builtin_options": "union",
        "custom_options": "[u8]",
        "custom_options_format": "i8",
        "mutating_variable_inputs": "[bool]",
        "intermediates": "[i32]",
        "large_custom_options_offset": "u64",
        "large_custom_options_size": "u64",
        "builtin_options_2_type": "u8",
        "builtin_options_2": "union",
    },
    "Buffer": {"data": "[u8]", "offset": "u64", "size": "u64"},
    "Metadata": {"name": "str", "buffer": "u32"},
    "SignatureDef": {
        "inputs": "[TensorMap]",
        "outputs": "[TensorMap]",
        "signature_key": "str",
        "_": "str",
        "subgraph_index": "u32",
    },
    "TensorMap": {"name": "str", "tensor_index": "u32"},
    "Quantization": {
        "min": "[f32]",
        "max": "[f32]",
        "scale": "[f32]",
        "zero_point": "[i64]",
        "details_type": "u8",
        "details": "union",
        "quantized_dimension": "i32",
    },
    "Sparsity": {"traversal_order": "[i32]", "block_map": "[i32]", "dim_metadata": "[Dimension]"},
    "Dimension": {
        "format": "i8",
        "dense_size": "i32",
        "segments_type": "u8",
        "segments": "union",
        "indices_type": "u8",
        "indices": "union",
    },
    "Variant": {"shape": "[i32]", "type": "i8", "has_rank": "bool"},
    "Conv2DOptions": {
        "padding": "i8",
        "stride_w": "i32",
        "stride_h": "i32",
        "fused_activation_function": "i8",
        "dilation_w_factor": "i32",
        "dilation_h_factor": "i32",
        "quantized_bias_type": "i8",
    },
    "DepthwiseConv2DOptions": {
        "padding": "i8",
        "stride_w": "i32",
        "stride_h": "i32",
        "depth_multiplier": "i32",
        "fused_activation_function": "i8",
        "dilation_w_factor": "i32",
        "dilation_h_factor": "i32",
    },
    "Pool2DOptions": {
        "padding": "i8",
        "stride_w": "i32",
        "stride_h": "i32",
        "filter_width": "i32",
        "filter_height": "i32",
        "fused_activation_function": "i8",
    },
    "FullyConnectedOptions": {"fused_activation_function": "i8", "weights_format": "i8", "keep_num_dims": "bool"},
    "SoftmaxOptions": {"beta": "f32"},
    "AddOptions": {"fused_activation_function": "i8"},
    "MulOptions": {"fused_activation_function": "i8"},
    "SubOptions": {"fused_activation_function": "i8"},
    "PadOptions": {},
    "PadV2Options": {},
}
OPTIONS = {
    1: "Conv2DOptions",
    2: "DepthwiseConv2DOptions",
    5: "Pool2DOptions",
    8: "FullyConnectedOptions",
    9: "SoftmaxOptions",
    11: "AddOptions",
    21: "MulOptions",
    22: "PadOptions",
    28: "SubOptions",
    43: "PadV2Options",
}

# What the runtime calls its own operators, by their codes: those of files that 1-bit networks make.
OPERATORS = {
    0: "ADD",
    1: "AVERAGE_POOL_2D",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE",
    9: "FULLY_CONNECTED",
    14: "LOGISTIC",
    17: "MAX_POOL_2D",
    18: "MUL",
    19: "RELU",
    21: "RELU6",
    22: "RESHAPE",
    25: "SOFTMAX",
    34: "PAD",
    40: "MEAN",
    41: "SUB",
    54: "PRELU",
    60: "PADV2",
    114: "QUANTIZE",
    117: "HARD_SWISH",
}


def load(path: Path) -> dict[str, Any]:
    """The fields of the Model in a file, nested; absent ones are left out, bytes are memoryviews.

    Raises:
        DmsflowError: it cannot be read, or is not a whole .tflite file.
    """
    try:
        return loads(path.read_bytes())
    except OSError as error:
        raise DmsflowError(path, error.strerror or str(error), "give the path of an existing .tflite file") from error
    except Damaged as error:
        raise DmsflowError(path, f"is not a whole .tflite file ({error})", "export it again") from error


class Damaged(ValueError):
    """The bytes are no TFLite file, or not a whole one."""


def loads(data: bytes) -> dict[str, Any]:
    """As `load`, from the bytes of a file.

    Raises:
        Damaged: something points outside the file, or to a tensor, buffer or operator that is not there.
    """
    if data[4:8] != IDENTIFIER:
        raise Damaged("it does not begin as one")
    model = _Reader(data).table("Model", 0)
    _check(model)
    return model


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def scalar(self, form: str, position: int) -> Any:
        size = struct.calcsize(form)
        if position < 0 or position + size > len(self.data) or position % size:
            raise Damaged(f"a value at byte {position} of {len(self.data)}")
        return struct.unpack_from(f"<{form}", self.data, position)[0]

    def follow(self, position: int) -> int:
        return position + int(self.scalar("I", position))

    def table(self, kind: str | None, pointer: int) -> dict[str, Any]:
        """The table that `pointer` leads to; one of unknown kind is checked, and read as empty."""
        start = self.follow(pointer)
        layout = start - self.scalar("i", start)
        layout_size, size = self.scalar("H", layout), self.scalar("H", layout + 2)
        if layout_size < 4 or layout_size % 2 or start + size > len(self.data):
            raise Damaged(f"a table at byte {start}")
        self.scalar("B", layout + layout_size - 1)
        fields: dict[str, Any] = {}
        for slot, (name, form) in enumerate(SCHEMA[kind].items() if kind else ()):
            inside = self.scalar("H", layout + 4 + 2 * slot) if 4 + 2 * slot < layout_size else 0
            if inside >= size:
                raise Damaged(f"field {name} of the table at byte {start}")
            if inside:
                fields[name] = self.value(form, start + inside, fields.get(f"{name}_type"))
        return fields

    def value(self, form: str, position: int, option: int | None) -> Any:
        if form in SCALARS:
            return self.scalar(SCALARS[form], position)
        if form == "str":
            return bytes(self.vector("B", position)).decode("utf-8", "replace")
        if form == "union":
            return self.table(OPTIONS.get(option or 0), position)
        if form == "[u8]":
            return self.vector("B", position)
        if form.strip("[]") in SCALARS:
            letter = SCALARS[form.strip("[]")]
            return np.frombuffer(self.vector(letter, position), f"<{letter}").tolist()
        if not form.startswith("["):
            return self.table(form, position)
        count = len(self.vector("I", position)) // 4
        first = self.follow(position) + 4
        return [self.table(form.strip("[]"), first + 4 * index) for index in range(count)]

    def vector(self, letter: str, pointer: int) -> memoryview:
        """Bytes of a list of scalars."""
        start = self.follow(pointer)
        end = start + 4 + self.scalar("I", start) * struct.calcsize(letter)
        if end > len(self.data):
            raise Damaged(f"a list at byte {start} ends at {end} of {len(self.data)}")
        return self.data[start + 4 : end]


def _check(model: dict[str, Any]) -> None:
    """Everything called by its number is there, and every tensor is written once, before it is read."""
    buffers = model.get("buffers", [])
    codes = [code.get("custom_code", "") for code in model.get("operator_codes", ())]
    for graph in model.get("subgraphs", ()):
        tensors = graph.get("tensors", [])
        if any(tensor.get("buffer", 0) >= len(buffers) for tensor in tensors):
            raise Damaged("a tensor without its buffer")
        given = [i for i, tensor in enumerate(tensors) if buffers[tensor.get("buffer", 0)] or tensor.get("is_variable")]
        written = {ABSENT, *graph.get("inputs", ()), *given}
        for operator in graph.get("operators", ()):
            inputs, outputs = operator.get("inputs", []), operator.get("outputs", [])
            if not written.issuperset(inputs) or not written.isdisjoint(outputs):
                raise Damaged("an operator on a tensor that is not there")
            if (kind := operator.get("opcode_index", 0)) >= len(codes):
                raise Damaged("an operator of no kind")
            written.update(outputs)
            _check_options(codes[kind], operator, [tensors[i] if 0 <= i < len(tensors) else {} for i in inputs])
        if not written.issuperset(graph.get("outputs", ())) or not written <= {ABSENT, *range(len(tensors))}:
            raise Damaged("a tensor that is not there")


def _check_options(custom: str, operator: dict[str, Any], inputs: list[dict[str, Any]]) -> None:
    """What a kernel steps or divides by is sensible, and LCE's operators have the tensors they need."""
    fields = operator.get("builtin_options", {})
    largest = 2**31
    if custom in ("LceBconv2d", "LceBMaxPool2d"):
        fields = flexible(operator.get("custom_options", memoryview(b"")))
        shape: list[int] = inputs[0].get("shape", []) if inputs else []
        channels = fields.get("channels_in")
        if len(shape) != 4 or not (channels is None or -(-channels // 32) == shape[3]):
            raise Damaged(f"a {custom} on a tensor of shape {shape}")
        if custom == "LceBconv2d" and not (len(inputs) == 5 and inputs[1] and (inputs[4] or (inputs[2] and inputs[3]))):
            raise Damaged("a LceBconv2d without its weights")
        largest = max(shape[1:3])
    for name, count in fields.items():
        if name.startswith(("stride", "filter", "dilation")) and not 1 <= count <= largest:
            raise Damaged(f"an operator with {name} {count}")


def flexible(data: memoryview) -> dict[str, int]:
    """The options of one of LCE's operators: a FlexBuffer map from names to whole numbers.

    Raises:
        Damaged: anything else.
    """

    def number(position: int, width: int) -> int:
        if position < 0 or position + width > len(data) or width not in (1, 2, 4, 8):
            raise Damaged("options of an operator")
        return int.from_bytes(data[position : position + width], "little")

    root = len(data) - 2 - number(len(data) - 1, 1)
    kind, width = divmod(number(len(data) - 2, 1), 4)
    values, width = root - number(root, len(data) - 2 - root), 1 << width
    count, key_width = number(values - width, width), number(values - 2 * width, width)
    keys = values - 3 * width - number(values - 3 * width, width)
    fields = {}
    for index in range(count):
        name = keys + index * key_width - number(keys + index * key_width, key_width)
        kinds = kind, number(values + count * width + index, 1) // 4
        if kinds != (MAP, INTEGER) or name < 0:
            raise Damaged("options of an operator")
        fields[bytes(data[name:]).partition(b"\0")[0].decode("utf-8", "replace")] = number(
            values + index * width, width
        )
    return fields

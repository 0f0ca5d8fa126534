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
    "Pool2DOptions": {
        "padding": "i8",
        "stride_w": "i32",
        "stride_h": "i32",
        "filter_width": "i32",
        "filter_height": "i32",
        "fused_activation_function": "i8",
    },
    "FullyConnectedOptions": {"fused_activation_function": "i8", "weights_format": "i8", "keep_num_dims": "bool"},
    "AddOptions": {"fused_activation_function": "i8"},
    "MulOptions": {"fused_activation_function": "i8"},
    "SubOptions": {"fused_activation_function": "i8"},
    "PadOptions": {},
    "PadV2Options": {},
}
OPTIONS = {
    1: "Conv2DOptions",
    5: "Pool2DOptions",
    8: "FullyConnectedOptions",
    11: "AddOptions",
    21: "MulOptions",
    22: "PadOptions",
    28: "SubOptions",
    43: "PadV2Options",
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
        raise Damaged("it does not begin as a TFLite file does")
    model = _Reader(data).table("Model", 0)
    _check_indices(model)
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


def _check_indices(model: dict[str, Any]) -> None:
    """Everything that is called by its number is there."""
    buffers, codes = len(model.get("buffers", ())), len(model.get("operator_codes", ()))
    for graph in model.get("subgraphs", ()):
        tensors = graph.get("tensors", ())
        if any(tensor.get("buffer", 0) >= buffers for tensor in tensors):
            raise Damaged("a tensor without its buffer")
        operators = graph.get("operators", ())
        if any(operator.get("opcode_index", 0) >= codes for operator in operators):
            raise Damaged("an operator of no kind")
        used = [*graph.get("inputs", ()), *graph.get("outputs", ())]
        used += [index for operator in operators for name in ("inputs", "outputs") for index in operator.get(name, ())]
        if not all(-1 <= index < len(tensors) for index in used):
            raise Damaged("an operator on a tensor that is not there")

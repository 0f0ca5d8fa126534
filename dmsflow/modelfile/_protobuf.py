"""Reads ONNX's protobuf messages into plain dicts, without the package onnx.

A message is a row of fields, each with its number and how long it is; no pointers lead anywhere, so
what a file describes is bounded by its length. Numbers of tensors stay in the file until they are
asked for.

Source: onnx/onnx.proto (of release 1.23) and the protobuf encoding; fields are called as there.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is stored
DEEPEST = 100  # messages within messages, as everywhere in protobuf
MOST_FIELDS = 1 << 21
LONGEST_VARINT = 10  # bytes
FEW = 8
BLOCK = 1 << 16  # bytes of numbers that are decoded at once
SIGN = 1 << 63

# Number of a field, its name and its type: a scalar, a message, or a list of one of them. "data" are the
# numbers of a tensor, as they are stored.
MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    "Model": {
        1: ("ir_version", "int"),
        2: ("producer_name", "str"),
        3: ("producer_version", "str"),
        4: ("domain", "str"),
        7: ("graph", "Graph"),
        8: ("opset_import", "[OperatorSet]"),
        14: ("metadata_props", "[Entry]"),
        25: ("functions", "[Function]"),
    },
    "OperatorSet": {1: ("domain", "str"), 2: ("version", "int")},
    "Entry": {1: ("key", "str"), 2: ("value", "str")},
    "Graph": {
        1: ("node", "[Node]"),
        2: ("name", "str"),
        5: ("initializer", "[Tensor]"),
        11: ("input", "[ValueInfo]"),
        12: ("output", "[ValueInfo]"),
        13: ("value_info", "[ValueInfo]"),
        15: ("sparse_initializer", "[SparseTensor]"),
    },
    "Node": {
        1: ("input", "[str]"),
        2: ("output", "[str]"),
        3: ("name", "str"),
        4: ("op_type", "str"),
        5: ("attribute", "[Attribute]"),
        7: ("domain", "str"),
    },
    "Attribute": {
        1: ("name", "str"),
        2: ("f", "float"),
        3: ("i", "int"),
        4: ("s", "str"),
        5: ("t", "Tensor"),
        6: ("g", "Graph"),
        7: ("floats", "data"),
        8: ("ints", "data"),
        9: ("strings", "[str]"),
        11: ("graphs", "[Graph]"),
        22: ("sparse_tensor", "SparseTensor"),
    },
    "Tensor": {
        1: ("dims", "data"),
        2: ("data_type", "int"),
        4: ("float_data", "data"),
        5: ("int32_data", "data"),
        6: ("string_data", "[str]"),
        7: ("int64_data", "data"),
        8: ("name", "str"),
        9: ("raw_data", "bytes"),
        10: ("double_data", "data"),
        11: ("uint64_data", "data"),
        13: ("external_data", "[Entry]"),
        14: ("data_location", "int"),
    },
    "SparseTensor": {1: ("values", "Tensor"), 2: ("indices", "Tensor"), 3: ("dims", "data")},
    "ValueInfo": {1: ("name", "str"), 2: ("type", "Type")},
    "Type": {1: ("tensor_type", "TensorType"), 8: ("sparse_tensor_type", "TensorType")},
    "TensorType": {1: ("elem_type", "int"), 2: ("shape", "TensorShape")},
    "TensorShape": {1: ("dim", "[Dimension]")},
    "Dimension": {1: ("dim_value", "int"), 2: ("dim_param", "str")},
    "Function": {
        1: ("name", "str"),
        4: ("input", "[str]"),
        5: ("output", "[str]"),
        7: ("node", "[Node]"),
        10: ("domain", "str"),
    },
}
STORED = {"int": {VARINT}, "float": {FIXED32}, "data": {VARINT, FIXED32, FIXED64, BYTES}}


class Damaged(ValueError):
    """The bytes are no ONNX model, or not a whole one."""


def loads(data: bytes) -> dict[str, Any]:
    """The fields of the Model in a file, nested; absent ones are left out.

    Raises:
        Damaged: a field is longer than the file, or of another kind than its number says.
    """
    return _Reader(data).message("Model", 0, len(data), 0)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.fields_left = MOST_FIELDS

    def message(self, kind: str, position: int, end: int, depth: int) -> dict[str, Any]:
        if depth > DEEPEST:
            raise Damaged(f"messages lie more than {DEEPEST} deep")
        fields: dict[str, Any] = {}
        while position < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise Damaged(f"it has more than {MOST_FIELDS} fields")
            tag, start = self.varint(position, end)
            stored, number = tag & 7, tag >> 3
            first, position = self.extent(stored, start, end)
            if number == 0 or position > end:
                raise Damaged(f"field {number} at byte {start} ends at {position}, what it is part of at {end}")
            if number in MESSAGES[kind]:
                name, form = MESSAGES[kind][number]
                if stored not in STORED.get(form, {BYTES}):
                    raise Damaged(f"{kind}.{name} at byte {start} is of another kind")
                self.put(fields, name, form, (first, position, stored), depth)
        return fields

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """A number, and where it ends."""
        if position < end and (only := self.data[position]) < 0x80:
            return only, position + 1
        value = 0
        for count, byte in enumerate(self.data[position : min(end, position + LONGEST_VARINT)]):
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value & (2 * SIGN - 1), position + count + 1
        raise Damaged(f"a number at byte {position} has no end")

    def extent(self, stored: int, start: int, end: int) -> tuple[int, int]:
        """Where the content of a field lies."""
        if stored == VARINT:
            return start, self.varint(start, end)[1]
        if stored == BYTES:
            size, first = self.varint(start, end)
            return first, first + size
        if stored in (FIXED32, FIXED64):
            return start, start + (4 if stored == FIXED32 else 8)
        raise Damaged(f"a field at byte {start} is stored in a way that ONNX does not use")

    def put(self, fields: dict[str, Any], name: str, form: str, extent: tuple[int, int, int], depth: int) -> None:
        first, last, _ = extent
        if form == "data":
            fields.setdefault(name, []).append(self.data[first:last])
        elif form.startswith("["):
            fields.setdefault(name, []).append(self.value(form.strip("[]"), first, last, depth))
        elif form in MESSAGES and name in fields:
            raise Damaged(f"{name} stands twice")
        else:
            fields[name] = self.value(form, first, last, depth)

    def value(self, form: str, first: int, last: int, depth: int) -> Any:
        if form == "int":
            value = self.varint(first, last)[0]
            return value - 2 * SIGN if value >= SIGN else value
        if form == "float":
            return struct.unpack_from("<f", self.data, first)[0]
        if form == "str":
            return bytes(self.data[first:last]).decode("utf-8", "replace")
        if form == "bytes":
            return self.data[first:last]
        return self.message(form, first, last, depth + 1)


def integers(chunks: list[memoryview], dtype: str = "int64") -> NDArray[Any]:
    """The numbers of a list of varints, block by block, since each takes many times its bytes meanwhile.

    Raises:
        Damaged: one of them has no end.
    """
    joined = b"".join(chunks)
    if len(joined) <= FEW and max(joined, default=0) < 0x80:  # shapes and strides, most of them
        return np.array(list(joined), dtype)
    stored = np.frombuffer(joined, np.uint8)
    found, first = [], 0
    while first < len(stored):
        block = stored[first : first + BLOCK]
        ends = np.flatnonzero(block < 0x80)
        if not len(ends):
            raise Damaged("a number in a list has no end")
        starts = np.concatenate([[0], ends[:-1] + 1])
        sizes = ends - starts + 1
        if sizes.max() > LONGEST_VARINT:
            raise Damaged("a number in a list has no end")
        block = block[: ends[-1] + 1]
        places = np.arange(len(block)) - np.repeat(starts, sizes)
        parts = (block & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
        found.append(np.bitwise_or.reduceat(parts, starts).view(np.int64).astype(dtype))
        first += len(block)
    return np.concatenate(found) if found else np.zeros(0, dtype)


def numbers(chunks: list[memoryview], dtype: str) -> NDArray[Any]:
    """The numbers of a list of fixed length.

    Raises:
        Damaged: the last one is cut.
    """
    stored = b"".join(chunks)
    if len(stored) % np.dtype(dtype).itemsize:
        raise Damaged("a number in a list is cut")
    return np.frombuffer(stored, dtype)


def count_integers(chunks: list[memoryview]) -> int:
    """How many varints a list holds."""
    return sum(int(np.count_nonzero(np.frombuffer(chunk, np.uint8) < 0x80)) for chunk in chunks)


def count_bytes(chunks: list[memoryview]) -> int:
    return sum(len(chunk) for chunk in chunks)

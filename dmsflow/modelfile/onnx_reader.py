"""Reads .onnx files, whatever wrote them: constants in any of the format's fields, subgraphs, functions.

Tensors of files are called by name, and a subgraph sees those around it; here they get numbers.
Weights that lie in other files are refused: nothing could be said of them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError
from dmsflow.modelfile import _protobuf, _shapes
from dmsflow.modelfile._protobuf import Damaged
from dmsflow.modelfile.graph import Graph, Node, Shape, Tensor, Values, Weights, bits_of, numpy_type, plain, stored_size

TYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1",
    24: "float8_e8m0",
    25: "uint2",
    26: "int2",
    27: "float6_e2m3",
    28: "float6_e3m2",
}
FIXED = {"float_data": "<f4", "double_data": "<f8"}
VARYING = ("int32_data", "int64_data", "uint64_data")
MOST_AXES = _shapes.MOST_AXES
EXTERNAL = 1
WEIGHTS = {  # input, axis of the output channels, whether it is a convolution
    "Conv": (1, 0, True),
    "ConvInteger": (1, 0, True),
    "ConvTranspose": (1, 1, True),
    "DeformConv": (1, 0, True),
    "QLinearConv": (3, 0, True),
    "com.microsoft.FusedConv": (1, 0, True),
    "Gemm": (1, 1, False),
    "MatMul": (1, -1, False),
    "MatMulInteger": (1, -1, False),
    "QLinearMatMul": (3, -1, False),
    "com.microsoft.DynamicQuantizeMatMul": (1, -1, False),
    "com.microsoft.MatMulIntegerToFloat": (1, -1, False),
    "com.microsoft.MatMulNBits": (1, 0, False),
    "com.microsoft.QGemm": (3, 1, False),
}
LITERALS = {"value_int": "int64", "value_ints": "int64", "value_float": "float32", "value_floats": "float32"}
UNPACKING = ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Mod", "And")
KEPT = ("Cast", "DequantizeLinear", "Identity", "Constant")
SCALING = (*KEPT, "Div", "Mul", "Neg", "Reshape", "Transpose")
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
Scope = ChainMap[str, int]
Type = tuple[str, "Shape | None"]


def read(path: Path, data: bytes) -> Graph:
    """The graph of an .onnx file.

    Raises:
        Damaged: it is not whole, or no ONNX file.
        DmsflowError: it keeps its weights in other files.
    """
    return _File(path, _protobuf.loads(data)).graph


class _File:
    def __init__(self, path: Path, model: dict[str, Any]) -> None:
        if not {"ir_version", "opset_import", "graph"} <= set(model):
            raise Damaged("it lacks the version of the format, the set of its ops, or the graph")
        self.path = path
        self.graph = Graph("ONNX", _about(model))
        main = model["graph"]
        scope = self.part(main, "main", ChainMap())
        self.graph.inputs = [scope[name] for name in _names(main, "input") if not self.tensor(scope[name]).values]
        self.graph.outputs = [scope[name] for name in _names(main, "output")]
        for function in model.get("functions", ()):
            given = ChainMap({name: self.new(name) for name in function.get("input", ())})
            self.nodes(function.get("node", ()), plain(f"function {function.get('name', '')}"), given, {})

    # --- tensors ------------------------------------------------------------------------------

    def new(self, name: str, dtype: str = "", shape: Shape | None = None) -> int:
        self.graph.tensors.append(Tensor(plain(name), dtype, shape))
        return len(self.graph.tensors) - 1

    def tensor(self, number: int) -> Tensor:
        return self.graph.tensors[number]

    def constant(self, fields: dict[str, Any], name: str) -> int:
        """A constant, checked: its bytes are those of its shape."""
        where = plain(name)
        if fields.get("data_location", 0) == EXTERNAL:
            entries = {entry.get("key"): entry.get("value", "") for entry in fields.get("external_data", ())}
            what = f"keeps weights in another file ({where} in {plain(entries.get('location', 'one without a name'))})"
            right = "put it all in one: onnx.save_model(onnx.load(PATH), OTHER_PATH)"
            raise DmsflowError(self.path, what, right)
        kind = fields.get("data_type", 0)
        if kind not in TYPES:
            raise Damaged(f"{where} is of type {kind}")
        dims = _dims(fields)
        number = self.new(name, TYPES[kind], dims)
        self.tensor(number).stored_bytes = _stored_bytes(fields, TYPES[kind], dims, where)
        self.tensor(number).values = _values(fields, TYPES[kind], dims)
        return number

    def sparse(self, fields: dict[str, Any], name: str) -> int:
        """A constant of which only some numbers are stored."""
        stored = [self.tensor(self.constant(fields.get(each, {}), name)) for each in ("values", "indices")]
        number = self.new(name, stored[0].dtype, _dims(fields))
        self.tensor(number).stored_bytes = sum(each.stored_bytes for each in stored)
        self.tensor(number).values = _none
        return number

    # --- nodes --------------------------------------------------------------------------------

    def part(self, graph: dict[str, Any], title: str, around: Scope) -> Scope:
        """Read a graph that sees the tensors `around` it; all that can be seen in it."""
        scope = around.new_child()
        own = scope.maps[0]
        for fields in graph.get("initializer", ()):
            own[fields.get("name", "")] = self.constant(fields, fields.get("name", ""))
        for fields in graph.get("sparse_initializer", ()):
            name = fields.get("values", {}).get("name", "")
            own[name] = self.sparse(fields, name)
        for info in graph.get("input", ()):
            if (name := info.get("name", "")) not in own:  # older files list their constants as inputs too
                own[name] = self.new(name, *_type(info))
        told = {info.get("name", ""): _type(info) for key in ("output", "value_info") for info in graph.get(key, ())}
        self.nodes(graph.get("node", ()), title, scope, told)
        for name in _names(graph, "output"):
            self.seen(scope, name)
        return scope

    def seen(self, scope: Scope, name: str) -> int:
        if name not in scope:
            raise Damaged(f"{plain(name) or 'a tensor'} is read before anything puts it out")
        return scope[name]

    def nodes(self, nodes: Iterable[dict[str, Any]], title: str, scope: Scope, told: dict[str, Type]) -> None:
        """Add nodes in their order; what they put out joins the scope. `told`: types that the file tells."""
        for fields in nodes:
            inputs = [self.seen(scope, name) if name else None for name in fields.get("input", ())]
            attributes = _Attributes(fields)
            if fields.get("op_type") == "Constant" and (value := self.value_of(attributes, fields)) is not None:
                outputs = [value]
            else:
                outputs = self.node(fields, attributes, title, scope, inputs, told)
            for name, number in zip(filter(None, fields.get("output", ())), outputs, strict=False):
                if name in scope.maps[0]:
                    raise Damaged(f"{plain(name)} is put out twice")
                scope[name] = number

    def value_of(self, attributes: _Attributes, fields: dict[str, Any]) -> int | None:
        """The constant that a Constant node is."""
        name = next(iter(fields.get("output", ())), "")
        if "t" in attributes.of("value"):
            return self.constant(attributes.of("value")["t"], name)
        if "sparse_tensor" in attributes.of("sparse_value"):
            return self.sparse(attributes.of("sparse_value")["sparse_tensor"], name)
        for key, dtype in LITERALS.items():
            if (found := attributes.numbers(key)) is not None:
                return self.literal(name, np.array(found if key.endswith("s") else found[0], dtype))
        return None

    def literal(self, name: str, values: NDArray[Any]) -> int:
        number = self.new(name, str(values.dtype), values.shape)
        self.tensor(number).stored_bytes = values.nbytes
        self.tensor(number).values = lambda: values
        return number

    def node(
        self,
        fields: dict[str, Any],
        attributes: _Attributes,
        title: str,
        scope: Scope,
        inputs: list[int | None],
        told: dict[str, Type],
    ) -> list[int]:
        """Add one node, and those of its subgraphs behind it; the numbers of its outputs."""
        op, names = _op(fields), [name for name in fields.get("output", ()) if name]
        given = [None if number is None else self.tensor(number) for number in inputs]
        known = _shapes.infer(op, given, attributes)
        outputs = [self.new(name, *told.get(name, ("", None))) for name in names]
        for tensor in map(self.tensor, outputs[:1]):  # further outputs of an op are rarely those that matter
            tensor.dtype = tensor.dtype or known[0]
            tensor.shape = known[1] if tensor.shape is None else tensor.shape
        node = Node(
            op=op,
            name=plain(fields.get("name", "") or next(iter(names), "")) or op,
            part=title,
            inputs=tuple(number for number in inputs if number is not None),
            outputs=tuple(outputs),
            weights=self.weights(op, inputs, attributes),
            computes_constants=op not in RANDOM and not attributes.graphs,
            unpacks=op in UNPACKING,
            looks_up=op == "Gather",
            keeps_values=op in KEPT,
            signs=op == "Sign",
            scales=op in SCALING,
        )
        self.count_channels(node, attributes)
        self.graph.nodes.append(node)
        for name, graph in attributes.graphs:
            self.part(graph, plain(f"{title}/{node.name}.{name}"), scope)
        return outputs

    def weights(self, op: str, inputs: list[int | None], attributes: _Attributes) -> Weights | None:
        position, axis, convolves = WEIGHTS.get(op, (len(inputs), 0, False))
        if position >= len(inputs) or (tensor := inputs[position]) is None:
            return None
        if op in ("Gemm", "com.microsoft.QGemm") and attributes.whole("transB", 0):
            axis = 0
        bits = attributes.whole("bits", 4) if op == "com.microsoft.MatMulNBits" else None
        return Weights(tensor, axis, convolves, bits)

    def count_channels(self, node: Node, attributes: _Attributes) -> None:
        if node.op == "com.microsoft.MatMulNBits":
            node.channels_in, node.channels_out = attributes.whole("K", None), attributes.whole("N", None)
        elif node.weights:
            shape = self.tensor(node.weights.tensor).shape or ()
            out = node.weights.axis % len(shape) if shape else 0
            if len(shape) > 1 and out < len(shape):
                node.channels_in = _times(shape[1 - out if out < 2 else out - 1], 1)
                node.channels_out = _times(shape[out], 1)
                groups = attributes.whole("group", 1)
                if node.op == "ConvTranspose":
                    node.channels_out = _times(shape[out], groups)
                elif node.weights.convolves:
                    node.channels_in = _times(shape[1], groups)
        elif node.op in _shapes.PLANAR:
            node.channels_in, node.channels_out = (
                _times(next(iter((self.tensor(number).shape or ())[1:2]), None), 1)
                for number in (*node.inputs[:1], *node.outputs[:1])
            )


class _Attributes:
    """What a node says beside its tensors."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.by_name = {one.get("name", ""): one for one in fields.get("attribute", ())}
        self.graphs: list[tuple[str, dict[str, Any]]] = []
        for name, one in self.by_name.items():
            self.graphs += [(name, graph) for graph in (*([one["g"]] if "g" in one else []), *one.get("graphs", ()))]

    def of(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.by_name.get(name, {})
        return found

    def numbers(self, name: str) -> list[Any] | None:
        """A number or a list of them; None where there is none of that name."""
        one = self.of(name)
        if "ints" in one:
            return list(_protobuf.integers(one["ints"]).tolist())
        if "floats" in one:
            return list(_protobuf.numbers(one["floats"], "<f4").tolist())
        return [one["i"]] if "i" in one else [one["f"]] if "f" in one else None

    def whole(self, name: str, default: Any) -> Any:
        value = self.of(name).get("i", default)
        return value

    def wholes(self, name: str) -> list[int] | None:
        """A list of whole numbers, such as strides."""
        chunks = self.of(name).get("ints")
        if chunks is None or _protobuf.count_bytes(chunks) > MOST_AXES * _protobuf.LONGEST_VARINT:
            return None
        return list(_protobuf.integers(chunks).tolist())

    def text(self, name: str) -> str:
        found: str = self.of(name).get("s", "")
        return found


def _about(model: dict[str, Any]) -> dict[str, str]:
    graph = model["graph"]
    sets = [f"{one.get('domain', '') or 'ai.onnx'} {one.get('version', 0)}" for one in model["opset_import"]]
    entries = [f"{entry.get('key', '')}: {entry.get('value', '')}" for entry in model.get("metadata_props", ())]
    producer = f"{model.get('producer_name', '')} {model.get('producer_version', '')}".strip()
    told = {
        "format": f"ONNX, IR version {model['ir_version']}, ops of {', '.join(sets)}",
        "producer": producer,
        "description": graph.get("name", ""),
        "metadata": ", ".join(entries),
    }
    return {label: plain(text) for label, text in told.items() if text}


def _op(fields: dict[str, Any]) -> str:
    domain = fields.get("domain", "")
    name = plain(fields.get("op_type", "")) or "(no name)"
    return name if domain in ("", "ai.onnx") else f"{plain(domain)}.{name}"


def _names(graph: dict[str, Any], key: str) -> list[str]:
    return [info.get("name", "") for info in graph.get(key, ())]


def _type(info: dict[str, Any]) -> Type:
    kinds = info.get("type", {})
    kind = kinds.get("tensor_type") or kinds.get("sparse_tensor_type") or {}
    dtype = TYPES.get(kind.get("elem_type", 0), "")
    if "shape" not in kind:
        return dtype, None
    if len(kind["shape"].get("dim", ())) > MOST_AXES:
        raise Damaged("a shape of too many lengths")
    dims = [dim.get("dim_value", plain(dim.get("dim_param", "")) or None) for dim in kind["shape"].get("dim", ())]
    return dtype, tuple(None if isinstance(length, int) and length < 0 else length for length in dims)


def _dims(fields: dict[str, Any]) -> tuple[int, ...]:
    chunks = fields.get("dims", [])
    if _protobuf.count_bytes(chunks) > MOST_AXES * _protobuf.LONGEST_VARINT:
        raise Damaged("a shape of too many lengths")
    dims = tuple(_protobuf.integers(chunks).tolist())
    if min(dims, default=0) < 0:
        raise Damaged("a shape with a negative length")
    return dims


def _stored_bytes(fields: dict[str, Any], dtype: str, dims: tuple[int, ...], where: str) -> int:
    """Bytes of the numbers of a constant; they are as many as its shape says."""
    if dtype == "string":
        return sum(len(text.encode()) for text in fields.get("string_data", ()))
    count = math.prod(dims)
    if "raw_data" in fields:
        held, wanted = len(fields["raw_data"]), stored_size(dtype, dims)
        stored = held
    else:
        key = next((key for key in (*FIXED, *VARYING) if key in fields), None)
        stored = _protobuf.count_bytes(fields[key]) if key else 0
        if key in FIXED:
            held = stored // np.dtype(FIXED[key]).itemsize
        else:
            held = _protobuf.count_integers(fields[key]) if key else 0
        narrow = (bits_of(dtype) or 8) < 8  # several in each number
        wanted = -(-count * (bits_of(dtype) or 8) // 8) if narrow else count * (2 if dtype.startswith("complex") else 1)
    if held != wanted:
        raise Damaged(f"{where} does not hold what its shape {list(dims)} says")
    return stored


def _values(fields: dict[str, Any], dtype: str, dims: tuple[int, ...]) -> Values:
    def values() -> NDArray[Any] | None:
        little = numpy_type(dtype)
        if little is None:
            return None
        if "raw_data" in fields:
            return np.frombuffer(fields["raw_data"], little).reshape(dims)
        for key in FIXED:
            if key in fields:
                return _protobuf.numbers(fields[key], FIXED[key]).astype(little).reshape(dims)
        key = next(key for key in (*VARYING, "") if key in fields or not key)
        if not key:
            return np.zeros(dims, little)
        if dtype == "float16":  # their bits, as whole numbers
            return _protobuf.integers(fields[key], "uint16").view("<f2").reshape(dims)
        return _protobuf.integers(fields[key], dtype).astype(little).reshape(dims)

    return values


def _none() -> None:
    return None


def _times(length: int | str | None, factor: Any) -> int | None:
    return length * factor if isinstance(length, int) and isinstance(factor, int) else None

"""Reads .onnx files, whatever wrote them: constants in any of the format's fields, subgraphs, functions.

The package onnx decodes a file and infers the shapes that it leaves out; shapes that the file has take precedence.
Tensors of files are called by name, and a subgraph reads those around it; here they get numbers. Weights may lie in
a file beside the model (onnx_data.py). QONNX's quantisers are read as what they are.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
from collections import ChainMap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dmsflow.errors import DmsflowError
from dmsflow.modelfile.graph import Graph, Node, Tensor, Weights, bits_of, elements, numpy_type, stored_size, whole
from dmsflow.modelfile.inputs import Shape, plain
from dmsflow.modelfile.onnx_data import DataFiles, read_bytes
from dmsflow.modelfile.tflite import Damaged

_TYPES = """
    float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 complex128 bfloat16
    float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz uint4 int4 float4_e2m1 float8_e8m0 uint2 int2 float6_e2m3
    float6_e3m2
"""
TYPES = dict(enumerate(_TYPES.split(), 1))  # by TensorProto.DataType
MOST_AXES = 64  # as many as NumPy has
MAX_LENGTH = 1 << 40  # of a constant: more than any memory holds
MAX_GROUPS = 1 << 20  # of a convolution: more than any has channels
INVENTED = "unk__"  # how the names begin that onnx gives to lengths it cannot infer
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
_PLANAR = """
    AveragePool LpPool MaxPool GlobalAveragePool GlobalLpPool GlobalMaxPool BatchNormalization InstanceNormalization
"""
PLANAR = _PLANAR.split()  # ops without weights whose channels are axis 1
LITERALS = {  # attributes of a Constant: field and type of the numbers
    "value_int": ("i", "int64"),
    "value_ints": ("ints", "int64"),
    "value_float": ("f", "float32"),
    "value_floats": ("floats", "float32"),
}
UNPACKING = ("BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Mod", "And")
VALUE_KEEPING = ("Cast", "DequantizeLinear", "Identity", "Constant")
SCALING = (*VALUE_KEEPING, "Div", "Mul", "Neg", "Reshape", "Transpose")
QUANTISERS = ("BipolarQuant", "Quant", "IntQuant")  # of QONNX, in whatever domain; they keep the shape of their input
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
Type = tuple[str, "Shape | None"]  # of a tensor: "" and None where it is not known
Scope = ChainMap[str, int]  # numbers of tensors by their names in the file


def import_onnx() -> Any:
    """The module onnx; a DmsflowError if it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise DmsflowError("onnx", "is not installed", "pip install 'dmsflow[onnx]'") from error
    return onnx


def read_graph(path: Path, data: bytes) -> Graph:
    """The graph of an .onnx file.

    Raises:
        Damaged: it is not whole, or no ONNX file.
        DmsflowError: it keeps its weights where they may not be, or onnx is not installed.
    """
    onnx, decode_error, model = import_onnx(), _decode_error(), _decode(data)
    functions = list(model.functions)
    model.ClearField("functions")  # inference goes through each as often as it is called: it may take ages
    saved = [(at, onnx.NodeProto.FromString(node.SerializeToString())) for at, node in _quantisers(model.graph.node)]
    for _, node in _quantisers(model.graph.node):  # inference knows none of them
        node.op_type, node.domain = "Identity", ""
        del node.input[1:], node.attribute[:]
    refusals = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, decode_error, ValueError)
    with contextlib.suppress(*refusals, RuntimeError, MemoryError):  # then only the shapes in the file are known
        model = onnx.shape_inference.infer_shapes(model)
    for at, node in saved:
        model.graph.node[at].CopyFrom(node)
    return _File(path, model, functions).graph


def data_files(path: Path) -> tuple[Path, ...]:
    """The files beside an .onnx file that hold its weights; none where they cannot be known, without the package onnx.

    Raises:
        DmsflowError: it keeps its weights where they may not be.
    """
    with contextlib.suppress(Damaged, OSError):  # the runtime says what it is
        content = path.read_bytes()
        if b"location" in content and importlib.util.find_spec("onnx"):
            model = _decode(content)
            return tuple(place for place, _ in _File(path, model, list(model.functions)).data_files.found.values())
    return ()


def _decode(data: bytes) -> Any:
    try:
        model = import_onnx().load_model_from_string(data)
    except (_decode_error(), ValueError) as error:
        raise Damaged("protobuf cannot decode it") from error
    if not (model.HasField("ir_version") and model.opset_import and model.HasField("graph")):
        raise Damaged("it has no format version, no op set, or no graph")
    return model


def _decode_error() -> type[Exception]:
    error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError
    return error


def _quantisers(nodes: Iterable[Any]) -> list[tuple[int, Any]]:
    return [(at, node) for at, node in enumerate(nodes) if node.domain and node.op_type in QUANTISERS]


class _File:
    def __init__(self, path: Path, model: Any, functions: Iterable[Any]) -> None:
        self.data_files = DataFiles(path)
        self.functions = {(function.domain, function.name) for function in functions}
        self.graph = Graph("ONNX", _about(model))
        self.tensors = self.graph.tensors
        scope = self.add_graph(model.graph, "main", ChainMap())
        inputs = [scope[info.name] for info in model.graph.input]
        self.graph.inputs = [number for number in inputs if not self.tensors[number].values]
        self.graph.outputs = [scope[info.name] for info in model.graph.output]
        for function in functions:
            given = ChainMap({name: self.new(name) for name in function.input})
            self.add_nodes(function.node, plain(f"function {function.name}"), given, {})
        if beside := self.data_files.found:
            self.graph.beside = sum(size for _, size in beside.values())
            places = [f"{name} beside it, {size:,} bytes" for name, (_, size) in beside.items()]
            self.graph.about["weights in"] = ", ".join(places)

    def new(self, name: str, dtype: str = "", shape: Shape | None = None) -> int:
        self.tensors.append(Tensor(plain(name), dtype, shape))
        return len(self.tensors) - 1

    def add_constant(self, proto: Any, name: str) -> int:
        """Add a constant whose bytes were checked to be those of its shape."""
        onnx = import_onnx()
        if proto.data_type not in TYPES:
            raise Damaged(f"{plain(name)} is of type {proto.data_type}")
        dtype, dims = TYPES[proto.data_type], _dims(proto)
        number = self.new(name, dtype, dims)
        place = None
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            place = self.data_files.locate(proto, stored_size(dtype, dims))
        self.tensors[number].stored_bytes = place[2] if place else _stored_bytes(proto, dtype, dims, plain(name))

        def values() -> Any:
            if numpy_type(dtype) is None:
                return None
            if place is None:
                return onnx.numpy_helper.to_array(proto)
            inline = onnx.TensorProto(data_type=proto.data_type, dims=dims, raw_data=read_bytes(place))
            return onnx.numpy_helper.to_array(inline)

        self.tensors[number].values = values
        return number

    def add_sparse(self, proto: Any, name: str) -> int:
        """Add a constant of which only some numbers are stored."""
        stored = [self.tensors[self.add_constant(each, name)] for each in (proto.values, proto.indices)]
        number = self.new(name, stored[0].dtype, _dims(proto))
        self.tensors[number].stored_bytes = sum(each.stored_bytes for each in stored)
        self.tensors[number].values = lambda: None
        return number

    def add_graph(self, graph: Any, part: str, around: Scope) -> Scope:
        """Add a graph that can read the tensors `around` it; all tensors that its nodes can read."""
        scope = around.new_child()
        own = scope.maps[0]
        for proto in graph.initializer:
            own[proto.name] = self.add_constant(proto, proto.name)
        for proto in graph.sparse_initializer:
            own[proto.values.name] = self.add_sparse(proto, proto.values.name)
        for info in graph.input:
            if info.name not in own:  # older files list their constants as inputs too
                own[info.name] = self.new(info.name, *_type(info))
        types = {info.name: _type(info) for info in (*graph.output, *graph.value_info)}
        self.add_nodes(graph.node, part, scope, types)
        for info in graph.output:
            _number(scope, info.name)
        return scope

    def add_nodes(self, nodes: Iterable[Any], part: str, scope: Scope, types: dict[str, Type]) -> None:
        """Add nodes in their order, the nodes of its subgraphs behind each; their outputs join the scope."""
        for proto in nodes:
            inputs = [_number(scope, name) if name else None for name in proto.input]
            names = [name for name in proto.output if name]
            constant = self.add_value(proto, "".join(names[:1])) if proto.op_type == "Constant" else None
            if constant is not None:
                outputs = [constant]
            else:
                outputs = [self.new(name, *types.get(name, ("", None))) for name in names]
                graphs = [(one.name, one.g) for one in proto.attribute if one.HasField("g")]
                graphs += [(one.name, graph) for one in proto.attribute for graph in one.graphs]
                node = self.node(proto, part, inputs, outputs)
                node.computes_constants = node.op not in RANDOM and not graphs
                self.graph.nodes.append(node)
                for name, graph in graphs:
                    self.add_graph(graph, plain(f"{part}/{node.name}.{name}"), scope)
            for name, number in zip(names, outputs, strict=False):
                if name in scope.maps[0]:
                    raise Damaged(f"{plain(name)} is written twice")
                scope[name] = number

    def add_value(self, node: Any, name: str) -> int | None:
        """Add the constant that a Constant node is; None where it is of no kind that has numbers."""
        for one in node.attribute:
            if one.name == "value" and one.HasField("t"):
                return self.add_constant(one.t, name)
            if one.name == "sparse_value" and one.HasField("sparse_tensor"):
                return self.add_sparse(one.sparse_tensor, name)
            if one.name in LITERALS:
                field, dtype = LITERALS[one.name]
                values = np.array(getattr(one, field), dtype)
                return self.add_constant(import_onnx().numpy_helper.from_array(values), name)
        return None

    def node(self, proto: Any, part: str, inputs: list[int | None], outputs: list[int]) -> Node:
        """One node, with the channels that its weights, or else the shapes around it, say it has."""
        op = plain(proto.op_type) or "(no name)"
        if proto.domain not in ("", "ai.onnx"):
            op = f"{plain(proto.domain)}.{op}"
        position, axis, convolves = WEIGHTS.get(op, (len(inputs), 0, False))
        weights = inputs[position] if position < len(inputs) else None
        numbers = {one.name: one.i for one in proto.attribute if one.HasField("i")}
        if op in ("Gemm", "com.microsoft.QGemm") and numbers.get("transB"):
            axis = 0
        bits = numbers.get("bits", 4) if op == "com.microsoft.MatMulNBits" else None
        node = Node(
            op=op,
            name=plain(proto.name or next(filter(None, proto.output), "")) or op,
            part=part,
            inputs=tuple(number for number in inputs if number is not None),
            outputs=tuple(outputs),
            weights=None if weights is None else Weights(weights, axis, convolves, bits),
            unpacks=op in UNPACKING,
            looks_up=op == "Gather",
            keeps_values=op in VALUE_KEEPING,
            signs=op == "Sign" or self.has_one_bit(proto, inputs),
            scales=op in SCALING,
            known=self.knows(proto, op),
        )
        if bits is not None:
            node.channels_in, node.channels_out = numbers.get("K"), numbers.get("N")
        elif weights is not None:
            shape = self.tensors[weights].shape or ()
            out = axis % len(shape) if shape else 0
            if len(shape) > 1 and out < len(shape):
                lengths, groups = [whole(length) for length in shape], numbers.get("group", 1)
                read, written = lengths[1 if out == 0 else out - 1], lengths[out]
                transposed = op == "ConvTranspose"  # which has its groups among the output channels
                if not 0 < groups <= MAX_GROUPS:
                    raise Damaged(f"{node.name} has {groups} groups")
                node.channels_in = read * groups if read and convolves and not transposed else read
                node.channels_out = written * groups if written and transposed else written
        elif op in PLANAR and node.inputs and outputs:
            shapes = [self.tensors[number].shape or () for number in (node.inputs[0], outputs[0])]
            node.channels_in, node.channels_out = (whole(shape[1]) if len(shape) > 1 else None for shape in shapes)
        return node

    def has_one_bit(self, proto: Any, inputs: list[int | None]) -> bool:
        """Whether a node is a quantiser of QONNX that puts out two values."""
        if proto.op_type == "BipolarQuant" or not _quantisers([proto]):
            return bool(_quantisers([proto]))
        width = self.tensors[inputs[3]] if len(inputs) == 4 and inputs[3] is not None else Tensor("", "", None)
        value = width.values() if width.values and elements(width.shape) == 1 else None
        return value is not None and bool(value.item() == 1)

    def knows(self, proto: Any, op: str) -> bool:
        """Whether it is known what a node does: it is of a standard, of QONNX, or a function of the file."""
        if (proto.domain, proto.op_type) in self.functions or op in WEIGHTS or _quantisers([proto]):
            return True
        names = proto.op_type, "" if proto.domain == "ai.onnx" else proto.domain
        return all(isinstance(name, str) for name in names) and bool(import_onnx().defs.has(*names))


def _about(model: Any) -> dict[str, str]:
    """The file's metadata, as labels and values."""
    return {
        "format": f"ONNX, IR version {model.ir_version}, ops of "
        + ", ".join(f"{one.domain or 'ai.onnx'} {one.version}" for one in model.opset_import),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "description": model.graph.name,
        "metadata": ", ".join(f"{entry.key}: {entry.value}" for entry in model.metadata_props),
    }


def _number(scope: Scope, name: str) -> int:
    if name not in scope:
        raise Damaged(f"{plain(name) or 'a tensor'} is read before it is written")
    return scope[name]


def _type(info: Any) -> Type:
    kind = info.type.sparse_tensor_type if info.type.HasField("sparse_tensor_type") else info.type.tensor_type
    dtype = TYPES.get(kind.elem_type, "")
    if not kind.HasField("shape"):
        return dtype, None
    if len(kind.shape.dim) > MOST_AXES:
        raise Damaged("a shape of too many lengths")
    lengths: list[int | str | None] = []
    for dim in kind.shape.dim:
        if dim.HasField("dim_value"):
            lengths.append(dim.dim_value if dim.dim_value >= 0 else None)
        else:
            name = plain(dim.dim_param)
            lengths.append(None if name.startswith(INVENTED) else name or None)
    return dtype, tuple(lengths)


def _dims(proto: Any) -> tuple[int, ...]:
    if len(proto.dims) > MOST_AXES:
        raise Damaged("a shape of too many lengths")
    if min(proto.dims, default=0) < 0 or max(proto.dims, default=0) > MAX_LENGTH:
        raise Damaged("a shape with a negative or a huge length")
    return tuple(proto.dims)


def _stored_bytes(proto: Any, dtype: str, dims: tuple[int, ...], where: str) -> int:
    """Bytes that the numbers of a constant take in the file; Damaged if their count is not that of its shape."""
    if dtype == "string":
        return sum(map(len, proto.string_data))
    bits = bits_of(dtype) or 8
    if proto.HasField("raw_data"):
        stored = count = len(proto.raw_data)
        expected = stored_size(dtype, dims)
    else:
        field = import_onnx().helper.tensor_dtype_to_field(proto.data_type)
        numbers = getattr(proto, field)
        count, elements = len(numbers), math.prod(dims)
        expected = -(-elements * bits // 8) if bits < 8 else elements * (2 if dtype.startswith("complex") else 1)
        if field in ("float_data", "double_data"):
            stored = count * (4 if field == "float_data" else 8)
        else:  # of each number seven bits a byte, and never less than a byte
            values = np.array(numbers, np.uint64 if field == "uint64_data" else np.int64).view(np.uint64)
            stored = count + sum(int(np.count_nonzero(values >> np.uint64(7 * more))) for more in range(1, 10))
    if count != expected:
        raise Damaged(f"{where} does not fit its shape {list(dims)}")
    return stored

"""Files of one operator of TFLite, and what LiteRT makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FORM = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int8": 9}
# Options whose name is not the operator's.
OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2D",
    "MAX_POOL_2D": "Pool2D",
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "MEAN": "Reducer",
    "SUM": "Reducer",
    "MAXIMUM": "MaximumMinimum",
    "MINIMUM": "MaximumMinimum",
    "PADV2": "PadV2",
}
WITHOUT_OPTIONS = {"LOGISTIC", "TANH", "RELU", "RELU6", "RELU_N1_TO_1", "PRELU"}


@dataclass
class Tensor:
    """An operand; without `data` it is an input of the file, if it is not an output.

    Attributes:
        scale: of int8: one, or one for each index of `side`.
    """

    shape: Sequence[int] = ()
    dtype: str = "float32"
    data: np.ndarray | None = None
    scale: Any = None
    zero_point: int = 0
    side: int = 0


def constant(data: Any, dtype: str = "int32", **quantised: Any) -> Tensor:
    array = np.asarray(data, dtype)
    return Tensor(array.shape, dtype, array, **quantised)


def dumps(op: str, operands: Sequence[Tensor | None], outputs: Sequence[Tensor], **options: Any) -> bytes:
    """The file; `options` are fields of the operator's options, as LiteRT's schema calls them."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT(version=3, description="", operatorCodes=[schema.OperatorCodeT()], subgraphs=[])
    code = getattr(schema.BuiltinOperator, op)
    model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = code, min(code, 127)
    model.operatorCodes[0].version = 1
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT(tensors=[], inputs=[], outputs=[])
    operator = schema.OperatorT(opcodeIndex=0, inputs=[], outputs=[])
    if op not in WITHOUT_OPTIONS:
        kind = OPTIONS.get(op, op.title().replace("_", "")) + "Options"
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(schema, f"{kind}T")()
        for name, value in options.items():
            assert hasattr(operator.builtinOptions, name), name
            setattr(operator.builtinOptions, name, value)
    for tensor in (*operands, *outputs):
        number = len(graph.tensors)
        is_output = any(tensor is each for each in outputs)
        (operator.outputs if is_output else operator.inputs).append(-1 if tensor is None else number)
        if tensor is None:
            continue
        made = schema.TensorT(shape=list(tensor.shape), type=FORM[tensor.dtype], buffer=0, name=f"t{number}")
        if tensor.data is not None:
            made.buffer = len(model.buffers)
            model.buffers.append(schema.BufferT(data=np.frombuffer(tensor.data.tobytes(), np.uint8)))
        elif is_output:
            graph.outputs.append(number)
        else:
            graph.inputs.append(number)
        if tensor.scale is not None:
            scales = np.atleast_1d(tensor.scale).astype(np.float32)
            zeros = np.full(scales.shape, tensor.zero_point, np.int64)
            made.quantization = schema.QuantizationParametersT(
                scale=scales, zeroPoint=zeros, quantizedDimension=tensor.side
            )
        graph.tensors.append(made)
    graph.operators = [operator]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def in_litert(model: bytes, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of TFLite's reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()]

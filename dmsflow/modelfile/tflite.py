"""The TFLite file format (schema version 3): its tables, and reading a file into plain dicts.

Reading checks every offset and length before it follows it. The interpreters do not: they crash on
a damaged file.

Source: tensorflow/lite/schema/schema.fbs; fields stand in the order of their ids.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import Port, check_inputs, plain

IDENTIFIER = b"TFL3"

ABSENT = -1  # in place of an optional input
MAP, INTEGER = 9, 1  # kinds of FlexBuffer values
LONGEST_OPTION = 64  # bytes of the name of an option
MOST_TABLES = 10**6  # as many as the format's own verifier allows
LONGEST_LIST = 1 << 24  # bytes; of all that is not a constant
SCALARS = {"bool": "?", "i8": "b", "u8": "B", "i32": "i", "u32": "I", "i64": "q", "u64": "Q", "f32": "f"}

_TYPES = """
    float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource variant uint32
    uint16 int4 bfloat16 int2 uint4 float8_e4m3fn float8_e5m2
"""
TYPES = dict(enumerate(_TYPES.split()))  # by TensorType

# A table a line: its name, then each field and its type. A type is a scalar, str, a table, a list of one of these,
# or the union that the field before it selects from OPTIONS.
_TABLES = """
    Model version:u32 operator_codes:[OperatorCode] subgraphs:[SubGraph] description:str buffers:[Buffer]
        metadata_buffer:[i32] metadata:[Metadata] signature_defs:[SignatureDef]
    OperatorCode deprecated_builtin_code:i8 custom_code:str version:i32 builtin_code:i32
    SubGraph tensors:[Tensor] inputs:[i32] outputs:[i32] operators:[Operator] name:str
    Tensor shape:[i32] type:i8 buffer:u32 name:str quantization:Quantization is_variable:bool sparsity:Sparsity
        shape_signature:[i32] has_rank:bool variant_tensors:[Variant]
    Operator opcode_index:u32 inputs:[i32] outputs:[i32] builtin_options_type:u8 builtin_options:union
        custom_options:[u8] custom_options_format:i8 mutating_variable_inputs:[bool] intermediates:[i32]
        large_custom_options_offset:u64 large_custom_options_size:u64 builtin_options_2_type:u8
        builtin_options_2:union
    Buffer data:[u8] offset:u64 size:u64
    Metadata name:str buffer:u32
    SignatureDef inputs:[TensorMap] outputs:[TensorMap] signature_key:str _:str subgraph_index:u32
    TensorMap name:str tensor_index:u32
    Quantization min:[f32] max:[f32] scale:[f32] zero_point:[i64] details_type:u8 details:union
        quantized_dimension:i32
    Sparsity traversal_order:[i32] block_map:[i32] dim_metadata:[Dimension]
    Dimension format:i8 dense_size:i32 segments_type:u8 segments:union indices_type:u8 indices:union
    Variant shape:[i32] type:i8 has_rank:bool
    Conv2DOptions padding:i8 stride_w:i32 stride_h:i32 fused_activation_function:i8 dilation_w_factor:i32
        dilation_h_factor:i32 quantized_bias_type:i8
    DepthwiseConv2DOptions padding:i8 stride_w:i32 stride_h:i32 depth_multiplier:i32 fused_activation_function:i8
        dilation_w_factor:i32 dilation_h_factor:i32
    Pool2DOptions padding:i8 stride_w:i32 stride_h:i32 filter_width:i32 filter_height:i32
        fused_activation_function:i8
    FullyConnectedOptions fused_activation_function:i8 weights_format:i8 keep_num_dims:bool
    SoftmaxOptions beta:f32
    ConcatenationOptions axis:i32 fused_activation_function:i8
    AddOptions fused_activation_function:i8
    MulOptions fused_activation_function:i8
    SubOptions fused_activation_function:i8
    PadOptions
    PadV2Options
"""
SCHEMA: dict[str, dict[str, str]] = {  # of each table, its fields and their types
    table: dict(field.split(":") for field in fields.split())
    for table, fields in re.findall(r"(\w+)((?:\s+\w+:\S+)*)", _TABLES)
}
_OPTIONS = "Conv2D:1 DepthwiseConv2D:2 Pool2D:5 FullyConnected:8 Softmax:9 Add:11 Mul:21 Pad:22 Sub:28 PadV2:43"
_OPTIONS += " Concatenation:10"
OPTIONS = {int(code): f"{name}Options" for name, code in (word.split(":") for word in _OPTIONS.split())}

# What the runtime calls its own operators, in the order of their codes.
_NAMES = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC
    LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX
    SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD
    UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE
    UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE
    BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL
    LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT
    RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT
    UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
    LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK
    ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4
    NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
    PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS
    HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE
    READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL
    GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
    UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE
    STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE
    STABLEHLO_BROADCAST_IN_DIM STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE
    STABLEHLO_ABS STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG
    STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT
    STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT
    STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL
    STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE
    STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT
    STABLEHLO_CASE
"""
OPERATORS = dict(enumerate(_NAMES.split()))


class Damaged(ValueError):
    """The bytes are no model file, or not a whole one."""


def remedy(content: bytes, otherwise: str = "get a complete copy of it") -> str:
    """What to do about a file that cannot be read or run: only what dmsflow wrote, and says so, can be exported again."""
    return "export it again" if b"dmsflow" in content else otherwise


def read_port(tensor: dict[str, Any]) -> Port:
    """Name, type, shape and quantisation of an entry in tensors."""
    kind, quantised = tensor.get("type", 0), tensor.get("quantization", {})
    dtype = TYPES.get(kind, f"type {kind}")
    shape = tensor.get("shape_signature") or tensor.get("shape", [])  # an open length is -1 in the signature
    lengths = tuple(length if length >= 0 else None for length in shape)
    scale, zero = None, None
    if len(scales := quantised.get("scale", ())) == 1 and 0 < scales[0] < math.inf and "int" in dtype:
        scale, zero = scales[0], next(iter(quantised.get("zero_point", ())), 0)
    return Port(plain(tensor.get("name", "")), dtype, lengths, scale, zero)


def read_inputs(path: Path) -> tuple[Port, ...]:
    """The inputs of a file that a runtime is to run; errors as of `read_model` and `check_inputs`."""
    graph = read_model(path)["subgraphs"][0]
    ports = [read_port(graph["tensors"][number]) for number in graph.get("inputs", ())]
    return check_inputs(path, ports, len(graph.get("outputs", ())))


def operator_name(code: dict[str, Any]) -> str:
    """What the runtime calls an operator, from its entry in operator_codes: "CONV_2D", "LceBconv2d", "builtin 999"."""
    number = max(code.get("deprecated_builtin_code", 0), code.get("builtin_code", 0))
    return str(code.get("custom_code") or OPERATORS.get(number, f"builtin {number}"))


def read_model(path: Path) -> dict[str, Any]:
    """The fields of the Model in a file, nested; absent ones are left out, bytes are memoryviews.

    `read_model(path)["subgraphs"][0]["tensors"][0]["shape"]` is, for example, [1, 32, 32, 3].

    Raises:
        DmsflowError: it cannot be read, or is not a complete .tflite file.
    """
    content = b""
    try:
        return parse_model(content := path.read_bytes())
    except OSError as error:
        raise DmsflowError(path, error.strerror or str(error), "give the path of an existing .tflite file") from error
    except Damaged as error:
        raise DmsflowError(path, f"is not a complete .tflite file ({error})", remedy(content)) from error


def parse_model(data: bytes, *, runnable: bool = True) -> dict[str, Any]:
    """As `read_model`, from the bytes of a file.

    Args:
        runnable: also check what else interpreters rely on without checking it.

    Raises:
        Damaged: something points outside the file, or to a tensor, buffer or operator that is not there.
    """
    if data[4:8] != IDENTIFIER:
        raise Damaged("it does not begin like one")
    model = _Reader(data).table("Model", 0)
    _check_numbers(model)
    if runnable:
        for graph in model["subgraphs"]:
            _check_order(model, graph)
    return model


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        # Many pointers may lead to one table: a few bytes could describe more than any memory holds.
        self.bytes_left = 2 * len(data)
        self.tables_left = MOST_TABLES

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
        self.tables_left -= 1
        self.count_bytes(size)
        fields: dict[str, Any] = {}
        for slot, (name, form) in enumerate(SCHEMA[kind].items() if kind else ()):
            inside = self.scalar("H", layout + 4 + 2 * slot) if 4 + 2 * slot < layout_size else 0
            if inside >= size:
                raise Damaged(f"field {name} of the table at byte {start}")
            if inside:  # the other unions have numbers of their own
                option = fields.get("builtin_options_type") if name == "builtin_options" else None
                fields[name] = self.value(form, start + inside, option)
        return fields

    def value(self, form: str, position: int, option: int | None) -> Any:
        if form in SCALARS:
            return self.scalar(SCALARS[form], position)
        if form == "str":
            return bytes(self.copied_list("B", position)).decode("utf-8", "replace")
        if form == "union":
            return self.table(OPTIONS.get(option or 0), position)
        if form == "[u8]":
            return self.list_bytes("B", position)
        if form.strip("[]") in SCALARS:
            letter = SCALARS[form.strip("[]")]
            return np.frombuffer(self.copied_list(letter, position), f"<{letter}").tolist()
        if not form.startswith("["):
            return self.table(form, position)
        count = len(self.copied_list("I", position)) // 4
        first = self.follow(position) + 4
        return [self.table(form.strip("[]"), first + 4 * index) for index in range(count)]

    def count_bytes(self, size: int) -> None:
        self.bytes_left -= size
        if self.bytes_left < 0 or self.tables_left < 0:
            raise Damaged("it describes more data than it has")

    def copied_list(self, letter: str, pointer: int) -> memoryview:
        """As `list_bytes`, for lists that are copied."""
        content = self.list_bytes(letter, pointer)
        self.count_bytes(len(content))
        if len(content) > LONGEST_LIST:
            raise Damaged(f"a list of {len(content)} bytes")
        return content

    def list_bytes(self, letter: str, pointer: int) -> memoryview:
        """Bytes of a list of scalars."""
        start = self.follow(pointer)
        end = start + 4 + self.scalar("I", start) * struct.calcsize(letter)
        if end > len(self.data):
            raise Damaged(f"a list at byte {start} ends at {end} of {len(self.data)}")
        return self.data[start + 4 : end]


def _check_numbers(model: dict[str, Any]) -> None:
    """Everything called by its number is there."""
    buffers, codes = (len(model.get(key, ())) for key in ("buffers", "operator_codes"))
    if not model.get("subgraphs"):
        raise Damaged("it holds no graph")
    for graph in model["subgraphs"]:
        tensors, operators = graph.get("tensors", ()), graph.get("operators", ())
        if any(tensor.get("buffer", 0) >= buffers for tensor in tensors):
            raise Damaged("a tensor without its buffer")
        if any(operator.get("opcode_index", 0) >= codes for operator in operators):
            raise Damaged("an operator without a type")
        for part in (*operators, graph):
            numbers = part.get("inputs", []) + part.get("outputs", [])
            if any(not ABSENT <= number < len(tensors) for number in numbers):
                raise Damaged(f"{'a' if part is graph else 'an operator on a'} tensor that is not there")


def _check_order(model: dict[str, Any], graph: dict[str, Any]) -> None:
    """Every tensor is written once, before it is read, and operators have what their kernels need."""
    tensors, given = graph.get("tensors", []), graph.get("inputs", [])
    constants = [
        number
        for number, tensor in enumerate(tensors)
        if model["buffers"][tensor.get("buffer", 0)] or tensor.get("is_variable")
    ]
    written = {ABSENT, *given, *constants}
    for operator in graph.get("operators", ()):
        inputs, outputs = operator.get("inputs", []), operator.get("outputs", [])
        if not written.issuperset(inputs) or not written.isdisjoint(outputs):
            raise Damaged("an operator on a tensor that is not there")
        written.update(outputs)
        custom = model["operator_codes"][operator.get("opcode_index", 0)].get("custom_code", "")
        _check_options(custom, operator, [tensors[number] if number != ABSENT else {} for number in inputs])
    if ABSENT in given or not written.issuperset(graph.get("outputs", ())):
        raise Damaged("a tensor that is not there")


def _check_options(custom: str, operator: dict[str, Any], inputs: list[dict[str, Any]]) -> None:
    """What a kernel steps or divides by is sensible, and LCE's operators have the tensors they need."""
    fields = operator.get("builtin_options", {})
    largest = 2**31
    if custom in ("LceBconv2d", "LceBMaxPool2d"):
        fields = parse_flexbuffer(operator.get("custom_options", memoryview(b"")))
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


def parse_flexbuffer(data: memoryview) -> dict[str, int]:
    """The options of one of LCE's operators, a FlexBuffer map from names to whole numbers; Damaged if it is none."""

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
        key = bytes(data[name : name + LONGEST_OPTION]).partition(b"\0")[0].decode("utf-8", "replace")
        fields[key] = number(values + index * width, width)
    return fields

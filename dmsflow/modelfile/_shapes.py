"""Types and shapes that an ONNX file leaves out: of the ops that networks of convolutions are made of.

A rule gives None where it does not know, or where the numbers make no sense: nothing is refused
here, a shape is only not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dmsflow.modelfile.graph import Shape, Tensor, elements

_SAME = (
    "Abs BatchNormalization Cast Ceil Clip CumSum DequantizeLinear Dropout Elu Erf Exp Floor Gelu GroupNormalization "
    "HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Log LogSoftmax Mish Neg Not "
    "PRelu QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Softmax Softplus Sqrt Tanh ThresholdedRelu"
)
SAME = frozenset(_SAME.split())
COMPARING = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor")
JOINING = ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
CONVOLVING = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "com.microsoft.FusedConv": 1}
POOLING = ("AveragePool", "LpPool", "MaxPool")
GLOBAL = ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
MULTIPLYING = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
PLANAR = (*POOLING, *GLOBAL, "BatchNormalization", "InstanceNormalization", "PRelu")  # channels are axis 1
CASTS = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}
FEW = 64  # numbers of a constant that is a shape, a list of axes, …
MOST_AXES = 64
FAR = 1 << 40  # no length is as long

Known = tuple[str, "Shape | None"]
Inputs = Sequence["Tensor | None"]


class Attributes(Protocol):
    """What a rule asks a node for."""

    def whole(self, name: str, default: int | None) -> int | None: ...
    def wholes(self, name: str) -> list[int] | None: ...
    def text(self, name: str) -> str: ...


def infer(op: str, inputs: Inputs, attributes: Attributes) -> Known:
    """Type and shape of an op's first output: "" and None where they are not known."""
    shape = _shape(op, inputs, attributes)
    if shape is not None:
        sensible = all(0 <= length < FAR for length in shape if isinstance(length, int))
        shape = shape if sensible and len(shape) <= MOST_AXES else None
    return _dtype(op, inputs, attributes), shape


def _dtype(op: str, inputs: Inputs, attributes: Attributes) -> str:
    if op == "Cast":
        return CASTS.get(attributes.whole("to", 0) or 0, "")
    if op in COMPARING:
        return "bool"
    if op in ("ConvInteger", "MatMulInteger"):
        return "int32"
    if op in ("Shape", "Size", "ArgMax", "ArgMin"):
        return "int64"
    position = {"DequantizeLinear": 1, "QuantizeLinear": 2, "QLinearConv": 7, "QLinearMatMul": 7, "Where": 1}.get(op, 0)
    if op == "QuantizeLinear" and len(inputs) < 3:
        return "uint8"
    if "." in op and op not in CONVOLVING:
        return ""
    source = _at(inputs, position)
    return source.dtype if source else ""


def _shape(op: str, inputs: Inputs, attributes: Attributes) -> Shape | None:
    x = _lengths(inputs, 0)
    if op in SAME:
        return x
    if op in JOINING or op in COMPARING or op == "Where":
        return _broadcast([tensor.shape if tensor else None for tensor in inputs])
    if op == "Reshape":
        return _reshaped(x, inputs, attributes)
    if op == "Shape":
        return None if x is None else (len(x),)
    if x is None:
        return None
    if op in CONVOLVING:
        return _convolved(x, _lengths(inputs, CONVOLVING[op]), attributes)
    if op in POOLING:
        return _windows(x, x[1:2], attributes.wholes("kernel_shape"), attributes)
    if op in GLOBAL:
        return (*x[:2], *(1 for _ in x[2:]))
    if op in MULTIPLYING:
        return _product(x, _lengths(inputs, MULTIPLYING[op]))
    if op == "Gemm":
        return _gemm(x, _lengths(inputs, 1), attributes)
    return _moved(op, x, inputs, attributes)


def _moved(op: str, x: Shape, inputs: Inputs, attributes: Attributes) -> Shape | None:
    """Of ops that compute nothing."""
    if op == "Flatten":
        axis = attributes.whole("axis", 1)
        axis = len(x) if axis is None else axis % (len(x) + 1)
        return _count(x[:axis]), _count(x[axis:])
    if op == "Transpose":
        order = attributes.wholes("perm")
        order = list(range(len(x)))[::-1] if order is None else order
        return tuple(x[axis] for axis in order) if sorted(order) == list(range(len(x))) else None
    if op == "Concat":
        return _joined(inputs, attributes.whole("axis", None))
    if op == "Pad":
        amounts = _few(inputs, 1) or attributes.wholes("pads")
        if amounts is None or len(amounts) != 2 * len(x):
            return None
        pairs = zip(x, amounts[: len(x)], amounts[len(x) :], strict=True)
        return tuple(length + a + b if isinstance(length, int) else None for length, a, b in pairs)
    if op == "Expand":
        wanted = _few(inputs, 1)
        return None if wanted is None else _broadcast([x, tuple(wanted)])
    if op == "Gather":
        chosen, axis = _lengths(inputs, 1), attributes.whole("axis", 0) or 0
        known = chosen is not None and -len(x) <= axis < len(x)
        return (*x[: axis % len(x)], *(chosen or ()), *x[axis % len(x) + 1 :]) if known else None
    if op == "Slice":
        return _sliced(x, inputs)
    if op in ("Squeeze", "Unsqueeze", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"):
        axes = _few(inputs, 1) if _at(inputs, 1) else attributes.wholes("axes")
        return _reduced(op, x, axes, attributes)
    return None


def _convolved(x: Shape, weight: Shape | None, attributes: Attributes) -> Shape | None:
    if weight is None or len(weight) != len(x) or len(x) < 3:
        return None
    kernel = [length for length in weight[2:] if isinstance(length, int)]
    return _windows(x, weight[:1], kernel, attributes)


def _windows(x: Shape, channels: Shape, kernel: list[int] | None, attributes: Attributes) -> Shape | None:
    """Lengths of what windows put out; channels are axis 1."""
    axes = len(x) - 2
    if axes < 1 or kernel is None or len(kernel) != axes:
        return None
    strides = attributes.wholes("strides") or [1] * axes
    dilations = attributes.wholes("dilations") or [1] * axes
    pads = attributes.wholes("pads") or [0] * (2 * axes)
    auto = attributes.text("auto_pad")
    if not len(strides) == len(dilations) == len(pads) / 2 == axes or min(strides) < 1:
        return None
    lengths: list[int | None] = []
    for axis, length in enumerate(x[2:]):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if not isinstance(length, int):
            lengths.append(None)
        elif auto.startswith("SAME"):
            lengths.append(-(-length // strides[axis]))
        else:
            room = length + pads[axis] + pads[axes + axis] - reach
            up = strides[axis] - 1 if attributes.whole("ceil_mode", 0) else 0
            lengths.append((room + up) // strides[axis] + 1)
    return (x[0], *channels, *lengths)


def _broadcast(shapes: Sequence[Shape | None]) -> Shape | None:
    """Numpy's rule; an open length gives way to a known one."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or not known:
        return None
    lengths: list[int | str | None] = []
    for place in range(1, max(map(len, known)) + 1):
        found = [shape[-place] for shape in known if len(shape) >= place]
        others = [length for length in found if length != 1]
        whole = [length for length in others if isinstance(length, int)]
        if len(set(whole)) > 1:
            return None
        lengths.append(whole[0] if whole else others[0] if others else 1)
    return tuple(lengths[::-1])


def _reshaped(x: Shape | None, inputs: Inputs, attributes: Attributes) -> Shape | None:
    wanted = _few(inputs, 1)
    if wanted is None or wanted.count(-1) > 1:
        return None
    lengths: list[int | str | None] = list(wanted)
    for place, length in enumerate(wanted):
        if length == 0 and not attributes.whole("allowzero", 0):
            lengths[place] = x[place] if x is not None and place < len(x) else None
    if -1 in wanted:
        place = wanted.index(-1)
        whole, rest = elements(x), elements((*lengths[:place], *lengths[place + 1 :]))
        lengths[place] = whole // rest if whole is not None and rest else None
    return tuple(lengths)


def _product(x: Shape, y: Shape | None) -> Shape | None:
    if y is None or len(x) < 2 or len(y) < 2:
        return None
    stack = _broadcast([x[:-2], y[:-2]])
    return None if stack is None else (*stack, x[-2], y[-1])


def _gemm(x: Shape, y: Shape | None, attributes: Attributes) -> Shape | None:
    if y is None or len(x) != 2 or len(y) != 2:
        return None
    return x[1 if attributes.whole("transA", 0) else 0], y[0 if attributes.whole("transB", 0) else 1]


def _joined(inputs: Inputs, axis: int | None) -> Shape | None:
    shapes = [tensor.shape for tensor in inputs if tensor and tensor.shape is not None]
    if axis is None or len(shapes) != len(inputs) or len({len(shape) for shape in shapes}) != 1:
        return None
    rank = len(shapes[0])
    if not -rank <= axis < rank:
        return None
    axis %= rank
    parts = [shape[axis] for shape in shapes]
    whole = [length for length in parts if isinstance(length, int)]
    return (*shapes[0][:axis], sum(whole) if len(whole) == len(parts) else None, *shapes[0][axis + 1 :])


def _sliced(x: Shape, inputs: Inputs) -> Shape | None:
    starts, ends = _few(inputs, 1), _few(inputs, 2)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = _few(inputs, 3) or list(range(len(starts)))
    steps = _few(inputs, 4) or [1] * len(starts)
    lengths = list(x)
    if not len(axes) == len(steps) == len(starts) or 0 in steps:
        return None
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not -len(x) <= axis < len(x):
            return None
        length = x[axis]
        lengths[axis] = len(range(*slice(start, end, step).indices(length))) if isinstance(length, int) else None
    return tuple(lengths)


def _reduced(op: str, x: Shape, axes: list[int] | None, attributes: Attributes) -> Shape | None:
    rank = len(x) + (len(axes) if axes and op == "Unsqueeze" else 0)
    if axes is None and op.startswith("Reduce"):
        axes = list(range(rank))
    if axes is None or any(not -rank <= axis < rank for axis in axes):
        return None
    chosen = {axis % rank for axis in axes}
    if op == "Unsqueeze":
        rest = iter(x)
        return tuple(1 if place in chosen else next(rest, None) for place in range(rank))
    if op.startswith("Reduce") and attributes.whole("keepdims", 1):
        return tuple(1 if place in chosen else length for place, length in enumerate(x))
    return tuple(length for place, length in enumerate(x) if place not in chosen)


def _at(inputs: Inputs, position: int) -> Tensor | None:
    return inputs[position] if position < len(inputs) else None


def _lengths(inputs: Inputs, position: int) -> Shape | None:
    tensor = _at(inputs, position)
    return tensor.shape if tensor else None


def _few(inputs: Inputs, position: int) -> list[int] | None:
    """The numbers of a small constant, such as a shape."""
    tensor = _at(inputs, position)
    if tensor is None or tensor.values is None or (elements(tensor.shape) or 0) > FEW:
        return None
    values = tensor.values()
    return None if values is None or values.dtype.kind not in "iu" else [int(value) for value in values.reshape(-1)]


def _count(lengths: Shape) -> int | None:
    return elements(lengths)

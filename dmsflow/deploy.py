"""The deploy form: a trained network as signs, integer thresholds and a few float constants.

Every exporter walks the same short tuple of ops, and `run` computes it in NumPy: what a written
file must reproduce. All constants are decided in float64 and kept in the type the runtime uses.

Tensors are NHWC and of two kinds: bits (1: the activation is on, i.e. its x exceeds alpha / 2) and
float32. A binary convolution counts in integers, `sum = Σ_on sign`, and puts out either bits
(`sum >= threshold`, batch norm and quantiser folded into one integer per channel) or floats (one
multiply and one add per channel, in the order of Larq Compute Engine's kernels). The stem's
weights are whole numbers so small that its sums are exact in float32, whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError
from dmsflow.network import INPUT, WEIGHTED, Layer, Network, out_widths, tail, value

BATCH_NORM_EPSILON = 1e-5
STANDARDISE_EPSILON = 1e-10  # Eq. 1
EXACT = 2**24 - 4  # up to here, and a little beyond, float32 holds every whole number
PIXEL = 255

Weights = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Op:
    """One step. `name` is the layer's, and names the tensor it puts out; `inputs` are such names."""

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stem(Op):
    """Convolution of `pixel - mean` with zero padding, in float32 and yet exact.

    The weights are whole numbers, and |sum|, as well as |threshold| + |sum|, is at most EXACT + 2
    for any pixels and however far a sum has got. Puts out bits, `sum >= threshold`, or, without
    thresholds, the sums themselves.
    """

    weight: Float32  # [C_out, k, k, C_in], whole numbers
    mean: Float32  # [C_in]
    stride: int
    padding: int
    thresholds: Int32 | None = None  # [C_out]


@dataclass(frozen=True, kw_only=True, eq=False)
class BinaryConv(Op):
    """Convolution of bits (padded with 0) with ±1, in integers: `sum = Σ_on sign`.

    Puts out bits, `sum >= threshold`, or floats. With `disagreements = sum + negatives`, in 0..K for
    K weights, these are `float32(2 disagreements) * multiplier + offset`, each operation rounded.
    """

    signs: NDArray[np.int8]  # [C_out, k, k, C_in], ±1
    stride: int
    padding: int
    thresholds: Int32 | None = None  # [C_out]
    multiplier: Float32 | None = None  # [C_out]
    bias: Float32 | None = None  # [C_out]: what is added at 2 disagreements = K

    @property
    def count(self) -> int:
        """K: weights of one output channel."""
        return int(self.signs[0].size)

    @property
    def negatives(self) -> Int32:
        """[C_out]: weights of each output channel that are -1."""
        negatives: Int32 = np.count_nonzero(self.signs < 0, axis=(1, 2, 3)).astype(np.int32)
        return negatives

    @property
    def offset(self) -> Float32:
        """[C_out]: bias - K multiplier, in float64 and then rounded, as LCE does when it loads a file."""
        assert self.bias is not None and self.multiplier is not None
        return (self.bias.astype(np.float64) - self.count * self.multiplier.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Op):
    """Maximum over a window, of floats or of bits (their OR); padding never wins."""

    kernel: int
    stride: int
    padding: int
    binary: bool  # of bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Op):
    """float32: `x * multiplier + bias` per channel, each operation rounded."""

    multiplier: Float32  # [C]
    bias: Float32  # [C]


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantize(Op):
    """Bits of floats: `x > threshold`, with threshold = alpha / 2."""

    threshold: np.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Op):
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Relu(Op):
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class AveragePool(Op):
    """Mean over the whole image: [H, W, C] -> [1, 1, C]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Op):
    weight: Float32  # [C_out, C_in]
    bias: Float32  # [C_out]


DeployOp: TypeAlias = Stem | BinaryConv | MaxPool | Scale | Quantize | Add | Relu | AveragePool | Dense


@dataclass(frozen=True, kw_only=True, eq=False)
class DeployForm:
    """The ops in the order they are computed; the last one gives the logits.

    Attributes:
        name: the network's.
        channels, resolution: of the image, uint8 or float32 pixels 0..255.
        classes: number of logits.
    """

    name: str
    channels: int
    resolution: int
    classes: int
    ops: tuple[DeployOp, ...]

    def consumers(self, name: str) -> list[DeployOp]:
        return [op for op in self.ops if name in op.inputs]

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Height, width and channels of the image and of the tensor of each op."""
        shapes = {INPUT: (self.resolution, self.resolution, self.channels)}
        for op in self.ops:
            shapes[op.name] = _shape(op, shapes[op.inputs[0]])
        return shapes


def _shape(op: DeployOp, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    size, _, channels = shape
    kernel = 1
    if isinstance(op, Stem):
        channels, kernel = op.weight.shape[:2]
    elif isinstance(op, BinaryConv):
        channels, kernel = op.signs.shape[:2]
    elif isinstance(op, MaxPool):
        kernel = op.kernel
    elif isinstance(op, AveragePool):
        size = 1
    elif isinstance(op, Dense):
        channels = op.weight.shape[0]
    if isinstance(op, (Stem, BinaryConv, MaxPool)):
        size = (size + 2 * op.padding - kernel) // op.stride + 1
    return size, size, channels


# --- from trained weights ---------------------------------------------------------------------


def deploy_form(network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any) -> DeployForm:
    """Fold a trained network.

    Args:
        network: the architecture; its convs other than the stem are binary.
        widths: channels of every named width.
        weights: by name, as in train.safetensors: `<layer>.weight`, `.bias`, `.running_mean`,
            `.running_var`, `.alpha`; convolutions are [C_out, C_in, k, k].
        mean, std: of each channel in pixels (0..255); the mean is a whole number.

    Raises:
        DmsflowError: a weight is missing, misshapen or not finite, an alpha is not above 0, or the
            network holds what cannot be folded exactly (a batch norm of negative scale behind a
            max pool).
    """
    trained = _Trained(network, widths, weights)
    ops: list[DeployOp] = []
    names = {INPUT: INPUT}  # of each layer's tensor in the deploy form
    for layer in network.layers:
        if layer.name in names:
            continue  # folded into an earlier one
        inputs = tuple(names[name] for name in layer.inputs)
        folds = _tail(network, layer) if layer.op in ("conv", "binary_conv") else {}
        if layer.op == "conv":
            ops += _stem(trained, layer, folds, np.asarray(mean, np.float64), np.asarray(std, np.float64))
        elif layer.op == "binary_conv":
            ops += _binary_conv(trained, layer, inputs, folds)
        else:
            ops.append(_float_op(trained, layer, inputs))
        names |= {folded.name: ops[-1].name for folded in (layer, *folds.values())}
    return DeployForm(
        name=network.name,
        channels=network.channels,
        resolution=network.resolution,
        classes=network.classes,
        ops=tuple(ops),
    )


def round_stem(
    network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any
) -> dict[str, NDArray[Any]]:
    """The same weights, those of the stem rounded as `deploy_form` rounds them.

    What is trained last, so that export changes nothing: rounding moves them by about 1 in 2^12,
    and a bit that this flips in the first layer may move an image. Arguments and errors as `deploy_form`.
    """
    trained = _Trained(network, widths, weights)
    numbers = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    rounded = dict(weights)
    for layer in network.layers:
        if layer.op == "conv":
            whole, step = _on_grid(trained, layer, _tail(network, layer), *numbers)
            weight = whole * step[:, None, None, None] * numbers[1]
            rounded[f"{layer.name}.weight"] = np.ascontiguousarray(weight.transpose(0, 3, 1, 2), np.float32)
    return rounded


@dataclass(frozen=True)
class _Trained:
    """Trained weights, checked and in float64."""

    network: Network
    widths: Mapping[str, int]
    weights: Weights

    def channels(self, name: str) -> int:
        return int(value(self.widths, out_widths(self.network)[name]))

    def take(self, name: str, *shape: int) -> Float64:
        if name not in self.weights:
            raise DmsflowError(name, "is not among the trained weights", "export with the manifest that train wrote")
        array = np.asarray(self.weights[name], np.float64)
        if array.shape != shape:
            raise DmsflowError(name, f"has shape {list(array.shape)}", f"the widths make it {list(shape)}")
        if not np.isfinite(array).all():
            raise DmsflowError(name, "holds values that are not finite", "train again, with a smaller learning rate")
        return array

    def filters(self, layer: Layer) -> Float64:
        """[C_out, k, k, C_in]"""
        shape = self.channels(layer.name), self.channels(layer.inputs[0]), layer.kernel, layer.kernel
        return self.take(f"{layer.name}.weight", *shape).transpose(0, 2, 3, 1)

    def alpha(self, quantize: str) -> float:
        alpha = float(self.take(f"{quantize}.alpha"))
        if alpha <= 0:
            raise DmsflowError(f"{quantize}.alpha", f"is {alpha:g}", "train with alpha held above 0")
        return alpha

    def affine(self, norm: Layer | None, channels: int) -> tuple[Float64, Float64]:
        """Gain and shift of a batch norm, [C] each: x -> gain x + shift."""
        if norm is None:
            return np.ones(channels), np.zeros(channels)
        take = {
            part: self.take(f"{norm.name}.{part}", channels)
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        if (take["running_var"] < 0).any():
            raise DmsflowError(f"{norm.name}.running_var", "is negative", "export with the weights that train wrote")
        gain = take["weight"] / np.sqrt(take["running_var"] + BATCH_NORM_EPSILON)
        return gain, take["bias"] - take["running_mean"] * gain


def _tail(network: Network, layer: Layer) -> dict[str, Layer]:
    """What folds into a convolution, by op."""
    folds: dict[str, Layer] = {each.op: each for each in tail(network, layer)}
    if "quantize" not in folds:
        folds.pop("relu", None)  # it stays a ReLU; before a quantiser it changes nothing: alpha > 0
    return folds


def _stem(trained: _Trained, layer: Layer, folds: dict[str, Layer], mean: Float64, std: Float64) -> list[DeployOp]:
    weight, step = _on_grid(trained, layer, folds, mean, std)
    gain, shift = trained.affine(folds.get("batch_norm"), len(weight))
    thresholds = None
    if "quantize" in folds:
        weight = _turned(weight, gain)
        limit = (abs(weight) * _reach(mean)).sum((1, 2, 3)) + 1
        thresholds = _thresholds(step * abs(gain), shift, trained.alpha(folds["quantize"].name) / 2, limit)
    stem = Stem(
        name=layer.name,
        inputs=(INPUT,),
        weight=weight.astype(np.float32),
        mean=mean.astype(np.float32),
        stride=layer.stride,
        padding=layer.padding,
        thresholds=thresholds,
    )
    ops: list[DeployOp] = [stem, *_pool(folds, gain, layer.name)]
    if thresholds is None:
        name = folds["batch_norm"].name if "batch_norm" in folds else f"{layer.name}_scale"
        ops.append(_scale(name, (ops[-1].name,), step * gain, shift))
    return ops


def _on_grid(
    trained: _Trained, layer: Layer, folds: dict[str, Layer], mean: Float64, std: Float64
) -> tuple[Float64, Float64]:
    """The stem's weights over std as whole numbers, and their step in each output channel."""
    if (mean % 1).any() or mean.shape != (trained.network.channels,) or std.shape != mean.shape or not (std > 0).all():
        numbers = f"are {mean.tolist()} and {std.tolist()}"
        raise DmsflowError("the data set's mean and std", numbers, "whole numbers and positive ones, one a channel")
    weight = trained.filters(layer) / std
    threshold = np.zeros(len(weight))
    if "quantize" in folds:
        gain, shift = trained.affine(folds.get("batch_norm"), len(weight))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            threshold = abs((trained.alpha(folds["quantize"].name) / 2 - shift) / gain)
    return _whole(weight, _reach(mean), threshold)


def _reach(mean: Float64) -> Float64:
    """Largest |pixel - mean| of each channel."""
    return np.maximum(abs(mean), abs(PIXEL - mean))


def _whole(weight: Float64, reach: Float64, threshold: Float64) -> tuple[Float64, Float64]:
    """Whole numbers, and their step in each output channel: the least power of two that keeps `Stem` exact.

    `reach` is the largest |pixel - mean| of each input channel, `threshold` what the sums of each
    output channel are compared with, if that is within them. Rounding adds at most half a step to
    each weight and one to the threshold.
    """
    largest = (abs(weight) * reach).sum((1, 2, 3))
    room = EXACT - weight[0, ..., 0].size * reach.sum() / 2
    steps = (largest + np.fmin(threshold, largest)) / room
    step = np.exp2(np.ceil(np.log2(np.maximum(steps, np.finfo(np.float64).tiny))))
    return np.rint(weight / step[:, None, None, None]) + 0.0, step


def _binary_conv(trained: _Trained, layer: Layer, inputs: tuple[str, ...], folds: dict[str, Layer]) -> list[DeployOp]:
    signs, magnitude = binarised(trained.filters(layer))
    gain, shift = trained.affine(folds.get("batch_norm"), len(signs))
    scale = trained.alpha(layer.inputs[0]) * magnitude * gain  # of one count
    conv = BinaryConv(name=layer.name, inputs=inputs, signs=signs, stride=layer.stride, padding=layer.padding)
    if "quantize" in folds:
        half = trained.alpha(folds["quantize"].name) / 2
        thresholds = _thresholds(abs(scale), shift, half, conv.count + 1)
        conv = replace(conv, signs=_turned(signs, scale), thresholds=thresholds)
    else:
        multiplier = _float32(layer.name, scale / 2)
        bias = shift - scale * conv.negatives + conv.count * multiplier.astype(np.float64)
        conv = replace(conv, multiplier=multiplier, bias=_float32(layer.name, bias))
    return [conv, *_pool(folds, gain, layer.name)]


def binarised(latent: Float64) -> tuple[NDArray[np.int8], Float64]:
    """Eq. 1 on [C_out, ...]: signs, with sign(0) = +1, and the mean magnitude of each filter."""
    axes = tuple(range(1, latent.ndim))
    centred = latent - latent.mean(axes, keepdims=True)
    standard = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + STANDARDISE_EPSILON)
    return np.where(standard >= 0, 1, -1).astype(np.int8), abs(standard).mean(axes)


def _turned(weight: Any, scale: Float64) -> Any:
    """Filters of negative scale change sign, so that every channel is on at large sums."""
    return np.where((scale < 0)[:, None, None, None], -weight, weight) + weight.dtype.type(0)


def _thresholds(scale: Float64, shift: Float64, half: float, limit: Float64 | int) -> Int32:
    """The least integer sum with `scale * sum + shift > half`, per channel; scale >= 0.

    `limit` stands for never, `-limit` for always.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        least = np.floor((half - shift) / scale) + 1
    least = np.where(scale > 0, least, np.where(shift > half, -np.inf, np.inf))
    return np.clip(least, -limit, limit).astype(np.int32)


def _pool(folds: dict[str, Layer], gain: Float64, conv: str) -> list[DeployOp]:
    """The max pool behind a convolution; it may stand behind the batch norm as well if gain >= 0."""
    if "max_pool" not in folds:
        return []
    if (gain < 0).any():
        raise DmsflowError(
            folds["batch_norm"].name, "has a negative scale behind a max pool", "train with that scale held positive"
        )
    return [_max_pool(folds["max_pool"], (conv,), binary="quantize" in folds)]


def _max_pool(layer: Layer, inputs: tuple[str, ...], *, binary: bool) -> MaxPool:
    return MaxPool(
        name=layer.name, inputs=inputs, kernel=layer.kernel, stride=layer.stride, padding=layer.padding, binary=binary
    )


def _scale(name: str, inputs: tuple[str, ...], gain: Float64, shift: Float64) -> Scale:
    return Scale(name=name, inputs=inputs, multiplier=_float32(name, gain), bias=_float32(name, shift))


def _float_op(trained: _Trained, layer: Layer, inputs: tuple[str, ...]) -> DeployOp:
    name, channels = layer.name, trained.channels(layer.inputs[0])
    if layer.op == "batch_norm":
        return _scale(name, inputs, *trained.affine(layer, channels))
    if layer.op == "quantize":
        return Quantize(name=name, inputs=inputs, threshold=np.float32(trained.alpha(name) / 2))
    if layer.op == "max_pool":
        return _max_pool(layer, inputs, binary=False)
    if layer.op == "dense":
        return _dense(trained, layer, inputs, channels)
    if layer.op == "add":
        return Add(name=name, inputs=inputs)
    return Relu(name=name, inputs=inputs) if layer.op == "relu" else AveragePool(name=name, inputs=inputs)


def _dense(trained: _Trained, layer: Layer, inputs: tuple[str, ...], channels: int) -> Dense:
    outputs = trained.channels(layer.name)
    weight, bias = trained.take(f"{layer.name}.weight", outputs, channels), trained.take(f"{layer.name}.bias", outputs)
    return Dense(name=layer.name, inputs=inputs, weight=_float32(layer.name, weight), bias=_float32(layer.name, bias))


def _float32(where: str, values: Float64) -> Float32:
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise DmsflowError(where, "has a scale beyond float32", "train again, with a smaller learning rate")
    return narrow


def random_weights(network: Network, widths: Mapping[str, int], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights as a training could leave them, for measuring time: activations keep a normal size."""
    random = np.random.default_rng(seed)
    keys = out_widths(network)
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in network.layers:
        c_in, c_out = (value(widths, keys[name]) for name in (layer.inputs[0], layer.name))
        if layer.op in WEIGHTED:
            shape = (c_out, c_in) if layer.op == "dense" else (c_out, c_in, layer.kernel, layer.kernel)
            deviation = np.float32((2 / (c_in * layer.kernel**2)) ** 0.5)
            weights[f"{layer.name}.weight"] = random.standard_normal(shape, np.float32) * deviation
        if layer.op == "dense":
            weights[f"{layer.name}.bias"] = np.zeros(c_out, np.float32)
        if layer.op == "quantize":
            weights[f"{layer.name}.alpha"] = np.array(random.uniform(0.9, 1.1), np.float32)  # no two equal
        if layer.op == "batch_norm":
            for name, constant in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                weights[f"{layer.name}.{name}"] = np.full(c_out, constant, np.float32)
    return weights


# --- the reference ----------------------------------------------------------------------------

CHUNK = 2**23  # values of the largest tensor that are computed at a time


def run(form: DeployForm, images: NDArray[Any]) -> Float32:
    """Logits [N, classes] of images [N, H, W, C] with pixels 0..255: what a file must give."""
    size = max(1, CHUNK // max(height * width * channels for height, width, channels in form.shapes().values()))
    parts = [_run(form, images[start : start + size]) for start in range(0, len(images), size)]
    return np.concatenate(parts) if parts else np.zeros((0, form.classes), np.float32)


def _run(form: DeployForm, images: NDArray[Any]) -> Float32:
    tensors = {INPUT: images.astype(np.float32)}
    for op in form.ops:
        tensors[op.name] = _compute(op, *(tensors[name] for name in op.inputs))
    return tensors[form.ops[-1].name].reshape(len(images), form.classes)


def _compute(op: DeployOp, x: Any, *others: Any) -> Any:
    """Bits (bool) or float32, [N, H, W, C]."""
    match op:
        case Stem():
            sums = _convolve(x - op.mean, op.weight, op.stride, op.padding)
            return sums if op.thresholds is None else sums >= op.thresholds
        case BinaryConv():
            sums = _convolve(x.astype(np.float32), op.signs.astype(np.float32), op.stride, op.padding)
            if op.thresholds is not None:
                return sums >= op.thresholds
            disagreements = sums + op.negatives.astype(np.float32)
            return 2 * disagreements * op.multiplier + op.offset
        case MaxPool():
            return np.maximum.reduce(
                [part for _, part in _taps(x, op.kernel, op.stride, op.padding, False if op.binary else -np.inf)]
            )
        case Scale():
            return x * op.multiplier + op.bias
        case Quantize():
            return x > op.threshold
        case Add():
            return x + others[0]
        case Relu():
            return np.maximum(x, np.float32(0))
        case AveragePool():
            return x.mean((1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
        case Dense():
            return (x.astype(np.float64) @ op.weight.T + op.bias).astype(np.float32)


def _convolve(x: Float32, weight: Float32, stride: int, padding: int) -> Any:
    """Sums of whole numbers below 2^24, so exact: [N, H, W, C_in] * [C_out, k, k, C_in] -> [N, H', W', C_out]."""
    outputs, kernel = weight.shape[:2]
    total: Any = 0
    for (row, column), part in _taps(x, kernel, stride, padding, 0):
        shape = (*part.shape[:3], outputs)
        total = total + (part.reshape(-1, part.shape[3]) @ weight[:, row, column].T).reshape(shape)
    return total


def _taps(
    x: NDArray[Any], kernel: int, stride: int, padding: int, fill: Any
) -> Iterator[tuple[tuple[int, int], NDArray[Any]]]:
    """For each position in the window, what it sees: [N, H', W', C]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    height, width = ((size - kernel) // stride * stride + 1 for size in x.shape[1:3])
    for row in range(kernel):
        for column in range(kernel):
            yield (row, column), x[:, row : row + height : stride, column : column + width : stride]


# --- what it weighs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """Parameters of one op: signs at 8 to the byte, and everything else (float32, int32)."""

    name: str
    op: str
    binary_bytes: int
    float_bytes: int


def account(form: DeployForm) -> list[Bytes]:
    """Bytes of each op that has parameters, in order."""
    rows = []
    for op in form.ops:
        arrays = [array for array in vars(op).values() if isinstance(array, (np.ndarray, np.generic))]
        binary = sum(-(-array.size // 8) for array in arrays if array.dtype == np.int8)
        floats = sum(array.nbytes for array in arrays if array.dtype != np.int8)
        if arrays:
            rows.append(Bytes(name=op.name, op=type(op).__name__, binary_bytes=binary, float_bytes=floats))
    return rows

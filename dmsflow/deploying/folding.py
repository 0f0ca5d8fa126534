"""From trained weights to the integer graph: folds batch norms, quantisers and scales into convolutions.

All constants are decided in float64, and then kept in the type that the runtime uses. Batch norm and
quantiser behind a convolution become one integer threshold a channel; the stem's weights become whole
numbers, times a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from dmsflow.deploying import integer_graph
from dmsflow.deploying.integer_graph import GraphOp, IntegerGraph
from dmsflow.errors import DmsflowError
from dmsflow.network import blocks
from dmsflow.network.network import (
    BATCH_NORM_EPS,
    INPUT,
    LARGEST_INT8,
    QUANTISERS,
    STANDARDISATION_EPS,
    Layer,
    Network,
    evaluated,
    has_int8_stem,
    out_widths,
    pools_all,
    value,
    weight_shape,
)

PRELU = ("slope", "before", "after")  # what a prelu learns
LARGEST_PIXEL = 255
RELU6 = 6  # what no output of a ReLU6 exceeds
LARGEST_WEIGHT = 1e9  # no training has one near it, and the products that are folded then fit into float32

Weights = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]


def fold(network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any) -> IntegerGraph:
    """Fold a trained network.

    Args:
        network: the architecture.
        widths: channels of every named width.
        weights: by name, as in train.safetensors: `<layer>.weight`, `.bias`, `.running_mean`,
            `.running_var`, `.alpha`, `.shift`, `.slope`, `.before`, `.after`; convolutions are [C_out, C_in, k, k]. Compact weights have `.signs` and
            `.magnitude` instead of the `.weight` of a binary convolution.
        mean, std: of each channel in pixels (0..255); the mean is a whole number.

    Raises:
        DmsflowError: a weight is missing, misshapen or not finite, an alpha is not above 0, or the
            network holds what cannot be folded exactly (a batch norm of negative scale behind a
            max pool).
    """
    network = evaluated(network)
    trained = TrainedWeights(network, widths, weights)
    ops: list[GraphOp] = []
    names = {INPUT: INPUT}  # of each layer's tensor in the integer graph
    for layer in network.layers:
        if layer.name in names:
            continue  # folded into an earlier one
        inputs = tuple(names[name] for name in layer.inputs)
        if layer.op in ("conv", "binary_conv", "depthwise_conv"):
            tail = _read_tail(trained, layer)
            if INPUT in layer.inputs:
                ops += _fold_stem(trained, layer, tail, mean, std)
            elif layer.op != "binary_conv":
                ops += _fold_float_conv(trained, layer, tail, inputs)
            else:
                ops += _fold_binary_conv(trained, layer, tail, inputs)
            names |= dict.fromkeys(tail.names.values(), ops[-1].name)
        else:
            ops.append(_convert_layer(trained, layer, inputs))
        names[layer.name] = ops[-1].name
    image: dict[str, Any] = {"channels": network.channels, "resolution": network.resolution, "classes": network.classes}
    pixels = "uint8" if has_int8_stem(network) else "float32"
    return IntegerGraph(name=network.name, **image, ops=tuple(ops), pixels=pixels)


def round_weights(network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any) -> Weights:
    """The same weights, with those of the stem, and those of 8 bits, rounded as in `fold`.

    What is trained last, so that export changes nothing: rounding moves them by about 1 in 2^12,
    and a bit that this flips in the first layer may move an image. Arguments and errors as `fold`.
    """
    trained, rounded = TrainedWeights(evaluated(network), widths, weights), dict(weights)
    for layer in trained.network.layers:
        if INPUT in layer.inputs:
            whole, step = _round_stem_filters(trained, layer, _read_tail(trained, layer), mean, std)
            weight = whole * step[:, None, None, None] * np.asarray(std, np.float64)
            rounded[f"{layer.name}.weight"] = np.ascontiguousarray(weight.transpose(0, 3, 1, 2), np.float32)
        elif layer.bits == 8:
            dense, _ = trained.dense(layer)
            steps = _measure_step(dense)
            rounded[f"{layer.name}.weight"] = (np.rint(dense / steps) * steps).astype(np.float32)
    return rounded


@dataclass(frozen=True)
class TrainedWeights:
    """Trained weights, checked and in float64; each method raises DmsflowError for what is missing or unusable."""

    network: Network
    widths: Mapping[str, int]
    weights: Weights

    def channels(self, name: str) -> int:
        """Of the tensor that a layer puts out."""
        return int(value(self.widths, out_widths(self.network)[name]))

    def take(self, name: str, *shape: int) -> Float64:
        """The array of that name, if it has that shape."""
        right = "export with the manifest that train wrote"
        if name not in self.weights:
            raise DmsflowError(name, "is not among the trained weights", right)
        with np.errstate(invalid="ignore"):  # a NaN of a damaged file may be a signalling one
            array = np.asarray(self.weights[name], np.float64)
        if array.shape != shape:
            raise DmsflowError(name, f"has shape {list(array.shape)}, but the widths need {list(shape)}", right)
        if not (abs(array) <= LARGEST_WEIGHT).all():
            what = "has values that are not finite" if not np.isfinite(array).all() else f"has {abs(array).max():.3g}"
            raise DmsflowError(name, what, "train again, with a smaller learning rate")
        return array

    def filters(self, layer: Layer) -> Float64:
        """The weights of a convolution, [C_out, k, k, C_in]; C_in is 1 of a depthwise one."""
        shape = weight_shape(layer, self.channels(layer.inputs[0]), self.channels(layer.name))
        return self.take(f"{layer.name}.weight", *shape).transpose(0, 2, 3, 1)

    def binary_filters(self, layer: Layer) -> tuple[NDArray[np.int8], Float64]:
        """Signs [C_out, k, k, C_in / groups] of a binary convolution and its mean magnitudes [C_out], as `binarise` gives them.

        Compact weights have them already: the signs of a filter as bits, 1 for +1, in rows of whole bytes.
        """
        if f"{layer.name}.signs" not in self.weights:
            return binarise(self.filters(layer))
        filters, reads, *window = weight_shape(layer, self.channels(layer.inputs[0]), self.channels(layer.name))
        count = math.prod((*window, reads))
        packed = self.take(f"{layer.name}.signs", filters, -(-count // 8)).astype(np.uint8)
        bits = np.unpackbits(packed, axis=1, count=count).reshape(filters, *window, reads)
        return np.where(bits, 1, -1).astype(np.int8), self.take(f"{layer.name}.magnitude", filters)

    def dense(self, layer: Layer) -> tuple[Float64, Float64]:
        """Weight [C_out, C_in] and bias [C_out]."""
        outputs, inputs = self.channels(layer.name), self.channels(layer.inputs[0])
        return self.take(f"{layer.name}.weight", outputs, inputs), self.take(f"{layer.name}.bias", outputs)

    def alpha(self, quantize: str) -> float:
        alpha = float(self.take(f"{quantize}.alpha"))
        if alpha <= 0:
            raise DmsflowError(f"{quantize}.alpha", f"is {alpha:g}", "train again: it must be above 0")
        return alpha

    def threshold(self, quantiser: Layer) -> Float64:
        """What turns an activation on if it exceeds it: alpha / 2, or the shifts [C] of a sign."""
        if quantiser.op == "quantize":
            return np.array(self.alpha(quantiser.name) / 2)
        return self.take(f"{quantiser.name}.shift", self.channels(quantiser.name))

    def levels(self, quantiser: Layer) -> tuple[float, float]:
        """What a quantiser puts out where it is off, and how much more where it is on."""
        return (-1.0, 2.0) if quantiser.op == "sign" else (0.0, self.alpha(quantiser.name))

    def prelu(self, layer: Layer) -> tuple[Float64, ...]:
        """Slope, and what is subtracted before and added after, [C] each."""
        return tuple(self.take(f"{layer.name}.{part}", self.channels(layer.name)) for part in PRELU)

    def fold_batch_norm(self, norm: str | None, channels: int) -> tuple[Float64, Float64]:
        """Gain and shift, [C] each, of a batch norm (None: of none): x -> gain x + shift.

        A weight of 2 on a variance of 4, a mean of 3 and a bias of 1 are a gain of 1 and a shift of -2.
        """
        if norm is None:
            return np.ones(channels), np.zeros(channels)
        parts = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (self.take(f"{norm}.{part}", channels) for part in parts)
        if (variance < 0).any():
            raise DmsflowError(f"{norm}.running_var", "is negative", "export with the weights that train wrote")
        gain = weight / np.sqrt(variance + BATCH_NORM_EPS)
        return gain, bias - mean * gain


@dataclass(frozen=True)
class Tail:
    """What follows a convolution and folds into it."""

    names: Mapping[str, str]  # of those layers, by op
    gain: Float64  # [C], of the batch norm
    shift: Float64  # [C]
    half: Float64 | None  # what the quantiser compares with, if there is one: alpha / 2, or shifts [C]
    pool: tuple[integer_graph.MaxPool, ...]  # the max pool, if there is one
    rectifies: bool = False  # a ReLU stands in front of the batch norm


def _read_tail(trained: TrainedWeights, conv: Layer) -> Tail:
    layers = {layer.op: layer for layer in blocks.tail(trained.network, conv)}
    rectifies = list(layers)[:2] == ["relu", "batch_norm"]
    if conv.op != "binary_conv" and INPUT not in conv.inputs:
        for op in QUANTISERS:  # no threshold for sums of floats
            layers.pop(op, None)
    quantiser = layers.get("quantize", layers.get("sign"))
    half = trained.threshold(quantiser) if quantiser else None
    if half is None and not rectifies:
        for op in ("relu", "relu6"):  # it stays one
            layers.pop(op, None)
    names: dict[str, str] = {op: layer.name for op, layer in layers.items()}
    gain, shift = trained.fold_batch_norm(names.get("batch_norm"), trained.channels(conv.name))
    if half is not None and rectifies:  # what the ReLU makes 0 becomes `shift`, and all else lies on one side of that
        half = np.where((gain > 0) & (shift > half), -np.inf, np.where((gain < 0) & (shift <= half), np.inf, half))
    elif half is not None and ("relu" in layers or "relu6" in layers):  # it exceeds whatever is below zero
        half = np.where(half < 0, -np.inf, half)
    if half is not None and "relu6" in layers:  # nothing exceeds 6
        half = np.where(half >= RELU6, np.inf, half)
    if "max_pool" not in layers:
        return Tail(names, gain, shift, half, (), rectifies)
    if (gain < 0).any():  # the maximum would become a minimum
        what = "has a negative scale behind a max pool"
        raise DmsflowError(names["batch_norm"], what, "train again: it must be positive")
    return Tail(names, gain, shift, half, (_max_pool(layers["max_pool"], (conv.name,), binary=half is not None),))


def _fold_stem(trained: TrainedWeights, layer: Layer, tail: Tail, mean: Any, std: Any) -> list[GraphOp]:
    weight, step = _round_stem_filters(trained, layer, tail, mean, std)
    dtype = np.int8 if layer.bits == 8 else np.float32
    arrays: dict[str, Any] = {"weight": weight.astype(dtype), "mean": np.asarray(mean, np.float32)}
    stem = integer_graph.Stem(**_window(layer), inputs=(INPUT,), **arrays)
    if tail.half is None:
        ops: list[GraphOp] = [stem, *tail.pool]
        name = tail.names.get("batch_norm", f"{layer.name}_scale")
        return [*ops, _scale(name, (ops[-1].name,), step * tail.gain, tail.shift)]
    limit = (abs(weight) * _largest_inputs(np.asarray(mean, np.float64))).sum((1, 2, 3)) + 1
    thresholds = _compute_thresholds(step * abs(tail.gain), tail.shift, tail.half, limit)
    return [replace(stem, weight=_flip_signs(stem.weight, tail.gain), thresholds=thresholds), *tail.pool]


def _round_stem_filters(
    trained: TrainedWeights, layer: Layer, tail: Tail, mean: Any, std: Any
) -> tuple[Float64, Float64]:
    """The stem's weights over std as whole numbers, and their step in each output channel."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if (mean % 1).any() or mean.shape != (trained.network.channels,) or std.shape != mean.shape or not (std > 0).all():
        right = "give an integer mean and a positive std for each channel"
        raise DmsflowError("the data set's mean and std", f"are {mean.tolist()} and {std.tolist()}", right)
    weight = trained.filters(layer) / std
    if layer.bits == 8:
        step = _measure_step(weight.reshape(len(weight), -1), axis=1)
        return np.rint(weight / step[:, None, None, None]) + 0.0, step
    threshold = np.zeros(len(weight))
    if tail.half is not None:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            threshold = abs((tail.half - tail.shift) / tail.gain)
    return round_filters(weight, _largest_inputs(mean), threshold)


def _measure_step(weight: Float64, axis: int | None = None) -> Float64:
    """The step in which the largest weight is 127; 1 where all are 0."""
    step = np.asarray(abs(weight).max(axis) / LARGEST_INT8)
    return np.where(step > 0, step, 1.0)


def _largest_inputs(mean: Float64) -> Float64:
    """Largest |pixel - mean| of each channel."""
    return np.maximum(abs(mean), abs(LARGEST_PIXEL - mean))


def round_filters(weight: Float64, largest_inputs: Float64, threshold: Float64) -> tuple[Float64, Float64]:
    """Whole numbers, and their step in each output channel: the least power of two that keeps `Stem` exact.

    Rounding adds at most half a step to each weight and one to the threshold.

    Args:
        weight: [C_out, k, k, C_in].
        largest_inputs: of each input channel, the largest |pixel - mean|.
        threshold: what the sums of each output channel are compared with, if that is within them.
    """
    largest = (abs(weight) * largest_inputs).sum((1, 2, 3))
    space = integer_graph.LARGEST_SUM - weight[0, ..., 0].size * largest_inputs.sum() / 2
    steps = (largest + np.fmin(threshold, largest)) / space
    step = np.exp2(np.ceil(np.log2(np.maximum(steps, np.finfo(np.float64).tiny))))
    return np.rint(weight / step[:, None, None, None]) + 0.0, step


def _fold_binary_conv(trained: TrainedWeights, layer: Layer, tail: Tail, inputs: tuple[str, ...]) -> list[GraphOp]:
    signs, magnitude = trained.binary_filters(layer)
    off, step = trained.levels(trained.network.layer(layer.inputs[0]))
    scale = step * magnitude * tail.gain  # of one count
    shift = tail.shift + off * magnitude * tail.gain * signs.sum((1, 2, 3))
    conv = integer_graph.BinaryConv(**_window(layer), inputs=inputs, weight=signs)
    if tail.half is not None:
        thresholds = _compute_thresholds(abs(scale), shift, tail.half, conv.count + 1)
        return [replace(conv, weight=_flip_signs(signs, scale), thresholds=thresholds), *tail.pool]
    multiplier = (scale / 2).astype(np.float32)
    if tail.rectifies:  # the opposite signs, of which 2 disagreements below K are a sum above 0
        conv = replace(conv, weight=-signs, rectifies=True)
        return [replace(conv, multiplier=-multiplier, bias=tail.shift.astype(np.float32))]
    bias = shift - scale * conv.negatives + conv.count * multiplier.astype(np.float64)
    return [replace(conv, multiplier=multiplier, bias=bias.astype(np.float32)), *tail.pool]


def _fold_float_conv(trained: TrainedWeights, layer: Layer, tail: Tail, inputs: tuple[str, ...]) -> list[GraphOp]:
    weight = (trained.filters(layer) * tail.gain[:, None, None, None]).astype(np.float32)
    kind = integer_graph.FloatConv if layer.op == "conv" else integer_graph.DepthwiseConv
    conv = kind(**_window(layer), inputs=inputs, weight=weight, bias=tail.shift.astype(np.float32))
    return [conv, *tail.pool]


def binarise(latent: Float64) -> tuple[NDArray[np.int8], Float64]:
    """Eq. 1 on [C_out, ...]: signs, with sign(0) = +1, and the mean magnitude of each filter.

    The filter 1, 5, 1, 1 has the mean 2 and the signs - + - -.
    """
    axes = tuple(range(1, latent.ndim))
    centred = latent - latent.mean(axes, keepdims=True)
    standard = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + STANDARDISATION_EPS)
    return np.where(standard >= 0, 1, -1).astype(np.int8), abs(standard).mean(axes)


def _flip_signs(weight: Any, scale: Float64) -> Any:
    """Filters of negative scale change sign, so that every channel is on at large sums."""
    return np.where((scale < 0)[:, None, None, None], -weight, weight) + weight.dtype.type(0)


def _compute_thresholds(scale: Float64, shift: Float64, half: Float64, limit: Float64 | int) -> integer_graph.Int32:
    """The least integer sum with `scale * sum + shift > half`, per channel; scale >= 0.

    `limit` stands for never, `-limit` for always. A scale of 0.5, a shift of 0 and half an alpha of 1 give
    3: the sum 2 reaches 1, and is not above it.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        least = np.floor((half - shift) / scale) + 1
    least = np.where(scale > 0, least, np.where(shift > half, -np.inf, np.inf))
    clipped: integer_graph.Int32 = np.clip(least, -limit, limit).astype(np.int32)
    return clipped


def _convert_layer(trained: TrainedWeights, layer: Layer, inputs: tuple[str, ...]) -> GraphOp:
    name = layer.name
    match layer.op:
        case "batch_norm":
            return _scale(name, inputs, *trained.fold_batch_norm(name, trained.channels(name)))
        case "quantize" | "sign":
            threshold = trained.threshold(layer).astype(np.float32)
            return integer_graph.Quantize(name=name, inputs=inputs, threshold=threshold)
        case "prelu":
            parts = dict(zip(PRELU, (each.astype(np.float32) for each in trained.prelu(layer)), strict=True))
            return integer_graph.PRelu(name=name, inputs=inputs, **parts)
        case "max_pool":
            return _max_pool(layer, inputs, binary=False)
        case "average_pool" if not pools_all(layer):
            return integer_graph.AveragePool(name=name, inputs=inputs, kernel=layer.kernel, stride=layer.stride)
        case "dense":
            weight, bias = trained.dense(layer)
            step = _measure_step(weight) if layer.bits == 8 else np.ones(())
            steps = np.rint(weight / step).astype(np.int8) if layer.bits == 8 else weight.astype(np.float32)
            scale = float(np.float32(step))
            return integer_graph.Dense(
                name=name, inputs=inputs, weight=steps, scale=scale, bias=bias.astype(np.float32)
            )
    kinds: dict[str, Callable[..., GraphOp]] = {"add": integer_graph.Add, "relu": integer_graph.Relu}
    kinds |= {"relu6": integer_graph.Relu6, "concat": integer_graph.Concat, "multiply": integer_graph.Multiply}
    kinds |= {"sigmoid": integer_graph.Sigmoid, "hard_sigmoid": integer_graph.HardSigmoid}
    return kinds.get(layer.op, integer_graph.AveragePool)(name=name, inputs=inputs)


def _max_pool(layer: Layer, inputs: tuple[str, ...], *, binary: bool) -> integer_graph.MaxPool:
    return integer_graph.MaxPool(**_window(layer), inputs=inputs, kernel=layer.kernel, binary=binary)


def _window(layer: Layer) -> dict[str, Any]:
    return {"name": layer.name, "stride": layer.stride, "padding": layer.padding}


def _scale(name: str, inputs: tuple[str, ...], gain: Float64, shift: Float64) -> integer_graph.Scale:
    multiplier, bias = gain.astype(np.float32), shift.astype(np.float32)
    return integer_graph.Scale(name=name, inputs=inputs, multiplier=multiplier, bias=bias)

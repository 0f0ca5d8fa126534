"""From trained weights to the integer graph: what of batch norms, quantisers and scales a convolution takes in.

All constants are decided in float64, and then kept in the type that the runtime uses. Batch norm and
quantiser behind a convolution become one integer threshold a channel; the stem's weights become whole
numbers, times a power of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying.integer_graph import (
    EXACT,
    Add,
    AveragePool,
    BinaryConv,
    Dense,
    Float32,
    GraphOp,
    Int32,
    IntegerGraph,
    MaxPool,
    Quantize,
    Relu,
    Scale,
    Stem,
)
from dmsflow.errors import DmsflowError
from dmsflow.network.blocks import tail
from dmsflow.network.network import INPUT, WEIGHTED, Layer, Network, out_widths, value

BATCH_NORM_EPSILON = 1e-5
STANDARDISE_EPSILON = 1e-10  # Eq. 1
PIXEL = 255

Weights = Mapping[str, NDArray[Any]]
Float64 = NDArray[np.float64]


def fold(network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any) -> IntegerGraph:
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
    ops: list[GraphOp] = []
    names = {INPUT: INPUT}  # of each layer's tensor in the integer graph
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
    return IntegerGraph(
        name=network.name,
        channels=network.channels,
        resolution=network.resolution,
        classes=network.classes,
        ops=tuple(ops),
    )


def round_stem(
    network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any
) -> dict[str, NDArray[Any]]:
    """The same weights, those of the stem rounded as `fold` rounds them.

    What is trained last, so that export changes nothing: rounding moves them by about 1 in 2^12,
    and a bit that this flips in the first layer may move an image. Arguments and errors as `fold`.
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


def _stem(trained: _Trained, layer: Layer, folds: dict[str, Layer], mean: Float64, std: Float64) -> list[GraphOp]:
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
    ops: list[GraphOp] = [stem, *_pool(folds, gain, layer.name)]
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


def _binary_conv(trained: _Trained, layer: Layer, inputs: tuple[str, ...], folds: dict[str, Layer]) -> list[GraphOp]:
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


def _pool(folds: dict[str, Layer], gain: Float64, conv: str) -> list[GraphOp]:
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


def _float_op(trained: _Trained, layer: Layer, inputs: tuple[str, ...]) -> GraphOp:
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

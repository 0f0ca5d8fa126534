"""Writes the network of the same widths in full precision: what a binary one is measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying import folding
from dmsflow.deploying.exporters._onnx_graph import Graph, window_of
from dmsflow.deploying.folding import BATCH_NORM_EPSILON
from dmsflow.errors import DmsflowError
from dmsflow.network.network import INPUT, Layer, Network

Weights = Mapping[str, NDArray[Any]]


def write_float(
    network: Network,
    widths: Mapping[str, int],
    weights: Weights | None,
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Write the network in full precision: every binary conv a plain one, every quantiser a ReLU.

    A batch norm behind a convolution is folded into it, also through a max pool if its scale is
    positive.

    Args:
        network, widths: what to write.
        weights: as in train.safetensors, from `train --precision float`; None: random, always the same.
        mean, std: of each channel in pixels.
        path: of the file.

    Raises:
        DmsflowError: onnx is missing, a weight is missing, or the file cannot be written.
    """
    graph, weights = Graph(), weights or folding.random_weights(network, widths)
    names = {INPUT: graph.node("Div", graph.planes(mean), graph.per_channel("input.std", std), name="input.normalised")}
    positive = set()  # layers whose tensor has no negative value: a ReLU behind them is none
    for layer in network.layers:
        inputs = [names[name] for name in layer.inputs]
        if layer.op in ("relu", "quantize"):
            names[layer.name] = (
                inputs[0] if layer.inputs[0] in positive else graph.node("Relu", *inputs, name=layer.name)
            )
            positive.add(layer.name)
        elif layer.op == "batch_norm" and _folds(network, layer, weights):
            names[layer.name] = inputs[0]
        else:
            names[layer.name] = layer.name
            _float_layer(graph, network, layer, inputs, weights)
    shape = (1, network.resolution, network.resolution, network.channels)
    graph.save(path, f"{network.name}_float32", shape, network.layers[-1].name, network.classes)


def _float_layer(graph: Graph, network: Network, layer: Layer, inputs: list[str], weights: Weights) -> None:
    if layer.op in ("conv", "binary_conv"):
        weight, bias = _folded(network, layer, weights)
        constants = graph.constant(f"{layer.name}.weight", weight), graph.constant(f"{layer.name}.bias", bias)
        graph.node("Conv", *inputs, *constants, name=layer.name, **window_of(layer, layer.kernel))
    elif layer.op == "batch_norm":
        graph.affine(inputs[0], *_scale_and_shift(layer, weights), layer.name)
    elif layer.op == "max_pool":
        graph.node("MaxPool", *inputs, name=layer.name, **window_of(layer, layer.kernel))
    elif layer.op == "average_pool":
        graph.node("GlobalAveragePool", *inputs, name=layer.name)
    elif layer.op == "add":
        graph.node("Add", *inputs, name=layer.name)
    else:
        parameters = (_weight(weights, f"{layer.name}.{name}") for name in ("weight", "bias"))
        graph.dense(inputs[0], layer.name, *parameters)


def _folded(network: Network, conv: Layer, weights: Weights) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias of a convolution, with the batch norm that follows it."""
    weight = _weight(weights, f"{conv.name}.weight")
    scale, shift = np.ones(len(weight)), np.zeros(len(weight))
    reader = network.consumers(conv.name)[0]
    norm = network.consumers(reader.name)[0] if reader.op == "max_pool" else reader
    if norm.op == "batch_norm" and _folds(network, norm, weights):
        scale, shift = _scale_and_shift(norm, weights)
    return weight * scale[:, None, None, None], shift


def _folds(network: Network, norm: Layer, weights: Weights) -> bool:
    """Whether a batch norm can be part of the convolution before it."""
    before = norm.inputs[0]
    pooled = before != INPUT and network.layer(before).op == "max_pool"
    chain = [before, network.layer(before).inputs[0]] if pooled else [before]
    if chain[-1] == INPUT or network.layer(chain[-1]).op not in ("conv", "binary_conv"):
        return False
    alone = all(len(network.consumers(name)) == 1 for name in chain)
    return alone and (not pooled or bool((_scale_and_shift(norm, weights)[0] > 0).all()))


def _scale_and_shift(norm: Layer, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    gamma, beta, mean, variance = (
        _weight(weights, f"{norm.name}.{name}").astype(np.float64)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    return scale, beta - mean * scale


def _weight(weights: Weights, name: str) -> NDArray[Any]:
    if name not in weights:
        raise DmsflowError(name, "is not among the weights", "train the network again")
    return weights[name]

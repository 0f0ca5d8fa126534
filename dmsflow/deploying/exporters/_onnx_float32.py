"""Writes the network of the same widths in full precision, the baseline of a binary one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmsflow.deploying.exporters._onnx_graph import HARD_SIGMOID, Graph, channels_first, window_of
from dmsflow.deploying.folding import PRELU, TrainedWeights, Weights
from dmsflow.network.blocks import tail
from dmsflow.network.network import INPUT, QUANTISERS, Layer, Network, evaluated, pools_all

PLAIN = {"relu6": "Clip", "add": "Add", "concat": "Concat", "max_pool": "MaxPool", "average_pool": "AveragePool"}
PLAIN |= {"multiply": "Mul", "sigmoid": "Sigmoid", "hard_sigmoid": "HardSigmoid"}
OPTIONS: dict[str, dict[str, Any]] = {"concat": {"axis": 1}, "hard_sigmoid": HARD_SIGMOID}  # attributes of these


def write_float(network: Network, widths: Mapping[str, int], weights: Weights, mean: Any, std: Any, path: Path) -> None:
    """Write the network in full precision: every binary conv a plain one, every quantiser a ReLU.

    A batch norm behind a convolution is folded into it, also through a max pool if its scale is
    positive. Arguments and errors as of `folding.fold`; the weights are those of `train --precision float`.
    """
    graph, network = Graph(), evaluated(network)
    trained = TrainedWeights(network, widths, weights)
    names = {INPUT: graph.node("Div", graph.planes(mean), graph.per_channel("input/std", std), name="input/normalised")}
    positive = set()  # layers whose tensor has no negative value: a ReLU behind them does nothing
    for layer in network.layers:
        name, inputs = layer.name, [names[each] for each in layer.inputs]
        if name in names:
            continue  # a batch norm that an earlier convolution contains
        names[name] = name
        match layer.op:
            case "conv" | "binary_conv" | "depthwise_conv":
                norm = _write_convolution(graph, trained, layer, inputs[0])
                names |= {norm.name: norm.inputs[0]} if norm else {}
            case "batch_norm":
                gain, shift = trained.fold_batch_norm(name, trained.channels(name))
                multiplier = graph.per_channel(f"{name}/multiplier", gain)
                scaled = graph.node("Mul", *inputs, multiplier, name=f"{name}/scaled")
                graph.node("Add", scaled, graph.per_channel(f"{name}/bias", shift), name=name)
            case "relu" | "quantize" | "sign" if layer.inputs[0] in positive:
                names[name] = inputs[0]
            case "relu" | "quantize" | "sign":
                graph.node("Relu", *inputs, name=name)
            case "prelu":
                parts = zip(PRELU, trained.prelu(layer), strict=True)
                graph.prelu(inputs[0], name, *(graph.per_channel(f"{name}/{part}", values) for part, values in parts))
            case "dense":
                graph.dense(inputs[0], name, *trained.dense(layer))
            case _:
                _add_plain(graph, layer, inputs)
        if layer.op in ("relu", "relu6", *QUANTISERS):
            positive.add(name)
    shape = (1, network.resolution, network.resolution, network.channels)
    graph.save(path, f"{network.name}_float32", shape, network.layers[-1].name, network.classes)


def _write_convolution(graph: Graph, trained: TrainedWeights, layer: Layer, x: str) -> Layer | None:
    """A convolution with its bias; returns the batch norm that it contains."""
    weight, norm = trained.filters(layer), _find_batch_norm(trained, layer)
    gain, shift = trained.fold_batch_norm(norm.name if norm else None, len(weight))
    weight = channels_first(weight * gain[:, None, None, None])
    constants = graph.constant(f"{layer.name}/weight", weight), graph.constant(f"{layer.name}/bias", shift)
    groups = trained.channels(layer.inputs[0]) // weight.shape[1]
    graph.node("Conv", x, *constants, name=layer.name, **window_of(layer, groups))
    return norm


def _add_plain(graph: Graph, layer: Layer, inputs: list[str]) -> None:
    """A layer without weights as one node."""
    window = window_of(layer) if layer.op.endswith("_pool") and not pools_all(layer) else {}
    limits = [graph.scalar(0), graph.scalar(6)] if layer.op == "relu6" else []
    op = "GlobalAveragePool" if pools_all(layer) else PLAIN[layer.op]
    graph.node(op, *inputs, *limits, name=layer.name, **window, **OPTIONS.get(layer.op, {}))


def _find_batch_norm(trained: TrainedWeights, conv: Layer) -> Layer | None:
    """The batch norm that can be part of a convolution; behind a max pool, only one of positive scales."""
    followers = {layer.op: layer for layer in tail(trained.network, conv)}
    norm = None if next(iter(followers), "") == "relu" else followers.get("batch_norm")
    if norm and "max_pool" in followers:
        gain, _ = trained.fold_batch_norm(norm.name, trained.channels(norm.name))
        return norm if (gain > 0).all() else None
    return norm

"""A trained network as a torch module of torch's own layers alone: to run, to change, or to export with other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.proxy import GraphAppendingTracer

from dmsflow import manifest
from dmsflow.deploying.folding import PRELU, TrainedWeights
from dmsflow.manifest import Manifest
from dmsflow.network.network import BATCH_NORM_EPS, INPUT, QUANTISERS, Layer, Network, Op, pads_signs, pools_all
from dmsflow.training import checkpoint
from dmsflow.training.model import FUNCTIONS

# What layers with parameters of their own compute: the names of these, and a function of the input and of them.
FORMULAS: dict[Op, tuple[tuple[str, ...], Callable[..., Any]]] = {
    "quantize": (("alpha",), lambda x, alpha: (x > alpha / 2) * alpha),
    "sign": (("shift",), lambda x, shift: (x > shift.reshape(-1, 1, 1)).type_as(x) * 2 - 1),
    "prelu": (PRELU, lambda x, slope, a, b: F.prelu(x - a.reshape(-1, 1, 1), slope) + b.reshape(-1, 1, 1)),
}


def load_plain_module(path: Path, done: Manifest) -> torch.fx.GraphModule:
    """The network of a train.json with its weights, those of binary convolutions as they are used: ±E|w|.

    Its layers and the names in its state_dict are those of the network, which for a PyTorch module are the module's.
    It takes normalised images [N, C, H, W] as training does, (pixel - mean) / std of the data set, and returns logits.
    Of a network with an int8 stem, mean and std are those of `datasets.with_one_mean`.
    It is in evaluation mode.

    Raises:
        DmsflowError: the weights are missing, damaged, or do not fit the widths.
    """
    tensors, _ = checkpoint.load_tensors(manifest.verify(path, done.artifacts["weights"]))
    weights = {name: tensor.numpy() for name, tensor in tensors.items()}
    return build_plain_module(done.network, done.widths, weights, is_binary=done.settings["precision"] == "binary")


def build_plain_module(
    network: Network, widths: Mapping[str, int], weights: Mapping[str, Any], *, is_binary: bool = True
) -> torch.fx.GraphModule:
    """As `load_plain_module`, from weights by name as in train.safetensors."""
    trained = TrainedWeights(network, widths, weights)
    root, graph = torch.fx.GraphModule(nn.Module(), torch.fx.Graph()), torch.fx.Graph()
    nodes, tracer = {INPUT: graph.placeholder("images")}, GraphAppendingTracer(graph)
    taken = {"self", *dir(root)}

    def add(layer: Layer, module: nn.Module) -> str:
        """Put a module where the layer's name says, around those inside it that are there already; gives its name."""
        first, *rest = layer.name.split(".")
        name = ".".join((f"{first}_" if first in taken else first, *rest))
        with suppress(AttributeError):
            for inner, part in root.get_submodule(name).named_children():
                module.add_module(inner, part)
        root.add_submodule(name, module)
        return name

    for layer in network.layers:
        inputs = tuple(nodes[name] for name in layer.inputs)
        if layer.op in FORMULAS and (is_binary or layer.op not in QUANTISERS):
            name = add(layer, holder := nn.Module())
            parts, formula = FORMULAS[layer.op]
            for part in parts:
                shape = () if layer.op == "quantize" else (trained.channels(layer.name),)
                values = torch.from_numpy(trained.take(f"{layer.name}.{part}", *shape)).float()
                setattr(holder, part, nn.Parameter(values))
            nodes_read = (inputs[0], *(graph.get_attr(f"{name}.{part}") for part in parts))
            node = formula(*(torch.fx.Proxy(each, tracer) for each in nodes_read)).node
        elif layer.op in ("conv", "binary_conv", "depthwise_conv", "batch_norm", "dense"):
            name = add(layer, _make_layer(trained, layer, is_binary))
            given = (graph.call_function(torch.flatten, (inputs[0], 1)),) if layer.op == "dense" else inputs
            if is_binary and pads_signs(network, layer):
                given = (graph.call_function(F.pad, (*inputs, (layer.padding,) * 4, "constant", -1.0)),)
            node = graph.call_module(name, given)
        elif layer.op == "max_pool":
            node = graph.call_function(F.max_pool2d, (*inputs, layer.kernel, layer.stride, layer.padding))
        elif layer.op == "average_pool" and not pools_all(layer):
            node = graph.call_function(F.avg_pool2d, (*inputs, layer.kernel, layer.stride))
        elif layer.op == "dropout":
            node = graph.call_module(add(layer, nn.Dropout(layer.rate)), inputs)
        elif layer.op == "average_pool":
            node = graph.call_function(F.adaptive_avg_pool2d, (*inputs, 1))
        else:
            node = FUNCTIONS.get(layer.op, F.relu)(*(torch.fx.Proxy(each, tracer) for each in inputs)).node
        nodes[layer.name] = node
    graph.output(nodes[network.layers[-1].name])
    root.graph = graph
    return root.eval()


def _make_layer(trained: TrainedWeights, layer: Layer, is_binary: bool) -> nn.Module:
    """One of torch's layers, with its weights."""
    read, written = trained.channels(layer.inputs[0]), trained.channels(layer.name)
    if layer.op == "batch_norm":
        made: Any = nn.BatchNorm2d(written, eps=BATCH_NORM_EPS)
        names = [name for name in made.state_dict() if "num" not in name]
        tensors = {name: trained.take(f"{layer.name}.{name}", written) for name in names}
    elif layer.op == "dense":
        made = nn.Linear(read, written)
        tensors = dict(zip(("weight", "bias"), trained.dense(layer), strict=True))
    else:
        padding = 0 if is_binary and pads_signs(trained.network, layer) else layer.padding
        groups = read if layer.op == "depthwise_conv" else layer.groups
        made = nn.Conv2d(read, written, layer.kernel, layer.stride, padding, groups=groups, bias=False)
        filters = trained.filters(layer) if layer.op != "binary_conv" or not is_binary else None
        if filters is None:
            signs, magnitude = trained.binary_filters(layer)
            filters = signs * magnitude[:, None, None, None]
        tensors = {"weight": filters.transpose(0, 3, 1, 2)}
    with torch.no_grad():
        for name, tensor in tensors.items():
            getattr(made, name).copy_(torch.from_numpy(tensor.copy()))
    return made  # type: ignore[no-any-return]

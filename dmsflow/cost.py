"""What a network costs at given widths: memory and multiply-accumulates.

Every function takes widths as ints, floats or torch tensors and gives back the same kind, so the
search differentiates what the tables print. Units are bytes and operations for one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmsflow.network import Layer, Network, out_widths, resolutions, value

MIB = 2**20
FLOAT_BYTES = 4


def weights(network: Network, layer: Layer, widths: Mapping[str, Any]) -> Any:
    """Number of weights of a conv, binary_conv or dense layer, without a bias; 0 for other ops."""
    if layer.width is None:
        return 0
    keys = out_widths(network)
    return value(widths, keys[layer.inputs[0]]) * value(widths, keys[layer.name]) * layer.kernel**2


def layer_memory_bytes(network: Network, layer: Layer, widths: Mapping[str, Any], *, binary: bool = True) -> Any:
    """The paper's accounting: 1 bit a binary weight and a float scale for each of its outputs.

    Batch norm is not counted. `binary=False` prices the same network in full precision.
    """
    count = weights(network, layer, widths)
    if layer.op == "dense":
        return FLOAT_BYTES * (count + network.classes)
    if layer.op == "binary_conv" and binary:
        return count / 8 + FLOAT_BYTES * value(widths, layer.width)  # type: ignore[arg-type]
    return FLOAT_BYTES * count


def memory_bytes(network: Network, widths: Mapping[str, Any], *, binary: bool = True) -> Any:
    """Bytes of all parameters; reproduces the Params column of the DMS paper's Table 1."""
    return sum(layer_memory_bytes(network, layer, widths, binary=binary) for layer in network.layers)


def macs(network: Network, widths: Mapping[str, Any]) -> Any:
    """Multiply-accumulates for one image, binary and float alike, padding counted as data."""
    sizes = resolutions(network)
    return sum(weights(network, layer, widths) * sizes[layer.name] ** 2 for layer in network.layers)


def binary_macs(network: Network, widths: Mapping[str, Any]) -> Any:
    """The part of `macs` that runs as XNOR and popcount."""
    sizes = resolutions(network)
    return sum(weights(network, layer, widths) * sizes[layer.name] ** 2 for layer in network.layers if layer.op == "binary_conv")

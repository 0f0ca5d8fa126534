"""What a network costs at given widths: memory and multiply-accumulates.

Every function takes widths as ints, floats or torch tensors and gives back the same kind, so the
search differentiates what the tables print. Units are bytes, and operations for one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmsflow.network.network import (
    QUANTISERS,
    WEIGHT_OPS,
    Layer,
    Network,
    Op,
    out_widths,
    resolutions,
    value,
    weight_shape,
)

MIB = 2**20  # bytes
FLOAT_BYTES = 4  # of a float32
PER_CHANNEL: dict[Op, int] = {"sign": 1, "prelu": 3}  # learned floats of each channel that are counted


@dataclass(frozen=True)
class LayerSize:
    """Bytes of the parameters of one layer.

    Attributes:
        layer: its name.
        op: its kind, in the network ("binary_conv") or in the integer graph ("BinaryConv").
        binary_bytes: of weights of one bit, 8 to the byte.
        float_bytes: of everything else, 4 bytes each, or 1 byte each weight of 8 bits.
    """

    layer: str
    op: str
    binary_bytes: Any
    float_bytes: Any


def weights(network: Network, widths: Mapping[str, Any]) -> list[tuple[Layer, Any]]:
    """Every layer with weights, and their number, biases left out."""
    keys, found = out_widths(network), []
    for layer in network.layers:
        if layer.op in WEIGHT_OPS:
            shape = weight_shape(layer, *(value(widths, keys[name]) for name in (layer.inputs[0], layer.name)))
            found.append((layer, math.prod(shape)))
    return found


def memory_bytes(network: Network, widths: Mapping[str, Any], *, binary: bool = True) -> Any:
    """Bytes of all parameters; reproduces the Params column of the DMS paper's Table 1.

    A binary weight is 1 bit, and each output of its layer has a float scale; other convolutions and
    the dense layer (with its bias) are float, or have weights of 8 bits; the shifts of a sign and what a prelu learns
    are float; batch norm is not counted. `binary=False` prices the same network in full precision, in which a sign is a ReLU.
    """
    total: Any = 0
    for size in layer_bytes(network, widths, binary=binary):
        total = total + size.binary_bytes + size.float_bytes
    return total


def layer_bytes(network: Network, widths: Mapping[str, Any], *, binary: bool = True) -> list[LayerSize]:
    """The size of every layer with weights, in order, then of those with other floats; a binary layer may have a
    fraction of a byte."""
    sizes, keys = [], out_widths(network)
    for layer, count in weights(network, widths):
        if layer.op == "binary_conv" and binary:
            scales = value(widths, layer.width)  # type: ignore[arg-type]
            sizes.append(LayerSize(layer.name, layer.op, count / 8, FLOAT_BYTES * scales))
        else:
            biases = network.classes if layer.op == "dense" else 0
            weight_bytes = layer.bits // 8 if binary else FLOAT_BYTES
            sizes.append(LayerSize(layer.name, layer.op, 0, weight_bytes * count + FLOAT_BYTES * biases))
    for layer in network.layers:
        if layer.op in PER_CHANNEL and (binary or layer.op not in QUANTISERS):
            floats = PER_CHANNEL[layer.op] * value(widths, keys[layer.name])
            sizes.append(LayerSize(layer.name, layer.op, 0, FLOAT_BYTES * floats))
    return sizes


def macs(network: Network, widths: Mapping[str, Any]) -> Any:
    """Multiply-accumulates for one image, binary and float, padding counted as data."""
    sizes = resolutions(network)
    return sum(count * sizes[layer.name] ** 2 for layer, count in weights(network, widths))

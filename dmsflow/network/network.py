"""An architecture as data: a tuple of layers, and named widths that layers share.

The torch model, the cost model and the integer graph all interpret the same `Network`; nothing
traces modules. Two layers that must agree in channels (a residual stage) name the same width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from dmsflow import plugin
from dmsflow.errors import DmsflowError

Op = Literal[
    "conv",  # float convolution, no bias: [C_in, H, H] -> [width, H', H']
    "binary_conv",  # weights ±E|w|, no bias; its input must be a quantize layer
    "dense",  # float, with bias: [C, 1, 1] -> [width]
    "batch_norm",
    "quantize",  # {0, alpha}, Eq. 2, alpha learned
    "relu",
    "max_pool",
    "average_pool",  # over the whole image: [C, H, H] -> [C, 1, 1]
    "add",
]
WEIGHTED: tuple[Op, ...] = ("conv", "binary_conv", "dense")
INPUT = "input"  # the name by which layers refer to the image
BATCH_NORM_EPS = 1e-5
STANDARDISATION_EPS = 1e-10


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation.

    Attributes:
        name: unique in its network.
        op: what it computes.
        inputs: names of the layers (or "input") that it reads.
        width: output channels of a weighted op: the name of a width, or a fixed number.
        kernel, stride, padding: of conv, binary_conv and max_pool, the same in both directions.
        groups, dilation: of conv and binary_conv; more than 1 is refused, by these names.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    width: str | int | None = None
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    dilation: int = 1


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers in the order they are computed, and the base value of each named width.

    Attributes:
        name: what the user called it.
        channels, resolution: of the square input image.
        classes: outputs of the last dense layer.
        widths: base channels of every named width, in order of first use.
        layers: the architecture; the last layer gives the logits.
    """

    name: str
    channels: int
    resolution: int
    classes: int
    widths: dict[str, int]
    layers: tuple[Layer, ...]

    def __post_init__(self) -> None:
        check(self)

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def consumers(self, name: str) -> list[Layer]:
        return [layer for layer in self.layers if name in layer.inputs]


def load_network(name: str, channels: int, resolution: int, classes: int) -> Network:
    """Build a network by its name, or by the path of a `.py` file with `build()`.

    Raises:
        DmsflowError: no such network, or it does not fit such images.
    """
    module = plugin.load("networks", name)
    if not callable(getattr(module, "build", None)):
        raise DmsflowError(name, "has no build()", "define build(channels, resolution, classes) -> Network")
    network = plugin.call(name, module.build, channels, resolution, classes)
    if not isinstance(network, Network):
        raise DmsflowError(name, f"build() returned {type(network).__name__}", "return a dmsflow.network.Network")
    return network


def out_widths(network: Network) -> dict[str, str | int]:
    """The width key (a name, or a fixed number) of the tensor that each layer puts out."""
    keys: dict[str, str | int] = {INPUT: network.channels}
    for layer in network.layers:
        keys[layer.name] = layer.width if layer.op in WEIGHTED else keys[layer.inputs[0]]  # type: ignore[assignment]
    return keys


def resolutions(network: Network) -> dict[str, int]:
    """Height (= width in pixels) of the tensor that each layer puts out."""
    sizes = {INPUT: network.resolution}
    for layer in network.layers:
        sizes[layer.name] = _resolution(layer, sizes[layer.inputs[0]])
    return sizes


def _resolution(layer: Layer, size: int) -> int:
    """Pixels on a side of what a layer puts out, if it reads `size` of them."""
    if layer.op in ("conv", "binary_conv", "max_pool"):
        return (size + 2 * layer.padding - layer.kernel) // layer.stride + 1
    return 1 if layer.op in ("average_pool", "dense") else size


def value(widths: Mapping[str, Any], key: str | int) -> Any:
    """Channels behind a width key: a fixed number stands for itself."""
    return key if isinstance(key, int) else widths[key]


def check(network: Network) -> None:
    """Raise DmsflowError unless the layers form one well-shaped network."""
    where = f"network {network.name}"
    if not network.layers or network.layers[-1].op != "dense" or network.layers[-1].width != network.classes:
        raise DmsflowError(
            where, "does not end in the class scores", f"end it in a dense layer of width {network.classes}"
        )
    ops: dict[str, str] = {INPUT: INPUT}
    keys: dict[str, str | int] = {INPUT: network.channels}
    for layer in network.layers:
        _check_layer(network, layer, ops, keys)
        ops[layer.name] = layer.op
        keys[layer.name] = layer.width if layer.op in WEIGHTED else keys[layer.inputs[0]]  # type: ignore[assignment]
    if unused := set(network.widths) - set(keys.values()):
        raise DmsflowError(where, f"no layer has the width {sorted(unused)[0]!r}", "remove it or name it in a layer")
    if any(base < 1 for base in network.widths.values()):
        raise DmsflowError(where, "a base width is below 1", "give every width at least one channel")
    read = {name for layer in network.layers for name in layer.inputs}
    if unread := [layer.name for layer in network.layers[:-1] if layer.name not in read]:
        raise DmsflowError(where, f"nothing reads layer {unread[0]!r}", "remove it, or let a later layer read it")
    _check_resolutions(network, where)


def _check_resolutions(network: Network, where: str) -> None:
    sizes = resolutions(network)
    for layer in network.layers:
        size, reads = sizes[layer.name], [sizes[name] for name in layer.inputs]
        if size < 1:
            right = f"use images larger than {network.resolution} pixels"
            raise DmsflowError(where, f"layer {layer.name!r} is left with no pixels", right)
        if len(set(reads)) > 1:
            what = f"layer {layer.name!r} adds {reads[0]} and {reads[1]} pixels"
            raise DmsflowError(where, what, "let both have the same stride")
        if layer.op == "dense" and reads[0] > 1:
            what = f"layer {layer.name!r} reads {reads[0]}×{reads[0]} pixels"
            raise DmsflowError(where, what, "put an average_pool before it")


def _check_kind(layer: Layer, where: str) -> None:
    """Refuse what the field knows and this project does not."""
    if layer.op not in get_args(Op):
        right = f"use one of {', '.join(get_args(Op))}"
        if "dense" in layer.op:
            right = "a dense binary layer is a binary_conv whose kernel is as large as its image, without padding"
        raise DmsflowError(where, f"the op {layer.op!r} is unknown", right)
    if layer.groups != 1:
        what = f"{layer.op} has groups {layer.groups}"
        raise DmsflowError(
            where, what, "leave groups at 1: no runtime has kernels for grouped or depthwise binary ones"
        )
    if layer.dilation != 1:
        right = "leave dilation at 1, and take a larger kernel or a stride"
        raise DmsflowError(where, f"{layer.op} has dilation {layer.dilation}", right)


def _check_layer(network: Network, layer: Layer, ops: dict[str, str], keys: dict[str, str | int]) -> None:
    where = f"network {network.name}, layer {layer.name!r}"
    _check_kind(layer, where)
    if layer.name in ops:
        raise DmsflowError(where, "the name is taken", "give every layer a name of its own")
    if not layer.inputs or (layer.op == "add") != (len(layer.inputs) == 2):
        raise DmsflowError(
            where, f"{layer.op} has {len(layer.inputs)} inputs", "an add reads two layers, any other op one"
        )
    if missing := [name for name in layer.inputs if name not in ops]:
        raise DmsflowError(
            where,
            f"reads {missing[0]!r}, which no earlier layer is called",
            "layers stand in the order they are computed",
        )
    if (layer.op in WEIGHTED) != (layer.width is not None):
        raise DmsflowError(
            where, f"{layer.op} has width {layer.width!r}", "conv, binary_conv and dense name a width, other ops none"
        )
    if isinstance(layer.width, str) and layer.width not in network.widths:
        raise DmsflowError(where, f"width {layer.width!r} is unknown", f"name one of {', '.join(network.widths)}")
    if layer.op == "add" and keys[layer.inputs[0]] != keys[layer.inputs[1]]:
        raise DmsflowError(
            where,
            f"adds widths {keys[layer.inputs[0]]!r} and {keys[layer.inputs[1]]!r}",
            "let both name the same width",
        )
    if (layer.op == "binary_conv") != (ops[layer.inputs[0]] == "quantize"):
        raise DmsflowError(
            where,
            f"{layer.op} reads a {ops[layer.inputs[0]]} layer",
            "a quantize layer feeds binary convs, and only them",
        )
    if (layer.op == "conv") != (ops[layer.inputs[0]] == INPUT):
        what = f"{layer.op} reads {layer.inputs[0]!r}"
        raise DmsflowError(where, what, "a float conv reads the image, and no other op does")
    if min(layer.kernel, layer.stride) < 1 or layer.padding < 0:
        raise DmsflowError(
            where, "kernel, stride or padding is too small", "kernel and stride start at 1, padding at 0"
        )

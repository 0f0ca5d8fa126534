"""An architecture as data: a tuple of layers, and named widths that layers share.

The torch model, the cost model and the integer graph all interpret the same `Network`; a PyTorch module
becomes one in `importing`. Two layers that must agree in channels (a residual stage) name the same width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec.structs import replace

from dmsflow.errors import DmsflowError, require_utf8
from dmsflow.files import read_record
from dmsflow.settings import MOST_CHANNELS, MOST_PIXELS

Op = Literal[
    "conv",  # float convolution of the image or of floats, no bias: [C_in, H, H] -> [width, H', H']
    "binary_conv",  # weights ±E|w|, no bias; its input must be a quantize or sign layer
    "dense",  # float, with bias: [C, 1, 1] -> [width]
    "batch_norm",
    "quantize",  # {0, alpha}, Eq. 2, alpha learned
    "sign",  # ±1: +1 above a learned shift of each channel; what reads it pads with -1
    "relu",
    "prelu",  # per channel, max(d, 0) + slope min(d, 0) + after, with d = x - before; all three learned
    "max_pool",
    "average_pool",  # over the whole image, [C, H, H] -> [C, 1, 1], or with a kernel over windows, without padding
    "add",
    "relu6",  # min(max(x, 0), 6)
    "depthwise_conv",  # float, one filter a channel, no bias: [C, H, H] -> [C, H', H']
    "concat",  # of channels, two tensors or more: [C1, H, H], [C2, H, H] -> [C1 + C2, H, H]
    "multiply",  # of two tensors of one shape, or [C, H, H] by [C, 1, 1]
    "sigmoid",
    "hard_sigmoid",  # min(max(x + 3, 0), 6) / 6
    "dropout",  # while weights are trained, each value is 0 with the probability `rate`, else divided by 1 - rate
]
# Those with a kernel, stride and padding.
WINDOWED_OPS: tuple[Op, ...] = ("conv", "binary_conv", "depthwise_conv", "max_pool", "average_pool")
WEIGHTED_OPS: tuple[Op, ...] = ("conv", "binary_conv", "dense")  # those that name a width
WEIGHT_OPS: tuple[Op, ...] = (*WEIGHTED_OPS, "depthwise_conv")  # those with weights
QUANTISERS: tuple[Op, ...] = ("quantize", "sign")  # what binary convolutions read
# Those that read several layers, and the verb of each.
JOINING_OPS: dict[str, str] = {"add": "adds", "concat": "joins", "multiply": "multiplies"}
# What names the channels of a tensor: a width, a number, or those of a concatenation, which add up.
Key: TypeAlias = str | int | tuple[str | int, ...]
INPUT = "input"  # the name by which layers refer to the image
# No image classifier has as much; what is larger is refused before it is allocated (see also settings.MOST_CHANNELS).
MOST_KERNEL = 63  # also of padding
MOST_VALUES = 1 << 28  # weights of a network, and what one layer puts out for one image: 1 GiB of float32
BATCH_NORM_EPS = 1e-5  # torch's default
STANDARDISATION_EPS = 1e-10  # Eq. 1
WORD = 32  # channels in an int32 of bits; each group of a binary convolution reads and writes whole ones
LARGEST_INT8 = 127  # of weights of 8 bits
MOST_INT8_PRODUCTS = 2**24 // (LARGEST_INT8 * 256)  # of such a weight and a pixel, whose sum float32 holds exactly


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One operation.

    Attributes:
        name: unique in its network.
        op: what it computes.
        inputs: names of the layers (or "input") that it reads.
        width: output channels of a weighted op: the name of a width, or a fixed number.
        kernel, stride, padding: of WINDOWED_OPS, the same in both directions.
        groups: of a conv or binary_conv whose widths are numbers, multiples of it, or of 32 times it if binary; else 1.
        dilation: more than 1 is refused, by this name.
        bits: of each weight of a conv of the image, which then reads uint8 pixels, or of a dense layer: 32 (float) or 8.
        rate: of dropout.
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
    bits: int = 32
    rate: float = 0.0


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
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

    # A search asks for these at each of its steps.

    @functools.cached_property
    def _out_widths(self) -> dict[str, Key]:
        keys: dict[str, Key] = {INPUT: self.channels}
        for layer in self.layers:
            keys[layer.name] = _out_width(layer, keys)
        return keys

    @functools.cached_property
    def _resolutions(self) -> dict[str, int]:
        sizes = {INPUT: self.resolution}
        for layer in self.layers:
            sizes[layer.name] = out_resolution(layer, sizes[layer.inputs[0]])
        return sizes


def pads_signs(network: Network, layer: Layer) -> bool:
    """Whether a layer is a binary convolution of ±1 with padding, which then is -1."""
    return layer.op == "binary_conv" and layer.padding > 0 and network.layer(layer.inputs[0]).op == "sign"


def with_stem(network: Network, stem: str) -> Network:
    """The network with weights of 8 bits ("int8"; not in large convolutions), or floats ("float"), at its two ends.

    These are its convolutions of the image, and its dense layers.
    """
    bits = 8 if stem == "int8" else 32
    replaced = (replace(layer, bits=bits) if _may_have_8_bits(network, layer) else layer for layer in network.layers)
    return replace(network, layers=tuple(replaced))


def has_int8_stem(network: Network) -> bool:
    """Whether a convolution of the image has 8-bit weights."""
    return any(layer.bits == 8 and INPUT in layer.inputs for layer in network.layers)


def _may_have_8_bits(network: Network, layer: Layer) -> bool:
    is_first = layer.op == "conv" and INPUT in layer.inputs
    return layer.op == "dense" or (is_first and layer.kernel**2 * network.channels <= MOST_INT8_PRODUCTS)


def evaluated(network: Network) -> Network:
    """What a trained network computes: the same without dropout."""
    layers, passed = list[Layer](), dict[str, str]()
    for layer in network.layers:
        inputs = tuple(passed.get(name, name) for name in layer.inputs)
        if layer.op == "dropout":
            passed[layer.name] = inputs[0]
        else:
            layers.append(msgspec.structs.replace(layer, inputs=inputs))
    return msgspec.structs.replace(network, layers=tuple(layers)) if passed else network


def read_network(path: Path) -> Network:
    """A network from its record as JSON, which the Python functions write of an object."""
    right = "give the path of a network's file"
    return read_record(path, Network, name="a network", right=right, again="write it again")


def out_widths(network: Network) -> Mapping[str, Key]:
    """The width key of the tensor that each layer puts out."""
    return network._out_widths


def _out_width(layer: Layer, keys: Mapping[str, Key]) -> Key:
    if layer.op == "concat":
        return tuple(part for name in layer.inputs for part in key_parts(keys[name]))
    return keys[layer.inputs[0]] if layer.width is None else layer.width


def key_parts(key: Key) -> tuple[str | int, ...]:
    """The widths and numbers that a width key adds up."""
    return key if isinstance(key, tuple) else (key,)


def resolutions(network: Network) -> Mapping[str, int]:
    """Height (= width in pixels) of the tensor that each layer puts out."""
    return network._resolutions


def out_resolution(layer: Layer, size: int) -> int:
    """Pixels on a side of what a layer puts out, if it reads `size` of them."""
    if layer.op in WINDOWED_OPS and not pools_all(layer):
        return (size + 2 * layer.padding - layer.kernel) // layer.stride + 1
    return 1 if layer.op in ("average_pool", "dense") else size


def pools_all(layer: Layer) -> bool:
    """Whether it is an average over the whole image, which has no kernel."""
    return layer.op == "average_pool" and layer.kernel == 1


def weight_shape(layer: Layer, reads: Any, writes: Any) -> tuple[Any, ...]:
    """The shape of a layer's weights: [C_out, C_in / groups, k, k] or, of a dense layer, [C_out, C_in]; else ()."""
    if layer.op == "dense":
        return writes, reads
    if layer.op not in WEIGHT_OPS:
        return ()
    if layer.op == "depthwise_conv" or layer.groups > 1:  # widths of groups are whole
        reads = 1 if layer.op == "depthwise_conv" else reads // layer.groups
    return writes, reads, layer.kernel, layer.kernel


def value(widths: Mapping[str, Any], key: Key) -> Any:
    """The channels of a width key: the value of a named width, the fixed number itself, or the sum of several."""
    if isinstance(key, tuple):
        return sum(value(widths, part) for part in key)
    return key if isinstance(key, int) else widths[key]


# --- what makes a network well-shaped ---------------------------------------------------------------

Rule = tuple[bool, str, str]  # whether it is broken, what is wrong, what would be right


def check(network: Network) -> None:
    """Raise DmsflowError unless the layers form one well-shaped network."""
    where = f"network {network.name}"
    for name in (network.name, *network.widths, *(layer.name for layer in network.layers)):
        require_utf8(where, name)
    for name, base in network.widths.items():
        if not isinstance(base, int):
            raise DmsflowError(f"{where}, width {name!r}", f"is of type {type(base).__name__}", "give an int")
    few = min(network.channels, network.resolution, network.classes) < 1
    what = f"has {network.channels} channels of {network.resolution} pixels a side, {network.classes} classes"
    outside = few or network.channels > MOST_CHANNELS or network.resolution > MOST_PIXELS
    _refuse_broken(where, [(outside, what, f"use at least 1 of each, at most {MOST_CHANNELS} and {MOST_PIXELS}")])
    if [(layer.op, layer.width) for layer in network.layers[-1:]] != [("dense", network.classes)]:
        right = f"end it in a dense layer of width {network.classes}"
        raise DmsflowError(where, "does not end in the class scores", right)
    ops: dict[str, str] = {INPUT: INPUT}
    keys: dict[str, Key] = {INPUT: network.channels}
    for layer in network.layers:
        _refuse_broken(f"{where}, layer {layer.name!r}", _layer_rules(network, layer, ops, keys))
        _refuse_broken(f"{where}, layer {layer.name!r}", _width_rules(layer, ops, keys))
        ops[layer.name], keys[layer.name] = layer.op, _out_width(layer, keys)
    _refuse_broken(where, _network_rules(network, keys))
    check_size(network, network.widths)


def check_size(network: Network, widths: Mapping[str, int]) -> None:
    """Raise DmsflowError where a network of these widths is larger than any that is trained or measured."""
    keys, sizes, weights = out_widths(network), resolutions(network), 0
    for layer in network.layers:
        read, channels = (value(widths, keys[name]) for name in (layer.inputs[0], layer.name))
        weights += math.prod(weight_shape(layer, read, channels) or (0,))
        values = channels * sizes[layer.name] ** 2
        what, right = f"puts out {channels} channels, {values} values in all", "use fewer channels or smaller images"
        too_wide = (channels > MOST_CHANNELS or values > MOST_VALUES, what, right)
        too_heavy = (weights > MOST_VALUES, f"brings the weights to {weights}", f"use at most {MOST_VALUES}")
        _refuse_broken(f"network {network.name}, layer {layer.name!r}", [too_wide, too_heavy])


def _refuse_broken(where: str, rules: Iterable[Rule]) -> None:
    """Raise the first broken rule; those behind it may not even make sense, and are not looked at."""
    for broken, what, right in rules:
        if broken:
            raise DmsflowError(where, what, right)


def _layer_rules(network: Network, layer: Layer, ops: Mapping[str, str], keys: Mapping[str, Key]) -> Iterator[Rule]:
    """Of a layer, given the ops and width keys of all before it."""
    op = layer.op
    right = f"use one of {', '.join(get_args(Op))}"
    if "dense" in op:
        right = "a dense binary layer is a binary_conv whose kernel is as large as its image, without padding"
    yield op not in get_args(Op), f"the op {op!r} is unknown", right
    for field in ("kernel", "stride", "padding", "groups", "dilation", "bits"):
        value = getattr(layer, field)
        yield not isinstance(value, int), f"{field} is {value!r}", "give one integer: kernels are square"
    right = "leave groups at 1: only a conv and a binary_conv may have more, if they do not read the image"
    refused = layer.groups < 1 or op not in ("conv", "binary_conv") or INPUT in layer.inputs
    yield layer.groups != 1 and refused, f"{op} has groups {layer.groups}", right
    right = "leave dilation at 1, and use a larger kernel or a stride"
    yield layer.dilation != 1, f"{op} has dilation {layer.dilation}", right
    yield layer.bits not in (8, 32), f"{op} has bits {layer.bits}", "use 8 or 32"
    right = f"leave bits at 32: a dense layer, and a conv of the image of at most {MOST_INT8_PRODUCTS} weights a filter, may have 8"
    yield layer.bits == 8 and not _may_have_8_bits(network, layer), f"{op} has bits 8", right
    yield layer.name in ops, "another layer has the same name", "give every layer its own name"

    right = f"write inputs=({str(layer.inputs)!r},)"
    yield isinstance(layer.inputs, str), f"inputs is {layer.inputs!r}, but must be a tuple", right
    count = len(layer.inputs)
    right = "an add or multiply reads two layers, a concat two or more, any other op one"
    yield count < 2 if op == "concat" else count != 1 + (op in JOINING_OPS), f"{op} has {count} inputs", right
    missing = next((name for name in layer.inputs if name not in ops), None)
    what = f"reads {missing!r}, but no earlier layer has this name"
    yield missing is not None, what, "put layers into the order in which they are computed"

    right = "conv, binary_conv and dense name a width, other ops none"
    yield (op in WEIGHTED_OPS) != (layer.width is not None), f"{op} has width {layer.width!r}", right
    unknown = isinstance(layer.width, str) and layer.width not in network.widths
    yield unknown, f"width {layer.width!r} is unknown", f"name one of {', '.join(network.widths)}"

    read = ops[layer.inputs[0]]
    right = "a quantize or sign layer feeds binary convs, and only them"
    yield (op == "binary_conv") != (read in QUANTISERS), f"{op} reads a {read} layer", right
    yield read == INPUT and op != "conv", f"{op} reads the image", "begin with a conv, which is a float convolution"
    broken = not 0 < layer.rate < 1 if op == "dropout" else layer.rate != 0
    yield broken, f"{op} has rate {layer.rate}", "give a dropout one between 0 and 1, other ops none"
    yield from _window_rules(layer)


def _window_rules(layer: Layer) -> Iterator[Rule]:
    """Of kernel, stride and padding."""
    op = layer.op
    too_small = min(layer.kernel, layer.stride) < 1 or layer.padding < 0
    yield too_small, "kernel, stride or padding is too small", "kernel and stride start at 1, padding at 0"
    too_large = max(layer.kernel, layer.padding) > MOST_KERNEL or layer.stride > MOST_PIXELS
    yield too_large, "kernel, stride or padding is too large", f"use at most {MOST_KERNEL}"
    too_large = op == "max_pool" and 2 * layer.padding > layer.kernel
    yield too_large, f"{op} has padding {layer.padding}", f"use at most half of its kernel of {layer.kernel}"
    right = "leave it out: an average without padding means the same in every runtime"
    yield op == "average_pool" and layer.padding > 0, f"{op} has padding {layer.padding}", right
    what = f"{op} has stride {layer.stride}, but no kernel"
    yield pools_all(layer) and layer.stride != 1, what, "give both, or neither to average over the whole image"
    for field, default in (("kernel", 1), ("stride", 1), ("padding", 0)):
        what = f"{op} has {field} {getattr(layer, field)}, which it does not use"
        yield op not in WINDOWED_OPS and getattr(layer, field) != default, what, f"leave {field} out"


def _width_rules(layer: Layer, ops: Mapping[str, str], keys: Mapping[str, Key]) -> Iterator[Rule]:
    """Of a layer and the widths of what it reads."""
    first, last = keys[layer.inputs[0]], keys[layer.inputs[-1]]
    if layer.groups != 1:
        what = f"{layer.op} has groups {layer.groups} and the widths {first!r} and {layer.width!r}"
        both: tuple[Key, ...] = (first, layer.width or 0)
        named = any(isinstance(part, str) for key in both for part in key_parts(key))
        unit = layer.groups * (WORD if layer.op == "binary_conv" else 1)
        uneven = named or any(value({}, key) % unit for key in both)
        yield uneven, what, f"let both be numbers, multiples of {unit}: these are not searched"
    what = f"{JOINING_OPS.get(layer.op)} widths {first!r} and {last!r}"
    yield layer.op != "concat" and first != last, what, "let both name the same width"
    bits = next((name for name in layer.inputs[1:] if ops[name] in ("quantize", "sign", INPUT)), None)
    right = "let it read floats, those in front of a quantizer"
    yield bits is not None, f"{layer.op} reads {bits!r}", right


def _least_resolution(network: Network) -> int:
    """Pixels a side at which every layer has some."""
    larger = (replace(network, resolution=each) for each in range(network.resolution + 1, MOST_PIXELS))
    return next((each.resolution for each in larger if min(resolutions(each).values()) > 0), MOST_PIXELS)


def _network_rules(network: Network, keys: Mapping[str, Key]) -> Iterator[Rule]:
    """Of all layers together, each of which is sound."""
    fixed = [layer.width for layer in network.layers if isinstance(layer.width, int)]
    yield min(*network.widths.values(), *fixed, 1) < 1, "a width is below 1", "give every width at least one channel"
    unused = min(set(network.widths) - set(keys.values()), default=None)
    yield unused is not None, f"no layer has the width {unused!r}", "remove it or name it in a layer"
    # The names of what is inside a layer have one in .onnx files.
    slashed = next((layer.name for layer in network.layers if "/" in layer.name), None)
    yield slashed is not None, f"layer {slashed!r} has a slash in its name", "use points"
    read = {name for layer in network.layers for name in layer.inputs}
    unread = next((layer.name for layer in network.layers[:-1] if layer.name not in read), None)
    yield unread is not None, f"nothing reads layer {unread!r}", "remove it, or let a later layer read it"
    sizes = resolutions(network)
    for layer in network.layers:
        title, reads = f"layer {layer.name!r}", [sizes[name] for name in layer.inputs]
        right = f"use images of at least {_least_resolution(network)} pixels" if sizes[layer.name] < 1 else ""
        yield sizes[layer.name] < 1, f"{title} has no pixels left", right
        fitting = {reads[0], 1} if layer.op == "multiply" else {reads[0]}
        other = next((size for size in reads if size not in fitting), None)
        what = f"{title} {JOINING_OPS.get(layer.op)} {reads[0]} and {other} pixels"
        right = "let both have the same stride" + ", or the second one pixel" * (layer.op == "multiply")
        yield other is not None, what, right
        what = f"{title} reads {reads[0]}×{reads[0]} pixels"
        yield layer.op == "dense" and reads[0] > 1, what, "put an average_pool before it"

"""What several architectures share: the stem, a binary convolution with its batch norm, and the classifier."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from dmsflow.network.network import INPUT, Layer, Network, Op, out_resolution

# Pixels on a side from which a network has its ImageNet widths and stem; below, a quarter of the widths.
IMAGENET_RESOLUTION = 64
STAGES = {"stage0": 64, "stage1": 128, "stage2": 256, "stage3": 512}  # ImageNet channels of a ResNet-18


def base_width(channels: int, resolution: int) -> int:
    """ImageNet channels, or a quarter of them for small images."""
    return channels if resolution >= IMAGENET_RESOLUTION else channels // 4


def stage_widths(resolution: int) -> dict[str, int]:
    """Base channels of a ResNet's four stages."""
    return {stage: base_width(channels, resolution) for stage, channels in STAGES.items()}


def make_stem(resolution: int, kernel: int = 7) -> list[Layer]:
    """A float convolution into the width "stage0", and batch norm. Large images leave it at a quarter of their side."""
    large = resolution >= IMAGENET_RESOLUTION
    window = {"kernel": kernel, "stride": 2, "padding": kernel // 2} if large else {"kernel": 3, "padding": 1}
    layers = [Layer(name="stem", op="conv", inputs=(INPUT,), width="stage0", **window)]
    if large:
        layers.append(Layer(name="stem_pool", op="max_pool", inputs=("stem",), kernel=3, stride=2, padding=1))
    return [*layers, Layer(name="stem_norm", op="batch_norm", inputs=(layers[-1].name,))]


def make_binary_conv(
    name: str, entry: str, width: str, *, kernel: int = 3, stride: int = 1, number: int | str = "", op: Op = "quantize"
) -> list[Layer]:
    """`name`_quantize, _conv and _norm, with `number` behind each: a convolution that keeps the size at stride 1.

    `op` is the quantiser; with "sign" the first is `name`_sign.
    """
    quantize, conv, norm = (f"{name}_{word}{number}" for word in (op, "conv", "norm"))
    window = {"kernel": kernel, "stride": stride, "padding": kernel // 2}
    return [
        Layer(name=quantize, op=op, inputs=(entry,)),
        Layer(name=conv, op="binary_conv", inputs=(quantize,), width=width, **window),
        Layer(name=norm, op="batch_norm", inputs=(conv,)),
    ]


def add_shortcut(name: str, layers: list[Layer], width: str, *, shrinks: bool) -> list[Layer]:
    """`layers`, which begin with a quantiser, and `name`_add: what they write plus what they read.

    Where they halve the image, a binary 1×1 convolution of stride 2, `name`_skip, reads the same quantiser.
    """
    quantize, norm, skip = layers[0], layers[-1].name, f"{name}_skip"
    if not shrinks:
        return [*layers, Layer(name=f"{name}_add", op="add", inputs=(norm, *quantize.inputs))]
    return [
        *layers,
        Layer(name=skip, op="binary_conv", inputs=(quantize.name,), width=width, stride=2),
        Layer(name=f"{skip}_norm", op="batch_norm", inputs=(skip,)),
        Layer(name=f"{name}_add", op="add", inputs=(norm, f"{skip}_norm")),
    ]


def add_float_shortcut(name: str, layers: list[Layer], width: str, *, pools: bool) -> list[Layer]:
    """`layers`, which halve the image, and `name`_add: what they write plus a float 1×1 convolution of what they read.

    It reads 2×2 averages; where a side is odd, every second pixel instead, which gives the side that the layers have.
    """
    skip, entry = f"{name}_skip", layers[0].inputs
    pool = [Layer(name=f"{skip}_pool", op="average_pool", inputs=entry, kernel=2, stride=2)] if pools else []
    conv = {"inputs": (f"{skip}_pool",)} if pools else {"inputs": entry, "stride": 2}
    return [
        *layers,
        *pool,
        Layer(name=skip, op="conv", width=width, **conv),
        Layer(name=f"{skip}_norm", op="batch_norm", inputs=(skip,)),
        Layer(name=f"{name}_add", op="add", inputs=(layers[-1].name, f"{skip}_norm")),
    ]


def make_residual_stages(
    stages: Iterable[str],
    convs: int,
    stem: Sequence[Layer],
    resolution: int,
    *,
    is_float: bool = False,
    op: Op = "quantize",
    bends: bool = False,
) -> list[Layer]:
    """`convs` binary 3×3 convolutions in each stage with a shortcut around every one, so that real values pass all.

    All but the first stage begin by halving the image; `is_float` is whether the convolution in that shortcut is float.
    `op` is the quantiser; with `bends` a prelu follows each addition.
    """
    layers: list[Layer] = []
    size = functools.reduce(lambda size, layer: out_resolution(layer, size), stem, resolution)
    for stage in stages:
        for index in range(convs):
            name, shrinks = f"{stage}_{index}", stage != "stage0" and index == 0
            conv = make_binary_conv(name, [*stem, *layers][-1].name, stage, stride=2 if shrinks else 1, op=op)
            if shrinks and is_float:
                layers += add_float_shortcut(name, conv, stage, pools=size % 2 == 0)
            else:
                layers += add_shortcut(name, conv, stage, shrinks=shrinks)
            size = out_resolution(conv[1], size)
            if bends:
                layers.append(Layer(name=f"{name}_prelu", op="prelu", inputs=(layers[-1].name,)))
    return layers


def make_classifier(
    name: str, channels: int, resolution: int, classes: int, widths: dict[str, int], layers: list[Layer]
) -> Network:
    """The network that `layers` become with average pooling and one dense layer behind them."""
    average = Layer(name="average", op="average_pool", inputs=(layers[-1].name,))
    dense = Layer(name="dense", op="dense", inputs=("average",), width=classes)
    image = {"channels": channels, "resolution": resolution, "classes": classes}
    return Network(name=name, **image, widths=widths, layers=(*layers, average, dense))

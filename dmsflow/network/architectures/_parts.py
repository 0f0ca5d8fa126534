"""What several architectures share: the stem, a binary convolution with its batch norm, and the classifier."""

from __future__ import annotations

from collections.abc import Iterable

from dmsflow.network.network import INPUT, Layer, Network, Op

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


def make_residual_stages(
    stages: Iterable[str], convs: int, entry: str, *, op: Op = "quantize", bends: bool = False
) -> list[Layer]:
    """`convs` binary 3×3 convolutions in each stage with a shortcut around every one, so that real values pass all.

    All but the first stage begin by halving the image. `op` is the quantiser; with `bends` a prelu follows each addition.
    """
    layers: list[Layer] = []
    for stage in stages:
        for index in range(convs):
            name, shrinks = f"{stage}_{index}", stage != "stage0" and index == 0
            conv = make_binary_conv(name, entry, stage, stride=2 if shrinks else 1, op=op)
            layers += add_shortcut(name, conv, stage, shrinks=shrinks)
            if bends:
                layers.append(Layer(name=f"{name}_prelu", op="prelu", inputs=(layers[-1].name,)))
            entry = layers[-1].name
    return layers


def make_classifier(
    name: str, channels: int, resolution: int, classes: int, widths: dict[str, int], layers: list[Layer]
) -> Network:
    """The network that `layers` become with average pooling and one dense layer behind them."""
    average = Layer(name="average", op="average_pool", inputs=(layers[-1].name,))
    dense = Layer(name="dense", op="dense", inputs=("average",), width=classes)
    image = {"channels": channels, "resolution": resolution, "classes": classes}
    return Network(name=name, **image, widths=widths, layers=(*layers, average, dense))

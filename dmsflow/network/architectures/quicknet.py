"""QuickNet (Bannink et al., arXiv 2011.09398), as larq-zoo has it: residual binary convolutions, cheap transitions.

A stem of three float convolutions leaves a quarter of the side: 3×3 to a quarter of the first width, 3×3 depthwise, 1×1.
Each of four sections is a row of binary 3×3 convolutions of ±1, each with a ReLU in front of its batch norm and a
shortcut around them. Between two sections a ReLU, a 2×2 maximum of every pixel, a blur that halves the image, and a
float 1×1 convolution to the next width. Small images keep their size in the stem and get a quarter of the widths.

Where it differs: the blur begins with the published weights, 1-2-1 both ways, and is trained with all others, which
published it is not. Convolutions of ±1 pad with -1 instead of +1. Those that halve an even image pad it on all sides,
where TensorFlow pads it on two. Every convolution has a scale, E|w|, and every batch norm both parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from dmsflow.network.architectures import _parts
from dmsflow.network.network import INPUT, Layer, Network, Op

CONVS = 4  # in a section
WINDOW = {"kernel": 3, "padding": 1}


def build(channels: int, resolution: int, classes: int) -> Network:
    return make("quicknet", _parts.STAGES, channels, resolution, classes)


def make(name: str, widths: Mapping[str, int], channels: int, resolution: int, classes: int) -> Network:
    """A QuickNet whose sections have these widths on ImageNet."""
    layers: list[Layer] = []
    is_large = resolution >= _parts.IMAGENET_RESOLUTION

    def add(name: str, op: Op, **fields: object) -> None:
        inputs = (layers[-1].name if layers else INPUT,)
        layers.append(Layer(**{"name": name, "op": op, "inputs": inputs, **fields}))  # type: ignore[arg-type]

    add("stem", "conv", width="stem", stride=1 + is_large, **WINDOW)
    add("stem_norm", "batch_norm")
    add("stem_relu", "relu")
    add("stem_depthwise", "depthwise_conv", stride=1 + is_large, **WINDOW)
    add("stem_depthwise_norm", "batch_norm")
    for section in widths:
        if section != "stage0":
            add(f"{section}_relu", "relu")
            add(f"{section}_pool", "max_pool", kernel=2, stride=1)
            add(f"{section}_blur", "depthwise_conv", stride=2, **WINDOW)
        add(section, "conv", width=section)
        add(f"{section}_norm", "batch_norm")
        for block in (f"{section}_{index}" for index in range(CONVS)):
            entry = layers[-1].name
            add(f"{block}_sign", "sign")
            add(f"{block}_conv", "binary_conv", width=section, **WINDOW)
            add(f"{block}_relu", "relu")
            add(f"{block}_norm", "batch_norm")
            add(f"{block}_add", "add", inputs=(f"{block}_norm", entry))
    add("relu", "relu")
    bases = {section: _parts.base_width(width, resolution) for section, width in widths.items()}
    return _parts.make_classifier(name, channels, resolution, classes, {"stem": widths["stage0"] // 4, **bases}, layers)

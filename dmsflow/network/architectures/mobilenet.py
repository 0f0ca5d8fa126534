"""MobileNet (Howard et al., arXiv 1704.04861) with binary 1×1 convolutions.

Each block is a float depthwise 3×3 convolution with norm and ReLU, whose output is the bits that a binary 1×1
convolution reads: nearly all weights are 1×1. Strides and widths are the paper's. Images of fewer than 64 pixels get
half of the widths, and are halved twice instead of five times.
A depthwise convolution has no width of its own; it has that of the 1×1 convolution before it.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import INPUT, Layer, Network

STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
KEPT_SMALL = (1, 11)  # blocks that do not halve small images; nor does the stem


def build(channels: int, resolution: int, classes: int) -> Network:
    is_large = resolution >= _parts.IMAGENET_RESOLUTION
    shrink = 1 if is_large else 2
    stem = {"kernel": 3, "stride": 2 if is_large else 1, "padding": 1}
    widths = {"stem": STEM // shrink}
    layers = [
        Layer(name="stem", op="conv", inputs=(INPUT,), width="stem", **stem),
        Layer(name="stem_norm", op="batch_norm", inputs=("stem",)),
        Layer(name="stem_relu", op="relu", inputs=("stem_norm",)),
    ]
    for index, (base, stride) in enumerate(BLOCKS):
        name = f"block{index}"
        window = {"kernel": 3, "stride": 1 if index in KEPT_SMALL and not is_large else stride, "padding": 1}
        layers += [
            Layer(name=f"{name}_depthwise", op="depthwise_conv", inputs=(layers[-1].name,), **window),
            Layer(name=f"{name}_depthwise_norm", op="batch_norm", inputs=(f"{name}_depthwise",)),
            *_parts.make_binary_conv(name, f"{name}_depthwise_norm", name, kernel=1),
            Layer(name=f"{name}_relu", op="relu", inputs=(f"{name}_norm",)),
        ]
        widths[name] = base // shrink
    return _parts.make_classifier("mobilenet", channels, resolution, classes, widths, layers)

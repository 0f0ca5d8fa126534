"""VGG-11 with one dense layer (Simonyan & Zisserman, arXiv 1409.1556), as in the DMS paper.

Images of 64 pixels and more get the ImageNet widths, smaller ones a quarter of them. Pooling
stands straight behind the convolution, before batch norm: the same function while the scale of
that batch norm is positive (which training holds), and batch norm sees a quarter of the pixels.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import INPUT, Layer, Network

CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)  # of each convolution, on ImageNet
POOLED_CONVS = (0, 1, 3, 5, 7)  # the convolutions that a 2×2 max pool follows


def build(channels: int, resolution: int, classes: int) -> Network:
    layers: list[Layer] = []
    widths: dict[str, int] = {}

    def add(name: str, op: str, **fields: object) -> None:
        inputs = (layers[-1].name if layers else INPUT,)
        layers.append(Layer(name=name, op=op, inputs=inputs, **fields))  # type: ignore[arg-type]

    for index, base in enumerate(CHANNELS):
        widths[f"conv{index}"] = _parts.base_width(base, resolution)
        if index:
            add(f"quantize{index}", "quantize")
        add(f"conv{index}", "binary_conv" if index else "conv", width=f"conv{index}", kernel=3, padding=1)
        if index in POOLED_CONVS:
            add(f"pool{index}", "max_pool", kernel=2, stride=2)
        add(f"norm{index}", "batch_norm")
    add("relu", "relu")
    return _parts.make_classifier("vgg11", channels, resolution, classes, widths, layers)

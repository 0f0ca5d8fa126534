"""Similar to BinaryDenseNet-28 (Bethge et al., arXiv 1906.08637): every layer reads all that lie before it in its block.

As in DenseNet (Huang et al., arXiv 1608.06993) the channels of a layer are joined to those that it reads, so real
values reach every later layer of a block. Each layer is one binary 3×3 convolution. Batch norm stands behind it, where
it folds into the convolution, and not in front of the quantiser, where it would be another pass over all channels.
Between two blocks the paper narrows with a float 1×1 convolution; here that is a binary one behind a max pool. Small
images keep their size in the stem and get a quarter of the widths.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Layer, Network

GROWTH = 64  # channels of every layer, on ImageNet
LAYERS = (6, 6, 6, 5)  # of each block
NARROWED = (160, 192, 256)  # channels between two blocks, on ImageNet


def build(channels: int, resolution: int, classes: int) -> Network:
    layers = _parts.make_stem(resolution)
    widths = {"stage0": _parts.base_width(GROWTH, resolution)}
    for block, count in enumerate(LAYERS):
        if block:
            name = f"narrow{block}"
            widths[name] = _parts.base_width(NARROWED[block - 1], resolution)
            layers.append(Layer(name=f"{name}_pool", op="max_pool", inputs=(layers[-1].name,), kernel=2, stride=2))
            layers += _parts.make_binary_conv(name, f"{name}_pool", name, kernel=1)
        for index in range(count):
            name, entry = f"block{block}_{index}", layers[-1].name
            widths[name] = _parts.base_width(GROWTH, resolution)
            layers += _parts.make_binary_conv(name, entry, name)
            layers.append(Layer(name=f"{name}_concat", op="concat", inputs=(entry, layers[-1].name)))
    layers.append(Layer(name="relu", op="relu", inputs=(layers[-1].name,)))
    return _parts.make_classifier("densenet", channels, resolution, classes, widths, layers)

"""Bi-Real-style ResNet-18 (Liu et al., arXiv 1808.00278): a shortcut of floats around every convolution.

Real values run from the stem to the dense layer, and every binary convolution adds to them. So all
convolutions of a stage write one width. Where a stage halves the image, the shortcut is a binary 1×1
convolution of the same bits; the paper has average pooling and a float 1×1 convolution, whose sums
every runtime rounds differently. Widths and stem are those of resnet18.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Layer, Network

CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    layers = _parts.make_stem(resolution)
    widths = _parts.stage_widths(resolution)
    for stage in widths:
        for index in range(CONVS):
            layers += _shortcut_conv(stage, index, layers[-1].name)
    return _parts.make_classifier("birealnet18", channels, resolution, classes, widths, layers)


def _shortcut_conv(stage: str, index: int, entry: str) -> list[Layer]:
    """A binary 3×3 convolution, its batch norm, and what it is added to; the first of a later stage halves the image."""
    name = f"{stage}_{index}"
    shrinks = stage != "stage0" and index == 0
    layers = _parts.make_binary_conv(name, entry, stage, stride=2 if shrinks else 1)
    if shrinks:
        layers += _parts.make_shrinking_skip(name, layers[0].name, stage)
    skip = layers[-1].name if shrinks else entry
    return [*layers, Layer(name=f"{name}_add", op="add", inputs=(f"{name}_norm", skip))]

"""Bi-Real-style ResNet-18 (Liu et al., arXiv 1808.00278): a shortcut of floats around every convolution.

Real values run from the stem to the dense layer, and every binary convolution adds to them. So all
convolutions of a stage write one width. Where a stage halves the image, the shortcut is a binary 1×1
convolution of the same bits; the paper has average pooling and a float 1×1 convolution, whose sums
every runtime rounds differently. Widths and stem are those of resnet18.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Network

CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    layers = _parts.make_stem(resolution)
    widths = _parts.stage_widths(resolution)
    layers += _parts.make_residual_stages(widths, CONVS, layers[-1].name)
    return _parts.make_classifier("birealnet18", channels, resolution, classes, widths, layers)

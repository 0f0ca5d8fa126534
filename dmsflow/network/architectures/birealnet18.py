"""Bi-Real-18 (Liu et al., arXiv 1808.00278): a shortcut of floats around every convolution.

Real values run from the stem to the dense layer, and every binary convolution adds to them. So all
convolutions of a stage write one width. Where a stage halves the image, the shortcut is as published: 2×2
average pooling, a float 1×1 convolution and batch norm. Widths and stem are those of resnet18.

In older records that shortcut is a binary 1×1 convolution: a manifest has the layers that it was made with.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Network

CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    stem, widths = _parts.make_stem(resolution), _parts.stage_widths(resolution)
    layers = _parts.make_residual_stages(widths, CONVS, stem, resolution, is_float=True)
    return _parts.make_classifier("birealnet18", channels, resolution, classes, widths, [*stem, *layers])

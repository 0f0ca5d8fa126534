"""ResNet-18 with the activations of ReActNet (Liu et al., arXiv 2003.03488): a shifted sign, and RPReLU.

The frame is Bi-Real Net's (arXiv 1808.00278), as in the paper's experiments with ResNet-18: a shortcut around every
binary convolution. What these read is ±1 with a learned threshold for each channel, and each addition is followed by a
PReLU of each channel with learned shifts. Shortcuts between stages, widths and stem are those of birealnet18.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Network

CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    stem, widths = _parts.make_stem(resolution), _parts.stage_widths(resolution)
    layers = _parts.make_residual_stages(widths, CONVS, stem, resolution, is_float=True, op="sign", bends=True)
    return _parts.make_classifier("reactnet18", channels, resolution, classes, widths, [*stem, *layers])

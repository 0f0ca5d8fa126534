"""ResNet-20 for CIFAR (He et al., arXiv 1512.03385, 4.2), with the shortcuts of Bi-Real Net (arXiv 1808.00278).

The benchmark of binary networks on CIFAR-10: three stages of 16, 32 and 64 channels with six 3×3 convolutions each.
As binary versions have it, a shortcut is around every convolution and not around every second, so all of a stage share
one width. Where a stage halves the image, the shortcut is a binary 1×1 convolution of the same bits. The original has
one without parameters, which needs twice the channels in each stage; here a search chooses them. Images of 64 pixels and
more get four times the widths and the stem of ResNet-18.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Network

STAGES = ("stage0", "stage1", "stage2")
CONVS = 6  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    widths = {stage: width for stage, width in _parts.stage_widths(resolution).items() if stage in STAGES}
    stem = _parts.make_stem(resolution)
    layers = _parts.make_residual_stages(widths, CONVS, stem, resolution)
    return _parts.make_classifier("resnet20", channels, resolution, classes, widths, [*stem, *layers])

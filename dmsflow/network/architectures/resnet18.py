"""ResNet-18 (He et al., arXiv 1512.03385) with binary 3×3 and 1×1 convolutions.

Images of 64 pixels and more get the ImageNet widths and the 7×7 stem, smaller ones a quarter of
the widths and a 3×3 stem. Widths are shared as in the DMS paper, A.3: one for the inner width of
each block, one for the output of each stage (a downsampling block sets it, identity skips keep it).
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Layer, Network

BLOCKS = 2  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    bases = _parts.stage_widths(resolution)
    layers = [*_parts.make_stem(resolution), Layer(name="stem_relu", op="relu", inputs=("stem_norm",))]
    widths = {"stage0": bases["stage0"]}
    for stage, base in bases.items():
        for index in range(BLOCKS):
            inner = f"{stage}_block{index}"
            widths |= {inner: base, stage: base}
            layers += _basic_block(inner, stage, layers[-1].name, shrinks=stage != "stage0" and index == 0)
    return _parts.make_classifier("resnet18", channels, resolution, classes, widths, layers)


def _basic_block(inner: str, outer: str, entry: str, *, shrinks: bool) -> list[Layer]:
    """Two convolutions of these widths and a shortcut; both convs that read `entry` share one quantiser."""
    layers = _parts.make_binary_conv(inner, entry, inner, stride=2 if shrinks else 1, number=1)
    layers += _parts.make_binary_conv(inner, layers[-1].name, outer, number=2)
    layers = _parts.add_shortcut(inner, layers, outer, shrinks=shrinks)
    return [*layers, Layer(name=f"{inner}_relu", op="relu", inputs=(f"{inner}_add",))]

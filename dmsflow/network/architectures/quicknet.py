"""Similar to QuickNet (Bannink et al., arXiv 2011.09398): residual binary convolutions, cheap transitions.

As there, each stage is a row of binary 3×3 convolutions with a shortcut around every one, and the image
is made small early, by the stem. Between two stages QuickNet blurs, pools and widens with a float 1×1
convolution; here a max pool and a binary 1×1 convolution do that, since float sums round differently in
every runtime. Small images keep their size in the stem and get a quarter of the widths.
"""

from __future__ import annotations

from dmsflow.network.architectures import _parts
from dmsflow.network.network import Layer, Network

CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    layers = _parts.make_stem(resolution, kernel=3)
    widths = _parts.stage_widths(resolution)
    for stage in widths:
        if stage != "stage0":  # half the side, and the channels of this stage
            layers.append(Layer(name=f"{stage}_pool", op="max_pool", inputs=(layers[-1].name,), kernel=2, stride=2))
            layers += _parts.make_binary_conv(stage, f"{stage}_pool", stage, kernel=1)
        for index in range(CONVS):
            conv = _parts.make_binary_conv(f"{stage}_{index}", layers[-1].name, stage)
            layers += _parts.add_shortcut(f"{stage}_{index}", conv, stage, shrinks=False)
    return _parts.make_classifier("quicknet", channels, resolution, classes, widths, layers)

"""A sibling of QuickNet (Bannink et al., arXiv 2011.09398): residual binary convolutions, cheap transitions.

As there, each stage is a row of binary 3×3 convolutions with a shortcut around every one, and the image
is made small early, by the stem. Between two stages QuickNet blurs, pools and widens with a float 1×1
convolution; here a max pool and a binary 1×1 convolution do that, since float sums round differently in
every runtime. Small images keep their size in the stem and get a quarter of the widths.
"""

from __future__ import annotations

from dmsflow.network.network import INPUT, Layer, Network

STAGES = (64, 128, 256, 512)
CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    large = resolution >= 64
    layers = _stem(large)
    for stage in range(len(STAGES)):
        if stage:
            layers += _transition(f"stage{stage}", layers[-1].name)
        for index in range(CONVS):
            layers += _residual_conv(f"stage{stage}", index, layers[-1].name)
    layers.append(Layer(name="average", op="average_pool", inputs=(layers[-1].name,)))
    layers.append(Layer(name="dense", op="dense", inputs=("average",), width=classes))
    return Network(
        name="quicknet",
        channels=channels,
        resolution=resolution,
        classes=classes,
        widths={f"stage{stage}": base // (1 if large else 4) for stage, base in enumerate(STAGES)},
        layers=tuple(layers),
    )


def _stem(large: bool) -> list[Layer]:
    """A quarter of the side for large images, as QuickNet's."""
    stem = [Layer(name="stem", op="conv", inputs=(INPUT,), width="stage0", kernel=3, stride=1 + large, padding=1)]
    if large:
        stem.append(Layer(name="stem_pool", op="max_pool", inputs=("stem",), kernel=3, stride=2, padding=1))
    return [*stem, Layer(name="stem_norm", op="batch_norm", inputs=(stem[-1].name,))]


def _residual_conv(stage: str, index: int, entry: str) -> list[Layer]:
    name = f"{stage}_{index}"
    return [
        Layer(name=f"{name}_quantize", op="quantize", inputs=(entry,)),
        Layer(name=f"{name}_conv", op="binary_conv", inputs=(f"{name}_quantize",), width=stage, kernel=3, padding=1),
        Layer(name=f"{name}_norm", op="batch_norm", inputs=(f"{name}_conv",)),
        Layer(name=f"{name}_add", op="add", inputs=(f"{name}_norm", entry)),
    ]


def _transition(stage: str, entry: str) -> list[Layer]:
    """Half the side, and the channels of the next stage."""
    return [
        Layer(name=f"{stage}_pool", op="max_pool", inputs=(entry,), kernel=2, stride=2),
        Layer(name=f"{stage}_quantize", op="quantize", inputs=(f"{stage}_pool",)),
        Layer(name=f"{stage}_conv", op="binary_conv", inputs=(f"{stage}_quantize",), width=stage),
        Layer(name=f"{stage}_norm", op="batch_norm", inputs=(f"{stage}_conv",)),
    ]

"""Bi-Real-style ResNet-18 (Liu et al., arXiv 1808.00278): a shortcut of floats around every convolution.

Real values run from the stem to the dense layer, and every binary convolution adds to them. So all
convolutions of a stage write one width. Where a stage halves the image, the shortcut is a binary 1×1
convolution of the same bits; the paper has average pooling and a float 1×1 convolution, whose sums no
two runtimes round alike. Widths and stem are those of resnet18.
"""

from __future__ import annotations

from dmsflow.network.network import INPUT, Layer, Network

STAGES = (64, 128, 256, 512)
CONVS = 4  # in a stage


def build(channels: int, resolution: int, classes: int) -> Network:
    large = resolution >= 64
    layers = _stem(large)
    for stage in range(len(STAGES)):
        for index in range(CONVS):
            layers += _shortcut_conv(f"stage{stage}", index, layers[-1].name, shrinks=stage > 0 and index == 0)
    layers.append(Layer(name="average", op="average_pool", inputs=(layers[-1].name,)))
    layers.append(Layer(name="dense", op="dense", inputs=("average",), width=classes))
    return Network(
        name="birealnet18",
        channels=channels,
        resolution=resolution,
        classes=classes,
        widths={f"stage{stage}": base // (1 if large else 4) for stage, base in enumerate(STAGES)},
        layers=tuple(layers),
    )


def _stem(large: bool) -> list[Layer]:
    if not large:
        stem = [Layer(name="stem", op="conv", inputs=(INPUT,), width="stage0", kernel=3, padding=1)]
    else:
        stem = [
            Layer(name="stem", op="conv", inputs=(INPUT,), width="stage0", kernel=7, stride=2, padding=3),
            Layer(name="stem_pool", op="max_pool", inputs=("stem",), kernel=3, stride=2, padding=1),
        ]
    return [*stem, Layer(name="stem_norm", op="batch_norm", inputs=(stem[-1].name,))]


def _shortcut_conv(stage: str, index: int, entry: str, *, shrinks: bool) -> list[Layer]:
    """A binary 3×3 convolution, its batch norm, and what it is added to."""
    name, stride = f"{stage}_{index}", 2 if shrinks else 1
    layers = [
        Layer(name=f"{name}_quantize", op="quantize", inputs=(entry,)),
        Layer(
            name=f"{name}_conv",
            op="binary_conv",
            inputs=(f"{name}_quantize",),
            width=stage,
            kernel=3,
            stride=stride,
            padding=1,
        ),
        Layer(name=f"{name}_norm", op="batch_norm", inputs=(f"{name}_conv",)),
    ]
    if shrinks:
        layers += [
            Layer(name=f"{name}_skip", op="binary_conv", inputs=(f"{name}_quantize",), width=stage, stride=stride),
            Layer(name=f"{name}_skip_norm", op="batch_norm", inputs=(f"{name}_skip",)),
        ]
        entry = f"{name}_skip_norm"
    return [*layers, Layer(name=f"{name}_add", op="add", inputs=(f"{name}_norm", entry))]

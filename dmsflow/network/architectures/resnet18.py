"""ResNet-18 (He et al., arXiv 1512.03385) with binary 3×3 and 1×1 convolutions.

Images of 64 pixels and more get the ImageNet widths and the 7×7 stem, smaller ones a quarter of
the widths and a 3×3 stem. Widths are shared as in the DMS paper, A.3: one for the inner width of
each block, one for the output of each stage (a downsampling block sets it, identity skips keep it).
"""

from __future__ import annotations

from dmsflow.network.network import INPUT, Layer, Network

STAGES = (64, 128, 256, 512)
BLOCKS = 2


def build(channels: int, resolution: int, classes: int) -> Network:
    large = resolution >= 64
    divisor = 1 if large else 4
    widths: dict[str, int] = {"stage0": STAGES[0] // divisor}
    layers: list[Layer] = [_stem(large)]
    if large:
        layers.append(Layer(name="stem_pool", op="max_pool", inputs=("stem",), kernel=3, stride=2, padding=1))
    layers.append(Layer(name="stem_norm", op="batch_norm", inputs=(layers[-1].name,)))
    layers.append(Layer(name="stem_relu", op="relu", inputs=("stem_norm",)))
    for stage, base in enumerate(STAGES):
        for block in range(BLOCKS):
            inner = f"stage{stage}_block{block}"
            widths[inner] = base // divisor
            if block == 0:
                widths[f"stage{stage}"] = base // divisor
            stride = 2 if stage and block == 0 else 1
            layers += _block(inner, f"stage{stage}", layers[-1].name, stride)
    layers.append(Layer(name="average", op="average_pool", inputs=(layers[-1].name,)))
    layers.append(Layer(name="dense", op="dense", inputs=("average",), width=classes))
    return Network(
        name="resnet18", channels=channels, resolution=resolution, classes=classes, widths=widths, layers=tuple(layers)
    )


def _stem(large: bool) -> Layer:
    if large:
        return Layer(name="stem", op="conv", inputs=(INPUT,), width="stage0", kernel=7, stride=2, padding=3)
    return Layer(name="stem", op="conv", inputs=(INPUT,), width="stage0", kernel=3, padding=1)


def _block(inner: str, outer: str, entry: str, stride: int) -> list[Layer]:
    """A basic block; both convs that read `entry` share one quantiser."""
    layers = [
        Layer(name=f"{inner}_quantize1", op="quantize", inputs=(entry,)),
        Layer(
            name=f"{inner}_conv1",
            op="binary_conv",
            inputs=(f"{inner}_quantize1",),
            width=inner,
            kernel=3,
            stride=stride,
            padding=1,
        ),
        Layer(name=f"{inner}_norm1", op="batch_norm", inputs=(f"{inner}_conv1",)),
        Layer(name=f"{inner}_quantize2", op="quantize", inputs=(f"{inner}_norm1",)),
        Layer(
            name=f"{inner}_conv2", op="binary_conv", inputs=(f"{inner}_quantize2",), width=outer, kernel=3, padding=1
        ),
        Layer(name=f"{inner}_norm2", op="batch_norm", inputs=(f"{inner}_conv2",)),
    ]
    skip = entry
    if stride > 1:
        skip = f"{inner}_skip_norm"
        layers += [
            Layer(name=f"{inner}_skip", op="binary_conv", inputs=(f"{inner}_quantize1",), width=outer, stride=stride),
            Layer(name=skip, op="batch_norm", inputs=(f"{inner}_skip",)),
        ]
    return [
        *layers,
        Layer(name=f"{inner}_add", op="add", inputs=(f"{inner}_norm2", skip)),
        Layer(name=f"{inner}_relu", op="relu", inputs=(f"{inner}_add",)),
    ]

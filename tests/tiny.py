"""A network that is searched and trained in a moment."""

from __future__ import annotations

from dmsflow.network import INPUT, Layer, Network


def build(channels: int, resolution: int, classes: int) -> Network:
    layers = (
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3, stride=2, padding=1),
        Layer(name="norm1", op="batch_norm", inputs=("stem",)),
        Layer(name="quantize", op="quantize", inputs=("norm1",)),
        Layer(name="conv", op="binary_conv", inputs=("quantize",), width="b", kernel=3, stride=2, padding=1),
        Layer(name="norm2", op="batch_norm", inputs=("conv",)),
        Layer(name="average", op="average_pool", inputs=("norm2",)),
        Layer(name="dense", op="dense", inputs=("average",), width=classes),
    )
    widths = {"a": 8, "b": 16}
    return Network(name="tiny", channels=channels, resolution=resolution, classes=classes, widths=widths, layers=layers)

"""A network of gates, swish, squeeze-and-excite, and a concatenation of what they put out; and of groups."""

from __future__ import annotations

from dmsflow.network import INPUT, Layer, Network


def build(channels: int, resolution: int, classes: int) -> Network:
    layers = [Layer(name="stem", op="conv", inputs=(INPUT,), width="a", kernel=3, stride=2, padding=1)]

    def add(name: str, op: str, *inputs: str, **fields: object) -> str:
        layers.append(Layer(name=name, op=op, inputs=inputs or (layers[-1].name,), **fields))  # type: ignore[arg-type]
        return name

    entry = add("norm0", "batch_norm")
    swish = add("swish", "multiply", entry, add("hard", "hard_sigmoid"))
    add("quantize1", "quantize")
    add("conv1", "binary_conv", width="b", kernel=3, padding=1)
    entry = add("norm1", "batch_norm")
    add("squeeze", "average_pool")
    add("gate1", "conv", width="c")
    add("gate_norm1", "batch_norm")
    add("gate_relu", "relu")
    add("gate2", "conv", width="b")
    add("gate_norm2", "batch_norm")
    add("excite", "multiply", entry, add("gate", "sigmoid"))
    add("join", "concat", "excite", swish)
    add("quantize2", "quantize")
    add("conv2", "binary_conv", width="a", kernel=3, stride=2, padding=1)
    add("norm2", "batch_norm")
    add("wide", "conv", width=12)
    add("groups", "conv", width=18, kernel=3, stride=2, padding=1, groups=6)
    add("norm3", "batch_norm")
    add("wider", "conv", width=64)
    add("norm4", "batch_norm")
    add("quantize3", "quantize")
    add("binary_groups", "binary_conv", width=128, kernel=3, padding=1, groups=2)
    add("norm5", "batch_norm")
    add("average", "average_pool")
    add("dense", "dense", width=classes)
    image = {"channels": channels, "resolution": resolution, "classes": classes}
    return Network(name="gated", **image, widths={"a": 12, "b": 20, "c": 8}, layers=tuple(layers))

"""Fused blocks: a layer with what folds into it, which a runtime computes as one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from dmsflow.network.network import (
    INPUT,
    QUANTISERS,
    WINDOWED_OPS,
    Key,
    Layer,
    Network,
    Op,
    evaluated,
    out_resolution,
    out_widths,
    pools_all,
    resolutions,
    value,
)

FOLDS: dict[Op, tuple[Op, ...]] = {  # what may become part of an op when it is its only reader, in this order
    "conv": ("max_pool", "batch_norm", "relu", "relu6", *QUANTISERS),
    "binary_conv": ("max_pool", "batch_norm", "relu", "relu6", *QUANTISERS),
    "depthwise_conv": ("batch_norm", "relu", "relu6"),
    "add": ("relu", "relu6"),
    "average_pool": ("dense",),
}


def tail(network: Network, layer: Layer) -> tuple[Layer, ...]:
    """The layers that fold into `layer`: its only reader, that one's only reader, and so on.

    A ReLU in front of the batch norm folds into a binary convolution of ±1, which counts symmetrically around 0.
    """
    chain = [layer]
    for op in FOLDS.get(layer.op, ()):
        readers = network.consumers(chain[-1].name)
        if len(readers) == 1 and readers[0].op == op:
            chain += readers
    if [each.op for each in chain] == ["binary_conv", "relu"] and network.layer(layer.inputs[0]).op == "sign":
        for ops in (("batch_norm",), QUANTISERS):
            readers = network.consumers(chain[-1].name)
            if len(readers) != 1 or readers[0].op not in ops:
                break
            chain += readers
    return tuple(chain[1:])


@dataclass(frozen=True)
class FusedBlock:
    """A layer with its tail: what a runtime computes as one, and a profile measures as one.

    Attributes:
        layers: in order.
        channels: of the image, for a block that reads it; a block of another network may have others.
        resolution: pixels on a side of what the first layer reads.
        reads, writes: width keys of what goes in and comes out; a concat reads all that it puts out.
        gated: the second factor of a multiply is one pixel a channel.
    """

    layers: tuple[Layer, ...]
    channels: int
    resolution: int
    reads: Key
    writes: Key
    gated: bool = False

    @property
    def op(self) -> Op:
        return self.layers[0].op

    @property
    def kind(self) -> str:
        """The first word of its name: its op, and whether that has weights of 8 bits."""
        return f"int8_{self.op}" if self.layers[0].bits == 8 else self.op

    @property
    def in_float(self) -> FusedBlock:
        """The same with float weights in place of those of 8 bits."""
        return replace(self, layers=tuple(msgspec.structs.replace(layer, bits=32) for layer in self.layers))

    @property
    def is_fixed(self) -> bool:
        """Whether it has no widths but those in its name."""
        return self.layers[0].groups > 1

    @property
    def grows(self) -> bool:
        """Whether it has a width of its own to write, other than the one it reads."""
        return self.op in ("conv", "binary_conv") and not self.is_fixed

    @property
    def reads_image(self) -> bool:
        return INPUT in self.layers[0].inputs

    @property
    def name(self) -> str:
        """Equal for two fused blocks if and only if they do the same, up to their widths."""
        ops = [_format_op(layer, self.channels) + " by 1x1" * self.gated for layer in self.layers]
        if self.is_fixed:
            ops[0] += (
                f" of {value({}, self.reads)} channels in {self.layers[0].groups} groups to {self.layers[0].width}"
            )
        return f"{' + '.join(ops)} on {self.resolution}x{self.resolution}"

    @property
    def size(self) -> int:
        """Pixels on a side of what it puts out."""
        size = self.resolution
        for layer in self.layers:
            size = out_resolution(layer, size)
        return size


def _format_op(layer: Layer, channels: int) -> str:
    """An op with its window; a stride of 1, a padding that keeps the size and a pool's own stride go without saying.

    "binary_conv 3x3 stride 2", "max_pool 2x2", "conv 3x3 of 1 channel" (of the image), "batch_norm", "int8_dense to 10".
    """
    op = f"int8_{layer.op}" if layer.bits == 8 else layer.op
    if layer.op == "dense":
        return f"{op} to {layer.width}"
    if layer.op == "concat":
        return f"concat of {len(layer.inputs)}"
    if layer.op not in WINDOWED_OPS or pools_all(layer):
        return layer.op
    usual_stride, usual_padding = (layer.kernel, 0) if layer.op.endswith("_pool") else (1, layer.kernel - 1)
    text = f"{op} {layer.kernel}x{layer.kernel}"
    if layer.stride != usual_stride:
        text += f" stride {layer.stride}"
    if 2 * layer.padding != usual_padding:
        text += f" padding {layer.padding}"
    if INPUT in layer.inputs:
        text += f" of {channels} channel{'s' * (channels != 1)}"
    return text


def fused_blocks(network: Network) -> tuple[FusedBlock, ...]:
    """The whole network, in order, as the fused blocks that are measured; dropout is not."""
    network = evaluated(network)
    keys, sizes = out_widths(network), resolutions(network)
    folded: set[str] = set()
    blocks = []
    for layer in network.layers:
        if layer.name not in folded:
            layers = (layer, *tail(network, layer))
            folded.update(each.name for each in layers)
            entry, end = layer.inputs[0], layers[-1].name
            reads = keys[end if layer.op == "concat" else entry]
            gated = layer.op == "multiply" and sizes[layer.inputs[1]] < sizes[entry]
            blocks.append(FusedBlock(layers, network.channels, sizes[entry], reads, keys[end], gated))
    return tuple(blocks)

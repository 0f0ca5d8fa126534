"""Small networks that are measured so that the time of one block can be told from them.

A runtime has no clock for a block alone, and what it does at the borders of a block depends on what
stands beside it. So each probe is a whole network, written by the same exporter as any other: an
entry that makes the tensor a block reads, the block, and an exit that looks at one pixel of what it
puts out. The time of the block is a sum of times of probes, most simply that with it less that
without it; what entry and exit cost cancels along any chain of fused blocks.

A tensor is of one of two kinds, `bits` (behind a quantiser) or `floats`. Floats leave a probe
through two quantisers, since one alone would become part of what it reads; the time of a quantiser
is that of a probe with three, less that with two.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from dmsflow.network.blocks import FusedBlock
from dmsflow.network.network import INPUT, Layer, Network, Op

Kind = Literal["image", "bits", "floats"]

CHANNELS = 3  # of a probe's image, unless the block reads the image itself
EXIT_WIDTH = 8
SMALLEST = 8, 2  # channels and pixels of the probe that stands for a network of nothing
EXITS: dict[Kind, int] = {"bits": 1, "floats": 2}


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A network at the widths it is measured at; its layers have these numbers as widths."""

    channels: int
    resolution: int
    classes: int
    layers: tuple[Layer, ...]

    @property
    def network(self) -> Network:
        return Network(
            name="probe",
            channels=self.channels,
            resolution=self.resolution,
            classes=self.classes,
            widths={},
            layers=self.layers,
        )


Sum = Counter[Probe]  # how often each probe's time is added, below zero: taken away


def overhead() -> Sum:
    """What any network costs, whatever its layers: the smallest one's time, less its exit."""
    total: Sum = Counter({_probe("bits", *SMALLEST): 1})
    _add(total, _exits(1), -1)
    return total


def of_piece(block: FusedBlock, reads: int, writes: int) -> Sum:
    """The time of a block that reads and writes so many channels."""
    if block.op == "quantize":
        return _quantiser(block.resolution, reads)
    entry, leaves = _entry(block), _leaves(block)
    second = block.op == "add"
    total: Sum = Counter({_probe(entry, reads, block.resolution, block, writes, second=second): 1})
    if leaves:
        _add(total, _exits(EXITS[leaves]), -1)
    if leaves == "floats":
        _add(total, _quantiser(block.size, writes), -EXITS["floats"])
    if entry == "image":
        _add(total, overhead(), -1)
        return total
    total[_probe(entry, reads, block.resolution, second=second)] -= 1
    exits = EXITS[entry] + second
    _add(total, _exits(exits), 1)
    if entry == "floats":
        _add(total, _quantiser(block.resolution, reads), exits)
    return total


def _quantiser(resolution: int, width: int) -> Sum:
    """The time of a quantiser: of one more that reads the same floats, less its exit."""
    total: Sum = Counter({_probe("floats", width, resolution, exits=EXITS["floats"] + 1): 1})
    total[_probe("floats", width, resolution)] -= 1
    _add(total, _exits(1), -1)
    return total


def _exits(count: int) -> Sum:
    """The time of exits, which is the same wherever they are: they look at one pixel."""
    total: Sum = Counter({_probe("bits", *SMALLEST, exits=EXITS["bits"] + 1): count})
    total[_probe("bits", *SMALLEST)] -= count
    return total


def _add(total: Sum, other: Sum, times: int) -> None:
    for probe, count in other.items():
        total[probe] += times * count


def _entry(block: FusedBlock) -> Kind:
    kinds: dict[Op, Kind] = {"conv": "image", "binary_conv": "bits"}
    return kinds.get(block.op, "floats")


def _leaves(block: FusedBlock) -> Kind | None:
    """What comes out; None: the class scores."""
    kinds: dict[Op, Kind | None] = {"quantize": "bits", "dense": None}
    return kinds.get(block.layers[-1].op, "floats")


def _probe(
    entry: Kind,
    reads: int,
    resolution: int,
    block: FusedBlock | None = None,
    writes: int = 0,
    *,
    second: bool = False,
    exits: int = 0,
) -> Probe:
    """A probe around a block, or around nothing.

    Args:
        entry: what the block reads.
        reads, resolution: channels and pixels of it.
        writes: channels that the block puts out, if they are its own choice.
        second: other floats of the same shape, by a binary convolution of these, are read as well (an add does).
        exits: how many, if not those of EXITS.
    """
    layers = _enter(entry, reads)
    before = [layers[-1].name if layers else INPUT]
    if second:
        layers += _second(before[0], reads)
        before = [layers[-1].name, before[0]]
    size, classes = resolution, 2
    if block:
        for layer in block.layers:
            width = writes if layer.op in ("conv", "binary_conv") else layer.width
            inputs = tuple(before) if layer.op == "add" else (before[0],)
            layers.append(msgspec.structs.replace(layer, name=f"piece_{len(layers)}", inputs=inputs, width=width))
            before = [layers[-1].name]
        size = block.size
    if layers[-1].op == "dense":
        classes = int(layers[-1].width or 0)
    else:
        kind: Kind = "bits" if layers[-1].op == "quantize" else "floats"
        # What an add would have read must be read still, or its quantiser becomes part of the entry.
        sources = [layers[-1].name] * (exits or EXITS[kind]) + before[1:]
        layers += _leave(sources, kind, size)
    channels = block.channels if block and entry == "image" else CHANNELS
    return Probe(channels=channels, resolution=resolution, classes=classes, layers=tuple(layers))


def _enter(kind: Kind, width: int) -> list[Layer]:
    """A cheap convolution of the image, as a batch norm and what follows make it bits or floats."""
    if kind == "image":
        return []
    return [
        Layer(name="enter", op="conv", inputs=(INPUT,), width=width),
        Layer(name="enter_norm", op="batch_norm", inputs=("enter",)),
        Layer(name=f"enter_{kind}", op="quantize" if kind == "bits" else "relu", inputs=("enter_norm",)),
    ]


def _second(source: str, width: int) -> list[Layer]:
    return [
        Layer(name="second_bits", op="quantize", inputs=(source,)),
        Layer(name="second", op="binary_conv", inputs=("second_bits",), width=width),
        Layer(name="second_norm", op="batch_norm", inputs=("second",)),
    ]


def _leave(sources: list[str], kind: Kind, size: int) -> list[Layer]:
    """Binary convolutions whose stride is the whole image, what they find added up, and the class scores."""
    layers: list[Layer] = []
    end = ""
    for index, source in enumerate(sources):
        bits, leave = source, f"leave_{index}"
        if kind == "floats":
            bits = f"leave_bits_{index}"
            layers.append(Layer(name=bits, op="quantize", inputs=(source,)))
        layers.append(Layer(name=leave, op="binary_conv", inputs=(bits,), width=EXIT_WIDTH, stride=size))
        if end:
            layers.append(Layer(name=f"sum_{index}", op="add", inputs=(end, leave)))
        end = layers[-1].name
    return [*layers, Layer(name="dense", op="dense", inputs=(end,), width=2)]

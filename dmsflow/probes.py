"""Small networks that are measured so that the time of one piece can be told from them.

A runtime has no clock for a piece alone, and what it does at the borders of a piece depends on what
stands beside it. So each probe is a whole network, written by the same exporter as any other: an
entry that makes the tensor a piece reads, the piece, and an exit that looks at one pixel of what it
puts out. The time of the piece is a sum of times of probes, most simply that with it less that
without it; what entry and exit cost cancels along any chain of pieces.

A tensor is of one of two kinds, `bits` (behind a quantiser) or `floats`. Floats leave a probe
through a quantiser too, whose own time is known from a probe with two of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from dmsflow.network import INPUT, Layer, Network, Op, Piece

Kind = Literal["image", "bits", "floats"]

CHANNELS = 3  # of a probe's image, unless the piece reads the image itself
EXIT_WIDTH = 8
SMALLEST = 8, 2  # channels and pixels of the probe that stands for a network of nothing


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A network at the widths it is measured at; its layers have these numbers as widths."""

    channels: int
    resolution: int
    classes: int
    layers: tuple[Layer, ...]

    @property
    def network(self) -> Network:
        return Network(
            name="probe", channels=self.channels, resolution=self.resolution, classes=self.classes, widths={},
            layers=self.layers,
        )  # fmt: skip


Sum = Counter[Probe]  # how often each probe's time is added, below zero: taken away


def overhead() -> Sum:
    """What any network costs, whatever its layers."""
    width, resolution = SMALLEST
    return Counter({_probe("bits", width, resolution): 1})


def of_piece(piece: Piece, reads: int, writes: int) -> Sum:
    """The time of a piece that reads and writes so many channels."""
    if piece.op == "quantize":
        return quantiser(piece.resolution, reads)
    total: Sum = Counter()
    entry = _entry(piece)
    if piece.op == "add":
        with_it = _probe("floats", reads, piece.resolution, piece, second=True)
        return _sum((with_it, 1), (_probe("floats", reads, piece.resolution, second=True), -1))
    total[_probe(entry, reads, piece.resolution, piece, writes)] += 1
    if entry == "image":
        total.subtract(overhead())
    else:
        total[_probe(entry, reads, piece.resolution)] -= 1
    if entry == "floats":
        total.update(quantiser(piece.resolution, reads))
    if _exit(piece) == "floats":
        total.subtract(quantiser(piece.size, writes))
    return total


def quantiser(resolution: int, width: int) -> Sum:
    """The time of a quantiser: two that read the same floats, less one; and less the second one's exit."""
    floats = _sum((_probe("floats", width, resolution, twice=True), 1), (_probe("floats", width, resolution), -1))
    bits = _sum((_probe("bits", *SMALLEST, twice=True), 1), (_probe("bits", *SMALLEST), -1))
    floats.subtract(bits)
    return floats


def _sum(*parts: tuple[Probe, int]) -> Sum:
    total: Sum = Counter()
    for probe, times in parts:
        total[probe] += times
    return total


def _entry(piece: Piece) -> Kind:
    kinds: dict[Op, Kind] = {"conv": "image", "binary_conv": "bits"}
    return kinds.get(piece.op, "floats")


def _exit(piece: Piece) -> Kind | None:
    """What comes out; None: the class scores."""
    kinds: dict[Op, Kind | None] = {"quantize": "bits", "dense": None}
    return kinds.get(piece.layers[-1].op, "floats")


def _probe(
    entry: Kind, reads: int, resolution: int, piece: Piece | None = None, writes: int = 0,
    *, second: bool = False, twice: bool = False,
) -> Probe:  # fmt: skip
    """A probe around a piece, or around nothing.

    Args:
        entry: what the piece reads.
        reads, resolution: channels and pixels of it.
        writes: channels that the piece puts out, if they are its own choice.
        second: other floats of the same shape, by a binary convolution of these, are read as well (an add does).
        twice: go out twice, and add both.
    """
    layers = _enter(entry, reads)
    before = [layers[-1].name if layers else INPUT]
    if second:
        layers += _second(before[0], reads)
        before = [layers[-1].name, before[0]]
    size, classes = resolution, 2
    if piece:
        for layer in piece.layers:
            width = writes if layer.op in ("conv", "binary_conv") else layer.width
            inputs = tuple(before) if layer.op == "add" else (before[0],)
            layers.append(msgspec.structs.replace(layer, name=f"piece_{len(layers)}", inputs=inputs, width=width))
            before = [layers[-1].name]
        size = piece.size
    if layers[-1].op == "dense":
        classes = int(layers[-1].width or 0)
    else:
        layers += _leave(layers[-1], size, 2 if twice else 1)
    channels = piece.channels if piece and entry == "image" else CHANNELS
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


def _leave(last: Layer, size: int, times: int) -> list[Layer]:
    """Binary convolutions whose stride is the whole image, and the class scores."""
    layers, ends = [], []
    for index in range(times):
        bits = last.name
        if last.op != "quantize":
            bits = f"leave_bits_{index}"
            layers.append(Layer(name=bits, op="quantize", inputs=(last.name,)))
        ends.append(f"leave_{index}")
        layers.append(Layer(name=ends[-1], op="binary_conv", inputs=(bits,), width=EXIT_WIDTH, stride=size))
    if times > 1:
        layers.append(Layer(name="leave", op="add", inputs=tuple(ends)))
    return [*layers, Layer(name="dense", op="dense", inputs=(layers[-1].name,), width=2)]

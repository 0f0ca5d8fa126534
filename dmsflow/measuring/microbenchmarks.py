"""Small networks that are timed so that the time of one fused block can be computed from them.

A runtime does not time a block alone, and what it does at the borders of a block depends on its
neighbours. So each micro-benchmark is a whole network, written by the same exporter as any other: an entry
that makes the tensor a block reads, the block, and an exit that reads one pixel of its output. The time of
a block is the time with it less the time without it:

    image -> entry -> binary_conv + batch_norm + quantize -> exit    0.31 ms
    image -> entry -----------------------------------------> exit    0.12 ms
                      binary_conv + batch_norm + quantize             0.19 ms

A tensor is `bits` (behind a quantiser) or `floats`. Floats leave through two quantisers, since a single
one would be fused with what it reads. The time of a quantiser is that of a network with three of them less
that with two, and less one exit; where a block turns one kind of tensor into the other, such differences
are added or taken away as well (`Sum`), so that entries and exits cancel along a chain of blocks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from dmsflow.network.blocks import FusedBlock
from dmsflow.network.network import INPUT, QUANTISERS, Layer, Network, Op, value

T = TypeVar("T")
Kind = Literal["image", "bits", "floats"]

CHANNELS = 3  # of the image, unless the block reads the image itself
EXIT_WIDTH = 8
SMALLEST = 8, 2  # channels and pixels of the network that stands for an empty one
EXITS: dict[Kind, int] = {"bits": 1, "floats": 2}


class MicroBenchmark(msgspec.Struct, frozen=True, kw_only=True):
    """A network at the widths it is timed at; its layers have these numbers as widths."""

    channels: int
    resolution: int
    classes: int
    layers: tuple[Layer, ...]

    @property
    def network(self) -> Network:
        size = {"channels": self.channels, "resolution": self.resolution, "classes": self.classes}
        return Network(name="micro-benchmark", **size, widths={}, layers=self.layers)

    @property
    def key(self) -> str:
        """The key of its time in the file of an interrupted profile."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


Size = tuple[int, int]  # channels and pixels of a tensor
Sum = Counter[MicroBenchmark]  # how often the time of each is added; below zero: taken away


def isolate_overhead() -> Sum:
    """The overhead of any network: the time of the smallest one, minus its exit."""
    return _combine((1, _build("bits", SMALLEST)), (-1, _isolate_exit()))


def isolate_block(block: FusedBlock, reads: int, writes: int) -> Sum:
    """The time of a block that reads and writes so many channels, or those that it has anyway."""
    if block.is_fixed:
        reads, writes = value({}, block.reads), value({}, block.writes)
    size, *others = _share_channels(block, reads)
    if block.op in QUANTISERS:
        return _isolate_quantizer(size, block.op)
    entry: Kind = "image" if block.reads_image else "bits" if block.op == "binary_conv" else "floats"
    last = block.layers[-1].op
    quantiser: Op = "sign" if [each.op for each in block.layers[1:3]] == ["relu", "batch_norm"] else "quantize"
    terms: list[tuple[int, Sum | MicroBenchmark]] = [
        (1, _build(entry, size, block, writes, others=others, quantiser=quantiser))
    ]
    if last in QUANTISERS:
        terms.append((-EXITS["bits"], _isolate_exit()))
    elif last != "dense":
        terms.append((-EXITS["floats"], _isolate_exit()))
        terms.append((-EXITS["floats"], _isolate_quantizer((writes, block.size))))
    if entry == "image":
        return _combine(*terms, (-1, isolate_overhead()))
    terms.append((-1, _build(entry, size, others=others, quantiser=quantiser)))
    for exits, each in _count_exits(entry, [size, *others]):
        terms.append((exits, _isolate_exit()))
        if entry == "floats":
            terms.append((exits, _isolate_quantizer(each)))
    return _combine(*terms)


def _share_channels(block: FusedBlock, reads: int) -> list[Size]:
    """The sizes of what a block reads: a concat shares its channels among its inputs, others read as many from each."""
    count = len(block.layers[0].inputs)
    if block.gated:
        return [(reads, block.resolution), (reads, 1)]
    if block.op != "concat":
        return [(reads, block.resolution)] * count
    return [(max(1, (reads + index) // count), block.resolution) for index in range(count)]


def _count_exits(kind: Kind, tensors: Sequence[T]) -> list[tuple[int, T]]:
    """How many exits each tensor has that a block would have read; the first, the entry, is read by what makes others."""
    return [(1 if tensors[1:] else EXITS[kind], tensors[0]), *((EXITS[kind], each) for each in tensors[1:])]


def _isolate_quantizer(size: Size, op: Op = "quantize") -> Sum:
    """The time of a quantiser: of one more that reads the same floats, less its exit."""
    more = _build("floats", size, exits=EXITS["floats"] + 1, more=op)
    return _combine((1, more), (-1, _build("floats", size)), (-1, _isolate_exit()))


def _isolate_exit() -> Sum:
    """The time of an exit, which is the same wherever it is: it reads one pixel."""
    return _combine((1, _build("bits", SMALLEST, exits=EXITS["bits"] + 1)), (-1, _build("bits", SMALLEST)))


def _combine(*terms: tuple[int, Sum | MicroBenchmark]) -> Sum:
    total: Sum = Counter()
    for times, term in terms:
        for benchmark, count in (term if isinstance(term, Counter) else Counter([term])).items():
            total[benchmark] += times * count
    return total


def _build(
    entry: Kind,
    size: Size,
    block: FusedBlock | None = None,
    writes: int = 0,
    *,
    others: Sequence[Size] = (),
    exits: int = 0,
    more: Op = "quantize",
    quantiser: Op = "quantize",
) -> MicroBenchmark:
    """A network around a block, or around nothing.

    Args:
        entry: what the block reads.
        size: of what it reads.
        writes: channels that the block writes, if they are its own choice.
        others: sizes of other floats that are read as well (an add does), by binary convolutions of these, or of one
            pixel by their average.
        exits: how many, if not those of EXITS.
        more: the quantiser of those beyond these.
        quantiser: of the entry.
    """
    layers: list[Layer] = []

    def append(name: str, op: Op, *inputs: str, **options: int) -> str:
        layers.append(Layer(name=name, op=op, inputs=inputs, **options))
        return name

    (reads, pixels), tensors = size, [INPUT]
    if entry != "image":  # a cheap convolution of the image, made bits or floats
        append("enter", "conv", INPUT, width=reads)
        append("enter_norm", "batch_norm", "enter")
        tensors = [append(f"enter_{entry}", quantiser if entry == "bits" else "relu", "enter_norm")]
    if others and others[0][1] < pixels:
        tensors.append(append("other_average", "average_pool", tensors[0]))
    elif others:
        append("other_bits", "quantize", tensors[0])
        for index, (channels, _) in enumerate(others):
            append(f"other_{index}", "binary_conv", "other_bits", width=channels)
            tensors.append(append(f"other_{index}_norm", "batch_norm", f"other_{index}"))
    for layer in block.layers if block else ():
        width = writes if layer.op in ("conv", "binary_conv") else layer.width
        inputs = tuple(tensors)
        tensors = [f"piece_{len(layers)}"]
        layers.append(msgspec.structs.replace(layer, name=tensors[0], inputs=inputs, width=width))
    classes = 2
    if layers[-1].op == "dense":
        classes = int(layers[-1].width or 0)
    else:
        kind: Kind = "bits" if layers[-1].op in QUANTISERS else "floats"
        total = ""
        # What an add would have read must still be read, or its quantiser becomes part of the entry.
        counts = [(exits, tensors[0])] if exits else _count_exits(kind, tensors)
        for index, source in enumerate(source for count, source in counts for _ in range(count)):
            op = more if exits and index >= EXITS[kind] else "quantize"
            bits = append(f"leave_bits_{index}", op, source) if kind == "floats" else source
            # Its stride is the whole image, so that it reads one pixel.
            stride = 1 if source == "other_average" else block.size if block else pixels
            leave = append(f"leave_{index}", "binary_conv", bits, width=EXIT_WIDTH, stride=stride)
            total = append(f"sum_{index}", "add", total, leave) if total else leave
        append("dense", "dense", total, width=classes)
    channels = block.channels if block and entry == "image" else CHANNELS
    return MicroBenchmark(channels=channels, resolution=pixels, classes=classes, layers=tuple(layers))

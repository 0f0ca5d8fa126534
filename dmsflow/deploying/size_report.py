"""Where the bytes of an exported file are, and warnings about avoidable size and time.

Kernels of binary convolutions read channels in words and write them in blocks (`Granularity`). The rest of
a layer's last word or block is padding: stored, or computed, for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from dmsflow.deploying import integer_graph
from dmsflow.deploying.integer_graph import BinaryConv, GraphOp, IntegerGraph
from dmsflow.network.cost import LayerSize
from dmsflow.network.profile import Granularity, round_up
from dmsflow.terminal import list_names, print_line, print_table

MOST_PADDING = 1 / 8  # of the channels that kernels handle may be padding without a warning
MOST_FLOATS = 1 / 2  # of all bytes may be one layer's floats without a warning


@dataclass(frozen=True)
class OpSize(LayerSize):
    """One op of the integer graph that has parameters.

    Attributes:
        shape: of its tensor, "height×width×channels".
        reads, writes: channels.
        padded_reads, padded_writes: channels as its kernels pad them.
        padded_bytes: of its signs, with the channels it reads as kernels pad them: what a file can hold at best.
    """

    shape: str
    reads: int
    writes: int
    padded_reads: int
    padded_writes: int
    padded_bytes: int


@dataclass(frozen=True)
class SizeReport:
    """The sizes of a written file.

    Attributes:
        sizes: of each op that has parameters; of a float32 network, of each such layer.
        in_file: bytes that each of them takes in the file.
        file_bytes: of the whole file.
        warnings: lines on what makes it larger or slower than it need be.
    """

    sizes: Sequence[LayerSize]
    in_file: Mapping[str, int]
    file_bytes: int
    warnings: Sequence[str] = ()

    def metrics(self) -> dict[str, Any]:
        """As the manifest records it."""
        return {
            "binary_memory_bytes": sum(size.binary_bytes for size in self.sizes),
            "float_memory_bytes": sum(size.float_bytes for size in self.sizes),
            "file_bytes": self.file_bytes,
            "layers": [{**asdict(size), "file_bytes": self.in_file.get(size.layer, 0)} for size in self.sizes],
            "remarks": list(self.warnings),
        }

    def show(self, model: Path) -> None:
        """Print a table of the bytes, and the warnings."""
        metrics, rows = self.metrics(), []
        for layer in metrics["layers"]:
            cells = [layer["layer"], layer["op"]]
            if "shape" in layer:  # `55 (64)` where kernels pad 55 channels
                pairs = ((layer[each], layer[f"padded_{each}"]) for each in ("reads", "writes"))
                cells += [layer["shape"], *(str(a) if a == padded else f"{a} ({padded})" for a, padded in pairs)]
            rows.append([*cells, layer["binary_bytes"], layer["float_bytes"], layer["file_bytes"]])
        head = ["layer", "op", "shape", "reads", "writes"][: len(cells)]
        empty, in_layers = [""] * (len(cells) - 2), sum(row[-1] for row in rows)
        rows.append(["", "graph, names, alignment", *empty, 0, 0, self.file_bytes - in_layers])
        totals = (metrics[f"{key}_bytes"] for key in ("binary_memory", "float_memory", "file"))
        rows.append(["sum", "", *empty, *totals])
        shown = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
        print_table(str(model), (*head, "binary bytes", "other bytes", "file bytes"), shown)
        for line in self.warnings:
            print_line(line)


def measure_ops(graph: IntegerGraph, granularity: Granularity) -> list[OpSize]:
    """The size of each op with parameters, in order: signs at 8 to the byte, and everything else.

    `granularity` is that of the kernels of binary convolutions.
    """
    shapes, sizes = graph.shapes(), []
    for op in graph.ops:
        arrays = [array for array in structs.asdict(op).values() if isinstance(array, (np.ndarray, np.generic))]
        if not arrays:
            continue
        signs = [array for array in arrays if isinstance(op, BinaryConv) and array.dtype == np.int8]
        binary_bytes = sum(-(-array.size // 8) for array in signs)
        float_bytes = sum(array.nbytes for array in arrays) - sum(array.nbytes for array in signs)
        reads, writes = shapes[op.inputs[0]][2], shapes[op.name][2]
        steps = granularity if isinstance(op, BinaryConv) else Granularity()
        channels = reads, writes, round_up(reads, steps.inputs), round_up(writes, steps.outputs)
        padded_bytes = round_up(binary_bytes * channels[2], reads) // reads
        shape = "×".join(map(str, shapes[op.name]))
        sizes.append(OpSize(op.name, type(op).__name__, binary_bytes, float_bytes, shape, *channels, padded_bytes))
    return sizes


def find_warnings(graph: IntegerGraph, sizes: Sequence[OpSize], granularity: Granularity) -> list[str]:
    """A line for each avoidable cost in size or time, with the way to avoid it."""
    reads = [(size.layer, size.reads) for size in sizes if size.op == "BinaryConv"]
    writes = [(size.layer, size.writes) for size in sizes if size.op == "BinaryConv"]
    lines = _warn_of_padding(reads, granularity.inputs, "read", "of their stored weights and work")
    lines += _warn_of_padding(writes, granularity.outputs, "written", "of the work")
    total = sum(size.padded_bytes + size.float_bytes for size in sizes)
    for size in sizes:
        if size.float_bytes > MOST_FLOATS * total and size.op in NARROWER:
            share = f"its parameters that are not binary are {size.float_bytes / total:.0%} of all bytes"
            lines.append(f"{size.layer}: {share}; {NARROWER[size.op]}")
    return lines + _warn_of_floats(graph)


NARROWER = {
    "Stem": "use fewer channels in the first layer, or a smaller kernel, to make it smaller",
    "Dense": "use fewer channels in the layer before it to make it smaller",
    "FloatConv": "make it a binary_conv, or use fewer channels",
}


def _warn_of_padding(widths: Sequence[tuple[str, int]], step: int, verb: str, what: str) -> list[str]:
    """One line for all layers of the same width; `widths` are pairs of a layer and its channels."""
    layers: dict[int, list[str]] = defaultdict(list)
    for layer, width in widths:
        if round_up(width, step) - width > MOST_PADDING * round_up(width, step):
            layers[width].append(layer)
    lines = []
    for width, names in layers.items():
        padded = round_up(width, step)
        edges = f"{padded - step} or {padded}" if padded > step else f"{padded}"
        wasted = f"{width} channels {verb} as {padded}: {1 - width / padded:.0%} {what} is padding"
        lines.append(f"{list_names(names)}: {wasted}; use {edges} (search --file-kib counts padding)")
    return lines


def _warn_of_floats(graph: IntegerGraph) -> list[str]:
    """Binary convolutions that put out floats, by what reads them; averages and float convolutions need them."""
    convs: dict[str, list[str]] = defaultdict(list)
    for op in graph.ops:
        if isinstance(op, BinaryConv) and op.thresholds is None:
            convs[_describe_readers(graph, op)].append(op.name)
    for kind in ("AveragePool", "DepthwiseConv", "FloatConv"):
        convs.pop(KINDS[kind], None)
    right = "a quantizer directly behind the batch norm, as its only reader, would fuse into thresholds"
    what = "writes float32, 32 times the bits, for"
    return [f"{list_names(names)}: {what} {reader}; {right}" for reader, names in convs.items()]


def _describe_readers(graph: IntegerGraph, op: GraphOp) -> str:
    """The kind of op that needs the floats, looking through those that do one channel at a time."""
    readers = graph.consumers(op.name)
    channelwise = integer_graph.Scale, integer_graph.Relu, integer_graph.PRelu, integer_graph.MaxPool
    if len(readers) == 1 and isinstance(readers[0], channelwise):
        return _describe_readers(graph, readers[0])
    return " and ".join(sorted({KINDS.get(type(reader).__name__, type(reader).__name__) for reader in readers}))


KINDS = {"Add": "an addition", "AveragePool": "the average pool", "Quantize": "a quantizer", "Relu": "a ReLU"}
KINDS |= {
    "Concat": "a concatenation",
    "DepthwiseConv": "a depthwise convolution",
    "FloatConv": "a float convolution",
    "HardSigmoid": "a sigmoid",
    "Multiply": "a multiplication",
    "Sigmoid": "a sigmoid",
    "MaxPool": "a max pool",
    "PRelu": "a PReLU",
    "Scale": "a batch norm",
    "Dense": "the dense layer",
}

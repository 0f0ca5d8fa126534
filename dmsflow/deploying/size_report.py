"""What each op of an exported network is and weighs, and what makes it larger or slower than it need be.

Kernels of binary convolutions read channels in words and write them in blocks (`Granularity`): what a width
leaves of its last word or block is stored or computed for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dmsflow.deploying import integer_graph
from dmsflow.deploying.integer_graph import BinaryConv, GraphOp, IntegerGraph
from dmsflow.network.profile import Granularity
from dmsflow.terminal import list_names

WASTE = 1 / 8  # of the channels that kernels handle may be padding without a remark
DOMINATES = 1 / 2  # of all bytes


@dataclass(frozen=True)
class Row:
    """One op that has parameters.

    Attributes:
        layer, op: its name, and its kind in the integer graph.
        shape: of its tensor, "height×width×channels".
        reads, writes: channels.
        padded_reads, padded_writes: channels as its kernels pad them.
        binary_bytes: of its signs, 8 to the byte.
        float_bytes: of everything else.
        padded_bytes: of its signs, with the channels it reads as kernels pad them: what a file can hold at best.
    """

    layer: str
    op: str
    shape: str
    reads: int
    writes: int
    padded_reads: int
    padded_writes: int
    binary_bytes: int
    float_bytes: int
    padded_bytes: int


def account(form: IntegerGraph, steps: Granularity) -> list[Row]:
    """A row for each op with parameters, in order; `steps` are those of the kernels of binary convolutions."""
    ops, shapes, rows = {op.name: op for op in form.ops}, form.shapes(), []
    for size in integer_graph.account(form):
        op = ops[size.name]
        reads, writes = shapes[op.inputs[0]][2], shapes[op.name][2]
        padded = (reads, writes)
        if isinstance(op, BinaryConv):
            padded = (_up(reads, steps.inputs), _up(writes, steps.outputs))
        rows.append(
            Row(
                layer=size.name,
                op=size.op,
                shape="×".join(map(str, shapes[op.name])),
                reads=reads,
                writes=writes,
                padded_reads=padded[0],
                padded_writes=padded[1],
                binary_bytes=size.binary_bytes,
                float_bytes=size.float_bytes,
                padded_bytes=-(-size.binary_bytes * padded[0] // reads),
            )
        )
    return rows


def _up(width: int, step: int) -> int:
    """The edge of its step."""
    return -(-width // step) * step


def remarks(form: IntegerGraph, rows: Sequence[Row], steps: Granularity) -> list[str]:
    """A line for each thing that makes the network larger or slower than it need be, with what would mend it."""
    return [*_padded(rows, steps), *_dominating(rows), *_unfused(form)]


def _padded(rows: Sequence[Row], steps: Granularity) -> list[str]:
    """Layers of the same width are told in one line."""
    reading: dict[int, list[str]] = defaultdict(list)
    writing: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        if row.padded_reads - row.reads > WASTE * row.padded_reads:
            reading[row.reads].append(row.layer)
        if row.padded_writes - row.writes > WASTE * row.padded_writes:
            writing[row.writes].append(row.layer)
    lines = []
    for width, layers in reading.items():
        padded = _up(width, steps.inputs)
        what = f"{width} channels read as {padded}, {1 - width / padded:.0%} of their weights in the file and of the work padding"
        lines.append(f"{list_names(layers)}: {what}; {_edges(width, steps.inputs)}")
    for width, layers in writing.items():
        padded = _up(width, steps.outputs)
        what = f"{width} channels written as {padded}, {1 - width / padded:.0%} of the work padding"
        lines.append(f"{list_names(layers)}: {what}; {_edges(width, steps.outputs)}")
    return lines


def _edges(width: int, step: int) -> str:
    below, above = width // step * step, _up(width, step)
    return f"{f'{below} or ' if below else ''}{above} channels have none (search --align)"


def _dominating(rows: Sequence[Row]) -> list[str]:
    total = sum(row.padded_bytes + row.float_bytes for row in rows)
    return [
        f"{row.layer}: its float32 parameters are {row.float_bytes / total:.0%} of all bytes; {_NARROWER[row.op]}"
        for row in rows
        if row.float_bytes > DOMINATES * total and row.op in _NARROWER
    ]


_NARROWER = {
    "Stem": "fewer channels of the first layer, or a smaller kernel, make it smaller",
    "Dense": "fewer channels of the last layer before it make it smaller",
}


def _unfused(form: IntegerGraph) -> list[str]:
    """Binary convolutions whose results leave as floats, by who reads them; an average has to have them."""
    found: dict[str, list[str]] = defaultdict(list)
    for op in form.ops:
        if isinstance(op, BinaryConv) and op.thresholds is None:
            found[_reader(form, op)].append(op.name)
    right = "a quantizer straight behind the batch norm, and no other reader, would fuse into thresholds"
    return [
        f"{list_names(names)}: float32 put out, 32 times the bits, for {reader}; {right}"
        for reader, names in found.items()
        if reader != _KINDS[integer_graph.AveragePool]
    ]


def _reader(form: IntegerGraph, op: GraphOp) -> str:
    """The kind of op that needs the floats, looking through those that do one channel at a time."""
    while True:
        readers = form.consumers(op.name)
        kinds = sorted({_KINDS.get(type(reader), type(reader).__name__) for reader in readers})
        if len(readers) != 1 or not isinstance(
            readers[0], (integer_graph.Scale, integer_graph.Relu, integer_graph.MaxPool)
        ):
            return " and ".join(kinds)
        op = readers[0]


_KINDS: dict[type, str] = {
    integer_graph.Add: "an addition",
    integer_graph.AveragePool: "the average pool",
    integer_graph.Quantize: "a quantizer",
    integer_graph.MaxPool: "a max pool",
    integer_graph.Scale: "a batch norm",
    integer_graph.Relu: "a ReLU",
    integer_graph.Dense: "the dense layer",
}

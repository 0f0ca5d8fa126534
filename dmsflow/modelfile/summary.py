"""What a graph amounts to: a row for each op, the bytes of each kind, and what is binary but gains nothing by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dmsflow.modelfile.graph import BITS, Graph, Node, Tensor, Weights, bits_of, elements
from dmsflow.modelfile.inputs import Port, plain
from dmsflow.terminal import list_names

MIN_WEIGHTS = 32  # of an op that is called binary by its numbers, and
MIN_CHANNEL_WEIGHTS = 8  # of each output channel: fewer may look binary by chance
MAGNITUDE_TOLERANCE = 1e-6  # how far magnitudes of one channel may differ, relative: the rounding of float32
PLURALS = {"has": "have", "puts": "put", "is": "are"}
PACKED_CONV, QUANTIZE = "LceBconv2d", "LceQuantize"
THROUGH = ("ADD", "MAX_POOL_2D", "MUL", "RELU", "SUB")  # of LCE's files: a threshold could take these in


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One op of a file.

    Attributes:
        part: the subgraph it stands in.
        name: of the op, or of what it puts out.
        output: its first output; None where it has none.
        channels_in, channels_out: None where the file does not tell, or where there are none.
        weight_bits: of each weight in the file; 0 without weights, None where the file does not tell.
        known: what such an op does is known; else its constant that looks binary, if it has one, counts as its weights.
        binary: its weights have two values in each output channel, however they are stored; None where the file does
            not tell: they are computed by what is not evaluated here or in each run, or the op is not known.
        packed: it computes with 1-bit weights as they are stored.
        convolves: it is a convolution.
        weight_dtype, stored_dtype: the type in which it computes with its weights, and that in the file.
        weight_bytes, constant_bytes: in the file; constants, weights among them, count with the first op that
            reads them.
    """

    op: str
    name: str
    part: str
    output: Port | None
    channels_in: int | None
    channels_out: int | None
    weight_bits: int | None
    weight_dtype: str
    stored_dtype: str
    known: bool
    binary: bool | None
    packed: bool
    convolves: bool
    weight_bytes: int
    constant_bytes: int


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a model file.

    Attributes:
        size_bytes: of the file, and of those beside it that hold its weights.
        about: what else the file says of itself.
        widths: output channels of each op with weights, in order; that of a classifier is its classes.
        totals: of the whole file, by what is counted (`_count_totals`).
        warnings: a line for each thing that is binary but neither smaller nor faster for it; "remarks" in JSON.
    """

    path: str
    format: str
    size_bytes: int
    about: dict[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ops: tuple[Op, ...]
    widths: tuple[int | None, ...]
    totals: dict[str, int]
    warnings: tuple[str, ...] = msgspec.field(name="remarks")


def summarize_graph(graph: Graph, path: str, size_bytes: int) -> ModelFile:
    """What is in a graph that was read from a file of so many bytes."""
    constants = _Constants(graph)
    computed = constants.computed
    ops = tuple(constants.op(node) for node in graph.nodes if node.outputs == () or node.outputs[0] not in computed)
    return ModelFile(
        path=path,
        format=graph.format,
        size_bytes=size_bytes + graph.beside,
        about={label: plain(text) for label, text in graph.about.items() if text},
        inputs=tuple(graph.tensors[number].port for number in graph.inputs),
        outputs=tuple(graph.tensors[number].port for number in graph.outputs),
        ops=ops,
        widths=tuple(op.channels_out for op in ops if op.weight_bits != 0),
        totals=_count_totals(ops, constants, size_bytes + graph.beside),
        warnings=tuple(_warnings(graph, ops)),
    )


class _Constants:
    """Which tensors are computed from constants alone, from which, and who is the first to read them."""

    def __init__(self, graph: Graph) -> None:
        self.tensors = graph.tensors
        self.computed: dict[int, Node] = {}
        self.sources: dict[int, int] = {}  # of a computed constant, the largest that it is made of
        self.unpacked: set[int] = set()
        self.changed: set[int] = set()  # by more than their type or scale
        self.signs: set[int] = set()  # computed signs, scaled or not
        self.counted: set[int] = set()
        for node in graph.nodes:
            sources = [self.source(number) for number in node.inputs]
            if node.computes_constants and sources and None not in sources:
                self._add(node, [source for source in sources if source is not None])

    def source(self, number: int) -> int | None:
        """The constant behind a tensor; None if it depends on more than constants."""
        return number if self.tensors[number].values else self.sources.get(number)

    def _add(self, node: Node, sources: list[int]) -> None:
        # A table has a row for every number that the constant which is looked up in it could hold.
        rows, bits = (self.tensors[node.inputs[0]].shape or ())[:1], bits_of(self.tensors[sources[-1]].dtype)
        table = node.looks_up and len(node.inputs) == 2 and bits in (1, 2, 4, 8, 16) and rows == (2**bits,)
        largest = sources[-1] if table else max(sources, key=lambda source: self.tensors[source].stored_bytes)
        for number in node.outputs:
            self.computed[number] = node
            self.sources[number] = largest
            if node.unpacks or table or not self.unpacked.isdisjoint(node.inputs):
                self.unpacked.add(number)
            if not node.keeps_values or not self.changed.isdisjoint(node.inputs):
                self.changed.add(number)
            if (node.signs or node.scales) and self._is_signs(node, number):
                self.signs.add(number)

    def _is_signs(self, node: Node, output: int) -> bool:
        """Whether an op puts out signs, each scaled by what many share."""
        others = node.inputs[1:] if node.signs else [number for number in node.inputs if number not in self.signs]
        counts = [elements(self.tensors[number].shape) for number in others]
        whole = elements(self.tensors[output].shape) or 0
        few = all(count is not None and count * MIN_CHANNEL_WEIGHTS <= whole for count in counts)
        return few and len(counts) < len(node.inputs)

    def op(self, node: Node) -> Op:
        constants = self._first_read(node)
        weights = node.weights if node.known else self._find_weights(node)
        source = self.source(weights.tensor) if weights else None
        bits: int | None = 0
        unknown = not node.known or (weights is not None and weights.convolves)
        binary, dtype, stored = None if unknown else False, "", Tensor("", "", None)
        if weights and source is not None:
            bits, binary = self._weights(weights, source)
            stored = self.tensors[source]
            dtype = self.tensors[weights.tensor].dtype or stored.dtype
        return Op(
            op=node.op,
            name=node.name,
            part=node.part,
            output=self.tensors[node.outputs[0]].port if node.outputs else None,
            channels_in=node.channels_in,
            channels_out=node.channels_out,
            weight_bits=bits,
            weight_dtype=dtype,
            stored_dtype=stored.dtype,
            known=node.known,
            binary=binary,
            packed=bits == 1 and weights is not None and weights.bits == 1,
            convolves=weights is not None and weights.convolves,
            weight_bytes=stored.stored_bytes if source in constants else 0,
            constant_bytes=sum(self.tensors[number].stored_bytes for number in constants),
        )

    def _first_read(self, node: Node) -> set[int]:
        """The constants behind an op that no op before it has read."""
        constants, waiting = set(), list(node.inputs)
        while waiting:
            number = waiting.pop()
            if number not in self.counted and self.source(number) is not None:
                self.counted.add(number)
                if number in self.computed:
                    waiting += self.computed[number].inputs
                else:
                    constants.add(number)
        return constants

    def _find_weights(self, node: Node) -> Weights | None:
        """The constant of an unknown op that looks binary, by its first axis or its last."""
        for number in node.inputs:
            if self.tensors[number].values:
                for axis in (0, -1):
                    if _is_binary(self.tensors[number], axis):
                        return Weights(number, axis, convolves=False)
        return None

    def _weights(self, weights: Weights, source: int) -> tuple[int | None, bool | None]:
        """Bits of each weight in the file, and whether they are binary."""
        if weights.bits:
            return weights.bits, weights.bits == 1
        stored, bits = self.tensors[source], bits_of(self.tensors[source].dtype)
        count, held = elements(self.tensors[weights.tensor].shape), elements(stored.shape)
        if weights.tensor in self.unpacked:  # several weights in each number
            if count is None or held is None or bits is None or count <= held:
                return None, None
            return max(1, round(held * bits / count)), round(held * bits / count) <= 1
        if weights.tensor in self.signs:  # of latent weights, which take their place in the file
            return bits, True
        if weights.tensor not in self.changed:
            return bits, _is_binary(stored, weights.axis)
        return bits if count == held else None, None


@np.errstate(all="ignore")  # damaged files hold numbers that are none
def _is_binary(tensor: Tensor, axis: int) -> bool:
    """Whether weights are ±c with a c for each output channel; or, of whole numbers, two values in all."""
    count = elements(tensor.shape)
    rank = len(tensor.shape or ())
    if count is None or count < MIN_WEIGHTS or not -rank <= axis < rank or tensor.values is None:
        return False
    values = tensor.values()
    if values is None or values.dtype.kind not in "iubf":
        return False
    if values.dtype.kind in "iub":
        low, high = values.min(), values.max()
        return bool(low < high and ((values == low) | (values == high)).all())
    channels: NDArray[Any] = np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1))
    if count // len(channels) < MIN_CHANNEL_WEIGHTS:
        return False
    least, largest = channels.min(1).astype(np.float64), channels.max(1).astype(np.float64)
    one_magnitude = (least > 0) & (largest < np.inf) & (largest - least <= MAGNITUDE_TOLERANCE * largest)
    return bool(one_magnitude.all() and values.min() < 0 < values.max())


def _count_totals(ops: tuple[Op, ...], constants: _Constants, size_bytes: int) -> dict[str, int]:
    """Ops and bytes of a whole file; the five numbers of bytes add up to its size.

    Products are matrix products with constant weights (some files compute convolutions as such); packed are ops whose
    weights take one bit each in the file; undecided are those of which the file does not tell whether they are binary.
    Ops that only compute constants while the file is loaded have no rows. The rest is names, shapes, and all else that
    is no constant.
    """
    totals: dict[str, int] = {}
    known = [op for op in ops if op.known]
    kinds = {
        "convolutions": [op for op in known if op.convolves],
        "products": [op for op in known if op.weight_bits != 0 and not op.convolves],
        "unknown_ops": [op for op in ops if not op.known],
    }
    for name, chosen in kinds.items():
        totals[name] = len(chosen)
        totals[f"binary_{name}"] = sum(op.binary is True for op in chosen)
        totals[f"packed_{name}"] = sum(op.weight_bits == 1 for op in chosen)
        totals[f"undecided_{name}"] = sum(op.binary is None for op in chosen)
    totals["constant_ops"] = len({id(node) for node in constants.computed.values()})
    totals |= dict.fromkeys(("binary_weight_bytes", "float_weight_bytes", "integer_weight_bytes"), 0)
    for op in ops:
        is_float = "float" in op.weight_dtype and op.weight_bits not in (4, 8)  # unless they are dequantised
        kind = "binary" if op.weight_bits == 1 else "float" if is_float else "integer"
        totals[f"{kind}_weight_bytes"] += op.weight_bytes
    constant_bytes = sum(tensor.stored_bytes for tensor in constants.tensors)
    totals["other_constant_bytes"] = constant_bytes - sum(op.weight_bytes for op in ops)
    totals["rest_bytes"] = size_bytes - constant_bytes
    return totals


def _warnings(graph: Graph, ops: tuple[Op, ...]) -> Iterable[str]:
    """A line for each warning, with the names of all ops that it is about."""
    names: dict[tuple[str, str], list[str]] = {}  # by verb and what follows it
    for op in ops:
        if op.binary and not op.packed:
            names.setdefault(("has", _kept_unpacked(op)), []).append(op.name)
    for name in _convolutions_to_bits(graph):
        what = f"out floats that {QUANTIZE} turns into bits again: a threshold in the convolution would save both"
        names.setdefault(("puts", what), []).append(name)
    for op in ops:
        what = ""
        if op.op == "Conv2D" or op.op.startswith("Flex"):
            what = f"{op.op} of TensorFlow: a runtime without TensorFlow's ops does not run it"
        elif op.binary is None and not op.known:
            what = f"{op.op}, an op that dmsflow does not know: whether it is binary is unknown"
        if what:
            names.setdefault(("is", what), []).append(op.name)
    for (verb, what), listed in names.items():
        yield f"{list_names(listed)} {verb if len(listed) == 1 else PLURALS[verb]} {what}"


def _kept_unpacked(op: Op) -> str:
    if op.weight_bits == 1:
        what = f"unpacked by standard ops when the file is loaded and run as {op.weight_dtype or 'larger numbers'}"
        gain = "small on disk, neither smaller in memory nor faster than other weights of that type"
        return f"1-bit weights, {what}: {gain}"
    times = f"{op.weight_bits} times larger than packed, and no faster than any other weights of that type"
    return f"binary weights kept as {op.stored_dtype}: {times}"


def _convolutions_to_bits(graph: Graph) -> Iterable[str]:
    """LCE's convolutions whose floats nothing reads but LceQuantize, through ops that a threshold can take in."""
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for number in node.inputs:
            readers.setdefault(number, []).append(node)
    for node in graph.nodes:
        if node.op != PACKED_CONV or not node.outputs or graph.tensors[node.outputs[0]].dtype == BITS:
            continue
        number, passed = node.outputs[0], set[int]()
        while number not in passed and number not in graph.outputs and len(readers.get(number, ())) == 1:
            passed.add(number)
            (reader,) = readers[number]
            if reader.op == QUANTIZE:
                yield node.name
            others = [graph.tensors[other] for other in reader.inputs if other != number]
            if reader.op in THROUGH and reader.outputs and all(other.values for other in others):
                number = reader.outputs[0]

"""What larq-compute-engine computes, kept as files: the tests hold where it is not installed.

    make witness
    python tests/witnessed.py     writes the files again

Each file of witnessed/ is a list of arrays, compressed. operators.xz has random files of LCE's operators, an input and
the official interpreter's output of each; parts.xz has the same of networks without their float ends, of which every
bit is fixed. networks.xz has integer graphs, images, the .tflite files that the official
converter made of them, and the logits that the interpreter gives for these.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lce_cases
import numpy as np
from msgspec import structs

from dmsflow.deploying import integer_graph
from dmsflow.deploying.exporters import _flatbuffer, lce
from dmsflow.deploying.integer_graph import IntegerGraph
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import _witness

FOLDER = Path(__file__).with_suffix("")
CASES, CHAINS = 220, 12  # random operators, and chains of them, which are larger files
MOST_BYTES, MOST_BYTES_OF_A_CHAIN = 4500, 25_000  # of file and input together, compressed
RANDOM_NETWORKS = 8
PARTS = ("vgg11", "resnet18", "random1", "random5")


@dataclass
class Operators:
    """A random file, its input, and the output of LCE, or of the definition where that is wrong."""

    name: str
    model: bytes
    values: np.ndarray
    expected: np.ndarray


@dataclass
class Converted:
    """An integer graph, images, what the official converter made of it, and its logits in the official interpreter."""

    graph: IntegerGraph
    images: np.ndarray  # uint8 [N, H, W, C]
    model: bytes
    logits: np.ndarray  # float32 [N, classes]


@cache
def operators(name: str = "operators") -> list[Operators]:
    arrays = _read(name)
    groups = zip(*(arrays[part::4] for part in range(4)), strict=True)
    return [Operators(str(name), model.tobytes(), values, expected) for name, model, values, expected in groups]


@cache
def networks() -> dict[str, Converted]:
    """By name."""
    arrays = iter(_read("networks"))
    found = {}
    for name in arrays:
        graph = _read_graph(json.loads(str(next(arrays))), arrays)
        images, model, logits = (next(arrays) for _ in range(3))
        found[str(name)] = Converted(graph, images, model.tobytes(), logits)
    return found


def write_operators(folder: Path, count: int | None = None) -> None:
    """Files for native/check.py, as native/fuzz.py writes them."""
    for number, case in enumerate(operators()[:count]):
        (folder / f"{number}.tflite").write_bytes(case.model)
        np.savez(folder / f"{number}.npz", values=case.values, expected=case.expected, name=case.name)


def _read(name: str) -> list[np.ndarray]:
    content, arrays = io.BytesIO(lzma.decompress((FOLDER / f"{name}.xz").read_bytes())), []
    while (array := _witness.receive(content)) is not None:
        arrays.append(array)
    return arrays


def _write(name: str, arrays: Iterable[Any]) -> None:
    content = io.BytesIO()
    for array in arrays:
        _witness.send(content, np.asarray(array))
    FOLDER.mkdir(exist_ok=True)
    packed = lzma.compress(content.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    (FOLDER / f"{name}.xz").write_bytes(packed)
    print(f"{name}.xz: {len(packed):,} bytes")


def _read_graph(fields: dict[str, Any], arrays: Any) -> IntegerGraph:
    ops = []
    for op in fields.pop("ops"):
        kind = getattr(integer_graph, op.pop("kind"))
        own = {name: next(arrays) for name in op.pop("arrays")}
        own = {name: array[()] if array.ndim == 0 else array for name, array in own.items()}
        ops.append(kind(**{**op, **own, "inputs": tuple(op["inputs"])}))
    return IntegerGraph(**fields, ops=tuple(ops))


def _graph_arrays(graph: IntegerGraph) -> list[Any]:
    """The JSON of a graph, and the arrays that it names, in order."""
    ops, arrays = [], []
    for op in graph.ops:
        fields = structs.asdict(op)
        own = {name: value for name, value in fields.items() if isinstance(value, np.ndarray | np.generic)}
        plain = {name: value for name, value in fields.items() if name not in own}
        ops.append({"kind": type(op).__name__, **plain, "arrays": list(own)})
        arrays += own.values()
    return [json.dumps({**structs.asdict(graph), "ops": ops}), *arrays]


def exact_part(model: bytes) -> tuple[bytes, tuple[int, ...]]:
    """The same network behind its float convolution up to its last binary one, and its input's shape.

    What is cut off are sums of floats, whose last bits depend on the runtime.
    """
    fields = tflite.parse_model(model)
    graph = fields["subgraphs"][0]
    names = [
        code.get("custom_code") or tflite.OPERATORS[code.get("builtin_code", 0)] for code in fields["operator_codes"]
    ]
    kinds = [names[operator.get("opcode_index", 0)] for operator in graph["operators"]]
    stem, last = kinds.index(lce.FLOAT_CONV), len(kinds) - 1 - kinds[::-1].index(lce.PACKED_CONV)
    graph["inputs"], graph["outputs"] = graph["operators"][stem]["outputs"], graph["operators"][last]["outputs"]
    graph["operators"] = graph["operators"][stem + 1 : last + 1]
    return _flatbuffer.dumps(fields), tuple(graph["tensors"][graph["inputs"][0]]["shape"])


# --- writing ------------------------------------------------------------------------------------------


def _freeze_operators() -> None:
    single, chains = list[Any](), list[Any]()
    seed = 0
    while len(single) < 4 * CASES or len(chains) < 4 * CHAINS:
        case = lce_cases.random_case(np.random.default_rng(seed))
        model = case.graph.dumps()
        kept, most, count = single, MOST_BYTES, CASES
        if case.name == "chain":
            kept, most, count = chains, MOST_BYTES_OF_A_CHAIN, CHAINS
        if len(kept) < 4 * count and len(lzma.compress(model + case.values.tobytes())) < most:
            kept += [f"{case.name}, seed {seed}", np.frombuffer(model, np.uint8), case.values, lce_cases.expected(case)]
        seed += 1
    _write("operators", single + chains)


def _freeze_parts() -> None:
    random, arrays = np.random.default_rng(0), list[Any]()
    for name in PARTS:
        whole = _flatbuffer.dumps(lce.LceWriter(networks()[name].graph).model())
        model, shape = exact_part(whole)
        values = np.rint(random.normal(scale=4, size=shape)).astype(np.float32)
        arrays += [name, np.frombuffer(model, np.uint8), values, lce_cases.run_lce(model, values)]
    _write("parts", arrays)


def _freeze_networks() -> None:
    sys.path.insert(0, str(FOLDER.parent / "deploying"))
    import test_agreement
    import test_official

    made = test_official.forms() | test_agreement.forms(RANDOM_NETWORKS)
    arrays: list[Any] = []
    for (name, (graph, images)), model in zip(made.items(), test_official.converted(made), strict=True):
        logits = test_official.run_lce(model, images)
        arrays += [name, *_graph_arrays(graph), images, np.frombuffer(model, np.uint8), logits]
    _write("networks", arrays)


if __name__ == "__main__":
    _freeze_operators()
    _freeze_networks()
    _freeze_parts()

"""What is in a model file, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import msgspec

from dmsflow.files import hash_file
from dmsflow.manifest import Manifest
from dmsflow.modelfile.reader import ModelFile, Op, Port
from dmsflow.terminal import print_table

LONGEST_NAME = 40  # of an op; the end of a name tells more than its beginning
HEAD = ("op", "name", "puts out", "type", "in", "out", "weight bits", "bytes of constants")


def as_json(found: ModelFile) -> str:
    """What `print_model` prints, as one JSON object."""
    exported = _exported(Path(found.path))
    content = {**msgspec.to_builtins(found), **({"exported": exported} if exported else {})}
    return msgspec.json.format(msgspec.json.encode(content), indent=1).decode()


def print_model(found: ModelFile, stream: TextIO) -> None:
    """Print what the file is, its ops in order, its bytes by kind, and what is binary in vain."""
    rows = [("size", f"{found.size_bytes:,} bytes"), *found.about.items()]
    if exported := _exported(Path(found.path)):
        rows.append(("exported", exported))
    rows += [("input", _spelled(port)) for port in found.inputs]
    rows += [("output", _spelled(port)) for port in found.outputs]
    widths = " ".join("?" if width is None else str(width) for width in found.widths)
    rows.append(("widths", widths or "no op has weights"))
    print_table(found.path, (), rows, stream=stream)
    for part in dict.fromkeys(op.part for op in found.ops):
        ops = [_row(op) for op in found.ops if op.part == part]
        print_table(f"ops of {part}, {len(ops)}", HEAD, ops, stream=stream)
    print_table("bytes", (), _totals(found), stream=stream)
    for warning in found.warnings:
        print(warning, file=stream)


def _row(op: Op) -> tuple[object, ...]:
    name = op.name if len(op.name) <= LONGEST_NAME else f"…{op.name[1 - LONGEST_NAME :]}"
    shape, dtype = (_shape(op.output), op.output.dtype or None) if op.output else (None, None)
    bits = "?" if op.weight_bits is None else op.weight_bits or None
    bits = f"{bits} (binary)" if op.binary and op.weight_bits != 1 else bits
    constants = f"{op.constant_bytes:,}" if op.constant_bytes else None
    return op.op, name, shape, dtype, op.channels_in, op.channels_out, bits, constants


def _totals(found: ModelFile) -> list[tuple[str, str]]:
    totals = found.totals
    rows = [
        ("convolutions", _binary(totals.convolutions, totals.binary_convolutions, totals.packed_convolutions)),
        ("matrix products", _binary(totals.products, totals.binary_products, totals.packed_products)),
        ("packed weights", f"{totals.binary_weight_bytes:,} bytes"),
        ("float weights", f"{totals.float_weight_bytes:,} bytes"),
        ("integer weights", f"{totals.integer_weight_bytes:,} bytes" if totals.integer_weight_bytes else ""),
        ("other constants", f"{totals.other_constant_bytes:,} bytes"),
        ("the rest", f"{totals.rest_bytes:,} bytes"),
        ("ops on constants", f"{totals.constant_ops}, done as the file is loaded" if totals.constant_ops else ""),
    ]
    return [row for row in rows if row[1]]


def _binary(count: int, binary: int, packed: int) -> str:
    told = f"{count}, {binary or 'none'} of them binary"
    return f"{told}, {packed or 'none'} packed to 1 bit in the file" if binary else told


def _spelled(port: Port) -> str:
    return " ".join(filter(None, (port.name, port.dtype, _shape(port))))


def _shape(port: Port) -> str | None:
    """`1×32×32×3`; a length that the file leaves open is its name or a question mark."""
    if port.shape is None:
        return None
    return "×".join("?" if length is None else str(length) for length in port.shape) or "a number"


def _exported(path: Path) -> str | None:
    """The manifest beside a file that says it wrote it, if it did."""
    beside = path.parent / "export.json"
    try:
        found = msgspec.json.decode(beside.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):  # none there, or not of this program
        return None
    model = found.artifacts.get("model")
    if model is None or model.path != path.name:
        return None
    return str(beside) if hash_file(path) == model.sha256 else f"{beside}, but changed since"

"""What is in a model file, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import msgspec

from dmsflow.files import hash_file, read_bytes
from dmsflow.manifest import Manifest
from dmsflow.modelfile.inputs import format_shape
from dmsflow.modelfile.summary import ModelFile
from dmsflow.terminal import print_table

LONGEST_NAME = 40  # of an op; the end of a name says more than its beginning
HEAD = ("op", "name", "puts out", "type", "in", "out", "weight bits", "bytes of constants")


def format_json(model: ModelFile) -> str:
    """What `print_model` prints, as one JSON object."""
    exported = _find_export(Path(model.path))
    content = {**msgspec.to_builtins(model), **({"exported": exported} if exported else {})}
    return msgspec.json.format(msgspec.json.encode(content), indent=1).decode()


def print_model(model: ModelFile, stream: TextIO) -> None:
    """Print what the file is, its ops in order, its totals, and what is binary but not packed."""
    rows = [("size", f"{model.size_bytes:,} bytes"), *model.about.items()]
    if exported := _find_export(Path(model.path)):
        rows.append(("exported", exported))
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        rows += [(kind, str(port)) for port in ports]
    widths = " ".join("?" if width is None else str(width) for width in model.widths)
    rows.append(("widths", widths or "no op has weights"))
    print_table(model.path, (), rows, stream=stream)
    parts: dict[str, list[tuple[object, ...]]] = {}
    for op in model.ops:
        name = op.name if len(op.name) <= LONGEST_NAME else f"…{op.name[1 - LONGEST_NAME :]}"
        shape, dtype = (format_shape(op.output.shape), op.output.dtype or None) if op.output else (None, None)
        bits = "?" if op.weight_bits is None or op.binary is None else op.weight_bits or None
        bits = f"{bits} (binary)" if op.binary and op.weight_bits != 1 else bits
        constants = f"{op.constant_bytes:,}" if op.constant_bytes else None
        row = (op.op, name, shape, dtype, op.channels_in, op.channels_out, bits, constants)
        parts.setdefault(op.part, []).append(row)
    for part, ops in parts.items():
        print_table(f"ops of {part}, {len(ops)}", HEAD, ops, stream=stream)
    counts = [(name.replace("_", " "), f"{count:,}") for name, count in model.totals.items() if count]
    print_table("totals", (), counts, stream=stream)
    for warning in model.warnings:
        print(warning, file=stream)


def _find_export(path: Path) -> str | None:
    """The manifest beside a file that says it wrote it, if it did."""
    beside = path.parent / "export.json"
    try:
        written = msgspec.json.decode(read_bytes(beside), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):  # none there, or not of this program
        return None
    model = written.artifacts.get("model")
    if model is None or model.path != path.name:
        return None
    return str(beside) if hash_file(path) == model.sha256 else f"{beside}, but changed since"

"""Damage to files, of bytes and of values; and manifests whose hashes are right again after it."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from functools import partial
from pathlib import Path
from typing import Any

import flatbuffers
from flatbuffers import flexbuffers

NUMBERS = (0, 1, 4, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF8)
EDGES = (
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 127, 128, -128, 255, 256, 257, 999, 4096, 32767, 65535),
    *(65536, 65537, 2**20, 2**24, 2**28, 2**30, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1),
)
STAGES = ("search", "train", "export", "bench")
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**30, 1e-300, 1e308, -0.5, 0.1),
    *("", " ", "x", "0", "../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "\x1b[31mred", "<b>x</b>", "a\nb", "\0"),
    *("\u202e", "é" * 300, "a" * 100_000, "[red]x[/red]", "%s{}", "x.py", "image-folder:/", "arrays:/dev/zero"),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, {"a": {"a": {"a": []}}}),
)


def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    """The content with one kind of damage, at one to four places."""
    if len(content) < 32:
        return chance.randbytes(chance.randrange(64))
    data = bytearray(content)
    kind = chance.randrange(9)
    if kind == 0:  # a cut
        ends = (chance.randrange(64), chance.randrange(len(data)), len(data) - 1 - chance.randrange(64))
        return bytes(data[: chance.choice(ends)])
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(max(1, len(data) - 16))
        four = at // 4 * 4
        if kind == 1:
            data[at] = chance.randrange(256)
        elif kind == 2:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 3:  # an offset or a length
            data[four : four + 4] = struct.pack("<I", chance.choice(NUMBERS))
        elif kind == 4:  # two offsets change places
            other = chance.randrange(max(1, len(data) - 16)) // 4 * 4
            data[four : four + 4], data[other : other + 4] = data[other : other + 4], data[four : four + 4]
        elif kind == 5:  # a huge length of protobuf
            data[at : at + 5] = b"\xff" * chance.randrange(1, 5) + b"\x7f"
        elif kind == 6:
            data[at : at + chance.randrange(1, 64)] = b""
        elif kind == 7:
            data[at:at] = data[at : at + chance.randrange(1, 64)]
        else:
            data[at : at + 8] = chance.randbytes(8)
    return bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of nested lists and dictionaries."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in items for place in ((value, key), *_places(each))]


def _hostile(chance: random.Random) -> Any:
    """A value of its own: what a later change does to it is in no other."""
    return copy.deepcopy(chance.choice(HOSTILE))


def damage_values(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to three places of it changed."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        places = _places(value)
        if not places:
            return _hostile(chance)
        container, key = chance.choice(places)
        kind, old = chance.randrange(8), container[key]
        if kind == 0:
            del container[key]
        elif kind == 1:
            other, place = chance.choice(places)
            container[key] = json.loads(json.dumps(other[place]))
        elif kind == 2 and isinstance(container, list):
            container.append(old)
        elif kind == 2:
            container[f"{key}2"] = old
        elif kind == 3 and isinstance(old, int | float):
            container[key] = chance.choice((-old, old + 1, old * 1000, old / 3, float(old), str(old)))
        elif kind == 4 and isinstance(old, list | str):
            container[key] = old[: len(old) // 2]
        else:
            container[key] = _hostile(chance)
    return value


def damage_json(content: bytes, chance: random.Random) -> bytes:
    """Values in three of four cases, for what is no JSON is refused at once."""
    if chance.randrange(4) == 0:
        return damage_bytes(content, chance)
    return json.dumps(damage_values(json.loads(content), chance), ensure_ascii=bool(chance.randrange(2))).encode()


def damage_lines(content: bytes, chance: random.Random) -> bytes:
    """One line of JSON lines."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = damage_json(lines[at], chance)
    return b"\n".join(lines) + b"\n"


def damage_toml(content: bytes, chance: random.Random) -> bytes:
    """A value, which stays TOML in most cases, or bytes."""
    lines = content.splitlines()
    valued = [number for number, line in enumerate(lines) if b"=" in line]
    if not valued or chance.randrange(4) == 0:
        return damage_bytes(content, chance)
    at = chance.choice(valued)
    name, _, _ = lines[at].partition(b"=")
    value = json.dumps(chance.choice([each for each in HOSTILE if each is not None]))
    lines[at] = name + b"= " + value.encode()
    return b"\n".join(lines) + b"\n"


def damage_safetensors(content: bytes, chance: random.Random) -> bytes:
    """The header's values, the tensors' numbers, or bytes; a checkpoint's hash is right again in some cases."""
    if chance.randrange(3) == 0:
        return damage_bytes(content, chance)
    length = struct.unpack("<Q", content[:8])[0]
    header, tensors = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    meta = header.get("__metadata__", {})
    kind = chance.randrange(4)
    if kind == 0 and "facts" in meta:
        meta["facts"] = json.dumps(damage_values(json.loads(meta["facts"]), chance))
    elif kind == 1:
        at = chance.randrange(len(tensors)) // 4 * 4
        tensors[at : at + 4] = struct.pack("<f", chance.choice((float("nan"), float("inf"), -1.0, 3e38, 0.0, 1e-40)))
    elif kind == 2:
        first, second = chance.choices([name for name in header if name != "__metadata__"], k=2)
        header[first], header[second] = header[second], header[first]
    else:
        header = damage_values(header, chance)
    header = _hashed(header, bytes(tensors)) if "facts" in meta else header
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def _hashed(header: Any, tensors: bytes) -> Any:
    """A checkpoint's header with the hash that `dmsflow.training.checkpoint` computes, where it has the form of one."""
    kinds = {"F32": "float32", "I64": "int64", "U8": "uint8", "F64": "float64"}
    try:
        facts = header["__metadata__"]["facts"]
        digest = hashlib.sha256(facts.encode())
        for name, each in sorted((name, each) for name, each in header.items() if name != "__metadata__"):
            digest.update(f"{name} torch.{kinds[each['dtype']]} {tuple(each['shape'])}".encode())
            digest.update(tensors[slice(*each["data_offsets"])])
        header["__metadata__"]["sha256"] = digest.hexdigest()
    except (LookupError, TypeError, AttributeError):
        pass
    return header


def repair(folder: Path) -> None:
    """Make the hashes in the manifests of a folder those of the files that lie there, from the search on."""
    for stage in STAGES:
        path = folder / f"{stage}.json"
        try:
            content = json.loads(path.read_bytes())
            for each in [content.get("parent"), *content["artifacts"].values()]:
                file = folder / each["path"] if each else path
                if each and file.is_file():
                    each |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size_bytes": file.stat().st_size}
            path.write_text(json.dumps(content))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # what is no longer a manifest stays as it is


# --- the tables of a .tflite file -----------------------------------------------------------------------------


def damage_structure(content: bytes, chance: random.Random) -> bytes:
    """A .tflite file with one to three fields of its tables changed, so that it is wrong but can be read; sometimes bytes."""
    from ai_edge_litert import schema_py_generated as schema

    if chance.randrange(6) == 0:
        return damage_bytes(content, chance)
    unchanged = _packed(schema.ModelT.InitFromPackedBuf(bytearray(content), 0))
    while True:
        model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            _damage_field(model, chance)
        try:
            damaged = _packed(model)
        except (TypeError, ValueError, AttributeError, struct.error, flatbuffers.builder.OffsetArithmeticError):
            continue  # a number that its field cannot hold
        if damaged != unchanged:
            return damaged


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _fields(table: Any) -> list[tuple[str, Any, Any]]:
    """Every value below a table of LiteRT's schema: its field, what holds it, and its name or place there."""
    found = []
    for name, value in vars(table).items():
        if hasattr(value, "tolist") and len(value) < 64:  # longer ones are weights
            value = value.tolist()
            setattr(table, name, value)
        label = f"{type(table).__name__}.{name}"
        found.append((label, table, name))
        for place, each in enumerate(value if isinstance(value, list) else ()):
            found.append((f"{label}[]", value, place))
            found += _fields(each) if hasattr(each, "Pack") else ()
        found += _fields(value) if hasattr(value, "Pack") else ()
    return found


def _value(holder: Any, key: Any) -> Any:
    return holder[key] if isinstance(holder, list) else getattr(holder, key)


def _damage_field(model: Any, chance: random.Random) -> None:
    found = _fields(model)
    labels = sorted({label for label, holder, key in found if _value(holder, key) is not None})
    deep = [label for label in labels if "Options" in label or label.startswith(("TensorT.shape", "BufferT"))]
    label = chance.choice(deep if deep and chance.randrange(2) else labels)  # half of them in what kernels go by
    alike = [(holder, key) for name, holder, key in found if name == label]
    holder, key = chance.choice(alike)
    write = holder.__setitem__ if isinstance(holder, list) else partial(setattr, holder)
    value = _value(holder, key)
    if chance.randrange(4) == 0:  # that of another table
        write(key, _value(*chance.choice(alike)))
    elif isinstance(holder, list) and chance.randrange(4) == 0:
        holder[key : key + 1] = [value, value] if chance.randrange(2) else []
    elif label == "OperatorT.customOptions" and value is not None and chance.randrange(4):
        write(key, _damaged_options(bytes(value), chance))
    elif isinstance(value, bool):
        write(key, not value)
    elif isinstance(value, int):
        write(key, chance.choice((*EDGES, value + 1, value - 1, 2 * value, -value, value + 256)))
    elif isinstance(value, float):
        write(key, chance.choice((0.0, -1.0, float("nan"), float("inf"), 1e-45, 3e38, -3e38, 2 * value)))
    elif value is not None and hasattr(value, "__len__"):
        length = chance.choice((0, 1, len(value) // 2, len(value) - 1, len(value)))
        write(key, chance.choice((value[:length], value[length:], None)))
    else:
        write(key, None)


def _damaged_options(content: bytes, chance: random.Random) -> list[int]:
    """The options of a custom operator, a FlexBuffer: a number in them, a name, or bytes."""
    try:
        fields = flexbuffers.Loads(content)
        name = chance.choice(sorted(fields))
    except (ValueError, TypeError, IndexError, struct.error):
        return list(damage_bytes(content, chance))
    value = fields.pop(name)
    kind = chance.randrange(8)
    if kind > 1:
        fields[name] = chance.choice(EDGES if isinstance(value, int) else HOSTILE[:20])
    elif kind == 1:
        fields[name[:-1] + "x"] = value
    return list(flexbuffers.Dumps(fields))

"""Files that are no models, and damaged ones: one line each, and never more time or memory than a file is worth."""

from __future__ import annotations

import random
import struct
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from made_up import MEAN, STD, small_network, trained
from mutation import damage_bytes
from onnx import TensorProto, helper
from test_read import bconv, foreign_onnx, foreign_tflite

from dmsflow import cli
from dmsflow.deploying import folding
from dmsflow.deploying.exporters import _flatbuffer, lce
from dmsflow.deploying.exporters import onnx as onnx_exporter
from dmsflow.errors import DmsflowError
from dmsflow.modelfile import reader


def line_of(error):
    """The error of one file, held to the form of them all."""
    text = str(error)
    where, _, rest = text.partition(": ")
    assert "\n" not in text and where.endswith((".tflite", ".onnx")) and rest.count("; ") >= 1 and len(text) < 600
    assert text.isprintable()
    return text


def seeds(folder):
    """Small files of every kind: (suffix, content). Narrow ones: damage is to hit what describes the graph."""
    network = small_network(1)
    widths = dict.fromkeys(network.widths, 3)
    form = folding.fold(network, widths, trained(network, widths), MEAN, STD)
    lce.write(form, folder / "seed.tflite")
    yield ".tflite", (folder / "seed.tflite").read_bytes()
    yield ".tflite", foreign_tflite()
    yield ".tflite", _flatbuffer.dumps(bconv([(3, True), (1, False)]))
    onnx_exporter.write(form, folder / "seed.onnx")
    yield ".onnx", (folder / "seed.onnx").read_bytes()
    yield ".onnx", foreign_onnx().SerializeToString()


def test_damaged_files_end_in_one_line(tmp_path):
    """No other exception, and no case that takes long; bytes that still make a file are accounted for to the last."""
    chance = random.Random(6)
    counts = {suffix: [0, 0] for suffix in reader.FORMATS}
    kept = list(seeds(tmp_path))
    for suffix, content in kept:
        assert reader.parse_model_file(Path(f"seed{suffix}"), content)
        for index in range(3000 // len(kept)):
            damaged = damage_bytes(content, chance)
            print(suffix, index, len(damaged))
            start = time.process_time()
            try:
                msgspec.json.encode(reader.parse_model_file(Path(f"case{suffix}"), damaged))
                counts[suffix][0] += 1
            except DmsflowError as error:
                line_of(error)
                counts[suffix][1] += 1
            assert time.process_time() - start < 2
    print(counts)
    for whole, refused in counts.values():
        assert min(whole, refused) > 100  # both ends of the test are reached


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_every_cut_is_refused(tmp_path, suffix):
    content = next(content for kind, content in seeds(tmp_path) if kind == suffix)
    for length in [*range(80), *range(80, len(content), len(content) // 150), len(content) - 1]:
        with pytest.raises(DmsflowError) as raised:
            reader.parse_model_file(Path(f"cut{suffix}"), content[:length])
        line_of(raised.value)


def png():
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".ONNX"])
@pytest.mark.parametrize("what", ["absent", "folder", "empty", "text", "zip", "png", "random", "json", "other"])
def test_what_is_no_model_file_is_refused(tmp_path, capsys, what, suffix):
    path = tmp_path / f"model{suffix}"
    if what == "folder":
        path.mkdir()
    elif what == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("weights", b"x" * 1000)
    elif what != "absent":
        others = {".tflite": foreign_onnx().SerializeToString(), ".onnx": foreign_tflite()}
        contents = {
            "empty": b"",
            "text": b"TFL3 is not where it should be\n" * 9,
            "png": png(),
            "json": b'{"stage": "export"}',
            "random": random.Random(0).randbytes(5000),
            "other": others[suffix.lower()],
        }
        path.write_bytes(contents[what])
    assert cli.main(["show", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"dmsflow: {path}: ") and captured.err.count("; ") == 1


def varint(value):
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def deep(levels):
    """A graph in an attribute of a node of a graph, and so on."""
    content = b""
    for _ in range(levels):
        content = field(1, field(5, field(6, content)))
    return b"\x08\x08" + field(7, content) + field(8, b"\x10\x12")


def many(content):
    return b"\x08\x08" + field(7, content) + field(8, b"\x10\x12")


def shared_tables(count):
    """A .tflite file with `count` subgraphs that are all one table, with `count` tensors that are all one."""
    part = 44 + 4 * count
    last = part + 12 + 4 * count
    data = struct.pack("<I4s", 32, b"TFL3")
    data += struct.pack("<7H2x", 14, 8, 0, 0, 4, 0, 0)  # the layout of a Model that has subgraphs alone
    data += struct.pack("<3H2x", 6, 8, 4)  # and of a SubGraph with tensors
    data += struct.pack("<iI", 32 - 8, 4) + struct.pack("<I", count)
    data += np.arange(part - 44, 0, -4, "<u4").tobytes()
    data += struct.pack("<iI", part - 24, 4) + struct.pack("<I", count)
    data += np.arange(last + 4 - (part + 12), 4, -4, "<u4").tobytes()
    return data + struct.pack("<2Hi", 4, 4, 4)


@pytest.mark.parametrize("count", [3, 5000])
def test_one_table_is_not_read_as_often_as_a_file_likes(tmp_path, count):
    path = tmp_path / "model.tflite"
    path.write_bytes(shared_tables(count))
    tracemalloc.start()
    with pytest.raises(DmsflowError) as raised:
        reader.read_model_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ("a tensor without its buffer" if count == 3 else "it describes more data than it has") in line_of(
        raised.value
    )
    assert peak < 100 * path.stat().st_size + (1 << 20)


UNDECODED = "is not a complete .onnx file (protobuf cannot decode it); get a complete copy of it"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (deep(60), UNDECODED),
        (deep(5000), UNDECODED),
        (many(field(5, field(1, b"\x01" * 2000) + b"\x10\x01")), "a shape of too many lengths"),
        (many(field(5, field(1, varint(1 << 40) * 3) + b"\x10\x01" + field(9, b"1234"))), "does not fit its shape"),
        (many(field(5, b"\x10\x63")), "is of type 99"),
        (many(field(5, field(1, varint(1 << 41) + b"\x00") + b"\x10\x01")), "a shape with a negative or a huge length"),
        (many(field(1, field(1, b"lost"))), "lost is read before it is written"),
        (many(field(1, field(1, b"\xff"))), "\ufffd is read before it is written"),
        (many(field(1, field(2, b"y")) * 2), "y is written twice"),
        (many(field(12, field(1, b"y"))), "y is read before it is written"),
        (b"\x08\x08" + field(7, b""), "it has no format version, no op set, or no graph"),
        (b"\x0a\x08", UNDECODED),
        (field(1, b"12345678"), "it has no format version, no op set, or no graph"),
        (b"\x08" + b"\xff" * 30, UNDECODED),
        (b"\x0b", UNDECODED),
    ],
)
def test_onnx_files_that_are_none(tmp_path, content, what):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(DmsflowError) as raised:
        reader.read_model_file(path)
    assert what in line_of(raised.value)


def test_functions_that_call_each_other_take_no_time(tmp_path):
    """Each calls the one before it twice: whoever follows all calls has 2 to the 40th."""
    functions = [
        helper.make_function(
            "own",
            f"f{level}",
            ["x"],
            ["y"],
            [
                helper.make_node(f"f{level - 1}" if level else "Relu", [before], [after], domain="own" if level else "")
                for before, after in (("x", "m"), ("m", "y"))
            ],
            [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
        )
        for level in range(40)
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("f39", ["x"], ["y"], domain="own")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    start = time.process_time()
    found = reader.parse_model_file(tmp_path / "model.onnx", model.SerializeToString())
    assert time.process_time() - start < 2
    assert len(found.ops) == 1 + 2 * 40


def test_without_onnx_one_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(foreign_onnx().SerializeToString())
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main(["show", str(path)]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "dmsflow: onnx: is not installed; pip install 'dmsflow[onnx]'\n")


@pytest.mark.parametrize(
    ("inputs", "outputs", "op", "attributes", "what"),
    [
        (["x"], [], "MaxPool", {}, None),
        ([], ["y"], "MaxPool", {}, None),
        (["", "x"], ["y"], "PRelu", {}, None),
        (["x", "w"], ["y"], "Conv", {"group": 1 << 62}, "has 4611686018427387904 groups"),
        (["x", "w"], ["y"], "Conv", {"group": 0}, "has 0 groups"),
        (["x", "w"], ["y"], "Conv", {"strides": [0, 0]}, None),
    ],
)
def test_onnx_nodes_that_make_no_sense(tmp_path, inputs, outputs, op, attributes, what):
    """They are listed as they are, or refused; onnx's inference of shapes gives up on them."""
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])
    weights = helper.make_tensor("w", TensorProto.FLOAT, (2, 4, 1, 1), [1.0] * 8)
    graph = helper.make_graph([helper.make_node(op, inputs, outputs, **attributes)], "g", [info], [], [weights])
    content = helper.make_model(graph).SerializeToString()
    if what is None:
        (only,) = reader.parse_model_file(tmp_path / "model.onnx", content).ops
        assert only.op == op and msgspec.json.encode(only)
    else:
        with pytest.raises(DmsflowError) as raised:
            reader.parse_model_file(tmp_path / "model.onnx", content)
        assert what in line_of(raised.value)

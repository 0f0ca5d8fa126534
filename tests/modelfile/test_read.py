"""Model files read back: those that dmsflow writes, and those that others write."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from made_up import MEAN, STD, odd_widths, small_network, trained
from onnx import TensorProto, helper, numpy_helper

from dmsflow import cli, manifest
from dmsflow.deploying import folding, integer_graph
from dmsflow.deploying.exporters import _flatbuffer, lce
from dmsflow.deploying.exporters import onnx as onnx_exporter
from dmsflow.files import describe_artifact
from dmsflow.manifest import save_manifest
from dmsflow.modelfile import onnx_reader, reader, tflite
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.settings import Data

SIGNS = np.where(np.random.default_rng(0).random((8, 4, 3, 3)) < 0.5, -1, 1).astype(np.float32)  # [out, in, k, k]


def vgg_form():
    network = vgg11.build(3, 32, 10)
    widths = odd_widths(network, 0)
    return folding.fold(network, widths, trained(network, widths), MEAN, STD)


def written(folder, exporter, suffix, **options):
    path = folder / f"model{suffix}"
    exporter.write(vgg_form(), path, **options)
    return path


def sums_up(found):
    totals = found.totals
    parts = sum(
        totals[f"{kind}_bytes"] for kind in ("binary_weight", "float_weight", "integer_weight", "other_constant")
    )
    return parts + totals["rest_bytes"] == found.size_bytes and totals["rest_bytes"] > 0


def layer_widths(form):
    """Output channels of all layers with weights."""
    return [
        len(op.weight)
        for op in form.ops
        if isinstance(op, (integer_graph.Stem, integer_graph.BinaryConv, integer_graph.Dense))
    ]


# --- files of dmsflow's own -------------------------------------------------------------------------


def test_an_lce_file_tells_its_ops_widths_and_bytes(tmp_path):
    form = vgg_form()
    found = reader.read_model_file(written(tmp_path, lce, ".tflite"))
    assert found.about["description"] == "vgg11, written by dmsflow"
    assert [(port.name, port.dtype, port.shape) for port in (*found.inputs, *found.outputs)] == [
        ("input", "float32", (1, 32, 32, 3)),
        ("dense", "float32", (1, 10)),
    ]
    assert dict(Counter(op.op for op in found.ops)) == lce.count_ops(Path(found.path))
    assert list(found.widths) == layer_widths(form)
    binary = [op for op in found.ops if op.binary]
    assert [op.name for op in binary] == [f"conv{index}" for index in range(1, 8)]
    ideal = [
        np.prod(one.weight.shape[:3]) * -(-one.weight.shape[3] // 32) * 4
        for one in form.ops
        if isinstance(one, integer_graph.BinaryConv)
    ]
    assert [(op.weight_bits, op.packed, op.weight_bytes) for op in binary] == [(1, True, size) for size in ideal]
    assert all(op.channels_in == before for op, before in zip(binary, found.widths, strict=False))
    dense = found.ops[-1]
    assert (dense.weight_bits, dense.channels_in, dense.channels_out) == (32, found.widths[-2], 10)
    totals = found.totals
    assert [totals[name] for name in ("convolutions", "binary_convolutions", "packed_convolutions")] == [8, 7, 7]
    assert totals["binary_weight_bytes"] == sum(ideal)
    assert totals["float_weight_bytes"] == sum(op.weight.size * 4 for op in (form.ops[0], form.ops[-1]))
    assert sums_up(found)
    assert not found.warnings


def test_resnet_s_channels_go_through_packed_pads(tmp_path):
    network = resnet18.build(3, 32, 10)
    widths = odd_widths(network, 1)
    form = folding.fold(network, widths, trained(network, widths), MEAN, STD)
    lce.write(form, tmp_path / "model.tflite")
    found = reader.read_model_file(tmp_path / "model.tflite")
    assert list(found.widths) == layer_widths(form)
    pads = [op for op in found.ops if op.op == "PAD"]
    assert pads and all(op.channels_in == op.channels_out and op.channels_in in widths.values() for op in pads)
    assert not found.warnings and sums_up(found)


def test_an_onnx_file_tells_that_its_weights_are_unpacked(tmp_path):
    form = vgg_form()
    found = reader.read_model_file(written(tmp_path, onnx_exporter, ".onnx"))
    assert found.about["producer"] == "dmsflow" and "ai.onnx 18" in found.about["format"]
    assert list(found.widths) == layer_widths(form)
    binary = [op for op in found.ops if op.binary]
    assert len(binary) == 7 and {op.weight_bits for op in binary} == {1} and not any(op.packed for op in binary)
    for op, layer in zip(binary, (one for one in form.ops if isinstance(one, integer_graph.BinaryConv)), strict=True):
        assert op.weight_bytes == -(-layer.weight.size // 8)
    assert {"BitShift", "BitwiseAnd", "Reshape"} <= {node.op_type for node in onnx.load(found.path).graph.node}
    assert not {"BitShift", "BitwiseAnd"} & {op.op for op in found.ops}
    assert found.totals["constant_ops"] >= 7 * 5
    assert sums_up(found)
    assert all("unpacked by standard ops when the file is loaded and run as" in line for line in found.warnings)
    assert len(found.warnings) == len({op.weight_dtype for op in binary})


@pytest.mark.parametrize("seed", range(6))
def test_shapes_are_those_that_onnx_infers(tmp_path, seed):
    network = small_network(seed)
    form = folding.fold(network, network.widths, trained(network, network.widths, seed), MEAN, STD)
    path = tmp_path / "model.onnx"
    onnx_exporter.write(form, path)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    expected = {
        info.name: (
            onnx_reader.TYPES[info.type.tensor_type.elem_type],
            tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim),
        )
        for info in (*inferred.value_info, *inferred.output)
    }
    ops = reader.read_model_file(path).ops
    assert len(ops) > 5
    for op in ops:
        assert (op.output.dtype, op.output.shape) == expected[op.output.name], op


def test_show_prints_a_model_and_gives_it_as_json(tmp_path, capsys):
    path = written(tmp_path, lce, ".tflite")
    assert cli.main(["show", str(path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == str(path)
    assert f"size {path.stat().st_size:,} bytes" in lines
    assert "input input float32 1×32×32×3" in lines and "output dense float32 1×10" in lines
    found = reader.read_model_file(path)
    assert "widths " + " ".join(map(str, found.widths)) in lines
    assert {"convolutions 8", "binary convolutions 7", "packed convolutions 7"} <= set(lines)
    conv7 = next(op for op in found.ops if op.name == "conv7")
    told = f"LceBconv2d conv7 1×2×2×{conv7.channels_out} float32 {conv7.channels_in} {conv7.channels_out} 1 {conv7.constant_bytes:,}"
    assert told in lines
    assert cli.main(["show", "--json", str(path)]) == 0
    content = json.loads(capsys.readouterr().out)
    assert msgspec.convert(content, reader.ModelFile) == found
    assert content["ops"][-1]["name"] == "dense" and content["totals"]["packed_convolutions"] == 7


def test_the_manifest_beside_a_file_is_named(tmp_path, capsys):
    network = vgg11.build(3, 32, 10)
    model = written(tmp_path, lce, ".tflite")
    made = save_manifest(
        tmp_path / "export.json",
        manifest.Manifest(
            stage="export",
            command=("dmsflow",),
            settings={},
            network=network,
            widths=network.widths,
            data=Data(),
            artifacts={"model": describe_artifact(model, tmp_path)},
            metrics={},
            environment={},
        ),
    )
    assert cli.main(["show", str(model)]) == 0
    assert "exported" in capsys.readouterr().out
    assert told_export(model, capsys) == str(made)
    model.write_bytes(model.read_bytes() + bytes(4))
    assert told_export(model, capsys) == f"{made}, but changed since"
    other = model.rename(tmp_path / "other.tflite")
    assert told_export(other, capsys) is None
    made.write_text("{}")
    assert told_export(other, capsys) is None


def told_export(path, capsys):
    assert cli.main(["show", "--json", str(path)]) == 0
    return json.loads(capsys.readouterr().out).get("exported")


# --- files of others: TFLite ------------------------------------------------------------------------


def tensor(name, shape, kind=0, buffer=0, **more):
    return {"shape": shape, "type": kind, "buffer": buffer, "name": name, **more}


def foreign_tflite():
    """Quantised int8 convolution of ±127, a conv of float32 ±c, unknown ops, a second subgraph, a buffer behind the tables."""
    signs = np.ascontiguousarray(SIGNS.transpose(0, 2, 3, 1))  # [out, k, k, in]
    scales = np.arange(1, 9, dtype=np.float32)[:, None, None, None]
    code = {"version": 1}
    conv = {"builtin_options_type": 1, "builtin_options": {"stride_w": 1, "stride_h": 1}}
    model = {
        "version": 3,
        "operator_codes": [
            {**code, "deprecated_builtin_code": 3, "builtin_code": 3},
            {**code, "deprecated_builtin_code": 32, "builtin_code": 32, "custom_code": "Odd\x1b[31mOp"},
            {**code, "deprecated_builtin_code": 127, "builtin_code": 999},
            {**code, "deprecated_builtin_code": 6, "builtin_code": 6},
            {**code, "deprecated_builtin_code": 119, "builtin_code": 119},
        ],
        "subgraphs": [
            {
                "tensors": [
                    tensor("in", [1, 6, 6, 4], 9, shape_signature=[-1, 6, 6, 4]),
                    tensor("q/weights", [8, 3, 3, 4], 9, 1, quantization={"scale": [0.5], "zero_point": [0]}),
                    tensor("q", [1, 4, 4, 8], 9),
                    tensor("f", [1, 4, 4, 8]),
                    tensor("c/weights", [8, 3, 3, 4], 0, 2),
                    tensor("c", [1, 2, 2, 8]),
                    tensor("h/half", [8, 3, 3, 8], 1, 3),
                    tensor("h/weights", [8, 3, 3, 8]),
                    tensor("h", [1, 2, 2, 8]),
                    tensor("odd", [1, 2, 2, 8]),
                    tensor("new", []),
                ],
                "inputs": [0],
                "outputs": [9],
                "operators": [
                    {"opcode_index": 0, "inputs": [0, 1, -1], "outputs": [2], **conv},
                    {"opcode_index": 3, "inputs": [2], "outputs": [3]},
                    {"opcode_index": 0, "inputs": [3, 4, -1], "outputs": [5], **conv},
                    {"opcode_index": 3, "inputs": [6], "outputs": [7]},
                    {"opcode_index": 0, "inputs": [5, 7, -1], "outputs": [8], **conv},
                    {"opcode_index": 1, "inputs": [8], "outputs": [9]},
                    {"opcode_index": 2, "inputs": [9], "outputs": [10]},
                ],
                "name": "main",
            },
            {
                "tensors": [tensor("i", [2]), tensor("o", [2])],
                "inputs": [0],
                "outputs": [1],
                "operators": [{"opcode_index": 4, "inputs": [0], "outputs": [1]}],
                "name": "body",
            },
        ],
        "description": "made by others",
        "buffers": [
            {},
            {"data": (signs * 127).astype(np.int8).tobytes()},
            {"data": b"", "offset": 1 << 20, "size": signs.nbytes},
            {"data": np.random.default_rng(1).normal(size=(8, 3, 3, 8)).astype(np.float16).tobytes()},
        ],
        "metadata": [{"name": "min_runtime_version", "buffer": 0}],
        "signature_defs": [{"signature_key": "serve", "subgraph_index": 0}],
    }
    model["buffers"][2]["offset"] = len(_flatbuffer.dumps(model))
    return _flatbuffer.dumps(model) + (signs * scales).tobytes()


def read(folder, content, suffix):
    path = folder / f"model{suffix}"
    path.write_bytes(content)
    return reader.read_model_file(path)


def test_a_tflite_file_of_others(tmp_path):
    found = read(tmp_path, foreign_tflite(), ".tflite")
    assert found.about["signatures"] == "serve" and found.about["metadata"] == "min_runtime_version"
    assert found.inputs[0].shape == (None, 6, 6, 4) and found.inputs[0].dtype == "int8"
    assert [(op.part, op.op) for op in found.ops] == [
        ("main", "CONV_2D"),
        ("main", "DEQUANTIZE"),
        ("main", "CONV_2D"),
        ("main", "CONV_2D"),
        ("main", "Odd�[31mOp"),
        ("main", "builtin 999"),
        ("body", "WHILE"),
    ]
    quantised, floats, half = (op for op in found.ops if op.convolves)
    assert (quantised.weight_bits, quantised.binary, quantised.weight_bytes) == (8, True, 288)
    assert (floats.weight_bits, floats.binary, floats.weight_bytes) == (32, True, 4 * 288)
    assert (half.weight_bits, half.binary, half.weight_bytes, half.channels_in) == (16, False, 2 * 576, 8)
    assert found.warnings == (
        "q has binary weights kept as int8: 8 times larger than packed, and no faster than any other weights of that type",
        "c has binary weights kept as float32: 32 times larger than packed, and no faster than any other weights of that type",
        "odd is Odd�[31mOp, an op that dmsflow does not know: whether it is binary is unknown",
        "new is builtin 999, an op that dmsflow does not know: whether it is binary is unknown",
    )
    assert found.totals["integer_weight_bytes"] == 288 and sums_up(found)
    with pytest.raises(tflite.Damaged):  # what only `show` may read: a cut before the buffer's end
        read_bytes = foreign_tflite()[:-1]
        tflite.parse_model(read_bytes, runnable=False)
        reader.tflite_reader._File(read_bytes)


def bconv(tail):
    """LCE's convolution, then ops: each (its code, has a constant)."""
    names = ["LceBconv2d", "LceQuantize"]
    codes = [{"version": 1, "deprecated_builtin_code": 32, "builtin_code": 32, "custom_code": name} for name in names]
    codes += [{"version": 1, "deprecated_builtin_code": code, "builtin_code": code} for code in (0, 18, 17, 1)]
    flat = [1, 4, 4, 8]
    tensors = [tensor("in", [1, 4, 4, 1], 2), tensor("w", [8, 1, 1, 1], 2, 1), tensor("scale", [8], 0, 2)]
    tensors += [tensor("conv", flat)]
    options = dict.fromkeys(("stride_height", "stride_width", "dilation_height_factor", "dilation_width_factor"), 1)
    custom = _flatbuffer.flexible({"channels_in": 20, "padding": 0, "pad_values": 1, **options})
    operators = [{"opcode_index": 0, "inputs": [0, 1, 2, 2, -1], "outputs": [3], "custom_options": custom}]
    for code, constant in tail:
        inputs = [len(tensors) - 1] + ([2] if constant else [])
        packed = code == 1
        tensors.append(tensor(f"t{len(tensors)}", [1, 4, 4, 1] if packed else flat, 2 if packed else 0))
        operators.append({"opcode_index": code, "inputs": inputs, "outputs": [len(tensors) - 1]})
    graph = {"tensors": tensors, "inputs": [0], "outputs": [len(tensors) - 1], "operators": operators, "name": "main"}
    buffers = [{}, {"data": bytes(32)}, {"data": np.ones(8, np.float32).tobytes()}]
    return {"version": 3, "operator_codes": codes, "subgraphs": [graph], "buffers": buffers}


@pytest.mark.parametrize(
    ("tail", "folds"),
    [
        ([(1, False)], True),
        ([(3, True), (2, True), (4, False), (1, False)], True),
        ([(5, False), (1, False)], False),  # an average is no threshold
        ([(2, True)], False),
    ],
)
def test_floats_that_become_bits_again_are_reported(tmp_path, tail, folds):
    found = read(tmp_path, _flatbuffer.dumps(bconv(tail)), ".tflite")
    assert found.ops[0].channels_in == 20
    told = "conv puts out floats that LceQuantize turns into bits again: a threshold in the convolution would save both"
    assert found.warnings == ((told,) if folds else ())


def test_floats_that_others_need_may_become_bits_too(tmp_path):
    model = bconv([(1, False)])
    model["subgraphs"][0]["outputs"].append(3)  # what the convolution puts out is an output of the file
    assert not read(tmp_path, _flatbuffer.dumps(model), ".tflite").warnings


# --- files of others: ONNX --------------------------------------------------------------------------


def foreign_onnx():
    """Constants in every field, Constant nodes, an If with subgraphs, a function, open lengths, older inputs."""
    scales = np.arange(1, 9, dtype=np.float32)[:, None, None, None]
    values = SIGNS * scales
    floats = helper.make_tensor("float_weights", TensorProto.FLOAT, values.shape, values.reshape(-1))  # float_data
    small = helper.make_tensor(
        "int8_weights", TensorProto.INT8, (8, 8, 3, 3), np.random.default_rng(1).integers(-9, 9, 576)
    )  # int32_data
    assert floats.float_data and small.int32_data
    constants = [
        floats,
        small,
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        helper.make_tensor("truth", TensorProto.BOOL, (), [True]),
    ]
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["deq"], ["same"], name=op)],
            name,
            [],
            [helper.make_tensor_value_info("same", TensorProto.FLOAT, None)],
        )
        for op, name in (("Relu", "yes"), ("Neg", "no"))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "float_weights"], ["a"], name="binary", pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["b"]),
        helper.make_node("ConvInteger", ["b", "int8_weights"], ["c"], strides=[2, 2]),
        helper.make_node("Cast", ["c"], ["deq"], to=TensorProto.FLOAT),
        helper.make_node("If", ["truth"], ["d"], then_branch=branch[0], else_branch=branch[1], name="choice"),
        helper.make_node("Constant", [], ["two"], value_floats=[2.0]),
        helper.make_node("Twice", ["deq", "two"], ["e"], domain="own"),
        helper.make_node("com.Unknown", ["e"], ["f"], domain="odd"),
    ]
    graph = helper.make_graph(
        nodes,
        "others",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 9, None]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("f", TensorProto.FLOAT, None),
        ],
        constants,
    )
    twice = helper.make_function(
        "own", "Twice", ["p", "q"], ["r"], [helper.make_node("Mul", ["p", "q"], ["r"])], [helper.make_opsetid("", 18)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1), helper.make_opsetid("odd", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="others", functions=[twice])


def test_an_onnx_file_of_others(tmp_path):
    found = read(tmp_path, foreign_onnx().SerializeToString(), ".onnx")
    assert found.about == {
        "format": "ONNX, IR version 8, ops of ai.onnx 18, own 1, odd 1",
        "producer": "others",
        "description": "others",
    }
    assert [(port.name, port.shape) for port in found.inputs] == [("x", ("batch", 4, 9, None))]
    assert [(op.part, op.op, op.output.shape if op.output else None) for op in found.ops] == [
        ("main", "Conv", ("batch", 8, 9, None)),
        ("main", "QuantizeLinear", ("batch", 8, 9, None)),
        ("main", "ConvInteger", ("batch", 8, 4, None)),
        ("main", "Cast", ("batch", 8, 4, None)),
        ("main", "If", ("batch", 8, 4, None)),
        ("main/choice.else_branch", "Neg", ("batch", 8, 4, None)),
        ("main/choice.then_branch", "Relu", ("batch", 8, 4, None)),
        ("main", "own.Twice", None),
        ("main", "odd.com.Unknown", None),
        ("function Twice", "Mul", None),
    ]
    binary, whole = (op for op in found.ops if op.convolves)
    assert (binary.weight_bits, binary.binary, binary.weight_bytes, binary.name) == (32, True, 4 * 288, "binary")
    assert (whole.weight_bits, whole.binary, whole.channels_in, whole.channels_out) == (8, False, 8, 8)
    binary, unknown = found.warnings
    assert binary.startswith("binary has binary weights kept as float32: 32 times")
    assert unknown.startswith("f is odd.com.Unknown, an op that dmsflow does not know")  # own.Twice is in the file
    assert sums_up(found)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    "kind", ["FLOAT", "DOUBLE", "FLOAT16", "INT8", "UINT8", "INT16", "INT32", "INT64", "UINT64", "BOOL"]
)
def test_constants_are_read_from_every_field(kind, raw):
    dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
    signed = np.issubdtype(dtype, np.floating) or np.issubdtype(dtype, np.signedinteger)
    values = (np.random.default_rng(1).integers(-90 if signed else 0, 2 if kind == "BOOL" else 90, (3, 5))).astype(
        dtype
    )
    proto = (
        numpy_helper.from_array(values, "c")
        if raw
        else helper.make_tensor("c", getattr(TensorProto, kind), values.shape, values.reshape(-1))
    )
    model = helper.make_model(helper.make_graph([], "g", [], [], [proto]))
    graph = onnx_reader.read_graph(Path("model.onnx"), model.SerializeToString())
    (constant,) = graph.tensors
    assert (constant.dtype, constant.shape) == (
        {"FLOAT": "float32", "DOUBLE": "float64"}.get(kind, kind.lower()),
        (3, 5),
    )
    np.testing.assert_array_equal(constant.values(), values)
    # Without its numbers, the field that they lie in is 2 bytes: its tag and its length.
    alone = TensorProto()
    field = "raw_data" if raw else helper.tensor_dtype_to_field(proto.data_type)
    setattr(alone, field, proto.raw_data) if raw else getattr(alone, field).extend(getattr(proto, field))
    assert constant.stored_bytes == alone.ByteSize() - 2


def test_whole_numbers_take_the_bytes_that_protobuf_gives_them():
    values = [0, 1, -1, 127, 128, 2**63 - 1, -(2**63), 300] * 50
    proto = helper.make_tensor("c", TensorProto.INT64, (len(values),), values)
    # Beside them: the shape, the type, the name, and the field's own tag and length.
    assert proto.ByteSize() == onnx_reader._stored_bytes(proto, "int64", (len(values),), "c") + 3 + 2 + 3 + 3


def test_weights_in_another_file_are_those_of_one_file(tmp_path):
    model = foreign_onnx()
    whole = read(tmp_path, model.SerializeToString(), ".onnx")
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    found = reader.read_model_file(path)
    assert "weights.bin beside it" in found.about["weights in"]
    assert [(op.op, op.binary) for op in found.ops] == [(op.op, op.binary) for op in whole.ops]
    assert sums_up(found)


@pytest.mark.parametrize(
    ("values", "binary"),
    [
        (SIGNS, True),
        (SIGNS * np.linspace(-3, 3, 8, dtype=np.float32)[:, None, None, None], True),
        (SIGNS * np.linspace(1, 3, 4, dtype=np.float32)[None, :, None, None], False),  # c differs within a channel
        (np.abs(SIGNS), False),  # an average, not binary
        (np.where(SIGNS < 0, 0, SIGNS), False),
        (SIGNS[:, :1, :1, :1], False),  # one weight a channel says nothing
        (np.full_like(SIGNS, np.nan), False),
        (SIGNS * np.float32(np.inf), False),
    ],
)
def test_what_counts_as_binary(tmp_path, values, binary):
    weights = numpy_helper.from_array(np.ascontiguousarray(values, np.float32), "w")
    shape = [1, values.shape[1], 9, 9]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights],
    )
    found = read(tmp_path, helper.make_model(graph).SerializeToString(), ".onnx")
    assert found.ops[0].binary is binary
    assert bool(found.warnings) is bool(binary)


@pytest.mark.parametrize(("scale", "binary"), [((8, 1, 1, 1), True), ((8, 4, 3, 3), None)])
def test_signs_that_are_taken_as_the_file_is_loaded_are_binary(tmp_path, scale, binary):
    """What torch.onnx makes of binary layers: latent weights, and a Sign."""
    latent, factors = (
        np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in ((8, 4, 3, 3), scale)
    )
    nodes = [
        helper.make_node("Sign", ["latent"], ["signs"]),
        helper.make_node("Mul", ["signs", "factors"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(latent, "latent"), numpy_helper.from_array(factors, "factors")],
    )
    found = read(tmp_path, helper.make_model(graph).SerializeToString(), ".onnx")
    assert (found.ops[0].binary, found.ops[0].weight_bits, found.totals["constant_ops"]) == (binary, 32, 2)
    assert bool(found.warnings) is bool(binary)

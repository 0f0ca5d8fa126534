"""Files as others write them (cases/README.md): what `show` says of each, and what `bench` does with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from dmsflow import cli
from dmsflow.errors import DmsflowError
from dmsflow.measuring.benched import find_benched
from dmsflow.modelfile import tflite
from dmsflow.modelfile.inputs import Port, draw_values, from_pixels
from dmsflow.modelfile.runners import litert, onnxruntime

CASES = Path(__file__).parent / "cases"
RANDOM = np.random.default_rng(0)


def shown(path, capsys):
    """What `show` prints as JSON; as a table it prints the same numbers."""
    assert cli.main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert cli.main(["show", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(f" {count:,} " in text for count in found["totals"].values() if count)
    return found


def refused(capsys, *arguments):
    assert cli.main([*map(str, arguments)]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line.removeprefix("dmsflow: ").rstrip()


def benched(path, out, *options):
    assert cli.main(["bench", str(path), "--runs", "3", "--warm-up", "0", "--out", str(out), *options]) == 0
    return json.loads((out / "bench.json").read_bytes())["metrics"]


def totals(found, *names):
    return [found["totals"][name] for name in names]


# --- show ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "convolutions", "binary", "packed", "widths", "bytes_of"),
    [
        ("int8-io.tflite", 3, 2, 2, [32, 64, 64, 10], {"binary": 6912, "integer": 1504}),
        ("batch-4.tflite", 3, 2, 2, [32, 64, 64, 10], {"binary": 6912, "float": 6016}),
        ("mean-softmax.tflite", 3, 2, 2, [32, 64, 64, 10], {"binary": 6912, "float": 6016}),
        ("custom-conv.tflite", 3, 1, 0, [32, 32, 2], {"float": 40576}),
        ("torch-default.onnx", 3, 2, 0, [16, 32, 32, 10], {"float": 58304}),
        ("batch-dynamic.onnx", 3, 2, 0, [16, 32, 32, 10], {"float": 58304}),
        ("qonnx-bipolar.onnx", 2, 2, 0, [32, 64, 10], {"float": 79744}),
    ],
)
def test_what_a_file_holds(name, convolutions, binary, packed, widths, bytes_of, capsys):
    found = shown(CASES / name, capsys)
    counts = totals(found, "convolutions", "binary_convolutions", "packed_convolutions")
    assert counts == [convolutions, binary, packed]
    assert found["widths"] == widths
    assert {kind: found["totals"][f"{kind}_weight_bytes"] for kind in bytes_of} == bytes_of
    assert sum(totals(found, *(name for name in found["totals"] if name.endswith("_bytes")))) == found["size_bytes"]
    assert totals(found, "unknown_ops", "undecided_convolutions", "undecided_products") == [0, 0, 0]
    assert any("binary weights kept as float32: 32 times larger" in line for line in found["remarks"]) is (packed == 0)


def test_quantised_inputs_are_shown_with_scale_and_zero_point(capsys):
    assert cli.main(["show", str(CASES / "int8-io.tflite")]) == 0
    assert "tfl.quantize int8 1×16×16×3 (scale 0.0235294, zero point -1)" in capsys.readouterr().out


def test_qonnx_products_are_binary_and_shapes_go_through_its_quantisers(capsys):
    found = shown(CASES / "qonnx-bipolar.onnx", capsys)
    assert totals(found, "products", "binary_products") == [1, 1]
    assert [op["output"]["shape"] for op in found["ops"][:3]] == [[1, 32, 30, 30], [1, 32, 30, 30], [1, 64, 28, 28]]
    assert [(op["channels_in"], op["channels_out"]) for op in found["ops"] if op["weight_bits"]] == [
        (3, 32),
        (32, 64),
        (64, 10),
    ]


def test_a_convolution_of_tensorflow_is_a_binary_one_that_few_can_run(capsys):
    found = shown(CASES / "custom-conv.tflite", capsys)
    (conv,) = [op for op in found["ops"] if op["op"] == "Conv2D"]
    assert (conv["binary"], conv["convolves"], conv["channels_in"], conv["channels_out"]) == (True, True, 32, 32)
    assert (conv["weight_bytes"], conv["weight_dtype"]) == (36864, "float32")
    assert any(
        "Conv2D of TensorFlow: a runtime without TensorFlow's ops does not run it" in one for one in found["remarks"]
    )


def conv_file(path, *before, weights=None, domains=(), op="Conv", domain="", constants=()):
    """Write an .onnx file of one op on "x" and "w"; `before` are the nodes that make "w" of "latent", if there are any."""
    weights = RANDOM.normal(size=(8, 4, 3, 3)).astype(np.float32) if weights is None else weights
    node = helper.make_node(op, ["x", "w"], ["y"], name="op", domain=domain)
    stored = [numpy_helper.from_array(weights, "latent" if before else "w")]
    stored += [numpy_helper.from_array(np.float32(value), name) for name, value in constants]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 9, 9])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(name, 1) for name in {domain, *domains} - {""})]
    graph = helper.make_graph([*before, node], "g", [x], [y], stored)
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("op", "bits", "binary"),
    [("Quant", 1.0, True), ("IntQuant", 1.0, True), ("Quant", 4.0, None), ("BipolarQuant", None, True)],
)
def test_a_quantiser_of_one_bit_makes_binary_weights(op, bits, binary, tmp_path, capsys):
    names = ["latent", "scale"] if bits is None else ["latent", "scale", "zero", "bits"]
    node = helper.make_node(op, names, ["w"], domain="qonnx.custom_op.general", signed=1, narrow=0)
    constants = [("scale", 0.5), ("zero", 0.0), ("bits", bits or 0.0)]
    path = conv_file(tmp_path / "m.onnx", node, domains=[node.domain], constants=constants)
    (conv,) = [each for each in shown(path, capsys)["ops"] if each["op"] == "Conv"]
    assert (conv["binary"], conv["weight_bits"], conv["weight_dtype"]) == (binary, 32, "float32")


def test_weights_that_an_unknown_op_makes_are_undecided_and_stay_floats(tmp_path, capsys):
    node = helper.make_node("Mystery", ["latent"], ["w"], domain="odd")
    found = shown(conv_file(tmp_path / "m.onnx", node, domains=["odd"]), capsys)
    assert totals(found, "convolutions", "binary_convolutions", "undecided_convolutions") == [1, 0, 1]
    assert totals(found, "float_weight_bytes", "integer_weight_bytes") == [8 * 4 * 9 * 4, 0]
    assert found["ops"][0]["weight_dtype"] == "float32" and found["ops"][0]["binary"] is None


def test_weights_that_are_computed_in_each_run_are_undecided(tmp_path, capsys):
    node = helper.make_node("RandomNormal", [], ["w"], shape=[8, 4, 3, 3])
    found = shown(conv_file(tmp_path / "m.onnx", node), capsys)
    assert totals(found, "convolutions", "undecided_convolutions", "unknown_ops") == [1, 1, 0]


@pytest.mark.parametrize("signs", [True, False])
def test_an_unknown_op_is_binary_by_its_weights_or_unknown(signs, tmp_path, capsys):
    weights = RANDOM.normal(size=(8, 4, 3, 3)).astype(np.float32)
    path = conv_file(tmp_path / "m.onnx", weights=np.sign(weights) if signs else weights, op="OddConv", domain="odd")
    found = shown(path, capsys)
    assert totals(found, "unknown_ops", "binary_unknown_ops", "undecided_unknown_ops") == [
        1,
        int(signs),
        int(not signs),
    ]
    assert totals(found, "convolutions", "products") == [0, 0]
    assert found["totals"]["float_weight_bytes"] == (weights.nbytes if signs else 0)
    told = "has binary weights kept as float32" if signs else "is odd.OddConv, an op that dmsflow does not know"
    assert len(found["remarks"]) == 1 and told in found["remarks"][0]


# --- weights in a file beside the model ---------------------------------------------------------


@pytest.fixture
def split(tmp_path):
    """A copy of the model whose weights are beside it, and of these, in a folder of their own."""
    folder = tmp_path / "model"
    folder.mkdir()
    for suffix in (".onnx", ".onnx.data"):
        shutil.copy(CASES / f"torch-default{suffix}", folder / f"m{suffix}")
    return folder / "m.onnx"


def placed(path, **changed):
    """Change what the model says of the place of its first weights that are beside it."""
    from onnx import load_model_from_string

    model = load_model_from_string((CASES / "torch-default.onnx").read_bytes())
    for proto in model.graph.initializer:
        for entry in proto.external_data:
            entry.value = {"location": "m.onnx.data", "offset": entry.value, "length": entry.value}[entry.key]
    first = next(proto for proto in model.graph.initializer if proto.external_data)
    for entry in first.external_data:
        entry.value = str(changed.get(entry.key, entry.value))
    path.write_bytes(model.SerializeToString())
    return first.name


def test_weights_beside_the_model_are_read(split, capsys):
    placed(split)
    found = shown(split, capsys)
    assert found["size_bytes"] == split.stat().st_size + 58304
    assert found["about"]["weights in"] == "m.onnx.data beside it, 58,304 bytes"
    assert totals(found, "binary_convolutions") == [2]


@pytest.mark.parametrize(
    "location", ["../m.onnx.data", "/etc/passwd", "..", ".", "", "sub/m.data", "..\\m.data", "\x1b[31mm\x00.data"]
)
def test_weights_elsewhere_are_not_read(split, location, capsys):
    (split.parent.parent / "m.onnx.data").write_bytes(bytes(58304))
    name = placed(split, location=location)
    line = refused(capsys, "show", split)
    assert (
        line.startswith(f"{split}: keeps {name} in ") and "which is no file of the same folder; put everything" in line
    )
    assert line.isprintable()


@pytest.mark.parametrize("value", [b"m.onnx.data", b"1728"])
def test_places_that_are_no_utf8_are_refused(split, value, capsys):
    placed(split)
    split.write_bytes(split.read_bytes().replace(value, value[:-1] + b"\xff"))
    assert refused(capsys, "show", split).isprintable()


def test_links_out_of_the_folder_and_what_is_no_file_are_not_read(split, capsys):
    data = split.with_name("m.onnx.data")
    placed(split)
    data.rename(split.parent.parent / "elsewhere")
    line = refused(capsys, "show", split)
    assert "beside it, which cannot be read (No such file or directory); copy m.onnx.data to the same folder" in line
    data.symlink_to(split.parent.parent / "elsewhere")
    assert "which is a link out of the folder; copy m.onnx.data itself" in refused(capsys, "show", split)
    data.unlink()
    data.mkdir()
    assert "which is no file of the folder" in refused(capsys, "show", split)
    data.rmdir()
    (split.parent / "other").write_bytes((CASES / "torch-default.onnx.data").read_bytes())
    data.symlink_to("other")  # a link inside the folder is as good as the file
    assert totals(shown(split, capsys), "binary_convolutions") == [2]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"offset": 58304 - 1727}, "ends behind the 58304 bytes of m.onnx.data"),
        ({"offset": 10**30}, "ends behind"),
        ({"offset": -4}, "does not fit its shape"),
        ({"offset": "²"}, "does not fit its shape"),
        ({"length": 1724}, "does not fit its shape"),
        ({"length": "much"}, "does not fit its shape"),
    ],
)
def test_weights_are_read_only_inside_the_file(split, changed, told, capsys):
    placed(split, **changed)
    assert told in refused(capsys, "show", split)


# --- bench --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-io.tflite", "mean-softmax.tflite", "torch-default.onnx"])
def test_a_file_is_timed(name, tmp_path):
    metrics = benched(CASES / name, tmp_path)
    assert metrics["latency_ms_median"] > 0 and "images_per_run" not in metrics
    assert metrics["file_bytes"] == sum(path.stat().st_size for path in CASES.glob(f"{name}*"))


def test_weights_beside_a_file_are_not_left_behind(split, tmp_path, capsys):
    placed(split)
    line = refused(capsys, "bench", split, "--device", "ssh://nobody@localhost", "--out", tmp_path)
    assert "keeps its weights in m.onnx.data beside it, and a device gets one file; put all into one" in line
    split.with_name("m.onnx.data").unlink()
    assert "which cannot be read (No such file or directory)" in refused(capsys, "bench", split, "--out", tmp_path)


@pytest.mark.slow
def test_a_batch_that_is_left_open_is_1_and_one_of_four_is_told(tmp_path, capsys):
    benched(CASES / "batch-dynamic.onnx", tmp_path / "free")
    told = capsys.readouterr().err
    assert "batch-dynamic.onnx: x float32 batch×3×16×16 leaves the batch open, and ran with 1" in told
    metrics = benched(CASES / "batch-4.tflite", tmp_path / "four")
    told = capsys.readouterr().err
    assert "batch-4.tflite: times are of 4 images a run" in told and "÷ 4 images" in told
    assert (metrics["images_per_run"], metrics["latency_ms_per_image"]) == (4, metrics["latency_ms_median"] / 4)


@pytest.mark.slow
def test_advice_is_for_whoever_made_the_file(tmp_path, capsys):
    line = refused(capsys, "bench", CASES / "custom-conv.tflite", "--out", tmp_path)
    assert line.endswith(
        "leaves more than the batch of its input open (serving_default_input_15:0 float32 1×?×?×3); "
        "convert the network again with a fixed input size"
    )
    line = refused(capsys, "bench", CASES / "qonnx-bipolar.onnx", "--out", tmp_path)
    assert "BipolarQuant(-1) is not a registered function/op); see its ops with dmsflow show" in line


def test_int8_runs_as_in_the_official_interpreter():
    """The numbers are those of LCE's own interpreter (larq-compute-engine 0.16) for the same input."""
    session = litert.open(CASES / "int8-io.tflite")
    values = draw_values(session.inputs[0], np.random.default_rng(0))
    assert values.dtype == np.int8 and values.min() == -128 and values.max() == 127
    assert session.run(values).tolist() == [[-126, -127, -126, -128, -84, -120, 15, -74, -128, -127]]


# --- images -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes of colour images 16×16, 1 to 2 of each."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(15):
        path = folder / str(index % 10) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def top1(session, pictures, images_per_run):
    """Top-1 percent, each image alone at the place of a run that it has in the order of the files."""
    paths = sorted(pictures.glob("*/*.png"), key=lambda path: (path.parent.name, path.name))
    hits = 0
    for path in paths:
        values = from_pixels(session.inputs[0], np.asarray(Image.open(path)))
        hits += int(session.run(np.stack([values] * images_per_run))[0].argmax() == int(path.parent.name))
    return 100 * hits / len(paths)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("int8-io", 1), ("batch-4", 4)])
def test_images_go_through_the_scale_and_fill_batches(name, batch, pictures, tmp_path, capsys):
    path = CASES / f"{name}.tflite"
    metrics = benched(path, tmp_path, "--images", str(pictures))
    assert metrics["top1_images"] == 15
    assert metrics["top1_percent"] == pytest.approx(top1(litert.open(path), pictures, batch))
    clipped = "int8-io.tflite: by its scale and zero point the input holds no more than 3.01: larger pixels are clipped"
    assert (clipped in capsys.readouterr().err) is (batch == 1)


@pytest.mark.slow
def test_images_that_an_input_does_not_take_are_refused(pictures, tmp_path, capsys):
    line = refused(capsys, "bench", CASES / "batch-dynamic.onnx", "--images", pictures, "--out", tmp_path)
    assert "has the input x float32 batch×3×16×16, and 10 outputs for it: it does not classify square images" in line


@pytest.mark.parametrize(
    ("port", "pixels", "values"),
    [
        (Port("x", "int8", (1,), 1.0, -128), [0, 1, 254, 255], [-128, -127, 126, 127]),
        (Port("x", "int8", (1,), 2.0, -128), [0, 1, 2, 255], [-128, -127, -127, 0]),
        (Port("x", "uint8", (1,), 0.5, 10), [0, 1, 100, 255], [10, 12, 210, 255]),
        (Port("x", "uint8", (1,)), [0, 1, 254, 255], [0, 1, 254, 255]),
        (Port("x", "float16", (1,)), [0, 255], [0, 255]),
    ],
)
def test_pixels_as_an_input_holds_them(port, pixels, values):
    given = from_pixels(port, np.array(pixels, np.float32))
    assert given.dtype == port.dtype and given.tolist() == values


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_file_with_weights_beside_it_is_not_sent_without_them(dry, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)  # the device is not reached
    for device in ("ssh://user@host", "adb"):
        given = ("bench", CASES / "torch-default.onnx", "--device", device, *dry, "--out", tmp_path)
        assert refused(capsys, *given).endswith(
            "torch-default.onnx: keeps its weights in torch-default.onnx.data beside it, and a device gets one file; "
            "put all into one: onnx.save_model(onnx.load(PATH), OTHER_PATH)"
        )


def test_what_is_advised_for_weights_beside_a_file_makes_one_that_can_be_sent(tmp_path):
    onnx.save_model(onnx.load(CASES / "torch-default.onnx"), tmp_path / "one.onnx")
    assert find_benched(CASES / "torch-default.onnx").beside and not find_benched(tmp_path / "one.onnx").beside


# --- inputs of every kind -----------------------------------------------------------------------


def inputs_file(path, *inputs):
    """Write an .onnx file that adds up its inputs, each of a type and a shape."""
    ports = [helper.make_tensor_value_info(f"x{at}", kind, shape) for at, (kind, shape) in enumerate(inputs)]
    nodes, sums = [], []
    for port in ports:
        nodes.append(helper.make_node("Cast", [port.name], [f"{port.name}f"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceSum", [f"{port.name}f"], [f"{port.name}s"], keepdims=0))
        sums.append(f"{port.name}s")
    nodes.append(helper.make_node("Sum", sums, ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "g", ports, [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_several_inputs_of_every_type_and_shape_are_timed(tmp_path, capsys):
    kinds = [(TensorProto.FLOAT16, [1, 2, 30, 4]), (TensorProto.INT8, [7]), (TensorProto.UINT8, ["n", 3])]
    path = inputs_file(tmp_path / "m.onnx", *kinds, (TensorProto.FLOAT, []))
    metrics = benched(path, tmp_path, "--operations")
    assert metrics["latency_ms_median"] > 0 and len(metrics["operations"]) >= 8
    told = capsys.readouterr().err
    for line in ("takes x0 float16 1×2×30×4, random here", "x2 uint8 n×3 leaves the batch open", "x3 float32 a number"):
        assert line in told


def test_values_reach_the_inputs_in_their_order(tmp_path):
    path = inputs_file(tmp_path / "m.onnx", (TensorProto.FLOAT, [2]), (TensorProto.INT8, [3]))
    session = onnxruntime.open(path)
    assert session.run(np.array([1, 2], np.float32), np.array([-5, 0, 0], np.int8)) == -2


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    path = inputs_file(tmp_path / "m.onnx", (TensorProto.FLOAT, [2]))
    path.write_bytes(path.read_bytes().replace(b"x0", b"x\xff"))
    with pytest.raises(
        DmsflowError, match=r"m\.onnx: onnxruntime cannot load it \(a name is no UTF-8\); get a complete copy"
    ):
        onnxruntime.open(path)


@pytest.mark.parametrize(
    ("kind", "shape", "told"),
    [
        (
            TensorProto.INT64,
            [1, 8],
            "has the input x0 int64 1×8; give a file whose inputs are float32, float16, int8 or",
        ),
        (
            TensorProto.FLOAT,
            ["batch", 3, "height", None],
            "leaves more than the batch of its input open (x0 float32 batch×3×height×?); fix them: python -m "
            "onnxruntime.tools.make_dynamic_shape_fixed --input_name x0 --input_shape 1,3,height,LENGTH IN OUT",
        ),
        (
            TensorProto.FLOAT,
            [1, 1 << 20, 1 << 20],
            "x0 float32 1×1048576×1048576; give one of 1 to 268,435,456 numbers",
        ),
        (TensorProto.FLOAT, [1, 0], "has the input x0 float32 1×0; give one of 1 to"),
    ],
)
def test_inputs_that_cannot_be_filled_are_refused_by_name(kind, shape, told, tmp_path, capsys):
    path = inputs_file(tmp_path / "m.onnx", (kind, shape))
    assert told in refused(capsys, "bench", path, "--out", tmp_path)


def test_a_file_without_inputs_is_refused(tmp_path, capsys):
    model = {"version": 3, "operator_codes": [], "subgraphs": [{"tensors": []}], "buffers": [{}]}
    from dmsflow.deploying.exporters import _flatbuffer

    (tmp_path / "m.tflite").write_bytes(_flatbuffer.dumps(model))
    assert "has 0 inputs and 0 outputs; give" in refused(capsys, "bench", tmp_path / "m.tflite", "--out", tmp_path)
    assert tflite.parse_model((tmp_path / "m.tflite").read_bytes())["subgraphs"] == [{"tensors": []}]

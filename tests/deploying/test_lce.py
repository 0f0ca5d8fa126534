"""LCE files: written, read back, and run against the integer graph, by LiteRT and by the official interpreter."""

from __future__ import annotations

import damaged_files
import numpy as np
import pytest
from made_up import MEAN, STD, odd_widths, pixels, small_network, trained
from msgspec.structs import replace

from dmsflow.deploying import folding, integer_graph
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters import lce as exporter
from dmsflow.deploying.size_report import measure_ops
from dmsflow.errors import DmsflowError
from dmsflow.modelfile import reader, tflite
from dmsflow.modelfile.graph import BITS
from dmsflow.modelfile.runners import lce, litert
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.network.profile import Granularity


def written(tmp_path, network, widths, seed=0, magnitude=1.0, images=None):
    form = folding.fold(network, widths, trained(network, widths, seed, magnitude, images), MEAN, STD)
    path = tmp_path / "model.tflite"
    exporter.write(form, path)
    return form, path


@pytest.fixture(params=["litert", "lce"])
def runner(request):
    """LiteRT with dmsflow's kernels, and the official interpreter where it is installed."""
    return {"litert": litert, "lce": lce}[request.param]


def run(runner, path, images, threads=1):
    session = runner.open(path, threads)
    assert session.input_shape == (1, *images.shape[1:])
    return np.concatenate([session.run(image[None].astype(np.float32)) for image in images])


def floats_shown(form):
    """The same graph with a dense layer that copies its inputs, so that its inputs become the logits."""
    dense = form.ops[-1]
    eye = np.eye(dense.weight.shape[1], dtype=np.float32)
    shown = replace(dense, weight=eye, bias=np.zeros(len(eye), np.float32))
    return replace(form, ops=(*form.ops[:-1], shown), classes=len(eye))


# --- the interpreter computes the integer graph -----------------------------------------------------


@pytest.mark.parametrize(("seed", "magnitude"), [(0, 1.0), (1, 1e-3), (2, 300.0)])
def test_vgg11_runs_as_the_integer_graph_bit_for_bit(runner, tmp_path, seed, magnitude):
    network = vgg11.build(3, 32, 10)
    images = pixels(network, 50, seed)
    form, path = written(tmp_path, network, odd_widths(network, seed), seed, magnitude, images)
    expected = integer_graph.compute_logits(form, images)
    np.testing.assert_allclose(run(runner, path, images), expected, rtol=1e-5, atol=1e-4)  # sums of the dense layer
    exporter.write(floats_shown(form), path)
    shown = integer_graph.compute_logits(floats_shown(form), images)
    assert shown.std() > 0
    np.testing.assert_array_equal(run(runner, path, images), shown)


@pytest.mark.parametrize(("seed", "magnitude"), [(0, 1.0), (1, 0.01)])
def test_resnet18_runs_as_the_integer_graph(runner, tmp_path, seed, magnitude):
    network = resnet18.build(3, 32, 10)
    images = pixels(network, 30, seed)
    form, path = written(tmp_path, network, odd_widths(network, seed), seed, magnitude, images)
    np.testing.assert_allclose(
        run(runner, path, images), integer_graph.compute_logits(form, images), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("seed", range(16))
def test_small_networks_run_as_their_integer_graph(runner, tmp_path, seed):
    network = small_network(seed)
    images = pixels(network, 4)
    form, path = written(tmp_path, network, network.widths, seed, images=images)
    np.testing.assert_allclose(
        run(runner, path, images), integer_graph.compute_logits(form, images), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
def test_images_of_224_pixels(runner, tmp_path, build):
    network = build(3, 224, 5)
    widths = {name: 3 + 2 * index for index, name in enumerate(network.widths)}
    images = pixels(network, 2)
    form, path = written(tmp_path, network, widths, images=images)
    np.testing.assert_allclose(
        run(runner, path, images), integer_graph.compute_logits(form, images), rtol=1e-5, atol=1e-4
    )


def test_extreme_images_and_two_threads(runner, tmp_path):
    network = vgg11.build(3, 32, 10)
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 1, 128, 255)])
    form, path = written(tmp_path, network, odd_widths(network, 4), 4)
    exporter.write(floats_shown(form), path)
    np.testing.assert_array_equal(
        run(runner, path, images, threads=2), integer_graph.compute_logits(floats_shown(form), images)
    )


# --- what is in a file ------------------------------------------------------------------------------


def puts_out_bits(op):
    return op.output.dtype == BITS


def test_vgg11_is_packed_all_through(tmp_path):
    network = vgg11.build(3, 32, 10)
    _, path = written(tmp_path, network, odd_widths(network, 0))
    counted = exporter.count_ops(path)
    assert counted[exporter.PACKED_CONV] == 7 and counted[exporter.FLOAT_CONV] == 1
    assert counted["LceQuantize"] == 1 and counted["LceBMaxPool2d"] == 4 and counted["MAX_POOL_2D"] == 1
    operators = reader.read_model_file(path).ops
    assert [op.name for op in operators if op.weight_bits == 1] == [f"conv{index}" for index in range(1, 8)]
    assert [puts_out_bits(op) for op in operators if op.weight_bits == 1] == [True] * 6 + [False]
    assert [op.name for op in operators if op.weight_bits == 32] == ["conv0/sums", "dense"]


def test_resnet18_is_packed_inside_its_blocks(tmp_path):
    network = resnet18.build(3, 32, 10)
    _, path = written(tmp_path, network, odd_widths(network, 0))
    binary = [op for op in reader.read_model_file(path).ops if op.weight_bits == 1]
    assert len(binary) == 19 == exporter.count_ops(path)[exporter.PACKED_CONV]
    assert sorted(op.name for op in binary if puts_out_bits(op)) == [
        f"stage{s}_block{b}_conv1" for s in range(4) for b in range(2)
    ]
    assert [op.name for op in reader.read_model_file(path).ops if op.weight_bits == 32] == ["stem", "dense"]


@pytest.mark.parametrize(("resolution", "pads"), [(64, ["conv0"]), (63, [])])
def test_an_odd_image_is_padded_by_the_convolution_that_halves_it(tmp_path, resolution, pads):
    """As many pixels on each side, as TFLite's SAME has it; of an even image that would be one side."""
    network = vgg11.build(3, resolution, 10)
    network = replace(network, layers=(replace(network.layers[0], stride=2), *network.layers[1:]))
    images = pixels(network, 5)
    form, path = written(tmp_path, network, odd_widths(network, 0), images=images)
    shown = [op for op in reader.read_model_file(path).ops if op.op == "PAD"]
    assert [exporter.layer_of_tensor(op.output.name) for op in shown] == pads
    expected = integer_graph.compute_logits(form, images)
    np.testing.assert_allclose(run(litert, path, images), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "resolution", "factor", "most"),
    [(vgg11.build, 32, 3, 1.06), (resnet18.build, 224, 1, 1.02), (vgg11.build, 32, 1, 1.15)],
)
def test_a_file_is_about_as_large_as_its_bits(tmp_path, build, resolution, factor, most):
    network = build(3, resolution, 10)
    widths = {name: base * factor for name, base in network.widths.items()}
    form, path = written(tmp_path, network, widths)
    ideal = sum(row.binary_bytes + row.float_bytes for row in measure_ops(form, Granularity()))
    assert ideal < path.stat().st_size < most * ideal


def test_constants_are_aligned_and_files_repeat(tmp_path):
    network = resnet18.build(3, 32, 10)
    form, path = written(tmp_path, network, odd_widths(network, 3))
    content = path.read_bytes()
    start = np.frombuffer(content, np.uint8).ctypes.data
    buffers = [buffer["data"] for buffer in tflite.parse_model(content)["buffers"] if buffer]
    assert len(buffers) > 40
    assert all((np.frombuffer(buffer, np.uint8).ctypes.data - start) % 16 == 0 for buffer in buffers)
    exporter.write(form, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == content


def test_channels_are_packed_from_the_lowest_bit():
    bits = np.zeros((2, 35), np.bool_)
    bits[0, [0, 31, 34]] = bits[1, 33] = True
    assert exporter.pack(bits).tolist() == [[1 - 2**31, 4], [0, 2]]


# --- damaged files ------------------------------------------------------------------------------------


def test_every_cut_is_seen(tmp_path):
    network = small_network(1)
    _, path = written(tmp_path, network, network.widths)
    content = path.read_bytes()
    tflite.parse_model(content)
    for length in range(0, len(content), 61):
        with pytest.raises(tflite.Damaged):
            tflite.parse_model(content[:length])


def graph_of(content):
    model = tflite.parse_model(content)
    return model, model["subgraphs"][0], [code.get("custom_code") for code in model["operator_codes"]]


def test_reading_and_writing_are_inverse(tmp_path):
    network = small_network(1)
    _, path = written(tmp_path, network, network.widths)
    content = path.read_bytes()
    again = _flatbuffer.dumps(tflite.parse_model(content))
    assert tflite.parse_model(again) == tflite.parse_model(content)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda operator: operator.update(options(operator, stride_height=0)), "an operator with stride_height 0"),
        (lambda operator: operator.update(options(operator, stride_width=99)), "an operator with stride_width 99"),
        (lambda operator: operator.update(options(operator, dilation_width_factor=0)), "dilation_width_factor 0"),
        (lambda operator: operator.update(options(operator, channels_in=5000)), "a LceBconv2d on a tensor of shape"),
        (lambda operator: operator.update(custom_options=b"\0\0\0"), "options of an operator"),
        (lambda operator: operator["inputs"].__setitem__(4, -1), "a LceBconv2d without its weights"),
        (lambda operator: operator["inputs"].__setitem__(1, 10**6), "an operator on a tensor that is not there"),
        (lambda operator: operator.update(outputs=[0]), "an operator on a tensor that is not there"),
        (lambda operator: operator.update(opcode_index=99), "an operator without a type"),
    ],
)
def test_what_would_crash_the_interpreter_is_refused(tmp_path, change, expected):
    network = vgg11.build(3, 32, 10)
    _, path = written(tmp_path, network, dict.fromkeys(network.widths, 3))
    model, graph, codes = graph_of(path.read_bytes())
    operator = next(operator for operator in graph["operators"] if codes[operator["opcode_index"]] == "LceBconv2d")
    change(operator)
    with pytest.raises(tflite.Damaged, match=expected):
        tflite.parse_model(_flatbuffer.dumps(model))


def options(operator, **changed):
    return {"custom_options": _flatbuffer.flexible(tflite.parse_flexbuffer(operator["custom_options"]) | changed)}


def test_damaged_files_end_in_one_line_not_in_a_crash(lce, tmp_path):
    network = small_network(2)
    _, path = written(tmp_path, network, network.widths)
    damaged_files.check(path, "lce", seed=0)


def test_what_is_no_tflite_file_is_refused(runner, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_text("not a model")
    with pytest.raises(
        DmsflowError,
        match=r"model.tflite: is not a complete .tflite file \(it does not begin like one\); get a complete copy of it",
    ):
        runner.open(path, 1)
    with pytest.raises(
        DmsflowError, match=r"none.tflite: No such file or directory; give the path of an existing .tflite file"
    ):
        runner.open(tmp_path / "none.tflite", 1)

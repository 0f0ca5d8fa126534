"""ONNX files: what onnxruntime computes, what is in the file, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import pixels, small_network, trained
from msgspec.structs import replace

from dmsflow.deploying import folding, integer_graph
from dmsflow.deploying.exporters import _onnx_graph
from dmsflow.deploying.exporters import onnx as exporter
from dmsflow.deploying.size_report import measure_ops
from dmsflow.errors import DmsflowError
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.modelfile.runners import onnxruntime as runner
from dmsflow.network.profile import Granularity
from dmsflow.plugin import load_plugin

MEAN, STD = (120, 100, 90), (60.0, 50.0, 70.0)


def built(name, channels=3, resolution=32, classes=10):
    network = load_plugin("networks", name).build(channels, resolution, classes)
    widths = {key: 5 + 3 * index for index, key in enumerate(network.widths)}  # odd, and not multiples of 32
    return network, widths


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
@pytest.mark.parametrize("negative", [False, True])
def test_the_float_file_computes_the_float_network(name, negative, tmp_path):
    import torch

    from dmsflow.training.model import Model

    torch.manual_seed(0)
    network, widths = built(name)
    model = Model(network, widths, precision="float").eval()
    weights = {}
    for key, tensor in model.tensors().items():
        if "norm" in key:
            tensor.data = torch.rand_like(tensor) + 0.5
            if negative and key.endswith(".weight"):
                tensor.data[::2] *= -1
        weights[key] = tensor.detach().numpy()
    exporter.write_float(network, widths, weights, MEAN, STD, tmp_path / "float.onnx")
    session = runner.open(tmp_path / "float.onnx", 1)
    assert session.input_shape == (1, 32, 32, 3)
    images = np.random.default_rng(1).integers(0, 256, session.input_shape).astype(np.float32)
    normalised = torch.tensor((images - MEAN) / STD).float().permute(0, 3, 1, 2)
    expected = model(normalised).detach().numpy()
    np.testing.assert_allclose(session.run(images), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def deployed(name, seed=0, channels=3, resolution=32, classes=10):
    """A integer graph with random weights and calibrated batch norms, as trained ones are."""
    network, widths = built(name, channels, resolution, classes)
    mean, std = MEAN[:channels], STD[:channels]
    weights = trained(network, widths, seed, images=pixels(network, 16), mean=mean, std=std)
    return folding.fold(network, widths, weights, mean, std)


@pytest.fixture(scope="module", params=["vgg11", "resnet18"])
def written(request, tmp_path_factory):
    form = deployed(request.param)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    exporter.write(form, path)
    return form, path


def random_images(form, count, seed=3):
    return (
        np.random.default_rng(seed)
        .integers(0, 256, (count, form.resolution, form.resolution, form.channels))
        .astype(np.float32)
    )


def test_the_file_gives_the_logits_of_the_integer_graph(written):
    form, path = written
    images = random_images(form, 50)
    session = runner.open(path, 1)
    assert session.input_shape == images[:1].shape
    logits = np.concatenate([session.run(image[None]) for image in images])
    expected = integer_graph.compute_logits(form, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_layers_may_be_called_as_what_is_inside_others(tmp_path):
    """A module has names such as "input.mean" and "conv.weight", and those of the file's own tensors are others."""
    network, widths = built("resnet18")
    inner, names = ("mean", "planes", "weight", "bits", "sum", "scaled", "bias", "count", "std"), {"input": "input"}
    for index, layer in enumerate(network.layers):
        around = f"block{index}" if index % 9 == 8 else [*names.values()][-1]
        names[layer.name] = f"{around}.{inner[index % len(inner)]}"
    layers = [
        replace(each, name=names[each.name], inputs=tuple(names[i] for i in each.inputs)) for each in network.layers
    ]
    network = replace(network, layers=tuple(layers))
    weights = trained(network, widths, images=pixels(network, 16), mean=MEAN, std=STD)
    form = folding.fold(network, widths, weights, MEAN, STD)
    exporter.write(form, tmp_path / "model.onnx")
    exporter.write_float(network, widths, weights, MEAN, STD, tmp_path / "float.onnx")
    images = random_images(form, 5)
    expected = integer_graph.compute_logits(form, images)
    logits = np.concatenate([runner.open(tmp_path / "model.onnx", 1).run(image[None]) for image in images])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert runner.open(tmp_path / "float.onnx", 1).run(images[:1].astype(np.float32)).shape == (1, 10)
    sizes = exporter.layer_bytes(tmp_path / "model.onnx")
    assert all(sizes[op.name] > 0 for op in form.ops if isinstance(op, integer_graph.BinaryConv))


def tensors_of_the_file(path, form, names, images):
    """Tensors [n, H, W, C] inside the graph; they alone become outputs, so the rest is still optimised."""
    model = onnx.load(path)
    made = [exporter.OnnxWriter(form).tensors[name] for name in names]
    for tensor in made:
        dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.type))
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor.name, dtype, None))
    options = runner.session_options(1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run([tensor.name for tensor in made], {"input": image[None]}) for image in images]
    found = [np.concatenate(parts) for parts in zip(*runs, strict=True)]
    return [array if tensor.last else np.moveaxis(array, 1, 3) for array, tensor in zip(found, made, strict=True)]


def tensors_of(form, images):
    expected = {"input": images}
    for op in form.ops:
        expected[op.name] = integer_graph.compute_op(op, *(expected[name] for name in op.inputs))
    return expected


def test_what_is_quantised_or_averaged_is_equal_to_the_last_bit(written):
    """Though onnxruntime optimises the graph: a difference in rounding here could turn a bit."""
    form, path = written
    images = random_images(form, 3, seed=4)
    expected = tensors_of(form, images)
    for op in form.ops:
        if isinstance(op, (integer_graph.Quantize, integer_graph.AveragePool)):
            (found,) = tensors_of_the_file(path, form, op.inputs, images)
            np.testing.assert_array_equal(found, expected[op.inputs[0]])


def check_every_tensor(path, form, images):
    """From the stem to what is averaged, every tensor is equal: bits as 0 and 1, floats to the last bit."""
    names = [op.name for op in form.ops if not isinstance(op, (integer_graph.AveragePool, integer_graph.Dense))]
    expected = tensors_of(form, images)
    for name, found in zip(names, tensors_of_the_file(path, form, names, images), strict=True):
        np.testing.assert_array_equal(found, expected[name].astype(found.dtype), err_msg=name)
    logits = np.concatenate([runner.open(path, 1).run(image[None]) for image in images])
    np.testing.assert_allclose(logits, integer_graph.compute_logits(form, images), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_small_networks_run_as_their_integer_graph(seed, tmp_path):
    """Of odd widths, kernels of 1, 3 and 5, strides, paddings, pools, negative scales and a residual sum."""
    network = small_network(seed)
    images = pixels(network, 4).astype(np.float32)
    form = folding.fold(network, network.widths, trained(network, network.widths, seed, images=images), MEAN, STD)
    path = tmp_path / "model.onnx"
    exporter.write(form, path)
    check_every_tensor(path, form, images)
    onnx.checker.check_model(onnx.load(path), full_check=True)


def signs(random, *shape):
    return random.choice(np.array([-1, 1], np.int8), shape)


def by_hand(channels, thresholds, quantize=None, seed=0):
    """A form of single ops: stem, bits to bits, bits to floats, and again from a quantiser on."""
    random = np.random.default_rng(seed)
    weight = random.integers(-9, 10, (channels, 3, 3, 1)).astype(np.float32)
    few, many = thresholds is None, 9 * channels
    scale = random.normal(size=5).astype(np.float32)
    stem = integer_graph.Stem(
        name="stem",
        inputs=("input",),
        weight=weight,
        mean=np.zeros(1, np.float32),
        stride=1,
        padding=1,
        thresholds=None if few else np.zeros(channels, np.int32),
    )
    plain = {"stride": 1, "padding": 1}
    bits = integer_graph.BinaryConv(name="bits", inputs=("stem",), weight=signs(random, 7, 3, 3, channels), **plain)
    floats = integer_graph.BinaryConv(
        name="floats",
        inputs=("on" if few else "bits",),
        weight=signs(random, 5, 3, 3, channels if few else 7),
        **plain,
        multiplier=scale,
        bias=scale[::-1].copy(),
    )
    middle = (
        (integer_graph.Quantize(name="on", inputs=("stem",), threshold=np.float32(quantize)),)
        if few
        else (replace(bits, thresholds=np.resize(np.array(thresholds(many), np.int32), 7)),)
    )
    average = integer_graph.AveragePool(name="average", inputs=("floats",))
    dense = integer_graph.Dense(
        name="dense", inputs=("average",), weight=np.eye(2, 5, dtype=np.float32), bias=np.zeros(2, np.float32)
    )
    ops = (stem, *middle, floats, average, dense)
    return integer_graph.IntegerGraph(name="hand", channels=1, resolution=9, classes=2, ops=ops)


@pytest.mark.parametrize(
    "thresholds",
    [
        lambda count: (-count - 1, count + 1, -count, count, 0, 1, -1),
        lambda count: (-(2**31), 2**31 - 1, -10 * count, 10 * count, 1 - count, count - 1, 2),
    ],
)
@pytest.mark.parametrize("channels", [1, 28, 29, 301])
def test_thresholds_may_be_reached_never_or_always(channels, thresholds, tmp_path):
    """With all bits on, off, and mixed: sums from one end of their range to the other."""
    form = by_hand(channels, thresholds)
    path = tmp_path / "model.onnx"
    exporter.write(form, path)
    images = np.zeros((3, 9, 9, 1), np.float32)
    images[0] = np.random.default_rng(0).integers(0, 256, (9, 9, 1))
    for level in (-(2**23), 0, 2**23):  # every bit of the stem on, some, none
        shifted = replace(form.ops[0], thresholds=np.full(channels, level, np.int32))
        form = replace(form, ops=(shifted, *form.ops[1:]))
        exporter.write(form, path)
        check_every_tensor(path, form, images)


@pytest.mark.parametrize("extreme", [1, -1])
def test_sums_at_the_ends_of_their_range(extreme, tmp_path):
    """Weights all of one sign, every bit on: nothing saturates on the way."""
    form = by_hand(250, lambda count: (count, -count, count + 1, -count - 1, 1 - count, count - 1))
    stem = replace(form.ops[0], thresholds=np.full(250, -(2**23), np.int32))
    bits = replace(form.ops[1], weight=np.full_like(form.ops[1].weight, extreme))
    form = replace(form, ops=(stem, bits, *form.ops[2:]))
    exporter.write(form, tmp_path / "model.onnx")
    images = np.zeros((1, 9, 9, 1), np.float32)
    assert 0 < tensors_of(form, images)["bits"].mean() < 1
    check_every_tensor(tmp_path / "model.onnx", form, images)


@pytest.mark.parametrize("channels", [255, 256])
def test_counts_at_the_ends_of_their_range(channels, tmp_path):
    """The largest count that a byte holds, and the next."""
    form = by_hand(channels, lambda count: (0,))
    stem = replace(form.ops[0], thresholds=np.full(channels, -(2**23), np.int32))
    floats = replace(form.ops[2], inputs=("stem",), weight=np.ones((5, 1, 1, channels), np.int8), padding=0)
    floats.weight[0] = -1
    form = replace(form, ops=(stem, floats, *form.ops[3:]))
    exporter.write(form, tmp_path / "model.onnx")
    assert exporter.count_ops(tmp_path / "model.onnx").get("Gather") is None
    check_every_tensor(tmp_path / "model.onnx", form, np.zeros((1, 9, 9, 1), np.float32))


@pytest.mark.parametrize("threshold", [np.float32(0.3), np.float32(1e-30), np.float32(3e20)])
def test_floats_next_to_the_threshold_are_reported_apart(threshold, tmp_path):
    """x > threshold, for x one float below it, at it, and one above."""
    form = by_hand(1, None, threshold)
    step = np.spacing(threshold)
    stem = replace(form.ops[0], weight=np.zeros((1, 3, 3, 1), np.float32))
    stem.weight[0, 1, 1] = 1
    scale = integer_graph.Scale(
        name="scale", inputs=("stem",), multiplier=np.array([step]), bias=np.array([threshold - 4 * step])
    )
    form = replace(form, ops=(stem, scale, replace(form.ops[1], inputs=("scale",)), *form.ops[2:]))
    exporter.write(form, tmp_path / "model.onnx")
    images = (np.arange(81, dtype=np.float32) % 9).reshape(1, 9, 9, 1)
    expected = tensors_of(form, images)
    assert expected["on"][0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert expected["scale"][0, 0, 4, 0] == threshold
    check_every_tensor(tmp_path / "model.onnx", form, images)


def test_the_reference_of_onnx_computes_the_same(tmp_path):
    """No op means something else to onnxruntime than to the standard."""
    form = by_hand(30, lambda count: (0, 1, -1, 2))
    exporter.write(form, tmp_path / "model.onnx")
    reference = onnx.reference.ReferenceEvaluator(onnx.load(tmp_path / "model.onnx"))
    images = np.random.default_rng(1).integers(0, 256, (2, 9, 9, 1)).astype(np.float32)
    logits = np.concatenate([reference.run(None, {"input": image[None]})[0] for image in images])
    np.testing.assert_allclose(logits, integer_graph.compute_logits(form, images), rtol=1e-5)


def test_more_weights_than_can_be_counted_are_refused(tmp_path):
    form = by_hand(1, lambda count: (0,))
    wide = replace(form.ops[1], weight=np.ones((1, 1, 1, 2**20), np.int8))
    with pytest.raises(
        DmsflowError,
        match=r"^bits: has 1048576 weights in each output channel; use narrower widths: .* fewer than 1048576",
    ):
        exporter.write(replace(form, ops=(form.ops[0], wide, *form.ops[2:])), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_file_is_standard_and_sound(written):
    form, path = written
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in inferred.graph.value_info
    }
    for name, (height, width, channels) in form.shapes().items():
        if name in shapes:
            assert shapes[name] in ([1, channels, height, width], [1, height, width, channels])
    assert sum(name in shapes for name in form.shapes()) > len(form.ops) // 2
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18}
    assert all(node.domain == "" for node in model.graph.node)


def test_weights_are_bits_in_the_file_and_no_unpacking_is_left_once_loaded(written, tmp_path):
    form, path = written
    binary = [op for op in form.ops if isinstance(op, integer_graph.BinaryConv)]
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    for op in binary:
        assert stored[f"{op.name}/bits"].dtype == np.uint8
        assert stored[f"{op.name}/bits"].size == -(-op.weight.size // 8)
    assert exporter.count_ops(path)[exporter.PACKED_CONV] == len(binary)
    assert exporter.count_ops(path)[exporter.FLOAT_CONV] == 1
    left = optimised(path, tmp_path)
    assert "Conv" in left
    assert not left & {"BitShift", "BitwiseAnd", "Expand", "Min"}


def optimised(path, folder):
    """Kinds of nodes that onnxruntime leaves of a file, before it puts in its own."""
    options = runner.session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node}


def test_layers_between_bits_are_one_op_and_nothing_is_turned_between_them(tmp_path):
    exporter.write(deployed("vgg11"), tmp_path / "model.onnx")
    options = runner.session_options(1)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    begin, end = ops.index("QLinearConv"), len(ops) - ops[::-1].index("QLinearConv")
    assert ops.count("QLinearConv") >= 6
    assert set(ops[begin:end]) == {"QLinearConv", "NhwcMaxPool"}


def test_the_file_is_little_larger_than_its_parameters(written):
    form, path = written
    parameters = sum(row.binary_bytes + row.float_bytes for row in measure_ops(form, Granularity()))
    assert path.stat().st_size < parameters + 1500 * len(form.ops)


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    form, path = written
    exporter.write(form, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 9))
def test_any_number_of_signs_is_unpacked(count, seed):
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (count, 1, 1, 1))
    graph = _onnx_graph.Graph()
    weight = graph.signs("w", signs)
    type_ = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(np.int8))
    value = onnx.helper.make_tensor_value_info(weight, type_, signs.shape)
    constants = [onnx.numpy_helper.from_array(values, name) for name, values in graph.constants.items()]
    made = onnx.helper.make_graph(graph.nodes, "unpack", [], [value], constants)
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", _onnx_graph.OPSET)], ir_version=_onnx_graph.IR_VERSION
    )
    (unpacked,) = onnx.reference.ReferenceEvaluator(model).run(None, {})
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, signs)


def test_a_float_file_has_no_packed_op(tmp_path):
    network, widths = built("vgg11")
    exporter.write_float(network, widths, draw_weights(network, widths), MEAN, STD, tmp_path / "float.onnx")
    counts = exporter.count_ops(tmp_path / "float.onnx")
    assert exporter.PACKED_CONV not in counts
    assert counts[exporter.FLOAT_CONV] == 8
    exporter.write_float(network, widths, draw_weights(network, widths), MEAN, STD, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "float.onnx").read_bytes()


def test_a_missing_weight_is_named(tmp_path):
    network, widths = built("vgg11")
    with pytest.raises(DmsflowError, match=r"conv0\.weight: is not among the trained weights; export"):
        exporter.write_float(network, widths, {"x": np.zeros(1)}, MEAN, STD, tmp_path / "float.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model" * 30, b"\x08\x0a"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(DmsflowError, match=r"bad\.onnx: onnxruntime cannot load it \(.+\); get a complete copy of it"):
        runner.open(path, 1)


def test_a_truncated_file_is_refused(written, tmp_path):
    path = tmp_path / "short.onnx"
    path.write_bytes(written[1].read_bytes()[:-100])
    with pytest.raises(DmsflowError, match="export it again"):
        runner.open(path, 1)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DmsflowError, match=r"none\.onnx: no such file"):
        runner.open(tmp_path / "none.onnx", 1)


def test_threads_are_set():
    assert runner.session_options(3).intra_op_num_threads == 3
    assert runner.version().startswith("onnxruntime 1.")

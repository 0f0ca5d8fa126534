"""ONNX files: what onnxruntime computes, what is in the file, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsflow import deploy, folding, plugin
from dmsflow.errors import DmsflowError
from dmsflow.exporters import onnx as exporter
from dmsflow.model import Model
from dmsflow.runners import onnxruntime as runner

MEAN, STD = (120, 100, 90), (60.0, 50.0, 70.0)


def built(name, channels=3, resolution=32, classes=10):
    network = plugin.load("networks", name).build(channels, resolution, classes)
    widths = {key: 5 + 3 * index for index, key in enumerate(network.widths)}  # odd, and not multiples of 32
    return network, widths


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
@pytest.mark.parametrize("negative", [False, True])
def test_the_float_file_computes_the_float_network(name, negative, tmp_path):
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
    pixels = np.random.default_rng(1).integers(0, 256, session.input_shape).astype(np.float32)
    normalised = torch.tensor((pixels - MEAN) / STD).float().permute(0, 3, 1, 2)
    expected = model(normalised).detach().numpy()
    np.testing.assert_allclose(session.run(pixels), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def deployed(name, seed=0, channels=3, resolution=32, classes=10):
    """A deploy form with random weights and calibrated batch norms, as trained ones are."""
    network, widths = built(name, channels, resolution, classes)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Model(network, widths)
    for key, tensor in model.tensors().items():
        if "norm" in key and key.endswith((".weight", ".bias")):
            tensor.data = torch.randn_like(tensor)
        if key.endswith(".alpha"):
            tensor.data = torch.rand_like(tensor) + 0.2
    model.constrain()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, channels, resolution, resolution))
    weights = {key: tensor.detach().numpy() for key, tensor in model.tensors().items()}
    return folding.fold(network, widths, weights, MEAN[:channels], STD[:channels])


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


def test_the_file_gives_the_logits_of_the_deploy_form(written):
    form, path = written
    images = random_images(form, 50)
    session = runner.open(path, 1)
    assert session.input_shape == images[:1].shape
    logits = np.concatenate([session.run(image[None]) for image in images])
    expected = deploy.run(form, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def tensor_of_the_file(path, name, images):
    """A tensor [n, H, W, C] inside the graph; it alone becomes an output, so the rest is still optimised."""
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = runner.options(1)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [session.run([name], {"input": image[None]})[0] for image in images]
    return np.concatenate(found).transpose(0, 2, 3, 1)


def test_what_is_quantised_or_averaged_is_equal_to_the_last_bit(written):
    """Though onnxruntime optimises the graph: a difference in rounding here could turn a bit."""
    form, path = written
    images = random_images(form, 3, seed=4)
    expected = {"input": images}
    for op in form.ops:
        expected[op.name] = deploy._compute(op, *(expected[name] for name in op.inputs))
    for op in form.ops:
        if isinstance(op, (deploy.Quantize, deploy.AveragePool)):
            np.testing.assert_array_equal(tensor_of_the_file(path, op.inputs[0], images), expected[op.inputs[0]])


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
            assert shapes[name] == [1, channels, height, width]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 18}
    assert all(node.domain == "" for node in model.graph.node)


def test_weights_are_bits_in_the_file_and_no_unpacking_is_left_once_loaded(written, tmp_path):
    form, path = written
    binary = [op for op in form.ops if isinstance(op, deploy.BinaryConv)]
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    for op in binary:
        assert stored[f"{op.name}.bits"].dtype == np.uint8
        assert stored[f"{op.name}.bits"].size == -(-op.signs.size // 8)
    assert exporter.census(path)[exporter.PACKED_CONV] == len(binary)
    assert exporter.census(path)[exporter.FLOAT_CONV] == 1
    options = runner.options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert "Conv" in left
    assert not left & {"BitShift", "BitwiseAnd", "Slice", "Reshape"}


def test_the_file_is_little_larger_than_its_parameters(written):
    form, path = written
    parameters = sum(row.binary_bytes + row.float_bytes for row in deploy.account(form))
    assert path.stat().st_size < parameters + 1500 * len(form.ops)


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    form, path = written
    exporter.write(form, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 9), magnitude=st.sampled_from([1, 2]))
def test_any_number_of_signs_is_unpacked(count, seed, magnitude):
    signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (count, 1, 1, 1))
    graph = exporter.Graph()
    weight = graph.signs("w", signs, magnitude)
    value = onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, signs.shape)
    constants = [onnx.numpy_helper.from_array(values, name) for name, values in graph.constants.items()]
    made = onnx.helper.make_graph(graph.nodes, "unpack", [], [value], constants)
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", exporter.OPSET)], ir_version=exporter.IR_VERSION
    )
    (unpacked,) = onnx.reference.ReferenceEvaluator(model).run(None, {})
    np.testing.assert_array_equal(unpacked, signs * magnitude)


def test_a_float_file_has_no_packed_op(tmp_path):
    network, widths = built("vgg11")
    exporter.write_float(network, widths, None, MEAN, STD, tmp_path / "float.onnx")
    census = exporter.census(tmp_path / "float.onnx")
    assert exporter.PACKED_CONV not in census
    assert census[exporter.FLOAT_CONV] == 8
    exporter.write_float(network, widths, None, MEAN, STD, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "float.onnx").read_bytes()


def test_a_missing_weight_is_named(tmp_path):
    network, widths = built("vgg11")
    with pytest.raises(DmsflowError, match=r"conv0\.weight: is not among the weights; train"):
        exporter.write_float(network, widths, {"x": np.zeros(1)}, MEAN, STD, tmp_path / "float.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model" * 30, b"\x08\x0a"])
def test_a_damaged_file_is_refused(content, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(DmsflowError, match=r"bad\.onnx: onnxruntime cannot load it \(.+\); export it again"):
        runner.open(path, 1)


def test_a_truncated_file_is_refused(written, tmp_path):
    path = tmp_path / "short.onnx"
    path.write_bytes(written[1].read_bytes()[:-100])
    with pytest.raises(DmsflowError, match="export it again"):
        runner.open(path, 1)
    with pytest.raises(DmsflowError, match="is not an ONNX file"):
        exporter.census(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DmsflowError, match=r"none\.onnx: no such file"):
        runner.open(tmp_path / "none.onnx", 1)


def test_a_model_of_other_inputs_is_refused(tmp_path):
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "free",
        [tensor("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [tensor("y", onnx.TensorProto.FLOAT, ["batch", 3])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "free.onnx")
    with pytest.raises(DmsflowError, match=r"has the inputs x tensor\(float\).*; give a model with one float32 input"):
        runner.open(tmp_path / "free.onnx", 1)


def test_threads_are_set():
    assert runner.options(3).intra_op_num_threads == 3
    assert runner.version().startswith("onnxruntime 1.")

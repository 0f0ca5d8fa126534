"""The int8 file: onnxruntime's static quantisation of the float32 network, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from dmsflow import cli, datasets, manifest
from dmsflow.deploying import export
from dmsflow.deploying.exporters import onnx_int8
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.manifest import Flow, load_manifest
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.modelfile.runners import onnxruntime as runner
from dmsflow.settings import ExportSettings

COMMAND = ("dmsflow", "export", "train.json")
INT8 = ExportSettings(target="onnx-int8", check_images=60)


@pytest.fixture(scope="module", params=["vgg11", "resnet18"])
def source(request, tmp_path_factory, write_train_manifest):
    return write_train_manifest(tmp_path_factory.mktemp(request.param), request.param, precision="float")


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    return export.run_stage(source, INT8, tmp_path_factory.mktemp("int8"), Flow(COMMAND))


def kinds(path: Path, folder: Path) -> list[str]:
    """Kinds of operations that onnxruntime makes of a file."""
    options = runner.session_options(1)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def test_every_layer_computes_in_int8(source, exported, tmp_path):
    found = kinds(exported.parent / "model.onnx", tmp_path)
    convs = sum(layer.op in ("conv", "binary_conv") for layer in load_manifest(source).network.layers)
    assert found.count("QLinearConv") == convs
    assert "QGemm" in found
    assert not {"Conv", "FusedConv", "MaxPool", "Relu", "Add", "Gemm", "GlobalAveragePool"} & set(found)
    assert found.count("QuantizeLinear") == 1 and found.count("DequantizeLinear") == 1


def test_weights_are_seven_bits_with_a_scale_for_each_channel(source, exported):
    stored = {
        one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(exported.parent / "model.onnx").graph.initializer
    }
    for layer in load_manifest(source).network.layers:
        if layer.op in ("conv", "binary_conv"):
            weight = stored[f"{layer.name}/weight_quantized"]
            assert weight.dtype == np.int8
            assert stored[f"{layer.name}/weight_scale"].shape == (len(weight),)
            assert abs(weight.astype(int)).max() == 64  # sums of more saturate where there is no VNNI


def test_it_is_checked_and_its_bytes_are_counted(source, exported):
    written = load_manifest(exported, "export").metrics
    assert written["precision"] == "int8"
    assert written["trained_compared_images"] == 60
    assert written["trained_agreement_percent"] >= 100 - onnx_int8.MOST_CHANGED_PERCENT
    layers = written["layers"]
    assert written["file_bytes"] == (exported.parent / "model.onnx").stat().st_size
    assert written["memory_mib"] == sum(layer["file_bytes"] for layer in layers) / 2**20
    widest = max(layers, key=lambda layer: layer["float_bytes"])
    assert widest["float_bytes"] / 4 < widest["file_bytes"] < widest["float_bytes"] / 2


@pytest.mark.slow
def test_its_logits_are_near_those_of_the_float32_file(source, exported, tmp_path):
    floats = export.run_stage(source, ExportSettings(target="onnx", check_images=1), tmp_path, Flow(COMMAND))
    images = datasets.load_dataset(load_manifest(source).data).test.pixels[:40].astype(np.float32)
    near, exact = (
        np.concatenate([runner.open(path.parent / "model.onnx", 1).run(image[None]) for image in images])
        for path in (exported, floats)
    )
    assert load_manifest(floats).metrics["precision"] == "float32"
    assert 0 < abs(near - exact).max() < 0.1 * abs(exact).max()


@pytest.mark.slow
def test_the_same_network_gives_the_same_file(source, exported, tmp_path):
    export.run_stage(source, INT8, tmp_path, Flow(COMMAND))
    assert (tmp_path / "model.onnx").read_bytes() == (exported.parent / "model.onnx").read_bytes()


def test_relus_move_before_max_pools_and_change_nothing(tmp_path):
    network = load_network("vgg11", 3, 32, 10)
    widths = dict.fromkeys(network.widths, 6)
    path = tmp_path / "float.onnx"
    onnx_int8.write_float32(network, widths, draw_weights(network, widths), (128,) * 3, (64,) * 3, path)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    before, model = runner.open(path, 1).run(image), onnx.load(path)
    pools = sum(node.op_type == "MaxPool" for node in model.graph.node)
    onnx_int8._put_relus_first(model.graph)
    onnx.save(model, path)
    np.testing.assert_array_equal(runner.open(path, 1).run(image), before)
    made = {node.output[0]: node.op_type for node in model.graph.node}
    behind = [made[node.input[0]] for node in model.graph.node if node.op_type == "MaxPool"]
    assert behind == ["Relu"] * pools and pools > 3


def test_a_binary_network_is_refused_before_anything_is_written(write_train_manifest, tmp_path):
    source = write_train_manifest(tmp_path / "binary")
    said = (
        r"target onnx-int8: takes float32 networks only, and this one is binary; train with --precision float, or use"
    )
    for do in (export.plan_stage, lambda *where: export.run_stage(*where, Flow(COMMAND))):
        with pytest.raises(DmsflowError, match=said):
            do(source, INT8, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_run_refuses_a_binary_network_before_the_search(tmp_path, capsys):
    assert cli.main(["run", "--target", "onnx-int8", "--out", str(tmp_path / "a")]) == 1
    assert "dmsflow: target onnx-int8: takes float32 networks only" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_network_that_rounding_breaks_is_not_kept(source, tmp_path, monkeypatch):
    """As if its last layer had been rounded away: its weights have the opposite sign."""
    right = onnx_int8.write_float

    def wrong(network, widths, weights, *others):
        last = f"{network.layers[-1].name}.weight"
        right(network, widths, {**weights, last: -weights[last]}, *others)

    monkeypatch.setattr(onnx_int8, "write_float", wrong)
    with pytest.raises(
        DmsflowError, match="another class than the trained network on .*; train longer, or keep float32"
    ):
        export.run_stage(source, INT8, tmp_path / "out", Flow(COMMAND))
    assert list((tmp_path / "out").iterdir()) == []


def test_the_plan_names_the_precision(source, tmp_path):
    assert ", int8, " in dict(export.plan_stage(source, INT8, tmp_path))["network"]


def test_images_are_taken_evenly_over_the_training_split(source, exported, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(onnx_int8, "CALIBRATION_IMAGES", 4)
    monkeypatch.setattr(onnx_int8, "write_float", lambda *arguments: taken.append(arguments[-1]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.run_stage(source, INT8, tmp_path, Flow(COMMAND))
    pixels = datasets.load_dataset(load_manifest(source).data).train.pixels
    np.testing.assert_array_equal(taken[0], pixels[[0, len(pixels) // 4, len(pixels) // 2, 3 * len(pixels) // 4]])
    assert manifest.verify(exported, load_manifest(exported).artifacts["model"]).exists()

"""The export stage: what is written, what is refused, and that nothing wrong is left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dmsflow import datasets, manifest
from dmsflow.deploying import check, export, folding, integer_graph
from dmsflow.deploying.exporters import lce, onnx
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact, hash_file
from dmsflow.importing import load_network
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.plugin import load_plugin
from dmsflow.settings import Data, ExportSettings, resolve

COMMAND = ("dmsflow", "export", "train.json")


@pytest.fixture(scope="module", params=["vgg11", "resnet18"])
def trained(request, tmp_path_factory, write_train_manifest):
    return write_train_manifest(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def vgg_once(tmp_path_factory, write_train_manifest):
    return write_train_manifest(tmp_path_factory.mktemp("vgg"))


@pytest.fixture
def vgg(vgg_once, tmp_path):
    """A chain that the test may spoil."""
    return Path(shutil.copytree(vgg_once.parent, tmp_path / "vgg")) / vgg_once.name


def settings(name, images=20):
    return ExportSettings(target=name, check_images=images)


def rewrite(source, role, change):
    """Change the tensors of an artifact, and the manifest with it."""
    train = load_manifest(source)
    path = source.parent / train.artifacts[role].path
    tensors = {name: np.array(tensor) for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    artifacts = {**train.artifacts, role: describe_artifact(path, source.parent)}
    save_manifest(source, msgspec.structs.replace(train, artifacts=artifacts))


@pytest.mark.parametrize(("name", "exporter"), [("x86-64", lce), ("arm64", lce), ("onnx", onnx)])
def test_a_chain_becomes_a_file_with_the_logits_of_the_integer_graph(trained, name, exporter, tmp_path):
    path = export.run_stage(trained, settings(name), tmp_path, Flow(COMMAND))
    assert path == tmp_path / "export.json"
    written, train = load_manifest(path, "export"), load_manifest(trained)
    model = manifest.verify(path, written.artifacts["model"])
    assert (written.network, written.widths, written.data) == (train.network, train.widths, train.data)
    assert written.parent.sha256 == hash_file(trained)
    assert written.command == COMMAND
    assert written.settings == msgspec.to_builtins(settings(name))

    digits = datasets.load_dataset(train.data)
    form = folding.fold(
        train.network, train.widths, load_file(trained.parent / "train.safetensors"), digits.mean, digits.std
    )
    binary = sum(layer.op == "binary_conv" for layer in train.network.layers)
    assert exporter.count_ops(model)[exporter.PACKED_CONV] == binary
    images = digits.test.pixels[-10:].astype(np.float32)
    session = load_plugin(
        "runners", {"lce": "litert", "onnx": "onnxruntime"}[exporter.__name__.rpartition(".")[2]]
    ).open(model, 1)
    logits = np.concatenate([session.run(image[None]) for image in images])
    np.testing.assert_allclose(logits, integer_graph.compute_logits(form, images), atol=1e-5)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["export.json", model.name]


def test_a_target_of_ones_own_is_found_from_any_folder(trained, tmp_path, monkeypatch):
    (tmp_path / "desk.toml").write_text(
        'description = ""\nexporter = "onnx"\nrunner = "onnxruntime"\nsuffix = ".onnx"\n'
    )
    monkeypatch.chdir(tmp_path)
    written = load_manifest(export.run_stage(trained, settings("desk.toml"), tmp_path / "out", Flow(COMMAND)))
    assert written.settings["target"] == str(tmp_path / "desk.toml")
    export.run_stage(trained, settings("desk.toml"), tmp_path / "out", Flow(COMMAND, resume=True))


def test_the_account_adds_up(trained, tmp_path):
    path = export.run_stage(trained, settings("onnx"), tmp_path, Flow(COMMAND))
    metrics = load_manifest(path).metrics
    layers = metrics["layers"]
    for total, part in (("binary_memory_bytes", "binary_bytes"), ("float_memory_bytes", "float_bytes")):
        assert metrics[total] == sum(layer[part] for layer in layers) > 0
    assert metrics["file_bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert sum(layer["file_bytes"] for layer in layers) <= metrics["file_bytes"]
    for layer in layers:
        assert layer["file_bytes"] >= layer["binary_bytes"]
    assert metrics["check_images"] == metrics["trained_compared_images"] == 20
    assert metrics["trained_agreement_percent"] >= 95
    assert metrics["deploy_form_largest_logit_difference"] < 1e-4
    assert metrics["trained_top1_percent"] == 12.5


def test_the_table_is_on_stderr_with_units(vgg, tmp_path, capsys):
    export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))
    shown = capsys.readouterr()
    assert shown.out == ""
    for text in ("binary bytes", "other bytes", "file bytes", "conv7", "sum", "20 images: equal to the integer graph"):
        assert text in shown.err


def test_what_is_wasted_is_reported_and_kept(vgg, tmp_path, capsys):
    path = export.run_stage(vgg, settings("x86-64"), tmp_path, Flow(COMMAND))
    metrics = load_manifest(path).metrics
    shown = " ".join(capsys.readouterr().err.split())
    assert metrics["remarks"] and all(" ".join(line.split()) in shown for line in metrics["remarks"])
    last = next(row for row in metrics["layers"] if row["layer"] == "conv7")
    assert last["padded_reads"] % 32 == last["padded_writes"] % 8 == 0 and last["shape"] == f"2×2×{last['writes']}"
    assert last["file_bytes"] >= last["padded_bytes"] >= last["binary_bytes"] > 0


@pytest.mark.parametrize(
    ("name", "resolution", "count"), [("vgg11", 32, 256), ("resnet18", 224, 27), ("vgg11", 224, 16)]
)
def test_large_networks_are_checked_on_fewer_images(vgg, name, resolution, count):
    network = load_network(name, 3, resolution, 10)
    train = msgspec.structs.replace(load_manifest(vgg), network=network, widths=network.widths)
    assert export._count_images(train, ExportSettings()) == count
    assert export._count_images(train, ExportSettings(check_images=99)) == 99


def test_a_float_network_goes_to_onnx_and_nowhere_else(tmp_path, write_train_manifest):
    source = write_train_manifest(tmp_path / "float", precision="float")
    path = export.run_stage(source, settings("onnx", 50), tmp_path / "out", Flow(COMMAND))
    written = load_manifest(path)
    assert written.metrics["trained_agreement_percent"] == 100
    assert written.metrics["trained_moved_images"] == 0
    assert written.metrics["binary_memory_bytes"] == 0
    assert written.metrics["float_memory_bytes"] == sum(
        one.nbytes for one in load_file(source.parent / "train.safetensors").values()
    )
    assert onnx.PACKED_CONV not in onnx.count_ops(tmp_path / "out" / "model.onnx")
    with pytest.raises(DmsflowError, match=r"target arm64: takes binary networks only.*use --target onnx"):
        export.run_stage(source, settings("arm64"), tmp_path / "other", Flow(COMMAND))
    with pytest.raises(DmsflowError, match="use --target onnx"):
        export.plan_stage(source, settings("arm64"), tmp_path / "other")


def test_a_float_file_of_other_weights_is_refused(tmp_path, write_train_manifest):
    source = write_train_manifest(tmp_path / "float", precision="float")
    rewrite(source, "logits", lambda tensors: tensors.update(logits=-tensors["logits"]))
    with pytest.raises(DmsflowError, match="another class than the trained network on 20 of 20 images"):
        export.run_stage(source, settings("onnx"), tmp_path / "out", Flow(COMMAND))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["x86-64", "onnx"])
def test_a_file_that_computes_something_else_is_not_kept(name, vgg, tmp_path, monkeypatch):
    """One inverted sign of one weight, as a wrong exporter would write it."""
    exporter = {"x86-64": lce, "onnx": onnx}[name]
    right = exporter.write

    def wrong(form, path, **converter):
        last = [op for op in form.ops if isinstance(op, integer_graph.BinaryConv)][-1]
        last.weight[:] = -last.weight
        right(form, path, **converter)
        last.weight[:] = -last.weight

    monkeypatch.setattr(exporter, "write", wrong)
    with pytest.raises(DmsflowError, match=r"has other logits than the integer graph on \d+ of 20 images"):
        export.run_stage(vgg, settings(name), tmp_path / "out", Flow(COMMAND))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_binary_layer_that_is_not_packed_fails(vgg, tmp_path, monkeypatch):
    count_ops = onnx.count_ops
    monkeypatch.setattr(onnx, "count_ops", lambda path: {**count_ops(path), onnx.PACKED_CONV: 6, onnx.FLOAT_CONV: 2})
    with pytest.raises(
        DmsflowError, match=r"model\.onnx: has 6 ops of kind 'Conv with 1-bit weights', but the network has 7"
    ):
        export.run_stage(vgg, settings("onnx"), tmp_path / "out", Flow(COMMAND))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_converter_of_another_exporter_is_refused(vgg, tmp_path):
    asked = msgspec.structs.replace(settings("onnx"), converter="official")
    with pytest.raises(DmsflowError, match="--converter official: is not for target onnx; leave it out: exporter onnx"):
        export.run_stage(vgg, asked, tmp_path / "out", Flow(COMMAND))


def test_the_float_form_is_gone():
    with pytest.raises(DmsflowError, match="setting onnx_form: was removed; leave it out"):
        resolve(ExportSettings, onnx_form="float")


def test_a_logit_that_is_no_number_counts_as_moved():
    wanted = np.array([[1, 0]] * 3, np.float32)
    found = np.array([[1, np.nan], [1, 9e-4], [1.002, 0]], np.float32)
    assert check.compare_logits(found, wanted) == (2, 2)


def test_done_is_not_done_again_unless_forced(vgg, tmp_path):
    path = export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))
    before = path.stat().st_mtime_ns
    with pytest.raises(DmsflowError, match="already exists; use --force"):
        export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))
    assert path.stat().st_mtime_ns == before
    assert (
        load_manifest(export.run_stage(vgg, settings("x86-64"), tmp_path, Flow(COMMAND, force=True))).settings["target"]
        == "x86-64"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv3.weight"), r"conv3\.weight: is not among the trained weights"),
        (lambda tensors: tensors["conv3.weight"].fill(np.nan), r"conv3\.weight: has values that are not finite"),
        (lambda tensors: tensors["dense.weight"].fill(1e38), r"dense\.weight: has 1e\+38; train again"),
        (lambda tensors: tensors["quantize2.alpha"].fill(-1), r"quantize2\.alpha: is -1"),
    ],
)
def test_wrong_weights_are_named(vgg, tmp_path, change, message):
    rewrite(vgg, "weights", change)
    with pytest.raises(DmsflowError, match=message):
        export.run_stage(vgg, settings("onnx"), tmp_path / "out", Flow(COMMAND))


def test_a_changed_artifact_is_refused(vgg, tmp_path):
    (vgg.parent / "train.safetensors").write_bytes(b"x")
    with pytest.raises(DmsflowError, match=r"changed after train\.json was written"):
        export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))


def test_weights_that_are_no_safetensors_file_are_refused(vgg, tmp_path):
    train = load_manifest(vgg)
    path = vgg.parent / "train.safetensors"
    path.write_bytes(b"not tensors at all")
    save_manifest(
        vgg,
        msgspec.structs.replace(train, artifacts={**train.artifacts, "weights": describe_artifact(path, vgg.parent)}),
    )
    with pytest.raises(DmsflowError, match=r"train\.safetensors: is not a safetensors file \(.+\); train again"):
        export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))


def test_the_wrong_stage_and_an_unknown_target_are_refused(vgg, tmp_path):
    path = export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))
    with pytest.raises(DmsflowError, match="is a manifest of export; give a manifest of train"):
        export.run_stage(path, settings("onnx"), tmp_path / "out", Flow(COMMAND))
    with pytest.raises(DmsflowError, match="target toaster: is unknown"):
        export.run_stage(vgg, settings("toaster"), tmp_path / "out", Flow(COMMAND))


def test_the_plan_writes_nothing(vgg, tmp_path):
    rows = dict(export.plan_stage(vgg, settings("x86-64"), tmp_path / "out"))
    assert rows["target"].startswith("x86-64: ")
    assert "1-bit" in rows["network"]
    assert not (tmp_path / "out").exists()


def test_the_chain_can_be_moved(vgg, tmp_path):
    path = export.run_stage(vgg, settings("onnx"), vgg.parent, Flow(COMMAND))
    shutil.move(vgg.parent, tmp_path / "elsewhere")
    assert load_manifest(tmp_path / "elsewhere" / path.name).stage == "export"


def test_a_data_set_that_changed_its_shape_is_refused(vgg, tmp_path, monkeypatch):
    digits = datasets.load_dataset(Data(name="digits", resolution=16))
    monkeypatch.setattr(datasets, "load_dataset", lambda data: digits)
    with pytest.raises(DmsflowError, match=r"has images \[16, 16, 1\], but the network takes \[32, 32, 1\]"):
        export.run_stage(vgg, settings("onnx"), tmp_path / "out", Flow(COMMAND))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("shape", [(4, 3), (40,), (2, 2, 10), None])
def test_logits_of_another_shape_are_refused(vgg, tmp_path, shape):
    source = tmp_path / "train.json"
    shutil.copytree(vgg.parent, tmp_path, dirs_exist_ok=True)
    rewrite(source, "logits", lambda tensors: replace_logits(tensors, shape))
    with pytest.raises(DmsflowError, match=r"train.json: names logits of shape \[.*\]; train again"):
        export.run_stage(source, settings("onnx"), tmp_path / "out", Flow(COMMAND))


def replace_logits(tensors, shape):
    del tensors["logits"]
    tensors["logits" if shape else "other"] = np.zeros(shape or (4, 10), np.float32)


def test_a_manifest_without_logits_is_refused(vgg, tmp_path):
    stored = load_manifest(vgg)
    artifacts = {role: file for role, file in stored.artifacts.items() if role != "logits"}
    save_manifest(vgg, msgspec.structs.replace(stored, artifacts=artifacts))
    with pytest.raises(DmsflowError, match="names no logits; train again"):
        export.run_stage(vgg, settings("onnx"), tmp_path, Flow(COMMAND))

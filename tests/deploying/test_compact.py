"""Compact weights, as in models/: the files are those of the latent weights, also where the data set is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from studies import take_home

from dmsflow import cli, datasets
from dmsflow.datasets import digits
from dmsflow.deploying import export
from dmsflow.errors import DmsflowError
from dmsflow.files import describe_artifact
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.settings import ExportSettings
from dmsflow.training.model import Model

COMMAND = ("dmsflow", "export", "train.json")


def compact(source: Path, folder: Path, change=lambda tensors: None) -> Path:
    """The train.json of packed weights, after a change that its hash knows of."""
    train = load_manifest(source)
    weights = load_file(source.parent / "train.safetensors")
    packed = take_home.pack_weights(train, weights, datasets.load_dataset(train.data))
    change(packed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(packed, folder / "train.safetensors")
    artifacts = {"weights": describe_artifact(folder / "train.safetensors", folder)}
    return save_manifest(folder / "train.json", msgspec.structs.replace(train, artifacts=artifacts))


@pytest.fixture(scope="module", params=["vgg11", "resnet18", "birealnet18"])
def trained(request, tmp_path_factory, write_train_manifest):
    return write_train_manifest(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory, write_train_manifest):
    return write_train_manifest(tmp_path_factory.mktemp("vgg"))


def export_bytes(source: Path, target: str, out: Path) -> bytes:
    path = export.run_stage(source, ExportSettings(target=target, check_images=2), out, Flow(COMMAND))
    return (path.parent / load_manifest(path).artifacts["model"].path).read_bytes()


@pytest.mark.parametrize("target", ["x86-64", "android-arm64", "onnx"])
def test_both_forms_give_the_same_file(trained, target, tmp_path):
    packed = compact(trained, tmp_path / "compact")
    assert export_bytes(packed, target, tmp_path / "a") == export_bytes(trained, target, tmp_path / "b")
    saved = (packed.parent / "train.safetensors").stat().st_size / (trained.parent / "train.safetensors").stat().st_size
    assert saved < 0.5  # of narrow widths; of wide ones it is about a twentieth


def test_without_the_data_set_the_file_is_checked_on_random_images(vgg, tmp_path, monkeypatch, capsys):
    packed = compact(vgg, tmp_path / "compact")
    with_images = export_bytes(packed, "x86-64", tmp_path / "a")

    def load(*_):
        raise DmsflowError("digits", "is not there", "put it there")

    monkeypatch.setattr(digits, "load", load)
    assert export_bytes(packed, "x86-64", tmp_path / "b") == with_images
    assert "the file is checked on random images: digits: is not there; put it there\n" in capsys.readouterr().err
    metrics = load_manifest(tmp_path / "b" / "export.json").metrics
    assert (metrics["check_images"], metrics["trained_compared_images"]) == (2, 0)
    assert "trained_agreement_percent" not in metrics
    with pytest.raises(DmsflowError, match="digits: is not there"):
        export_bytes(vgg, "x86-64", tmp_path / "c")
    # Its bench measures the time, and no top-1.
    lean = ["--runs", "2", "--warm-up", "0", "--baseline", "none"]
    assert cli.main(["bench", str(tmp_path / "b" / "export.json"), *lean]) == 0
    assert "top-1 is not measured: digits: is not there; put it there\n" in capsys.readouterr().err
    assert "top1_percent" not in load_manifest(tmp_path / "b" / "bench.json").metrics


def put(name, array):
    return lambda tensors: tensors.update({name: array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv3.magnitude"), r"conv3\.magnitude: is not among the trained weights"),
        (lambda tensors: tensors.pop("conv3.signs"), r"conv3\.weight: is not among the trained weights"),
        (lambda tensors: tensors.pop("std"), "std: is not among the trained weights"),
        (put("conv3.signs", np.zeros((14, 2), np.uint8)), r"conv3\.signs: has shape \[14, 2\], but the widths need"),
        (put("conv3.magnitude", np.full(14, np.nan)), r"conv3\.magnitude: has values that are not finite"),
        (put("mean", np.zeros(3)), r"mean: has shape \[3\], but the widths need \[1\]"),
        (put("std", np.zeros(1)), "mean and std: are .* an integer mean and a positive std"),
    ],
)
def test_damaged_weights_end_in_one_line(vgg, change, message, tmp_path):
    packed = compact(vgg, tmp_path / "compact", change)
    with pytest.raises(DmsflowError, match=message):
        export_bytes(packed, "x86-64", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_cut_or_changed_file_is_named(vgg, tmp_path):
    packed = compact(vgg, tmp_path / "compact")
    path = packed.parent / "train.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DmsflowError, match="changed after train.json was written"):
        export_bytes(packed, "x86-64", tmp_path)
    artifacts = {"weights": describe_artifact(path, path.parent)}
    save_manifest(packed, msgspec.structs.replace(load_train(packed), artifacts=artifacts))
    with pytest.raises(DmsflowError, match="is not a safetensors file"):
        export_bytes(packed, "x86-64", tmp_path)


def load_train(path):
    from dmsflow.manifest import Manifest

    return msgspec.json.decode(path.read_bytes(), type=Manifest)


def test_training_does_not_start_from_them(vgg, tmp_path, capsys):
    packed = compact(vgg, tmp_path / "compact")
    train, tensors = load_manifest(packed), load_file(packed.parent / "train.safetensors")
    with pytest.raises(DmsflowError, match="compact weights: have no latent weights to train; train again"):
        Model(train.network, train.widths).load({name: torch.from_numpy(array) for name, array in tensors.items()})
    assert cli.main(["train", str(packed), "--resume"]) == 1
    assert capsys.readouterr().err == f"dmsflow: {packed}: is a manifest of train; give a manifest of search\n"

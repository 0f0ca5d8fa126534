"""`search --stem int8`, from the widths to files of uint8 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmsflow import cli, datasets
from dmsflow.manifest import load_manifest
from dmsflow.modelfile.runners import litert, onnxruntime
from dmsflow.network.network import has_int8_stem
from dmsflow.settings import Data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a train.json; some of its weights are of 8 bits."""
    folder = tmp_path_factory.mktemp("int8")
    search = ["search", "--stem", "int8", "--memory-mib", "0.02", "--method", "uniform", "--out", str(folder)]
    assert cli.main([*search, "--dataset", "digits", "--set", "data.train_images=120"]) == 0
    train = ["train", str(folder / "search.json"), "--epochs", "1", "--set", "train.threads=1", "--out", str(folder)]
    assert cli.main(train) == 0
    return folder / "train.json"


def test_the_manifest_carries_the_bits(trained: Path) -> None:
    assert has_int8_stem(load_manifest(trained).network)


@pytest.mark.parametrize(("target", "runner"), [("x86-64", litert), ("onnx", onnxruntime)])
@pytest.mark.parametrize("pixels", [None, "float32"])
def test_a_file_gives_what_was_trained(target: str, runner, pixels: str | None, trained: Path, tmp_path: Path) -> None:
    given = ["--pixels", pixels] if pixels else []
    assert cli.main(["export", str(trained), "--target", target, *given, "--out", str(tmp_path)]) == 0
    export = load_manifest(tmp_path / "export.json")
    assert export.metrics["trained_moved_images"] == 0
    session = runner.open(tmp_path / export.artifacts["model"].path, 1)
    assert session.inputs[0].dtype == (pixels or "uint8")
    image = datasets.load_dataset(Data(name="digits")).test.images(np.array([3]))
    assert np.isfinite(session.run(image.astype(session.inputs[0].dtype))).all()


@pytest.mark.parametrize("wrong", [("--converter", "official"), ("--target", "onnx-int8")])
def test_uint8_pixels_are_for_binary_files_of_our_own(
    wrong: tuple[str, str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(trained), "--pixels", "uint8", *wrong, "--out", str(tmp_path)]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--pixels uint8: is for a binary network" in line or "takes float32 networks only" in line
    assert not list(tmp_path.iterdir())

"""The train stage beside interruption, which tests/test_search.py has."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors import SafetensorError

from dmsflow import datasets
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.searching import search
from dmsflow.settings import Data, SearchSettings, TrainSettings, load_preset, resolve
from dmsflow.training import checkpoint, train
from dmsflow.training.batches import Batches, Order
from dmsflow.training.place import Place, choose_place

DATA = Data(name="digits", train_images=60)
COMMAND = ("dmsflow", "train")
QUICK = TrainSettings(epochs=1, batch_size=60, threads=1, amp="off")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return search.run_stage(DATA, SearchSettings(method="equal", memory_mib=0.02), tmp_path, Flow(COMMAND))


def test_the_step_schedule_is_the_papers() -> None:
    """0.1, times 0.1 at epochs 140, 220 and 260 of 300."""
    paper = resolve(TrainSettings, **load_preset("train", "paper"))
    rates = [train.learning_rate(paper, epoch, paper.epochs) for epoch in (0, 139.9, 140, 219, 220, 260, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.0001, 0.0001])


def test_the_cosine_falls_from_the_rate_to_zero() -> None:
    rates = [train.learning_rate(QUICK, epoch, 8) for epoch in (0, 4, 8)]
    assert rates == pytest.approx([0.1, 0.05, 0])


def test_settings_that_contradict_each_other(source: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, precision="float", from_float=True)
    with pytest.raises(DmsflowError, match="--from-float: starts a binary network, and --precision is float"):
        train.run_stage(source, settings, tmp_path, Flow(COMMAND))


def test_a_data_set_of_another_shape(source: Path, tmp_path: Path) -> None:
    stored = load_manifest(source)
    changed = msgspec.structs.replace(stored, data=msgspec.structs.replace(stored.data, resolution=40))
    save_manifest(source, changed)
    with pytest.raises(DmsflowError, match=r"has \(channels, pixels, classes\) \(1, 40, 10\), and search.json was"):
        train.run_stage(source, QUICK, tmp_path, Flow(COMMAND))


def test_a_full_disk_leaves_no_half_written_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path, __: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DmsflowError, match=r"cannot be written \(No space left on device\); free some space"):
        train.run_stage(source, QUICK, tmp_path / "out", Flow(COMMAND))
    assert list((tmp_path / "out").iterdir()) == []


def test_no_images_for_a_part_are_refused() -> None:
    dataset = datasets.load_dataset(DATA)
    place = Place(choose_place(QUICK).device, 1, False)
    with pytest.raises(DmsflowError, match="data set digits: has no images for widths; use more images"):
        Batches(dataset, dataset.train, Order(np.arange(0), 1, seed=0, purpose="widths"), place, workers=0)

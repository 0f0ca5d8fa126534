"""The train stage beside interruption, which tests/test_search.py has."""

from __future__ import annotations

import contextlib
import doctest
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from killing import Killed, die_after
from safetensors import SafetensorError

import dmsflow
from dmsflow import datasets
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow, load_manifest, save_manifest
from dmsflow.manifest import perform as perform_stages
from dmsflow.preset import load_preset
from dmsflow.searching import search
from dmsflow.settings import Data, SearchSettings, TrainSettings, resolve
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
    assert rates == pytest.approx([5e-3, 2.5e-3, 0])


def test_epochs_are_counted_as_documented() -> None:
    assert doctest.testmod(train) == (0, 2)


def test_settings_that_contradict_each_other(source: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, precision="float", from_float=True)
    with pytest.raises(DmsflowError, match="--from-float: is for a binary network, and --precision is float"):
        train.run_stage(source, settings, tmp_path, Flow(COMMAND))


def test_a_data_set_of_another_shape(source: Path, tmp_path: Path) -> None:
    stored = load_manifest(source)
    changed = msgspec.structs.replace(stored, data=msgspec.structs.replace(stored.data, resolution=40))
    save_manifest(source, changed)
    with pytest.raises(DmsflowError, match=r"has \(channels, pixels, classes\) \(1, 40, 10\), but search.json was"):
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
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"]


def test_no_images_for_a_part_are_refused() -> None:
    dataset = datasets.load_dataset(DATA)
    place = Place(choose_place(QUICK).device, 1, False)
    with pytest.raises(
        DmsflowError, match="data set digits: a batch for widths has 0 images; at least 2 are needed: use more"
    ):
        Batches(dataset, dataset.train, Order(np.arange(0), 1, seed=0, purpose="widths"), place, workers=0)


def outcome(path: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The weights of a training, and its log without what a clock gave."""
    rows = msgspec.json.Decoder().decode_lines(path.with_name("train.jsonl").read_bytes())
    for row in rows:
        assert row.pop("images_per_second") > 0 and row.pop("seconds") > 0
    return path.with_name("train.safetensors").read_bytes(), rows


def test_a_finished_run_goes_on_where_more_epochs_are_asked(source: Path, tmp_path: Path) -> None:
    """From its weights, over the images of the epochs that follow, along a cosine of its own; killed or not."""
    path = train.run_stage(source, QUICK, tmp_path, Flow(COMMAND))
    first, longer = load_manifest(path).metrics, msgspec.structs.replace(QUICK, epochs=3)
    with pytest.raises(DmsflowError, match="already exists"):
        train.run_stage(source, longer, tmp_path, Flow(COMMAND))
    train.run_stage(source, longer, tmp_path, Flow(COMMAND, resume=True))
    done = load_manifest(path)
    assert done.metrics["continued_from"] == {name: first[name] for name in ("epochs", "top1_percent", "seconds")}
    assert (done.settings["epochs"], done.metrics["epochs"]) == (3, 3)
    _, rows = outcome(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-3, 5e-3, 2.5e-3])  # of the step that ends it
    with pytest.raises(DmsflowError, match="was made with epochs 3, not 1"):
        train.run_stage(source, QUICK, tmp_path, Flow(COMMAND, resume=True))
    with pytest.raises(DmsflowError, match="was made with seed 0, not 1"):
        train.run_stage(source, msgspec.structs.replace(longer, seed=1, epochs=4), tmp_path, Flow(COMMAND, resume=True))


def test_a_run_that_goes_on_can_be_killed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = msgspec.structs.replace(QUICK, epochs=4)
    for name in ("straight", "killed"):
        train.run_stage(source, QUICK, tmp_path / name, Flow(COMMAND))
    straight = train.run_stage(source, longer, tmp_path / "straight", Flow(COMMAND, resume=True))
    with monkeypatch.context() as patch:
        patch.setattr(train, "check_finite", lambda *_: 1 / 0)
        patch.setattr(checkpoint, "SAVE_INTERVAL_S", -1.0)
        step = train.weight_step

        def killing(*arguments: Any, **others: Any) -> Any:
            patch.setattr(train, "weight_step", lambda *_, **__: 1 / 0)
            return step(*arguments, **others)

        patch.setattr(train, "check_finite", lambda *_: None)
        patch.setattr(train, "weight_step", killing)
        with pytest.raises(ZeroDivisionError):
            train.run_stage(source, longer, tmp_path / "killed", Flow(COMMAND, resume=True))
    killed = train.run_stage(source, longer, tmp_path / "killed", Flow(COMMAND, resume=True))
    assert outcome(killed) == outcome(straight)


@pytest.mark.slow
def test_a_run_that_goes_on_can_be_killed_while_it_replaces_the_shorter_one(source: Path, tmp_path: Path) -> None:
    """After any number of changes of the folder, the shorter result stands or --resume makes the longer one."""

    def perform(out: Path, epochs: int) -> None:
        wanted = msgspec.structs.replace(QUICK, epochs=epochs)
        perform_stages(["train"], out / "search.json", {"train": wanted}, out, Flow(COMMAND, resume=True))

    begun = tmp_path / "begun"
    shutil.copytree(source.parent, begun)
    perform(begun, 1)
    (shorter, _), names = outcome(begun / "train.json"), {path.name for path in begun.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            perform(begun, 2)  # leaves the last checkpoint
    straight, states = b"", set()
    for calls in range(40):
        out = tmp_path / str(calls)
        shutil.copytree(begun, out)
        with pytest.MonkeyPatch.context() as patch:
            count = die_after(patch, calls)
            with contextlib.suppress(Killed):
                perform(out, 2)
        weights = (out / "train.safetensors").read_bytes()
        if not any((out / name).exists() for name in ("train.forced", ".train.json.whole")):
            states.add(load_manifest(out / "train.json", "train").metrics["epochs"])
            assert (weights == shorter) is (load_manifest(out / "train.json").metrics["epochs"] == 1)
        perform(out, 2)
        straight = straight or outcome(out / "train.json")[0]
        assert outcome(out / "train.json")[0] == straight != shorter
        assert load_manifest(out / "train.json", "train").metrics["epochs"] == 2
        assert {path.name for path in out.iterdir()} == names
        if count[0] <= calls:
            break
    assert states == {1, 2} and calls > 5


def test_a_checkpoint_with_half_a_step_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "train-binary.checkpoint"
    saved.touch()
    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda *_: ({}, {"step": 1.5, "seen": [], "rows": []}))
    monkeypatch.setattr(checkpoint, "restore", lambda *_: None)
    with pytest.raises(
        DmsflowError, match=r"train-binary.checkpoint: is not a checkpoint of this run \(.*; start again"
    ):
        train.run_stage(source, QUICK, tmp_path, Flow(COMMAND, resume=True))


def test_a_small_data_set_is_trained_for_enough_steps(source: Path, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(QUICK, epochs=None, normal_epochs=2, min_steps=5)
    path = train.run_stage(source, settings, tmp_path, Flow(COMMAND))  # 60 images are a step
    assert load_manifest(path).metrics["epochs"] == 5 == len(outcome(path)[1])


def test_a_teacher(source: Path, tmp_path: Path) -> None:
    """In full precision, trained first or in a manifest: the same one gives the same weights."""
    taught = msgspec.structs.replace(QUICK, teacher="float", epochs=2)
    path = train.run_stage(source, taught, tmp_path / "taught", Flow(COMMAND))
    phases = [(row["phase"], row["epoch"]) for row in outcome(path)[1]]
    assert phases == [("float", 1), ("float", 2), ("binary", 1), ("binary", 2)]
    alone = train.run_stage(source, msgspec.structs.replace(taught, teacher=None), tmp_path / "alone", Flow(COMMAND))
    assert outcome(alone)[0] != outcome(path)[0]
    full = msgspec.structs.replace(taught, teacher=None, precision="float")
    teacher = train.run_stage(source, full, tmp_path / "float", Flow(COMMAND))
    again = msgspec.structs.replace(taught, teacher=str(teacher))
    assert outcome(train.run_stage(source, again, tmp_path / "again", Flow(COMMAND)))[0] == outcome(path)[0]


def test_a_teacher_that_cannot_teach(source: Path, tmp_path: Path) -> None:
    def taught(by: str, **others: Any) -> TrainSettings:
        return msgspec.structs.replace(QUICK, teacher=by, **others)

    with pytest.raises(DmsflowError, match="--teacher float: is for a binary network, and --precision is float"):
        train.run_stage(source, taught("float", precision="float"), tmp_path, Flow(COMMAND))
    with pytest.raises(DmsflowError, match="no.json: No such file or directory; give the path of a manifest"):
        train.run_stage(source, taught(str(tmp_path / "no.json")), tmp_path, Flow(COMMAND))
    with pytest.raises(DmsflowError, match="is a manifest of search; give a manifest of train"):
        train.run_stage(source, taught(str(source)), tmp_path, Flow(COMMAND))
    pixels, labels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8), np.arange(20) % 2
    images = ((pixels, labels), (pixels, labels))
    fixed: dict[str, Any] = {"dataset": images, "memory_mib": 0.02, "method": "equal"}
    own, other = (dmsflow.search(stem=stem, out=tmp_path / stem, **fixed).path for stem in ("int8", "float"))
    teacher = train.run_stage(other, QUICK, tmp_path / "teacher", Flow(COMMAND))
    with pytest.raises(DmsflowError, match=r"has another kind of stem .*; search the widths of both with --stem float"):
        train.run_stage(own, taught(str(teacher)), tmp_path / "taught", Flow(COMMAND))

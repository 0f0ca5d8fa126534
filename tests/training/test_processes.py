"""Several processes that train as one. torchrun starts real ones; shares of batches need none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_batches import COUNT, CPU, dataset

from dmsflow import datasets
from dmsflow.datasets import Dataset
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.manifest import Flow, load_manifest
from dmsflow.searching import search
from dmsflow.settings import Data, SearchSettings, TrainSettings
from dmsflow.training import place, processes, train
from dmsflow.training.batches import Batches, Order
from dmsflow.training.model import Model
from dmsflow.training.place import choose_place
from dmsflow.training.processes import Share
from dmsflow.training.step import make_optimiser, weight_step

# Two processes add the same float32 numbers as one that computes both parts of a batch, in the same order, so most
# often all bits are the same. Libraries may compute them in another order, and a few steps of that are within this.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

CLOCK = ("seconds", "images_per_second")
DATA = Data(name="digits", train_images=60)
TRAIN: dict[str, Any] = {"batch_size": 20, "batch_parts": 2, "threads": 1, "amp": "off"}
SEARCH: dict[str, Any] = {**TRAIN, "rounds": 2, "weight_steps": 2, "width_batches": 2, "batch_size": 6}


def command(stage: str, *words: object, **settings: Any) -> list[str]:
    """Of two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    changes = [f"--set={stage}.{name}={value}" for name, value in settings.items()]
    return [*launcher, "-m", "dmsflow", stage, *map(str, words), *changes]


def run_two(*arguments: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments, **settings), capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The log of a stage without what a clock gave."""
    rows = msgspec.json.Decoder().decode_lines(path.with_suffix(".jsonl").read_bytes())
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_alike(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            assert value == other[name] if isinstance(value, str | dict) else True, name
            if isinstance(value, float | int) or (isinstance(value, list) and isinstance(value[0], float)):
                np.testing.assert_allclose(value, other[name], **ROUNDING, err_msg=name)


def assert_same_weights(path: Path, other: Path) -> None:
    ours, theirs = (load_file(each.with_suffix(".safetensors")) for each in (path, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **ROUNDING, msg=name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return search.run_stage(DATA, SearchSettings(method="equal", memory_mib=0.02), tmp_path, Flow(("dmsflow",)))


def test_two_processes_train_as_one(source: Path, tmp_path: Path) -> None:
    """With batch norm's batches the same: two parts of 10 images."""
    done = run_two("train", source, "--epochs", 2, "--out", tmp_path / "two", **TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'train.json'}\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert sum("epoch 2/2" in line for line in lines) == 1
    one = train.run_stage(source, TrainSettings(epochs=2, **TRAIN), tmp_path / "one", Flow(("dmsflow",)))
    two = tmp_path / "two" / "train.json"
    assert sorted(path.name for path in two.parent.iterdir()) == sorted(path.name for path in one.parent.iterdir())
    assert_alike(rows_of(one), rows_of(two))
    assert_same_weights(one, two)
    assert [load_manifest(each).environment["processes"] for each in (one, two)] == [1, 2]


def test_two_processes_search_as_one(tmp_path: Path) -> None:
    done = run_two(
        *(
            "search",
            "--dataset",
            "digits",
            "--set",
            "data.train_images=120",
            "--memory-mib",
            0.03,
            "--out",
            tmp_path / "two",
        ),
        **SEARCH,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'search.json'}\n"
    assert done.stderr.count("Shared weights, integer widths") == 1
    settings, data = SearchSettings(memory_mib=0.03, **SEARCH), Data(name="digits", train_images=120)
    one = load_manifest(search.run_stage(data, settings, tmp_path / "one", Flow(("dmsflow",))))
    two = load_manifest(tmp_path / "two" / "search.json")
    assert two.widths == one.widths
    assert len(rows_of(tmp_path / "two" / "search.json")) == 2
    assert_alike(rows_of(tmp_path / "one" / "search.json"), rows_of(tmp_path / "two" / "search.json"))


def test_a_process_that_is_killed_ends_all_and_one_resumes(source: Path, tmp_path: Path) -> None:
    epochs, out = 16, tmp_path / "killed"
    started = subprocess.Popen(
        command("train", source, "--epochs", epochs, "--out", out, **TRAIN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (out / "train-binary.checkpoint").exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    second = [pid for pid in workers if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second[0]), signal.SIGKILL)
    _, stderr = started.communicate(timeout=120)
    assert started.returncode == 1 and not (out / "train.json").exists(), stderr
    settings = TrainSettings(epochs=epochs, **TRAIN)
    path = train.run_stage(source, settings, out, Flow(("dmsflow",), resume=True))
    straight = train.run_stage(source, settings, tmp_path / "straight", Flow(("dmsflow",)))
    assert_alike(rows_of(path), rows_of(straight))
    assert_same_weights(path, straight)
    assert not (out / "train-binary.checkpoint").exists()


def test_an_error_of_all_processes_is_one_line(source: Path, tmp_path: Path) -> None:
    done = run_two("train", source, "--epochs", 1, "--out", tmp_path / "out", **{**TRAIN, "batch_size": 15})
    lines = [line for line in done.stderr.splitlines() if "dmsflow:" in line]
    assert lines == [
        "dmsflow: batch of 15 images: cannot be split into 2 parts; use a batch_size of 14, or more images"
    ]
    assert done.returncode == 1 and done.stdout == "" and not list((tmp_path / "out").glob("*"))


# --- shares, without processes ----------------------------------------------------------------------


def images_of(data: Dataset, share: Share, *, size: int = 8) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    order = Order(np.arange(len(data.train)), size, 0, "test")
    return Batches(data, data.train, order, replace(CPU, share=share), workers=0).run(0, 4)


@pytest.mark.parametrize("in_memory", [True, False])
def test_shares_are_the_whole_batch(in_memory: bool) -> None:
    """Crops and flips too: they belong to an image, in whichever process."""
    data = dataset(in_memory)
    shares = [images_of(data, Share(number, 4, 4)) for number in range(4)]
    for whole, *parts in zip(images_of(data, Share()), *shares, strict=True):
        for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(together, torch.cat(apart))


def test_each_process_decodes_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    data = datasets.load_dataset(Data(name="imagenet", data_dir=str(tmp_path), resolution=32))
    decoded: list[list[int]] = []
    images = type(data.train).images

    def counted(split: Any, indices: Any, seed: int | None = None) -> Any:
        if split is data.train:
            decoded[-1] += indices.tolist()
        return images(split, indices, seed)

    monkeypatch.setattr(type(data.train), "images", counted)
    shares = []
    for number in range(2):
        decoded.append([])
        order = Order(np.arange(12), 4, 0, "test")
        run = Batches(data, data.train, order, replace(CPU, share=Share(number, 2, 2)), workers=0).run(0, 3)
        shares.append([batch for batch, _ in run])
    assert sorted(decoded[0] + decoded[1]) == list(range(12)) and len(decoded[0]) == len(decoded[1])
    decoded.append([])
    whole = Batches(data, data.train, Order(np.arange(12), 4, 0, "test"), CPU, workers=0).run(0, 3)
    for (together, _), first, second in zip(whole, *shares, strict=True):
        assert torch.equal(together, torch.cat([first, second]))


def test_parts_are_normalised_apart() -> None:
    """Gradients, running statistics and results are the means over the parts, each from the same start."""
    network = load_network("vgg11", 1, 32, 4)
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8) % 4
    rate = TrainSettings(optimiser="sgd", momentum=0.0, learning_rate=1.0)

    def stepped(images: torch.Tensor, labels: torch.Tensor, parts: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        model = Model(network, dict.fromkeys(network.widths, 4), precision="float")
        where = replace(CPU, share=Share(parts=parts))
        result = weight_step(model, make_optimiser(model, rate), (images, labels), where)
        return model.tensors(), result

    together, result = stepped(images, labels, 2)
    apart = [stepped(images[rows], labels[rows], 1) for rows in (slice(4), slice(4, 8))]
    torch.testing.assert_close(result, (apart[0][1] + apart[1][1]) / 2)
    for name, tensor in together.items():
        if "norm" not in name or "running" in name:  # others are kept positive
            torch.testing.assert_close(tensor, (apart[0][0][name] + apart[1][0][name]) / 2, rtol=1e-4, atol=1e-5)


def test_parts_that_cannot_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DmsflowError, match="batch of 8 images: cannot be split into 3 parts; use a batch_size of 6, or more images"
    ):
        next(iter(images_of(dataset(), Share(parts=3))))
    with pytest.raises(
        DmsflowError, match="batch of 22 images: cannot be split into 32 parts; use a batch_size of 32, or more images"
    ):
        next(iter(images_of(dataset(), Share(parts=32), size=COUNT)))
    monkeypatch.setattr(processes, "count_processes", lambda: 3)
    with pytest.raises(DmsflowError, match="batch_parts 4: is not a multiple of the 3 processes; use 3"):
        processes.choose_share(4)


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.os, "cpu_count", lambda: 4)  # type: ignore[attr-defined]
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    threads = torch.get_num_threads()
    assert choose_place(TrainSettings(device="cpu")).threads == 4  # started by torchrun, and not joined
    monkeypatch.setattr(processes, "local", lambda: (1, 2))
    assert choose_place(TrainSettings(device="cpu")).threads == 2
    torch.set_num_threads(threads)

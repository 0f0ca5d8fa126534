"""Batches and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch

from dmsflow.datasets import ArraySplit, Dataset, Split, Subset
from dmsflow.errors import DmsflowError
from dmsflow.plugin import list_plugins, load_plugin
from dmsflow.settings import TrainSettings
from dmsflow.training import place
from dmsflow.training.batches import Batches, Order, halves, whole, with_crop
from dmsflow.training.model import Model
from dmsflow.training.place import Place, choose_place, has_fast_bfloat16
from dmsflow.training.processes import Share
from dmsflow.training.step import check_finite, make_optimiser, weight_step

COUNT, SIZE, PADDING = 22, 8, 2
CPU = Place(torch.device("cpu"), 1, False)


def dataset(in_memory: bool = True) -> Dataset:
    """Images whose pixels encode where they come from: value = 10·row + column + image."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    pixels = (10 * rows + columns)[None, :, :, None] + np.arange(COUNT)[:, None, None, None]
    split: Split = ArraySplit(pixels.astype(np.uint8), np.arange(COUNT) % 4)
    split = split if in_memory else Subset(split, np.arange(COUNT))
    return Dataset("grid", ("a", "b", "c", "d"), split, split, (100,), (1.0,), PADDING, True)


@pytest.mark.parametrize(
    ("images", "size", "parts", "found", "least"), [(1, 8, 1, 1, 2), (0, 8, 1, 0, 2), (5, 1, 1, 1, 2), (2, 8, 2, 2, 4)]
)
def test_a_batch_of_one_image_is_refused(images: int, size: int, parts: int, found: int, least: int) -> None:
    """It has no variance to normalise with; every training image counts, so none is dropped silently either."""
    data, order = dataset(), Order(np.arange(images), size, seed=0, purpose="widths")
    where = dataclasses.replace(CPU, share=Share(parts=parts))
    message = f"data set grid: a batch for widths has {found} images; at least {least} are needed"
    with pytest.raises(DmsflowError, match=message):
        Batches(data, data.train, order, where, 0)
    for order in (Order(np.arange(3), 2, 0, "widths"), Order(np.arange(1), 2, 0, "test", shuffle=False, augment=False)):
        assert [len(labels) for _, labels in Batches(data, data.train, order, CPU, 0)] == [min(len(order.indices), 2)]


@pytest.mark.parametrize(
    ("vendor", "flags", "faster"),
    [
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx512f", False),
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512_bf16", False),
    ],
)
def test_a_processor_mixes_precisions_where_that_is_faster(vendor: str, flags: str, faster: bool) -> None:
    text = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} ssse3\n\n" * 2
    assert has_fast_bfloat16(text) == faster


@pytest.mark.parametrize(
    ("capability", "triton", "compiles"),
    [((9, 0), True, True), ((7, 0), True, True), ((6, 1), True, False), ((9, 0), False, False)],
)
def test_a_gpu_compiles_by_itself_where_torch_can(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], triton: bool, compiles: bool
) -> None:
    """The paper's GTX 1080 Ti is a 6.1."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if triton else None)
    assert place._compiles(torch.device("cuda")) == compiles
    assert not place._compiles(torch.device("cpu"))


def batches(data: Dataset, *, shuffle: bool = True, augment: bool = True, seed: int = 0, size: int = 5) -> Batches:
    order = Order(np.arange(COUNT), size, seed, "test", shuffle, augment)
    return Batches(data, data.train, order, CPU, workers=0)


def test_crop_and_flip_move_pixels_and_pad_with_zero_after_normalisation() -> None:
    data = dataset()
    source = torch.from_numpy(data.train.images(np.arange(COUNT))).permute(0, 3, 1, 2).float() - 100
    padded = torch.nn.functional.pad(source, [PADDING] * 4)
    windows = padded.unfold(2, SIZE, 1).unfold(3, SIZE, 1).reshape(COUNT, -1, SIZE, SIZE)  # every crop of every image
    every = torch.cat([windows, windows.flip(3)], 1).flatten(0, 1)
    labels = torch.from_numpy(data.train.labels).repeat_interleave(len(every) // COUNT)
    mirrored = 0
    for images, targets in batches(data).run(0, 12):
        for image, label in zip(images, targets, strict=True):
            matches = (every == image[0]).flatten(1).all(1)
            assert matches.any() and label in labels[matches]
            mirrored += int(image[0, 4, 2] > image[0, 4, 5])
    assert 5 < mirrored < 55


def test_every_epoch_has_a_new_order_of_whole_batches() -> None:
    run = batches(dataset(), augment=False)
    assert run.steps == COUNT // 5
    first, second = (torch.cat([images for images, _ in run.run(e * 4, e * 4 + 4)])[:, 0, 0, 0] for e in (0, 1))
    assert len(set(first.tolist())) == 20 and first.tolist() != second.tolist()


def test_evaluation_sees_every_image_in_order() -> None:
    data = dataset()
    ordered = whole(data, data.test, CPU, 0)
    assert torch.cat([labels for _, labels in ordered]).tolist() == data.test.labels.tolist()
    assert sum(len(images) for images, _ in batches(data, shuffle=False, augment=False)) == COUNT


def test_a_batch_follows_from_its_step_alone() -> None:
    straight = list(batches(dataset()).run(0, 9))
    resumed = list(batches(dataset()).run(6, 9))
    for (a, labels_a), (b, labels_b) in zip(straight[6:], resumed, strict=True):
        assert torch.equal(a, b) and torch.equal(labels_a, labels_b)
    other = next(batches(dataset(), seed=1).run(6, 7))
    assert not torch.equal(other[0], resumed[0][0])


def test_a_streamed_split_gives_the_same_images() -> None:
    """Through the DataLoader; an ArraySplit does not augment, so neither side does here."""
    resident, streamed = batches(dataset(), augment=False), batches(dataset(in_memory=False), augment=False)
    for (a, labels_a), (b, labels_b) in zip(resident.run(2, 7), streamed.run(2, 7), strict=True):
        assert torch.equal(a, b) and torch.equal(labels_a, labels_b)


def test_halves_are_disjoint_whole_and_alike_in_every_class() -> None:
    split = dataset().train
    first, second = halves(split, 0)
    assert sorted([*first, *second]) == list(range(COUNT))
    for label in range(4):
        assert abs(int((split.labels[first] == label).sum()) - int((split.labels[second] == label).sum())) <= 1


def test_a_loss_that_is_no_number_ends_the_stage() -> None:
    with pytest.raises(DmsflowError, match="train: the loss became nan; set a lower learning_rate"):
        check_finite(float("nan"), "train")


def test_an_absent_device_is_refused() -> None:
    for name in ("cuda:7", "abacus", "meta", "", "cpu:x", "cuda\x00", "cpu" * 5000):
        with pytest.raises(DmsflowError, match="^--device .*: is not available; use auto, cpu"):
            choose_place(TrainSettings(device=name))


@pytest.mark.parametrize("precision", ["binary", "float"])
@pytest.mark.parametrize("name", list_plugins("networks"))
def test_a_step_trains_every_network_in_either_precision(name: str, precision: Literal["binary", "float"]) -> None:
    network = load_plugin("networks", name).build(1, 32, 4)
    model = Model(network, dict.fromkeys(network.widths, 4), precision=precision)
    before = {key: tensor.detach().clone() for key, tensor in model.tensors().items() if key.endswith("weight")}
    optimiser = make_optimiser(model, TrainSettings())
    loss, _ = weight_step(model, optimiser, (torch.randn(6, 1, 32, 32), torch.arange(6) % 4), CPU)
    assert torch.isfinite(loss)
    assert all(not torch.equal(tensor, before[key]) for key, tensor in model.tensors().items() if key in before)


def test_longer_trainings_have_larger_crops() -> None:
    grid = dataclasses.replace(dataset(), crop_padding=4)
    pixels = [with_crop(grid, None, epochs).crop_padding for epochs in (0.5, 12, 40, 60, 100, 300)]
    assert pixels == [0, 0, 2, 2, 4, 4]
    assert [with_crop(grid, share, 300).crop_padding for share in (0, 0.25, 1)] == [0, 1, 4]

"""Phases on a device whose memory cannot be read: torch's meta device, so that no GPU is needed.

There a tensor has a shape and a place, and no values. So a step that reads a value back, and would make
a GPU and the processor wait for each other, is an error, as is one that mixes tensors of two places.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from small_search import DATA, begin_search, threads_as_before  # noqa: F401

from dmsflow import datasets
from dmsflow.importing import load_network
from dmsflow.searching import descent, supernetwork
from dmsflow.searching.descent import Descent
from dmsflow.searching.published import PublishedSearch
from dmsflow.settings import TrainSettings
from dmsflow.training import forward, model
from dmsflow.training.batches import Batches, Order
from dmsflow.training.mask import exact_masks
from dmsflow.training.place import Place
from dmsflow.training.step import make_optimiser, weight_step

UNREADABLE = Place(torch.device("meta"), threads=1, amp=False)


@pytest.fixture(autouse=True)
def _unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernetwork, "choose_place", lambda settings: UNREADABLE)
    # It has no lower precision either, and autocast refuses it even where it is not enabled.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.parametrize(("method", "kind"), [("gradient", Descent), ("published", PublishedSearch)])
def test_no_step_of_a_search_reads_from_its_device(
    method: str, kind: type[Descent], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = begin_search(method=method, rounds=2)
    search = kind(net)
    for net.at.round in range(2):
        search.begin_round()
        search.window = search.make_window(net.at.centre, net.widths)
        kinds = iter(("mask", "sampled", "near", "full"))
        monkeypatch.setattr(descent, "pick", lambda draw, kinds=kinds: next(kinds))
        for step, (images, labels) in enumerate(net.weight_batches.run(0, 4)):
            assert images.is_meta and labels.is_meta
            net.at.weight_step = step
            active = search.choose_active()
            net.at.results.append(weight_step(net.model, net.optimiser, (images, labels), net.where, active))
        passes = [
            descent.WidthPass(search, net.at.mu, images, labels, step)
            for step, (images, labels) in enumerate(net.width_batches.run(0, 2))
        ]
    gradients = [each for one in passes for each in one.mask_gradients]
    assert all(each.is_meta for each in (*net.at.results, *gradients))
    with pytest.raises((NotImplementedError, RuntimeError)):  # a phase reads at its end, and only there
        passes[-1].gradient()


def test_no_step_of_a_compiled_form_reads_from_its_device() -> None:
    """The form that is compiled, with the widths of a sub-network as masks."""
    net = begin_search()
    images, labels = next(iter(net.weight_batches.run(0, 1)))
    masks = net.place_masks(exact_masks(torch.tensor(net.at.mu), Descent(net).make_window(net.at.mu, net.widths)))
    for active in (None, dict.fromkeys(net.widths, 3), masks):
        stack = None if active is None else net.model.stack_masks(active)
        value, right = forward._forward(net.model, images, labels, False, stack, None)
        value.backward()  # type: ignore[no-untyped-call]
        assert value.is_meta and right.is_meta


def test_no_step_of_a_training_reads_from_its_device() -> None:
    dataset = datasets.load_dataset(DATA)
    network = load_network("resnet18", dataset.channels, dataset.resolution, len(dataset.classes))
    trained = model.Model(network, network.widths).to(UNREADABLE.device)
    optimiser = make_optimiser(trained, TrainSettings())
    order = Order(np.arange(len(dataset.train)), 24, seed=0, purpose="train")
    batches = Batches(dataset, dataset.train, order, UNREADABLE, workers=0)
    for images, labels in batches.run(0, 2 * batches.steps):
        assert weight_step(trained, optimiser, (images, labels), UNREADABLE).is_meta

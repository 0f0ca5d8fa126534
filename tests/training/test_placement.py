"""Phases on a device whose memory cannot be read: torch's meta device, where no GPU is.

There a tensor has a shape and a place, and no values. So a step that reads a value back, and would make
a GPU and the processor wait for each other, is an error, as is one that mixes tensors of two places.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch

from dmsflow import datasets
from dmsflow.network.network import load_network
from dmsflow.searching import budget, descent, supernetwork
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.settings import Data, SearchSettings
from dmsflow.training import forward, model
from dmsflow.training.batches import Batches, Order
from dmsflow.training.place import Place
from dmsflow.training.step import sgd, weight_step

UNREADABLE = Place(torch.device("meta"), threads=1, amp=False)


@pytest.fixture(autouse=True)
def _unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supernetwork, "choose_place", lambda settings: UNREADABLE)
    # It has no lower precision either, and autocast refuses it even where it is not asked for any.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def begun(**changes: Any) -> SuperNetwork:
    settings = SearchSettings(memory_mib=0.03, rounds=2, weight_steps=6, width_batches=2, batch_size=12, **changes)
    dataset = datasets.load_dataset(Data(name="digits", train_images=120))
    network = load_network("vgg11", dataset.channels, dataset.resolution, len(dataset.classes))
    limits, bounds = budget.budgets(settings, network), budget.whole_range(network, settings)
    return supernetwork.begin(settings, network, limits, bounds, dataset, workers=0)


@pytest.mark.parametrize("estimator", ["exact", "clustered"])
@pytest.mark.parametrize("changes", [{}, {"reallocate": True, "subnetworks": False}])
def test_no_step_of_a_search_reads_from_its_device(
    estimator: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = begun(estimator=estimator, **changes)
    for state.round in range(2):
        descent._cluster(state)
        kinds = iter(("mask", "random", "near", "full"))
        monkeypatch.setattr(descent, "_pick", lambda draw, kinds=kinds: next(kinds))
        for step, (images, labels) in enumerate(state.weight_batches.run(0, 4)):
            assert images.is_meta and labels.is_meta
            state.weight_step = step
            active = descent._active(state)
            state.seen.append(weight_step(state.model, state.optimiser, images, labels, state.where, active))
        passes = [
            descent.width_pass(state, images, labels, step)
            for step, (images, labels) in enumerate(state.width_batches.run(0, 2))
        ]
    assert all(seen.is_meta for seen in state.seen) and all(each.is_meta for one in passes for each in one.of_masks)
    with pytest.raises((NotImplementedError, RuntimeError)):  # a phase reads at its end, and only there
        passes[-1].gradient()


def test_no_step_of_a_compiled_form_reads_from_its_device() -> None:
    """The form that is compiled, with the widths of a sub-network as masks."""
    state = begun()
    images, labels = next(iter(state.weight_batches.run(0, 1)))
    masks = state.placed(state.masks(state.mu.detach(), "weights", 0))
    for active in (None, dict.fromkeys(state.widths, 3), masks):
        stack = None if active is None else state.model.stack_masks(active)
        value, right = forward._forward_masks(state.model, images, labels, False, stack)
        value.backward()  # type: ignore[no-untyped-call]
        assert value.is_meta and right.is_meta


def test_no_step_of_a_training_reads_from_its_device() -> None:
    dataset = datasets.load_dataset(Data(name="digits", train_images=120))
    network = load_network("resnet18", dataset.channels, dataset.resolution, len(dataset.classes))
    trained = model.Model(network, network.widths).to(UNREADABLE.device)
    optimiser = sgd(trained, learning_rate=0.1, momentum=0.9, weight_decay=1e-4)
    order = Order(np.arange(len(dataset.train)), 24, seed=0, purpose="train")
    batches = Batches(dataset, dataset.train, order, UNREADABLE, workers=0)
    for images, labels in batches.run(0, 2 * batches.steps):
        assert weight_step(trained, optimiser, images, labels, UNREADABLE).is_meta

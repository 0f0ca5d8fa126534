"""The super-network of a search: its inputs, the state of its schedule, and its shared weights.

It has a fixed capacity and ordered rows, so that a round costs what training costs, however many widths the
mask mixes; any sub-network is a slice of it. A checkpoint contains where the schedule stands and the weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from dmsflow.datasets import Dataset
from dmsflow.network.network import Network
from dmsflow.searching.budget import Budgets, Range, Ratios, as_widths
from dmsflow.searching.slopes import REACH, equal_slopes, solve
from dmsflow.settings import SearchSettings
from dmsflow.training import checkpoint
from dmsflow.training.batches import Batches, Order, halves, with_crop
from dmsflow.training.mask import Mask
from dmsflow.training.model import Model, centre_quantisers
from dmsflow.training.place import Place, choose_place
from dmsflow.training.processes import ALONE
from dmsflow.training.step import make_optimiser

CAPACITY_HEADROOM = 1.4  # over the widest baseline: widths may grow beyond where they start
SAMPLING_TOP = 1.3  # sub-networks are sampled up to this many times the widest baseline, within the capacity
HELD_OUT_SHARE = 0.2  # of the half for widths: kept for the comparison at the end


@dataclass
class Schedule:
    """The position of a search in its schedule.

    Attributes:
        mu: ratios [n], the centre of every width's distribution.
        centre: mu at the start of this round; the masks are made around it.
        round, weight_step: done so far; the steps are those of this round.
        rows: of the log, one a round.
        results: loss and fraction classified right of this round's weight steps, [2] each, on the device.
    """

    mu: Ratios
    centre: Ratios
    round: int = 0
    weight_step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    results: list[Tensor] = field(default_factory=list)


@dataclass
class SuperNetwork:
    """The shared weights, what trains them and how far that is, and what the search was given.

    Attributes:
        weight_batches, width_batches, held_out: of one half of the training set; of most of the other; of the rest.
        start: ratios [n] that the widths start from.
        sampling: the range that sub-networks are sampled from.
        widths: allocated channels of the network as it stands; the model has at least these.
    """

    settings: SearchSettings
    budgets: Budgets
    where: Place
    weight_batches: Batches
    width_batches: Batches
    held_out: Batches
    start: Ratios
    sampling: Range
    at: Schedule
    widths: dict[str, int]
    model: Model
    optimiser: torch.optim.Optimizer
    others: tuple[torch.optim.Optimizer, ...] = ()  # optimisers of something else, saved with it

    def allocated(self) -> Budgets:
        """The budgets, their range as far as the super-network is wide enough for it."""
        bounds, widest = self.budgets.bounds, np.array(list(self.widths.values())) / self.budgets.base
        return replace(self.budgets, bounds=Range(bounds.low, np.minimum(bounds.high, widest)))

    def widths_near(self, ratios: Ratios) -> dict[str, int]:
        """Integer widths that fill the budgets near `ratios`, no wider than the super-network is."""
        budgets = self.allocated()
        return budgets.round_within(budgets.project(ratios))

    def whole_widths(self, ratios: Ratios) -> dict[str, int]:
        """The nearest integer widths, whether within the budgets or not."""
        whole = np.maximum(np.round(ratios * self.budgets.base), 1)
        return {name: int(width) for name, width in zip(self.widths, whole, strict=True)}

    def sample_ratios(self, draw: torch.Generator) -> Ratios:
        """Ratios [n] anywhere in the sampling range, evenly in their logarithm, that fill budgets from 1/REACH to REACH
        times those of the search, each drawn for itself."""
        low, high = np.log(self.sampling.low), np.log(self.sampling.high)
        position = torch.rand(len(low), generator=draw, dtype=torch.float64).numpy()
        budgets = self.allocated()
        factors = torch.rand(len(budgets.limits), generator=draw, dtype=torch.float64).numpy()
        scaled = budgets.scaled(REACH ** (2 * factors - 1))
        return scaled.project(np.asarray(np.exp(low * (1 - position) + high * position)))

    def place_masks(self, masks: list[Mask]) -> dict[str, Mask]:
        """A mask of every width as the network takes them: leaves, on its device, moved there in one go."""
        values = torch.cat([mask.values.detach() for mask in masks]).to(self.where.device, torch.float32)
        parts = torch.split(values, [len(mask.values) for mask in masks])
        return {name: Mask(part, mask.active) for name, mask, part in zip(self.widths, masks, parts, strict=True)}


def make_model(network: Network, widths: Mapping[str, int], settings: SearchSettings, device: torch.device) -> Model:
    """A new model of these widths; every width may be narrowed, so it keeps no running statistics."""
    model = Model(network, widths, statistics=False)
    if settings.centred:
        centre_quantisers(model)
    return model.to(device)


def begin(
    settings: SearchSettings, budgets: Budgets, dataset: Dataset, workers: int, start: Ratios | None = None
) -> SuperNetwork:
    """A search at its first round, from `start` or where all budgets are exhausted between two baselines."""
    where = choose_place(settings)
    torch.manual_seed(settings.seed)
    start = solve(budgets, equal_slopes(budgets.network)) if start is None else start
    baselines = np.stack([budgets.uniform(), budgets.equal(), budgets.interpolated(), start])
    widest = baselines.max(0)
    allocated = budgets.bounds.clip(CAPACITY_HEADROOM * np.maximum(widest, 1.0))
    capacity = {name: math.ceil(width) for name, width in as_widths(budgets.network, allocated.tolist()).items()}
    model = make_model(budgets.network, capacity, settings, where.device)
    # One half of the training set is for weights; of the other, most is for widths and the rest for neither.
    weight_half, width_half = halves(dataset.train, settings.seed)
    shuffled = np.random.default_rng([settings.seed, len(width_half)]).permutation(width_half)
    cut = max(2, round(HELD_OUT_SHARE * len(shuffled)))
    round_epochs = settings.weight_epochs or settings.weight_steps * settings.batch_size / len(weight_half)
    cropped = with_crop(dataset, settings.crop, settings.rounds * round_epochs)

    def batches(purpose: str, indices: Any, augment: bool = False, where: Place = where) -> Batches:
        order = Order(indices, settings.batch_size, settings.seed, purpose, augment=augment)
        return Batches(cropped, dataset.train, order, where, workers)

    held_out = batches("held out", shuffled[:cut], where=replace(where, share=ALONE))
    three = batches("weights", weight_half, augment=True), batches("widths", shuffled[cut:]), held_out
    sampling = Range(baselines.min(0), budgets.bounds.clip(SAMPLING_TOP * widest))
    at, optimiser = Schedule(start, start), make_optimiser(model, settings)
    return SuperNetwork(settings, budgets, where, *three, start, sampling, at, capacity, model, optimiser)


def save(net: SuperNetwork, path: Path) -> None:
    """The whole state, in one file, whole or not at all."""
    at = net.at
    facts: dict[str, Any] = {"settings": net.settings, "source": _fingerprint(net), "rows": at.rows}
    facts |= {"widths": net.widths, "allocated": net.model.widths, "round": at.round, "weight_step": at.weight_step}
    facts |= {"mu": at.mu.tolist(), "centre": at.centre.tolist(), "results": [each.tolist() for each in at.results]}
    checkpoint.save_checkpoint(path, net.model, [net.optimiser, *net.others], facts)


def _fingerprint(net: SuperNetwork) -> str:
    data = net.weight_batches.dataset
    content = msgspec.json.encode((data.name, len(data.train), data.mean, data.std, net.budgets.network))
    return hashlib.sha256(content).hexdigest()


def restore(net: SuperNetwork, path: Path) -> None:
    """Go back to a checkpoint of the same settings.

    Raises:
        DmsflowError: it is damaged, or was written under other settings.
    """
    tensors, facts = checkpoint.load_checkpoint(path, net.settings, _fingerprint(net))
    with checkpoint.continuing(path):
        allocated, widths = facts["allocated"], facts["widths"]
        if {*allocated} != {*net.budgets.network.widths} or {*widths} != {*allocated}:
            raise ValueError("it has other widths")
        if not all(1 <= widths[name] <= allocated[name] for name in widths):
            raise ValueError(f"{widths} are not within {allocated}")
        if allocated != net.model.widths:
            net.model = make_model(net.model.network, allocated, net.settings, net.where.device)
            net.optimiser = make_optimiser(net.model, net.settings)
        net.widths = widths
        checkpoint.restore(tensors, net.model, [net.optimiser, *net.others])
        results = [torch.tensor(each, device=net.where.device) for each in facts["results"]]
        mu, centre = (np.array(facts[name]).reshape(net.start.shape) for name in ("mu", "centre"))
        net.at = Schedule(mu, centre, facts["round"], facts["weight_step"], facts["rows"], results)

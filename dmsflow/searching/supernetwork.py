"""The super-network of a search: its weights, its images, and where its widths stand.

It has a fixed capacity and ordered rows, so that a round costs what training costs, however many
widths are in the window; any sub-network is a slice of it. A checkpoint holds all of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from dmsflow.datasets import Dataset
from dmsflow.network.latency import Latency
from dmsflow.network.network import Network
from dmsflow.searching import budget
from dmsflow.searching.budget import Budget, Range
from dmsflow.settings import SearchSettings
from dmsflow.training import batches, checkpoint
from dmsflow.training.batches import Batches, Order
from dmsflow.training.mask import CANDIDATES, Mask, Window, clustered_masks, exact_masks
from dmsflow.training.model import Model
from dmsflow.training.place import Place, choose_place, generator
from dmsflow.training.step import sgd

HEADROOM = 1.4  # of the capacity over the widest starting point
BAND_TOP = 1.3  # sub-networks are drawn up to this far over the widest control
BAND_NEAR = 1.35  # and, with --band start, as far as this factor from the start
WINDOW = 2.5  # half-width of the exact mask's window, in sigma
HELD_OUT = 0.2  # of the width half: kept for the comparison at the end


@dataclass
class SuperNetwork:
    """The state of a search: what a checkpoint holds, and the data it works on."""

    settings: SearchSettings
    network: Network
    limits: tuple[Budget, ...]
    bounds: Range
    latency: Latency | None  # the profile's, if there is one
    where: Place
    weight_batches: Batches
    width_batches: Batches
    held_out: Batches
    start: Tensor  # ratios [n], float64, as are all below
    band: Range  # that sub-networks are drawn from
    mu: Tensor
    widths: dict[str, int]  # of the network as it stands; the model holds at least these
    model: Model
    optimiser: torch.optim.Optimizer
    mu_optimiser: torch.optim.Adam
    round: int = 0
    weight_step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    centre: list[float] = field(default_factory=list)  # mu at the last clustering
    seen: list[Tensor] = field(default_factory=list)  # [2]: loss and fraction right of this round's weight steps
    _window: tuple[tuple[float, ...], Window] | None = None  # and what it was reckoned from

    def sigma(self) -> Tensor:
        """Scale of every width in this round, in ratio, [n]; it shrinks by one factor every round."""
        s = self.settings
        progress = self.round / max(s.rounds - 1, 1)
        scale = s.sigma_start * (s.sigma_end / s.sigma_start) ** progress
        centre = torch.tensor(self.centre, dtype=torch.float64)
        return scale * centre if s.sigma_relative else torch.full_like(centre, scale)

    def window(self) -> Window:
        """What the masks of this round mix, no wider than the network is."""
        at = (self.round, *self.centre, *self.widths.values())
        if self._window is None or self._window[0] != at:
            self._window = at, self.window_within(torch.tensor(list(self.widths.values()), dtype=torch.float64))
        return self._window[1]

    def window_within(self, most: Tensor) -> Window:
        """What the masks of this round would mix if each width had at most so many channels, [n]."""
        base, centre, sigma = (
            budget.base_widths(self.network),
            torch.tensor(self.centre, dtype=torch.float64),
            self.sigma(),
        )
        reach = (WINDOW if self.settings.estimator == "exact" else CANDIDATES[-1]) * sigma
        ends = torch.maximum(centre - reach, self.bounds.low), torch.minimum(centre + reach, self.bounds.high)
        low, high = ((end * base).round().clamp(min=1) for end in ends)
        high = torch.minimum(high, most)
        return Window(base, torch.minimum(low, high), high, sigma, centre)

    def masks(self, mu: Tensor, phase: str, step: int) -> dict[str, Mask]:
        """The mask of every width at ratios `mu` [n] in one step of a phase, on the CPU; gradients reach `mu`."""
        s, window = self.settings, self.window()
        if s.estimator == "exact":
            made = exact_masks(mu, window)
        else:
            draw = generator(s.seed, f"gumbel {phase}", self.round, step)
            made = clustered_masks(mu, window, s.temperature, _gumbel((len(mu), len(CANDIDATES)), draw))
        return dict(zip(self.network.widths, made, strict=True))

    def placed(self, masks: Mapping[str, Mask]) -> dict[str, Mask]:
        """The masks as the network takes them: leaves, on its device, moved there in one go."""
        values = torch.cat([mask.values.detach() for mask in masks.values()]).to(self.where.device, torch.float32)
        parts = torch.split(values, [len(mask.values) for mask in masks.values()])
        return {name: Mask(part, mask.active) for (name, mask), part in zip(masks.items(), parts, strict=True)}


def _gumbel(shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=draw, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    return -torch.log(-torch.log(uniform))


def begin(
    settings: SearchSettings,
    network: Network,
    limits: tuple[Budget, ...],
    bounds: Range,
    dataset: Dataset,
    workers: int,
    latency: Latency | None = None,
) -> SuperNetwork:
    """A search at its first round."""
    where = choose_place(settings)
    torch.manual_seed(settings.seed)
    start = starting_point(settings, network, limits, bounds)
    controls = torch.stack([budget.uniform(network, limits, bounds), budget.flat(network, limits, bounds), start])
    widest = controls.amax(0)
    held = bounds.clip(HEADROOM * widest.clamp(min=1.0))
    capacity = {
        name: math.ceil(base * ratio) for (name, base), ratio in zip(network.widths.items(), held.tolist(), strict=True)
    }
    model = Model(network, capacity, running_statistics=False).to(where.device)
    band = Range(controls.amin(0), bounds.clip(BAND_TOP * widest))
    if settings.band == "start":
        band = Range(bounds.clip(start / BAND_NEAR), bounds.clip(start * BAND_NEAR))
    mu = start.clone().requires_grad_()
    weight_batches, width_batches, held_out = _batches(settings, dataset, where, workers)
    return SuperNetwork(
        settings=settings,
        network=network,
        limits=limits,
        bounds=bounds,
        latency=latency,
        where=where,
        weight_batches=weight_batches,
        width_batches=width_batches,
        held_out=held_out,
        start=start,
        band=band,
        mu=mu,
        widths=capacity,
        model=model,
        optimiser=weight_optimiser(settings, model),
        mu_optimiser=torch.optim.Adam([mu], lr=settings.step_size),
        centre=mu.tolist(),
    )


def _batches(
    settings: SearchSettings, dataset: Dataset, where: Place, workers: int
) -> tuple[Batches, Batches, Batches]:
    """One half of the training set for weights; of the other, most for widths and the rest for neither."""
    weight_half, width_half = batches.halves(dataset.train, settings.seed)
    shuffled = np.random.default_rng([settings.seed, len(width_half)]).permutation(width_half)
    cut = max(1, round(HELD_OUT * len(shuffled)))
    parts = (("weights", weight_half, True), ("widths", shuffled[cut:], False), ("held out", shuffled[:cut], False))
    weights, widths, held_out = (
        Batches(
            dataset,
            dataset.train,
            Order(indices, settings.batch_size, settings.seed, purpose, augment=augment),
            where,
            workers,
        )
        for purpose, indices, augment in parts
    )
    return weights, widths, held_out


def starting_point(settings: SearchSettings, network: Network, limits: tuple[Budget, ...], bounds: Range) -> Tensor:
    """Ratios [n] that the search sets out from."""
    if settings.start == "flat":
        return budget.between(network, limits, bounds)
    ratios = bounds.clip(torch.full((len(network.widths),), settings.start_ratio, dtype=torch.float64))
    return budget.meet(network, limits, ratios, bounds) if settings.hold != "penalty" else ratios


def weight_optimiser(settings: SearchSettings, model: Model) -> torch.optim.SGD:
    """Of a new super-network."""
    return sgd(
        model, learning_rate=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def random_ratios(state: SuperNetwork, draw: torch.Generator) -> Tensor:
    """Ratios [n] anywhere in the band, evenly in their logarithm; not at the budgets yet."""
    position = torch.rand(len(state.mu), generator=draw, dtype=torch.float64)
    return (state.band.low.log() * (1 - position) + state.band.high.log() * position).exp()


def within_capacity(state: SuperNetwork, ratios: Tensor) -> dict[str, int]:
    """Whole widths at the budgets near `ratios`, no wider than the super-network is."""
    whole = room(state)
    return budget.round_within(
        state.network, state.limits, budget.meet(state.network, state.limits, ratios, whole), whole
    )


def room(state: SuperNetwork) -> Range:
    """The range of the search, as far as the super-network is wide enough for it."""
    held = torch.tensor(list(state.widths.values()), dtype=torch.float64) / budget.base_widths(state.network)
    return Range(state.bounds.low, torch.minimum(state.bounds.high, held))


def save(state: SuperNetwork, path: Path) -> None:
    """The whole state, in one file, whole or not at all."""
    facts = {
        "settings": state.settings,
        "source": _source(state),
        "round": state.round,
        "weight_step": state.weight_step,
        "rows": state.rows,
        "mu": state.mu.tolist(),
        "centre": state.centre,
        "seen": [seen.tolist() for seen in state.seen],
        "widths": state.widths,
        "held": state.model.widths,
    }
    checkpoint.save_checkpoint(path, [state.model], [state.optimiser, state.mu_optimiser], facts)


def _source(state: SuperNetwork) -> str:
    data = state.weight_batches.dataset
    content = msgspec.json.encode((data.name, len(data.train), data.mean, data.std, state.network))
    return hashlib.sha256(content).hexdigest()


def restore(state: SuperNetwork, path: Path) -> None:
    """Go back to a checkpoint of the same settings.

    Raises:
        DmsflowError: it is damaged, or was written under other settings.
    """
    tensors, facts = checkpoint.load_checkpoint(path)
    checkpoint.check_same(path, facts, state.settings, _source(state))
    if facts["held"] != state.model.widths:
        state.model = Model(state.network, facts["held"], running_statistics=False).to(state.where.device)
        state.optimiser = weight_optimiser(state.settings, state.model)
    state.widths = facts["widths"]
    checkpoint.restore(tensors, [state.model], [state.optimiser, state.mu_optimiser])
    with torch.no_grad():
        state.mu.copy_(torch.tensor(facts["mu"], dtype=torch.float64))
    state.round, state.weight_step = facts["round"], facts["weight_step"]
    state.rows, state.centre = facts["rows"], facts["centre"]
    state.seen = [torch.tensor(seen, device=state.where.device) for seen in facts["seen"]]

"""Evolution on the weights that a search has trained: the control of the gradient, and its last step.

Sub-networks at the budgets are compared with hard widths, all on the same images of the width half.
The best ones are crossed and mutated, generation after generation, until as many were tried as asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmsflow.searching import supernetwork
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.terminal import track
from dmsflow.training.forward import forward_loss
from dmsflow.training.place import generator

BATCHES = 10  # that a sub-network is tried on
POPULATION = 32  # of the first generation
PARENTS = 8
CHILDREN = 16  # of each later generation
SPREAD = 0.2  # standard deviation of a mutated log width
SPREAD_NEAR = 0.07  # and around a result that is refined
BACKWARD = 2  # a backward pass costs about two forward ones
Images = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Tried:
    """A sub-network with its loss."""

    loss: float
    ratios: Tensor
    widths: dict[str, int]


def equal_count(state: SuperNetwork) -> int:
    """How many sub-networks can be tried in the time that the gradient's width phases take."""
    batches = state.settings.rounds * (state.settings.width_batches or state.width_batches.steps)
    return max(POPULATION, batches * (1 + BACKWARD) // BATCHES)


def evolve(state: SuperNetwork, first: list[Tensor], count: int, *, near: bool = False) -> Tensor:
    """The ratios [n] of the best of `count` sub-networks, within every budget.

    Args:
        first: ratios that the first generation has.
        near: fill that generation with mutations of these, instead of draws from the whole band.
    """
    images = list(state.width_batches.run(0, min(BATCHES, state.width_batches.steps)))
    tried: list[Tried] = []
    with track("evolution", count, "sub-network") as progress:
        generation = 0
        while len(tried) < count:
            draw = generator(state.settings.seed, "evolution", generation)
            ratios = _children(state, tried, draw, near) if tried else _founders(state, first, draw, near)
            for child in ratios[: count - len(tried)]:
                tried.append(_try(state, child, images))
                progress.advance(note=f"best loss {min(each.loss for each in tried):.4f}")
            generation += 1
    return min(tried, key=lambda each: each.loss).ratios


def _founders(state: SuperNetwork, first: list[Tensor], draw: torch.Generator, near: bool) -> list[Tensor]:
    count = max(POPULATION - len(first), 0)
    if near:
        return first + [_mutated(first[number % len(first)], SPREAD_NEAR, draw) for number in range(count)]
    return first + [supernetwork.random_ratios(state, draw) for _ in range(count)]


def _children(state: SuperNetwork, tried: list[Tried], draw: torch.Generator, near: bool) -> list[Tensor]:
    """Every second one crosses two parents, the others mutate one; a parent's widths count as they were tried."""
    parents = sorted(tried, key=lambda each: each.loss)[:PARENTS]
    children = []
    for number in range(CHILDREN):
        one, other = (parents[int(torch.randint(len(parents), (1,), generator=draw))].ratios for _ in range(2))
        if number % 2:
            children.append(torch.where(torch.rand(len(one), generator=draw) < 0.5, one, other))
        else:
            children.append(_mutated(one, SPREAD_NEAR if near else SPREAD, draw))
    return children


def _mutated(ratios: Tensor, spread: float, draw: torch.Generator) -> Tensor:
    return ratios * torch.exp(spread * torch.randn(len(ratios), generator=draw, dtype=torch.float64))


@torch.no_grad()
def _try(state: SuperNetwork, ratios: Tensor, images: Images) -> Tried:
    widths = supernetwork.within_capacity(state, ratios)
    losses = [forward_loss(state.model, batch, labels, state.where, widths)[0] for batch, labels in images]
    held = [widths[name] / base for name, base in state.network.widths.items()]
    return Tried(float(torch.stack(losses).mean()), torch.tensor(held, dtype=torch.float64), widths)

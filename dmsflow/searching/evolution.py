"""Evolution on the shared weights of a search: a baseline for the gradient search.

Sub-networks that fill the budgets are compared with integer widths, all on the same images of the half for
widths. The best ones are crossed and mutated, generation after generation, until a given number were tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmsflow.searching.budget import Ratios
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.terminal import track
from dmsflow.training.batches import generator
from dmsflow.training.forward import forward_loss

BATCHES = 10  # that a sub-network is tried on: its error is then below the differences between good ones
POPULATION = 32  # of the first generation
PARENTS = 8  # a quarter of the first generation
CHILDREN = 16  # of each later generation
MUTATION_SPREAD = 0.2  # standard deviation of a mutated log width
BACKWARD_COST = 2  # a backward pass costs about two forward ones


@dataclass(frozen=True)
class Trial:
    """A sub-network with its loss."""

    loss: float
    ratios: Ratios


def count_equal_effort(net: SuperNetwork) -> int:
    """How many sub-networks can be tried in the time that the gradient's width phases take."""
    settings = net.settings
    batches = settings.rounds * (settings.width_batches or net.width_batches.steps)
    return max(POPULATION, batches * (1 + BACKWARD_COST) // BATCHES)


def evolve(net: SuperNetwork, first: list[Ratios], count: int) -> Ratios:
    """The ratios [n] of the best of `count` sub-networks, within every budget; the first generation has those given."""
    images = list(net.width_batches.run(0, min(BATCHES, net.width_batches.steps)))
    trials: list[Trial] = []
    net.model.eval()
    with track("evolution", count, "sub-network") as progress:
        generation = 0
        while len(trials) < count:
            draw = generator(net.settings.seed, "evolution", generation)
            if trials:
                ratios = _breed(trials, draw)
            else:
                ratios = first + [net.sample_ratios(draw) for _ in range(max(POPULATION - len(first), 0))]
            for child in ratios[: count - len(trials)]:
                trials.append(_try(net, child, images))
                progress.advance(note=f"best loss {min(each.loss for each in trials):.4f}")
            generation += 1
    return min(trials, key=lambda each: each.loss).ratios


def _breed(trials: list[Trial], draw: torch.Generator) -> list[Ratios]:
    """Every second child crosses two parents, the others mutate one; a parent's widths count as they were tried."""
    parents = sorted(trials, key=lambda each: each.loss)[:PARENTS]
    children = []
    for number in range(CHILDREN):
        one, other = (parents[int(torch.randint(len(parents), (1,), generator=draw))].ratios for _ in range(2))
        if number % 2:
            children.append(np.where((torch.rand(len(one), generator=draw) < 0.5).numpy(), one, other))
        else:
            noise = torch.randn(len(one), generator=draw, dtype=torch.float64).numpy()
            children.append(one * np.exp(MUTATION_SPREAD * noise))
    return children


@torch.no_grad()
def _try(net: SuperNetwork, ratios: Ratios, images: list[tuple[Tensor, Tensor]]) -> Trial:
    widths = net.widths_near(ratios)
    where, losses = net.where, []
    for batch in images:
        parts = where.share.split(*batch)
        losses += where.share.mean([forward_loss(net.model, each, labels, where, widths)[0]] for each, labels in parts)
    return Trial(float(torch.stack(losses).mean()), np.array(list(widths.values())) / net.budgets.base)

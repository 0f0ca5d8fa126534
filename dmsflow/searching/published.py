"""The search exactly as in the DMS paper, without the corrections of `descent`: chosen by `--preset paper`.

The network is rebuilt every round on three candidates of each width, with best-effort initialisation
(Eq. 9–10), weighted by a Gumbel-softmax (Eq. 5–6); Adam moves mu on every batch, and the hinge of Eq. 7
penalises costs above the budgets. Weights are trained under the mask alone, with one cosine of the
learning rate a round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmsflow.datasets import Dataset
from dmsflow.searching import supernetwork
from dmsflow.searching.budget import Budgets, Ratios, as_widths
from dmsflow.searching.descent import Descent, WidthPass
from dmsflow.searching.supernetwork import SuperNetwork, make_model
from dmsflow.settings import SearchSettings
from dmsflow.training.batches import generator
from dmsflow.training.mask import CANDIDATES, Mask, clustered_masks
from dmsflow.training.model import Active, Model, best_effort_initialise
from dmsflow.training.step import make_optimiser

COMPILED_HEADROOM = 1.25  # of a compiled model over its first network: most later networks fit without compiling again
SMALLEST_DRAW = 1e-12  # how near a uniform draw may come to 0 and 1, where Gumbel noise is infinite


def begin(settings: SearchSettings, budgets: Budgets, dataset: Dataset, workers: int) -> SuperNetwork:
    """A search at its first round, from the base widths times start_ratio."""
    start = budgets.bounds.clip(np.full_like(budgets.base, settings.start_ratio))
    net = supernetwork.begin(settings, budgets, dataset, workers, start)
    net.others = (torch.optim.Adam([torch.tensor(start, requires_grad=True)], lr=settings.step_size),)
    return net


class PublishedSearch(Descent):
    """The rounds of the paper's search."""

    REACH = CANDIDATES[-1]

    def begin_round(self) -> None:
        """Freeze the candidates around the present mu, and rebuild the network as wide as the widest of them."""
        super().begin_round()
        net, at = self.net, self.net.at
        old = self._model(net.widths)  # the network as it stands: its model may have channels beyond that
        best_effort_initialise(old, net.model)
        draw = generator(self.settings.seed, "reallocate", at.round)
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=draw)))
        widest = self.make_window(at.centre, None).high.tolist()
        net.widths = {name: int(most) for name, most in zip(net.widths, widest, strict=True)}
        new = self._model(net.widths)
        if at.round:
            best_effort_initialise(new, old)
        net.model = self._fit_into_compiled(new) if net.where.compiled else new
        net.optimiser = make_optimiser(net.model, self.settings)

    def _fit_into_compiled(self, new: Model) -> Model:
        """A model with the new network in its first channels: the compiled one, as long as it is wide enough."""
        model = self.net.model
        if self.net.at.round == 0 or any(width > model.widths[name] for name, width in new.widths.items()):
            model = self._model({name: math.ceil(COMPILED_HEADROOM * width) for name, width in new.widths.items()})
        best_effort_initialise(model, new)
        return model

    def _model(self, widths: Mapping[str, int]) -> Model:
        return make_model(self.budgets.network, widths, self.settings, self.net.where.device)

    def sigma(self, centre: Ratios) -> Ratios:
        """One scale for all widths, in units of their base."""
        return np.full_like(centre, self.sigma_factor())

    def points(self) -> list[Ratios]:
        """Mu alone, which moves with every batch."""
        return [self.net.at.mu]

    def make_masks(self, mu: Tensor, phase: str, step: int) -> list[Mask]:
        draw = generator(self.settings.seed, f"gumbel {phase}", self.net.at.round, step)
        uniform = torch.rand((len(mu), len(CANDIDATES)), generator=draw, dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform.clamp(SMALLEST_DRAW, 1 - SMALLEST_DRAW)))
        return clustered_masks(mu, self.window, self.settings.temperature, noise)

    def learning_rate(self) -> float:
        """One cosine for each round."""
        return self.cosine(self.net.at.weight_step / self.steps)

    def choose_active(self) -> Active:
        """The mask in every step."""
        return self.mask_active()

    def after_pass(self, each: WidthPass) -> None:
        """A step of Adam on mu after every batch, no further than sigma from the frozen candidates."""
        at, (adam,) = self.net.at, self.net.others
        (mu,) = adam.param_groups[0]["params"]
        with torch.no_grad():
            mu.copy_(torch.tensor(at.mu))
        mu.grad = torch.tensor(each.gradient() + self._hinge_gradient())
        adam.step()
        # The gradient fades outside the window that the candidates were frozen for.
        reach = self.sigma(at.centre)
        at.mu = self.budgets.bounds.clip(np.clip(mu.detach().numpy(), at.centre - reach, at.centre + reach))

    def _hinge_gradient(self) -> Ratios:
        """Of penalty · Σ max(0, cost - limit), the hinge of Eq. 7, at mu itself; [n]."""
        mu = torch.tensor(self.net.at.mu, requires_grad=True)
        widths = as_widths(self.budgets.network, list(mu))
        costs = [budget.cost(widths) - budget.limit for budget in self.budgets.limits]
        (gradient,) = torch.autograd.grad(self.settings.penalty * torch.stack(costs).relu().sum(), mu)
        return gradient.numpy()

    def move(self, points: Sequence[dict[str, Any]]) -> None:
        """Do nothing: mu moved with every batch."""

    def result(self) -> Ratios:
        """Mu itself, shifted within the budgets where the penalty left it outside."""
        mu = self.net.at.mu
        return self.budgets.project(mu) if self.budgets.utilisation(mu).max() > 1 else mu

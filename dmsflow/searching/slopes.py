"""What a width is worth: the loss as a convex function of the log widths, and the widths where it is lowest under budgets.

Near the budgets the loss of a network is almost linear in its log widths. So every gradient of the widths, at any
point, is an equation for a slope and a curvature of each width; and memory and multiply-accumulates are convex in log
widths, so the best widths under any budgets are the one solution of a small convex problem. No torch, and no images.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from dmsflow.network.network import WEIGHTED_OPS, Network
from dmsflow.searching.budget import Budgets, Ratios

REACH = 2.0  # slopes are learned for, and one super-network serves, budgets from half to twice those of its search
POINTS = 4  # at which a width phase takes gradients: mu, and others sampled from the whole range
AGEING = 0.75  # what a point counts, each round later: the weights that it was measured with have changed since
SMALLEST_SLOPE = 0.05  # of the mean: one below is noise, and would leave its width at the end of its range
STILL_WORTH = math.log(4.0)  # above the centre, in log ratio: up to there at least, wider is no worse
SMALLEST = 1e-9  # of a slope, or of a squared distance of points: never zero
JUMPS = (1, 8, 32)  # channels that a width may change by at once: one, or to the next multiple that kernels use
RULES = ("balanced", "interpolated", "equal", "uniform")  # for widths that need no training: what a search must beat
SWEEPS = 20  # over all pairs of widths, at most; three or four are enough


class Slopes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of the loss: Σ −slope · (x − centre) + ½ curvature · (x − centre)², x being log ratios; [n] each.

    Attributes:
        centre: log ratios around which it was learned.
        slope: how much lower the loss is for each unit of a log ratio, at the centre; above zero.
        error: standard error of the slope, before it is drawn towards the others.
        curvature: how much the slope falls for each unit of a log ratio; not below zero.
    """

    centre: list[float]
    slope: list[float]
    error: list[float]
    curvature: list[float]

    def loss(self, log_ratios: Ratios) -> float:
        """Of a network at log ratios [n], against that at the centre."""
        away = log_ratios - self.centre
        return float(away @ (np.array(self.curvature) * away / 2 - self.slope))

    def gradient(self, log_ratios: Ratios) -> Ratios:
        """∂ loss / ∂ log ratio, [n]."""
        return np.asarray(np.array(self.curvature) * (log_ratios - self.centre) - self.slope)


def equal_slopes(network: Network) -> Slopes:
    """Every layer is worth as much as any other, and a width as much as the layers that share it: known without training."""
    shares = Counter(layer.width for layer in network.layers if layer.op in WEIGHTED_OPS)
    zeros = [0.0] * len(network.widths)
    return Slopes(centre=zeros, slope=[float(shares[name]) for name in network.widths], error=zeros, curvature=zeros)


def fit_slopes(points: Sequence[Mapping[str, Any]], network: Network) -> Slopes:
    """The slopes and curvatures that explain gradients best, drawn towards `equal_slopes` as far as noise explains them.

    Args:
        points: each with "round", "mu" (ratios [n]) and "gradient" (∂ loss / ∂ log ratio, [n]); at least one.
    """
    prior = np.array(equal_slopes(network).slope)
    x, gradients = np.log([point["mu"] for point in points]), np.array([point["gradient"] for point in points])
    rounds = np.array([point["round"] for point in points], np.float64)
    weight = AGEING ** (rounds.max() - rounds)
    effective = weight.sum() ** 2 / np.square(weight).sum()
    weight = (weight / weight.sum())[:, None]
    centre, mean = (weight * x).sum(0), (weight * gradients).sum(0)
    spread, noise = (weight * (x - centre) ** 2).sum(0), (weight * (gradients - mean) ** 2).sum(0)
    usual = prior * max(float(-mean @ prior / (prior @ prior)), SMALLEST)
    # A ridge: the usual curvature is of the size of the usual slope, as where the loss is a power of the width.
    ridge = noise / (effective * usual**2) + SMALLEST
    curvature = np.maximum((weight * (x - centre) * (gradients - mean)).sum(0) / (spread + ridge), 0)
    rest = gradients - mean - curvature * (x - centre)
    error = np.sqrt((weight * rest**2).sum(0) / max(effective - 1, 1))
    slope = np.maximum(prior * _draw_together(-mean / prior, error / prior), SMALLEST_SLOPE * usual)
    curvature = np.minimum(curvature, slope / STILL_WORTH)
    return Slopes(centre=centre.tolist(), slope=slope.tolist(), error=error.tolist(), curvature=curvature.tolist())


def _draw_together(values: Ratios, errors: Ratios) -> Ratios:
    """Values [n] drawn towards their mean as far as their standard errors explain how they differ.

    How far the true ones lie apart is estimated from both (DerSimonian & Laird, Controlled Clinical Trials 7, 1986): where
    the errors explain all of it, all are the mean.
    """
    own = np.square(errors) + SMALLEST**2
    weight = 1 / own
    mean = weight @ values / weight.sum()
    excess = weight @ np.square(values - mean) - (len(values) - 1)
    apart = max(excess / max(weight.sum() - np.square(weight).sum() / weight.sum(), SMALLEST), 0.0)
    weight = 1 / (own + apart)
    mean = weight @ values / weight.sum()
    return np.asarray((values * apart + mean * own) / (apart + own))


def solve(budgets: Budgets, slopes: Slopes) -> Ratios:
    """The ratios [n] of the lowest loss within every budget.

    Costs that move in steps are taken without them first (`Budget.smooth`); `Budgets.project` then keeps the steps.
    """
    from scipy.optimize import minimize

    scale = float(np.mean(slopes.slope))
    low, high = np.log(budgets.bounds.low), np.log(budgets.bounds.high)

    found = minimize(
        lambda x: slopes.loss(x) / scale,
        np.clip(np.log(budgets.equal()), low, high),
        jac=lambda x: slopes.gradient(x) / scale,
        method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "ineq", "fun": lambda x: -np.log(budgets.utilisation(np.exp(x), smooth=True))},
        options={"maxiter": 300, "ftol": 1e-10},
    )
    return budgets.project(np.exp(np.clip(found.x, low, high)))


def solve_integers(budgets: Budgets, slopes: Slopes) -> dict[str, int]:
    """The integer widths of the lowest loss within every budget, its steps included: from `solve`, then by exchanges.

    One width grows, alone or while another shrinks, by a channel or to a multiple that kernels use, as long as
    that lowers the loss.
    """
    names, base = list(budgets.network.widths), budgets.base
    least, most = np.ceil(budgets.bounds.low * base - 1e-6), np.floor(budgets.bounds.high * base + 1e-6)
    found = np.array(list(budgets.round_within(solve(budgets, slopes)).values()), np.float64)

    smooth = [each for each in budgets.limits if each.smooth is None]
    limits, excess = np.array([each.limit for each in smooth]), np.zeros(len(smooth))
    freed: dict[tuple[int, int], Ratios] = {}  # by a width and how it shrinks

    def narrowed(widths: Ratios, down: int, step: int) -> Ratios:
        tried = widths.copy()
        if step:
            tried[down] = (-(-widths[down] // step) - 1) * step
        return tried

    def terms(place: int, width: float) -> float:
        """The part of the loss that one width has."""
        away = np.log(width / base[place]) - slopes.centre[place]
        return float(away * (slopes.curvature[place] * away / 2 - slopes.slope[place]))

    def costs(tried: Ratios) -> Ratios:
        """Of the budgets whose costs are products of widths, [budgets]."""
        widths = dict(zip(names, tried.tolist(), strict=True))
        return np.array([each.cost(widths) for each in smooth])

    def may_fit(up: int, higher: float, down: int, step: int) -> bool:
        """Whether what `down` frees can be what `up` takes: quick, for `step` frees no more beside a wider `up`."""
        if (down, step) not in freed:
            freed[down, step] = costs(found) - costs(narrowed(found, down, step))
        return bool((freed[down, step] * (higher / found[up]) * (1 + 1e-9) >= excess).all())

    def improve(up: int) -> bool:
        for jump in JUMPS:
            higher = (found[up] // jump + 1) * jump
            if higher > most[up]:
                continue
            grown = found.copy()
            grown[up] = higher
            gain = terms(up, found[up]) - terms(up, higher)
            excess[:] = costs(grown) - limits
            others = itertools.product((place for place in range(len(names)) if place != up), JUMPS)
            for down, step in ((up, 0), *others):
                tried = narrowed(grown, down, step)
                if step:
                    worth = terms(down, tried[down]) - terms(down, found[down]) if tried[down] >= least[down] else gain
                    if gain <= worth or not may_fit(up, higher, down, step):
                        continue
                if budgets.met(dict(zip(names, map(int, tried), strict=True))):
                    found[:] = tried
                    freed.clear()
                    return True
        return False

    for _ in range(SWEEPS):
        if not sum(improve(up) for up in range(len(names))):
            break
    return dict(zip(names, map(int, found), strict=True))


def rule_widths(budgets: Budgets, rule: str) -> dict[str, int]:
    """Integer widths of one of RULES, within every budget."""
    if rule == "balanced":
        return solve_integers(budgets, equal_slopes(budgets.network))
    return budgets.round_within(getattr(budgets, rule)())

"""A search step under budgets: how far every width may move, and how all budgets are exhausted.

Moving along a budget is easiest in log ratios: its normal is then the elasticity of the cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dmsflow.searching.budget import BISECTIONS, Budgets, Ratios, as_widths

SWEEPS = 12  # over the prices of several budgets, each found while the others stay as they are
NEWTON_STEPS = 8  # Newton's method converges quadratically: from within NEARBY these are enough
NEARBY = 0.2  # change of a log width that exhausting the budgets may take
GROWTH = 2.0  # a bounded move may grow a width this many times further than it may shrink it, on half the evidence
SMALLEST_ELASTICITY = 1e-6  # a smaller one counts as this, so that the highest price stays finite


def normals(budgets: Budgets, ratios: Ratios) -> Ratios:
    """d log cost / d log ratio of every budget, [budgets, n]."""
    log_ratios = torch.tensor(ratios).log().requires_grad_()
    rows = []
    for budget in budgets.limits:
        value = torch.log(budget.cost(budgets.network, as_widths(budgets.network, list(log_ratios.exp()))))
        rows.append(torch.autograd.grad(value, log_ratios)[0].numpy())
    return np.stack(rows)


def exhaust(budgets: Budgets, ratios: Ratios) -> Ratios:
    """The nearest log ratios at which every budget is just met; those of `project` where there are none near.

    A common shift exhausts the tightest budget alone. Newton steps along the normals of all budgets exhaust
    the others too.
    """
    found = projected = budgets.project(ratios)
    if len(budgets.limits) == 1:
        return found
    bounds = budgets.bounds
    reach = np.log(bounds.high / bounds.low)  # a longer step ends at a bound all the same, and may overflow
    for _ in range(NEWTON_STEPS):
        left = -np.log(budgets.utilisation(found))
        step: Any = np.linalg.lstsq(normals(budgets, found), left, rcond=None)[0]
        found = bounds.clip(found * np.exp(np.clip(step, -reach, reach)))
        if not (np.abs(np.log(found / projected)) < NEARBY).all():
            return projected
    found = budgets.project(found)
    return found if budgets.utilisation(found).min() > budgets.utilisation(projected).min() else projected


def bounded_move(gradient: Ratios, error: Ratios, normal_rows: Ratios, slack: Ratios, size: float) -> Ratios:
    """How far every log ratio moves: along the budgets, by at most `size` down and GROWTH·size up.

    d = -(g + λn) / (|g| + λn + SE), zero where the evidence is weak: growing needs one standard
    error, shrinking two. λ ≥ 0 is found by bisection, one for each budget: the smallest that
    keeps the budget to first order (Σ n·d ≤ what is left of it), so zero where enough is left.

    Args:
        gradient, error: of the loss in log ratios and its standard error, [n].
        normal_rows: of the budgets, [budgets, n].
        slack: log(limit / cost) of each budget, [budgets].
    """

    def move(prices: Ratios) -> Ratios:
        pull = prices @ normal_rows
        force = gradient + pull
        threshold = np.where(force > 0, 2 * error, error)
        step = -force / np.maximum(np.abs(gradient) + pull + error, 1e-300)  # 0 / 0 is no step
        step = size * np.where(step > 0, GROWTH * step, step)
        return np.where(np.abs(force) < threshold, 0.0, step)

    prices = np.zeros(len(normal_rows))
    least = float(np.maximum(normal_rows, SMALLEST_ELASTICITY).min())
    ceiling = float(np.abs(gradient).max() + 2 * error.max()) / least
    for _ in range(SWEEPS if len(prices) > 1 else 1):
        for index, row in enumerate(normal_rows):
            low, high = 0.0, ceiling
            for _ in range(BISECTIONS):
                prices[index] = (low + high) / 2
                over = row @ move(prices) > slack[index]
                low, high = (prices[index], high) if over else (low, prices[index])
    return move(prices)

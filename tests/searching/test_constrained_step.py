"""Steps along the budgets: bounded, within them, and where all budgets are exhausted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_budget import CASES, NETWORKS, Case, draw_ratios, make_budgets

from dmsflow.searching.budget import as_widths
from dmsflow.searching.constrained_step import GROWTH, NEARBY, bounded_move, exhaust, normals


@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(2, 12), st.floats(0, 0.2))
@settings(max_examples=60, deadline=None)
def test_a_bounded_move_is_bounded_and_keeps_the_budgets(seed: int, count: int, widths: int, left: float) -> None:
    draw = np.random.default_rng(seed)
    gradient, rows = draw.standard_normal(widths), draw.uniform(size=(count, widths)) + 0.05
    slack = left * draw.uniform(size=count)
    move = bounded_move(gradient, np.full(widths, 1e-9), rows, slack, 0.15)
    assert move.min() >= -0.15 and move.max() <= 0.3
    assert (rows @ move - slack).max() < (1e-6 if count == 1 else 0.01)


def test_what_is_left_of_a_budget_is_spent() -> None:
    """With enough left every width grows as far as it may, and with none some have to shrink."""
    gradient, error, rows = -np.array([0.01, 0.02, 0.03]), np.full(3, 1e-9), np.ones((1, 3))
    plenty, none = (bounded_move(gradient, error, rows, np.array([left]), 0.1) for left in (1.0, 0.0))
    assert plenty.tolist() == pytest.approx([0.2] * 3, rel=1e-3)
    assert none.min() < 0 < none.max() and abs(float(none.sum())) < 1e-9


def test_a_bounded_move_descends_where_the_evidence_is_good() -> None:
    gradient, error = np.array([-1.0, 1.0, -0.05, 0.15]), np.full(4, 0.1)
    move = bounded_move(gradient, error, np.zeros((1, 4)), np.array([1e9]), 1.0)
    assert move[0] > 0.8 * GROWTH and move[1] < -0.8
    assert move[2] == 0 and move[3] == 0  # under one standard error; shrinking on less than two


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(0, 10**6))
def test_exhausting_uses_every_budget_as_far_as_a_projection_or_further(case: Case, seed: int) -> None:
    budgets = make_budgets(case)
    ratios = draw_ratios(budgets, seed)
    projected, found = budgets.project(ratios), exhaust(budgets, ratios)
    used = budgets.utilisation(found)
    assert used.max() <= 1 and used.min() >= budgets.utilisation(projected).min()
    assert np.abs(np.log(found / projected)).max() < 2 * NEARBY


def test_two_budgets_that_a_projection_leaves_are_exhausted() -> None:
    budgets = make_budgets(("vgg11", 0.078, 16.0))
    ratios = budgets.interpolated() * np.array([1.1, 1, 1, 1, 1, 1, 1, 0.95])
    assert budgets.utilisation(budgets.project(ratios)).min() < 0.98
    assert budgets.utilisation(exhaust(budgets, ratios)).min() > 1 - 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_a_normal_is_the_elasticity_of_its_cost(name: str) -> None:
    budgets = make_budgets((name, 0.1, 20.0))
    ratios = draw_ratios(budgets, 3)
    for index in range(len(ratios)):
        step = np.zeros_like(ratios)
        step[index] = 1e-6
        for row, limit in zip(normals(budgets, ratios), budgets.limits, strict=True):
            above, below = (
                np.log(limit.cost(budgets.network, as_widths(budgets.network, list(ratios * np.exp(sign * step)))))
                for sign in (1, -1)
            )
            assert row[index] == pytest.approx((above - below) / 2e-6, rel=1e-4)

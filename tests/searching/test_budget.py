"""Budgets: held at every step, met by whole widths, refused when they cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsflow.errors import DmsflowError
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.network.network import Network
from dmsflow.searching import budget
from dmsflow.settings import SearchSettings

NETWORKS = {"vgg11": vgg11.build(3, 32, 10), "resnet18": resnet18.build(3, 32, 10)}
CASES = st.tuples(st.sampled_from(sorted(NETWORKS)), st.floats(0.03, 1.0), st.none() | st.floats(6, 200))


def problem(case: tuple[str, float, float | None]) -> tuple[Network, tuple[budget.Budget, ...], budget.Range]:
    name, memory, macs = case
    chosen = SearchSettings(memory_mib=memory, macs_m=macs)
    return NETWORKS[name], budget.budgets(chosen, NETWORKS[name]), budget.whole_range(NETWORKS[name], chosen)


def drawn(network: Network, seed: int) -> torch.Tensor:
    return torch.exp(
        torch.randn(len(network.widths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(0, 10**6))
def test_a_shift_meets_the_tightest_budget_exactly_and_rounding_stays_within(
    case: tuple[str, float, float | None], seed: int
) -> None:
    network, limits, bounds = problem(case)
    ratios = budget.meet(network, limits, drawn(network, seed), bounds)
    used = budget.use(network, limits, ratios)
    at_the_top = bool((ratios == bounds.high).all())
    assert used <= 1 and (used > 1 - 1e-9 or at_the_top)
    assert bool((ratios >= bounds.low).all()) and bool((ratios <= bounds.high).all())
    widths = budget.round_within(network, limits, ratios, bounds)
    assert budget.met(network, limits, widths) and min(widths.values()) >= 1
    held_up = bool((ratios == bounds.low).any())  # by --min-ratio: others have to give way
    for (name, base), ratio in zip(network.widths.items(), ratios, strict=True):
        assert held_up or abs(widths[name] - base * float(ratio)) <= 1 + 1e-9


@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(2, 12), st.floats(0, 0.2))
@settings(max_examples=60, deadline=None)
def test_a_bounded_move_is_bounded_and_keeps_the_budgets(seed: int, count: int, widths: int, left: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    gradient = torch.randn(widths, dtype=torch.float64, generator=draw)
    normals = torch.rand(count, widths, dtype=torch.float64, generator=draw) + 0.05
    slack = left * torch.rand(count, dtype=torch.float64, generator=draw)
    move = budget.bounded_move(gradient, torch.full_like(gradient, 1e-9), normals, slack, 0.15)
    assert float(move.min()) >= -0.15 and float(move.max()) <= 0.3
    assert float((normals @ move - slack).max()) < (1e-6 if count == 1 else 0.01)


def test_what_is_left_of_a_budget_is_spent() -> None:
    """With enough left every width grows as far as it may, and with none some have to shrink."""
    gradient = -torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)
    error = torch.full_like(gradient, 1e-9)
    normals = torch.ones(1, 3, dtype=torch.float64)
    plenty, none = (budget.bounded_move(gradient, error, normals, torch.tensor([left]), 0.1) for left in (1.0, 0.0))
    assert plenty.tolist() == pytest.approx([0.2] * 3, rel=1e-3)
    assert none.min() < 0 < none.max() and abs(float(none.sum())) < 1e-9


def test_a_bounded_move_descends_where_the_evidence_is_good() -> None:
    gradient = torch.tensor([-1.0, 1.0, -0.05, 0.15], dtype=torch.float64)
    error = torch.full_like(gradient, 0.1)
    nothing = torch.zeros(0, dtype=torch.float64)
    move = budget.bounded_move(gradient, error, torch.zeros(0, 4, dtype=torch.float64), nothing, 1.0, growth=1.0)
    assert move[0] > 0.8 and move[1] < -0.8
    assert move[2] == 0 and move[3] == 0  # under one standard error; shrinking on less than two


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(0, 10**6))
def test_using_up_meets_every_budget_as_far_as_one_shift_or_further(
    case: tuple[str, float, float | None], seed: int
) -> None:
    network, limits, bounds = problem(case)
    ratios = drawn(network, seed)
    shifted, found = budget.meet(network, limits, ratios, bounds), budget.use_up(network, limits, ratios, bounds)
    used, used_by_shift = ([budget.use(network, [limit], each) for limit in limits] for each in (found, shifted))
    assert max(used) <= 1 and min(used) >= min(used_by_shift)
    assert float(torch.log(found / shifted).abs().max()) < 2 * budget.NEARBY


def test_two_budgets_that_one_shift_leaves_are_used_up() -> None:
    network, limits, bounds = problem(("vgg11", 0.078, 16.0))
    ratios = budget.between(network, limits, bounds) * torch.tensor([1.1, 1, 1, 1, 1, 1, 1, 0.95], dtype=torch.float64)
    shifted, found = budget.meet(network, limits, ratios, bounds), budget.use_up(network, limits, ratios, bounds)
    assert min(budget.use(network, [limit], shifted) for limit in limits) < 0.98
    assert min(budget.use(network, [limit], found) for limit in limits) > 1 - 1e-6


def test_a_tangent_gradient_leaves_the_budgets_alone() -> None:
    normals = torch.rand(2, 8, dtype=torch.float64)
    flat_part = budget.tangent(torch.randn(8, dtype=torch.float64), normals)
    assert torch.allclose(normals @ flat_part, torch.zeros(2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_normal_is_the_elasticity_of_its_cost(name: str) -> None:
    network, limits, _ = problem((name, 0.1, 20.0))
    ratios = drawn(network, 3)
    rows = budget.normals(network, limits, ratios)
    for index in range(len(ratios)):
        step = torch.zeros_like(ratios)
        step[index] = 1e-6
        for row, limit in zip(rows, limits, strict=True):
            above, below = (
                float(torch.log(limit.cost(network, budget.widths_at(network, ratios * torch.exp(sign * step)))))
                for sign in (1, -1)
            )
            assert float(row[index]) == pytest.approx((above - below) / 2e-6, rel=1e-4)


def test_the_hinge_of_eq_7() -> None:
    network = NETWORKS["vgg11"]
    limits = (budget.Budget("memory", "MiB", 0.1, budget.memory_mib),)
    ones = torch.ones(8, dtype=torch.float64)
    assert float(budget.penalty(network, limits, ones, 0.01)) == 0
    twice = float(budget.penalty(network, limits, 2 * ones, 0.01))
    assert twice == pytest.approx(0.01 * (0.2929 - 0.1), rel=1e-3)


def test_without_a_budget_the_base_network_sets_it() -> None:
    network = NETWORKS["vgg11"]
    (limit,) = budget.budgets(SearchSettings(), network)
    assert limit.limit == budget.memory_mib(network, network.widths)


def test_the_controls_are_what_they_are_called() -> None:
    network, limits, bounds = problem(("vgg11", 0.0778, None))
    flat = budget.round_within(network, limits, budget.flat(network, limits, bounds), bounds)
    assert max(flat.values()) - min(flat.values()) <= 1 and flat["conv3"] == 91
    uniform = budget.uniform(network, limits, bounds)
    assert float(uniform.max() - uniform.min()) < 1e-9
    assert torch.equal(budget.between(network, limits, bounds), budget.flat(network, limits, bounds))


def test_between_spends_both_budgets() -> None:
    network, limits, bounds = problem(("vgg11", 0.0778, 16.0))
    ratios = budget.between(network, limits, bounds)
    assert all(budget.use(network, [limit], ratios) > 0.99 for limit in limits)


@pytest.mark.parametrize(("memory", "macs"), [(0.001, None), (None, 0.01), (0.0778, 0.01)])
def test_an_infeasible_budget_says_what_is_possible(memory: float | None, macs: float | None) -> None:
    chosen = SearchSettings(memory_mib=memory, macs_m=macs)
    network = NETWORKS["vgg11"]
    with pytest.raises(
        DmsflowError, match=r"smallest .* MiB, .* base 0\.0778 MiB, 9\.88 M MACs, largest .*; allow at least"
    ):
        budget.feasibility(network, budget.budgets(chosen, network), budget.whole_range(network, chosen))


def test_budgets_that_leave_nothing_to_choose_are_refused() -> None:
    network = NETWORKS["vgg11"]
    for memory in (100.0, float("inf")):
        chosen = SearchSettings(memory_mib=memory)
        with pytest.raises(
            DmsflowError, match=r"even the largest vgg11 is within .*; give a smaller one, or raise --max"
        ):
            budget.feasibility(network, budget.budgets(chosen, network), budget.whole_range(network, chosen))

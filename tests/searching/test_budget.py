"""Budgets: kept at every step and by integer widths, refused where no widths keep them."""

from __future__ import annotations

import doctest
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import small_network
from msgspec.structs import replace
from tiny import build as build_tiny

from dmsflow.errors import DmsflowError
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.searching import budget as budget_module
from dmsflow.searching.budget import Budgets, Ratios, macs_m, memory_mib
from dmsflow.searching.slopes import equal_slopes, solve
from dmsflow.settings import SearchSettings

NETWORKS = {"vgg11": vgg11.build(3, 32, 10), "resnet18": resnet18.build(3, 32, 10)}
CASES = st.tuples(st.sampled_from(sorted(NETWORKS)), st.floats(0.03, 1.0), st.none() | st.floats(6, 200))
Case = tuple[str, float, float | None]
ONE_WIDTH = Network(
    name="one",
    channels=3,
    resolution=8,
    classes=4,
    widths={"only": 10},
    layers=(
        Layer(name="stem", op="conv", inputs=(INPUT,), width="only", kernel=3),
        Layer(name="average", op="average_pool", inputs=("stem",)),
        Layer(name="dense", op="dense", inputs=("average",), width=4),
    ),
)


def make_budgets(case: Case) -> Budgets:
    name, memory, macs = case
    return Budgets.from_settings(SearchSettings(memory_mib=memory, macs_m=macs), NETWORKS[name])


def draw_ratios(budgets: Budgets, seed: int) -> Ratios:
    return np.exp(np.random.default_rng(seed).standard_normal(len(budgets.base)))


def test_the_example_of_vgg11_is_true() -> None:
    assert doctest.testmod(budget_module) == (0, 4)


@settings(max_examples=60, deadline=None)
@given(CASES, st.integers(0, 10**6))
def test_a_projection_meets_the_tightest_budget_exactly_and_rounding_stays_within(case: Case, seed: int) -> None:
    budgets = make_budgets(case)
    ratios = budgets.project(draw_ratios(budgets, seed))
    used = budgets.utilisation(ratios).max()
    assert used <= 1 and (used > 1 - 1e-9 or bool((ratios == budgets.bounds.high).all()))
    assert bool((ratios >= budgets.bounds.low).all()) and bool((ratios <= budgets.bounds.high).all())
    widths = budgets.round_within(ratios)
    assert budgets.met(widths) and min(widths.values()) >= 1
    # A width that min_ratio keeps up to a whole channel takes from the others.
    kept_up = bool((np.ceil(budgets.bounds.low * budgets.base - 1e-6) > ratios * budgets.base - 1).any())
    assert kept_up or (np.abs(np.array(list(widths.values())) - budgets.base * ratios) <= 1 + 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(CASES)
def test_the_baselines_fill_every_budget_that_they_can(case: Case) -> None:
    budgets = make_budgets(case)
    for ratios in (budgets.uniform(), budgets.equal(), budgets.interpolated()):
        assert budgets.utilisation(ratios).max() <= 1 and budgets.met(budgets.round_within(ratios))
    least = [budgets.utilisation(each).min() for each in (budgets.interpolated(), budgets.equal())]
    assert least[0] >= least[1]


@settings(max_examples=100, deadline=None)
@example(build_tiny(3, 8, 4), 1.0, 0.4375, 573544)
@given(
    st.integers(0, 300).map(small_network) | st.sampled_from([ONE_WIDTH, build_tiny(3, 8, 4)]),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_every_budget_of_any_network_is_kept(network: Network, memory: float, macs: float | None, seed: int) -> None:
    """With limits anywhere from the costs of the smallest network to those of the largest."""
    free = Budgets.from_settings(SearchSettings(), network)
    ends = np.ceil(free.bounds.low * free.base - 1e-6), np.floor(free.bounds.high * free.base + 1e-6)
    smallest, largest = (dict(zip(network.widths, map(int, end), strict=True)) for end in ends)
    limits = {}
    for name, cost, position in (("memory_mib", memory_mib, memory), ("macs_m", macs_m, macs)):
        if position is not None:
            low, high = cost(network, smallest), cost(network, largest)
            limits[name] = max(low, low * (high / low) ** position)
    budgets = Budgets.from_settings(SearchSettings(**limits), network)
    anywhere = draw_ratios(budgets, seed)
    for ratios in (budgets.project(anywhere), solve(budgets, equal_slopes(network))):
        assert budgets.utilisation(ratios).max() <= 1
        assert (budgets.bounds.low <= ratios).all() and (ratios <= budgets.bounds.high).all()
        assert budgets.met(budgets.round_within(ratios))
    widths = budgets.round_within(anywhere)  # also of ratios beyond the budgets
    assert budgets.met(widths) and all(width >= smallest[name] for name, width in widths.items())


def test_without_a_budget_the_base_network_sets_it() -> None:
    network = NETWORKS["vgg11"]
    (limit,) = Budgets.from_settings(SearchSettings(), network).limits
    assert limit.limit == memory_mib(network, network.widths)


def test_the_baselines_are_what_they_are_called() -> None:
    budgets = make_budgets(("vgg11", 0.0778, None))
    equal = budgets.round_within(budgets.equal())
    assert max(equal.values()) - min(equal.values()) <= 1 and equal["conv3"] == 91
    assert np.ptp(budgets.uniform()) < 1e-9
    assert np.array_equal(budgets.interpolated(), budgets.equal())


def test_interpolated_widths_exhaust_both_budgets() -> None:
    budgets = make_budgets(("vgg11", 0.0778, 16.0))
    assert (budgets.utilisation(budgets.interpolated()) > 0.99).all()


@pytest.mark.parametrize(("memory", "macs"), [(0.001, None), (None, 0.01), (0.0778, 0.01)])
def test_an_infeasible_budget_says_what_is_possible(memory: float | None, macs: float | None) -> None:
    budgets = Budgets.from_settings(SearchSettings(memory_mib=memory, macs_m=macs), NETWORKS["vgg11"])
    possible = r"smallest .* MiB, .* base 0\.0778 MiB, file 86\.7 KiB, 9\.88 M MACs, largest .*; allow at least"
    with pytest.raises(DmsflowError, match=possible):
        budgets.check_feasible()


@pytest.mark.parametrize("memory", [100.0, float("inf")])
def test_budgets_that_leave_nothing_to_choose_are_refused(memory: float) -> None:
    budgets = Budgets.from_settings(SearchSettings(memory_mib=memory), NETWORKS["vgg11"])
    with pytest.raises(DmsflowError, match=r"even the largest vgg11 is within .*; give a smaller budget, or set"):
        budgets.check_feasible()


def test_a_network_of_fixed_widths_has_nothing_to_search() -> None:
    network = NETWORKS["vgg11"]
    layers = tuple(
        replace(each, width=8 if each.op in ("conv", "binary_conv") else each.width) for each in network.layers
    )
    budgets = Budgets.from_settings(SearchSettings(memory_mib=0.1), replace(network, layers=layers, widths={}))
    with pytest.raises(DmsflowError, match="network vgg11: has no width to search; use another: numbers, and"):
        budgets.check_feasible()


@pytest.mark.parametrize("field", ["memory_mib", "macs_m", "file_kib"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_budget_that_an_error_names_is_enough(name: str, field: str) -> None:
    def check(limit: float) -> None:
        Budgets.from_settings(SearchSettings(**{field: limit}), NETWORKS[name]).check_feasible()

    with pytest.raises(DmsflowError, match="allow at least") as refused:
        check(1e-6)
    check(float(re.search(r"allow at least ([\d.e+-]+) ", str(refused.value))[1]))

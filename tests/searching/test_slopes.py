"""The widths of the lowest predicted loss: within every budget, no worse than rules, near the best of all; slopes found again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import small_network
from tiny import build as build_tiny

from dmsflow.importing import load_network
from dmsflow.network.latency import build_latency
from dmsflow.network.network import Network
from dmsflow.network.profile import load_profile
from dmsflow.searching.budget import GROWTH_PROBE, Budgets, Ratios, as_widths, macs_m, memory_mib
from dmsflow.searching.slopes import STILL_WORTH, Slopes, equal_slopes, fit_slopes, solve, solve_integers
from dmsflow.settings import SearchSettings

VGG11 = load_network("vgg11", 3, 32, 10)
# Limits just before a step, where one factor for all widths would stop at its edge.
STEPS = (("epyc-litert", 0.055), ("cortex-a53", 1.301), ("cortex-a76", 0.202), ("epyc-lce", 0.225))


def on_device(profile: str, ms: float, memory: float = 0.078) -> Budgets:
    chosen = SearchSettings(memory_mib=memory, profile=profile, latency_ms=ms)
    return Budgets.from_settings(chosen, VGG11, build_latency(VGG11, load_profile(profile)))


def random_slopes(network: Network, seed: int) -> Slopes:
    noise, count = np.random.default_rng(seed), len(network.widths)
    slope, curvature = noise.uniform(0.1, 2, count), noise.uniform(0, 1, count) * (seed % 2)
    centre = noise.normal(0, 0.3, count)
    return Slopes(centre=centre.tolist(), slope=slope.tolist(), error=[0.0] * count, curvature=curvature.tolist())


def loss(slopes: Slopes, budgets: Budgets, widths: dict[str, int]) -> float:
    return slopes.loss(np.log(np.array(list(widths.values())) / budgets.base))


@pytest.mark.parametrize(
    ("macs", "known"),
    [
        (16, (55, 41, 86, 74, 91, 134, 64, 250)),
        (10, (33, 32, 54, 71, 71, 156, 61, 356)),
        (25, (73, 68, 89, 95, 77, 135, 56, 201)),
        (None, (81, 103, 72, 118, 61, 141, 49, 182)),
    ],
)
def test_equal_slopes_give_the_balanced_widths_of_vgg11(macs: float | None, known: tuple[int, ...]) -> None:
    budgets = Budgets.from_settings(SearchSettings(memory_mib=0.078, macs_m=macs), VGG11)
    found = solve_integers(budgets, equal_slopes(VGG11))
    assert list(found.values()) == pytest.approx(known, abs=2)


def test_a_width_that_layers_share_is_worth_as_much_as_they_are_together() -> None:
    network = load_network("resnet18", 3, 32, 10)
    worth = dict(zip(network.widths, equal_slopes(network).slope, strict=True))
    assert worth["stage0"] == 3 and worth["stage0_block0"] == 1


@settings(max_examples=25, deadline=None)
@given(st.floats(0.04, 0.5), st.none() | st.floats(8, 60), st.none() | st.floats(60, 500), st.integers(0, 999))
def test_all_budgets_are_met_and_no_rule_is_better(
    memory: float, macs: float | None, kib: float | None, seed: int
) -> None:
    budgets = Budgets.from_settings(SearchSettings(memory_mib=memory, macs_m=macs, file_kib=kib), VGG11)
    slopes = random_slopes(VGG11, seed)
    found = solve_integers(budgets, slopes)
    assert budgets.met(found)
    for rule in (budgets.uniform, budgets.equal, budgets.interpolated):
        assert loss(slopes, budgets, found) <= loss(slopes, budgets, budgets.round_within(rule())) + 1e-9


@pytest.mark.parametrize(("profile", "ms"), STEPS)
def test_the_steps_of_a_device_are_kept_and_used(profile: str, ms: float) -> None:
    budgets = on_device(profile, ms)
    for seed in range(3):
        slopes = random_slopes(VGG11, seed)
        found = solve_integers(budgets, slopes)
        assert budgets.met(found)
        assert loss(slopes, budgets, found) <= loss(slopes, budgets, budgets.round_within(budgets.interpolated()))


@pytest.mark.parametrize(("profile", "ms"), STEPS)
def test_a_step_of_one_width_does_not_stop_the_others(profile: str, ms: float) -> None:
    """After a projection no width can grow by itself, and some budget is used up."""
    budgets, noise = on_device(profile, ms), np.random.default_rng(0)
    for _ in range(10):
        ratios = budgets.project(np.exp(noise.uniform(np.log(0.5), np.log(4), len(budgets.base))))
        assert 0.95 < budgets.utilisation(ratios).max() <= 1
        for place in range(len(ratios)):
            wider = ratios.copy()
            wider[place] *= 1 + GROWTH_PROBE
            at_the_end = wider[place] > budgets.bounds.high[place]
            assert at_the_end or not budgets.met(as_widths(VGG11, wider.tolist()))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 300).map(small_network) | st.just(build_tiny(3, 8, 4)), st.floats(0.2, 0.8), st.integers(0, 99))
def test_no_budgets_are_infeasible_that_some_widths_meet(network: Network, part: float, seed: int) -> None:
    ends = [{name: max(1, int(scale * base)) for name, base in network.widths.items()} for scale in (0.31, 2.0)]
    limits = {}
    for name, cost in (("memory_mib", memory_mib), ("macs_m", macs_m)):
        low, high = (cost(network, end) for end in ends)
        limits[name] = low * (high / low) ** part
    budgets = Budgets.from_settings(SearchSettings(max_ratio=2.0, **limits), network)
    assert budgets.met(solve_integers(budgets, random_slopes(network, seed)))


@pytest.mark.parametrize("seed", range(4))
def test_exhaustive_search_finds_nothing_better(seed: int) -> None:
    """Within 1 % of what the best of all integer widths gain over the smallest."""
    network = build_tiny(3, 8, 4)
    memory, macs = memory_mib(network, network.widths), macs_m(network, network.widths)
    chosen = SearchSettings(memory_mib=0.8 * memory, macs_m=0.9 * macs, min_ratio=0.3, max_ratio=2.0)
    budgets, slopes = Budgets.from_settings(chosen, network), random_slopes(network, seed)
    low = np.ceil(budgets.bounds.low * budgets.base - 1e-6).astype(int)
    high = np.floor(budgets.bounds.high * budgets.base + 1e-6).astype(int)
    every = [dict(zip(network.widths, each, strict=True)) for each in itertools.product(*map(range, low, high + 1))]
    losses = [loss(slopes, budgets, each) for each in every if budgets.met(each)]
    smallest = loss(slopes, budgets, dict(zip(network.widths, low.tolist(), strict=True)))
    found = loss(slopes, budgets, solve_integers(budgets, slopes))
    assert smallest - found >= 0.99 * (smallest - min(losses))


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    slopes = random_slopes(VGG11, 1)
    x = np.linspace(-1, 1, 8)
    for place, direction in enumerate(np.eye(8) * 1e-5):
        assert (slopes.loss(x + direction) - slopes.loss(x - direction)) / 2e-5 == pytest.approx(
            slopes.gradient(x)[place], abs=1e-6
        )


def test_slopes_and_curvatures_are_found_again() -> None:
    """From noisy gradients at points all over the range; without any signal, all are as usual."""
    noise, true = np.random.default_rng(0), random_slopes(VGG11, 1)
    points = []
    for number in range(60):
        x = noise.normal(0, 0.5, 8)
        gradient = true.gradient(x) + noise.normal(0, 0.05, 8)
        points.append({"round": number // 4, "mu": np.exp(x).tolist(), "gradient": gradient.tolist()})
    found = fit_slopes(points, VGG11)
    at = np.array(found.centre)
    assert found.gradient(at) == pytest.approx(true.gradient(at), abs=0.1)
    assert found.curvature == pytest.approx(np.minimum(true.curvature, np.array(found.slope) / STILL_WORTH), abs=0.15)
    assert found.gradient(at + STILL_WORTH - 1e-9).max() <= 0, "wider is no worse"
    assert max(found.error) < 0.1
    drowned = [{**point, "gradient": noise.normal(-1, 50, 8).tolist()} for point in points]
    assert min(fit_slopes(drowned, VGG11).slope) > 0


def test_slopes_that_noise_explains_are_the_same_for_all_layers() -> None:
    """Those that differ by more keep their difference."""
    noise = np.random.default_rng(0)

    def spread(signal: Ratios) -> float:
        points = [
            {"round": 1, "mu": np.exp(noise.normal(0, 0.3, 8)).tolist(), "gradient": (-signal + each).tolist()}
            for each in noise.normal(0, 0.02, (40, 8))
        ]
        found = np.array(fit_slopes(points, VGG11).slope) / equal_slopes(VGG11).slope
        return float(found.std() / found.mean())

    assert spread(np.full(8, 0.005)) < 0.2
    assert spread(np.linspace(0.005, 0.1, 8)) > 0.4


def test_one_point_is_enough() -> None:
    found = fit_slopes([{"round": 1, "mu": [1.0] * 8, "gradient": [-0.1] * 8}], VGG11)
    assert found.slope == pytest.approx([0.1] * 8) and found.curvature == [0.0] * 8
    budgets = Budgets.from_settings(SearchSettings(memory_mib=0.078), VGG11)
    assert solve(budgets, found) == pytest.approx(solve(budgets, equal_slopes(VGG11)), rel=1e-3)

"""Eq. 4-6 and the corrections to the width distribution."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from masks import clustered_mask, exact_mask, window

from dmsflow.training import mask as mask_module
from dmsflow.training.mask import CANDIDATES, HALF_INTERVAL, Mask, Window, clustered_masks, exact_masks

RATIOS = st.floats(0.2, 6)
SIGMAS = st.floats(0.02, 1.5)
BASES = st.integers(1, 64)
NO_NOISE = torch.zeros(3, dtype=torch.float64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def clustered(mu: torch.Tensor, sigma: float, centre: float, base: int = 32, noise: torch.Tensor = NO_NOISE) -> Mask:
    return clustered_mask(mu, sigma, centre, base, 1, 8 * base, 1.0, noise)


def test_the_example_of_five_channels_is_true() -> None:
    assert doctest.testmod(mask_module) == (0, 4)


@given(RATIOS, SIGMAS, BASES, st.data())
def test_the_exact_mask_is_the_mixture_of_all_widths(mu: float, sigma: float, base: int, data: st.DataObject) -> None:
    """Eq. 4-5 summed over every candidate, one by one."""
    low = data.draw(st.integers(1, 4 * base))
    capacity = data.draw(st.integers(low, 8 * base))
    widths = torch.arange(low, capacity + 1, dtype=torch.float64)
    half = 0.5 / base
    cdf = torch.sigmoid
    mass = cdf((widths / base + half - mu) / sigma) - cdf((widths / base - half - mu) / sigma)
    assume(float(mass.sum()) > 1e-6)
    weights = mass / mass.sum()
    present = torch.arange(capacity)[None] < widths[:, None]
    mask = exact_mask(scalar(mu), sigma, base, low, capacity)
    assert torch.allclose(mask.values, weights @ present.double(), atol=1e-7)


@given(RATIOS, SIGMAS, BASES, st.sampled_from(["exact", "clustered"]), st.integers(0, 99))
def test_a_mask_falls_from_one_to_zero(mu: float, sigma: float, base: int, estimator: str, seed: int) -> None:
    noise = torch.randn(3, generator=torch.Generator().manual_seed(seed)).double()
    mask = (
        exact_mask(scalar(mu), sigma, base, 1, 8 * base)
        if estimator == "exact"
        else clustered(scalar(mu), sigma, mu, base, noise)
    )
    values = mask.values.detach()
    assert bool((values.diff() <= 1e-9).all())
    assert values[0] == pytest.approx(1) and 0 <= float(values[-1]) <= 1 + 1e-9
    assert 1 <= mask.active <= len(values)


@pytest.mark.parametrize("estimator", ["exact", "clustered"])
def test_one_width_leaves_nothing_to_choose(estimator: str) -> None:
    if estimator == "exact":
        mask = exact_mask(scalar(1.0), 0.3, 1, 1, 1)
    else:
        mask = clustered_mask(scalar(1.0), 0.3, 1.0, 1, 1, 1, 1.0, NO_NOISE)
    assert mask.values.tolist() == [1.0] and mask.active == 1


@given(st.floats(0.5, 3), st.floats(0.05, 0.3))
def test_the_mask_sums_to_the_expected_width(mu: float, sigma: float) -> None:
    base = 64
    mask = exact_mask(scalar(mu), sigma * mu, base, 1, 40 * base)
    mass_below_one = torch.sigmoid(torch.tensor((0.5 / base - mu) / (sigma * mu)))
    assert float(mask.values.detach().sum()) / base == pytest.approx(mu, rel=0.02 + 3 * float(mass_below_one))


def test_eq_4_as_printed_would_be_negative() -> None:
    """Correction 1: with 1/(1 + e^z) the interval's mass has the wrong sign; ours is positive."""
    mask = exact_mask(scalar(1.0), 0.2, 16, 1, 64)
    assert bool((mask.values.detach().diff() <= 0).all()) and mask.values[15].item() > 0.4


@given(RATIOS, st.floats(0.1, 1.0))
def test_candidates_that_move_along_have_no_gradient(mu: float, sigma: float) -> None:
    """Correction 2: p depends on the offsets alone while the candidates follow mu."""
    active = scalar(mu)
    ratios = torch.stack([active + offset * sigma for offset in CANDIDATES])
    half = HALF_INTERVAL * sigma
    mass = torch.sigmoid((ratios + half - active) / sigma) - torch.sigmoid((ratios - half - active) / sigma)
    assert torch.allclose(
        (mass / mass.sum()).detach(), torch.tensor([0.3162, 0.3675, 0.3162], dtype=torch.float64), atol=1e-4
    )
    (gradient,) = torch.autograd.grad((mass / mass.sum())[2], active)
    assert abs(float(gradient)) < 1e-9


def test_frozen_candidates_have_the_gradient_that_was_derived() -> None:
    """Correction 2: ∂p±/∂mu = ±0.1161/sigma, ∂E[r]/∂mu = 0.186, fading to 0.150 at 1 sigma and 0.083 at 2."""
    sigma, centre, base = 0.5, 4.0, 10_000

    def slope(at: float) -> float:
        mu = scalar(at)
        expected = clustered(mu, sigma, centre, base).values.sum() / base
        return float(torch.autograd.grad(expected, mu)[0])

    assert slope(centre) == pytest.approx(0.186, abs=1e-3)
    assert slope(centre + sigma) == pytest.approx(0.150, abs=1e-3)
    assert slope(centre + 2 * sigma) == pytest.approx(0.083, abs=1e-3)
    mu = scalar(centre)
    mask = clustered(mu, sigma, centre, base).values
    (largest,) = torch.autograd.grad(mask[round(centre * base) + 1], mu)
    assert float(largest) == pytest.approx(0.1161 / sigma, abs=1e-4)


def test_candidates_lie_inside_the_range() -> None:
    mixed = window(10, 8, 12, 0.5, 1.0)
    assert mixed.whole(mixed.candidates).tolist() == [[8, 10, 12]]
    assert mixed.present.sum(2).tolist() == [[8, 10, 12]]


def test_the_exact_gradient_is_the_finite_difference() -> None:
    step = 1e-6
    above, below = (exact_mask(scalar(1.3 + sign * step), 0.3, 16, 4, 60).values.detach() for sign in (1, -1))
    mu = scalar(1.3)
    weights = torch.randn(60, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((exact_mask(mu, 0.3, 16, 4, 60).values * weights).sum(), mu)
    assert float(gradient) == pytest.approx(float((weights * (above - below)).sum()) / (2 * step), rel=1e-6)


@given(st.lists(st.tuples(RATIOS, SIGMAS, BASES), min_size=2, max_size=5), st.integers(0, 99))
def test_widths_beside_each_other_have_the_masks_that_each_has_alone(
    widths: list[tuple[float, float, int]], seed: int
) -> None:
    noise = torch.randn(len(widths), 3, generator=torch.Generator().manual_seed(seed)).double()
    mu, sigma, base = (torch.tensor(column, dtype=torch.float64) for column in zip(*widths, strict=True))
    together = Window(base, torch.ones_like(base), 8 * base, sigma, mu)
    for index, (ratio, scale, channels) in enumerate(widths):
        alone = exact_mask(scalar(ratio), scale, channels, 1, 8 * channels)
        assert torch.allclose(exact_masks(mu, together)[index].values, alone.values.detach(), atol=1e-12)
        alone = clustered_mask(scalar(ratio), scale, ratio, channels, 1, 8 * channels, 1.0, noise[index])
        mask = clustered_masks(mu, together, 1.0, noise)[index]
        assert torch.allclose(mask.values, alone.values.detach(), atol=1e-12) and mask.active == alone.active

"""Eq. 1 and 2, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmsflow.network.network import STANDARDISATION_EPS
from dmsflow.training.binary import binarise, quantise, round_to_8_bits, sign


def standardise(weight: Tensor, active: int | None = None) -> Tensor:
    """Zero mean and unit variance over the active weights of every filter."""
    centred = weight - weight[:, :active].mean((1, 2, 3), keepdim=True)
    variance = centred[:, :active].square().mean((1, 2, 3), keepdim=True)
    return centred / torch.sqrt(variance + STANDARDISATION_EPS)


def by_autograd(weight: Tensor, active: int | None = None) -> Tensor:
    """Eq. 1 with its straight-through gradient, as autograd has it."""
    standard = standardise(weight, active)
    scale = standard[:, :active].abs().mean((1, 2, 3), keepdim=True)
    sign = torch.where(standard >= 0, 1.0, -1.0).to(weight)
    return (standard + (sign - standard).detach()) * scale


def test_weights_are_plus_or_minus_their_mean_magnitude() -> None:
    weight = torch.randn(5, 7, 3, 3, dtype=torch.float64)
    binary = binarise(weight)
    standard = standardise(weight)
    scale = standard.abs().mean((1, 2, 3))
    assert torch.allclose(binary.abs(), scale.view(-1, 1, 1, 1).expand_as(binary))
    assert torch.equal(binary > 0, standard >= 0)


def test_a_weight_at_the_mean_counts_as_positive() -> None:
    weight = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert binarise(weight)[0, 1] > 0


def test_a_filter_of_one_weight_is_zero_as_in_the_integer_graph() -> None:
    assert (binarise(torch.randn(5, 1, 1, 1)) == 0).all()


def test_a_constant_filter_stays_finite() -> None:
    assert torch.isfinite(binarise(torch.full((2, 3, 1, 1), 0.7))).all()


@pytest.mark.parametrize("each_filter", [False, True])
def test_8_bits_are_whole_steps_and_gradients_pass(each_filter: bool) -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1, 0.0]).view(-1, 1, 1, 1)
    weight.requires_grad_()
    rounded = round_to_8_bits(weight, each_filter=each_filter)
    largest = weight.detach().abs().amax((1, 2, 3), keepdim=True) if each_filter else weight.detach().abs().max()
    steps = rounded.detach() / (largest / 127).clamp_min(1e-300)
    assert torch.allclose(steps, steps.round(), atol=1e-9) and steps.abs().max() <= 127 + 1e-9
    assert (rounded - weight).abs().max() <= largest.max() / 254 * (1 + 1e-9)
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**31))
def test_standardising_over_live_channels_is_standardising_the_slice(active: int, more: int, seed: int) -> None:
    weight = torch.randn(4, active + more, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(binarise(weight, active)[:, :active], binarise(weight[:, :active]), atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from((1, 3)), st.data())
def test_the_gradient_passes_straight_through_the_sign_and_through_the_scale(
    filters: int, channels: int, kernel: int, data: st.DataObject
) -> None:
    active = data.draw(st.none() | st.integers(1, channels))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    weight, probe = torch.randn(2, filters, channels, kernel, kernel, dtype=torch.float64, generator=draw)
    if data.draw(st.booleans()):
        weight = weight.contiguous(memory_format=torch.channels_last)
    weight.requires_grad_()
    expected, result = by_autograd(weight, active), binarise(weight, active)
    assert torch.allclose(result, expected, atol=1e-12)
    (reference,) = torch.autograd.grad(expected, weight, probe)
    (gradient,) = torch.autograd.grad(result, weight, probe)
    assert torch.allclose(gradient, reference, atol=1e-9)


def test_the_number_of_live_channels_may_be_a_tensor() -> None:
    weight = torch.randn(4, 6, 3, 3)
    assert torch.equal(binarise(weight, torch.tensor(4)), binarise(weight, 4))


def test_weights_in_bfloat16_are_the_rounded_ones_and_their_gradient_is_not() -> None:
    weight = torch.randn(3, 4, 3, 3, requires_grad=True)
    probe = torch.randn_like(weight).bfloat16()
    rounded, exact = binarise(weight, dtype=torch.bfloat16), binarise(weight)
    assert torch.equal(rounded, exact.bfloat16())
    (a,), (b,) = torch.autograd.grad(rounded, weight, probe), torch.autograd.grad(exact, weight, probe.float())
    assert a.dtype == torch.float32 and torch.allclose(a, b)


@pytest.mark.parametrize("alpha", [1e-3, 0.7, 40.0])
def test_activations_are_zero_or_alpha_and_a_tie_is_zero(alpha: float) -> None:
    level = torch.tensor(alpha)
    x = torch.tensor([-3.0, 0.0, 0.49, 0.5, 0.51, 1.0, 9.0]).view(1, 7, 1, 1) * alpha
    x[0, 3] = level / 2
    assert torch.equal(quantise(x, level).flatten(), torch.tensor([0, 0, 0, 0, 1.0, 1, 1]) * level)


def test_the_gradients_are_those_of_lsq() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    probe = torch.randn_like(x)
    (quantise(x, alpha) * probe).sum().backward()
    ratio = (x / alpha).detach()
    inside = (ratio > 0) & (ratio < 1)
    assert torch.equal(x.grad, torch.where(inside, probe, 0))  # type: ignore[arg-type]
    slope = (ratio > 0.5).double() - torch.where(inside, ratio, 0)
    expected = (probe * slope).sum() / math.sqrt(x[0].numel())
    assert torch.allclose(alpha.grad, expected)  # type: ignore[arg-type]


def test_signs_are_never_zero_and_a_tie_is_minus_one() -> None:
    x, shift = torch.tensor([-3.0, 0.5, 0.5, 2.0]).view(1, 4, 1, 1), torch.tensor([0.0, 0.5, 0.4, 0.0])
    assert torch.equal(sign(x, shift).flatten(), torch.tensor([-1.0, -1, 1, 1]))
    assert sign(x.bfloat16(), shift).dtype == torch.bfloat16


def test_the_gradients_of_a_sign_are_those_of_bi_reals_polynomial() -> None:
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([0.3, 0.0, -0.7], dtype=torch.float64, requires_grad=True)
    u = (x - shift.view(-1, 1, 1)).clamp(-1, 1)
    polynomial = torch.where(u < 0, 2 * u + u * u, 2 * u - u * u)  # from -1 to 1
    probe = torch.randn_like(x)
    for tensor in (x, shift):
        (expected,) = torch.autograd.grad(polynomial, tensor, probe, retain_graph=True)
        (found,) = torch.autograd.grad(sign(x, shift), tensor, probe)
        assert torch.allclose(found, expected, atol=1e-12)

"""The distribution of a width, and the mask that stands for it in the network (Eq. 4-6).

A width of base channels c has the expansion ratio r ~ Logistic(mu, sigma), truncated to the range
of the search. Rows are shared and ordered, so the mixture of all widths is one vector: channel k
is present with probability P(r·c > k). There is no other mask in dmsflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = (-0.8, 0.0, 0.8)  # in units of sigma, Sect. 2.3
HALF_INTERVAL = 0.4  # of a candidate, in units of sigma


@dataclass(frozen=True)
class Mask:
    """How present each channel of a width is.

    Attributes:
        values: [capacity], never increasing, from 1 down to 0; it multiplies the input channels
            of every layer that reads this width, behind the quantiser.
        live: the whole number of channels it stands for; weight statistics are taken over these. A
            tensor [] where a compiled graph must not depend on it.
        reach: channels that it would have without the zeros at its end, where it has any.
    """

    values: Tensor
    live: int | Tensor
    reach: Tensor | None = None


def _probability_below(ratio: Tensor, mu: Tensor, sigma: float) -> Tensor:
    """CDF of the logistic distribution (Eq. 4 with its sign mended)."""
    return torch.sigmoid((ratio - mu) / sigma)


def exact_mask(mu: Tensor, sigma: float, base: int, low: int, capacity: int) -> Mask:
    """The mixture over every width from `low` to `capacity` channels, in closed form.

    P(width > k) = (F(capacity + ½) - F(k + ½)) / (F(capacity + ½) - F(low - ½)), where F is the CDF
    at channels/base: Eq. 4-5 with Δ = 0.5/base, summed. One vector, however many widths.

    Args:
        mu: the ratio, a scalar tensor; the gradient of the mask reaches it.
        sigma: scale of the distribution, in ratio.
        base: channels at ratio 1.
    """
    edges = (torch.arange(capacity, dtype=mu.dtype, device=mu.device) + 0.5) / base
    top = _probability_below(torch.tensor((capacity + 0.5) / base, dtype=mu.dtype, device=mu.device), mu, sigma)
    bottom = _probability_below(torch.tensor((low - 0.5) / base, dtype=mu.dtype, device=mu.device), mu, sigma)
    survival = (top - _probability_below(edges, mu, sigma)) / (top - bottom)
    values = torch.where(edges * base < low, 1.0, survival).clamp(0, 1)
    return Mask(values, _live(mu.item(), base, low, capacity))


def candidates(mu: float, sigma: float, base: int, low: int, capacity: int) -> tuple[int, ...]:
    """The paper's three clustered widths, in channels, inside the range of the search."""
    return tuple(_live(mu + offset * sigma, base, low, capacity) for offset in CANDIDATES)


def clustered_mask(
    mu: Tensor, sigma: float, centre: float, base: int, low: int, capacity: int, temperature: float, noise: Tensor
) -> Mask:
    """Three candidates weighted by Gumbel-softmax (Eq. 5-6), without a straight-through.

    Args:
        mu: the ratio, a scalar tensor.
        centre: mu at the last clustering. The candidates stay there while mu moves; if they moved
            along, their probabilities would not depend on mu at all.
        noise: three draws from Gumbel(0, 1).
    """
    ratios = mu.new_tensor([centre + offset * sigma for offset in CANDIDATES])
    half = HALF_INTERVAL * sigma
    mass = _probability_below(ratios + half, mu, sigma) - _probability_below(ratios - half, mu, sigma)
    # Eq. 5's normalisation is a common factor, which the softmax over log p removes.
    weights = torch.softmax((mass.log() + noise.to(mu)) / temperature, 0)
    widths = candidates(centre, sigma, base, low, capacity)
    channels = torch.arange(capacity, device=mu.device)
    present = torch.stack([(channels < width).to(mu.dtype) for width in widths])  # [3, capacity]
    return Mask(weights @ present, _live(mu.item(), base, low, capacity))


def _live(ratio: float, base: int, low: int, capacity: int) -> int:
    return min(max(round(ratio * base), low), capacity)

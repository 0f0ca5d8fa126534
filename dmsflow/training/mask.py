"""The distribution of a width, and the mask that represents it in the network (Eq. 4-6).

A width of base channels c has the expansion ratio r ~ Logistic(mu, sigma), truncated to the range
of the search. Rows are shared and ordered, so the mixture of all widths is one vector: channel k
is present with probability P(r·c > k). There is no other mask in dmsflow.

A width of 4 base channels, at least 1 and at most 5, with mu = 0.75, which is 3 channels. They may
turn out one more or one fewer, so the third is more likely present than not, and the fourth is not:

>>> base, low, high, sigma, mu = torch.tensor([[4.0], [1.0], [5.0], [0.1], [0.75]])
>>> (mask,) = exact_masks(mu, Window(base, low, high, sigma, centre=mu))
>>> [round(present, 2) for present in mask.values.tolist()]
[1.0, 0.98, 0.78, 0.22, 0.02]
>>> mask.active
3
"""

from __future__ import annotations

import functools
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
        active: the whole number of channels it stands for; weight statistics are taken over these. A
            tensor [] where a compiled graph must not depend on it, and [capacity] of a concatenation, whose
            active channels are not the first ones.
        reach: channels without the zeros at the end, where the mask is padded with them.
    """

    values: Tensor
    active: int | Tensor
    reach: Tensor | None = None


@dataclass(frozen=True)
class Window:
    """Which widths the masks of a round mix; [n] each, an entry a named width, float64.

    What follows from it is computed once a round, not at each of its steps.

    Attributes:
        base: channels at ratio 1.
        low, high: fewest and most channels, whole numbers.
        sigma: scale of the distribution, in ratio.
        centre: mu at the last clustering.
    """

    base: Tensor
    low: Tensor
    high: Tensor
    sigma: Tensor
    centre: Tensor

    @functools.cached_property
    def channels(self) -> Tensor:
        """0, 1, … up to the most channels of any width."""
        return torch.arange(int(self.high.max()), dtype=self.base.dtype)

    @functools.cached_property
    def edges(self) -> Tensor:
        """Ratios between which the exact mixture's widths lie: of low, of high, and behind every channel; [n, 2 + channels]."""
        ends = torch.stack([self.low - 0.5, self.high + 0.5], 1)
        return torch.cat([ends, (self.channels + 0.5).expand(len(ends), -1)], 1) / self.base[:, None]

    @functools.cached_property
    def candidates(self) -> Tensor:
        """The paper's three clustered ratios, [n, 3]."""
        return self.centre[:, None] + self.centre.new_tensor(CANDIDATES) * self.sigma[:, None]

    @functools.cached_property
    def present(self) -> Tensor:
        """1 for the channels that each of the candidates has, 0 for the others, [n, 3, channels]."""
        return (self.channels < self.whole(self.candidates)[:, :, None]).to(self.base.dtype)

    def whole(self, ratios: Tensor) -> Tensor:
        """Channels at ratios [n] or [n, m], inside the window."""
        low, high, base = (each.view(-1, *[1] * (ratios.dim() - 1)) for each in (self.low, self.high, self.base))
        return (ratios * base).round().clamp(low, high)

    def masks(self, values: Tensor, mu: Tensor) -> list[Mask]:
        """Rows [n, channels] as the mask of each width."""
        active, most = self.whole(mu.detach()).tolist(), self.high.tolist()
        return [Mask(row[: int(end)], int(count)) for row, end, count in zip(values, most, active, strict=True)]


def _probability_below(ratio: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """CDF of the logistic distribution (Eq. 4, whose sign is wrong in the paper)."""
    return torch.sigmoid((ratio - mu) / sigma)


def exact_masks(mu: Tensor, window: Window) -> list[Mask]:
    """The mixture over every width of the window, in closed form.

    P(width > k) = (F(high + ½) - F(k + ½)) / (F(high + ½) - F(low - ½)), where F is the CDF at
    channels/base: Eq. 4-5 with Δ = 0.5/base, summed. One vector, however many widths.

    Args:
        mu: the ratios [n]; the gradient of the masks reaches them.
    """
    below = _probability_below(window.edges, mu[:, None], window.sigma[:, None])
    bottom, top, below = below[:, :1], below[:, 1:2], below[:, 2:]
    survival = (top - below) / (top - bottom)
    return window.masks(torch.where(window.channels < window.low[:, None], 1.0, survival).clamp(0, 1), mu)


def clustered_masks(mu: Tensor, window: Window, temperature: float, noise: Tensor) -> list[Mask]:
    """Three candidates weighted by Gumbel-softmax (Eq. 5-6), without a straight-through.

    They stay where they were clustered while mu moves; if they moved along, their probabilities
    would not depend on mu at all.

    Args:
        mu: the ratios [n]; the gradient of the masks reaches them.
        noise: draws from Gumbel(0, 1), [n, 3].
    """
    ratios, sigma = window.candidates, window.sigma[:, None]
    half = HALF_INTERVAL * sigma
    above, below = (_probability_below(edge, mu[:, None], sigma) for edge in (ratios + half, ratios - half))
    # Eq. 5's normalisation is a common factor, which the softmax over log p removes.
    weights = torch.softmax(((above - below).log() + noise.to(mu)) / temperature, 1)
    return window.masks((weights[:, None] @ window.present)[:, 0], mu)

"""Masks of one width, for tests; ratios may be scalars with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dmsflow.training.mask import Mask, Window, clustered_masks, exact_masks


def window(base: int, low: int, high: int, sigma: float, centre: float) -> Window:
    return Window(*(torch.tensor([value], dtype=torch.float64) for value in (base, low, high, sigma, centre)))


def exact_mask(mu: Tensor, sigma: float, base: int, low: int, high: int) -> Mask:
    return exact_masks(mu.view(1), window(base, low, high, sigma, mu.item()))[0]


def clustered_mask(
    mu: Tensor, sigma: float, centre: float, base: int, low: int, high: int, temperature: float, noise: Tensor
) -> Mask:
    """`noise`: three draws."""
    return clustered_masks(mu.view(1), window(base, low, high, sigma, centre), temperature, noise[None])[0]

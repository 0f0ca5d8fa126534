"""Binary weights and {0, alpha} activations (Eq. 1 and 2 of the DMS paper), with their gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

STANDARDISATION_EPS = 1e-10


def standardise(weight: Tensor, live: int | None = None) -> Tensor:
    """Zero mean and unit variance for every filter.

    Args:
        weight: latent weights [C_out, C_in, k, k].
        live: only the first `live` input channels count towards mean and variance, so that a
            masked filter has the signs that its narrow copy would have.
    """
    centred = weight - weight[:, :live].mean((1, 2, 3), keepdim=True)
    # On a CPU torch.var is many times slower over these dimensions.
    variance = centred[:, :live].square().mean((1, 2, 3), keepdim=True)
    return centred * torch.rsqrt(variance + STANDARDISATION_EPS)


def binarise(weight: Tensor, live: int | None = None) -> Tensor:
    """sign(w)·E|w| of standardised filters (Eq. 1), never zero; straight-through behind the sign."""
    standard = standardise(weight, live)
    scale = standard[:, :live].abs().mean((1, 2, 3), keepdim=True)
    with torch.no_grad():
        sign = torch.ge(standard, 0, out=torch.empty_like(standard)).mul_(2).sub_(1)
        correction = sign - standard
    return (standard + correction) * scale


class _Quantise(torch.autograd.Function):
    """One pass forward, and the gradients of LSQ (arXiv 1902.08153) at one bit backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        limit = alpha.to(x.dtype)
        # Comparing straight into x's type is vectorised on a CPU; torch.where is not.
        out = torch.gt(x, limit / 2, out=torch.empty_like(x)).mul_(limit)
        ctx.save_for_backward(x, out, alpha)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, out, alpha = ctx.saved_tensors
        grad_x = _inside(grad, x, alpha)
        # d out / d alpha = out/alpha - (x/alpha inside the clip), summed; both sums share 1/alpha.
        total = _dot(grad, out) - _dot(grad_x, x)
        return grad_x, (total / alpha / math.sqrt(x[0].numel())).to(alpha.dtype)


def _inside(grad: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    """grad where 0 < x < alpha, else 0."""
    if x.is_cpu:  # one vectorised pass; it takes alpha as a number, which on a GPU would wait for the device
        inside: Tensor = torch.ops.aten.hardtanh_backward(grad, x, 0.0, float(alpha))
        return inside
    return torch.where((x > 0) & (x < alpha.to(x.dtype)), grad, 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32))


def quantise(x: Tensor, alpha: Tensor) -> Tensor:
    """alpha·round(clip(x/alpha, 0, 1)) in {0, alpha} (Eq. 2); exactly alpha/2 gives 0.

    Args:
        x: [N, C, H, W].
        alpha: positive scalar; its gradient is scaled by 1/√(C·H·W), as in LSQ.
    """
    out: Tensor = _Quantise.apply(x, alpha)  # type: ignore[no-untyped-call]
    return out

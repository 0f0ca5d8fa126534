"""Binary weights and {0, alpha} activations (Eq. 1 and 2 of the DMS paper), with their gradients.

Both gradients are written out: each is a handful of passes over its tensor, where autograd would
make three times as many and keep as many copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STANDARDISATION_EPS = 1e-10
TINY = 1e-30


def binarise(weight: Tensor, live: int | Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """sign(w)·E|w| of standardised filters (Eq. 1), never zero; straight-through behind the sign.

    A filter is standardised to zero mean and unit variance first; the gradient passes through that,
    and through E|w|.

    Args:
        weight: latent weights [C_out, C_in, k, k].
        live: only the first `live` input channels count towards mean, variance and E|w|, so that a
            masked filter has the signs that its narrow copy would have. A tensor [] will do.
        dtype: of the result; by default that of the weights. All sums are in the weights' own.
    """
    out: Tensor = _Binarise.apply(weight, _inside(weight, live), dtype or weight.dtype)  # type: ignore[no-untyped-call]
    return out


def _ones(compare: Callable[..., Tensor], x: Tensor, limit: Tensor | float, out: Tensor | None = None) -> Tensor:
    """1 where the comparison holds, else 0, as x's type."""
    if torch.compiler.is_compiling():
        return compare(x, limit).to(x.dtype)
    # Comparing straight into floats is vectorised on a CPU; neither a conversion nor torch.where is.
    return compare(x, limit, out=torch.empty_like(x) if out is None else out)


def _inside(weight: Tensor, live: int | Tensor | None) -> Tensor | None:
    """1 for the weights of live input channels, 0 for the others, in the order of `_rows`: [1, k·k·C_in]."""
    if live is None:
        return None
    kept = (torch.arange(weight.shape[1], device=weight.device) < live).to(weight.dtype)
    return kept.repeat(weight.shape[2] * weight.shape[3])[None]


def _rows(weight: Tensor) -> Tensor:
    """[C_out, C_in, k, k] as [C_out, k·k·C_in]: a view where the weights are held channels last."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _filters(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_rows`."""
    return rows.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


def _total(values: Tensor, inside: Tensor | None) -> Tensor:
    """Sum of each row ÷ its count of live weights, [rows, 1]."""
    if inside is None:
        return values.mean(1, keepdim=True)
    return values.sum(1, keepdim=True) / inside.sum()


def _mean(values: Tensor, inside: Tensor | None) -> Tensor:
    """Mean of each row over its live weights, [rows, 1]."""
    return _total(values if inside is None else values * inside, inside)


class _Binarise(torch.autograd.Function):
    """With s = (w - mean)·r, r = (variance + eps)^-½, a = E|s| and y = ±1, the result is y·a.

    All means are over the live weights of a row. For the gradient g of the result, with Σ a sum
    over the whole row divided by the count of live weights,

        ∂L/∂s = a·g + t·y     t = Σ(g·y)
        u = (∂L/∂s - d·s)·r   d = Σ(∂L/∂s·s)
        ∂L/∂w = u - Σu

    where only live weights have the terms with t, d and Σu. In the code t·y is written with y·a.
    Where all weights are live, s is a layer norm's, which torch has in one pass each way.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, inside: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = _rows(weight)
        if inside is None:
            s, mean, r = torch.native_layer_norm(rows, rows.shape[1:], None, None, STANDARDISATION_EPS)
        else:
            mean = _mean(rows, inside)
            s = rows - mean
            r = (_mean(s.square(), inside) + STANDARDISATION_EPS).rsqrt()
            s *= r
        a = _mean(s.abs(), inside)
        signed = _ones(torch.ge, rows, mean, out=s).mul_(2 * a).sub_(a)
        ctx.save_for_backward(rows, mean, r, signed, a, inside)
        return _filters(signed.to(dtype), weight.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        rows, mean, r, signed, a, inside = ctx.saved_tensors
        g = _rows(grads[0]).to(rows.dtype)
        through = _total(g * signed, inside)  # t·a
        grad_s = signed * (through / (a * a).clamp(min=TINY))  # a constant filter has no sign to keep
        if inside is None:
            grad_s.addcmul_(g, a)
            grad, _, _ = torch.ops.aten.native_layer_norm_backward(
                grad_s, rows, rows.shape[1:], mean, r, None, None, [True, False, False]
            )
        else:
            grad_s.mul_(inside).addcmul_(g, a)
            s = (rows - mean).mul_(r)
            u = grad_s.addcmul_(s.mul(_total(grad_s * s, inside)), inside, value=-1).mul_(r)
            grad = u - _total(u, inside) * inside
        return _filters(grad, grads[0].shape), None, None


class _Quantise(torch.autograd.Function):
    """One pass forward, and the gradients of LSQ (arXiv 1902.08153) at one bit backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, count: Tensor | int) -> Tensor:
        ctx.count = count
        limit = _number(alpha.to(x.dtype))
        out = _ones(torch.gt, x, limit / 2).mul_(limit)
        ctx.save_for_backward(x, out, alpha)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        x, out, alpha = ctx.saved_tensors
        level = _number(alpha)
        grad_x = _clipped(grad, x, level)
        # d out / d alpha = out/alpha - (x/alpha inside the clip), summed; both sums share 1/alpha.
        slope = torch.addcmul(grad * out, grad_x, x, value=-1)
        total = slope.sum(dtype=torch.promote_types(x.dtype, torch.float32))
        return grad_x, (total / (level * ctx.count**0.5)).to(alpha.dtype), None


def _number(scalar: Tensor) -> Tensor | float:
    """On a CPU a number, with which operations are quicker; on a GPU that would wait for the device."""
    return float(scalar) if scalar.is_cpu and not torch.compiler.is_compiling() else scalar


def _clipped(grad: Tensor, x: Tensor, level: Tensor | float) -> Tensor:
    """grad where 0 < x < level, else 0."""
    if isinstance(level, float):  # one vectorised pass
        inside: Tensor = torch.ops.aten.hardtanh_backward(grad, x, 0.0, level)
        return inside
    return torch.where((x > 0) & (x < level.to(x.dtype)), grad, 0)


def quantise(x: Tensor, alpha: Tensor, count: Tensor | None = None) -> Tensor:
    """alpha·round(clip(x/alpha, 0, 1)) in {0, alpha} (Eq. 2); exactly alpha/2 gives 0.

    Args:
        x: [N, C, H, W].
        alpha: positive scalar; its gradient is scaled by 1/√(C·H·W), as in LSQ.
        count: C·H·W, where not all of x counts.
    """
    out: Tensor = _Quantise.apply(x, alpha, x.numel() // len(x) if count is None else count)  # type: ignore[no-untyped-call]
    return out

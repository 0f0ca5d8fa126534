"""Binary weights, {0, alpha} activations (Eq. 1 and 2 of the DMS paper) and ±1 activations, with their gradients.

Each gradient is written out twice: in torch's operations, which run everywhere and which torch.compile
fuses; and in C++ (native/training.cc), which takes one or two passes over memory in their place on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmsflow.network.network import LARGEST_INT8, STANDARDISATION_EPS
from dmsflow.training.fast_ops import CHUNK, HALF_PRECISION, PIXELS, call_library, runs_natively

SMALLEST_SQUARE = 1e-30  # keeps a constant filter, whose E|w| is 0, from dividing by it


def binarise(weight: Tensor, active: int | Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """sign(w)·E|w| of standardised filters (Eq. 1), never zero; straight-through behind the sign.

    A filter is standardised to zero mean and unit variance first; the gradient passes through that,
    and through E|w|.

    Args:
        weight: latent weights [C_out, C_in, k, k].
        active: only the first `active` input channels count towards mean, variance and E|w|, so that a
            masked filter has the signs that its narrow copy would have. A tensor [] will do; or [C_in], which is
            true for the active ones.
        dtype: of the result; by default that of the weights. All sums are in the weights' own.
    """
    dtype = dtype or weight.dtype
    ordered = not isinstance(active, Tensor) or not active.dim()
    if ordered and weight.dtype == torch.float32 and runs_natively(weight, dtype):
        return _BinariseInCpp.apply(weight, weight.shape[1] if active is None else int(active), dtype)  # type: ignore[no-any-return, no-untyped-call]
    return _Binarise.apply(weight, _inside(weight, active), dtype)  # type: ignore[no-any-return, no-untyped-call]


def quantise(x: Tensor, alpha: Tensor, count: Tensor | None = None) -> Tensor:
    """alpha·round(clip(x/alpha, 0, 1)) in {0, alpha} (Eq. 2); exactly alpha/2 gives 0.

    Args:
        x: [N, C, H, W].
        alpha: positive scalar; its gradient is scaled by 1/√(C·H·W), as in LSQ.
        count: C·H·W, where not all of x counts.
    """
    function = _QuantiseInCpp if runs_natively(x) else _Quantise
    return function.apply(x, alpha, x.numel() // len(x) if count is None else count)  # type: ignore[no-any-return, no-untyped-call]


def sign(x: Tensor, shift: Tensor) -> Tensor:
    """+1 above a shift and -1 from there down; never 0.

    The gradient is that of a piecewise polynomial which steps from -1 to 1 within 1 of the shift: ApproxSign of
    Bi-Real Net (arXiv 1808.00278, Eq. 7).

    Args:
        x: [N, C, H, W].
        shift: [C].
    """
    if runs_natively(x):
        return _SignInCpp.apply(x, shift)  # type: ignore[no-any-return, no-untyped-call]
    return _Sign.apply(x, shift.to(x.dtype).view(-1, 1, 1))  # type: ignore[no-any-return, no-untyped-call]


def round_to_8_bits(weight: Tensor, *, each_filter: bool) -> Tensor:
    """Whole multiples, at most 127, of a step for the whole tensor or for each of its filters; straight-through."""
    largest = weight.detach().abs().amax(tuple(range(int(each_filter), weight.dim())), keepdim=True)
    step = (largest / LARGEST_INT8).clamp_min(SMALLEST_SQUARE)
    return weight + ((weight / step).round() * step - weight).detach()


def _inside(weight: Tensor, active: int | Tensor | None) -> Tensor | None:
    """1 for the weights of active input channels, 0 for the others, in the order of `_rows`: [1, k·k·C_in]."""
    if active is None:
        return None
    channels = torch.arange(weight.shape[1], device=weight.device)
    kept = active if isinstance(active, Tensor) and active.dim() else channels < active
    return kept.to(weight.dtype).repeat(weight.shape[2] * weight.shape[3])[None]


def _rows(weight: Tensor) -> Tensor:
    """[C_out, C_in, k, k] as [C_out, k·k·C_in]: a view where the weights are stored channels last."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _filters(rows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_rows`."""
    return rows.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


def _kept(values: Tensor, inside: Tensor | None) -> Tensor:
    """`values`, and 0 for the weights of inactive channels."""
    return values if inside is None else values * inside


def _mean(values: Tensor, inside: Tensor | None) -> Tensor:
    """Sum of each row ÷ its count of active weights, [rows, 1]."""
    return values.mean(1, keepdim=True) if inside is None else values.sum(1, keepdim=True) / inside.sum()


class _Binarise(torch.autograd.Function):
    """With s = (w - mean)·r, r = (variance + eps)^-½, a = E|s| and y = ±1, the result is y·a.

    All means are over the active weights of a row. For the gradient g of the result, with Σ a sum
    over the whole row divided by the count of active weights,

        ∂L/∂s = a·g + t·y     t = Σ(g·y)
        u = (∂L/∂s - d·s)·r   d = Σ(∂L/∂s·s)
        ∂L/∂w = u - Σu

    where only active weights have the terms with t, d and Σu. In the code t·y is written with y·a.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, inside: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows = _rows(weight)
        centred = rows - _mean(_kept(rows, inside), inside)
        r = (_mean(_kept(centred.square(), inside), inside) + STANDARDISATION_EPS).rsqrt()
        a = _mean(_kept(centred.abs(), inside), inside) * r
        signed = torch.where(centred >= 0, a, -a)
        ctx.save_for_backward(centred, r, signed, a, inside)
        return _filters(signed.to(dtype), weight.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        centred, r, signed, a, inside = ctx.saved_tensors
        g, s = _rows(grads[0]).to(centred.dtype), centred * r
        through = _mean(g * signed, inside)  # t·a
        grad_s = a * g + _kept(signed, inside) * (through / (a * a).clamp(min=SMALLEST_SQUARE))
        u = (grad_s - _kept(s, inside) * _mean(grad_s * s, inside)) * r
        grad = u - _kept(_mean(u, inside), inside)
        return _filters(grad, grads[0].shape), None, None


class _BinariseInCpp(torch.autograd.Function):
    """The same, for `active` channels."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, active: int, dtype: torch.dtype) -> Tensor:
        weight = weight.contiguous(memory_format=torch.channels_last)
        c_out, c_in, height, width = weight.shape
        statistics, out = weight.new_empty(3, c_out), torch.empty_like(weight, dtype=dtype)
        ctx.save_for_backward(weight, statistics)
        ctx.layer, ctx.dtype = (c_out, height * width, c_in, active), dtype
        call_library("dmsflow_binarise", *ctx.layer, weight, statistics, out.dtype == HALF_PRECISION, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, statistics = ctx.saved_tensors
        g = grads[0].to(ctx.dtype).contiguous(memory_format=torch.channels_last)
        grad = torch.empty_like(weight)
        call_library("dmsflow_binarise_gradient", *ctx.layer, weight, statistics, g.dtype == HALF_PRECISION, g, grad)
        return grad, None, None


class _Quantise(torch.autograd.Function):
    """One pass forward, and the gradients of LSQ (arXiv 1902.08153) at one bit backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, count: Tensor | int) -> Tensor:
        ctx.count = count
        level = alpha.to(x.dtype)
        out = (x > level / 2).to(x.dtype) * level
        ctx.save_for_backward(x, out, alpha)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        x, out, alpha = ctx.saved_tensors
        grad_x = torch.where((x > 0) & (x < alpha.to(x.dtype)), grad, 0)
        # d out / d alpha = out/alpha - (x/alpha inside the clip), summed; both sums share 1/alpha.
        slope = torch.addcmul(grad * out, grad_x, x, value=-1)
        total = slope.sum(dtype=torch.promote_types(x.dtype, torch.float32))
        return grad_x, (total / (alpha * ctx.count**0.5)).to(alpha.dtype), None


class _QuantiseInCpp(torch.autograd.Function):
    """The same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, count: Tensor | int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x)
        ctx.save_for_backward(x)
        ctx.level = float(alpha.to(x.dtype))
        ctx.scale, ctx.dtype = float(alpha) * count**0.5, alpha.dtype
        call_library("dmsflow_quantise", x.numel(), x.dtype == HALF_PRECISION, x, ctx.level, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        grad_x, slopes = torch.empty_like(x), torch.empty(-(-x.numel() // CHUNK), dtype=torch.float32)
        g = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        call_library("dmsflow_quantise_gradient", x.numel(), x.dtype == HALF_PRECISION, x, g, ctx.level, grad_x, slopes)
        return grad_x, slopes.sum().to(ctx.dtype) / ctx.scale, None


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, shift)
        return torch.where(x > shift, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, shift = ctx.saved_tensors
        grad = grads[0] * (2 - 2 * (x - shift).abs()).clamp(min=0)
        return grad, -grad.sum((0, 2, 3)).view_as(shift)


class _SignInCpp(torch.autograd.Function):
    """The same; in bfloat16 the gradients are rounded once, and that of a float32 shift is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        shifts, out = shift.to(x.dtype).float().expand(x.shape[1]).contiguous(), torch.empty_like(x)
        ctx.save_for_backward(x, shifts)
        ctx.size, ctx.dtype = (x.numel() // x.shape[1], x.shape[1], x.dtype == HALF_PRECISION), shift.dtype
        call_library("dmsflow_sign", *ctx.size, x, shifts, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, shifts = ctx.saved_tensors
        g = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        grad_x, sums = torch.empty_like(x), shifts.new_empty(-(-ctx.size[0] // PIXELS), len(shifts))
        call_library("dmsflow_sign_gradient", *ctx.size, x, shifts, g, grad_x, sums)
        return grad_x, sums.sum(0, dtype=torch.float64).to(ctx.dtype)

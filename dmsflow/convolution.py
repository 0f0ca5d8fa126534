"""A convolution with a quicker weight gradient, for training on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 16  # positions of an output; up to there one product of matrices beats oneDNN's bfloat16 weight gradient


def convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """torch's conv2d without a bias; the weight gradient of small outputs is one product of matrices.

    Args:
        x: [N, C_in, H, W].
        weight: [C_out, C_in, k, k].
    """
    quick = x.is_cpu and x.dtype == weight.dtype == torch.bfloat16 and not torch.compiler.is_compiling()
    if quick and _positions(x, weight.shape[2], stride, padding) <= SMALL:
        out: Tensor = _Convolve.apply(x, weight, stride, padding)  # type: ignore[no-untyped-call]
        return out
    return F.conv2d(x, weight, stride=stride, padding=padding)


def _positions(x: Tensor, kernel: int, stride: int, padding: int) -> int:
    """H_out·W_out."""
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
    return rows * columns


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        stride, padding = [ctx.stride] * 2, [ctx.padding] * 2
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False]
        )
        c_out, c_in, kernel, _ = weight.shape
        windows = _windows(x, kernel, ctx.stride, ctx.padding)
        product = grad.permute(0, 2, 3, 1).reshape(-1, c_out).T @ windows
        return grad_x, product.view(c_out, kernel, kernel, c_in).permute(0, 3, 1, 2), None, None


def _windows(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What a filter sees at every position, [N·H_out·W_out, k·k·C_in]."""
    n, c, h, w = x.shape
    padded = x.new_zeros(n, h + 2 * padding, w + 2 * padding, c)
    padded[:, padding : padding + h, padding : padding + w] = x.permute(0, 2, 3, 1)
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # [N, H_out, W_out, C_in, k, k]
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * c)

"""Operations that torch does slowly on a CPU: native/training.cc called on tensors, convolution, max pooling."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmsflow import native
from dmsflow.errors import DmsflowError

# --- the library: native/training.cc ----------------------------------------------------------------

CHUNK, PIXELS = 512, 64  # kChunk and kPixels of native/training.cc
HALF_PRECISION = torch.bfloat16  # the lower precision of --amp
_COUNT, _FLAG, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_float
# Threads; filters, taps, channels, of which are active; or images, rows, columns, channels.
_SIZES = (_FLAG, _COUNT, _COUNT, _COUNT, _COUNT)
SIGNATURES = {  # of the functions in native/training.cc
    "dmsflow_use_threads": (_POINTER, _POINTER, _POINTER),
    "dmsflow_binarise": (*_SIZES, _POINTER, _POINTER, _FLAG, _POINTER),
    "dmsflow_binarise_gradient": (*_SIZES, _POINTER, _POINTER, _FLAG, _POINTER, _POINTER),
    "dmsflow_quantise": (_FLAG, _COUNT, _FLAG, _POINTER, _FLOAT, _POINTER),
    "dmsflow_quantise_gradient": (_FLAG, _COUNT, _FLAG, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER),
    "dmsflow_sign": (_FLAG, _COUNT, _COUNT, _FLAG, _POINTER, _POINTER, _POINTER),
    "dmsflow_sign_gradient": (_FLAG, _COUNT, _COUNT, _FLAG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "dmsflow_max_pool": (*_SIZES, _FLAG, _POINTER, _POINTER, _POINTER),
    "dmsflow_max_pool_gradient": (*_SIZES, _FLAG, _POINTER, _POINTER, _POINTER),
}
# Of GCC's OpenMP, whose threads torch uses. A pool beside them would compete for the cores.
THREADS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@functools.cache
def library() -> ctypes.CDLL | None:
    """With the functions of SIGNATURES; None: it was not built here, or it does not load."""
    try:
        loaded = ctypes.CDLL(str(native.training()))
        for name, arguments in SIGNATURES.items():
            getattr(loaded, name).argtypes = arguments
            getattr(loaded, name).restype = None
    except (DmsflowError, OSError, AttributeError):
        return None
    everything = ctypes.CDLL(None) if os.name == "posix" else None
    if all(hasattr(everything, name) for name in THREADS):
        loaded.dmsflow_use_threads(*(ctypes.cast(getattr(everything, name), _POINTER) for name in THREADS))
    return loaded


def runs_natively(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the library can do an operation on x, whose result is of `dtype` (that of x, unless given)."""
    fits = x.is_cpu and (dtype or x.dtype) in (torch.float32, HALF_PRECISION)
    return fits and not torch.compiler.is_compiling() and library() is not None


def call_library(function: str, *arguments: Tensor | float) -> None:
    """Run a function of the library on torch's threads; for a tensor it gets the address.

    Only for tensors that `runs_natively` accepts.
    """
    plain = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
    getattr(library(), function)(torch.get_num_threads(), *plain)


# --- convolution ------------------------------------------------------------------------------------

SMALL_OUTPUT = 16  # positions; up to there one matrix product beats oneDNN's bfloat16 weight gradient


def convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """torch's conv2d without a bias; the weight gradient of a small output is one matrix product.

    Args:
        x: [N, C_in, H, W].
        weight: [C_out, C_in / groups, k, k].
    """
    # oneDNN's weight gradient of a strided 1×1 convolution writes beyond its memory where C_in is no multiple of 8 and the
    # processor has AVX2 alone (torch 2.13).
    if x.is_cpu and weight.shape[2] == 1 < stride and padding == 0:
        x, stride = x[:, :, ::stride, ::stride], 1
    groups = x.shape[1] // weight.shape[1]
    if groups == 1 and x.is_cpu and x.dtype == weight.dtype == HALF_PRECISION and not torch.compiler.is_compiling():
        rows, columns = ((side + 2 * padding - weight.shape[2]) // stride + 1 for side in x.shape[2:])
        if rows * columns <= SMALL_OUTPUT:
            return _Convolve.apply(x, weight, stride, padding)  # type: ignore[no-any-return, no-untyped-call]
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)


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
        window = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1
        grad_x = torch.ops.aten.convolution_backward(grad, x, weight, None, *window, [True, False, False])[0]
        c_out, c_in, kernel, _ = weight.shape
        product = grad.permute(0, 2, 3, 1).reshape(-1, c_out).T @ _windows(x, kernel, ctx.stride, ctx.padding)
        return grad_x, product.view(c_out, kernel, kernel, c_in).permute(0, 3, 1, 2), None, None


def _windows(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What a filter reads at every position, [N·H_out·W_out, k·k·C_in]."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[padding] * 4))
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # [N, H_out, W_out, C_in, k, k]
    return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * x.shape[1])


# --- max pooling ------------------------------------------------------------------------------------


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """torch's max_pool2d; of equal values in a window the first one, row by row, has the gradient.

    Args:
        x: [N, C, H, W].
    """
    if (kernel, stride, padding) == (2, 2, 0) and runs_natively(x):
        return _MaxPool.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    return F.max_pool2d(x, kernel, stride, padding)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        out = torch.empty((n, c, h // 2, w // 2), dtype=x.dtype, memory_format=torch.channels_last)
        places = torch.empty_like(out)  # of the largest in its window, 0 to 3, in as many bytes as a value
        call_library("dmsflow_max_pool", n, h, w, c, x.dtype == HALF_PRECISION, x, out, places)
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (places,) = ctx.saved_tensors
        n, c, h, w = ctx.shape
        g = grads[0].to(places.dtype).contiguous(memory_format=torch.channels_last)
        out = torch.empty(ctx.shape, dtype=g.dtype, memory_format=torch.channels_last)
        call_library("dmsflow_max_pool_gradient", n, h, w, c, g.dtype == HALF_PRECISION, g, places, out)
        return out

"""The C++ part of training, native/training.cc, on tensors: what torch takes many passes over memory for on a CPU."""

from __future__ import annotations

import ctypes
import functools
import os

import torch
from torch import Tensor

from dmsflow import native
from dmsflow.errors import DmsflowError

CHUNK = 512  # kChunk of native/training.cc

_COUNT, _FLAG, _POINTER, _FLOAT = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, ctypes.c_float
_FILTERS = (_FLAG, _COUNT, _COUNT, _COUNT, _COUNT)  # threads, filters, taps, channels, of which are live
_IMAGES = (_FLAG, _COUNT, _COUNT, _COUNT, _COUNT)  # threads, images, rows, columns, channels
SIGNATURES = {
    "dmsflow_use_threads": (_POINTER, _POINTER, _POINTER),
    "dmsflow_binarise": (*_FILTERS, _POINTER, _POINTER, _FLAG, _POINTER),
    "dmsflow_binarise_gradient": (*_FILTERS, _POINTER, _POINTER, _FLAG, _POINTER, _POINTER),
    "dmsflow_quantise": (_FLAG, _COUNT, _FLAG, _POINTER, _FLOAT, _POINTER),
    "dmsflow_quantise_gradient": (_FLAG, _COUNT, _FLAG, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER),
    "dmsflow_max_pool": (*_IMAGES, _FLAG, _POINTER, _POINTER, _POINTER),
    "dmsflow_max_pool_gradient": (*_IMAGES, _FLAG, _POINTER, _POINTER, _POINTER),
}
# Of OpenMP as GCC has it: torch's threads. A pool beside them would take the cores from them.
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


def suits(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the C++ part can do it, where what goes from op to op is of `dtype`: x's, unless given."""
    known = x.is_cpu and (dtype or x.dtype) in (torch.float32, torch.bfloat16)
    return known and not torch.compiler.is_compiling() and library() is not None


def run(function: str, *arguments: Tensor | float) -> None:
    """Call a function of the library, where `suits` has said yes, on torch's threads; of a tensor it gets the address."""
    plain = (each.data_ptr() if isinstance(each, Tensor) else each for each in arguments)
    getattr(library(), function)(torch.get_num_threads(), *plain)


def chunks(count: int) -> int:
    """Of a quantiser's values, each of which has a sum of its own."""
    return -(-count // CHUNK)


def is_half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16

"""The C++ part: 1-bit kernels for stock LiteRT, and fast operations for training on a CPU.

This file is also copied to devices beside the library, so it imports nothing but the errors.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from dmsflow.errors import DmsflowError

LIBRARY = "libdmsflow_lce.so"
TRAINING = "libdmsflow_training.so"
BENCHMARK = "dmsflow-benchmark-aarch64"
# Best first; what a processor lacks, the library refuses.
KERNELS = ("avx512", "avx2", "neon-dotprod", "neon", "portable")


def library() -> Path:
    """The delegate's library, for `load_delegate`.

    Raises:
        DmsflowError: it was not built when dmsflow was installed.
    """
    return _built(LIBRARY)


def training() -> Path:
    """The library of training's operations (see training/fast_ops.py); training also works without it.

    Raises:
        DmsflowError: it was not built when dmsflow was installed.
    """
    return _built(TRAINING)


def _built(name: str) -> Path:
    path = Path(__file__).with_name(name)
    if not path.is_file():
        right = "install dmsflow from a wheel, or from source with a C++ compiler (g++ or clang++)"
        raise DmsflowError(path, "is missing: dmsflow was installed without its C++ part", right)
    return path


def benchmark() -> Path | None:
    """The static program that runs .tflite files on 64-bit ARM without Python; None: it was not built here."""
    path = Path(__file__).with_name(BENCHMARK)
    return path if path.is_file() else None


def kernels(path: Path | None = None) -> str:
    """The kernels that the library picks on this processor: one of KERNELS.

    Args:
        path: of another library than this installation's.

    Raises:
        DmsflowError: the library was not built, or cannot be loaded here.
    """
    path = path or library()
    try:
        loaded = ctypes.CDLL(str(path))
        create, destroy = loaded.tflite_plugin_create_delegate, loaded.tflite_plugin_destroy_delegate
    except (OSError, AttributeError) as error:
        raise DmsflowError(
            path, f"cannot be loaded here ({error})", "install dmsflow again, for this system"
        ) from error
    create.restype, destroy.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    text = ctypes.c_char_p * 1
    for name in (os.environ.get("DMSFLOW_KERNELS", ""), *KERNELS):
        delegate = create(text(b"kernels"), text(name.encode()), ctypes.c_size_t(1), None) if name else None
        if delegate:
            destroy(delegate)
            return name
    raise DmsflowError(path, "has no kernels for this processor", "install dmsflow again, for this system")

"""Runs .tflite files in the interpreter of Larq Compute Engine (LCE), without TensorFlow.

The wheel's `__init__` imports TensorFlow, its interpreter does not need it: the compiled module is
loaded by its path. LCE's indirect kernels are used: on x86 they are several times faster than its
default ones, and give the same bits.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import _compiled

REQUIRES: tuple[str, ...] = ("larq_compute_engine",)
WHEEL = "larq_compute_engine"
MODULE = f"{WHEEL}.tflite.python.interpreter_wrapper_lite"


class Session:
    """A loaded model; it has no `operations`: the wheel's interpreter comes without a profiler."""

    def __init__(self, interpreter: Any) -> None:
        self.interpreter = interpreter
        self.input_shape: tuple[int, ...] = tuple(interpreter.input_shapes[0])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output, float32 [1, classes], for raw pixels of `input_shape`."""
        logits: NDArray[np.float32] = self.interpreter.predict([np.ascontiguousarray(images, np.float32)])[0]
        return logits


def open(path: Path, threads: int = 1) -> Session:  # noqa: A001
    """Load a model file.

    Raises:
        DmsflowError: the interpreter is missing or cannot work with this NumPy, or the file is no
            model that it can run.
    """
    interpreter = _interpreter()
    tflite.read_model(path)
    with _compiled.written_to_stderr() as written:
        try:
            session = Session(interpreter(path.read_bytes(), threads, False, True, True))
            session.run(np.zeros(session.input_shape, np.float32))  # packs the weights, and proves that it runs
        except (RuntimeError, MemoryError) as error:
            what = f"LCE cannot run it ({_compiled.reason(written) or error})"
            raise DmsflowError(path, what, "export it again") from error
    return session


def version() -> str:
    """The runtime's name and version."""
    _interpreter()
    return f"LCE {metadata.version(WHEEL)}"


def _interpreter() -> Any:
    """The wheel's interpreter; its arguments: model, threads, reference kernels, indirect kernels, XNNPACK."""
    if int(np.__version__.partition(".")[0]) >= 2:
        what = "the LCE interpreter misreads its arrays"
        raise DmsflowError(f"numpy {np.__version__}", what, "pip install 'numpy<2'")
    if MODULE not in sys.modules:
        spec = importlib.util.spec_from_file_location(MODULE, _path())
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[MODULE] = module
    return sys.modules[MODULE].LiteInterpreter


def _path() -> Path:
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder, "tflite", "python", MODULE.rpartition(".")[2] + suffix)
            if path.is_file():
                return path
    raise DmsflowError("larq-compute-engine", "is not installed", "pip install 'dmsflow[lce]'")

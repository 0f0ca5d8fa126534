"""Runs .tflite files in the interpreter of Larq Compute Engine (LCE), without TensorFlow.

The wheel has no release for Python 3.13 and its interpreter misreads the arrays of NumPy 2. So it has an
environment of its own, the witness, and runs there as a child process, unless this Python can do it. The wheel's
`__init__` imports TensorFlow, its interpreter does not need it: the compiled module is loaded by its path. LCE's
indirect kernels are used: on x86 they are several times faster than its default ones, and give the same bits.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.environment import WITNESSED, witness_python
from dmsflow.modelfile import tflite
from dmsflow.modelfile.inputs import Port
from dmsflow.modelfile.runners import _compiled, _witness

REQUIRES: tuple[str, ...] = (WITNESSED,)
MODULE = "interpreter_wrapper_lite"


class Session:
    """A loaded model; it has no `operations`: the wheel's interpreter comes without a profiler."""

    def __init__(self, interpreter: Any, inputs: tuple[Port, ...]) -> None:
        self.interpreter, self.inputs = interpreter, inputs
        self.input_shape: tuple[int, ...] = tuple(interpreter.input_shapes[0])

    def run(self, *images: NDArray[Any]) -> NDArray[Any]:
        """The first output, [batch, classes], for an array of each of `inputs`."""
        logits: NDArray[Any] = self.interpreter.predict([*map(np.ascontiguousarray, images)])[0]
        return logits


def open(path: Path, threads: int = 1) -> Session | _witness.Session:  # noqa: A001
    """Load a model file.

    Raises:
        DmsflowError: the interpreter is missing, or the file is no model that it can run.
    """
    if not is_here():
        return _witness.Session(path, threads)
    inputs = tflite.read_inputs(path)
    with _compiled.loading(path, "LCE"):
        session = Session(_interpreter()(path.read_bytes(), threads, False, True, True), inputs)
        session.run(
            *(np.zeros(port.sizes, port.dtype) for port in inputs)
        )  # packs the weights, and proves that it runs
    return session


def version() -> str:
    """The runtime's name and version."""
    return f"LCE {metadata.version(WITNESSED)}" if is_here() else _ask_version(witness_python())


def python() -> str:
    """The Python to measure with on this machine."""
    return sys.executable if is_here() else witness_python()


def is_here() -> bool:
    """Whether this Python itself can run the interpreter."""
    return _find_module() is not None


@cache
def _ask_version(_: str) -> str:
    return _witness.Session("", 1).version


@cache
def _interpreter() -> Any:
    """The wheel's interpreter; its arguments: model, threads, reference kernels, indirect kernels, XNNPACK."""
    spec = _find_module()
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LiteInterpreter


def _find_module() -> importlib.machinery.ModuleSpec | None:
    """The compiled module; None: this Python has none that works."""
    package = importlib.util.find_spec(WITNESSED) if np.__version__.startswith("1.") else None
    places = (package and package.submodule_search_locations) or ()
    return importlib.machinery.PathFinder.find_spec(MODULE, [str(Path(place, "tflite", "python")) for place in places])

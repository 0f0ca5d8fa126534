"""Runs .tflite files on stock LiteRT, the operations of Larq Compute Engine (LCE) by dmsflow's own kernels.

Any of three packages will do, they are one runtime under three names: ai-edge-litert, tflite-runtime,
tensorflow. Its XNNPACK runs the float operations, dmsflow's delegate (dmsflow/native) the 1-bit ones.
"""

from __future__ import annotations

import importlib.util
import itertools
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow import __version__, native
from dmsflow.errors import DmsflowError
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import _compiled

REQUIRES: tuple[str, ...] = ("ai_edge_litert", "tensorflow")  # one of them will do, see dmsflow.environment.INSTEAD
OTHER_OPS = "other ops"  # the kind of what the runtime itself runs
# The module with the interpreter, and how its runtime is called; the first that is installed is taken.
RUNTIMES = {
    "ai_edge_litert.interpreter": "LiteRT",
    "tflite_runtime.interpreter": "TFLite",
    "tensorflow.lite.python.interpreter": "TensorFlow Lite",
}


class Session:
    """A loaded model; its `input_shape` is [1, H, W, C] for files that dmsflow wrote.

    Args:
        options: more of the delegate's.

    Raises:
        DmsflowError: the runtime or the delegate's library is missing, or the file is no model that they can run.
    """

    def __init__(self, path: Path, threads: int, **options: str) -> None:
        runtime, (library, _) = _runtime(), _library()
        self.path, self.threads, self.inputs = path, threads, tflite.read_inputs(path)
        self.input_shape: tuple[int, ...] = self.inputs[0].sizes
        with _compiled.loading(path, RUNTIMES[runtime.__name__]):
            delegate = runtime.load_delegate(str(library), {"threads": str(threads), **options})
            self.interpreter = runtime.Interpreter(
                model_path=str(path), num_threads=threads, experimental_delegates=[delegate]
            )
            details = self.interpreter.get_input_details()
            self.numbers = [each["index"] for each in details]
            for number, port, each in zip(self.numbers, self.inputs, details, strict=True):
                if tuple(each["shape"]) != port.sizes:
                    self.interpreter.resize_tensor_input(number, port.sizes)
            self.interpreter.allocate_tensors()
            self.output = self.interpreter.get_output_details()[0]["index"]
            # Packs the weights, and proves that it runs.
            self.run(*(np.zeros(port.sizes, port.dtype) for port in self.inputs))

    def run(self, images: NDArray[Any], *more: NDArray[Any]) -> NDArray[Any]:
        """The first output, [batch, classes], for an array of each of `inputs`."""
        self.set(images, *more)
        self.interpreter.invoke()
        logits: NDArray[Any] = self.interpreter.get_tensor(self.output)
        return logits

    def set(self, *values: NDArray[Any]) -> None:
        for number, array in zip(self.numbers, values, strict=True):
            self.interpreter.set_tensor(number, array)

    def operations(self, images: NDArray[Any], runs: int, *more: NDArray[Any]) -> list[tuple[str, str, float]]:
        """Kind, name and median milliseconds of each operation, in the order of execution.

        The delegate notes when each of its operations begins and ends. What the runtime does between two
        of them has one time, that of the "other ops" there.
        """
        operators = _operators(self.path)
        log = np.zeros(2 + 3 * len(operators), np.int64)  # records, room for so many, and three numbers of each
        log[1] = len(operators)
        profiled = Session(self.path, self.threads, times=str(log.ctypes.data))
        profiled.run(images, *more)
        runs_ms: list[list[float]] = []
        for _ in range(runs):
            log[0] = 0
            profiled.set(images, *more)
            began = time.monotonic_ns()
            profiled.interpreter.invoke()
            edges = [began, *log[2:].reshape(-1, 3)[: log[0], 1:].ravel().tolist(), time.monotonic_ns()]
            runs_ms.append([(end - begin) / 1e6 for begin, end in itertools.pairwise(edges)])
        order = log[2:].reshape(-1, 3)[: log[0], 0].tolist()
        return _rows(operators, order, [statistics.median(times) for times in zip(*runs_ms, strict=True)])


def open(path: Path, threads: int = 1) -> Session:  # noqa: A001
    """Load a model file; errors as those of `Session`."""
    return Session(path, threads)


def version() -> str:
    """The runtime's name and version, and whose kernels run the 1-bit operations; errors as of `Session`."""
    runtime, (library, built) = _runtime(), _library()
    package = runtime.__name__.partition(".")[0]
    number = getattr(sys.modules[package], "__version__", None) or metadata.version(package.replace("_", "-"))
    return f"{RUNTIMES[runtime.__name__]} {number} + dmsflow {built} {native.kernels(library)}"


def _runtime() -> Any:
    """The module that has Interpreter and load_delegate."""
    for name in RUNTIMES:
        package = name.partition(".")[0]
        if name in sys.modules or importlib.util.find_spec(package):
            try:
                return importlib.import_module(name)
            except ImportError as error:
                what = f"cannot be imported ({error})"
                raise DmsflowError(package, what, "install it again, or pip install 'dmsflow[device]'") from error
    raise _compiled.missing("ai-edge-litert", "device")


def _library() -> tuple[Path, str]:
    """The delegate's library, and the version of the dmsflow that it is of.

    On a device that this file was sent to, inside a zip, it is that of the dmsflow which is installed
    there, or what was sent beside the zip.
    """
    sent = Path(__file__).parents[3]
    if sent.is_dir():
        return native.library(), __version__
    for place in sys.path:
        if (path := Path(place, "dmsflow", "native", native.LIBRARY)).is_file():
            return path, metadata.version("dmsflow")
    if (path := sent.with_name(native.LIBRARY)).is_file():
        return path, __version__
    what = f"has no {native.LIBRARY} for {platform.machine()}"
    if why := _compiled.lacks_wheels():
        raise DmsflowError(sys.executable, f"{what}, and there is no wheel for {why}", _compiled.OTHER_SYSTEM)
    raise DmsflowError(sys.executable, what, f"run there: {sys.executable} -m pip install 'dmsflow[device]'")


def name_operations(path: Path, ms: Sequence[float]) -> list[tuple[str, str, float]]:
    """Kind, name and milliseconds of each operation of the delegate, and of the other operations between two of them.

    Args:
        path: the file that ran.
        ms: from the start to the delegate's first operation, of that operation, from its end to the second, and
            so on, to the end of the run.

    Raises:
        DmsflowError: the delegate ran another number of operations than the file has for it.
    """
    operators = _operators(path)
    order = [index for index, (kind, _) in enumerate(operators) if kind.startswith("Lce")]
    if (
        len(ms) == 2 * len(order) + 3 and operators[0][0] == "CAST"
    ):  # a first layer that computes floats of uint8 pixels
        order = [next(index for index, (kind, _) in enumerate(operators) if kind == "CONV_2D"), *order]
    if len(ms) != 2 * len(order) + 1:
        what = f"ran {len(ms) // 2} operations in the delegate, but has {len(order)} for it"
        raise DmsflowError(path, what, "leave out --operations")
    return _rows(operators, order, ms)


def _operators(path: Path) -> list[tuple[str, str]]:
    """Kind and name of each operator of a file; it is called as its first output."""
    model = tflite.read_model(path)
    graph, kinds = model["subgraphs"][0], [tflite.operator_name(code) for code in model["operator_codes"]]
    names = [tensor.get("name", "") for tensor in graph["tensors"]]
    return [
        (kinds[operator.get("opcode_index", 0)], "".join(names[number] for number in operator.get("outputs", ())[:1]))
        for operator in graph.get("operators", ())
    ]


def _rows(operators: list[tuple[str, str]], order: list[int], ms: Sequence[float]) -> list[tuple[str, str, float]]:
    """Rows of a run; `order` are the delegate's operators as they ran, `ms` as in `name_operations`.

    Of the operators ADD a, LceBconv2d b and c, ADD d there are the rows "other ops" before b, b, c and "other ops"
    after c. Between two neighbours of the file there is no other: that time, below a microsecond, joins the next.
    """
    rows, other_ms = [], 0.0
    for position, (last, following) in enumerate(itertools.pairwise([-1, *order, len(operators)])):
        other_ms += ms[2 * position]
        if following != last + 1:
            name = f"after {operators[last][1]}" if order else "all"
            name = f"before {operators[following][1]}" if following < len(operators) else name
            rows.append((OTHER_OPS, name, other_ms))
            other_ms = 0.0
        if following < len(operators):
            rows.append((*operators[following], ms[2 * position + 1]))
    return rows

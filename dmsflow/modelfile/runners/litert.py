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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow import __version__, native
from dmsflow.errors import DmsflowError
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import _compiled

REQUIRES: tuple[str, ...] = ("ai_edge_litert", "tensorflow")

# The module with the interpreter, and how its runtime is called; the first that is installed is taken.
RUNTIMES = {
    "ai_edge_litert.interpreter": "LiteRT",
    "tflite_runtime.interpreter": "TFLite",
    "tensorflow.lite.python.interpreter": "TensorFlow Lite",
}


class Session:
    """A loaded model.

    Attributes:
        input_shape: of its one float32 input, [1, H, W, C] for files that dmsflow wrote.
    """

    def __init__(self, path: Path, threads: int, interpreter: Any) -> None:
        self.path, self.threads, self.interpreter = path, threads, interpreter
        taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        self.input, self.output = taken["index"], given["index"]
        self.input_shape: tuple[int, ...] = tuple(int(size) for size in taken["shape"])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output, float32 [1, classes], for raw pixels of `input_shape`."""
        self.interpreter.set_tensor(self.input, images)
        self.interpreter.invoke()
        logits: NDArray[np.float32] = self.interpreter.get_tensor(self.output)
        return logits

    def operations(self, images: NDArray[np.float32], runs: int) -> list[tuple[str, str, float]]:
        """Kind, name and median milliseconds of each operation, in the order of execution.

        The delegate notes when each of its operations begins and ends. What the runtime does between
        two of them has one time; all its operations of that stretch are named with it.
        """
        graph = _Graph.load(self.path)
        log = np.zeros(2 + 3 * len(graph.names), np.int64)  # records, room for so many, and three numbers of each
        log[1] = len(graph.names)
        watched = _opened(self.path, self.threads, times=str(log.ctypes.data))
        watched.run(images)
        stretches: list[list[float]] = []
        for _ in range(runs):
            log[0] = 0
            watched.interpreter.set_tensor(watched.input, images)
            began = time.monotonic_ns()
            watched.interpreter.invoke()
            edges = [began, *log[2:].reshape(-1, 3)[: log[0], 1:].ravel().tolist(), time.monotonic_ns()]
            stretches.append([(end - begin) / 1e6 for begin, end in itertools.pairwise(edges)])
        order = log[2:].reshape(-1, 3)[: log[0], 0].tolist()
        return graph.named(order, [statistics.median(times) for times in zip(*stretches, strict=True)])


def open(path: Path, threads: int = 1) -> Session:  # noqa: A001
    """Load a model file.

    Raises:
        DmsflowError: the runtime or the delegate's library is missing, or the file is no model that
            they can run.
    """
    return _opened(path, threads)


def _opened(path: Path, threads: int, **options: str) -> Session:
    runtime, (library, _) = _runtime(), _library()
    tflite.load(path)
    with _compiled.written_to_stderr() as written:
        try:
            delegate = runtime.load_delegate(str(library), {"threads": str(threads), **options})
            interpreter = runtime.Interpreter(
                model_path=str(path), num_threads=threads, experimental_delegates=[delegate]
            )
            interpreter.allocate_tensors()
            session = Session(path, threads, interpreter)
            session.run(np.zeros(session.input_shape, np.float32))  # packs the weights, and proves that it runs
        except (RuntimeError, ValueError, MemoryError) as error:
            why = _compiled.reason(written) or error
            raise DmsflowError(path, f"{_called(runtime)} cannot run it ({why})", "export it again") from error
    return session


def version() -> str:
    """The runtime's name and version, and whose kernels run the 1-bit operations.

    Raises:
        DmsflowError: the runtime or the delegate's library is missing.
    """
    runtime, (library, built) = _runtime(), _library()
    return f"{_called(runtime)} {_version(runtime)} + dmsflow {built} {native.kernels(library)}"


# --- what it needs ------------------------------------------------------------------------------


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
    raise DmsflowError("ai-edge-litert", "is not installed", "pip install 'dmsflow[device]'")


def _called(runtime: Any) -> str:
    return RUNTIMES[runtime.__name__]


def _version(runtime: Any) -> str:
    package = runtime.__name__.partition(".")[0]
    told = getattr(sys.modules[package], "__version__", None)
    return str(told or metadata.version(package.replace("_", "-")))


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
    raise DmsflowError(sys.executable, what, f"run there: {sys.executable} -m pip install 'dmsflow[device]'")


# --- times of single operations -----------------------------------------------------------------


def named(path: Path, ms: Sequence[float]) -> list[tuple[str, str, float]]:
    """Kind, name and milliseconds of each operation, from the times of a run's stretches.

    Args:
        path: the file that ran.
        ms: of the runtime's stretch before the delegate's first operation, of that operation, and so
            on to the stretch after its last.
    """
    graph = _Graph.load(path)
    order = [index for index, kind in enumerate(graph.kinds) if kind.startswith("Lce")]
    if len(ms) != 2 * len(order) + 1:
        what = f"ran {len(ms) // 2} operations by the delegate, and has {len(order)} of its kinds"
        raise DmsflowError(path, what, "leave the operations out")
    return graph.named(order, list(ms))


@dataclass(frozen=True)
class _Graph:
    """The operators of a file.

    Attributes:
        kinds, names: of each.
        above: all that each waits for.
    """

    kinds: list[str]
    names: list[str]
    above: list[set[int]]

    @classmethod
    def load(cls, path: Path) -> _Graph:
        model = tflite.load(path)
        (graph, *_) = model["subgraphs"]
        codes = [_kind(code) for code in model["operator_codes"]]
        writer: dict[int, int] = {}
        made = cls([], [], [])
        for index, operator in enumerate(graph.get("operators", ())):
            made.kinds.append(codes[operator.get("opcode_index", 0)])
            outputs = operator.get("outputs", [])
            made.names.append(graph["tensors"][outputs[0]].get("name", "") if outputs else "")
            read = {writer[tensor] for tensor in operator.get("inputs", ()) if tensor in writer}
            made.above.append(read.union(*(made.above[each] for each in read)))
            writer |= dict.fromkeys(outputs, index)
        return made

    def named(self, order: list[int], ms: list[float]) -> list[tuple[str, str, float]]:
        """Rows of a run.

        Args:
            order: the delegate's operators as they ran.
            ms: of the stretch before the first, of the first, of the stretch after it, and so on.
        """
        between = self._between(order, ms[::2])
        rows = []
        for position, stretch in enumerate(between):
            if stretch:
                kinds, names = ([of[index] for index in stretch] for of in (self.kinds, self.names))
                rows.append((" + ".join(kinds), " + ".join(names), ms[2 * position]))
            if position < len(order):
                rows.append((self.kinds[order[position]], self.names[order[position]], ms[2 * position + 1]))
        return rows

    def _between(self, order: list[int], ms: list[float]) -> list[list[int]]:
        """The runtime's own operators in each stretch.

        What an operator waits for, and what waits for it, leaves it a stretch or few; of several it
        is the longest, since one with nothing in it takes no time.
        """
        between: list[list[int]] = [[] for _ in ms]
        first = 0
        for index, above in enumerate(self.above):
            if index in order:
                continue
            first = max((position + 1 for position, each in enumerate(order) if each in above), default=0)
            last = min(
                (position for position, each in enumerate(order) if index in self.above[each]), default=len(order)
            )
            between[max(range(first, last + 1), key=ms.__getitem__)].append(index)
        return between


def _kind(code: dict[str, Any]) -> str:
    number = max(code.get("builtin_code", 0), code.get("deprecated_builtin_code", 0))
    return str(code.get("custom_code") or tflite.OPERATORS.get(number, f"builtin {number}"))

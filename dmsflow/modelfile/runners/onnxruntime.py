"""Runs .onnx files in onnxruntime, on the CPU and one op after another."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import Port, check_inputs, plain
from dmsflow.modelfile.runners import _compiled

REQUIRES: tuple[str, ...] = ("onnxruntime",)
ERRORS_ONLY = 3  # of onnxruntime's levels of severity
ADDED = r"(_nchwc)?(_token_\d+)?_kernel_time$"  # what onnxruntime appends to the name of a node


class Session:
    """A loaded model; its `input_shape` is [1, H, W, C] for files that dmsflow wrote."""

    def __init__(self, session: Any, inputs: tuple[Port, ...], path: Path, threads: int) -> None:
        self.session, self.inputs, self.path, self.threads = session, inputs, path, threads
        self.names = [one.name for one in session.get_inputs()]
        self.input_shape: tuple[int, ...] = inputs[0].sizes

    def run(self, images: NDArray[Any], *more: NDArray[Any]) -> NDArray[Any]:
        """The first output, [batch, classes], for an array of each of `inputs`."""
        logits: NDArray[Any] = self.session.run(None, dict(zip(self.names, (images, *more), strict=True)))[0]
        return logits

    def operations(self, images: NDArray[Any], runs: int, *more: NDArray[Any]) -> list[tuple[str, str, float]]:
        """Kind, name and median milliseconds of each operation, in the order of execution.

        The runtime's own profiler slows the run, so this is a session of its own. Operations
        are those of the graph as onnxruntime rewrites it: fused, and with changes of layout added.
        """
        runtime = _import_onnxruntime()
        with tempfile.TemporaryDirectory() as folder:
            chosen = session_options(self.threads)
            chosen.enable_profiling, chosen.profile_file_prefix = True, str(Path(folder, "profile"))
            session = runtime.InferenceSession(self.path, chosen, providers=["CPUExecutionProvider"])
            for _ in range(runs + 1):
                session.run(None, dict(zip(self.names, (images, *more), strict=True)))
            events = json.loads(Path(session.end_profiling()).read_bytes())
        return _median_times([event for event in events if event["cat"] == "Node"], runs + 1)


def open(path: Path, threads: int = 1) -> Session:  # noqa: A001
    """Load a model file.

    Raises:
        DmsflowError: onnxruntime is missing, or the file is no model that it can run.
    """
    runtime = _import_onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if not path.is_file():
        raise DmsflowError(path, "no such file", "give the path of an .onnx file")
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    refusals = tuple(getattr(state, name) for name in names)
    try:
        session = runtime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])
        found = [_read_port(one) for one in session.get_inputs()]
    except UnicodeDecodeError as error:
        raise _compiled.refused(path, "onnxruntime cannot load it", "a name is no UTF-8", damaged=True) from error
    except refusals as error:
        why = str(error).rpartition("failed:")[2]
        raise _compiled.refused(path, "onnxruntime cannot load it", why, damaged="rotobuf" in why) from error
    return Session(session, check_inputs(path, found, len(session.get_outputs())), path, threads)


def _read_port(found: Any) -> Port:
    """An input as onnxruntime has it: its type is "tensor(float)", lengths left open are names or None."""
    kind = found.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(plain(length) if isinstance(length, str) else length for length in found.shape)
    return Port(plain(found.name), {"float": "float32", "double": "float64"}.get(kind, kind), shape)


def session_options(threads: int) -> Any:
    """Session options: no parallel branches, and no thread that spins between two runs and slows what is measured next."""
    runtime = _import_onnxruntime()
    chosen = runtime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    chosen.log_severity_level = ERRORS_ONLY
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    return chosen


def version() -> str:
    """The runtime's name and version."""
    return f"onnxruntime {_import_onnxruntime().__version__}"


def operation_names(path: Path) -> dict[str, str]:
    """The first output of each node without a name, by what onnxruntime calls the node; none without the package onnx.

    The second node of a file, if it is a Sub without a name, is "Sub_1".
    """
    try:
        import onnx
    except ImportError:
        return {}
    nodes = onnx.load(path, load_external_data=False).graph.node
    counted = [node for node in nodes if node.op_type != "Constant"]  # onnxruntime makes initializers of these first
    return {f"{node.op_type}_{index}": node.output[0] for index, node in enumerate(counted) if not node.name}


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _compiled.missing("onnxruntime", "onnx") from error
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    return onnxruntime


def _median_times(events: list[dict[str, Any]], runs: int) -> list[tuple[str, str, float]]:
    """Kind, name and median of each operation in the events of `runs` equal runs, the first of which only warms up."""
    count = len(events) // runs
    ops = [event["args"]["op_name"] for event in events[:count]]
    names = [re.sub(ADDED, "", event["name"]) for event in events[:count]]
    medians = [statistics.median(event["dur"] / 1e3 for event in events[at + count :: count]) for at in range(count)]
    return list(zip(ops, names, medians, strict=True))

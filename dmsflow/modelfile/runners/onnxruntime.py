"""Runs .onnx files in onnxruntime, on the CPU and one op after another."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError

REQUIRES: tuple[str, ...] = ("onnxruntime",)
ERRORS_ONLY = 3  # of onnxruntime's levels of severity
ADDED = r"(_nchwc)?(_token_\d+)?_kernel_time$"  # what onnxruntime appends to the name of a node


class Session:
    """A loaded model; its `input_shape` is [1, H, W, C] for files that dmsflow wrote."""

    def __init__(self, session: Any, input_name: str, input_shape: tuple[int, ...], path: Path, threads: int) -> None:
        self.session, self.input_name, self.input_shape = session, input_name, input_shape
        self.path, self.threads = path, threads

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output, float32 [1, classes], for raw pixels of `input_shape`."""
        logits: NDArray[np.float32] = self.session.run(None, {self.input_name: images})[0]
        return logits

    def operations(self, images: NDArray[np.float32], runs: int) -> list[tuple[str, str, float]]:
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
                session.run(None, {self.input_name: images})
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
    except refusals as error:
        reason = str(error).rpartition("failed:")[2]
        raise DmsflowError(path, f"onnxruntime cannot load it ({reason})", "export it again") from error
    inputs = session.get_inputs()
    kinds = [one.type for one in inputs]
    if kinds != ["tensor(float)"] or not all(isinstance(size, int) for size in inputs[0].shape):
        listed = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise DmsflowError(path, f"has the inputs {listed}", "give a model with one float32 input of a fixed shape")
    return Session(session, inputs[0].name, tuple(inputs[0].shape), path, threads)


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
        raise DmsflowError("onnxruntime", "is not installed", "pip install 'dmsflow[onnx]'") from error
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    return onnxruntime


def _median_times(events: list[dict[str, Any]], runs: int) -> list[tuple[str, str, float]]:
    """Kind, name and median of each operation in the events of `runs` equal runs, the first of which only warms up."""
    count = len(events) // runs
    ops = [event["args"]["op_name"] for event in events[:count]]
    names = [re.sub(ADDED, "", event["name"]) for event in events[:count]]
    medians = [statistics.median(event["dur"] / 1e3 for event in events[at + count :: count]) for at in range(count)]
    return list(zip(ops, names, medians, strict=True))

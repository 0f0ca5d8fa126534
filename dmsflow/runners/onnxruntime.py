"""Runs .onnx files in onnxruntime, on the CPU and one op after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError

ERRORS_ONLY = 3


class Session:
    """A loaded model.

    Attributes:
        input_shape: of its one float32 input, [1, H, W, C] for files that dmsflow wrote.
    """

    def __init__(self, session: Any, input_name: str, input_shape: tuple[int, ...]) -> None:
        self.session, self.input_name, self.input_shape = session, input_name, input_shape

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The first output, float32 [1, classes], for raw pixels of `input_shape`."""
        logits: NDArray[np.float32] = self.session.run(None, {self.input_name: images})[0]
        return logits


def open(path: Path, threads: int = 1) -> Session:  # noqa: A001
    """Load a model file.

    Raises:
        DmsflowError: onnxruntime is missing, or the file is no model that it can run.
    """
    runtime = _import()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if not path.is_file():
        raise DmsflowError(path, "no such file", "give the path of an .onnx file")
    refusals = (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )
    try:
        session = runtime.InferenceSession(path, options(threads), providers=["CPUExecutionProvider"])
    except refusals as error:
        reason = str(error).rpartition("failed:")[2]
        raise DmsflowError(path, f"onnxruntime cannot load it ({reason})", "export it again") from error
    inputs = session.get_inputs()
    if (
        len(inputs) != 1
        or inputs[0].type != "tensor(float)"
        or not all(isinstance(size, int) for size in inputs[0].shape)
    ):
        given = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise DmsflowError(path, f"has the inputs {given}", "give a model with one float32 input of a fixed shape")
    return Session(session, inputs[0].name, tuple(inputs[0].shape))


def options(threads: int) -> Any:
    """Session options: no parallel branches, and no thread that spins between two runs and slows what is measured next."""
    runtime = _import()
    chosen = runtime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    chosen.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    chosen.log_severity_level = ERRORS_ONLY
    chosen.add_session_config_entry("session.force_spinning_stop", "1")
    return chosen


def version() -> str:
    """The runtime's name and version."""
    return f"onnxruntime {_import().__version__}"


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DmsflowError("onnxruntime", "is not installed", "pip install 'dmsflow[onnx]'") from error
    onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    return onnxruntime

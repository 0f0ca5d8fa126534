"""Reads a model file back, whoever wrote it: its ops, widths and bytes, and what is binary but not packed.

    path --tflite_reader, onnx_reader--> Graph --summary--> ModelFile

A reader knows one format, and checks every length before it follows it; the summary asks the same of all graphs.
Nothing here runs a model: `read_model_file(Path("model.tflite")).widths` is, for example, (64, 128, 10).
"""

from __future__ import annotations

from pathlib import Path

from dmsflow.errors import DmsflowError
from dmsflow.files import read_bytes
from dmsflow.modelfile import onnx_reader, tflite_reader
from dmsflow.modelfile.inputs import plain
from dmsflow.modelfile.summary import ModelFile, summarize_graph
from dmsflow.modelfile.tflite import Damaged, remedy

FORMATS = {".tflite": tflite_reader.read_graph, ".onnx": onnx_reader.read_graph}


def is_model_file(path: Path) -> bool:
    """Whether a file is to be read as a model, by its name."""
    return path.suffix.lower() in FORMATS


def read_model_file(path: Path) -> ModelFile:
    """What is in a .tflite or .onnx file.

    Raises:
        DmsflowError: it cannot be read, is damaged, is of another format, or keeps its weights where they may not
            be; or it is an .onnx file, and onnx is not installed.
    """
    right = f"give the path of an existing {path.suffix} file"
    try:
        content = read_bytes(path)
    except (OSError, MemoryError) as error:
        raise DmsflowError(path, getattr(error, "strerror", None) or "is too large to read here", right) from error
    return parse_model_file(path, content)


def parse_model_file(path: Path, content: bytes) -> ModelFile:
    """As `read_model_file`, from the bytes of a file."""
    try:
        graph = FORMATS[path.suffix.lower()](path, content)
        return summarize_graph(graph, str(path), len(content))
    except Damaged as error:
        what = f"is not a complete {path.suffix} file ({plain(str(error))})"
        raise DmsflowError(path, what, remedy(content)) from error

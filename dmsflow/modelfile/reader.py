"""Reads a model file back, whoever wrote it: its ops, widths and bytes, and what is binary but not packed.

    path --_tflite, _onnx--> Graph --_account--> ModelFile

A reader knows one format, and checks every length before it follows it; the account asks the same of
all graphs. Nothing here runs a model or needs a framework.
"""

from __future__ import annotations

import stat
from pathlib import Path

from dmsflow.errors import DmsflowError
from dmsflow.modelfile import onnx_reader, summary, tflite, tflite_reader
from dmsflow.modelfile._protobuf import Damaged
from dmsflow.modelfile.graph import plain
from dmsflow.modelfile.summary import ModelFile, Op, Port

__all__ = ["ModelFile", "Op", "Port", "is_model", "loads", "read"]
FORMATS = {".tflite": tflite_reader.read, ".onnx": onnx_reader.read}


def is_model(path: Path) -> bool:
    """Whether a file is to be read as a model, by its name."""
    return path.suffix.lower() in FORMATS


def read(path: Path) -> ModelFile:
    """What is in a .tflite or .onnx file.

    Raises:
        DmsflowError: it cannot be read, is damaged, is of another format, or keeps its weights in other files.
    """
    return loads(path, _content(path))


def loads(path: Path, content: bytes) -> ModelFile:
    """As `read`, from the bytes of a file.

    Raises:
        DmsflowError: as there.
    """
    try:
        graph = FORMATS[path.suffix.lower()](path, content)
        return summary.account(graph, str(path), len(content))  # reads numbers, and may find damage too
    except (tflite.Damaged, Damaged) as error:
        what = f"is not a whole {path.suffix} file ({plain(str(error))})"
        raise DmsflowError(path, what, "export it again") from error


def _content(path: Path) -> bytes:
    right = f"give the path of an existing {path.suffix} file"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DmsflowError(path, "is a folder" if path.is_dir() else "is no regular file", right)
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DmsflowError(path, getattr(error, "strerror", None) or "is too large to read here", right) from error

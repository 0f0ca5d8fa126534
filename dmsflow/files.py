"""Files that are read whole, written atomically, and recognised by their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from dmsflow.errors import DmsflowError, require_utf8

MOST_BYTES = 4 << 30  # of a file that is read whole; neither .tflite nor .onnx can have more than 2 GiB


class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file a stage wrote (or its parent manifest); `path` is relative to the manifest's folder."""

    path: str
    sha256: str
    size_bytes: int


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a FIFO, device or socket is refused, for reading it may never end.

    Raises:
        OSError: there is none, it cannot be read, or it is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a FIFO would wait for its writer
    kind = os.fstat(handle).st_mode
    if not stat.S_ISREG(kind):
        os.close(handle)
        is_folder = stat.S_ISDIR(kind)
        number, what = (errno.EISDIR, "is a folder") if is_folder else (errno.EINVAL, "is not a regular file")
        raise OSError(number, what, str(path))
    return open(handle, "rb")


def read_bytes(path: Path) -> bytes:
    """All of a regular file; errors as those of `open_regular`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"has more than {MOST_BYTES >> 30} GiB", str(path))
        return file.read()


def describe_artifact(path: Path, folder: Path) -> Artifact:
    """Describe a file for a manifest in `folder`."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    require_utf8(str(path), relative)
    return Artifact(path=Path(relative).as_posix(), sha256=hash_file(path), size_bytes=path.stat().st_size)


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary neighbour, flushed to the disk, then renamed."""
    with writing(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A path to write to; it is renamed to `path` at the end of the block, or deleted after an exception.

    Raises:
        DmsflowError: the file cannot be written (a full disk, no permission).
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    except OSError as error:
        right = "free some space or choose another folder"
        raise DmsflowError(path, f"cannot be written ({error.strerror or error})", right) from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)

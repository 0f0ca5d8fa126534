"""Files that are read whole, written atomically, and recognised by their hashes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from dmsflow.errors import DmsflowError, require_utf8

MOST_BYTES = 4 << 30  # of a file that is read whole; neither .tflite nor .onnx can have more than 2 GiB

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)  # what damaged JSON raises, nested too deep too
LOCK_SECONDS = (
    1.0  # how long what a killed process had just started may keep its lock: subprocess forks, and then closes
)
PARTIAL = ".partial"  # ends the name of a file or folder that is being written; a dot begins it
_locks = set[int]()
R = TypeVar("R")


class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file a stage wrote (or its parent manifest); `path` is relative to the manifest's folder."""

    path: str
    sha256: str
    size_bytes: int


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; a FIFO, device or socket is refused, for reading it may never end.

    Raises:
        OSError: there is none, it cannot be read, or it is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
    kind = os.fstat(handle).st_mode
    if stat.S_ISREG(kind):
        return open(handle, "rb")
    os.close(handle)
    number, what = (errno.EISDIR, "is a folder") if stat.S_ISDIR(kind) else (errno.EINVAL, "is not a regular file")
    raise OSError(number, what, str(path))


def read_bytes(path: Path) -> bytes:
    """All of a regular file; errors as those of `open_regular`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"has more than {MOST_BYTES >> 30} GiB", str(path))
        return file.read()


def read_record(path: Path, kind: type[R], *, name: str, right: str, again: str) -> R:
    """A record from a JSON file.

    Args:
        name: what the file should be ("a profile").
        right: what to do if it cannot be read.
        again: what to do if it is something else.

    Raises:
        DmsflowError: either.
    """
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except OSError as error:
        raise DmsflowError(path, error.strerror or str(error), right) from error
    except UNREADABLE as error:
        raise DmsflowError(path, f"is not {name} ({error})", again) from error


def describe_artifact(path: Path, folder: Path) -> Artifact:
    """Describe a file for a manifest in `folder`."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    require_utf8(str(path), relative)
    return Artifact(path=Path(relative).as_posix(), sha256=hash_file(path), size_bytes=path.stat().st_size)


def hash_file(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
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
        raise _unwritable(path, error) from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> DmsflowError:
    right = "free some space or choose another folder"
    return DmsflowError(path, f"cannot be written ({error.strerror or error})", right)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, and remove what a killed one left half-written there.

    The system unlocks it when the process ends, however it ends. A folder that is made for it and stays empty is removed.

    Raises:
        DmsflowError: another process has it, or it cannot be made.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except BlockingIOError as error:
        right = "wait until that has finished, or use --out for another folder"
        raise DmsflowError(folder, "is in use by another run of dmsflow", right) from error
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        remove_partials(folder)
        yield
    finally:
        _locks.discard(lock)
        os.close(lock)
        with contextlib.suppress(OSError):  # which is that it is not empty
            for each in made:
                each.rmdir()


def remove_partials(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that no other one writes to."""
    for left in folder.glob(f".*{PARTIAL}"):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _lock(folder: Path) -> int:
    """Lock the folder itself, so that no file is left."""
    lock, give_up = os.open(folder, os.O_RDONLY), time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < give_up:
                time.sleep(LOCK_SECONDS / 20)
                continue
            os.close(lock)
            raise
        except OSError:
            pass  # some network file systems cannot
        _locks.add(lock)
        return lock


def _drop_locks() -> None:
    """In a forked process, which would otherwise keep the lock of a parent that was killed."""
    for lock in _locks:
        os.close(lock)


os.register_at_fork(after_in_child=_drop_locks)

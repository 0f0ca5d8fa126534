"""For runners whose runtime is compiled code: it writes to stderr without Python, and has wheels for some systems only."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import plain
from dmsflow.modelfile.tflite import remedy

OTHER_SYSTEM = "a 64-bit system is needed: x86-64 or ARM, on Linux one with glibc"


@contextlib.contextmanager
def loading(path: Path, runtime: str) -> Iterator[None]:
    """Keep what compiled code writes to stderr in the block; if the runtime fails there, its errors say why."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        except (RuntimeError, ValueError, MemoryError) as error:
            written.seek(0)
            lines = written.read().decode("utf-8", "replace").splitlines()
            why = "; ".join(line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
            raise refused(path, f"{runtime} cannot run it", why or str(error)) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def lacks_wheels() -> str | None:
    """What this system is, if PyPI has no wheels of the runtimes for it; None: it has.

    Under a kernel of 64 bits there may be a system of 32, as some Raspberry Pi OS are.
    """
    machine = platform.machine()
    if sys.maxsize < 2**32:
        return f"a 32-bit system (32-bit Python on {machine})"
    if machine.lower() not in ("x86_64", "amd64", "aarch64", "arm64"):
        return machine
    triple = sysconfig.get_config_var("HOST_GNU_TYPE") or ""
    return triple if "musl" in triple or "android" in triple else None


def missing(package: str, extra: str) -> DmsflowError:
    """The error that a runtime is not installed."""
    if why := lacks_wheels():
        return DmsflowError(package, f"is not installed, and has no wheel for {why}", OTHER_SYSTEM)
    return DmsflowError(package, "is not installed", f"pip install 'dmsflow[{extra}]'")


def refused(path: Path, what: str, why: str, *, damaged: bool = False) -> DmsflowError:
    """The error that a runtime cannot run a file; `what` says so, `why` is what the runtime wrote."""
    right = "get a complete copy of it" if damaged else f"see its ops with dmsflow show {path.name}"
    return DmsflowError(path, f"{what} ({plain(why.strip())})", remedy(path.read_bytes(), right))

"""This machine. Each measurement is a process of its own, with nothing loaded but the runtimes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Access, Job, Measure, Measurement, _python


@contextlib.contextmanager
def connect(address: str, access: Access) -> Iterator[Measure]:
    """Yield `measure`; this machine needs no connection.

    Raises:
        DmsflowError: the address has more than the name, or something else than this Python is to run.
    """
    if address != "local":
        raise DmsflowError(f"device {address}", "is not a valid address", "write local for this machine")
    if access != Access():
        raise DmsflowError(
            "device local", "measures with the Python that runs dmsflow", "leave out --python and --runner-file"
        )
    yield measure


def measure(job: Job) -> Measurement:
    """Run a job, as devices/__init__.py describes it.

    Raises:
        DmsflowError: a file cannot be loaded, or crashes its runtime.
    """
    return _python.measure(job, _in_child)


def _in_child(job: Job) -> bytes:
    """Run the program in a child; an interrupt ends it too: `subprocess.run` kills it first."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "dmsflow.measuring.devices._program"],
        input=msgspec.json.encode(job),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    if done.returncode:
        raise _python.died(job, f"the process that runs it died ({_python.last_line(done)})")
    return done.stdout

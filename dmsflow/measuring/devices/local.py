"""This machine. Each measurement is a process of its own, with nothing loaded but the runtimes.

Its Python is the one that runs dmsflow, or the one that has the runtime of a file's runner.
"""

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
from dmsflow.plugin import load_plugin

# Its own packages come first, and this dmsflow's after them.
LAUNCH = "import runpy, sys; sys.path.append(sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')"


@contextlib.contextmanager
def connect(address: str, access: Access) -> Iterator[Measure]:
    """Yield `measure`; this machine needs no connection, has no other address, and takes no other Python."""
    if address != "local":
        raise DmsflowError(f"device {address}", "is not a valid address", "write local for this machine")
    if access != Access():
        raise DmsflowError(
            "device local", "measures with the Python that runs dmsflow", "leave out --python and --runner-file"
        )
    yield measure


def measure(job: Job) -> Measurement:
    """Run a job; a DmsflowError if a file cannot be loaded, or crashes its runtime."""
    runners = [load_plugin("runners", file.runner) for file in job.files]
    other = [python for runner in runners if (python := getattr(runner, "python", str)()) not in ("", sys.executable)]
    root, environment = str(Path(__file__).parents[3]), {**os.environ}
    if other:
        command = [other[0], "-I", "-c", LAUNCH, root, str(Path(__file__).with_name("_program.py"))]
    else:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "dmsflow.measuring.devices._program"]

    def run(part: Job) -> bytes:  # an interrupt ends the child too: `subprocess.run` kills it first
        given = msgspec.json.encode(part)
        done = subprocess.run(command, input=given, capture_output=True, env=environment, check=False)
        return _python.output_of(done, part, "process")

    return _python.measure(job, run, *other[:1])

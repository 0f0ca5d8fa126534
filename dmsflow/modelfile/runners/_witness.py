"""A session of runner `lce` in the environment that has its wheel: a child process, which is given images by a pipe.

    python -I -c LAUNCH ROOT PATH THREADS

A message is the length of an .npy file in 8 bytes and the file. The first one from the child is JSON: the session's
`input_shape` and `inputs` and the runtime's `version`, or an `error`. Then it answers messages with an array of each
input with one of logits.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.environment import witness_command, witness_python
from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import Port, inputs_of

ROOT = Path(__file__).parents[3]
AGAIN = f"make the witness again: {witness_command()}"
# This very dmsflow (the environment may have another), and all other packages as the environment has them.
LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv[1]); import dmsflow; del sys.path[0]; "
    "from dmsflow.modelfile.runners import _witness; _witness.serve()"
)


class Session:
    """A model that a child has loaded; it ends with this object, or with this process."""

    def __init__(self, path: Path | str, threads: int) -> None:
        self.path, self.python, pipe = path, witness_python(), subprocess.PIPE
        command = [self.python, "-I", "-c", LAUNCH, str(ROOT), str(path), str(threads)]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors)
        weakref.finalize(self, _end, self.child, self.errors)
        answer = json.loads(str(self._receive(self.python, AGAIN)))
        if "error" in answer:
            where, _, rest = answer["error"].partition(": ")
            what, _, right = rest.rpartition("; ")
            raise DmsflowError(where, what, right)
        self.version: str = answer["version"]
        self.input_shape: tuple[int, ...] = tuple(answer["input_shape"])
        self.inputs = tuple(Port(**{**port, "shape": tuple(port["shape"])}) for port in answer["inputs"])

    def run(self, *values: NDArray[Any]) -> NDArray[Any]:
        """The first output, [batch, classes], for an array of each of `inputs`."""
        assert self.child.stdin
        with contextlib.suppress(BrokenPipeError):  # nothing is received then
            for array in values:
                send(self.child.stdin, array)
        return self._receive(self.path, "export it again")

    def _receive(self, where: Path | str, right: str) -> NDArray[Any]:
        assert self.child.stdout
        received = receive(self.child.stdout)
        if received is None:
            status = f"exit status {self.child.wait()}"
            self.errors.seek(0)
            last = [status, *self.errors.read().decode(errors="replace").strip().splitlines()][-1]
            raise DmsflowError(where, f"the process that runs larq-compute-engine died ({last})", right)
        return received


def _end(child: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    child.kill()
    child.communicate()
    errors.close()


def send(pipe: IO[bytes], array: NDArray[Any]) -> None:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    pipe.write(written.tell().to_bytes(8, "little") + written.getvalue())
    pipe.flush()


def receive(pipe: IO[bytes]) -> NDArray[Any] | None:
    """The next message; None: there is none, the other side has ended."""
    content = pipe.read(int.from_bytes(pipe.read(8), "little"))
    received: NDArray[Any] | None = np.load(io.BytesIO(content), allow_pickle=False) if content else None
    return received


def serve() -> None:
    """The child: open the file that the command names (none: for the version alone), and run it until stdin ends."""
    from dmsflow.modelfile.runners import lce

    given, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the runtime prints is no answer
    path, threads = sys.argv[2:]
    try:
        if not lce.is_here():  # or it would start a witness of its own
            raise DmsflowError(sys.executable, f"has no larq-compute-engine with NumPy 1 ({np.__version__})", AGAIN)
        answer: dict[str, Any] = {"version": lce.version(), "input_shape": (), "inputs": ()}
        session = lce.open(Path(path), int(threads)) if path else None
        if session:
            answer |= {"input_shape": session.input_shape, "inputs": [asdict(port) for port in inputs_of(session)]}
    except DmsflowError as error:
        answer = {"error": str(error)}
    send(answers, np.array(json.dumps(answer)))
    while (first := receive(given)) is not None:
        assert session
        more = [array for _ in answer["inputs"][1:] if (array := receive(given)) is not None]
        send(answers, session.run(first, *more))

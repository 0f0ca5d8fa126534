"""For runners whose runtime is compiled code, which writes to stderr without Python."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def written_to_stderr() -> Iterator[IO[bytes]]:
    """What compiled code writes to stderr in the block: its log, and the reason of a failure."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        stderr = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield written
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def reason(written: IO[bytes]) -> str:
    """The errors in what was written; empty if there are none."""
    written.seek(0)
    lines = written.read().decode("utf-8", "replace").splitlines()
    return "; ".join(line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))

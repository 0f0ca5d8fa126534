"""Damaged .tflite files: a runner refuses each in one line or runs it, and lives."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

COUNT = 150
GRAPH_BYTES = 6000  # of a small network's file: at its end, behind the constants
CHILD = """
import sys
from importlib import import_module
from pathlib import Path
import numpy as np
from dmsflow.errors import DmsflowError

runner = import_module(f"dmsflow.modelfile.runners.{sys.argv[2]}")
refused = 0
for path in sorted(Path(sys.argv[1]).glob("*.tflite")):
    print(path.name, flush=True)
    try:
        session = runner.open(path, 1)
        session.run(np.zeros(session.input_shape, np.float32))
        if hasattr(session, "operations"):
            session.operations(np.zeros(session.input_shape, np.float32), 1)
    except DmsflowError as error:
        assert str(error).startswith(str(path)) and str(error).count("; ") >= 1, error
        refused += 1
assert not {"tensorflow", "torch", "flatbuffers", "larq_compute_engine"} & set(sys.modules), "only the interpreter"
print(refused, "refused")
"""


def check(path: Path, runner: str, seed: int) -> None:
    """Change bytes of a file at random where it describes the graph, many times; a process of its own runs each."""
    content, chance = path.read_bytes(), random.Random(seed)
    folder = path.parent / "damaged"
    folder.mkdir()
    for index in range(COUNT):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(len(content) - GRAPH_BYTES, len(content))] = chance.randrange(256)
        (folder / f"{index:03}.tflite").write_bytes(damaged)
    command = [sys.executable, "-c", CHILD, str(folder), runner]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    assert done.stderr == ""
    refused = int(done.stdout.split()[-2])
    assert COUNT / 5 < refused < COUNT, refused

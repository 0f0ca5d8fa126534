"""How long `dmsflow --help` takes, in a fresh environment with the base install only: no torch, TensorFlow or onnx.

python benchmarks/startup.py --out docs/results/startup.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import script

from dmsflow.environment import describe_environment
from dmsflow.files import write_atomically

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "tensorflow", "onnx")
LACKS = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(name) for name in sys.argv[1:]))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="the best of them counts")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measured(Path(folder), arguments.runs)
    print(f"dmsflow --help: {seconds:.3f} s, best of {arguments.runs}")
    if arguments.out:
        content = {"seconds": seconds, "runs": arguments.runs, "absent": ABSENT, "environment": describe_environment()}
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


def measured(folder: Path, runs: int) -> float:
    """Seconds of the quickest run in an environment made in `folder`."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    install = (programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT)
    subprocess.run(install, check=True, env={**os.environ, "DMSFLOW_NO_NATIVE": "1"})
    subprocess.run((programs / "python", "-c", LACKS, *ABSENT), check=True)
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run((programs / "dmsflow", "--help"), check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    script.run(main)

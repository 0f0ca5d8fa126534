"""The native parts built with AddressSanitizer and UBSan, and what they make of damaged files and of random shapes.

The program for phones runs .tflite files whose tables lie; so does the delegate in LiteRT (tests/native/damage.py), of
whose own crashes only those in the delegate count; training's operations run beside torch's (tests/native/shapes.py).
"""

from __future__ import annotations

import fcntl
import importlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import forked
import mutation
import numpy as np
from forked import Ended

from dmsflow import native
from dmsflow.errors import DmsflowError

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "native"), str(TESTS / "modelfile")]
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"
PROGRAM, LIBRARIES = "dmsflow-benchmark", {"dmsflow_lce": native.LIBRARY, "dmsflow_training": native.TRAINING}
# Too much memory is refused as by a system that has no more, and holding more than 3 GB is a fault.
OPTIONS = {"ASAN_OPTIONS": "allocator_may_return_null=1:hard_rss_limit_mb=3000:handle_abort=1"}
REPORT = re.compile(rb"AddressSanitizer: ([\w-]+)|LeakSanitizer: (detected memory leaks)|runtime error: (.*)")
HANG_S = 30.0


def build(folder: Path, *targets: str) -> Path:
    """Targets of native/CMakeLists.txt with sanitizers; the folder, which a later call and another process build upon.

    Raises:
        DmsflowError: with the compiler's last line.
    """
    flags = [f"-DCMAKE_CXX_FLAGS=-Werror {SANITIZERS}", "-DCMAKE_BUILD_TYPE=Debug"]
    flags.append("-DCMAKE_CXX_STANDARD_LIBRARIES=-lasan -lubsan")  # the libraries name all that they are linked with
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            ("cmake", "-S", str(Path(native.__file__).parent), "-B", str(folder), *flags),
            ("cmake", "--build", str(folder), "--parallel", "--target", *targets),
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise DmsflowError(" ".join(targets), "is not built", (done.stdout + done.stderr)[-2000:])
    return folder


def preloaded() -> dict[str, str]:
    """The environment in which a Python that was not built with sanitizers loads a library that was."""
    found = [
        subprocess.run(("g++", f"-print-file-name={name}"), capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    options = OPTIONS["ASAN_OPTIONS"] + ":detect_leaks=0"  # Python's own at its end
    return {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": options, "OMP_NUM_THREADS": "2"}


def whole_model(chance: random.Random) -> bytes:
    """A small file to damage: one operator of TFLite in most cases, else some of LCE, or a network of both."""
    operators: Any = importlib.import_module("test_benchmark_operators")
    kind, content = chance.randrange(8), b""
    if kind < 5:
        op = chance.choice(sorted(operators.CASES))
        content = operators.make(op, chance.choice(operators.CASES[op][0]), chance.randrange(operators.TRIES))[0]
    elif kind < 7:
        content = operators.lce_cases.random_case(np.random.default_rng(chance.randrange(2**32))).graph.dumps()
    else:
        content = chance.choice(sorted((TESTS / "modelfile" / "cases").glob("*.tflite"))).read_bytes()
    return content


def call(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Ended:
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=seconds, env=dict(environment))
    except subprocess.TimeoutExpired as error:
        return Ended(None, error.stdout or b"", error.stderr or b"", seconds)
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def fault(ended: Ended) -> str | None:
    """The kind of fault of the program for phones, or None: it ran, or refused the file in a line."""
    if found := REPORT.search(ended.err):
        return next(group for group in found.groups() if group).decode("utf-8", "replace")[:60]
    if ended.code is None:
        return "hang"
    lines = ended.err.splitlines()
    if ended.code not in (0, 1):
        return f"exit code {ended.code}"
    if ended.code == 1 and (len(lines) != 1 or not lines[0].startswith(b"ERROR: ")):
        return "more than one line" if lines else "no line"
    return "control characters" if forked.ESCAPED.search(ended.err + ended.out.replace(b"\t", b"")) else None


def damaged_run(program: Path, folder: Path, chance: random.Random) -> tuple[list[str], Ended]:
    path = folder / "damaged.tflite"
    path.write_bytes(mutation.damage_structure(whole_model(chance), chance))
    more = chance.choice(([], [], ["--num_threads=2"], ["--kernels=portable"], ["--enable_op_profiling=true"]))
    command = (str(program), f"--graph={path}", "--num_runs=1", "--min_secs=0", "--warmup_runs=0", *more)
    return [str(path), *more], call(command, {**os.environ, **OPTIONS}, HANG_S)


def run_script(script: str, library: Path, cases: int, seed: int) -> tuple[list[str], Ended]:
    """A script of tests/native on a library with sanitizers: it prints `seed N` and a report for each fault."""
    command = [sys.executable, str(TESTS / "native" / script), str(library)]
    command += ["--cases", str(cases), "--seed", str(seed)]
    return command[1:], call(command, preloaded(), 600 + HANG_S * cases)


def faults(ended: Ended) -> list[str]:
    """What a script found."""
    reports = re.findall(rb"^seed \d+:.*(?:\n.*)?", ended.out, re.MULTILINE)
    if ended.code != 0 and not reports:
        reports = [b"hang"] if ended.code is None else [(ended.err.strip().splitlines() or [b"no line"])[-1]]
    return [report.decode("utf-8", "replace")[:200] for report in reports]

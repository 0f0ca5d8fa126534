"""This machine. Each measurement is a process of its own, with nothing loaded but the runtimes.

Run as a program (`python -m dmsflow.devices.local`) it reads a Job from stdin and writes what it
saw to stdout, both as JSON.
"""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from dmsflow import plugin
from dmsflow.devices import File, Job, Measurement, Timing
from dmsflow.errors import DmsflowError

MEMORY_RUNS = 3


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What one process saw; the lists are in the order of the job's files."""

    runtimes: tuple[str, ...] = ()
    load_ms: tuple[float, ...] = ()
    runs_ms: tuple[tuple[float, ...], ...] = ()
    peak_memory_bytes: int = 0
    error: tuple[str, str, str] | None = None


def measure(job: Job) -> Measurement:
    """Time all files of a job in one process, then each file's memory in another.

    Raises:
        DmsflowError: a file cannot be loaded, or crashes its runtime.
    """
    timed = _in_child(job)
    alone = [_in_child(msgspec.structs.replace(job, files=(file,), warm_up=0, runs=MEMORY_RUNS)) for file in job.files]
    return Measurement(
        timings=tuple(
            Timing(runtime=runtime, load_ms=load_ms, runs_ms=runs_ms, peak_memory_bytes=memory.peak_memory_bytes)
            for runtime, load_ms, runs_ms, memory in zip(
                timed.runtimes, timed.load_ms, timed.runs_ms, alone, strict=True
            )
        )
    )


def _in_child(job: Job) -> Seen:
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "dmsflow.devices.local"],
        input=msgspec.json.encode(job),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    files = ", ".join(file.path for file in job.files)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise DmsflowError(files, f"the process that runs it died ({last})", "export it again")
    seen = msgspec.json.decode(done.stdout, type=Seen)
    if seen.error:
        raise DmsflowError(*seen.error)
    return seen


def watch(job: Job) -> Seen:
    """Run a job in this process.

    Raises:
        DmsflowError: a file cannot be loaded.
    """
    runners = [plugin.load("runners", file.runner) for file in job.files]
    sessions = [runner.open(Path(file.path), job.threads) for runner, file in zip(runners, job.files, strict=True)]
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, session.input_shape).astype(np.float32) for session in sessions]
    runs_ms: list[list[float]] = [[] for _ in sessions]
    gc.disable()
    for turn in range(job.warm_up + job.runs):
        for session, image, times in zip(sessions, images, runs_ms, strict=True):
            start = time.perf_counter_ns()
            session.run(image)
            elapsed = time.perf_counter_ns() - start
            if turn >= job.warm_up:
                times.append(elapsed / 1e6)
    gc.enable()
    peak = peak_memory_bytes()
    return Seen(
        runtimes=tuple(runner.version() for runner in runners),
        load_ms=tuple(_load_ms(file, job.threads) for file in job.files),
        runs_ms=tuple(map(tuple, runs_ms)),
        peak_memory_bytes=peak,
    )


def _load_ms(file: File, threads: int) -> float:
    runner = plugin.load("runners", file.runner)
    start = time.perf_counter_ns()
    runner.open(Path(file.path), threads)
    return (time.perf_counter_ns() - start) / 1e6


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far.

    Linux counts the parent's pages at the moment of the fork in `ru_maxrss`, so a large parent
    would be measured instead; VmHWM begins anew with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    try:
        seen = watch(job)
    except DmsflowError as error:
        where, _, rest = str(error).partition(": ")
        what, _, right = rest.rpartition("; ")
        seen = Seen(error=(where, what, right))
    sys.stdout.buffer.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()

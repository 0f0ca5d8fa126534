"""The program that measures with Python, wherever the files are.

It reads a job from stdin and writes what it measured as the last line of stdout, both as JSON. A device
needs only Python, NumPy and the runtime for it: of dmsflow it imports `environment`, `errors`, `plugin`,
the runners and what these import, and nothing that is not in Python or NumPy (`_python.py` ships it).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dmsflow.environment import read_processor_name
from dmsflow.errors import DmsflowError
from dmsflow.modelfile.inputs import draw_values, inputs_of
from dmsflow.plugin import load_plugin

RESULT = "dmsflow-result "  # what a login prints by itself may stand before it
OPERATION_RUNS = 20
HOTTEST_C = 150.0  # sensors that read more, or nothing above zero, are not connected
COUNTED = "DMSFLOW_MARK"  # the variable that an emulated device sets, which counts (native/count.c)


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Run a devices.Job, as JSON gives it back, in this process.

    What it gives is a devices.Measurement, whose memory is that of the whole process.

    Raises:
        DmsflowError: a file cannot be loaded.
    """
    files, threads = job["files"], job["threads"]
    runners = [load_runner(file["runner"]) for file in files]
    runtimes = [one.version() for one in runners]  # imports them, which is no part of loading a file
    sessions, load_ms = [], []
    for one, file in zip(runners, files, strict=True):
        mark()
        start = time.perf_counter_ns()
        sessions.append(one.open(Path(file["path"]), threads))
        load_ms.append((time.perf_counter_ns() - start) / 1e6)
        mark()
    random = np.random.default_rng(0)
    inputs = [inputs_of(session) for session in sessions]
    images = [[draw_values(port, random) for port in ports] for ports in inputs]
    runs_ms: list[list[float]] = [[] for _ in sessions]
    gc.disable()
    for index in range(job["warm_up"] + job["runs"]):
        for file, session, image, times in zip(files, sessions, images, runs_ms, strict=True):
            for _ in range(file.get("primers", 0)):
                session.run(*image)
            counts = index >= job["warm_up"]
            if counts:
                mark()
            start = time.perf_counter_ns()
            session.run(*image)
            elapsed = time.perf_counter_ns() - start
            if counts:
                mark()
                times.append(elapsed / 1e6)
    gc.enable()
    peak, machine, timings = read_peak_memory(), describe_machine(), []
    for session, ports, image, *measured in zip(sessions, inputs, images, runtimes, load_ms, runs_ms, strict=True):
        timed = job["operations"] and hasattr(session, "operations")
        rows = session.operations(image[0], OPERATION_RUNS, *image[1:]) if timed else []
        operations = [dict(zip(("op", "name", "ms"), row, strict=True)) for row in rows]
        timing = dict(zip(("runtime", "load_ms", "runs_ms"), measured, strict=True))
        described = [asdict(port) for port in ports]
        timings.append({**timing, "inputs": described, "operations": operations, "peak_memory_bytes": peak})
    return {"machine": machine, "timings": timings}


def mark() -> None:
    """Mark, for an emulator that counts instructions, where the counted part begins, and at the next call where it ends."""
    if COUNTED in os.environ:
        time.clock_gettime(time.CLOCK_TAI)


def load_runner(name: str) -> ModuleType:
    """A file of runners/; whether there is one of this name is known before the job is sent."""
    if name.endswith(".py"):
        return load_plugin("runners", name, remember=False)
    return importlib.import_module(f"dmsflow.modelfile.runners.{name.replace('-', '_')}")


# --- the machine --------------------------------------------------------------------------------


def read_peak_memory() -> int:
    """Bytes of the largest resident set of this process so far.

    Linux counts the parent's pages at the moment of the fork in `ru_maxrss`, so a large parent
    would be measured instead; VmHWM begins anew with the program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine() -> dict[str, Any]:
    """A devices.Machine: this one, now."""
    return {
        "processor": read_processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": find_hottest_c(_read(path) for path in Path("/sys/class/thermal").glob("*/temp")),
    }


def find_hottest_c(readings: Iterable[str | None]) -> float | None:
    """The hottest of Linux's thermal zones, which read in thousandths of a degree."""
    degrees = [int(text) / 1000 for text in readings if text and text.lstrip("-").isdigit()]
    return max((one for one in degrees if 0 < one < HOTTEST_C), default=None)


def _read(path: str | Path) -> str | None:
    """The text of a file of the system; None: it is not there, not for us to read, or empty."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace").strip("\0\n ") or None
    return None


# --- the process --------------------------------------------------------------------------------


def main() -> None:
    job = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what a runtime prints is none of the result
        try:
            answer: dict[str, Any] = {"measured": run_job(job)}
        except DmsflowError as error:
            where, _, rest = str(error).partition(": ")
            what, _, right = rest.rpartition("; ")
            answer = {"error": [where, what, right]}
        out.write(f"\n{RESULT}{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()

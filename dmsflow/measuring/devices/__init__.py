"""Where files are measured: this machine, another by ssh, a phone by adb, an emulated ARM core.

A device is called by its address: the name of a file of this folder (`local`), or that name as the
scheme of a URL (`ssh://pi@raspberry`). Each file has

    connect(address: str, access: Access) -> a context that yields measure(job: Job) -> Measurement

A job names files that lie on this machine; bringing them to the device, and leaving nothing there,
is the device's part. The context is left when the last job is done: what can be kept between two
jobs (a connection, a folder) is kept in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Literal, TypeAlias

import msgspec

from dmsflow.deploying.target import Target
from dmsflow.modelfile import runners
from dmsflow.modelfile.inputs import Port
from dmsflow.plugin import load_plugin
from dmsflow.settings import Reach
from dmsflow.terminal import print_line


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A model file, and the file of `modelfile/runners/` that runs it.

    Attributes:
        primers: runs before each timed one, so that the caches hold what it needs whatever ran
            before; a benchmark program has runs of its own instead.
    """

    path: str
    runner: str
    primers: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure in one process: one run of each file in turn, `warm_up + runs` times.

    Attributes:
        memory: measure each file's memory as well, in a process of its own.
        operations: time each operation as well, in runs of their own, where the runtime can.
    """

    files: tuple[File, ...]
    threads: int
    warm_up: int
    runs: int
    memory: bool = True
    operations: bool = False


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of a file as the runtime executes it: its kind, its name in the file, its median."""

    op: str
    name: str
    ms: float


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """The times of one file.

    Attributes:
        runtime: name and version.
        load_ms: from the file to a session that can run, with the runtime already imported.
        runs_ms: each counted run, in order. A benchmark program prints only averages: then one for each
            of its processes (devices/phone/benchmark_program.py).
        peak_memory_bytes: of a process of its own that imports the runtime, loads this file only
            and runs it: the largest resident set, interpreter and runtime included. None: not asked
            for, or the device does not report it.
        operations: in the order of execution; empty if not asked for or not reported.
        inputs: those of the file, which random numbers fill.
    """

    runtime: str
    load_ms: float
    runs_ms: tuple[float, ...]
    peak_memory_bytes: int | None = None
    operations: tuple[Operation, ...] = ()
    inputs: tuple[Port, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The device as it was when it measured; None: it does not report this.

    Attributes:
        governor: of the first core's clock, e.g. "performance" or "ondemand".
        temperature_c: the hottest sensor, after the last run.
        method: "modelled" where nothing ran on such a device; its times are always shown as such, and
            are the same in every run.
    """

    processor: str
    system: str
    cores: int | None = None
    governor: str | None = None
    temperature_c: float | None = None
    method: Literal["measured", "modelled"] = "measured"


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Timings in the order of the job's files, and where they were taken."""

    timings: tuple[Timing, ...]
    machine: Machine


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How to run something on a device.

    Attributes:
        python: the command that is Python there.
        runner_file: a benchmark program for the device (TFLite's benchmark_model, or LCE's
            lce_benchmark_model) to run instead of Python; it runs .tflite files only.
    """

    python: str = "python3"
    runner_file: str | None = None


Measure: TypeAlias = Callable[[Job], Measurement]


def runner_of(target: Target, reach: Reach) -> str:
    """The file of `modelfile/runners/` with which a device runs a target's files.

    Unless the user names one, it is the target's own. On this machine it is the reference runner if only
    that works here; a line on stderr then gives the reason.

    Raises:
        DmsflowError: neither works on this machine.
    """
    if reach.runner or reach.device != "local":
        return reach.runner or target.runner
    found, lacking = runners.first_usable(target.runners)
    if lacking:
        print_line(f"run by {found}, not by {target.runner}: {lacking}")
    return found


def find(address: str) -> ModuleType:
    """The module of this folder for an address; a DmsflowError if there is none."""
    return load_plugin("devices", address.partition("://")[0])


def connect(address: str, access: Access | None = None) -> AbstractContextManager[Measure]:
    """Reach a device; a DmsflowError if its address is none that can be used, or it does not answer."""
    reached: AbstractContextManager[Measure] = find(address).connect(address, access or Access())
    return reached

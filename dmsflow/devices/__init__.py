"""Where files are measured; each file has `measure(job: Job) -> Measurement`.

A job names files that lie on this machine; bringing them to the device is the device's part.
"""

from __future__ import annotations

import msgspec


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A model file, and the file of `runners/` that runs it."""

    path: str
    runner: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure in one process: one run of each file in turn, `warm_up + runs` times."""

    files: tuple[File, ...]
    threads: int
    warm_up: int
    runs: int


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One file's part.

    Attributes:
        runtime: name and version.
        load_ms: from the file to a session that can run, with the runtime already imported.
        runs_ms: each counted run, in order.
        peak_memory_bytes: of a process of its own that imports the runtime, loads this file only
            and runs it: the largest resident set, interpreter and runtime included.
    """

    runtime: str
    load_ms: float
    runs_ms: tuple[float, ...]
    peak_memory_bytes: int


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Timings in the order of the job's files."""

    timings: tuple[Timing, ...]

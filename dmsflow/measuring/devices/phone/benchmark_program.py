"""A benchmark program on a device: dmsflow's, TFLite's benchmark_model, LCE's lce_benchmark_model.

All take the same options and print the same. LCE's uses its default kernels, not the indirect ones that
runners/lce.py uses; TFLite's does not know LCE's operations; dmsflow's (native/benchmark.cc) has those of
the delegate, and plain loops for the others.

Source: tensorflow/lite/tools/benchmark/README.md, and what its versions print.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from dmsflow.errors import DmsflowError
from dmsflow.files import hash_file
from dmsflow.measuring.devices import Access, Job, Measure, Measurement, Operation, Timing
from dmsflow.measuring.devices._shell import ALLOW, Folder, bring_files, call_script, describe_machine, run_program
from dmsflow.modelfile import tflite

# One process of each file in turn, and again: whatever slows the device slows all files alike.
# A process prints only the average of its runs, so it makes few, and each average is one sample.
PROCESSES = 10
MEMORY_RUNS = 3
OPERATION_RUNS = 20
MB = 2**20  # the program divides KiB by 1024

NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
# What the versions print, newest first, and how many of its units a millisecond has.
AVERAGE = {
    rf"Inference \(avg\): {NUMBER}": 1e3,  # 14290.9
    rf"verage inference timings in us:.*\b(?:Inference|no stats): {NUMBER}": 1e3,
    # Of the warm-up, then of the runs; there is no avg where all are equal.
    rf"count=\d+ (?:.*\bavg={NUMBER}|curr={NUMBER}(?!.*\bavg=))": 1e3,
}
LOAD = {rf"timings in us:.*\bInit: {NUMBER}": 1e3, rf"nitialized session in {NUMBER}ms": 1.0}
PEAK_MB = re.compile(rf"[Pp]eak memory footprint \(MB\)[^:]*: {NUMBER}")

# Runs the program on the file of that index, with options, within so many seconds; what it printed.
RunProgram = Callable[[int, tuple[str, ...], float], str]


def find_program(access: Access) -> Path:
    """The program to run; a DmsflowError if there is none."""
    program = Path(access.runner_file or "")
    if not program.is_file():
        raise DmsflowError(program, "no such file", "give the benchmark program built for this device")
    return program


def install(folder: Folder, program: Path, address: str) -> Measure:
    """Copy the program to a device's folder, and return the function that measures with it.

    Raises:
        DmsflowError: the device is full or goes away; and from `measure`, a file is not for the program, or
            whatever stands in the way there.
    """
    there = f"{folder.path}/benchmark"
    folder.put(str(program), there)
    call_script(folder.shell, ALLOW, there)

    def measure(job: Job) -> Measurement:
        for file in job.files:
            if not file.path.endswith(".tflite"):
                what = f"cannot be measured on {address} with a benchmark program"
                raise DmsflowError(file.path, what, "give a .tflite file")
        with bring_files(folder, job) as paths:

            def run(index: int, options: tuple[str, ...], limit_s: float) -> str:
                command = (there, f"--graph={paths[index]}", *options)
                output = run_program(folder, command, Path(job.files[index].path).name, limit_s)
                return f"{output.out.decode(errors='replace')}\n{output.error}"  # which of the two: by its version

            # A program would take lengths left open as 1, and time images of one pixel.
            inputs = [tflite.read_inputs(Path(file.path)) for file in job.files]
            timings = time_files(job, program, run)
            timings = tuple(replace(each, inputs=ports) for each, ports in zip(timings, inputs, strict=True))
        return Measurement(timings=timings, machine=describe_machine(folder.shell))

    return measure


def time_files(job: Job, program: Path, run: RunProgram) -> tuple[Timing, ...]:
    """Run the program on each file of a job; `program` is this machine's copy, for its name."""
    processes = min(PROCESSES, job.runs)
    runs, indices = math.ceil(job.runs / processes), range(len(job.files))
    printed = [[_run(job, index, runs, run) for index in indices] for _ in range(processes)]
    timings = []
    for index, file in enumerate(job.files):
        texts = [process[index] for process in printed]
        peak, operations = None, ""
        if job.memory:  # in a process of its own, as watching the memory takes time; an old program cannot
            text = _run(job, index, MEMORY_RUNS, run, "--report_peak_memory_footprint=true", warm_up=1)
            peak = PEAK_MB.search(text)
        if job.operations:
            operations = _run(job, index, OPERATION_RUNS, run, "--enable_op_profiling=true")
        try:
            rows = parse_operations(operations)
        except (ValueError, KeyError) as error:
            what = f"the benchmark program printed no table of operations ({error})"
            raise DmsflowError(file.path, what, "leave out --operations") from error
        timing = Timing(
            runtime=f"{program.name} sha256:{hash_file(program)[:12]}",
            load_ms=statistics.median(_parse_ms(file.path, text, LOAD, 0) for text in texts),
            runs_ms=tuple(_parse_ms(file.path, text, AVERAGE, -1) for text in texts),
            peak_memory_bytes=round(float(peak[1]) * MB) if peak else None,
            operations=rows,
        )
        timings.append(timing)
    return tuple(timings)


def _run(job: Job, index: int, runs: int, run: RunProgram, *more: str, warm_up: int | None = None) -> str:
    warm_up = max(1, job.warm_up if warm_up is None else warm_up)
    counts = f"--num_threads={job.threads}", f"--warmup_runs={warm_up}", f"--num_runs={runs}"
    # Without these it goes on for a second.
    return run(index, (*counts, "--warmup_min_secs=0", "--min_secs=0", *more), limit_s(warm_up + runs))


def limit_s(runs: int) -> float:
    """How long one process may take: a minute to begin, and then far more than a run takes."""
    return 60.0 + 5.0 * runs


def _parse_ms(path: str, text: str, patterns: dict[str, float], which: int) -> float:
    """The first or last number of the first pattern that was printed."""
    value = 0.0
    for pattern, per_ms in patterns.items():
        if numbers := re.findall(pattern, text):
            with contextlib.suppress(ValueError):
                value = float("".join(numbers[which])) / per_ms
            break
    if not 0 < value < math.inf:
        shown = " ".join(text.split())[-80:] or "nothing"
        raise DmsflowError(
            path, f"the benchmark program printed no timings, but {shown!r}", "run it on the device by hand to see why"
        )
    return value


def parse_operations(text: str) -> tuple[Operation, ...]:
    """The rows under the last "Run Order", which is that of the runs: its columns by the names over them.

    The average is of one call; an operation that a delegate calls n times in a run takes n of them.

    Raises:
        ValueError, KeyError: a row or column that is none.
    """
    _, found, table = text.rpartition("= Run Order =")
    head, operations = [""], []
    for row in table.splitlines()[1:] if found else ():
        cells = re.split(r"\s*\t\s*|\s{2,}", row.strip())
        if cells[0] == "[node type]":
            head = cells
        elif len(cells) != len(head) or not cells[0]:
            break
        else:
            cell = dict(zip(head, cells, strict=True))
            calls = max(1, int(cell["[times called]"]))
            name = re.sub(r"^\[(.*)\](:\d+)?$", r"\1", cell["[Name]"])
            operations.append(Operation(op=cells[0], name=name, ms=float(cell["[avg ms]"]) * calls))
    return tuple(operations)

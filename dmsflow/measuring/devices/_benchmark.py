"""What devices share that run a benchmark program: dmsflow's, TFLite's benchmark_model, LCE's lce_benchmark_model.

All take the same options and print the same. LCE's uses its default kernels, not the indirect ones that
runners/lce.py uses; TFLite's does not know LCE's operations; dmsflow's (native/benchmark.cc) has those of
the delegate, and plain loops for the others.

Source: tensorflow/lite/tools/benchmark/README.md, and what its versions print.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from dmsflow.errors import DmsflowError
from dmsflow.files import hash_file
from dmsflow.measuring.devices import Access, Job, Measurement, Operation, Timing, _shell
from dmsflow.measuring.devices._shell import Shell

# One process of each file in turn, and again: whatever disturbs the device disturbs all files alike.
# A process tells only the average of its runs, so it makes few, and each average is one sample.
PROCESSES = 10
MEMORY_RUNS = 3
OPERATION_RUNS = 20
MB = 2**20  # the program divides KiB by 1024

NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
AVERAGE_US = (  # newest first: "Inference (avg): 14290.9", "Inference: 79760.9", "no stats: 4200"
    rf"Inference \(avg\): {NUMBER}",
    rf"verage inference timings in us:.*\b(?:Inference|no stats): {NUMBER}",
)
COUNT = re.compile(rf"count=\d+ (?:.*\bavg={NUMBER}|curr={NUMBER}(?!.*\bavg=))")  # no avg where all are equal
INIT_US = re.compile(rf"timings in us:.*\bInit: {NUMBER}")
INIT_MS = re.compile(rf"nitialized session in {NUMBER}ms")
PEAK_MB = re.compile(rf"[Pp]eak memory footprint \(MB\)[^:]*: {NUMBER}")


def check(address: str, access: Access, job: Job | None = None) -> Path:
    """The program to run.

    Raises:
        DmsflowError: there is none, or a file of the job is not for it.
    """
    for file in job.files if job else ():
        if not file.path.endswith(".tflite"):
            raise DmsflowError(
                file.path, f"cannot be measured on {address} with a benchmark program", "give a .tflite file"
            )
    program = Path(access.runner_file or "")
    if not program.is_file():
        raise DmsflowError(program, "no such file", "give the benchmark program built for this device")
    return program


def measure(job: Job, program: Path, run: Callable[[int, tuple[str, ...], float], str]) -> tuple[Timing, ...]:
    """Run the program on each file of a job.

    Args:
        job: what to measure.
        program: this machine's copy, for its name.
        run: runs it on the file of that index, with options, within so many seconds; what it printed.

    Raises:
        DmsflowError: it printed no timings.
    """
    rounds = min(PROCESSES, job.runs)
    each = math.ceil(job.runs / rounds)
    printed = [[_run(job, index, each, run) for index in range(len(job.files))] for _ in range(rounds)]
    return tuple(
        Timing(
            runtime=f"{program.name} sha256:{hash_file(program)[:12]}",
            load_ms=statistics.median(_load_ms(file.path, texts[index]) for texts in printed),
            runs_ms=tuple(_average_ms(file.path, texts[index]) for texts in printed),
            peak_memory_bytes=_peak_bytes(job, index, run) if job.memory else None,
            operations=_operations(job, index, run) if job.operations else (),
        )
        for index, file in enumerate(job.files)
    )


def measure_there(
    shell: Shell, folder: str, put: Callable[[str, str], None], address: str, access: Access, job: Job
) -> Measurement:
    """Measure with the program that lies in the device's folder as "benchmark".

    Raises:
        DmsflowError: a file is not for it, or whatever stands in the way there.
    """
    program = check(address, access, job)
    with _shell.brought(shell, folder, job, put) as paths:

        def run(index: int, options: tuple[str, ...], limit_s: float) -> str:
            command = (f"{folder}/benchmark", f"--graph={paths[index]}", *options)
            said = _shell.run(shell, folder, command, b"", limit_s, Path(job.files[index].path).name)
            return f"{said.out.decode(errors='replace')}\n{said.error}"  # which of the two depends on its version

        timings = measure(job, program, run)
    return Measurement(timings=timings, machine=_shell.machine(shell))


def _run(
    job: Job, index: int, runs: int, run: Callable[[int, tuple[str, ...], float], str], *more: str, warm_up: int = -1
) -> str:
    warm_up = max(1, job.warm_up if warm_up < 0 else warm_up)
    options = (
        f"--num_threads={job.threads}",
        f"--warmup_runs={warm_up}",
        f"--num_runs={runs}",
        "--warmup_min_secs=0",
        "--min_secs=0",  # else it goes on for a second
        *more,
    )
    return run(index, options, limit_s(warm_up + runs))


def limit_s(runs: int) -> float:
    """How long one process may take: a minute to begin, and then far more than a run takes."""
    return 60.0 + 5.0 * runs


def _average_ms(path: str, text: str) -> float:
    for pattern in AVERAGE_US:
        if found := re.findall(pattern, text):
            return _positive(path, text, found[-1]) / 1e3
    counts = COUNT.findall(text)  # of the warm-up, then of the runs
    return _positive(path, text, "".join(counts[-1]) if counts else "0") / 1e3


def _load_ms(path: str, text: str) -> float:
    if found := INIT_US.search(text):
        return _positive(path, text, found[1]) / 1e3
    found = INIT_MS.search(text)
    return _positive(path, text, found[1] if found else "0")


def _positive(path: str, text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        shown = " ".join(text.split())[-80:] or "nothing"
        raise DmsflowError(path, f"the benchmark program printed no timings, but {shown!r}", "see what it needs")
    return value


def _peak_bytes(job: Job, index: int, run: Callable[[int, tuple[str, ...], float], str]) -> int | None:
    """Of a process of its own, as watching the memory takes time; None: an old program, which cannot."""
    found = PEAK_MB.search(_run(job, index, MEMORY_RUNS, run, "--report_peak_memory_footprint=true", warm_up=1))
    return round(float(found[1]) * MB) if found else None


def _operations(job: Job, index: int, run: Callable[[int, tuple[str, ...], float], str]) -> tuple[Operation, ...]:
    text = _run(job, index, OPERATION_RUNS, run, "--enable_op_profiling=true")
    try:
        return parse_operations(text)
    except (ValueError, KeyError) as error:
        what = f"the benchmark program printed no table of operations ({error})"
        raise DmsflowError(job.files[index].path, what, "leave the operations out") from error


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

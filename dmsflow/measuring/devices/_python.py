"""For all devices that measure with Python: what is sent to `_program.py`, and what it answers."""

from __future__ import annotations

import io
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Job, Measurement
from dmsflow.measuring.devices._program import OPERATION_RUNS, RESULT
from dmsflow.modelfile.tflite import remedy
from dmsflow.plugin import load_plugin

MEMORY_RUNS = 3
PACKAGE = Path(__file__).parents[2]
SHIPPED = (
    "__init__.py",
    "environment.py",
    "errors.py",
    "plugin.py",
    "native/__init__.py",
    "modelfile/__init__.py",
    "modelfile/inputs.py",
    "modelfile/tflite.py",
    "modelfile/runners/*.py",
)
LAUNCHER = f"""# Any Python can read this far, and says what is missing.
import json, sys
def lacks(what, right):
    print({RESULT!r} + json.dumps({{"error": [sys.executable, what, right]}}))
    sys.exit()
if sys.version_info < (3, 11):
    lacks("is Python %d.%d" % sys.version_info[:2], "3.11 or newer is needed there: name another Python with --python")
try:
    import numpy
except ImportError:
    if sys.maxsize < 2**32:
        lacks("has no NumPy, and is of a 32-bit system", "a 64-bit system is needed: runtimes have no wheels for 32 bits")
    lacks("has no NumPy", "run there: %s -m pip install numpy" % sys.executable)
from dmsflow import program
program.main()
"""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one process measured; or where something is wrong, what, and what would be right."""

    measured: Measurement | None = None
    error: tuple[str, str, str] | None = None


def measure(job: Job, run: Callable[[Job], bytes], device: str = "") -> Measurement:
    """Time all files of a job in one process, then each file's memory in another.

    Args:
        run: runs the program on a job, and gives back its stdout.
        device: as errors call it, unless it is this machine.

    Raises:
        DmsflowError: an unknown runner, a file that cannot be loaded, or a program that does not
            answer as ours.
    """
    runners = [load_plugin("runners", file.runner) for file in job.files]
    timed = read_answer(job, run(job), device)
    alone: list[int | None] = [None] * len(job.files)
    if job.memory:
        few = msgspec.structs.replace(job, warm_up=0, runs=MEMORY_RUNS, operations=False)
        single = [msgspec.structs.replace(few, files=(file,)) for file in job.files]
        alone = [read_answer(one, run(one), device).timings[0].peak_memory_bytes for one in single]
    timings = []
    for file, runner, timing, peak in zip(job.files, runners, timed.timings, alone, strict=True):
        invents = timing.operations and hasattr(runner, "operation_names")
        names = runner.operation_names(Path(file.path)) if invents else {}
        operations = [msgspec.structs.replace(each, name=names.get(each.name, each.name)) for each in timing.operations]
        timings.append(msgspec.structs.replace(timing, operations=tuple(operations), peak_memory_bytes=peak))
    return msgspec.structs.replace(timed, timings=tuple(timings))


def limit_s(job: Job) -> float:
    """How long a device may take: a minute to begin, half of one for each file, and far more than a run takes.

    At most ten days: the system waits for no more than 2^31 ms.
    """
    runs = job.warm_up + job.runs + (OPERATION_RUNS if job.operations else 0)
    return min(60.0 + len(job.files) * (30.0 + 2.0 * runs), 864_000.0)


def read_answer(job: Job, output: bytes, device: str = "") -> Measurement:
    """What the program measured, from its stdout; a DmsflowError is the program's own, or that it did not answer."""
    files = ", ".join(file.path for file in job.files)
    _, marker, line = output.rpartition(RESULT.encode())
    try:
        answer = msgspec.json.decode(line.partition(b"\n")[0] if marker else b"", type=Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        shown = output.decode(errors="replace").strip()[-80:] or "nothing"
        raise DmsflowError(
            files, f"the process that measures it wrote no timings, but {shown!r}", "try again"
        ) from error
    if answer.error:
        where, what, right = answer.error
        if device and not any(where == file.path for file in job.files):
            # A runner speaks of dmsflow's extras, which are for the machine that dmsflow is on.
            if what == "is not installed":
                right = f"pip install {where} there"
                if where == "larq-compute-engine":
                    right = "pip install 'numpy<2' larq-compute-engine there, or leave out --runner"
                if where == "ai-edge-litert":
                    right = "pip install 'dmsflow[device]' there, or use --runner-file or --target onnx"
            where = f"{device}, {where}"
        raise DmsflowError(where, what, right)
    timings = answer.measured.timings if answer.measured else ()
    # Each file has its timing, with the runs asked for; none took no time at all.
    if len(timings) != len(job.files) or any(len(t.runs_ms) != job.runs or min(t.runs_ms) <= 0 for t in timings):
        raise DmsflowError(files, "the process that measures it wrote no timings of this job", "try again")
    assert answer.measured
    return answer.measured


def output_of(done: subprocess.CompletedProcess[bytes], job: Job, process: str, more: str = "") -> bytes:
    """What a process that ran a job's files wrote to stdout; a DmsflowError if it died."""
    if done.returncode:
        paths = [Path(file.path) for file in job.files]
        contents = [path.read_bytes() for path in paths if path.is_file()]
        right = remedy(b"".join(contents), "see what its runtime says of it, or whether memory ran out")
        what = f"the {process} that runs it died ({last_line(done)})"
        raise DmsflowError(", ".join(map(str, paths)), what, right + more)
    return done.stdout


def last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that a process wrote to stderr, or its exit status."""
    return (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def pack_program() -> bytes:
    """The program and the modules of dmsflow that it needs, as a zip file that Python can run."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as packed:
        for pattern in SHIPPED:
            for path in sorted(PACKAGE.glob(pattern)):
                packed.writestr(f"dmsflow/{path.relative_to(PACKAGE).as_posix()}", path.read_bytes())
        packed.writestr("dmsflow/program.py", Path(__file__).with_name("_program.py").read_bytes())
        packed.writestr("__main__.py", LAUNCHER)
    return written.getvalue()

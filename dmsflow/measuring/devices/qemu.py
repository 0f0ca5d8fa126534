"""A 64-bit ARM core, emulated on this machine: qemu, or qemu://cortex-a53, -a72, -a76; times are modelled.

The files run on the stock wheels for aarch64, in QEMU's user mode. A plugin counts each block of
instructions and LLVM's model of a core computes how many cycles it takes (see `emulated/llvm_mca`), so the
times are modelled: no such device ran anything. They include no caches and no other programs, and are the
same at each run, so one is counted, however many are asked for.

All that is needed is set up once (see `emulated/parts`), in about a minute, and kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Access, Job, Machine, Measure, Measurement, Operation, _python
from dmsflow.measuring.devices._program import COUNTED
from dmsflow.measuring.devices.emulated import llvm_mca, parts
from dmsflow.modelfile.runners import litert

DEFAULT = "cortex-a72"
V8_0 = "fp asimd evtstrm crc32 cpuid"
V8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PASSED_ON = ("DMSFLOW_KERNELS", "HOME")
# A whole measurement but for the files, since NumPy and Python import some of their parts late.
WARM_UP = """from dmsflow import program
program.load_runner("litert").version()
program.run_job({"files": [], "threads": 1, "warm_up": 0, "runs": 0, "operations": False})
"""


@dataclass(frozen=True)
class Core:
    """A class of cores.

    Attributes:
        board: a usual machine with such cores.
        ghz: their clock there.
        model: LLVM's model that stands for them; it has none of the A72 and the A76.
        part: the number by which runtimes know the core.
        features: as Linux writes them.
    """

    board: str
    ghz: float
    model: str
    part: str
    features: str

    @property
    def cpuinfo(self) -> str:
        return (
            f"BogoMIPS\t: 100.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 3\n"
        )


CORES = {
    "cortex-a53": Core("Raspberry Pi 3B+", 1.4, "cortex-a53", "0xd03", V8_0),
    "cortex-a72": Core("Raspberry Pi 4B", 1.5, "cortex-a57", "0xd08", V8_0),
    "cortex-a76": Core("Raspberry Pi 5", 2.4, "neoverse-n1", "0xd0b", V8_2),
}


TRIES = 3  # of a count: on a busy machine a runtime's thread may start late, in the middle of it


@dataclass(frozen=True)
class Emulated:
    """The device, set up.

    Attributes:
        address: as the user called it.
        name: of the class of its cores.
        program: the folder with what it runs, as in an installed dmsflow.
        folder: a private one.
    """

    address: str
    name: str
    program: Path
    folder: Path


@contextlib.contextmanager
def connect(address: str, access: Access) -> Iterator[Measure]:
    """Set up the device, unless it is set up already.

    Raises:
        DmsflowError: the address names no class of cores, a tool is missing, or the set-up fails; and
            from `measure`, a file cannot be run, or more is asked for than can be modelled.
    """
    if access != Access():
        raise DmsflowError(f"device {address}", "measures with its own Python", "leave out --python and --runner-file")
    scheme, slashes, name = address.partition("://")
    name = name if slashes else DEFAULT
    if scheme != "qemu" or name not in CORES:
        right = f"write qemu://CLASS, with one of {', '.join(CORES)}; qemu alone is {DEFAULT}"
        raise DmsflowError(f"device {address}", "is not a valid address", right)
    parts.check_tools()
    library = parts.library()
    with zipfile.ZipFile(io.BytesIO(_python.pack_program())) as packed:
        # What is in the file, and not when it was packed.
        whole = b"".join(each.filename.encode() + b"\0" + packed.read(each) for each in packed.infolist())

        def make(place: Path) -> None:
            packed.extractall(place)
            (place / "dmsflow" / "native" / library.name).symlink_to(library)
            # Python keeps what it compiles now: the first run that is counted is like any other.
            done = emulate(Emulated(address, name, place, place), "-c", WARM_UP)
            if done.returncode:
                what = f"does not start ({_python.last_line(done)})"
                raise DmsflowError(f"device {address}", what, f"check that {parts.EMULATOR} works, and try again")

        program = parts.make_part("program", f"{hashlib.sha256(whole).hexdigest()} {library}", make)
    with tempfile.TemporaryDirectory() as private:
        yield partial(measure, Emulated(address, name, program, Path(private)))


def measure(device: Emulated, job: Job) -> Measurement:
    """Run a job, as devices/__init__.py describes it; the memory of an emulated process is left out."""
    if job.threads != 1:
        what = f"is modelled for one thread, and not for {job.threads}"
        raise DmsflowError(f"device {device.address}", what, "use --threads 1")
    files = tuple(msgspec.structs.replace(file, primers=0) for file in job.files)
    once = msgspec.structs.replace(job, files=files, warm_up=1, runs=1, memory=False, operations=False)
    counted = device.folder / "counts"
    for left in reversed(range(TRIES)):
        measured = _python.measure(once, partial(_run_program, device, counted), f"device {device.address}")
        try:
            codes, runs = llvm_mca.read_counts(counted)
            break
        except DmsflowError:
            if not left:
                raise
    counted.unlink()
    core = CORES[device.name]
    per_ms = core.ghz * 1e6  # cycles
    model = llvm_mca.Model(core.model, parts.folder() / "cycles-19")
    timings = []
    # First each file was loaded, which is much code that runs once; then each ran.
    for index, (file, timing) in enumerate(zip(files, measured.timings, strict=True)):
        load = model.cycles(codes, runs[index], llvm_mca.LOAD_COVERAGE)
        spans = model.cycles(codes, runs[len(files) + index])
        # The delegate marks where each of its operations begins and ends; other runtimes mark nothing.
        marked = job.operations and file.runner == "litert"
        rows = litert.name_operations(Path(file.path), [span / per_ms for span in spans]) if marked else []
        modelled = msgspec.structs.replace(
            timing,
            load_ms=sum(load) / per_ms,
            runs_ms=(sum(spans) / per_ms,) * job.runs,
            operations=tuple(Operation(op=op, name=name, ms=ms) for op, name, ms in rows),
        )
        timings.append(modelled)
    processor = f"{device.name} class at {core.ghz:g} GHz ({core.board}), cycles of LLVM 19's {core.model} model"
    machine = Machine(processor=processor, system="Linux aarch64, emulated", method="modelled")
    return Measurement(timings=tuple(timings), machine=machine)


def emulate(
    device: Emulated, *arguments: str, stdin: bytes = b"", runners: Iterable[str] = (), counted: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the emulated Python, with dmsflow's runners and the delegate to import.

    It has the wheels of `runners` (`parts.WHEELS`) beside LiteRT's, with which NumPy comes. What is counted is written
    to `counted`, if anything is.
    """
    root = parts.root(CORES[device.name].cpuinfo)
    sites = [parts.site(name) for name in ("litert", *sorted(set(runners) & parts.WHEELS.keys() - {"litert"}))]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (device.program, *sites))),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "LC_ALL": "C.UTF-8",
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    command = [parts.EMULATOR, "-L", str(root), "-cpu", device.name]
    if counted:
        command += ["-plugin", f"{parts.plugin()},out={counted}"]
        environment[COUNTED] = "1"
    command += [str(parts.python(root)), "-P", *arguments]  # -P: nothing is imported from the working folder
    return subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False)


def _run_program(device: Emulated, counted: Path, job: Job) -> bytes:
    """The program that measures; what it wrote."""
    program = str(device.program / "__main__.py")
    runners = [file.runner for file in job.files]
    done = emulate(device, program, stdin=msgspec.json.encode(job), runners=runners, counted=counted)
    return _python.output_of(done, job, "emulated process", f", or remove {parts.folder()}")

"""adb, against a stand-in: no phone and no real adb was used here.

The stand-in is an `adb` on the PATH that takes adb's command line argument by argument, keeps the
phone's storage in a folder, lets the phone's shell be this machine's sh, and writes down every argument
that it was given. The benchmark program is a stand-in too, which the phone really executes; it prints
what versions of TFLite's print.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmsflow import native
from dmsflow.errors import DmsflowError
from dmsflow.measuring import devices
from dmsflow.measuring.devices import Access, File, Job, Operation, _shell
from dmsflow.measuring.devices.phone import benchmark_program

SERIAL = "192.168.1.7:5555"

ADB = """#!{python}
import json, os, pathlib, re, subprocess, sys
home = pathlib.Path({home!r})
arguments = sys.argv[1:]
with (home / "log").open("a") as log:
    log.write(json.dumps(arguments) + "\\n")
serial = arguments[1] if arguments[0] == "-s" else None
command = arguments[2:] if serial else arguments
storage = str(home / "storage")

def fail(text):
    sys.exit("\\n".join(["* daemon not running; starting now at tcp:5037", text]))

state = (home / "state").read_text()
if state:
    fail(state)
if serial not in (None, {serial!r}):
    fail(f"adb: device {{serial!r}} not found")

def there(text):
    return text.replace("/data/local/tmp", storage)

if command[0] == "push" and len(command) == 3:
    if (home / "full").exists() and command[2].endswith(".tflite"):
        sys.exit(f"adb: error: failed to copy '{{command[1]}}' to '{{command[2]}}': remote No space left on device")
    data = pathlib.Path(command[1]).read_bytes()
    pathlib.Path(there(command[2])).write_bytes(data)
    print(f"{{command[1]}}: 1 file pushed, 0 skipped.")
elif command[0] == "shell" and len(command) == 2:
    environment = {{**os.environ, "PATH": f"{{home}}/bin:{{os.environ['PATH']}}"}}
    shell = subprocess.Popen(["sh", "-c", there(command[1])], env=environment, stdout=subprocess.PIPE)
    for line in shell.stdout:
        sys.stdout.buffer.write(line.replace(storage.encode(), b"/data/local/tmp"))
        sys.stdout.flush()
        if (home / "state").read_text():
            shell.kill()
            sys.exit(255)
    sys.exit(shell.wait())
else:
    fail(f"adb: unknown command {{command[0]}}")
"""

NEW = """
INFO: STARTING!
INFO: Loaded model
INFO: Initialized session in 2.5ms.
INFO: Running benchmark for at least 2 iterations and at least 0 seconds but terminate if exceeding 150 seconds.
INFO: count=2 first=700 curr=600 min=600 max=700 avg=650 std=50

INFO: Running benchmark for at least 10 iterations and at least 0 seconds but terminate if exceeding 150 seconds.
INFO: count=10 first=510 curr=500 min=480 max=530 avg=500.5 std=12 p5=480 median=501 p95=530

INFO: Inference timings in us: Init: 2500, First inference: 700, Warmup (avg): 650, Inference (avg): 500.5
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
INFO: Memory footprint delta from the start of the tool (MB): init=1.5 overall=2.25
"""
PEAK = "INFO: Overall peak memory footprint (MB) via periodic monitoring: 12.5\n"
TABLE = """INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
                 [node type]          [first]        [avg ms]            [%]          [cdf%]          [mem KB]        [times called]  [Name]
             AllocateTensors            5.061           5.061       100.000%        100.000%         10292.000                1       AllocateTensors/0

============================== Top by Computation Time ==============================
Number of nodes executed: 1

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
                 [node type]          [first]        [avg ms]            [%]          [cdf%]          [mem KB]        [times called]  [Name]
                 LceQuantize            0.199           0.203         1.328%          1.328%             0.000                1       [quantize1]:0
                  LceBconv2d            0.398           0.407         2.658%          3.986%             0.000                1       [conv1]:1
    Convolution (NHWC, F32) GEMM        0.428           0.051         4.317%          8.304%             0.000               13       Delegate/Convolution (NHWC, F32) GEMM:2

============================== Top by Computation Time ==============================
                 [node type]          [first]        [avg ms]            [%]          [cdf%]          [mem KB]        [times called]  [Name]
                  LceBconv2d            0.398           0.407         2.658%          3.986%             0.000                1       [conv1]:1
"""
OLD_TABLE = """
============================== Run Order ==============================
\t             [node type]\t  [start]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t    0.000\t    4.269\t    4.269\t  0.107%\t  0.107%\t     0.000\t        0\t[Net/Conv2d_0/Relu6]
\t       DEPTHWISE_CONV_2D\t    4.270\t    2.150\t    2.150\t  0.054%\t  0.161%\t     0.000\t        0\t[Net/Conv2d_1]

============================== Top by Computation Time ==============================
"""


@dataclass(frozen=True)
class Phone:
    """The stand-in's home: what it was told, and what it says of itself."""

    home: Path

    def log(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.home / "log").read_text().splitlines()]

    def left(self) -> list[str]:
        deadline = time.monotonic() + 10
        while (found := os.listdir(self.home / "storage")) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def benchmark(self, text: str, name: str = "lce_benchmark_model") -> Access:
        path = self.home / name
        path.write_text(text)
        return Access(runner_file=str(path))


@pytest.fixture
def phone(tmp_path, monkeypatch):
    home, programs = tmp_path / "phone", tmp_path / "programs"
    for path in (home, programs, home / "storage", home / "bin"):
        path.mkdir()
    (home / "state").write_text("")
    (programs / "adb").write_text(ADB.format(python=sys.executable, home=str(home), serial=SERIAL))
    properties = {"ro.product.manufacturer": "Made", "ro.product.model": "Up 4", "ro.soc.model": "Chip 9"}
    cases = "".join(f"{name}) echo {shlex.quote(text)};; " for name, text in properties.items())
    (home / "bin" / "getprop").write_text(f"#!/bin/sh\ncase $1 in {cases}esac\n")
    for path in (programs / "adb", home / "bin" / "getprop"):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield Phone(home)
    assert os.listdir(home / "storage") == []


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "it's $(touch odd) \"; `id`"
    folder.mkdir()
    path = folder / "-a b.tflite"
    path.write_bytes((Path(__file__).parents[1] / "modelfile" / "cases" / "mean-softmax.tflite").read_bytes())
    return File(path=str(path), runner="lce")


def job(*files, **changed):
    return Job(files=files, **{"threads": 2, "warm_up": 2, "runs": 100, "memory": False, **changed})


def program(log: Path, printed: str = NEW) -> str:
    """A benchmark program that writes down its arguments and prints the rest as it would."""
    here = f"echo \"$@\" >>{shlex.quote(str(log))}; cat >&2 <<'END'\n{printed}END\n"
    peak = f"case \"$*\" in *--report_peak_memory_footprint=true*) cat >&2 <<'END'\n{PEAK}END\n;; esac\n"
    table = f"case \"$*\" in *--enable_op_profiling=true*) cat <<'END'\n{TABLE}END\n;; esac\n"
    return f"#!/bin/sh\n{here}{peak}{table}"


def refused(phone, access, given, address=f"adb://{SERIAL}"):
    with pytest.raises(DmsflowError) as raised, devices.connect(address, access) as measure:
        measure(given)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(f"device {address}: ")


# --- measuring ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [f"adb://{SERIAL}", "adb://"])
def test_a_phone_is_measured(address, phone, model, tmp_path):
    log = tmp_path / "runs"
    with devices.connect(address, phone.benchmark(program(log))) as measure:
        seen = measure(job(model, model, runs=3, memory=True, operations=True))
        assert len(os.listdir(phone.home / "storage")) == 1
        assert len(os.listdir(phone.home / "storage" / os.listdir(phone.home / "storage")[0])) == 1  # the program
    assert phone.left() == []
    timing = seen.timings[0]
    assert seen.timings[1] == timing
    assert timing.runs_ms == (0.5005,) * 3 and timing.load_ms == 2.5
    assert timing.peak_memory_bytes == 12.5 * 2**20
    assert timing.operations == (
        Operation(op="LceQuantize", name="quantize1", ms=0.203),
        Operation(op="LceBconv2d", name="conv1", ms=0.407),
        Operation(
            op="Convolution (NHWC, F32) GEMM", name="Delegate/Convolution (NHWC, F32) GEMM:2", ms=pytest.approx(0.663)
        ),
    )
    assert timing.runtime.startswith("lce_benchmark_model sha256:") and len(timing.runtime) == 39
    assert seen.machine.processor == "Made Up 4, Chip 9"
    assert seen.machine.cores == os.cpu_count() and seen.machine.system.startswith(os.uname().sysname)


def test_what_adb_is_told_argument_by_argument(phone, model, tmp_path):
    access = phone.benchmark(program(tmp_path / "runs"), "bench $(mark)")
    with devices.connect(f"adb://{SERIAL}", access) as measure:
        measure(job(model, runs=2))
    said = phone.log()
    assert all(arguments[:2] == ["-s", SERIAL] for arguments in said)
    commands = [arguments[2:] for arguments in said]
    assert [command[0] for command in commands] == ["shell", "push", "shell", "push", *["shell"] * 4]
    made, program_push, allowed, model_push, first, second, forgotten, facts = commands
    assert shlex.split(made[1]) == ["sh", "-c", _shell.KEEP, "dmsflow", "/data/local/tmp"]
    folder = program_push[2].rpartition("/")[0]
    assert program_push == ["push", str(phone.home / "bench $(mark)"), f"{folder}/benchmark"]
    assert model_push == ["push", model.path, f"{folder}/0.tflite"]

    def script(text):
        return f"({text}); echo dmsflow-status $?"

    assert shlex.split(allowed[1]) == ["sh", "-c", script(_shell.ALLOW), "dmsflow", f"{folder}/benchmark"]
    run = ["sh", "-c", script(_shell.RUN), "dmsflow", folder, _shell.PROGRAM, folder, f"{folder}/benchmark"]
    options = ["--num_threads=2", "--warmup_runs=2", "--num_runs=1", "--warmup_min_secs=0", "--min_secs=0"]
    assert shlex.split(first[1]) == [*run, f"--graph={folder}/0.tflite", *options]
    assert second == first
    assert shlex.split(forgotten[1]) == ["sh", "-c", script(_shell.FORGET), "dmsflow", f"{folder}/0.tflite"]
    assert shlex.split(facts[1]) == ["sh", "-c", script(_shell.FACTS), "dmsflow"]


def test_files_take_turns_in_short_processes(model):
    ran = []

    def run(index, options, limit_s):
        ran.append((index, options[2], limit_s))
        return NEW

    timings = benchmark_program.time_files(job(model, model, runs=25), Path(__file__), run)
    assert [len(timing.runs_ms) for timing in timings] == [10, 10]
    assert ran == [(0, "--num_runs=3", 60 + 5 * 5), (1, "--num_runs=3", 60 + 5 * 5)] * 10


@pytest.mark.parametrize(
    ("printed", "ms"),
    [
        (NEW, 0.5005),
        ("Average inference timings in us: Warmup: 83235, Init: 38467, Inference: 79760.9\n", 79.7609),
        ("Average inference timings in us: Warmup: 4000, Init: 1000, no stats: 4200\n", 4.2),
        (
            "Initialized session in 38.4ms.\ncount=1 curr=7\ncount=50 first=9 curr=8 min=7 max=9 avg=8.25e+03 std=1\n",
            8.25,
        ),
        ("Initialized session in 38ms.\ncount=5 first=9 curr=8 min=7 max=9 avg=8 std=1\ncount=3 curr=1500\n", 1.5),
    ],
)
def test_the_average_as_each_version_prints_it(printed, ms, model):
    timing = benchmark_program.time_files(job(model, runs=1), Path(__file__), lambda index, options, limit_s: printed)[
        0
    ]
    assert timing.runs_ms == (pytest.approx(ms),) and timing.load_ms > 0
    assert timing.peak_memory_bytes is None and timing.operations == ()


def test_a_version_that_cannot_tell_memory_or_operations(model):
    asked = job(model, runs=1, memory=True, operations=True)
    timing = benchmark_program.time_files(asked, Path(__file__), lambda index, options, limit_s: NEW)[0]
    assert timing.peak_memory_bytes is None and timing.operations == ()


@pytest.mark.parametrize(
    ("good", "bad"), [("0.407", "fast"), ("  1       [conv1]", "  x       [conv1]"), ("[Name]", "[Nom]")]
)
def test_a_table_of_something_else_is_refused(good, bad, model):
    table = TABLE.replace(good, bad)
    assert table != TABLE
    with pytest.raises(DmsflowError, match="the benchmark program printed no table of operations"):
        benchmark_program.time_files(job(model, runs=1, operations=True), Path(__file__), lambda *_: NEW + table)


def test_the_table_of_older_versions():
    assert benchmark_program.parse_operations(OLD_TABLE) == (
        Operation(op="CONV_2D", name="Net/Conv2d_0/Relu6", ms=4.269),
        Operation(op="DEPTHWISE_CONV_2D", name="Net/Conv2d_1", ms=2.15),
    )


# --- what can go wrong --------------------------------------------------------------------------


def test_adb_is_not_installed(tmp_path, monkeypatch, model):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(DmsflowError, match="^adb: is not installed; Debian: apt install adb$"),
        devices.connect("adb://", Access(runner_file=__file__)),
    ):
        pass


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ("adb: no devices/emulators found", "is not attached; plug it in, and see adb devices"),
        (
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set",
            "has not allowed this computer; ",
        ),
        ("error: device offline", "is offline; plug it in again"),
        ("error: more than one device/emulator", "could be any of several; name one that adb devices lists: adb://S"),
        ("error: protocol fault", "went away (protocol fault); keep it plugged in"),
    ],
)
def test_a_phone_that_is_not_there(state, what, phone, model):
    (phone.home / "state").write_text(state)
    assert refused(phone, phone.benchmark("x"), job(model), "adb://").startswith(what)


def test_a_serial_of_another_phone(phone, model):
    said = refused(phone, phone.benchmark("x"), job(model), "adb://emulator-5554")
    assert said == "is not attached; plug it in, and see adb devices"
    assert phone.log()[0][:3] == ["-s", "emulator-5554", "shell"]


@pytest.mark.parametrize("access", [Access(), Access(python="python3.12")])
def test_a_phone_needs_a_program(access, monkeypatch):
    monkeypatch.setattr(native, "benchmark", lambda: None)
    with pytest.raises(DmsflowError) as raised, devices.connect("adb://", access):
        pass
    assert str(raised.value) == (
        "device adb://: has no Python; name a benchmark program built for it with --runner-file "
        "(lce_benchmark_model, benchmark_model)"
    )


def test_a_program_that_is_not_there(tmp_path):
    with (
        pytest.raises(DmsflowError, match="none: no such file; give the benchmark program built for this device"),
        devices.connect("adb://", Access(runner_file=str(tmp_path / "none"))),
    ):
        pass


def test_an_onnx_file_is_refused_by_name(phone, tmp_path):
    given = job(File(path=str(tmp_path / "model.onnx"), runner="onnxruntime"))
    said = refused(phone, phone.benchmark("x"), given, "adb://")
    assert said == f"{tmp_path}/model.onnx: cannot be measured on adb:// with a benchmark program; give a .tflite file"
    assert phone.left() == []


def test_a_phone_that_is_full(phone, model):
    (phone.home / "full").touch()
    said = refused(phone, phone.benchmark("x"), job(model))
    assert said == "is full (No space left on device); free some space there"


def test_a_program_for_another_processor(phone, model):
    access = phone.benchmark("")
    Path(access.runner_file).write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(200))
    said = refused(phone, access, job(model))
    assert said.startswith("cannot run the copied program") and said.endswith(
        "name a Python of the device with --python, or a program built for it with --runner-file"
    )


@pytest.mark.parametrize(
    "printed", ["", "hello\n", "count=0\n", "Inference timings in us: Init: 1, Inference (avg): nan\n"]
)
def test_a_program_that_prints_garbage(printed, phone, model, tmp_path):
    said = refused(phone, phone.benchmark(program(tmp_path / "runs", printed)), job(model))
    assert said.startswith(f"{model.path}: the benchmark program printed no timings, but ")


def test_a_program_that_fails_says_why(phone, model):
    text = "echo 'ERROR: Encountered unresolved custom op: LceBconv2d.' >&2; echo 'ERROR: Benchmarking failed.' >&2; exit 1"
    said = refused(phone, phone.benchmark(f"#!/bin/sh\n{text}\n"), job(model))
    assert said.startswith(
        "the program that runs -a b.tflite failed there (ERROR: Encountered unresolved custom op: LceBconv2d.); "
    )


def test_a_phone_that_is_too_slow(phone, model, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_program, "limit_s", lambda runs: 1.0)
    said = refused(phone, phone.benchmark(f"#!/bin/sh\necho $$ >{tmp_path}/pid; exec sleep 60\n"), job(model))
    assert said == "is too slow: -a b.tflite took more than 1 s; use fewer --runs"
    assert subprocess.run(["kill", "-0", (tmp_path / "pid").read_text()], capture_output=True, check=False).returncode


def test_a_phone_that_is_unplugged_midway(phone, model):
    """Its shell ends with the connection, and takes the folder with it; from here nobody can see that."""
    state = shlex.quote(str(phone.home / "state"))
    said = refused(phone, phone.benchmark(f"#!/bin/sh\necho 'error: device offline' >{state}; echo\n"), job(model))
    assert said == "went away (the connection ended); keep it plugged in and awake"
    assert phone.left() == []

"""The contract of devices/, held by every file of the folder, and what this machine does with it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from dmsflow import native
from dmsflow.errors import DmsflowError
from dmsflow.measuring import devices
from dmsflow.measuring.devices import Access, File, Job, _program, _python, local
from dmsflow.modelfile.runners import onnxruntime
from dmsflow.plugin import list_plugins, load_plugin

ROOT = Path(devices.__file__).parents[2]


def job(*files, **changed):
    return Job(files=files, **{"threads": 1, "warm_up": 0, "runs": 2, **changed})


def is_running(process: str) -> bool:
    """A process that has ended and waits for its parent does not run."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# --- every device -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_plugins("devices"))
def test_every_device_can_be_connected_to(name):
    module = load_plugin("devices", name)
    assert list(inspect.signature(module.connect).parameters) == ["address", "access"]
    first = module.__doc__.splitlines()[0]
    assert first.endswith(".") and 20 < len(first) <= 110


def test_the_devices_are_these():
    assert list_plugins("devices") == ["adb", "local", "qemu", "ssh"]


@pytest.mark.parametrize(
    "address",
    [
        "local://",
        "local://x",
        "ssh",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://a|b",
        "ssh://u@-h",
        "ssh://h:0",
        "ssh://h:65536",
        "ssh://h:x",
        "ssh://u@h@i",
        "ssh://h/etc",
        "ssh://$(id)",
        "ssh://a;b",
        "ssh://u:pw@h",
        "ssh://h\nx",
        "adb",
        "adb://-s",
        "adb://a|b",
        "adb://$(id)",
        "adb://a/b",
        "adb://a;b",
        "adb://x\n",
    ],
)
def test_an_unusable_address_is_refused_before_anything_runs(address, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    access = Access(runner_file=__file__) if address.startswith("adb") else Access()
    with pytest.raises(DmsflowError) as raised, devices.connect(address, access):
        pass
    assert str(raised.value).startswith(f"device {' '.join(address.split())}")
    assert "is not a valid address; " in str(raised.value)


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(DmsflowError, match="device toaster: is unknown; use one of adb, local, qemu, ssh"):
        devices.connect("toaster://x")


# --- this machine -------------------------------------------------------------------------------


def test_local_measures_what_is_asked_for(model_files):
    with devices.connect("local") as measure:
        seen = measure(job(*model_files, runs=3, warm_up=1, operations=True))
        lean = measure(job(*model_files, memory=False))
    for timing, runtime in zip(seen.timings, ("onnxruntime 1.", "LiteRT "), strict=True):
        assert timing.runtime.startswith(runtime)
        assert len(timing.runs_ms) == 3 and all(0 < ms < 1000 for ms in timing.runs_ms)
        assert 0 < timing.load_ms < 10_000
        assert 10 * 2**20 < timing.peak_memory_bytes < 500 * 2**20
    assert [timing.peak_memory_bytes for timing in lean.timings] == [None, None]
    assert [timing.operations for timing in lean.timings] == [(), ()]
    assert seen.timings[1].operations
    machine = seen.machine
    assert machine.processor and machine.system.startswith(("Linux", "Darwin")) and machine.cores == os.cpu_count()


def test_operations_are_called_as_their_layers_and_sum_to_a_run(model_files):
    session = onnxruntime.open(Path(model_files[0].path))
    seen = session.operations(np.zeros(session.input_shape, np.float32), 5)
    layers = [name.partition("/")[0] for op, name, _ in seen if op in ("Conv", "QLinearConv", "MatMulInteger")]
    assert layers == [f"conv{index}" for index in range(8)]
    assert seen[-1][:2] == ("Gemm", "dense")
    assert sum(ms for _, _, ms in seen) < 50 and all(ms >= 0 for _, _, ms in seen)


def test_operations_lose_what_onnxruntime_adds_to_their_names():
    events = [
        {"name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": "Conv"}}
        for dur in (9, 1, 3, 4)
        for name in ("conv0_nchwc", "conv1_token_12", "Conv_2")
    ]
    rows = onnxruntime._median_times(events, 4)
    assert rows == [("Conv", "conv0", 0.003), ("Conv", "conv1", 0.003), ("Conv", "Conv_2", 0.003)]


def test_nodes_without_names_are_called_as_their_outputs(tmp_path):
    """Constants are not counted: onnxruntime makes initializers of them."""
    one = helper.make_node("Constant", [], ["one"], value_float=1.0)
    nodes = [one, helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Add", ["a", "one"], ["sum"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y"))
    graph = helper.make_graph([*nodes, helper.make_node("Exp", ["sum"], ["y"], "last")], "g", [x], [y])
    opset = helper.make_opsetid("", 17)
    (tmp_path / "a.onnx").write_bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())
    names = onnxruntime.operation_names(tmp_path / "a.onnx")
    rows = onnxruntime.open(tmp_path / "a.onnx").operations(np.zeros((1, 2), np.float32), 1)
    assert [names.get(name, name) for _, name, _ in rows] == ["a", "sum", "last"]


def test_files_take_turns(monkeypatch):
    """One run of each in turn, the warm-up uncounted, the load timed apart."""
    order = []

    class Session:
        input_shape = (1, 2, 2, 1)

        def __init__(self, name):
            self.name = name

        def run(self, images):
            assert images.shape == (1, 2, 2, 1) and images.dtype == np.float32
            order.append(self.name)

    class Runner:
        open = staticmethod(lambda path, threads: Session(path.name))
        version = staticmethod(lambda: "turns 1.0")

    asked = {"files": [{"path": name, "runner": "turns"} for name in "ab"]}
    asked |= {"threads": 1, "warm_up": 2, "runs": 3, "operations": True}
    monkeypatch.setattr(_program, "load_runner", lambda name: Runner)
    seen = _program.run_job(asked)
    assert order == ["a", "b"] * 5
    assert [len(timing["runs_ms"]) for timing in seen["timings"]] == [3, 3]
    assert [timing["runtime"] for timing in seen["timings"]] == ["turns 1.0", "turns 1.0"]
    assert [timing["operations"] for timing in seen["timings"]] == [[], []]


def test_peak_memory_is_that_of_the_process_alone(model_files):
    """A parent of 600 MiB does not count; 300 MiB of the process itself do."""
    ballast = np.ones(600 * 2**20, np.uint8)
    seen = local.measure(job(model_files[0], memory=True))
    assert seen.timings[0].peak_memory_bytes < 300 * 2**20 < ballast.nbytes
    script = "import numpy as np; from dmsflow.measuring.devices import _program as p; x = np.ones(300 << 20, np.uint8); del x; print(p.read_peak_memory())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 300 * 2**20 < int(done.stdout) < 500 * 2**20


def test_a_child_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with (
        pytest.raises(
            DmsflowError, match=r"x\.onnx: the process that runs it died \(exit status 1\); see what its runtime"
        ),
        devices.connect("local") as measure,
    ):
        measure(job(devices.File(path="x.onnx", runner="onnxruntime")))


@pytest.mark.parametrize(
    "written",
    [b"", b"hello", b"dmsflow-result", b"dmsflow-result {}", b'dmsflow-result {"measured": 1}', b"dmsflow-result \xff"],
)
def test_garbage_from_a_child_is_reported_in_one_line(written, monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout=written, stderr=b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(DmsflowError, match=r"^x\.onnx: the process that measures it wrote no timings.*; try again$"):
        local.measure(job(devices.File(path="x.onnx", runner="onnxruntime")))


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("runs_ms", [1.0]),
        ("runs_ms", [1.0, float("nan")]),
        ("runs_ms", [1.0, 0.0]),
        ("runs_ms", ["1.0", "2.0"]),
        ("load_ms", [1.0, 2.0]),
        ("runtime", None),
        ("operations", [["Conv", "x", 0.1]]),
    ],
)
def test_timings_of_another_job_are_refused(changed, value):
    machine = {"processor": "p", "system": "s", "cores": 1, "governor": None, "temperature_c": None}
    timing = {"runtime": "r", "load_ms": 1.0, "runs_ms": [1.0, 2.0], "operations": [], "peak_memory_bytes": 1}
    asked = job(devices.File(path="x.onnx", runner="onnxruntime"))

    def answer(*timings):
        measured = {"machine": machine, "timings": timings}
        return f"{_program.RESULT}{json.dumps({'measured': measured})}".encode()

    assert _python.read_answer(asked, answer(timing)).timings[0].runs_ms == (1.0, 2.0)
    for timings in ([{**timing, changed: value}], [timing, timing], []):
        with pytest.raises(DmsflowError, match=r"^x\.onnx: the process that measures it wrote no timings"):
            _python.read_answer(asked, answer(*timings))


def test_an_interrupt_ends_the_child(tmp_path):
    """The file of a user's runner says which process runs it, and would run for a minute."""
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def version():\n"
        "    return 'slow'\n"
        "def open(path, threads):\n"
        "    path.with_suffix('.pid').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
    )
    asked = f"devices.File(path={str(tmp_path / 'x')!r}, runner={str(tmp_path / 'slow.py')!r})"
    script = f"from dmsflow.measuring import devices\nwith devices.connect('local') as measure: measure(devices.Job(files=({asked},), threads=1, warm_up=0, runs=1))"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, start_new_session=True) as parent:
        written = tmp_path / "x.pid"
        deadline = time.monotonic() + 20
        while not (written.exists() and written.read_text()):
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.02)
        parent.send_signal(signal.SIGINT)  # to the parent alone: it has to end its child itself
        assert b"KeyboardInterrupt" in parent.communicate(timeout=20)[1]
    assert not is_running(written.read_text())


def test_what_local_cannot_do_is_refused():
    for access in (Access(python="python3.12"), Access(runner_file="benchmark_model")):
        with (
            pytest.raises(DmsflowError, match="device local: measures with the Python that runs dmsflow"),
            devices.connect("local", access),
        ):
            pass


@pytest.mark.parametrize(
    ("readings", "hottest"),
    [(["41000", "55500", None, "-40000", "200000000", "not it"], 55.5), ([], None), ([None, "0", "255000"], None)],
)
def test_the_hottest_sensor_that_is_connected(readings, hottest):
    assert _program.find_hottest_c(readings) == hottest


# --- the program that is sent -------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has only NumPy and the runtimes, and cannot import dmsflow or what it needs."""
    site = Path(np.__file__).parents[1]
    folder = tmp_path_factory.mktemp("bare")
    for pattern in ("numpy", "numpy.libs", "numpy-*", "onnxruntime", "onnxruntime-*", "ai_edge_litert*"):
        for found in site.glob(pattern):
            (folder / found.name).symlink_to(found)
    return [sys.executable, "-I", "-S", "-c", f"import sys, runpy; sys.path.append({str(folder)!r}); "]


def in_the_bare(bare, line, given=b"", cwd=None):
    command = [*bare[:-1], bare[-1] + line]
    return subprocess.run(command, input=given, capture_output=True, check=False, cwd=cwd)


def test_what_is_sent_is_complete(bare, model_files, tmp_path):
    """Alone with NumPy and the runtimes: nothing of dmsflow but what is in it, and no msgspec."""
    (tmp_path / "program.zip").write_bytes(_python.pack_program())
    (tmp_path / native.LIBRARY).symlink_to(native.library())
    missing = in_the_bare(bare, "import dmsflow")
    assert b"No module named 'dmsflow'" in missing.stderr
    assert b"No module named 'msgspec'" in in_the_bare(bare, "import msgspec").stderr
    import msgspec

    asked = job(*model_files, operations=True)
    line = f"runpy.run_path({str(tmp_path / 'program.zip')!r}, run_name='__main__')"
    done = in_the_bare(bare, line, msgspec.json.encode(asked))
    assert done.returncode == 0, done.stderr
    seen = _python.read_answer(asked, done.stdout)
    assert [len(timing.runs_ms) for timing in seen.timings] == [2, 2]
    assert all(timing.operations for timing in seen.timings)
    assert not {"torch", "msgspec", "click", "rich"} & set(re.findall(rb"\w+", _python.LAUNCHER.encode()))


def test_what_is_sent_is_small():
    assert len(_python.pack_program()) < 40_000


def test_a_python_that_lacks_numpy_says_so(tmp_path):
    (tmp_path / "program.zip").write_bytes(_python.pack_program())
    done = subprocess.run(
        [sys.executable, "-I", "-S", tmp_path / "program.zip"], input=b"{}", capture_output=True, check=True
    )
    with pytest.raises(DmsflowError, match=r"python\S*: has no NumPy; run there: .*python\S* -m pip install numpy"):
        _python.read_answer(job(devices.File(path="x", runner="lce")), done.stdout)


def test_every_python_reads_the_launcher():
    """It has to say that a Python is too old in words that this Python knows."""
    lines = _python.LAUNCHER.replace("(3, 11)", "(99, 0)")
    done = subprocess.run([sys.executable, "-c", lines], input=b"", capture_output=True, check=True)
    with pytest.raises(DmsflowError, match=r"is Python 3\.\d+; 3\.11 or newer is needed there"):
        _python.read_answer(job(devices.File(path="x", runner="lce")), done.stdout)
    assert not re.search(r"f\"|:=|print [^(]", _python.LAUNCHER)


def test_the_system_can_wait_as_long_as_a_device_may_take():
    job = Job(files=(File(path="a", runner="litert"),), threads=1, warm_up=10_000_000, runs=10_000_000)
    assert _python.limit_s(job) * 1000 < 2**31
    assert _python.limit_s(job) > 7 * 24 * 3600

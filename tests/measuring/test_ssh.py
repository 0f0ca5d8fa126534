"""ssh, end to end: against an OpenSSH server that these tests start on the loopback address.

The server has a host key, a list of allowed keys, a home and temporary files of its own; the
client has a configuration of its own (DMSFLOW_SSH_CONFIG), so nobody's ~/.ssh is read or written. The
device's python3 has NumPy and the runtimes, and neither dmsflow nor msgspec.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tools

from dmsflow import cli, native
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.measuring import devices
from dmsflow.measuring.devices import Access, File, Job, _python, _shell
from dmsflow.network import profile
from dmsflow.network.latency import build_latency

SSHD = tools.find_program("sshd")
FLAKY_S = 20.0


@dataclass(frozen=True)
class Server:
    """A machine to reach.

    Attributes:
        folder: keys and configurations.
        temporary: where it has its temporary files.
        programs: first on its PATH.
        process: the server that listens.
    """

    folder: Path
    port: int
    temporary: Path
    programs: Path
    process: subprocess.Popen

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def where(self) -> str:
        return f"device {self.address}: "

    def left(self) -> list[str]:
        """What lies in its folder for temporary files, once it has had time to clean up."""
        deadline = time.monotonic() + FLAKY_S
        while (found := os.listdir(self.temporary)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def program(self, name: str, text: str) -> str:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return name


def key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def bare_python(folder: Path, *packages: str) -> str:
    """The line of a script that is a Python with these packages, and no others."""
    folder.mkdir()
    for package in packages:
        for found in Path(np.__file__).parents[1].glob(f"{package}*"):
            (folder / found.name).symlink_to(found)
    return f'PYTHONPATH={folder} exec {sys.executable} -S "$@"'


@contextlib.contextmanager
def serving(folder: Path, *more: str):
    assert SSHD, "these tests start an OpenSSH server: apt-get install openssh-server"
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the server of a whole machine locks itself in
    temporary, programs, port = folder / "temporary", folder / "programs", free_port()
    for path in (temporary, programs):
        path.mkdir()
    (folder / "allowed").write_text(key(folder / "key"))
    host_key = key(folder / "host_key")
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key}")
    client = f"IdentityFile {folder}/key\nIdentitiesOnly yes\nIdentityAgent none\nUserKnownHostsFile {folder}/known\n"
    (folder / "client").write_text(f"{client}GlobalKnownHostsFile none\n")
    lines = (
        f"ListenAddress 127.0.0.1:{port}",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/allowed",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin yes",
        f"SetEnv HOME={folder} TMPDIR={temporary} PATH={programs}:{os.environ['PATH']}",
        *more,
    )
    (folder / "server").write_text("\n".join(lines) + "\n")
    # Since OpenSSH 9.8 a server keeps away for a while who has failed, as some of these tests do.
    settings = ("-f", folder / "server", "-o", "PerSourcePenalties=no")
    if subprocess.run([SSHD, "-t", *settings], capture_output=True, check=False).returncode:
        settings = settings[:2]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", *settings], stdin=subprocess.DEVNULL, stderr=log)
        try:
            deadline = time.monotonic() + FLAKY_S
            while True:
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.02)
            yield Server(folder, port, temporary, programs, process)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssh")
    with serving(folder) as server:
        runners = ("onnxruntime", "ai_edge_litert")
        server.program("python3", bare_python(folder / "site", "numpy", *runners))
        server.program("python-bare", bare_python(folder / "nothing"))
        server.program("python-numpy", bare_python(folder / "numpy", "numpy"))
        yield server


@pytest.fixture
def server(started, monkeypatch):
    """Whatever a test does, nothing is left on the machine."""
    monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(started.folder / "client"))
    yield started
    assert started.left() == []


@pytest.fixture(scope="module")
def files(tmp_path_factory, model_files):
    """The ONNX file has a name that a shell would act on."""
    onnx, tflite = model_files
    odd = tmp_path_factory.mktemp("odd") / "it's $(touch odd) \"; `id`"
    odd.mkdir()
    shutil.copy(onnx.path, odd / "a b.onnx")
    return File(path=str(odd / "a b.onnx"), runner="onnxruntime"), tflite


def job(*files, **changed):
    return Job(files=files, **{"threads": 1, "warm_up": 0, "runs": 2, "memory": False, **changed})


def refused(server, given, access=Access()):  # noqa: B008
    """The one line that a measurement ends with."""
    with pytest.raises(DmsflowError) as raised, devices.connect(server.address, access) as measure:
        measure(given)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def wait_for(path_of):
    """Until the function gives something back; with it."""
    deadline = time.monotonic() + FLAKY_S
    while not (found := path_of()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def runs(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


# --- measuring ----------------------------------------------------------------------------------


def test_it_measures_as_this_machine_does(server, files):
    asked = job(*files, warm_up=1, runs=3, memory=True, operations=True)
    with devices.connect(server.address) as measure:
        there = measure(asked)
        again = measure(job(files[1]))
        assert len(os.listdir(server.temporary)) == 1
    with devices.connect("local") as measure:
        here = measure(asked)
    assert there.machine == here.machine
    for one, other in zip(there.timings, here.timings, strict=True):
        assert one.runtime == other.runtime
        assert len(one.runs_ms) == 3 and all(0 < ms < 1000 for ms in one.runs_ms)
        assert 0 < one.load_ms < 10_000
        assert 10 * 2**20 < one.peak_memory_bytes < 500 * 2**20
        assert [(each.op, each.name) for each in one.operations] == [(each.op, each.name) for each in other.operations]
    assert [each.name for each in there.timings[0].operations][:3] == ["input/planes", "input/centred", "conv0"]
    assert there.timings[1].operations
    assert again.timings[0].peak_memory_bytes is None and len(again.timings[0].runs_ms) == 2


def test_a_profile_is_measured_there(server, tmp_path, monkeypatch, capsys):
    """Through the command line; every point in a few runs."""
    monkeypatch.setattr("dmsflow.measuring.timing.PAUSE_S", 0.0)
    words = ["--channels", "1", "--networks", "vgg11", "--max-ratio", "0.5", "--points", "2", "--runs", "3"]
    given = ["--name", "there", "--device", server.address, "--check", "1", "--timeout-minutes", "0", "--out"]
    assert cli.main(["profile", *given, str(tmp_path), *words]) == 0
    made = profile.load_profile(capsys.readouterr().out.strip())
    assert made.device == server.address and made.runtime.startswith("LiteRT ") and made.environment["processor"]
    network = load_network("vgg11", 1, 32, 10)
    assert build_latency(network, made)(dict.fromkeys(network.widths, 8)) > 0


def test_what_litert_lacks_there_is_reported(server, files, monkeypatch):
    """A machine of another kind gets no library from this one; here that is one without any."""
    said = refused(server, job(files[1]), Access(python="python-numpy"))
    assert said.startswith(
        f"{server.where[:-2]}, ai-edge-litert: is not installed; pip install 'dmsflow[device]' there"
    )

    def absent():
        raise DmsflowError("library", "is not built", "build it")

    monkeypatch.setattr(native, "library", absent)
    said = refused(server, job(files[1]))
    assert re.fullmatch(
        rf"device {server.address}, \S+: has no libdmsflow_lce.so for {platform.machine()}; "
        r"run there: \S+ -m pip install 'dmsflow\[device\]'",
        said,
    )


def test_a_dmsflow_that_is_installed_there_lends_its_library(server, files, monkeypatch, tmp_path):
    """Its version is told, not that of what was sent."""
    installed = tmp_path / "site" / "dmsflow" / "native"
    program = bare_python(tmp_path / "site", "numpy", "ai_edge_litert")
    installed.mkdir(parents=True)
    shutil.copy(native.library(), installed)
    metadata = tmp_path / "site" / "dmsflow-9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dmsflow\nVersion: 9.9\n")
    server.program("python-installed", program)
    with devices.connect(server.address, Access(python="python-installed")) as measure:
        (seen,) = measure(job(files[1])).timings
    assert " + dmsflow 9.9 " in seen.runtime


def test_what_a_login_prints_does_no_harm(tmp_path, files, monkeypatch):
    shout = 'ForceCommand echo hello; echo hello >&2; eval "$SSH_ORIGINAL_COMMAND"; s=$?; echo bye; exit $s'
    with serving(tmp_path, shout) as server:
        monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(tmp_path / "client"))
        server.program("python3", bare_python(tmp_path / "site", "numpy", "onnxruntime"))
        with devices.connect(server.address) as measure:
            assert len(measure(job(files[0])).timings) == 1
        assert server.left() == []


def test_a_runner_of_the_users_own_goes_along(server, files, tmp_path):
    runner = tmp_path / "my runner.py"
    runner.write_text(
        "class Session:\n"
        "    input_shape = (1, 1, 1, 1)\n"
        "    def run(self, images): pass\n"
        "def open(path, threads): return Session()\n"
        "def version(): return 'mine'\n"
    )
    with devices.connect(server.address) as measure:
        seen = measure(job(File(path=files[0].path, runner=str(runner)), files[1]))
    assert [timing.runtime.split()[0] for timing in seen.timings] == ["mine", "LiteRT"]


def test_one_connection_serves_all_jobs(server, files):
    log = server.folder / "log"
    before = log.read_text().count("Accepted publickey")
    with devices.connect(server.address) as measure:
        measure(job(*files))
    assert log.read_text().count("Accepted publickey") == before + 1


BENCHMARK = """
echo "$@" >>{log}
echo "INFO: Initialized session in 1.5ms." >&2
echo "INFO: count=1 curr=900" >&2
echo "INFO: count=4 first=500 curr=400 min=300 max=500 avg=412.5 std=9" >&2
echo "INFO: Inference timings in us: Init: 1500, First inference: 900, Warmup (avg): 900, Inference (avg): 412.5" >&2
"""


def test_a_benchmark_program_needs_no_python(server, files, tmp_path):
    program = tmp_path / "bench'mark"
    program.write_text(f"#!/bin/sh{BENCHMARK.format(log=tmp_path / 'log')}")
    with devices.connect(server.address, Access(python="none", runner_file=str(program))) as measure:
        seen = measure(job(files[1], files[1], runs=3))
    assert [timing.runs_ms for timing in seen.timings] == [(0.4125,) * 3] * 2
    assert seen.timings[0].load_ms == 1.5 and seen.timings[0].runtime.startswith("bench'mark sha256:")
    assert seen.machine.processor and seen.machine.system.split()[0] == os.uname().sysname
    graphs = [line.split()[0].rpartition("/")[2] for line in (tmp_path / "log").read_text().splitlines()]
    assert graphs == ["0.tflite", "1.tflite"] * 3  # the files take turns


def test_a_program_for_another_machine_is_reported(server, files, tmp_path):
    program = tmp_path / "benchmark_model"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(200))
    said = refused(server, job(files[1]), Access(runner_file=str(program)))
    assert said.startswith(f"{server.where}cannot run the copied program")
    assert said.endswith("; name a Python of the device with --python, or a program built for it with --runner-file")


# --- what can go wrong --------------------------------------------------------------------------


def test_nobody_listens(server):
    address = f"ssh://127.0.0.1:{free_port()}"
    with pytest.raises(DmsflowError) as raised, devices.connect(address):
        pass
    port = address.rpartition(":")[2]
    assert str(raised.value) == (
        f"device {address}: cannot be reached (connect to host 127.0.0.1 port {port}: Connection refused); "
        f"check that it is on and connected, and that ssh -p {port} 127.0.0.1 works"
    )


def test_a_key_that_is_not_allowed(server, files, monkeypatch, tmp_path):
    key(tmp_path / "other")
    text = (server.folder / "client").read_text().replace(f"{server.folder}/key", f"{tmp_path}/other")
    (tmp_path / "client").write_text(text)
    monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(tmp_path / "client"))
    assert refused(server, job(*files)).startswith(f"{server.where}refuses your key; run ssh-copy-id -p {server.port} ")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ("", "has a host key that is not in known_hosts; "),
        ("other", "has another host key than the one in known_hosts; "),
    ],
)
def test_a_host_key_that_is_not_known(known, message, server, files, monkeypatch, tmp_path):
    written = f"[127.0.0.1]:{server.port} {key(tmp_path / 'other')}" if known else ""
    (tmp_path / "known").write_text(written)
    text = (server.folder / "client").read_text().replace(f"{server.folder}/known", f"{tmp_path}/known")
    (tmp_path / "client").write_text(text)
    monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(tmp_path / "client"))
    assert refused(server, job(*files)).startswith(f"{server.where}{message}")
    assert (tmp_path / "known").read_text() == written


@pytest.mark.parametrize("python", ["python9", "no such/python", "~/python"])
def test_no_such_python(python, server, files):
    said = refused(server, job(*files), Access(python=python))
    assert said.startswith(f"{server.where}cannot run {python.replace('~', '.')} ("), said
    assert said.endswith("; name a Python of the device with --python, or a program built for it with --runner-file")


def test_a_python_in_the_home_there(server, files):
    (server.folder / "python-home").symlink_to(server.programs / "python3")
    for python in ("~/python-home", "./python-home"):
        with devices.connect(server.address, Access(python=python)) as measure:
            assert measure(job(files[1])).timings


@pytest.mark.parametrize("python", ["", "-c", "a;b", "$(x)", "`x`", "it's", '"', "\\", "a\nb"])
def test_a_python_that_cannot_be_one(python, server, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    said = refused(server, None, Access(python=python))
    assert said.endswith("is not a valid command; give the name or the path of a Python on the device")


def test_a_python_without_numpy(server, files):
    said = refused(server, job(*files), Access(python="python-bare"))
    assert said.startswith(f"device {server.address}, ") and "has no NumPy; run there: " in said


@pytest.mark.parametrize(
    ("index", "runner", "right"),
    [
        (0, "onnxruntime", "onnxruntime: is not installed; pip install onnxruntime there"),
        (1, "lce", "larq-compute-engine: is not installed; pip install 'numpy<2' larq-compute-engine there, or leave"),
    ],
)
def test_a_python_without_the_runtime(index, runner, right, server, files):
    said = refused(server, job(File(path=files[index].path, runner=runner)), Access(python="python-numpy"))
    assert said.startswith(f"device {server.address}, {right}")


def of_32_bits(line: str) -> str:
    """A Python that `bare_python` made, which believes that its pointers have 4 bytes."""
    start = "import runpy, sys; sys.maxsize = 2**31 - 1; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return line.replace('-S "$@"', f'-S -P -c "{start}" "$@"')


@pytest.mark.parametrize(("index", "runtime"), [(0, "onnxruntime"), (1, "ai-edge-litert")])
def test_a_32_bit_system_is_told_that_it_is_one(index, runtime, server, files, tmp_path):
    """Whatever uname says: its kernel may be of 64 bits."""
    server.program("python-32", of_32_bits(bare_python(tmp_path / "numpy", "numpy")))
    given = files[index]
    said = refused(server, job(given), Access(python="python-32"))
    what = f"is not installed, and has no wheel for a 32-bit system (32-bit Python on {platform.machine()})"
    assert said.startswith(f"{server.where[:-2]}, {runtime}: {what}; a 64-bit system is needed")
    assert "pip install" not in said and "--target" not in said
    server.program("python-32-bare", of_32_bits(bare_python(tmp_path / "nothing")))
    said = refused(server, job(given), Access(python="python-32-bare"))
    assert "has no NumPy, and is of a 32-bit system; a 64-bit system is needed" in said and "pip" not in said


def test_a_damaged_file_is_called_as_it_is_here(server, tmp_path):
    path = tmp_path / 'a "quoted".onnx'
    path.write_bytes(b"no model")
    said = refused(server, job(File(path=str(path), runner="onnxruntime")))
    assert said.startswith(f"{path}: onnxruntime cannot load it")
    absent = tmp_path / "none.tflite"
    assert refused(server, job(File(path=str(absent), runner="lce"))).startswith(f"{absent}: no such file; ")


def test_a_program_that_is_killed_midway(server, files):
    server.program("python-killed", "kill -9 $$")
    said = refused(server, job(*files), Access(python="python-killed"))
    assert said == (
        f"{server.where}the program that runs a b.onnx, model.tflite was killed there (signal 9); "
        "check whether the device ran out of memory"
    )


def test_a_program_that_fails_says_why(server, files):
    server.program("python-fails", "echo one >&2; echo RuntimeError: two >&2; exit 1")
    said = refused(server, job(files[1]), Access(python="python-fails"))
    assert said.startswith(f"{server.where}the program that runs model.tflite failed there (RuntimeError: two); ")


def test_a_program_that_prints_garbage(server, files):
    server.program("python-garbage", "echo '4 8 15'")
    said = refused(server, job(files[1]), Access(python="python-garbage"))
    assert said == f"{files[1].path}: the process that measures it wrote no timings, but '4 8 15'; try again"


def test_a_full_disk_when_files_are_copied(tmp_path, files, monkeypatch):
    """/dev/full is always full: what `cat` cannot write there is lost as on any full disk."""
    with serving(tmp_path) as server:
        monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(tmp_path / "client"))
        real = shutil.which("cat")
        server.program(
            "cat", f'case $(readlink /proc/$$/fd/1) in */dmsflow.*) exec {real} >/dev/full;; esac; exec {real} "$@"'
        )
        said = refused(server, job(*files))
        assert said == f"{server.where}is full (No space left on device); free some space there"
        assert server.left() == []


def test_a_full_disk_while_it_measures(server, files):
    server.program("python-full", "echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    said = refused(server, job(*files), Access(python="python-full"))
    assert said == f"{server.where}is full (No space left on device); free some space there"


def test_no_room_for_a_folder(tmp_path, files, monkeypatch):
    with serving(tmp_path) as server:
        monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(tmp_path / "client"))
        server.temporary.rmdir()
        said = refused(server, job(*files))
        assert said.startswith(f"{server.where}cannot be reached (mktemp: failed to create directory")


def slow_python(server, tmp_path):
    """A Python that says which process it is, and runs for a minute."""
    return server.program(
        "python-slow", f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 60"
    )


def test_a_device_that_is_too_slow(server, files, tmp_path, monkeypatch):
    monkeypatch.setattr(_python, "limit_s", lambda job: 0.5)
    with devices.connect(server.address, Access(python=slow_python(server, tmp_path))) as measure:
        with pytest.raises(DmsflowError) as raised:
            measure(job(files[1]))
        process = int((tmp_path / "pid").read_text())
        wait_for(lambda: not runs(process))  # stopped at once: the next job would wait for it
    assert str(raised.value) == f"{server.where}is too slow: model.tflite took more than 0 s; use fewer --runs"


@contextlib.contextmanager
def in_the_background(server, files, python, tmp_path):
    """A process that measures, and the one that it runs there; its own temporary files go where they are removed."""
    asked = f"devices.Job(files=(devices.File(path={files[1].path!r}, runner='litert'),), threads=1, warm_up=0, runs=1)"
    script = (
        "from dmsflow.measuring import devices\n"
        f"with devices.connect({server.address!r}, devices.Access(python={python!r})) as measure: measure({asked})"
    )
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as own,
        subprocess.Popen(
            [sys.executable, "-c", script],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": own},
        ) as here,
    ):
        wait_for(lambda: (tmp_path / "pid").exists())
        yield here, int((tmp_path / "pid").read_text())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_this_side_is_ended(sent, server, files, tmp_path):
    """Even where it can do nothing itself any more: the folder goes with the connection."""
    with in_the_background(server, files, slow_python(server, tmp_path), tmp_path) as (here, there):
        here.send_signal(sent)
        error = here.communicate(timeout=FLAKY_S)[1]
    assert server.left() == []
    wait_for(lambda: not runs(there))
    assert ("KeyboardInterrupt" in error) == (sent == signal.SIGINT)


def sessions(process: int) -> list[int]:
    """The server's own processes under one, which hold the connections; others may end meanwhile."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if Path(f"/proc/{process}/comm").read_text().startswith("sshd"):
            for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
                found += [int(child), *sessions(int(child))]
    return [one for one in found if Path(f"/proc/{one}/comm").read_text().startswith("sshd")]


def test_the_connection_breaks_midway(server, files, tmp_path):
    with in_the_background(server, files, slow_python(server, tmp_path), tmp_path) as (here, there):
        for session in sessions(server.process.pid):
            os.kill(session, signal.SIGKILL)
        error = here.communicate(timeout=FLAKY_S)[1].strip().splitlines()[-1]
    assert server.left() == []
    wait_for(lambda: not runs(there))
    assert f"{server.where}went away (" in error and "check that it is on and connected" in error


def test_the_machine_is_gone_midway(tmp_path, files, monkeypatch):
    """Nobody can say then what is left, so the error names it."""
    with serving(tmp_path) as server:
        monkeypatch.setenv("DMSFLOW_SSH_CONFIG", str(tmp_path / "client"))
        with in_the_background(server, files, slow_python(server, tmp_path), tmp_path) as (here, _):
            folder = server.temporary / os.listdir(server.temporary)[0]
            held = sessions(server.process.pid)
            server.process.kill()
            server.process.wait()
            for session in held:
                os.kill(session, signal.SIGKILL)
            error = here.communicate(timeout=FLAKY_S)[1].strip().splitlines()[-1]
        assert f"and its folder {folder} may still be there; remove it there" in error
        assert server.left() == []


def test_an_error_of_whoever_measures_is_his_own(server):
    with pytest.raises(FileNotFoundError, match="his"), devices.connect(server.address):
        raise FileNotFoundError("his")


def test_no_ssh_on_this_machine(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(DmsflowError, match="ssh: is not installed; Debian: apt install openssh-client"),
        devices.connect(server.address),
    ):
        pass


# --- what the device's shell is told ------------------------------------------------------------


def test_arguments_reach_a_shell_quoted():
    odd = ["", "a b", "it's", '"', "$(id)", "`id`", "*", "\n", "\\", "!", "-n", "ä"]
    done = subprocess.run(
        _shell.quote_script('for one in "$@"; do printf "<%s>" "$one"; done', *odd),
        shell=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == "".join(f"<{one}>" for one in odd)


@pytest.mark.parametrize(
    "name", [name for name in vars(_shell) if name.isupper() and isinstance(vars(_shell)[name], str)]
)
def test_scripts_are_words_that_every_shell_reads_alike(name):
    assert not set(vars(_shell)[name]) & set("\\'!\n")

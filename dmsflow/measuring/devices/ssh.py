"""A machine reached by OpenSSH: ssh://[user@]host[:port], with your keys and known_hosts.

It needs Python, NumPy and the runtime, and no dmsflow unless its processor is of another kind than this
one's (runners/litert.py); or, with a benchmark program of its own, not even Python. One connection serves
all jobs. Nothing is ever asked for: what ssh would ask is an error.

DMSFLOW_SSH_CONFIG names a file to use instead of ~/.ssh/config.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from dmsflow import native
from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Access, File, Job, Measure, Measurement, _python, _shell
from dmsflow.measuring.devices._shell import Folder, Shell, call_script
from dmsflow.measuring.devices.phone import benchmark_program

ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
PYTHON = re.compile(r"[\w./~+@][\w./~+@ -]*")  # what every login shell takes as it is, once quoted
OPTIONS = (
    "BatchMode=yes ConnectTimeout=10 ServerAliveInterval=5 ServerAliveCountMax=3 LogLevel=ERROR RequestTTY=no "
    "RemoteCommand=none ClearAllForwardings=yes ControlMaster=no ControlPersist=no"
)
ERRORS = {
    "IDENTIFICATION HAS CHANGED": (
        "has another host key than the one in known_hosts",
        "make sure that it is the same machine, then follow the advice of ssh {host}",
    ),
    "Host key verification failed": (
        "has a host key that is not in known_hosts",
        "run ssh {host} once, and compare the key",
    ),
    "Permission denied (": ("refuses your key", "run ssh-copy-id {host}, so that ssh {host} asks for nothing"),
    "Too many authentication failures": ("refuses your keys", "name the right one in ~/.ssh/config"),
}
UPLOAD_BYTES_S = 20_000


@contextlib.contextmanager
def connect(address: str, access: Access) -> Iterator[Measure]:
    """A connection, and a folder on the machine that goes with it.

    Raises:
        DmsflowError: the address cannot be one, or the machine cannot be reached; and from `measure`,
            whatever stands in the way of measuring there.
    """
    match = ADDRESS.fullmatch(address)
    if not match or not 0 < int(match["port"] or 22) < 2**16:
        raise DmsflowError(
            f"device {address}", "is not a valid address", "write ssh://user@host, or ssh://user@host:port"
        )
    if not PYTHON.fullmatch(access.python):
        raise DmsflowError(
            f"--python {access.python}", "is not a valid command", "give the name or the path of a Python on the device"
        )
    program = benchmark_program.find_program(access) if access.runner_file else None
    port = ("-p", match["port"]) if match["port"] else ()
    host = (f"{match['user']}@" if match["user"] else "") + match["host"].strip("[]")
    called = " ".join((*port, host))
    config = os.environ.get("DMSFLOW_SSH_CONFIG")
    options = [*(("-F", config) if config else ()), *(part for option in OPTIONS.split() for part in ("-o", option))]
    # A socket's whole path may have 104 bytes, of which ssh needs 17.
    short = None if len(tempfile.gettempdir()) < 50 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="dmsflow", dir=short) as private:
        command = (*options, "-S", f"{private}/s", *port, "--", host)
        errors = {sign: (what, right.format(host=called)) for sign, (what, right) in ERRORS.items()}
        right = f"check that it is on and connected, and that ssh {called} works"
        shell = Shell(f"device {address}", ("ssh", *command), errors, right)
        # The one that makes the folder opens the connection; the others go through it.
        first = Shell(shell.device, ("ssh", "-M", *command), errors, right, "cannot be reached")
        with _shell.make_folder(shell, first, partial(_put, shell)) as folder:
            if program:
                yield benchmark_program.install(folder, program, address)
                return
            packed = Path(private, "program.zip")
            packed.write_bytes(_python.pack_program())
            folder.put(str(packed), f"{folder.path}/program.zip")
            _bring_library(folder)
            yield partial(_measure_python, folder, access.python)


def _put(shell: Shell, here: str, there: str) -> None:
    """Copy a file without scp or sftp: a small device may have neither."""
    content = Path(here).read_bytes()
    limit_s = _shell.ANSWER_S + len(content) / UPLOAD_BYTES_S
    output = call_script(shell, _shell.WRITE, there, stdin=content, limit_s=limit_s)
    if output.status:
        what = f"cannot be written to ({output.reason})"
        raise DmsflowError(shell.device, what, "check that its folder still exists")


def _bring_library(folder: Folder) -> None:
    """dmsflow's kernels, where they are built and the machine is of this one's kind; others have their own."""
    try:
        library = native.library()
    except DmsflowError:
        return
    kind = [platform.system().encode(), platform.machine().encode()]
    if call_script(folder.shell, "uname -sm").out.split() == kind:
        folder.put(str(library), f"{folder.path}/{library.name}")


def _measure_python(folder: Folder, python: str, job: Job) -> Measurement:
    with _shell.bring_files(folder, job) as paths:
        there = dict(zip((file.path for file in job.files), paths, strict=True))
        own = sorted({file.runner for file in job.files if file.runner.endswith(".py")})
        runners = {runner: f"{folder.path}/runner{index}.py" for index, runner in enumerate(own)}

        def run(part: Job) -> bytes:
            for runner in {file.runner for file in part.files} & runners.keys():
                folder.put(runner, runners[runner])
            files = tuple(
                File(path=there[file.path], runner=runners.get(file.runner, file.runner)) for file in part.files
            )
            asked = msgspec.json.encode(msgspec.structs.replace(part, files=files))
            command = (re.sub("^~/", "./", python), f"{folder.path}/program.zip")
            names = ", ".join(Path(file.path).name for file in part.files)
            out = _shell.run_program(folder, command, names, _python.limit_s(part), asked).out
            for here, path in there.items():
                out = out.replace(path.encode(), msgspec.json.encode(here)[1:-1])
            return out

        return _python.measure(job, run, folder.shell.device)

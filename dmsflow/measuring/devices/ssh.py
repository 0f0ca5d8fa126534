"""A machine reached by OpenSSH: ssh://[user@]host[:port], with the keys and known_hosts you have.

It needs Python, NumPy and the runtime, and no dmsflow unless its processor is of another kind than this
one's (runners/litert.py); or, with a benchmark program of its own, not even Python. One connection serves all jobs. Nothing is ever asked for: what ssh would ask is an error.

DMSFLOW_SSH_CONFIG names a file to use instead of ~/.ssh/config.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from dmsflow import native
from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Access, File, Job, Measure, Measurement, _benchmark, _python, _shell
from dmsflow.measuring.devices._shell import Shell, call

ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?"
    r"(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
PYTHON = re.compile(r"[\w./~+@][\w./~+@ -]*")  # what every login shell takes as it is, once quoted
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",
    "ControlPersist": "no",
}
KNOWN = (
    (
        "IDENTIFICATION HAS CHANGED",
        "has another host key than known_hosts has",
        "make sure that it is the same machine, and see ssh {host}",
    ),
    ("Host key verification failed", "has a host key that known_hosts lacks", "ssh {host} once, and compare the key"),
    ("Permission denied (", "refuses your key", "ssh-copy-id {host}, so that ssh {host} asks for nothing"),
    ("Too many authentication failures", "refuses your keys", "name the right one in ~/.ssh/config"),
)
UPLOAD_BYTES_S = 20_000


@contextlib.contextmanager
def connect(address: str, access: Access) -> Iterator[Measure]:
    """A connection, and a folder on the machine that goes with it.

    Raises:
        DmsflowError: the address cannot be one, or the machine cannot be reached; and from `measure`,
            whatever stands in the way of measuring there.
    """
    destination = _destination(address)
    if not PYTHON.fullmatch(access.python):
        raise DmsflowError(f"--python {access.python}", "is unusable", "give the name or the path of one there")
    program = _benchmark.check(address, access) if access.runner_file else None
    with tempfile.TemporaryDirectory(prefix="dmsflow", dir=_short()) as private:
        shell = _shell_of(address, destination, Path(private, "s"))
        # The one that makes the folder opens the connection; the others go through it.
        reach = partial(_explain, destination, "cannot be reached")
        first = replace(shell, start=("ssh", "-M", *shell.start[1:]), explain=reach)
        with _shell.folder(shell, first) as folder:

            def put(here: str, there: str) -> None:
                _write(shell, Path(here).read_bytes(), there)

            if program:
                put(str(program), f"{folder}/benchmark")
                call(shell, _shell.ALLOW, f"{folder}/benchmark")
                yield partial(_benchmark.measure_there, shell, folder, put, address, access)
            else:
                _write(shell, _python.program(), f"{folder}/program.zip")
                _write_library(shell, folder)
                yield partial(_measure_python, shell, folder, put, access.python)


def _destination(address: str) -> tuple[str, ...]:
    found = ADDRESS.fullmatch(address)
    if not found or not 0 < int(found["port"] or 22) < 2**16:
        raise DmsflowError(f"device {address}", "is unusable", "write ssh://user@host, or ssh://user@host:port")
    port = ("-p", found["port"]) if found["port"] else ()
    user = f"{found['user']}@" if found["user"] else ""
    return (*port, "--", f"{user}{found['host'].strip('[]')}")


def _shell_of(address: str, destination: tuple[str, ...], socket: Path) -> Shell:
    config = os.environ.get("DMSFLOW_SSH_CONFIG")
    options = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
    own = ("-F", config) if config else ()
    command = ("ssh", *own, *options, "-S", str(socket), *destination)
    return Shell(f"device {address}", command, partial(_explain, destination, "went away"))


def _explain(destination: tuple[str, ...], otherwise: str, text: str) -> tuple[str, str]:
    """What is wrong and what would be right, from what ssh wrote."""
    host = " ".join(part for part in destination if part != "--")
    for sign, what, right in KNOWN:
        if sign in text:
            return what, right.format(host=host)
    reason = _shell.last_line(text).removeprefix("ssh: ")
    return f"{otherwise} ({reason or 'the connection ended'})", f"see that it is on, and that ssh {host} works"


def _short() -> str | None:
    """Where a socket's whole path stays short enough: 104 bytes, of which ssh wants 17."""
    return None if len(tempfile.gettempdir()) < 50 else "/tmp"


def _write(shell: Shell, content: bytes, path: str) -> None:
    """No scp or sftp: a small device may have neither.

    Raises:
        DmsflowError: the device is full, or goes away.
    """
    limit_s = _shell.ANSWER_S + len(content) / UPLOAD_BYTES_S
    said = call(shell, _shell.WRITE, path, given=content, limit_s=limit_s)
    if said.status:
        raise DmsflowError(shell.device, f"cannot be written to ({said.reason})", "see that its folder is still there")


def _write_library(shell: Shell, folder: str) -> None:
    """dmsflow's kernels, where they are built and the machine is of this one's kind; others bring their own."""
    kind = [platform.system().encode(), platform.machine().encode()]
    try:
        library = native.library()
    except DmsflowError:
        return
    if call(shell, "uname -sm").out.split() == kind:
        _write(shell, library.read_bytes(), f"{folder}/{library.name}")


def _measure_python(shell: Shell, folder: str, put: Callable[[str, str], None], python: str, job: Job) -> Measurement:
    with _shell.brought(shell, folder, job, put) as paths:
        there = dict(zip((file.path for file in job.files), paths, strict=True))
        own = sorted({file.runner for file in job.files if file.runner.endswith(".py")})
        runners = {runner: f"{folder}/runner{index}.py" for index, runner in enumerate(own)}

        def run(part: Job) -> bytes:
            for runner in {file.runner for file in part.files} & runners.keys():
                put(runner, runners[runner])
            files = tuple(
                File(path=there[file.path], runner=runners.get(file.runner, file.runner)) for file in part.files
            )
            asked = msgspec.json.encode(msgspec.structs.replace(part, files=files))
            command = (re.sub("^~/", "./", python), f"{folder}/program.zip")
            names = ", ".join(Path(file.path).name for file in part.files)
            out = _shell.run(shell, folder, command, asked, _python.limit_s(part), names).out
            for here, path in there.items():
                out = out.replace(path.encode(), msgspec.json.encode(here)[1:-1])
            return out

        return _python.measure(job, run, shell.device)

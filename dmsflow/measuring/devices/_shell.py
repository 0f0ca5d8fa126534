"""A shell on another machine: ssh and adb say the same words to it.

What it is told is the fixed text below; whatever varies is an argument, quoted. All that is brought
there lies in one folder, and that folder lives as long as one connection: the shell that made it waits
for the end of its input, and then removes it. So nothing is left behind when this side ends in any way.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Job, Machine
from dmsflow.measuring.devices._program import hottest_c

FOLDER, STATUS = b"dmsflow-folder ", b"dmsflow-status "  # what a login prints by itself may stand before them
ANSWER_S = 40.0  # for what takes a device no time
LEAVE_S = 15.0

# No word here has a backslash, a single quote or an exclamation mark: sh, csh and fish all read it alike.
CLEAR = '[ -s "$d/pid" ] && kill -9 "$(cat "$d/pid")" 2>/dev/null; rm -rf "$d" 2>/dev/null || { sleep 1; rm -rf "$d"; }'
KEEP = (
    'trap "" HUP; umask 077; d=$(LC_ALL=C mktemp -d "${1:-${TMPDIR:-/tmp}}/dmsflow.XXXXXX") || exit 1; '
    f'echo "dmsflow-folder $d"; cat >/dev/null; {CLEAR}'
)
REMOVE = f"d=$1; {CLEAR}"
WRITE = 'LC_ALL=C cat >"$1"'
ALLOW = 'chmod 700 "$1"'
FORGET = 'rm -f "$@"'
STOP = '[ -s "$1/pid" ] && kill -9 "$(cat "$1/pid")"'
# The program takes the place of a shell that has gone home and written down which process it is.
RUN = 'd=$1; shift; TMPDIR=$d; export TMPDIR; sh -c "$@"; s=$?; rm -f "$d/pid"; exit $s'
PROGRAM = 'cd "${HOME:-/}"; echo $$ >"$0/pid"; exec "$@"'
FACTS = (
    'echo "system=$(uname -sm)"; echo "cores=$(grep -c ^processor /proc/cpuinfo)"; '
    'echo "phone=$(getprop ro.product.manufacturer) $(getprop ro.product.model)"; '
    'echo "chip=$(getprop ro.soc.manufacturer) $(getprop ro.soc.model)"; '
    'grep -E "^(model name|Model)" /proc/cpuinfo; echo "board=$(cat /proc/device-tree/model)"; '
    'echo "governor=$(cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor)"; '
    'for zone in /sys/class/thermal/*/temp; do echo "temperature=$(cat "$zone")"; done'
)


@dataclass(frozen=True)
class Shell:
    """How to have a device's shell run something.

    Attributes:
        device: as errors call it.
        start: the command that takes a line for that shell as its last argument.
        explain: what is wrong and what would be right, from what the command itself wrote to stderr.
    """

    device: str
    start: tuple[str, ...]
    explain: Callable[[str], tuple[str, str]]


def line(script: str, *arguments: str) -> str:
    """One of the scripts above, with its arguments, for any shell to read."""
    return f"sh -c {shlex.quote(script)} dmsflow {shlex.join(arguments)}".rstrip()


@dataclass(frozen=True)
class Said:
    """What a script wrote, and its exit status."""

    out: bytes
    error: str
    status: int

    @property
    def reason(self) -> str:
        """The line that says why: the first that calls itself an error, else the last."""
        lines = (self.error or self.out.decode(errors="replace")).splitlines()
        return next((row for row in lines if row.startswith("ERROR:")), last_line("\n".join(lines))) or (
            f"exit status {self.status}"
        )


class TooSlow(DmsflowError):
    """A device took longer than it may."""


def call(shell: Shell, script: str, *arguments: str, given: bytes = b"", limit_s: float = ANSWER_S) -> Said:
    """Have a script run there, to its end.

    Raises:
        DmsflowError: the device cannot be reached or goes away, is full, or takes too long (TooSlow).
    """
    last = line(f"({script}); echo {STATUS.decode()}$?", *arguments)
    try:
        with told_if_missing(shell.start[0]):
            done = subprocess.run(
                [*shell.start, last],
                input=given,
                capture_output=True,
                check=False,
                timeout=limit_s,
                start_new_session=True,  # so that Ctrl-C reaches only who is to clean up
            )
    except subprocess.TimeoutExpired as late:
        what = f"did not answer within {limit_s:.0f} s"
        raise TooSlow(shell.device, what, "see that it is on and reachable") from late
    error = done.stderr.decode(errors="replace")
    *_, ended = [None, *re.finditer(STATUS + rb"(\d+)", done.stdout)]
    if not ended:
        raise DmsflowError(shell.device, *shell.explain(error))
    if "No space left on device" in error:
        raise full(shell)
    return Said(done.stdout[: ended.start()], error, int(ended[1]))


@contextlib.contextmanager
def told_if_missing(program: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        packages = {"ssh": "openssh-client", "adb": "adb"}
        raise DmsflowError(program, "is not installed", f"Debian: apt install {packages[program]}") from error


def full(shell: Shell) -> DmsflowError:
    return DmsflowError(shell.device, "is full (No space left on device)", "free some space there")


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()


# --- the folder ---------------------------------------------------------------------------------


@contextlib.contextmanager
def folder(shell: Shell, first: Shell, parent: str = "") -> Iterator[str]:
    """A private folder on the device, for as long as the block lasts.

    Args:
        shell: for what is said meanwhile.
        first: makes the connection that the folder lives with.
        parent: where to make it; by default where the device has its temporary files.

    Raises:
        DmsflowError: the device cannot be reached, or has no room; or it went away, and the folder
            is still there.
    """
    path = ""
    with tempfile.TemporaryFile() as errors:
        with told_if_missing(first.start[0]):
            keeper = subprocess.Popen(
                [*first.start, line(KEEP, parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        try:
            path = _made(first, keeper, errors)
            yield path
        finally:
            left = _leave(shell, keeper, path)
            if left:
                known = sys.exc_info()[1]
                story = str(known).removeprefix(f"{shell.device}: ") if isinstance(known, DmsflowError) else "went away"
                raise DmsflowError(
                    shell.device, f"{story}; and its folder {left} may still be there", "remove it there"
                )


def _made(shell: Shell, keeper: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """The folder's path, from the shell that keeps it."""
    assert keeper.stdout
    written, deadline = b"", time.monotonic() + ANSWER_S
    while not (found := re.search(rb"(?:^|\n)" + FOLDER + rb"([^\r\n]+)\r?\n", written)):
        ready, _, _ = select.select([keeper.stdout], [], [], max(0, deadline - time.monotonic()))
        chunk = os.read(keeper.stdout.fileno(), 4096) if ready else b""
        if not chunk:
            if not ready:
                raise DmsflowError(shell.device, f"did not answer within {ANSWER_S:.0f} s", "see that it is on")
            keeper.wait(LEAVE_S)
            errors.seek(0)
            error = errors.read().decode(errors="replace")
            raise full(shell) if "No space left" in error else DmsflowError(shell.device, *shell.explain(error))
        written += chunk
    path = found[1].decode(errors="replace")
    if not re.fullmatch(r"/[\w./+-]+/dmsflow\.\w+", path, re.ASCII):
        raise DmsflowError(shell.device, f"keeps temporary files in {path!r}", "set a TMPDIR of plain letters there")
    return path


def _leave(shell: Shell, keeper: subprocess.Popen[bytes], path: str) -> str:
    """End the connection, and with it the folder; the path that is still there, if any."""
    assert keeper.stdin and keeper.stdout
    with contextlib.suppress(BrokenPipeError):
        keeper.stdin.close()
    try:
        status = keeper.wait(LEAVE_S if path else 1.0)
    except subprocess.TimeoutExpired:
        status = -1
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()
    if not path or status == 0:
        return ""
    try:
        return path if call(shell, REMOVE, path).status else ""
    except DmsflowError:
        return path


# --- files and programs -------------------------------------------------------------------------


@contextlib.contextmanager
def brought(shell: Shell, folder: str, job: Job, put: Callable[[str, str], None]) -> Iterator[tuple[str, ...]]:
    """Paths on the device of a job's files, for as long as the block lasts; names of our own, not the user's."""
    paths = tuple(f"{folder}/{index}{suffix(file.path)}" for index, file in enumerate(job.files))
    try:
        for file, path in zip(job.files, paths, strict=True):
            if not Path(file.path).is_file():
                raise DmsflowError(file.path, "no such file", "give the path of an existing file")
            put(file.path, path)
        yield paths
    finally:
        with contextlib.suppress(DmsflowError):  # the folder takes them with it
            call(shell, FORGET, *paths)


def suffix(path: str) -> str:
    """Of a file's name, where it is a plain one."""
    found = Path(path).suffix
    return found if re.fullmatch(r"\.[a-z0-9]+", found) else ""


def run(shell: Shell, folder: str, command: tuple[str, ...], given: bytes, limit_s: float, files: str) -> Said:
    """Run a program there, to a good end.

    Args:
        shell: of the device.
        folder: for its temporary files.
        command: the program and its arguments.
        given: its input.
        limit_s: seconds that it may take.
        files: what it runs, for errors.

    Raises:
        DmsflowError: it is not there, does not end in time, or ends badly.
    """
    try:
        said = call(shell, RUN, folder, PROGRAM, folder, *command, given=given, limit_s=limit_s)
    except TooSlow as error:
        with contextlib.suppress(DmsflowError):
            call(shell, STOP, folder)
        what = f"is too slow: {files} took more than {limit_s:.0f} s"
        raise DmsflowError(shell.device, what, "ask for fewer runs") from error
    if said.status in (126, 127):
        what = f"cannot run {command[0].replace(folder, 'the program sent')} ({said.reason})"
        raise DmsflowError(
            shell.device, what, "name one that it has with --python, or one that is built for it with --runner-file"
        )
    if said.status > 128:
        what = f"the program that runs {files} was killed there (signal {said.status - 128})"
        raise DmsflowError(shell.device, what, "see whether it ran out of memory")
    if said.status:
        raise DmsflowError(
            shell.device, f"the program that runs {files} failed there ({said.reason})", "see what it needs"
        )
    return said


# --- the machine --------------------------------------------------------------------------------


def machine(shell: Shell) -> Machine:
    """What the device's system tells of itself."""
    seen: dict[str, list[str]] = {}
    for row in call(shell, FACTS).out.decode(errors="replace").splitlines():
        key, _, text = (part.strip("\0\r\t ") for part in re.match(r"([^=:]*)([=:]?)(.*)", row).groups())  # type: ignore[union-attr]
        if text:
            seen.setdefault(key, []).append(text)
    names = [seen[key][0] for key in ("phone", "chip", "model name", "Model", "board") if key in seen]
    phone = "phone" in seen or "chip" in seen
    cores = seen.get("cores", [""])[0]
    return Machine(
        processor=", ".join(names[:2] if phone else names[:1]) or "unknown",
        system=seen.get("system", ["unknown"])[0],
        cores=int(cores) if cores.isdigit() and int(cores) else None,
        governor=seen.get("governor", [None])[0],
        temperature_c=hottest_c(seen.get("temperature", ())),
    )

"""A shell on another machine: ssh and adb give it the same scripts.

A script is the fixed text below; whatever varies is an argument, quoted. All that is brought there lies
in one folder, and that folder exists as long as one connection: the shell that made it waits for the end
of its input, and then removes it. So nothing is left behind, however this side ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen
from typing import IO

from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Job, Machine
from dmsflow.measuring.devices._program import find_hottest_c

FOLDER, STATUS = b"dmsflow-folder ", b"dmsflow-status "  # what a login prints by itself may stand before them
FULL = "No space left on device"  # as every system's tools write it
PACKAGES = {"ssh": "openssh-client", "adb": "adb"}
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
    """How to run something in a device's shell.

    Attributes:
        device: as errors call it.
        start: the command that takes a line for that shell as its last argument.
        errors: what is wrong and what would be right, by what the command writes then.
        right, wrong: the same where it writes anything else.
    """

    device: str
    start: tuple[str, ...]
    errors: Mapping[str, tuple[str, str]]
    right: str
    wrong: str = "went away"

    def error(self, written: bytes) -> DmsflowError:
        """What went wrong, from what the command itself wrote."""
        text = written.decode(errors="replace")
        for sign, explained in {FULL: (f"is full ({FULL})", "free some space there"), **self.errors}.items():
            if sign in text:
                return DmsflowError(self.device, *explained)
        reason = re.sub("^(ssh: |adb: )?(error: )?", "", (text.strip().splitlines() or [""])[-1].strip())
        return DmsflowError(self.device, f"{self.wrong} ({reason or 'the connection ended'})", self.right)


def quote_script(script: str, *arguments: str) -> str:
    """One of the scripts above, with its arguments, for any shell to read."""
    return f"sh -c {shlex.quote(script)} dmsflow {shlex.join(arguments)}".rstrip()


@dataclass(frozen=True)
class Output:
    """What a script wrote, and its exit status."""

    out: bytes
    error: str
    status: int

    @property
    def reason(self) -> str:
        """The line with the reason: the first that begins with ERROR:, else the last."""
        text = (self.error or self.out.decode(errors="replace")).strip()
        lines = text.splitlines() or [f"exit status {self.status}"]
        return next((line for line in lines if line.startswith("ERROR:")), lines[-1].strip())


class TooSlow(DmsflowError):
    """A device took longer than it may."""

    def __init__(self, shell: Shell, limit_s: float) -> None:
        super().__init__(shell.device, f"did not answer within {limit_s:.0f} s", "check that it is on and connected")


def call_script(shell: Shell, script: str, *arguments: str, stdin: bytes = b"", limit_s: float = ANSWER_S) -> Output:
    """Run a script there, to its end.

    Raises:
        DmsflowError: the device cannot be reached or goes away, is full, or takes too long (TooSlow).
    """
    line = quote_script(f"({script}); echo {STATUS.decode()}$?", *arguments)
    done = run_client(shell, (*shell.start, line), stdin, limit_s)
    *_, ended = [None, *re.finditer(STATUS + rb"(\d+)", done.stdout)]
    if not ended or FULL.encode() in done.stderr:
        raise shell.error(done.stderr)
    return Output(done.stdout[: ended.start()], done.stderr.decode(errors="replace"), int(ended[1]))


def run_client(shell: Shell, command: Sequence[str], stdin: bytes, limit_s: float) -> CompletedProcess[bytes]:
    """Run ssh or adb on this machine; raises TooSlow if the device takes too long."""
    try:  # in a session of its own, so that Ctrl-C reaches only this process, which cleans up
        return subprocess.run(
            command, input=stdin, capture_output=True, check=False, timeout=limit_s, start_new_session=True
        )
    except subprocess.TimeoutExpired as late:
        raise TooSlow(shell, limit_s) from late


# --- the folder ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """A private folder on a device; `put` copies a file of this machine (its path) to a path there."""

    shell: Shell
    path: str
    put: Callable[[str, str], None]


@contextlib.contextmanager
def make_folder(shell: Shell, first: Shell, put: Callable[[str, str], None], parent: str = "") -> Iterator[Folder]:
    """A private folder on the device, for as long as the block lasts.

    Args:
        shell: for what is run meanwhile.
        first: makes the connection that the folder exists with.
        put: as in `Folder`.
        parent: where to make it; by default where the device has its temporary files.

    Raises:
        DmsflowError: the device cannot be reached, or has no room; or it went away, and the folder
            is still there.
    """
    if not shutil.which(program := first.start[0]):
        right = f"Debian: apt install {PACKAGES[program]}"
        raise DmsflowError(program, "is not installed", right)
    path = ""
    with tempfile.TemporaryFile() as errors:
        command = [*first.start, quote_script(KEEP, parent)]
        keeper = Popen(command, stdin=PIPE, stdout=PIPE, stderr=errors, start_new_session=True)
        try:
            path = _read_path(first, keeper, errors)
            yield Folder(shell, path, put)
        finally:
            if _is_left(shell, keeper, path):
                known = sys.exc_info()[1]
                story = str(known).removeprefix(f"{shell.device}: ") if isinstance(known, DmsflowError) else "went away"
                what = f"{story}, and its folder {path} may still be there"
                raise DmsflowError(shell.device, what, "remove it there")


def _read_path(shell: Shell, keeper: Popen[bytes], errors: IO[bytes]) -> str:
    """The folder's path, from the shell that keeps it."""
    assert keeper.stdout
    written, deadline = b"", time.monotonic() + ANSWER_S
    while not (match := re.search(rb"(?:^|\n)" + FOLDER + rb"([^\r\n]+)\r?\n", written)):
        ready, _, _ = select.select([keeper.stdout], [], [], max(0, deadline - time.monotonic()))
        chunk = os.read(keeper.stdout.fileno(), 4096) if ready else b""
        if not chunk:
            if not ready:
                raise TooSlow(shell, ANSWER_S)
            keeper.wait(LEAVE_S)
            errors.seek(0)
            raise shell.error(errors.read())
        written += chunk
    path = match[1].decode(errors="replace")
    if not re.fullmatch(r"/[\w./+-]+/dmsflow\.\w+", path, re.ASCII):
        raise DmsflowError(
            shell.device, f"keeps temporary files in {path!r}", "set TMPDIR there to a path without special characters"
        )
    return path


def _is_left(shell: Shell, keeper: Popen[bytes], path: str) -> bool:
    """End the connection, and with it the folder; whether it may still be there."""
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
        return False
    try:
        return call_script(shell, REMOVE, path).status != 0
    except DmsflowError:
        return True


# --- files and programs -------------------------------------------------------------------------


@contextlib.contextmanager
def bring_files(folder: Folder, job: Job) -> Iterator[tuple[str, ...]]:
    """The paths of a job's files on the device, inside the block; the names are ours, not the user's."""
    suffixes = [Path(file.path).suffix for file in job.files]
    plain = [suffix if re.fullmatch(r"\.[a-z0-9]+", suffix) else "" for suffix in suffixes]
    paths = tuple(f"{folder.path}/{index}{suffix}" for index, suffix in enumerate(plain))
    try:
        for file, path in zip(job.files, paths, strict=True):
            if not Path(file.path).is_file():
                raise DmsflowError(file.path, "no such file", "give the path of an existing file")
            folder.put(file.path, path)
        yield paths
    finally:
        with contextlib.suppress(DmsflowError):  # the folder takes them with it
            call_script(folder.shell, FORGET, *paths)


def run_program(folder: Folder, command: tuple[str, ...], files: str, limit_s: float, stdin: bytes = b"") -> Output:
    """Run a program there, and raise if it fails; `files` is what it runs, for the error.

    Raises:
        DmsflowError: it is not there, does not end in time, or ends badly.
    """
    shell, path = folder.shell, folder.path
    try:
        output = call_script(shell, RUN, path, PROGRAM, path, *command, stdin=stdin, limit_s=limit_s)
    except TooSlow as error:
        with contextlib.suppress(DmsflowError):
            call_script(shell, STOP, path)
        what = f"is too slow: {files} took more than {limit_s:.0f} s"
        raise DmsflowError(shell.device, what, "use fewer --runs") from error
    if output.status == 0:
        return output
    reason, _, advice = output.reason.partition("; ")
    what, right = f"the program that runs {files} failed there ({reason})", advice or "see what it needs"
    if output.status in (126, 127):
        what = f"cannot run {command[0].replace(path, 'the copied program')} ({output.reason})"
        right = "name a Python of the device with --python, or a program built for it with --runner-file"
    elif output.status > 128:
        what = f"the program that runs {files} was killed there (signal {output.status - 128})"
        right = "check whether the device ran out of memory"
    raise DmsflowError(shell.device, what, right)


def describe_machine(shell: Shell) -> Machine:
    """The device as its system describes it."""
    facts: dict[str, list[str]] = {}
    for row in call_script(shell, FACTS).out.decode(errors="replace").splitlines():
        key, _, text = (part.strip("\0\r\t ") for part in re.match(r"([^=:]*)([=:]?)(.*)", row).groups())  # type: ignore[union-attr]
        if text:
            facts.setdefault(key, []).append(text)
    names = [facts[key][0] for key in ("phone", "chip", "model name", "Model", "board") if key in facts]
    is_phone = "phone" in facts or "chip" in facts
    cores = facts.get("cores", [""])[0]
    return Machine(
        processor=", ".join(names[: 1 + is_phone]) or "unknown",
        system=facts.get("system", ["unknown"])[0],
        cores=int(cores) if cores.isdigit() and int(cores) else None,
        governor=facts.get("governor", [None])[0],
        temperature_c=find_hottest_c(facts.get("temperature", ())),
    )

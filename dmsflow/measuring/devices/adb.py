"""An Android phone on adb: adb://SERIAL, or adb:// with one phone connected; a benchmark program runs there.

A phone has no Python, so a program does the measuring: dmsflow's own, unless the user names another, such
as LCE's lce_benchmark_model or TFLite's benchmark_model. Files lie in /data/local/tmp meanwhile.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dmsflow import native
from dmsflow.errors import DmsflowError
from dmsflow.measuring.devices import Access, Measure, _shell
from dmsflow.measuring.devices._shell import Shell
from dmsflow.measuring.devices.phone import benchmark_program

# As `adb devices` prints them: emulator-5554, 192.168.1.7:5555, adb-R5C-x1 (2)._adb-tls-connect._tcp
SERIAL = re.compile(r"[A-Za-z0-9][\w.:() -]*", re.ASCII)
PARENT = "/data/local/tmp"  # the one place of a phone where adb may both write and run
UPLOAD_BYTES_S = 200_000
NOT_ALLOWED = "has not allowed this computer", "unlock it, and allow USB debugging when it asks"
NOT_ATTACHED = "is not attached", "plug it in, and see adb devices"
ERRORS = {
    "unauthorized": NOT_ALLOWED,
    "still authorizing": NOT_ALLOWED,
    "offline": ("is offline", "plug it in again, or adb reconnect"),
    "more than one device": ("could be any of several", "name one that adb devices lists: adb://SERIAL"),
    "no devices": NOT_ATTACHED,
    "not found": NOT_ATTACHED,
}


@contextlib.contextmanager
def connect(address: str, access: Access) -> Iterator[Measure]:
    """A folder on the phone, with the program in it.

    Raises:
        DmsflowError: the address cannot be one, there is no program, or no such phone; and from
            `measure`, whatever stands in the way of measuring there.
    """
    scheme, slashes, serial = address.partition("://")
    if scheme != "adb" or not slashes or (serial and not SERIAL.fullmatch(serial)):
        raise DmsflowError(
            f"device {address}", "is not a valid address", "write adb://SERIAL, or adb:// for the only phone"
        )
    if access == Access() and (own := native.benchmark()):
        access = Access(runner_file=str(own))
    if not access.runner_file:
        right = "name a benchmark program built for it with --runner-file (lce_benchmark_model, benchmark_model)"
        raise DmsflowError(f"device {address}", "has no Python", right)
    program = benchmark_program.find_program(access)
    adb = ("adb", "-s", serial) if serial else ("adb",)
    shell = Shell(f"device {address}", (*adb, "shell"), ERRORS, "keep it plugged in and awake")
    with _shell.make_folder(shell, shell, partial(_push, shell, adb), PARENT) as folder:
        yield benchmark_program.install(folder, program, address)


def _push(shell: Shell, adb: tuple[str, ...], here: str, there: str) -> None:
    """Copy a file to the phone. adb takes the paths as they are: no shell of this machine reads them."""
    path = Path(here).absolute()
    limit_s = _shell.ANSWER_S + path.stat().st_size / UPLOAD_BYTES_S
    try:
        done = _shell.run_client(shell, (*adb, "push", str(path), there), b"", limit_s)
    except _shell.TooSlow as error:
        what = f"did not receive {path.name} within {limit_s:.0f} s"
        raise DmsflowError(shell.device, what, "plug it in again") from error
    written = done.stdout + done.stderr
    if done.returncode or _shell.FULL.encode() in written:
        raise shell.error(written)

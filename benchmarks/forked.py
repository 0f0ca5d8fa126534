"""The command line in a forked process with limits, and what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dmsflow import cli, manifest
from dmsflow.errors import DmsflowError
from dmsflow.files import PARTIAL
from dmsflow.modelfile import reader

CODES = (0, 1, 2, 3)  # done, an error of one line, usage, a budget missed
DEATHS = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
WARNED = re.compile(rb"\w(Warning|Error|Exception)\b|[WEF]\d{4} |Fatal Python")  # by Python or a library, on stderr
NO_MEMORY = b"dmsflow: memory: is too small"
ESCAPED = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: the exit code; negative: the number of the signal; None: it hung, and was killed.
    """

    code: int | None
    out: bytes
    err: bytes
    seconds: float


def call(
    arguments: Sequence[str],
    before: Callable[[], object] = lambda: None,
    *,
    seconds: float = 300,
    kill: float | None = None,
) -> Ended:
    """Run `cli.main` in a fork of this process, in a group of its own of which nothing is left at the end.

    Args:
        before: called in the child first: it sets limits.
        seconds: after which it is killed and counts as hung.
        kill: after so many seconds SIGKILL comes, which is no fault.
    """
    pipes = os.pipe(), os.pipe()
    began = time.monotonic()
    sys.stdout.flush()
    if not (child := os.fork()):
        _be_the_child(arguments, [write for _, write in pipes], before)
    for _, write in pipes:
        os.close(write)
    read = {out: bytearray() for out, _ in pipes}
    deadline = began + (seconds if kill is None else kill)
    status = None
    while status is None and time.monotonic() < deadline:
        _drain(read, min(0.02, max(0.0, deadline - time.monotonic())))
        done, found = os.waitpid(child, os.WNOHANG)
        status = found if done else None
    took = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    hung = status is None
    if hung:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    _drain(read, 0)
    for each, _ in pipes:
        os.close(each)
    code = None if hung and kill is None else os.waitstatus_to_exitcode(status or 0)
    out, err = (bytes(read[each]) for each, _ in pipes)
    return Ended(code, out, err, took)


def _be_the_child(arguments: Sequence[str], streams: Sequence[int], before: Callable[[], object]) -> None:
    code = 99
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, stream in enumerate((nothing, *streams)):
            os.dup2(stream, number)
        os.closerange(3, 64)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        before()
        code = cli.main(list(arguments))
    except BaseException:  # noqa: BLE001  # it is printed, and that is a fault
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _drain(read: dict[int, bytearray], seconds: float) -> None:
    """Read what is there; wait for at most `seconds`."""
    open_ones = list(read)
    while open_ones and (ready := select.select(open_ones, [], [], seconds)[0]):
        for out in ready:
            if block := os.read(out, 1 << 16):
                read[out] += block
            else:
                open_ones.remove(out)
        seconds = 0
    if not open_ones:
        time.sleep(0.0005)


def limited(**limits: int) -> Callable[[], None]:
    """Sets limits of resources in the child: `AS` bytes above what it has, `FSIZE` bytes, `NOFILE` descriptors."""

    def limit() -> None:
        for name, value in limits.items():
            more = _address_space() if name == "AS" else 0
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value + more, value + more))

    return limit


def _address_space() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def fault(ended: Ended, *, little_memory: bool = False) -> str | None:
    """The kind of fault, or None.

    Args:
        little_memory: that it ran out of memory is no fault, nor that a library died of it, which no Python code can
            catch (torch's convolution gradient does, in oneDNN): what is asked for then are whole files.
    """
    lines = [line for line in ended.err.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith(b"dmsflow: ")]
    if ended.code is None:
        return "hang"
    if b"Traceback (most recent call last)" in ended.err:
        return "traceback"
    if little_memory and ended.code in DEATHS:
        return None
    if ended.code not in CODES:
        return f"exit code {ended.code}"
    if ESCAPED.search(ended.err.replace(b"\r", b"")) or ESCAPED.search(ended.out.replace(b"\r", b"")):
        return "control characters"
    if ended.code in (1, 3) and (len(said) != 1 or lines[-1] != said[0]):
        return "more than one line" if said else "no line"
    if any(WARNED.search(line) for line in lines if line not in said):
        return "a warning of a library"
    if not little_memory and any(line.startswith(NO_MEMORY) for line in said):
        return "memory"
    return None


def torn(folder: Path) -> str | None:
    """Which file there is neither absent nor whole, in words, or None."""
    for path in sorted(folder.rglob("*")) if folder.exists() else ():
        if path.name.startswith(".") and path.name.endswith(PARTIAL):
            return f"{path.name} is left"
        try:
            if path.suffix == ".json":
                msgspec.json.decode(path.read_bytes())
            if path.stem in manifest.STAGES and path.suffix == ".json":
                manifest.load_manifest(path, bare=True)
            if path.suffix in reader.FORMATS:
                reader.read_model_file(path)
            if path.suffix == ".html" and not path.read_text("utf-8").rstrip().endswith("</html>"):
                return f"{path.name} has no end"
        except (DmsflowError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            return f"{path.name} is not whole ({error})"
    return None


# Steps, and the widths of a profile's tables, follow from times: at which widths those grow. So do the widths of the
# networks that check it, which are drawn up to the widest in the tables.
VOLATILE = re.compile(
    r".*seconds?.*|date|commit|steps|inputs|outputs|drift_percent|temperature_c|sha256|size_bytes|command|commands|(.*_)?ms(_.*)?|.*spread.*|peak_.*|machine|latency_.*"
)
TIMES = ("bench-timings.json",)  # a file of nothing but times


def digest(folder: Path) -> dict[str, object]:
    """What files have that do not depend on when and how fast they were made, by name."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in TIMES:
            content = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                found[path.name] = (
                    [_lasting(each) for each in msgspec.json.Decoder().decode_lines(content)]
                    if (path.suffix == ".jsonl")
                    else _lasting(msgspec.json.decode(content))
                )
            else:
                found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def _lasting(value: object) -> object:
    if isinstance(value, dict):
        checks = "predicted_ms" in value
        lasting = (name for name in value if not VOLATILE.fullmatch(name) and not (checks and name == "widths"))
        return {name: _lasting(value[name]) for name in lasting}
    return [_lasting(each) for each in value] if isinstance(value, list) else value

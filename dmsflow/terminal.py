"""What people see on a terminal: tables, numbers in words, and how far a stage is.

Progress is a bar on a terminal and plain lines anywhere else, always on stderr. Programs read `--json` or
the manifest instead; Python code that calls a stage listens, and then nothing is printed.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO

from dmsflow.errors import printable

LINE_EVERY_S = 1.0
LISTED_NAMES = 4  # in one line of text, "3 more" being one of them
PLAIN = str.maketrans(
    {"×": "x", "±": "+-", "μ": "u", "µ": "u", "σ": "s", "–": "-", "−": "-", "→": "->", "’": "'", "…": "..."}
)
BLOCKS = "▁▂▃▄▅▆▇█"  # how large a number is, drawn beside it


@dataclass(frozen=True)
class Progress:
    """How far a loop is.

    Attributes:
        title: of the stage or phase, e.g. "train".
        unit: what is counted, in the singular, e.g. "epoch".
        done, total: units.
        seconds, seconds_left: since it began or was resumed, and the estimate until its end.
        note: what the last units gave, e.g. "loss 1.20"; may be empty.
    """

    title: str
    unit: str
    done: int
    total: int
    seconds: float
    seconds_left: float
    note: str = ""

    def __str__(self) -> str:
        times = f"{clock(self.seconds)} elapsed, {clock(self.seconds_left)} left"
        return f"{self.title}: {self.unit} {self.done}/{self.total}, {times}{self.note and f' | {self.note}'}"


Listener = Callable[[Progress], object]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Give progress to a function, and print nothing, inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def track(title: str, total: int, unit: str, *, done: int = 0) -> Iterator[_Track]:
    """Show the progress of a loop, each time that `advance` of what it yields is called.

    Args:
        title: of the stage or phase, e.g. "train".
        total: units until the end.
        unit: what is counted, in the singular, e.g. "epoch".
        done: units that an earlier, interrupted run has already finished.
    """
    if _listener.get() or not sys.stderr.isatty():
        yield _Track(title, total, unit, done)
        return
    from rich import progress
    from rich.console import Console

    text = functools.partial(progress.TextColumn, markup=False)
    left = (text("{task.description}"), progress.BarColumn(bar_width=24), progress.MofNCompleteColumn(), text(unit))
    right = (progress.TimeElapsedColumn(), text("elapsed,"), progress.TimeRemainingColumn())
    note = text("left {task.fields[note]}")
    with progress.Progress(*left, *right, note, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=done, note="")
        yield _Track(title, total, unit, done, lambda at: shown.update(task, completed=at.done, note=at.note))


class _Track:
    """At most one line a second; the last unit always has its line. A listener or bar hears of every unit instead."""

    def __init__(self, title: str, total: int, unit: str, done: int, bar: Listener | None = None) -> None:
        self.title, self.total, self.unit, self.bar = title, total, unit, bar
        self.done = self.begun_at = done
        self.started, self.last_line = time.monotonic(), -LINE_EVERY_S

    def advance(self, by: int = 1, note: str = "") -> None:
        """Advance by `by` units; `note` is the latest result, e.g. "loss 1.20"."""
        self.done += by
        elapsed = time.monotonic() - self.started
        remaining = elapsed / max(self.done - self.begun_at, 1) * max(self.total - self.done, 0)
        progress = Progress(self.title, self.unit, self.done, self.total, elapsed, remaining, note)
        if show := self.bar or _listener.get():
            show(progress)
        elif self.done >= self.total or elapsed - self.last_line >= LINE_EVERY_S:
            self.last_line = elapsed
            print_line(str(progress))


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 1:05, 2:00:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _in_ascii(error: UnicodeError) -> tuple[bytes, int]:
    """What a stream writes where it lacks a character: a plain one, or of a file's name the byte on the disk."""
    assert isinstance(error, UnicodeEncodeError)
    written = b""
    for character in error.object[error.start : error.end].translate(PLAIN):
        on_disk = "\udc80" <= character <= "\udcff"
        written += character.encode("ascii", "surrogateescape" if on_disk else "backslashreplace")
    return written, error.end


codecs.register_error("dmsflow", _in_ascii)


def write_anything() -> None:
    """Let stdout and stderr take any text, whatever their encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dmsflow")


def print_line(line: str) -> None:
    """Print a line to stderr, since a stage's stdout carries only its manifest's path."""
    if not _listener.get():
        print(printable(line), file=sys.stderr, flush=True)


# --- tables and numbers -------------------------------------------------------------------------


def print_table(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, stream: TextIO | None = None
) -> None:
    """Print rows under their heads; every column but the first is aligned right where it holds only numbers.

    Args:
        title: printed above.
        head: names of the columns, units included; empty for a table of labels and values.
        rows: cells, shown by `str`; None is shown as a dash.
        stream: stderr unless given, since a stage's stdout carries only its manifest's path.
    """
    if stream is None and _listener.get():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["–" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_header=bool(head), pad_edge=False)
    for column in range(len(head) or max(map(len, cells), default=0)):
        numeric = column > 0 and all(is_number(row[column]) for row in cells if row[column] != "–")
        top = Text(printable(head[column]) if head else "")
        table.add_column(top, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    stream = stream or sys.stderr
    console = Console(file=stream, width=None if stream.isatty() else 120, highlight=False)
    console.print(Text(printable(title), style="bold"), soft_wrap=True)  # a table's own title would wrap to its width
    console.print(table)


def milliseconds(value: float) -> str:
    """Three significant digits, and no more of a thousand: 0.00123, 0.123, 12.3, 1234."""
    return f"{value:.0f}" if value == 0 or value >= 999.5 else f"{value:#.3g}".rstrip(".")


def block(part: float) -> str:
    """The block character for a part of a whole; more than nothing is never drawn as nothing."""
    return BLOCKS[min(len(BLOCKS) - 1, int(part * len(BLOCKS)))]


def is_number(cell: str) -> bool:
    """Whether a column of such cells is aligned right: `▃ 0.12`, `98 %`, `+0.1 ± 0.2`, `0.28 modelled`; not `16 32 64`."""
    cell = cell.lstrip(BLOCKS + " ")
    for unit in (" %", " draws", " modelled"):
        cell = cell.removesuffix(unit)
    single = " " not in cell or "±" in cell
    return bool(cell) and cell[0] in "+-−0123456789" and cell[-1] in "0123456789%×" and single


def format_threads(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread{'s' * (count != 1)}"


def format_method(method: str) -> str:
    """What precedes the name of a device: whether it ran anything, or was only modelled."""
    return "measured on" if method == "measured" else "modelled for"


def list_names(names: Sequence[str]) -> str:
    """Names in a line: `conv1`, `conv1 and conv2`, and of more than four `conv1, conv2, conv3 and 4 more`."""
    if len(names) > LISTED_NAMES:
        names = [*names[: LISTED_NAMES - 1], f"{len(names) - LISTED_NAMES + 1} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def share_percent(part: float, whole: float) -> float:
    """A part of a whole; 0 of nothing."""
    return 100 * part / whole if whole else 0.0


# --- a process and its streams ------------------------------------------------------------------


class _Lasting:
    """A stream that outlives its reader: what is written after an error of `kind` goes nowhere."""

    def __init__(self, stream: TextIO, kind: type[OSError]) -> None:
        self.stream, self.kind = stream, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> Any:
        return self._try(lambda: self.stream.write(text))

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except self.kind:
            with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())  # for what is buffered


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let no closed stream, and no reader that left, end the block: results are written all the same."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # so that no file gets the number of a closed stream
    with contextlib.ExitStack() as stack:
        out, err = (each or stack.enter_context(open(os.devnull, "w")) for each in (sys.stdout, sys.stderr))
        stack.enter_context(contextlib.redirect_stdout(_Lasting(out, BrokenPipeError)))
        stack.enter_context(contextlib.redirect_stderr(_Lasting(err, OSError)))
        yield


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let SIGTERM raise KeyboardInterrupt as SIGINT does, and yield the signals that came.

    Some imports replace the exception by one of their own. Under torchrun, which sends SIGTERM to end the others, and
    outside of the main thread nothing changes.
    """
    received, process = list[int](), os.getpid()

    def interrupt(number: int, _: object) -> None:
        if os.getpid() != process and number == signal.SIGTERM:
            os._exit(128 + number)  # a forked worker, which its parent ends
        received.append(number)
        raise KeyboardInterrupt

    alone = threading.current_thread() is threading.main_thread() and "TORCHELASTIC_RUN_ID" not in os.environ
    kinds, ignored = (signal.SIGINT, signal.SIGTERM) if alone else (), (signal.SIG_IGN, None)
    before = [(each, signal.signal(each, interrupt)) for each in kinds if signal.getsignal(each) not in ignored]
    try:
        yield received
    finally:
        for each, handler in before:
            signal.signal(each, handler)


def end_interrupted(arguments: Sequence[str], received: Sequence[int]) -> int:
    """Say how to go on after an interruption of the command line; the exit code."""
    again = shlex.join(word for word in ("dmsflow", *arguments) if word not in ("--force", "--resume"))
    resumable = arguments[:1] and arguments[0] in ("search", "train", "export", "bench", "run", "profile", "sweep")
    print_line("dmsflow: interrupted" + f"; resume with: {again} --resume" * bool(resumable))
    return 128 + signal.SIGTERM if signal.SIGTERM in received else 1

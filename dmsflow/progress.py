"""How far a stage is: a bar on a terminal, plain lines anywhere else, always on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol, TextIO

LINE_EVERY_S = 1.0


class Track(Protocol):
    def advance(self, by: int = 1, note: str = "") -> None:
        """Move on by `by` units; `note` says what the last ones gave, e.g. "loss 1.20"."""
        ...


@contextlib.contextmanager
def track(title: str, total: int, unit: str, *, done: int = 0) -> Iterator[Track]:
    """Show the progress of a loop.

    Args:
        title: of the stage or phase, e.g. "train".
        total: units until the end.
        unit: what is counted, in the singular, e.g. "epoch".
        done: units that an earlier, interrupted run has already finished.
    """
    if sys.stderr.isatty():
        with _bar(title, total, unit, done) as bar:
            yield bar
    else:
        yield _Lines(title, total, unit, done, sys.stderr)


class _Lines:
    """At most one line a second; the last unit always has its line."""

    def __init__(self, title: str, total: int, unit: str, done: int, stream: TextIO) -> None:
        self.title, self.total, self.unit, self.stream = title, total, unit, stream
        self.done = self.begun_at = done
        self.started = time.monotonic()
        self.last_line = -LINE_EVERY_S

    def advance(self, by: int = 1, note: str = "") -> None:
        self.done += by
        elapsed = time.monotonic() - self.started
        if self.done < self.total and elapsed - self.last_line < LINE_EVERY_S:
            return
        self.last_line = elapsed
        remaining = elapsed / max(self.done - self.begun_at, 1) * max(self.total - self.done, 0)
        times = f"{clock(elapsed)} elapsed, {clock(remaining)} left"
        print(
            f"{self.title}: {self.unit} {self.done}/{self.total}, {times}{note and f' | {note}'}",
            file=self.stream,
            flush=True,
        )


class _Bar:
    def __init__(self, progress: object, task: object) -> None:
        self.progress, self.task = progress, task

    def advance(self, by: int = 1, note: str = "") -> None:
        self.progress.update(self.task, advance=by, note=note)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _bar(title: str, total: int, unit: str, done: int) -> Iterator[Track]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left {task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, progress.add_task(title, total=total, completed=done, note=""))


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 1:05, 2:00:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

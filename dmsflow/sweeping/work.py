"""The stages of one row, each by the ordinary command line in a process of its own, with its output in sweep.log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from dmsflow import manifest
from dmsflow.errors import DmsflowError
from dmsflow.files import locked, write_atomically
from dmsflow.manifest import Flow
from dmsflow.settings import anchored
from dmsflow.sweeping.plan import Device, Row
from dmsflow.terminal import listening, print_line

STAGES = get_args(manifest.Stage)
LOCKS, LOG, FAILED = ".locks", "sweep.log", "failed.txt"
EVERY_S = 0.5  # between looks whether another process has finished


class Stopped(BaseException):
    """The sweep was interrupted."""


class Work:
    """Does rows in a folder.

    Args:
        out: the folder of the sweep.
        rows: all of its rows, with their leaders.
        until: the last stage.
        threads: of torch, for a stage whose plan does not say; 0: one for each core.
    """

    def __init__(self, out: Path, rows: list[Row], until: str, threads: int = 0) -> None:
        self.out, self.rows, self.threads = out, rows, threads
        self.stages = STAGES[: STAGES.index(until) + 1]
        self._stopping, self._running, self._lock = threading.Event(), set[subprocess.Popen[bytes]](), threading.Lock()

    def make(self, row: Row, worker: int) -> None:
        """Do a row up to its export; an error is written to its folder, where the end of the sweep finds it."""
        with self._alone(row.name), self._keeping_error(row):
            (self.out / row.name / FAILED).unlink(missing_ok=True)
            self._find_widths(row, worker)
            if "train" in self.stages:
                self._do("train", row, worker)
            for device in row.devices if "export" in self.stages else ():
                self._do("export", row, worker, device)

    def check_unchanged(self, row: Row) -> None:
        """Refuse a plan that asks for another search than the one that is finished, or for one on other images."""
        path = self._folder(row, None) / "search.json"
        if not path.exists():
            return
        done, right = manifest.load_manifest(path), "{}, or --out for another folder"
        if change := manifest.find_change(done, row.settings("search")):
            name, before, now = change
            written = right.format(f"write {name} = {json.dumps(before)} into its table [search]")
            raise DmsflowError(path, f"was made with {name} {before}, and the plan says {now}", written)
        if anchored(row.settings("data")) != done.data:
            raise DmsflowError(path, "was made with another table [data]", right.format("use the plan as it was"))

    def measure(self, row: Row, worker: int) -> None:
        """Measure the files of a row, each device by one row at a time."""
        if (self.out / row.name / FAILED).exists():
            return
        with self._alone(row.name), self._keeping_error(row):
            for device in row.devices:
                address = row.settings("bench", device).device
                machine = f"-{socket.gethostname()}" if address.startswith(("local", "qemu")) else ""
                with self._alone("device-" + re.sub(r"[^\w.]+", "-", address) + machine):
                    self._do("bench", row, worker, device)

    def stop(self) -> None:
        """End what is running; each stage saves what it has."""
        self._stopping.set()
        with self._lock:
            for child in self._running:
                child.terminate()

    def is_done(self, row: Row) -> bool:
        """Whether the last stage has written its manifests."""
        return all(path.exists() for path in self.last_manifests(row)) and not (self.out / row.name / FAILED).exists()

    def last_manifests(self, row: Row) -> list[Path]:
        """One a device if the last stage is export or bench."""
        last, folder = f"{self.stages[-1]}.json", self.out / row.name
        devices = row.devices if "export" in self.stages else ()
        return [folder / device.name / last for device in devices] or [folder / last]

    # --- the stages ---

    def _find_widths(self, row: Row, worker: int) -> None:
        """By the leader's slopes, or by a search of its own where its budgets lead beyond what that has learned."""
        if row.leader and not self._is_finished("search", row):
            leader = next(each for each in self.rows if each.name == row.leader)
            try:
                with self._alone(f"{leader.name}.search"):
                    self._do("search", leader, worker)
            except DmsflowError as error:
                raise DmsflowError(
                    leader.name, f"its search failed ({error})", "correct that, then --resume"
                ) from error
            if self._solve(row, self.out / leader.name / "search.json"):
                return
        with self._alone(f"{row.name}.search"):
            self._do("search", row, worker)

    def _solve(self, row: Row, source: Path) -> bool:
        """Take widths from the slopes of a search; False if it has not learned what these budgets lead to."""
        from dmsflow.searching import widths

        folder, settings = self.out / row.name, row.settings("search")
        words = [word for name, limit in row.limits.items() for word in (f"--{name.replace('_', '-')}", str(limit))]
        command = ("dmsflow", "widths", str(source), *words, "--out", str(folder))
        with listening(lambda _: None):
            try:
                widths.plan_widths(source, settings, folder)
            except DmsflowError as error:
                write_atomically(folder / "widths.txt", f"{error}\n".encode())
                return False
            widths.solve_widths(source, settings, folder, Flow(command, resume=True))
        print_line(f"{row.name}: widths from {source.parent.name}")
        return True

    def _is_finished(self, stage: str, row: Row, device: Device | None = None) -> bool:
        """Whether a stage is done with these settings; where it was done with others, its own command says what is wrong."""
        path, data = self._folder(row, device) / f"{stage}.json", row.settings("data") if stage == "search" else None
        with contextlib.suppress(DmsflowError):
            return manifest.is_finished(path, row.settings(stage, device), Flow((), resume=True), data)
        return False

    def _do(self, stage: str, row: Row, worker: int, device: Device | None = None) -> None:
        if self._is_finished(stage, row, device):
            return
        out = self._folder(row, device)
        words = [*row.words("data"), *row.words(stage)] if stage == "search" else row.words(stage, device)
        if stage != "search":
            source = out if stage == "bench" else self.out / row.name
            words.insert(0, str(source / f"{STAGES[STAGES.index(stage) - 1]}.json"))
        if stage in ("search", "train") and self.threads and "threads" not in row.values[stage]:
            words += ["--set", f"{stage}.threads={self.threads}"]
        with self._held(out):  # a stage of a sweep that was just killed may still be ending
            pass
        print_line(f"{row.name}: {stage}" + (f" for {device.name}" if device and device.name else ""))
        self._start([stage, *words, "--out", str(out), "--resume"], self.out / row.name / LOG, worker)

    def _folder(self, row: Row, device: Device | None) -> Path:
        return self.out / row.name / (device.name if device else "")

    def _start(self, words: list[str], log: Path, worker: int) -> None:
        """Run a command in a process of its own.

        Raises:
            DmsflowError: what it says in its last line.
            Stopped: the sweep ends before it does.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            begin = output.tell()
            with self._lock:
                if self._stopping.is_set():
                    raise Stopped
                command, how = [sys.executable, "-m", "dmsflow.sweeping.child", *words], _environment(worker)
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=how,
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which ends the others
                )
                self._running.add(child)
            code = child.wait()
            with self._lock:
                self._running.discard(child)
        if self._stopping.is_set():
            raise Stopped
        if code:
            said = log.read_bytes()[begin:].decode(errors="replace").split("\n")
            line = next((each for each in reversed(said) if each.strip()), "")
            where, _, what = line.removeprefix("dmsflow: ").rpartition("; ")
            raise DmsflowError(f"{words[0]} (exit code {code})", where or "failed", what or f"see {log}")

    # --- who does what ---

    def _alone(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Wait until no other thread or process, of this machine or another with the same folder, is in such a block."""
        folder = self.out / LOCKS / name
        folder.mkdir(parents=True, exist_ok=True)  # it stays, since who waits has it open
        return self._held(folder)

    @contextlib.contextmanager
    def _held(self, folder: Path) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(locked(folder))
                    break
                except DmsflowError as error:
                    if not isinstance(error.__cause__, BlockingIOError):
                        raise
                if self._stopping.wait(EVERY_S):
                    raise Stopped
            yield

    @contextlib.contextmanager
    def _keeping_error(self, row: Row) -> Iterator[None]:
        try:
            yield
        except DmsflowError as error:
            write_atomically(self.out / row.name / FAILED, f"{error}\n".encode())
            print_line(f"{row.name}: failed: {error}")


def _environment(worker: int) -> dict[str, str]:
    """Of a stage: alone, though torchrun may have started the sweep, and on a GPU of its worker if several are visible.

    Variables of options are left out: the plan alone says what a row is.
    """
    others = ("TORCHELASTIC_", *(f"DMSFLOW_{stage.upper()}_" for stage in STAGES))
    kept: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    visible = [each for each in kept.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    if len(visible) > 1:
        kept["CUDA_VISIBLE_DEVICES"] = visible[worker % len(visible)]
    return kept

"""Who does which task: threads of one process count by themselves, those of torchrun's processes in its TCPStore."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Protocol

EVERY_S = 0.5


class Claims(Protocol):
    """Tasks are numbered from 0, apart in each phase; every number is given once."""

    is_first: bool

    def take(self, phase: str) -> int:
        """The number of the next task."""

    def wait(self, phase: str) -> None:
        """Say that this process has ended a phase, and wait for the others."""


class Alone:
    """All workers are threads of this process."""

    is_first = True

    def __init__(self) -> None:
        self._taken, self._lock = Counter[str](), threading.Lock()

    def take(self, phase: str) -> int:
        with self._lock:
            self._taken[phase] += 1
            return self._taken[phase] - 1

    def wait(self, phase: str) -> None:
        pass


class Ranks:
    """Processes of torchrun, on any number of nodes: numbers come from the atomic sums of its store."""

    def __init__(self) -> None:
        from torch.distributed.rendezvous import rendezvous

        self._store, rank, self._processes = next(rendezvous("env://"))
        self._lock, self.is_first = threading.Lock(), rank == 0

    def take(self, phase: str) -> int:
        return self._add(f"{phase} taken", 1) - 1

    def wait(self, phase: str) -> None:
        self._meet(f"{phase} ended", wait=True)
        self._meet(f"{phase} left", wait=self.is_first)  # the store may end with the first process

    def _meet(self, key: str, *, wait: bool) -> None:
        self._add(key, 1)
        while wait and self._add(key, 0) < self._processes:
            time.sleep(EVERY_S)

    def _add(self, key: str, number: int) -> int:
        with self._lock:
            return int(self._store.add(f"dmsflow sweep {key}", number))


def find_claims() -> Claims:
    """Those of torchrun, if it started this process."""
    return Ranks() if "TORCHELASTIC_RUN_ID" in os.environ else Alone()

"""Times of model files on a machine that is not always left alone.

Other programs, other guests of the same host and heat slow a machine down for seconds at a time, by
half and more; a median over runs that fall into such a spell is that of another machine. So one and
the same reference file runs in every turn beside the files that are timed: a turn counts if the
reference was as fast before and after it as it is when nothing disturbs it. (It runs twice, and the
second time is taken: the first finds its memory displaced by the other files.) Where too few turns
count, more are run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from dmsflow.measuring.devices import File, Job, Machine, Measure

WARM_UP = 5
DISTURBED = 1.06  # a turn does not count if the reference takes this much longer than undisturbed
QUANTILE = 20  # percentile of the reference's runs that stands for undisturbed
ENOUGH = 0.5  # of the runs asked for: so many turns must count
TRIES = 8  # to get them
PAUSE_S = 0.4  # before another try: a disturbance lasts longer than a turn
SETTLE_TRIES, SETTLE_RUNS = 5, 200
NOISY_PERCENT, NOISY_MS = 3.0, 0.002


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Of one file: the median of the turns that count.

    Attributes:
        ms: the median.
        spread_percent: how far apart the medians of their two halves are.
        level_ms: what the reference took meanwhile.
    """

    ms: float
    spread_percent: float
    level_ms: float


@dataclass
class Stopwatch:
    """Times files on one device.

    Attributes:
        measure: of the device.
        reference: what runs in every turn.
        threads: of the runtime.
        until: on the clock of time.monotonic(): later, times are taken as they come.
        level_ms: of the reference, undisturbed; infinite before anything was measured.
        levels_ms: of the reference in each call, in order.
        machine: as the device told at first and at last.
        runtime: as the device told.
    """

    measure: Measure
    reference: File
    threads: int
    until: float = math.inf
    level_ms: float = math.inf
    levels_ms: list[float] = field(default_factory=list)
    machine: tuple[Machine, ...] = ()
    runtime: str = ""

    def settle(self) -> None:
        """Find out how fast the reference is when nothing disturbs it."""
        for _ in range(SETTLE_TRIES):
            self._turns([], SETTLE_RUNS)
            if self.modelled:
                return  # nothing disturbs it, and every run takes the same time
            time.sleep(PAUSE_S)

    def times(self, files: Sequence[File], runs: int) -> list[Time]:
        """Time files side by side, `runs` turns or more.

        Raises:
            DmsflowError: the device cannot measure them.
        """
        kept: list[NDArray[np.float64]] = []
        for _ in range(TRIES):
            turns, level = self._turns(files, runs)
            if level * DISTURBED < self.level_ms:
                kept = []  # it was disturbed until now
            self.level_ms = min(self.level_ms, level)
            kept.append(turns[:, _counts(turns[0], self.level_ms)])
            if sum(part.shape[1] for part in kept) >= ENOUGH * turns.shape[1] or time.monotonic() > self.until:
                break
            time.sleep(PAUSE_S)
        counted = np.concatenate(kept, axis=1)
        self.levels_ms.append(level)
        counted = counted if counted.shape[1] else turns
        return [_time(line, float(np.median(counted[0]))) for line in counted[1:]]

    def _turns(self, files: Sequence[File], runs: int) -> tuple[NDArray[np.float64], float]:
        """Every run, [1 + files, runs], the reference's first; and the reference's level in them."""
        reference = msgspec.structs.replace(self.reference, primers=1)
        job = Job(files=(reference, *files), threads=self.threads, warm_up=WARM_UP, runs=runs, memory=False)
        seen = self.measure(job)
        self.machine = (*self.machine[:1], seen.machine)
        self.runtime = seen.timings[0].runtime
        shortest = min(len(timing.runs_ms) for timing in seen.timings)  # a benchmark program gives fewer
        turns = np.array([timing.runs_ms[:shortest] for timing in seen.timings])
        level = float(np.percentile(turns[0], QUANTILE))
        if not files:
            self.level_ms = min(self.level_ms, level)
        return turns, level

    @property
    def modelled(self) -> bool:
        """Whether the device models its times instead of measuring them."""
        return bool(self.machine) and self.machine[-1].method == "modelled"

    def doubtful(self, seen: Time) -> bool:
        """Whether a time was taken while the machine was disturbed, or else is not sure."""
        unsure = seen.spread_percent > NOISY_PERCENT and seen.spread_percent * seen.ms / 100 > NOISY_MS
        return unsure or seen.level_ms > DISTURBED * self.level_ms

    def drift_percent(self) -> float:
        """How much slower the reference was in the last quarter of all calls than in the first."""
        count = max(1, len(self.levels_ms) // 4)
        first, last = (float(np.median(part)) for part in (self.levels_ms[:count], self.levels_ms[-count:]))
        return round(100 * (last / first - 1), 2)


def _counts(reference: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Turns in which the reference was undisturbed, and in the next one too."""
    quiet: NDArray[np.bool_] = reference <= DISTURBED * level
    both: NDArray[np.bool_] = quiet & np.append(quiet[1:], quiet[-1:])
    return both


def _time(runs_ms: NDArray[np.float64], level: float) -> Time:
    median = float(np.median(runs_ms))
    halves = [float(np.median(runs_ms[begin::2])) for begin in range(min(2, len(runs_ms)))]
    spread = 100 * (max(halves) - min(halves)) / median if median else 0.0
    return Time(ms=median, spread_percent=spread, level_ms=level)

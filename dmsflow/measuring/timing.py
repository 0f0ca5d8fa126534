"""Times model files on a machine where other programs run too.

Other programs, other guests of the same host and heat slow a machine down for seconds at a time, by
half and more; a median over such runs is that of another machine. So one reference file runs in every
round beside the files that are timed. A round counts if the reference was about as fast before and after
it as its baseline, which is its time on the quiet machine. (It runs twice, and the second time is taken:
the first finds its memory displaced by the other files.) Where too few rounds count, more are run.

    baseline 1.00 ms        round 1   round 2   round 3   round 4
    reference               1.01      1.02      1.60      1.01      limit 1.06: round 3 is noisy,
    file                    3.10      4.40      5.00      3.20      and so 2, which ends where 3 begins

The file's time is the median of 3.10 and 3.20.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from dmsflow.measuring.devices import File, Job, Machine, Measure

WARM_UP_RUNS = 5
NOISE_FACTOR = 1.06  # a round is noisy if the reference takes this many times its baseline
BASELINE_PERCENTILE = 20  # of the reference's runs: the fastest fifth may be luckier than usual
QUIET_SHARE = 0.5  # of the runs asked for: so many rounds must be quiet
MOST_TRIES = 8  # to get them
PAUSE_S = 0.4  # before another try: noise lasts longer than a round
CALIBRATION_TRIES, CALIBRATION_RUNS = 5, 200
SPREAD_PERCENT, SPREAD_MS = 3.0, 0.002  # a time is not sure if its halves are further apart than both


class Time(msgspec.Struct, frozen=True, kw_only=True):
    """Time of one file: the median of the rounds that count.

    Attributes:
        spread_percent: how far apart the medians of their two halves are.
        baseline_ms: what the reference took in those rounds.
    """

    ms: float
    spread_percent: float
    baseline_ms: float = msgspec.field(name="level_ms")  # the key of files that people have


class History(msgspec.Struct, kw_only=True, omit_defaults=True):  # JSON has no infinity
    """What a stopwatch knows about its device; an interrupted profile saves it.

    Attributes:
        baseline_ms: of the reference on the quiet machine; infinite before anything was measured.
        baselines_ms: of the reference in each call of `time_files`, in order.
        machine: as the device described itself at first and at last.
    """

    baseline_ms: float = msgspec.field(default=math.inf, name="level_ms")
    baselines_ms: list[float] = msgspec.field(default_factory=list, name="levels_ms")
    machine: tuple[Machine, ...] = ()


@dataclass
class Stopwatch:
    """Times files on one device.

    Attributes:
        reference: what runs in every round.
        until: on the clock of time.monotonic(): from then on, noisy rounds are not repeated.
        runtime: as the device named it.
    """

    measure: Measure
    reference: File
    threads: int
    history: History
    until: float
    runtime: str = ""

    @property
    def machine(self) -> Machine:
        return self.history.machine[-1]

    def calibrate(self) -> None:
        """Find the baseline: how fast the reference is when nothing slows the machine."""
        for _ in range(CALIBRATION_TRIES):
            _, baseline = self._run_rounds([], CALIBRATION_RUNS)
            self.history.baseline_ms = min(self.history.baseline_ms, baseline)
            if self.machine.method == "modelled":
                return  # nothing slows it, and every run takes the same time
            time.sleep(PAUSE_S)

    def time_files(self, files: Sequence[File], runs: int) -> list[Time]:
        """Time files side by side, in `runs` rounds or more."""
        history, kept = self.history, list[NDArray[np.float64]]()
        for _ in range(MOST_TRIES):
            rounds, baseline = self._run_rounds(files, runs)
            if baseline * NOISE_FACTOR < history.baseline_ms:
                kept = []  # all was noisy until now
            history.baseline_ms = min(history.baseline_ms, baseline)
            quiet = rounds[0] <= NOISE_FACTOR * history.baseline_ms
            kept.append(rounds[:, quiet & np.append(quiet[1:], quiet[-1:])])
            if sum(part.shape[1] for part in kept) >= QUIET_SHARE * rounds.shape[1] or time.monotonic() > self.until:
                break
            time.sleep(PAUSE_S)
        history.baselines_ms.append(baseline)
        counted = np.concatenate(kept, axis=1)
        reference, *others = counted if counted.shape[1] else rounds
        times = []
        for runs_ms in others:
            median = float(np.median(runs_ms))
            halves = [float(np.median(runs_ms[begin::2])) for begin in range(min(2, len(runs_ms)))]
            spread = 100 * (max(halves) - min(halves)) / median if median else 0.0
            times.append(Time(ms=median, spread_percent=spread, baseline_ms=float(np.median(reference))))
        return times

    def _run_rounds(self, files: Sequence[File], runs: int) -> tuple[NDArray[np.float64], float]:
        """The ms of every run, [1 + files, runs], the reference's first; and the reference's baseline in them."""
        reference = msgspec.structs.replace(self.reference, primers=1)
        job = Job(files=(reference, *files), threads=self.threads, warm_up=WARM_UP_RUNS, runs=runs, memory=False)
        measured = self.measure(job)
        self.history.machine = (*self.history.machine[:1], measured.machine)
        self.runtime = measured.timings[0].runtime
        shortest = min(len(timing.runs_ms) for timing in measured.timings)  # a benchmark program gives fewer
        rounds = np.array([timing.runs_ms[:shortest] for timing in measured.timings])
        return rounds, float(np.percentile(rounds[0], BASELINE_PERCENTILE))

    def is_noisy(self, measured: Time) -> bool:
        """Whether a time was taken while something slowed the machine, or its halves do not agree."""
        spread, apart_ms = measured.spread_percent, measured.spread_percent * measured.ms / 100
        slowed = measured.baseline_ms > NOISE_FACTOR * self.history.baseline_ms
        return slowed or (spread > SPREAD_PERCENT and apart_ms > SPREAD_MS)

    def drift_percent(self) -> float:
        """How much slower the reference was in the last quarter of all calls than in the first."""
        baselines = self.history.baselines_ms
        count = max(1, len(baselines) // 4)
        return round(100 * (float(np.median(baselines[-count:])) / float(np.median(baselines[:count])) - 1), 2)

"""Where torch runs: device, threads, precision, compiled or not."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmsflow.errors import DmsflowError
from dmsflow.settings import WeightSettings
from dmsflow.training import processes
from dmsflow.training.processes import ALONE, Share

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Place:
    """Where and how torch computes.

    Attributes:
        amp: train in bfloat16 where that is safe.
        compiled: the step is compiled by torch.compile.
        share: of every batch.
    """

    device: torch.device
    threads: int
    amp: bool
    compiled: bool = False
    share: Share = ALONE

    def facts(self) -> dict[str, Any]:
        """What the manifest records of it."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        facts = {"torch_device": name, "threads": self.threads, "mixed": self.amp, "compiled": self.compiled}
        return facts | {"processes": self.share.processes}


def choose_place(settings: WeightSettings) -> Place:
    """Set torch up for these settings.

    Raises:
        DmsflowError: the device is unknown or absent, or processes cannot share a batch.
    """
    name = settings.device
    if name == "auto":
        mps = torch.backends.mps.is_available() and processes.count_processes() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and processes.count_processes() > 1:
        name = f"cuda:{processes.local()[0]}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which the device meta has none of
    except (RuntimeError, AssertionError) as error:
        right = "use auto, cpu, or a device that torch can use"
        raise DmsflowError(f"--device {name}", "is not available", right) from error
    share = processes.choose_share(settings.batch_parts)
    threads = settings.threads or max(1, (os.cpu_count() or 1) // processes.local()[1])
    torch.set_num_threads(threads)
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = device.type == "cuda"
    amp = _has_bfloat16(device) if settings.amp == "auto" else settings.amp == "on"
    compiled = _compiles(device) if settings.compile == "auto" else settings.compile == "on"
    return Place(device, threads, amp, compiled, share)


@contextmanager
def torch_unchanged() -> Iterator[None]:
    """Leave torch's random numbers and threads as they were before the block."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory: otherwise every step returns it and maps it again, page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the largest value that glibc accepts
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a step is faster in bfloat16 there than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    facts = Path("/proc/cpuinfo")
    return device.type == "cpu" and facts.exists() and has_fast_bfloat16(facts.read_text())


def has_fast_bfloat16(cpuinfo: str) -> bool:
    """Whether a processor with this /proc/cpuinfo is faster in bfloat16 than in float32.

    AMD's are with AVX-512, Intel's only with AMX: a Xeon whose AMX a virtual machine hides takes 1.4 times
    as long as with float32 (benchmarks/train_step.py).
    """
    known = set(cpuinfo.split())
    return "amx_bf16" in known or {"avx512_bf16", "AuthenticAMD"} <= known


def _compiles(device: torch.device) -> bool:
    """Whether it is a GPU that torch compiles for: Triton supports none before Volta."""
    known = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)
    return known and importlib.util.find_spec("triton") is not None

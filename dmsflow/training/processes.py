"""Several processes that train as one: torchrun starts them, and the command line joins them.

Every process has the same weights and takes its share of each batch. Gradients, losses and running statistics are
averaged by one all-reduce of a flat tensor. (DistributedDataParallel averages parameters of a module that it wraps;
here sub-networks are slices of the weights, and the gradients of a width phase are those of masks.) All processes
then take the same step, so they stay the same. The first one alone writes files and reports.

Without `joined` a process is alone and pays nothing, even under torchrun: a script may run another job in each.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from dmsflow.errors import DmsflowError

LONGEST_WAIT = datetime.timedelta(hours=6)  # for another process: the first may download or decode a data set


@contextlib.contextmanager
def joined(command: str = "") -> Iterator[None]:
    """Make this process one of those that torchrun started; all but the first print nothing.

    An error ends all of them. Only the process that has it first raises it; the others exit.

    Raises:
        DmsflowError: the command does not work in several processes.
    """
    from torch.distributed.rendezvous import rendezvous

    # Imported after the group was made, by an optimiser, it would keep the group's threads, which may crash at exit.
    importlib.import_module("torch._dynamo")
    store, rank, count = next(rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)

    def leave(kind: object, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the store may have gone with the process that had the error
            if kind is None or store.add("errors", 1) == 1:
                return
        sys.exit(1)

    with contextlib.ExitStack() as stack:
        stack.callback(distributed.destroy_process_group)
        stack.push(leave)
        if rank:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        if command not in ("search", "train"):
            raise DmsflowError(f"torchrun: {command}", "runs in one process only", "start it without torchrun")
        yield


def count_processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes and reports."""
    return count_processes() == 1 or distributed.get_rank() == 0


def wait() -> None:
    """Wait until every process is here."""
    if count_processes() > 1:
        _add_up(torch.zeros(1))


@contextlib.contextmanager
def first_ahead() -> Iterator[None]:
    """The first process runs the block before the others, so that they find what it downloads or caches."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def local() -> tuple[int, int]:
    """The index of this process on its machine, and the number of processes there."""
    return (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if count_processes() > 1 else (0, 1)


@dataclass(frozen=True)
class Share:
    """What a process computes of every batch.

    A batch has parts of equal size, each normalised by itself: one a process, or several.

    Attributes:
        process: the number of this one.
        processes: how many there are.
        parts: of a batch, in all processes together.
    """

    process: int = 0
    processes: int = 1
    parts: int = 1

    def rows(self, batch: slice) -> slice:
        """The rows of a batch that this process takes."""
        size = (batch.stop - batch.start) // self.processes
        return slice(batch.start + self.process * size, batch.start + (self.process + 1) * size)

    def split(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """The rows of this process, part by part; None stays None."""
        many = self.parts // self.processes
        return zip(*([None] * many if each is None else each.chunk(many) for each in tensors), strict=True)

    def mean(self, parts: Iterable[Sequence[Tensor]]) -> list[Tensor]:
        """The mean of float32 tensors over all parts of a batch, given those of this process's parts."""
        if self.parts == 1:
            (only,) = parts
            return list(only)
        total: Any = 0
        for tensors in parts:
            total = total + torch.cat([each.reshape(-1) for each in tensors])
        if self.processes > 1:
            _add_up(total)
        means = torch.split(total / self.parts, [each.numel() for each in tensors])
        return [mean.view(each.shape) for mean, each in zip(means, tensors, strict=True)]


ALONE = Share()


def choose_share(parts: int | None) -> Share:
    """That of this process; without a number of parts a batch has one a process.

    Raises:
        DmsflowError: the parts cannot be shared out evenly.
    """
    many = count_processes()
    if parts and parts % many:
        raise DmsflowError(f"batch_parts {parts}", f"is not a multiple of the {many} processes", f"use {many}")
    return Share(distributed.get_rank() if many > 1 else 0, many, parts or many)


def _add_up(tensor: Tensor) -> None:
    """Make a tensor the sum of those of all processes."""
    try:
        distributed.all_reduce(tensor)
    except RuntimeError as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        what = f"a process lost its connection to the others ({why})"
        raise DmsflowError("torchrun", what, "start again with --resume") from error

"""Sets of searches and trainings that several processes share and any of them can go on with.

A job is a choice of widths and a training of the network chosen. What it writes is in a folder of
its own: choices by their name, trainings by widths, schedule and seed, so that a network which two
studies need is trained once. A process that works on a folder holds a lock on it; the lock goes
with the process, so one that was killed leaves work for the next, which resumes it.

    torchrun --nproc-per-node 2 benchmarks/….py …

spreads a study over processes; so does starting it twice. Machines can share a study too: a job that has a row in the
results file is not run again, and its row stays as it is. To have it run again, remove the row.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from dmsflow import settings
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.manifest import Flow, Manifest, load_manifest
from dmsflow.searching import search
from dmsflow.settings import Data
from dmsflow.training import train

WAIT_SECONDS = 5.0
RESULTS = Path(__file__).parent.parent / "docs" / "results"
KEY = ("choice", "seed", "epochs", "precision", "train_images")  # which row it is
# The recipe of trainings and of searches until 2026-11-29, by which the rows of budgets.py, ablations.py and table1.py's
# protocol `quick` were trained: those that are still to come are trained alike.
FORMER_TRAIN = {"optimiser": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4, "centred": False, "crop": 1.0}
FORMER_SEARCH = {**FORMER_TRAIN, "learning_rate": 0.05, "learning_rate_end": 0.01}
STEM = "float"  # unless a study varies it: rows have it from before there was a choice, and budgets suit its times
KEPT = ("versions", "processor", "cores", "torch_device", "threads", "mixed", "commit", "date")


@dataclass(frozen=True)
class Job:
    """One network: how its widths are chosen, and how it is trained.

    Attributes:
        choice: folder of the choice: "vgg11/0.078MiB+16M/searched-0".
        search, train: settings that are not the defaults; seeds among them.
    """

    choice: str
    search: dict[str, Any] = field(hash=False)
    train: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Runs:
    """Where jobs run, and what is known of those that ran elsewhere.

    Attributes:
        out: folder of all of them.
        threads: of each process.
        device: where it computes.
        published: rows of the results file as it was, by `_key`: of jobs whose folders are on another machine.
    """

    out: Path
    data: Data
    threads: int
    device: str = "auto"
    published: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def chosen(self, job: Job) -> Path:
        return self.out / "choices" / job.choice / "search.json"

    def trained(self, job: Job) -> Path:
        """Path of the train manifest of a job whose widths are chosen; ends the program if they were chosen otherwise."""
        found = load_manifest(self.chosen(job), "search")
        asked = {**job.search, "train_images": self.data.train_images}
        had = {**_present_settings(found.settings), "train_images": found.data.train_images}
        for name in (name for name, value in asked.items() if had.get(name) != value):
            sys.exit(
                f"{self.chosen(job)}: has {name} {had.get(name)}, not {asked[name]}; remove its folder, or give another --out"
            )
        course = msgspec.json.encode((job.train, self.data.train_images), order="sorted")
        schedule = hashlib.sha256(course).hexdigest()[:8]
        widths = "-".join(map(str, found.widths.values()))
        return self.out / "trainings" / f"{found.network.name}-{widths}" / schedule / "train.json"


def _present_settings(recorded: dict[str, Any]) -> dict[str, Any]:
    """Search settings as they are named now; the search as published had settings of its own before it had a name."""
    found = settings.with_present_names(recorded)
    if (found.get("estimator"), found.get("hold")) == ("clustered", "penalty"):
        found["method"] = "published"
    return found


def done(job: Job, where: Runs) -> bool:
    """Whether both the choice and the training are finished."""
    return where.chosen(job).exists() and where.trained(job).exists()


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Those of every study."""
    parser.add_argument("--dataset", required=True, help="as in dmsflow search: cifar10, or image-folder:PATH")
    parser.add_argument("--data-dir", help="as in dmsflow search")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of all runs; done ones are kept")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: the cores, shared out evenly")
    parser.add_argument("--tabulate", action="store_true", help="run nothing; write what is done")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results file")


def runs(name: str, arguments: argparse.Namespace, train_images: int | None) -> Runs:
    """Of the study that writes the results file `name`."""
    directory = {} if arguments.data_dir is None else {"data_dir": arguments.data_dir}
    data = settings.resolve(Data, name=arguments.dataset, train_images=train_images, **directory)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    threads = arguments.threads or max(1, (os.cpu_count() or 1) // processes)
    return Runs(arguments.out, data, threads, _device(), _published(_results_file(name, arguments)))


def _results_file(name: str, arguments: argparse.Namespace) -> Path:
    return Path(arguments.results) / f"{name}.json"


def _published(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Every row that a results file holds, by `_key`."""
    return {tuple(part[key] for key in KEY): part for part in objects(path) if part.keys() >= set(KEY)}


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """Every JSON object of a results file, rows among them, wherever in it; none where there is no file.

    Raises:
        DmsflowError: the file is damaged.
    """
    try:
        inside = [msgspec.json.decode(path.read_bytes())] if path.exists() else []
    except msgspec.DecodeError as error:
        raise DmsflowError(path, f"is not JSON ({error})", "remove it, or take it from git again") from error
    while inside:
        part = inside.pop()
        if isinstance(part, dict):
            yield part
            inside += part.values()
        elif isinstance(part, list):
            inside += part


def _key(job: Job, where: Runs) -> tuple[Any, ...]:
    """Of a job's row."""
    course = settings.resolve(settings.TrainSettings, **job.train)
    return job.choice, course.seed, course.epochs, course.precision, where.data.train_images


def _device() -> str:
    """Of several GPUs, torchrun's processes take one each."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "auto"


def study(
    name: str, waves: Iterable[Sequence[Job]], tabulate: Callable[[], Any], where: Runs, arguments: argparse.Namespace
) -> None:
    """Run wave after wave of jobs, unless they are only to be tabulated; then the first process writes what is done.

    Args:
        name: of the results file, from which docs/results.py writes its page.
        waves: the next one is asked for when all of those before it is done.
        tabulate: content of the results file.
    """
    if not arguments.tabulate:
        for wave in waves:
            run(wave, where)
    if os.environ.get("RANK", "0") == "0":
        content = msgspec.json.format(msgspec.json.encode(tabulate()), indent=1)
        write_atomically(_results_file(name, arguments), content + b"\n")


def run(jobs: Sequence[Job], where: Runs) -> None:
    """Do what is not done of some jobs, here or elsewhere, beside other processes; returns when all of it is done."""
    left = [job for job in dict.fromkeys(jobs) if _key(job, where) not in where.published]
    while left:
        left = [job for job in left if not _try(job, where)]
        if left:  # others are at these
            time.sleep(WAIT_SECONDS)


def _try(job: Job, where: Runs) -> bool:
    """Whether a job is done now; False where another process holds it."""
    common = {"threads": where.threads, "device": where.device}
    if not (path := where.chosen(job)).exists():
        with lock(path.parent) as free:
            if not free:
                return False
            with _announce(path):
                asked = {"stem": STEM, **job.search, **common}
                chosen = settings.resolve(settings.SearchSettings, **asked)
                search.run_stage(where.data, chosen, path.parent, Flow(tuple(sys.argv), resume=True))
    if not (path := where.trained(job)).exists():
        with lock(path.parent) as free:
            if not free:
                return False
            with _announce(path):
                schedule = settings.resolve(settings.TrainSettings, **job.train, **common)
                train.run_stage(_source(job, where, path), schedule, path.parent, Flow(tuple(sys.argv), resume=True))
    return True


def _source(job: Job, where: Runs, trained: Path) -> Path:
    """The choice that a training began from: another job may have left it half done for this one."""
    note = trained.with_name("choice")
    if not note.exists():
        note.write_text(job.choice)
    return where.chosen(Job(note.read_text(), {}, {}))


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Whether this process alone may work in a folder, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _announce(path: Path) -> Iterator[None]:
    print(f"{time.strftime('%H:%M:%S')} {path.parent}", file=sys.stderr, flush=True)
    try:
        yield
    except DmsflowError as error:
        sys.exit(f"{path.parent}: {error}")


def row(job: Job, where: Runs) -> dict[str, Any] | None:
    """What is kept of a finished job: from its folder, or as the results file has it where it ran elsewhere."""
    return _row(job, where) if done(job, where) else where.published.get(_key(job, where))


def _row(job: Job, where: Runs) -> dict[str, Any]:
    found, done = load_manifest(where.chosen(job), "search"), load_manifest(where.trained(job), "train")
    return {
        "choice": job.choice,
        "network": found.network.name,
        "widths": list(found.widths.values()),
        "memory_mib": done.metrics["memory_mib"],
        "macs_m": found.metrics["macs_m"],
        "top1_percent": done.metrics["top1_percent"],
        "seed": done.settings["seed"],
        "search_seconds": found.metrics["seconds"],
        "train_seconds": done.metrics["seconds"],
        "epochs": done.settings["epochs"],
        "train_images": found.data.train_images,
        "precision": done.settings["precision"],
        "comparison": found.metrics.get("comparison"),
        "chosen": found.metrics.get("chosen"),
        "environment": _environment(found, done),
    }


def _environment(found: Manifest, done: Manifest) -> dict[str, Any]:
    kept = {key: value for key, value in done.environment.items() if key in KEPT}
    return {**kept, "search_commit": found.environment.get("commit")}


def finished(jobs: Iterable[Job], where: Runs) -> list[dict[str, Any]]:
    """What is kept of those jobs that are done; the others are left out."""
    return [found for job in jobs if (found := row(job, where)) is not None]

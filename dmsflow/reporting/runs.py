"""What is known of a run: its manifests, files and costs; and runs that differ only in their seed, as a group."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Manifest
from dmsflow.network import cost, profile
from dmsflow.network.network import Network
from dmsflow.settings import RENAMED_METHODS, with_present_names
from dmsflow.terminal import format_threads

BASELINES = ("balanced", "uniform", "equal", "interpolated", "random")  # methods that fill the budgets without a search
BUDGET_UNITS = {"memory_mib": "MiB", "macs_m": "M MACs", "file_kib": "KiB of file", "latency_ms": "ms"}


@dataclass(frozen=True)
class File:
    """One file of a run on one device: its export and its bench, where they are there."""

    stages: Mapping[str, Manifest]

    @property
    def target(self) -> str | None:
        return self.stages["export"].settings["target"] if "export" in self.stages else None

    @property
    def metrics(self) -> dict[str, Any]:
        return {name: value for each in self.stages.values() for name, value in each.metrics.items()}

    @property
    def precision(self) -> str | None:
        """Of its weights: "1-bit", "float32" or "int8"; an earlier version did not record it."""
        return self.stages["export"].metrics.get("precision") if "export" in self.stages else None

    @property
    def machine(self) -> str:
        """Of its bench: as `platform`, without the runtime."""
        environment = self.stages["bench"].environment
        machine = measured_machine(environment)
        words = [machine.get("processor"), format_threads(environment.get("threads", 1))]
        return ", ".join(filter(None, (*words, "modelled" if machine.get("method") == "modelled" else "")))

    @property
    def platform(self) -> str | None:
        """Of its bench: processor, runtime and threads, and the word where nothing was measured."""
        if "bench" not in self.stages:
            return None
        environment = self.stages["bench"].environment
        machine = measured_machine(environment)
        runtimes = [used for label, used in environment.get("runtimes", {}).items() if label not in ("float32", "int8")]
        words = [machine.get("processor"), *runtimes, format_threads(environment.get("threads", 1))]
        return ", ".join(filter(None, (*words, "modelled" if machine.get("method") == "modelled" else "")))


@dataclass(frozen=True)
class Run:
    """One search with its training, as far as they went.

    Attributes:
        stages: the manifests of its longest chain by their stage, the last one last.
        last: the last of them, whose network, widths and data are those of the run.
        sha256: of the manifest that its files are made from: two runs with the same one are the same.
        files: what was exported of it, for each target, and measured, on each device.
        used_profile: the one that the search predicted latency with.
        rounds: a record a round of the search's log; none of a baseline.
        is_running: the search is not finished, or was interrupted.
        label: of this run among those it was collected with.
    """

    stages: Mapping[str, Manifest]
    last: Manifest
    folder: Path
    sha256: str
    files: Sequence[File] = ()
    used_profile: profile.Profile | None = None
    rounds: Sequence[Mapping[str, Any]] = ()
    is_running: bool = False
    label: str = ""

    @property
    def network(self) -> Network:
        return self.last.network

    @property
    def widths(self) -> dict[str, int]:
        return self.last.widths

    def settings(self, stage: str) -> dict[str, Any]:
        """As the stage resolved them, in present names; empty if it is not in the chain."""
        return with_present_names(self.stages[stage].settings) if stage in self.stages else {}

    def metrics(self, stage: str) -> dict[str, Any]:
        """What the stage found, in present names; empty if it is not in the chain."""
        found = with_present_methods(self.stages[stage].metrics) if stage in self.stages else {}
        try:
            msgspec.convert(found.get("comparison") or None, _Compared)
        except msgspec.ValidationError as error:
            where = f"{self.folder}: {stage}.json: comparison"
            raise DmsflowError(where, str(error), "run the stage that writes the file again") from error
        return found

    @property
    def method(self) -> str:
        return str(self.settings("search").get("method", "unknown"))

    @property
    def binary(self) -> bool:
        return bool(self.settings("train").get("precision", "binary") == "binary")

    @property
    def limits(self) -> dict[str, float]:
        """The budgets of the search, by setting; without any, the memory of the base network (as in the search)."""
        given = self.settings("search")
        limits = {name: float(given[name]) for name in BUDGET_UNITS if given.get(name) is not None}
        if limits or not given:
            return limits
        return {"memory_mib": costs_of(self.network, self.network.widths)[0]}

    @property
    def costs(self) -> tuple[float, float]:
        """Memory in MiB and million MACs of its widths."""
        return costs_of(self.network, self.widths, binary=self.binary)

    @property
    def top1_percent(self) -> float | None:
        """Of the trained network on the test split, or else of its file."""
        names = {"train": "top1_percent", "export": "trained_top1_percent", "bench": "top1_percent"}
        values = (self.metrics(stage).get(name) for stage, name in names.items())
        return next((value for value in values if value is not None), None)

    @property
    def seeds(self) -> tuple[object, ...]:
        """Of search and training; random widths are a draw, which is the same however it is trained."""
        known = tuple(self.settings(stage).get("seed") for stage in ("search", "train"))
        return (self.sha256,) if known == (None, None) else known[:1] if self.method == "random" else known

    @property
    def is_modelled(self) -> bool:
        """Whether its search predicted milliseconds with a profile that nobody measured."""
        return self.used_profile is not None and self.used_profile.method == "modelled"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: method and budgets, and a folder where another group has the same: "gradient, 0.08 MiB".
        budgets: the label without the method, equal for a search and its baselines.
        colour: number of its colour: one for each set of budgets, or for each group where budgets are the same.
    """

    label: str
    budgets: str
    runs: tuple[Run, ...]
    colour: int = 0

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def is_searched(self) -> bool:
        return self.method not in BASELINES

    @property
    def is_running(self) -> bool:
        return self.runs[0].is_running

    def results(self) -> list[tuple[float, float, float]]:
        """Memory (MiB), million MACs and top-1 (%) of each seed that is trained; the mean where one is there twice."""
        results: dict[object, list[tuple[float, float, float]]] = {}
        for run in self.runs:
            if run.top1_percent is not None:
                results.setdefault(run.seeds, []).append((*run.costs, run.top1_percent))
        return [(rows[0][0], rows[0][1], statistics.fmean(row[2] for row in rows)) for rows in results.values()]


def costs_of(network: Network, widths: Mapping[str, int], *, binary: bool = True) -> tuple[float, float]:
    """Memory in MiB, and million multiply-accumulates for one image."""
    memory = cost.memory_bytes(network, widths, binary=binary)
    return float(memory / cost.MIB), float(cost.macs(network, widths) / 1e6)


class _Row(msgspec.Struct, kw_only=True):
    """What a report reads of a row of the comparison at the end of a search."""

    name: str
    widths: dict[str, int]
    loss: float
    top1_percent: float
    loss_difference: float
    standard_error: float
    images: int
    memory_mib: float
    macs_m: float
    budgets_used: dict[str, float] | None = None


_Compared = Annotated[list[_Row], Meta(min_length=2)] | None  # the searched widths and a baseline


def with_present_methods(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, also of an earlier version, with the baselines of a search as they are called now.

    >>> with_present_methods({"chosen": "flat", "comparison": [{"name": "flat", "loss": 1.0}]})
    {'chosen': 'equal', 'comparison': [{'name': 'equal', 'loss': 1.0}]}
    """
    renamed = dict(metrics)
    if "chosen" in renamed:
        renamed["chosen"] = RENAMED_METHODS.get(renamed["chosen"], renamed["chosen"])
    if renamed.get("comparison"):
        rows = renamed["comparison"]
        renamed["comparison"] = [{**row, "name": RENAMED_METHODS.get(row["name"], row["name"])} for row in rows]
    return renamed


def uniform_widths(run: Run) -> dict[str, int] | None:
    """Widths of the uniform network within the budgets of a run, which its search compared with, if it did."""
    rows = run.metrics("search").get("comparison") or ()
    uniform = next((row["widths"] for row in rows if row["name"] == "uniform"), None)
    return uniform if uniform and [*uniform] == [*run.widths] else None

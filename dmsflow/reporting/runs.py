"""Finished runs and running searches: where they are, their results, and which differ only in their seed."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from dmsflow import manifest
from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.files import UNREADABLE, hash_file, read_bytes
from dmsflow.importing import load_network
from dmsflow.manifest import Chain, Manifest
from dmsflow.network import cost, profile
from dmsflow.network.network import Network, read_network
from dmsflow.plugin import check_trusted
from dmsflow.settings import RENAMED_METHODS, Data, SearchSettings, TrainSettings, with_present_names
from dmsflow.terminal import format_threads, print_line

BASELINES = ("balanced", "uniform", "equal", "interpolated", "random")  # methods that fill the budgets without a search
# Settings that say where a run was made and with which random numbers, not what it looks for.
IGNORED_SETTINGS = ("seed", "device", "threads", "amp", "out")


Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]


class Round(TypedDict):
    """A row of a search's log; lists have a number for each width."""

    round: int
    weight_loss: Finite
    widths: dict[str, Annotated[int, Meta(ge=1, le=1 << 31)]]
    memory_mib: Finite
    macs_m: Finite
    weight_top1_percent: NotRequired[Finite]
    width_loss: NotRequired[Finite]
    width_top1_percent: NotRequired[Finite]
    file_kib: NotRequired[Finite]
    predicted_latency_ms: NotRequired[Finite]
    mu: NotRequired[list[Finite]]
    sigma: NotRequired[list[Finite]]
    gradient: NotRequired[list[Finite]]
    gradient_error: NotRequired[list[Finite]]


LOG = msgspec.json.Decoder(dict[str, Any])  # of each line, a round
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
    def platform(self) -> str | None:
        """Of its bench: processor, runtime and threads, and the word where nothing was measured."""
        if "bench" not in self.stages:
            return None
        environment = self.stages["bench"].environment
        machine = measured_machine(environment)
        runtimes = [runtime for label, runtime in environment.get("runtimes", {}).items() if label != "float32"]
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


# --- where they lie -----------------------------------------------------------------------------


def collect(paths: Sequence[Path]) -> list[Group]:
    """The runs in folders and files, in groups that differ in their seed alone: searches first, then baselines.

    Chains that are made from one training are one run with several files. What cannot be read is left out, with a line.

    Args:
        paths: folders of a run, folders of such folders, manifests, or the log of a running search.

    Raises:
        DmsflowError: nothing there, no manifest in a folder, or none that can be read.
    """
    lasts = {last.resolve(): last for path in paths for last in find_lasts(path)}
    runs, chains, errors = list[Run](), dict[Path, Chain](), list[DmsflowError]()
    for path, last in lasts.items():
        try:
            if last.suffix == ".jsonl":
                runs.append(read_running(last))
            else:
                chains[path] = manifest.chain(last, whole=False)
        except DmsflowError as error:
            errors.append(error)
    if not runs and not chains:
        raise errors[0]
    for each in errors:
        print_line(f"left out: {each}")
    parents = {path.resolve() for chain in chains.values() for path, _ in chain[:-1]}
    same: dict[str, list[Chain]] = {}
    for path, chain in chains.items():
        if path not in parents:
            made = [at for at, each in chain if each.stage in ("search", "train")]
            same.setdefault(hash_file(made[-1] if made else path), []).append(chain)
    runs += [_join(sha256, found) for sha256, found in same.items()]
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(_group_key(run), []).append(run)
    groups = sorted(_labelled([*grouped.values()]), key=lambda group: not group.is_searched)
    budgets = list(dict.fromkeys(group.budgets for group in groups))
    colours = (budgets.index(group.budgets) if len(budgets) > 1 else number for number, group in enumerate(groups))
    return [replace(group, colour=colour) for group, colour in zip(groups, colours, strict=True)]


def _join(sha256: str, chains: Sequence[Chain]) -> Run:
    """The run that chains are of, which have search and training in common."""
    longest = max(chains, key=len)
    search = longest[:1] if longest[0][1].stage == "search" else []
    log, used = manifest.inherited(search, "log"), manifest.inherited(search, "profile")
    stages: dict[str, Manifest] = {each.stage: each for _, each in longest}
    files = [File({each.stage: each for _, each in chain if each.stage in ("export", "bench")}) for chain in chains]
    files = [file for file in files if file.stages]
    used_profile = profile.load_profile(str(used)) if used else None
    at, last = longest[-1]
    rounds = read_log(log, last.network) if log else ()
    return Run(stages, last, at.parent, sha256, files, used_profile, rounds)


def read_log(log: Path, network: Network) -> list[dict[str, Any]]:
    """The rounds of a search's log.

    Raises:
        DmsflowError: it is damaged, or was written for another network.
    """
    try:
        rounds = LOG.decode_lines(read_bytes(log))
        for row in rounds:
            msgspec.convert(row, Round)
            moved = [row.get(name, ()) for name in ("mu", "sigma", "gradient", "gradient_error") if "gradient" in row]
            if any(len(each) != len(network.widths) for each in moved):
                raise msgspec.ValidationError(f"round {row['round']} does not have a number for each width")
    except UNREADABLE as error:
        raise DmsflowError(log, f"is damaged ({error})", "continue the search: --resume writes it again") from error
    return rounds


def read_running(log: Path) -> Run:
    """A search that is not finished: its log, and its settings from its checkpoint.

    Neither says which images it has; what its network costs is in the log.

    Raises:
        DmsflowError: there is no checkpoint.
    """
    saved = log.with_name("search.checkpoint")
    try:
        with safe_open(saved, "numpy") as file:
            settings = with_present_names(msgspec.json.decode(file.metadata()["facts"])["settings"])
    except (OSError, SafetensorError, *UNREADABLE, TypeError, KeyError, AttributeError) as error:
        what = f"is the log of a search that is not finished, and {saved.name} is missing or damaged"
        raise DmsflowError(log, what, "search again with --force") from error
    name = str(settings["network"])
    check_trusted(saved, name)
    # For its base widths, which any images leave as they are.
    network = read_network(Path(name)) if name.endswith(".json") else load_network(name, 3, 32, 10)
    rounds = read_log(log, network)
    if not rounds:
        raise DmsflowError(log, "has no round yet", "wait for the first one")
    unknown: Any = {"command": (), "data": Data(name=""), "metrics": {}, "environment": {}}
    search = Manifest(stage="search", settings=settings, network=network, widths=rounds[-1]["widths"], **unknown)
    return Run({"search": search}, search, log.parent, hash_file(log), rounds=rounds, is_running=True)


def find_lasts(path: Path) -> list[Path]:
    """The last manifest of every run in a folder and its folders; of a search that is not finished, its log."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DmsflowError(path, "no such file or folder", "give the folder of a run, or a manifest")
    names = ("search.jsonl", *(f"{stage}.json" for stage in manifest.STAGES))
    found = [file for name in names for file in path.rglob(name)]
    lasts = {file.parent: file for file in found if file.parent in (path, manifest.home(file.parent))}
    if not lasts:
        right = f"give a folder with one of {', '.join(names[1:])}, or a folder of such folders"
        raise DmsflowError(path, "has no manifest", right)
    return sorted(lasts.values())


# --- groups -------------------------------------------------------------------------------------


def _group_key(run: Run) -> str:
    """Canonical JSON of what decides the result, except for seeds.

    A setting at its default counts as absent, since manifests of earlier versions lack some.
    """
    data = run.last.data
    facts: dict[str, Any] = {"network": run.network.name, "data": [data.name, data.train_images, data.resolution]}
    for stage, defaults in (("search", SearchSettings()), ("train", TrainSettings())):
        usual = msgspec.json.decode(msgspec.json.encode(defaults))
        facts[stage] = {
            name: value
            for name, value in run.settings(stage).items()
            if name not in IGNORED_SETTINGS and value != usual.get(name)
        }
    return json.dumps(facts, sort_keys=True)


def _labelled(grouped: Sequence[Sequence[Run]]) -> list[Group]:
    """Each group by its method and budgets, its runs by their folders; so are groups that have the same label."""
    root = Path(os.path.commonpath([run.folder.resolve() for runs in grouped for run in runs]))

    def with_folder(text: str, run: Run) -> str:
        own = run.folder.resolve()
        return f"{text} ({root.name if own == root else own.relative_to(root).as_posix()})".strip()

    names = [
        (first.method, " + ".join(f"{limit:.4g} {BUDGET_UNITS[name]}" for name, limit in first.limits.items()))
        for first, *_ in grouped
    ]
    groups = []
    for (method, budgets), runs in zip(names, grouped, strict=True):
        label = name = f"{method}, {budgets}" if budgets else method
        if names.count((method, budgets)) > 1 or not budgets:
            label, budgets = with_folder(name, runs[0]), with_folder(budgets, runs[0])
        members = (replace(run, label=with_folder(name, run) if len(runs) > 1 else label) for run in runs)
        groups.append(Group(label, budgets, tuple(members)))
    return groups

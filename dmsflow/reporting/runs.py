"""Finished chains told side by side: where they lie, which settings tell them apart, which differ in their seed alone."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import msgspec

from dmsflow import manifest
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Chain, Manifest
from dmsflow.network import cost, profile
from dmsflow.network.latency import build_latency
from dmsflow.network.network import Network
from dmsflow.searching.budget import Budgets
from dmsflow.settings import SearchSettings, resolve, with_present_names

STAGES: tuple[str, ...] = get_args(manifest.Stage)
SEARCHED = ("gradient", "published", "evolution")  # methods that choose widths by what a network has learnt
BASELINES = ("uniform", "equal", "interpolated", "random")
# Settings that change no result, and those that only repeat another one with other noise.
WHERE = ("device", "threads", "amp", "out")
SEED = "seed"
# Settings that a baseline reads; all others are a search's.
OF_BASELINES = ("network", "method", "memory_mib", "macs_m", "latency_ms", "min_ratio", "max_ratio")
OF_BUDGETS = ("memory_mib", "macs_m", "latency_ms", "min_ratio", "max_ratio")
LIMITS = {"memory_mib": "MiB", "macs_m": "M MACs", "latency_ms": "ms"}
WORDS = 4  # settings that a label tells; any more of them are told by the folder
ROW = {"round": int, "mu": list, "sigma": list, "widths": dict, "memory_mib": float, "macs_m": float}


@dataclass(frozen=True)
class Run:
    """One chain, as far as it went.

    Attributes:
        path: of the last manifest.
        stages: the manifests by their stage.
        rounds: a record a round of the search's log; none where there was nothing to search.
        label: of this run among those it was collected with.
    """

    path: Path
    stages: Mapping[str, Manifest]
    paths: Mapping[str, Path]
    rounds: tuple[dict[str, Any], ...] = ()
    label: str = ""

    @property
    def last(self) -> Manifest:
        return list(self.stages.values())[-1]

    @property
    def network(self) -> Network:
        return self.last.network

    @property
    def widths(self) -> dict[str, int]:
        return self.last.widths

    def settings(self, stage: str) -> dict[str, Any]:
        """As the stage resolved them; empty if it is not in the chain."""
        return with_present_names(self.stages[stage].settings) if stage in self.stages else {}

    def metrics(self, stage: str) -> dict[str, Any]:
        return self.stages[stage].metrics if stage in self.stages else {}

    @property
    def method(self) -> str:
        return str(self.settings("search").get("method", "unknown"))

    @property
    def binary(self) -> bool:
        return bool(self.settings("train").get("precision", "binary") == "binary")

    @property
    def limits(self) -> dict[str, float]:
        """The budgets of the search, by setting; without any, the memory of the base network (as in the search)."""
        asked = self.settings("search")
        found = {name: float(asked[name]) for name in LIMITS if asked.get(name) is not None}
        if found or not asked:
            return found
        return {"memory_mib": cost.memory_bytes(self.network, self.network.widths) / cost.MIB}

    @property
    def memory_mib(self) -> float:
        return float(cost.memory_bytes(self.network, self.widths, binary=self.binary) / cost.MIB)

    @property
    def macs_m(self) -> float:
        return float(cost.macs(self.network, self.widths) / 1e6)

    @property
    def top1_percent(self) -> float | None:
        """Of the trained network on the test split, or else of its file."""
        return next(
            (
                metrics[name]
                for stage, name in (
                    ("train", "top1_percent"),
                    ("export", "trained_top1_percent"),
                    ("bench", "top1_percent"),
                )
                if (metrics := self.metrics(stage)).get(name) is not None
            ),
            None,
        )

    @cached_property
    def used_profile(self) -> profile.Profile | None:
        """The one that the search predicted latency with."""
        search = self.stages.get("search")
        if search is None or "profile" not in search.artifacts:
            return None
        return profile.load_profile(str(manifest.verify(self.paths["search"], search.artifacts["profile"])))

    @property
    def predicts_modelled(self) -> bool:
        """Whether its search held milliseconds that nobody measured."""
        return self.used_profile is not None and self.used_profile.method == "modelled"

    def uniform(self) -> dict[str, int] | None:
        """Widths of the uniform network within the same budgets: the search's own, or else by its budgets."""
        for row in self.metrics("search").get("comparison") or ():
            if row["name"] == "uniform":
                return dict(row["widths"])
        return _uniform(self) if self.limits else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: the settings that tell it from the others.
        rest: the label without the method, equal for a search and the baselines held to the same budgets.
    """

    label: str
    rest: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def searched(self) -> bool:
        return self.method in SEARCHED

    def top1_percent(self) -> list[float]:
        """Of each run; where networks are drawn at random, the mean of each draw, however often it was trained."""
        if self.method != "random":
            return [run.top1_percent for run in self.runs if run.top1_percent is not None]
        draws: dict[tuple[int, ...], list[float]] = {}
        for run in self.runs:
            if run.top1_percent is not None:
                draws.setdefault(tuple(run.widths.values()), []).append(run.top1_percent)
        return [statistics.fmean(draw) for draw in draws.values()]

    def mean(self, name: str) -> float:
        """Of an attribute of its runs: "memory_mib", "macs_m"."""
        return statistics.fmean(getattr(run, name) for run in self.runs)


def _uniform(run: Run) -> dict[str, int] | None:
    """By the budgets of the search; None where they are none that this version can read."""
    asked = {name: value for name, value in run.settings("search").items() if name in OF_BUDGETS and value is not None}
    try:
        latency = build_latency(run.network, run.used_profile) if run.used_profile else None
        budgets = Budgets.from_settings(resolve(SearchSettings, **asked), run.network, latency)
    except DmsflowError:
        return None
    return budgets.round_within(budgets.uniform())


# --- where they lie -----------------------------------------------------------------------------


def collect(paths: Sequence[Path]) -> list[Run]:
    """The runs in folders and files, in the order of their paths, each labelled by what tells it from the others.

    Args:
        paths: folders of a run, folders of such folders, or manifests.

    Raises:
        DmsflowError: nothing there, no manifest in a folder, or one that is damaged.
    """
    found: dict[Path, Chain] = {}
    for path in paths:
        for last in _manifests(path):
            if last.resolve() not in found:
                found[last.resolve()] = manifest.chain(last, whole=False)
    parents = {path.resolve() for chain in found.values() for path, _ in chain[:-1]}
    return _labelled([_run(chain) for last, chain in found.items() if last not in parents])


def _manifests(path: Path) -> list[Path]:
    """The last manifest of every run in a folder and its folders."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DmsflowError(path, "no such file or folder", "give the folder of a run, or a manifest")
    lasts: dict[Path, Path] = {}
    for stage in STAGES:
        lasts |= {file.parent: file for file in path.rglob(f"{stage}.json")}
    if not lasts:
        names = ", ".join(f"{stage}.json" for stage in STAGES)
        raise DmsflowError(path, "holds no manifest", f"give a folder with one of {names}, or of such folders")
    return sorted(lasts.values(), key=natural)


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """A key that sorts draw-2 before draw-10."""
    parts = filter(None, re.split(r"([0-9]+)", str(path)))
    return [(False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts]


def _run(chain: Chain) -> Run:
    stages: dict[str, Manifest] = {each.stage: each for _, each in chain}
    paths: dict[str, Path] = {each.stage: path for path, each in chain}
    log = stages["search"].artifacts.get("log") if "search" in stages else None
    rounds = tuple(_rounds(manifest.verify(paths["search"], log), stages["search"])) if log else ()
    return Run(chain[-1][0], stages, paths, rounds)


def _rounds(path: Path, search: Manifest) -> Iterator[dict[str, Any]]:
    """Rows of search.jsonl, each with all that a figure must have."""
    right = "search again; a log is written whole, after every round"
    count = len(search.network.widths)
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DmsflowError(path, f"line {number} is not a record ({error})", right) from error
        for name, kind in ROW.items():
            if not isinstance(row.get(name), kind) or (kind is list and len(row[name]) != count):
                raise DmsflowError(path, f"line {number} has no good {name!r}", right)
        yield row


# --- what tells them apart ----------------------------------------------------------------------


def groups(runs: Iterable[Run]) -> list[Group]:
    """Runs by all their settings but the seeds, in the order of the first of each."""
    runs = list(runs)
    names = _differing(runs)
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        facts = _facts(run)
        found.setdefault(tuple(repr(facts.get(name)) for name in names), []).append(run)
    made = [_group(members, names) for members in found.values()]
    labels = [group.label for group in made]
    clash = {group.label for group in made if labels.count(group.label) > 1 or "search" not in group.runs[0].stages}
    root = _root(runs)
    return [
        replace(group, label=f"{group.label} ({_folder(group.runs[0], root)})") if group.label in clash else group
        for group in made
    ]


def _group(members: list[Run], names: Sequence[str]) -> Group:
    facts = _facts(members[0])
    words = [_spelled(name, facts[name]) for name in names if name not in ("method", *LIMITS) and name in facts]
    words = [*words[:WORDS], "…"] if len(words) > WORDS else words
    budgets = _budgets(members[0]) if set(names) & set(LIMITS) else ""
    rest = ", ".join(filter(None, (budgets, *words)))
    method = members[0].method if "method" in names or not rest else ""
    return Group(", ".join(filter(None, (method, rest))), rest, tuple(members))


def _budgets(run: Run) -> str:
    """The budgets in a few words: `0.08 MiB + 16 M MACs`."""
    return " + ".join(f"{limit:.4g} {LIMITS[name]}" for name, limit in run.limits.items())


def _differing(runs: Sequence[Run]) -> list[str]:
    """Facts of which there is more than one value; a setting that older manifests lack is none."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in _facts(run).items():
            values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1]


def _facts(run: Run) -> dict[str, Any]:
    """All that decides what a run finds, but seeds."""
    data = run.last.data
    facts: dict[str, Any] = {"network": run.network.name, "data": data.name}
    facts |= {name: getattr(data, name) for name in ("train_images", "resolution")}
    search, skipped = run.settings("search"), {SEED, *WHERE}
    if search.get("latency_ms") is None:
        skipped.add("profile")
    baseline = run.method in BASELINES
    facts |= {
        name: value for name, value in search.items() if name not in skipped and (name in OF_BASELINES or not baseline)
    }
    facts |= {name: search.get(name) for name in LIMITS if search}
    for name, value in run.settings("train").items():
        if name not in skipped:
            facts[name if name == "precision" else f"training {name}"] = value
    return facts


def _spelled(name: str, value: Any) -> str:
    """A setting in words: `best effort`, `no best effort`, `step size 0.2`, `resnet18`."""
    plain = name.replace("_", " ")
    if isinstance(value, bool):
        return plain if value else f"no {plain}"
    if value is None:
        return f"{plain} not set"
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return str(value) if name in ("network", "data") else f"{plain} {value}"


def _labelled(runs: list[Run]) -> list[Run]:
    root = _root(runs)
    if len(runs) == 1:
        name = runs[0].path.resolve().parent.name or runs[0].method
        return [replace(runs[0], label=name)]
    labels = {}
    for group in groups(runs):
        for run in group.runs:
            labels[run.path] = f"{group.label}, {_seeds(run)}" if len(group.runs) > 1 else group.label
    twice = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return [
        replace(
            run, label=f"{labels[run.path]} ({_folder(run, root)})" if labels[run.path] in twice else labels[run.path]
        )
        for run in runs
    ]


def _seeds(run: Run) -> str:
    """The seed, or both where search and training have their own."""
    seeds = {stage: run.settings(stage)[SEED] for stage in ("search", "train") if SEED in run.settings(stage)}
    if len(set(seeds.values())) == 1:
        return f"seed {next(iter(seeds.values()))}"
    return ", ".join(f"{stage} seed {seed}" for stage, seed in seeds.items())


def _root(runs: Sequence[Run]) -> Path:
    return Path(os.path.commonpath([run.path.resolve().parent for run in runs]))


def _folder(run: Run, root: Path) -> str:
    folder = run.path.resolve().parent
    return folder.relative_to(root).as_posix() if folder != root else folder.name

"""A plan of a sweep: a TOML file with lists of networks, budgets, methods, seeds and devices; and its rows.

A row is one network with widths of its own: it is trained once, and exported and measured for every device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from dmsflow import options, preset, settings
from dmsflow.deploying.export import check_takes_binary
from dmsflow.deploying.target import Target, load_target
from dmsflow.errors import DmsflowError
from dmsflow.manifest import RECORDS, Stage
from dmsflow.measuring.devices import find as find_device
from dmsflow.plugin import load_plugin
from dmsflow.searching.slopes import REACH
from dmsflow.settings import BUDGETS, BenchSettings, Method, Seed

LEARNED = ("memory_mib", "macs_m")  # the costs whose range a search records
LISTED = {
    "network": "networks",
    "method": "methods",
    "seed": "seeds",
    **dict.fromkeys((*BUDGETS, "profile"), "budgets"),
}
TABLES = ("data", "search", "train", "export", "bench")
Filled = Meta(min_length=1)


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan's file can have.

    Attributes:
        budgets: tables of budgets and `profile`, as of search; none: the memory of the base network.
        devices: tables of fields of export and bench; `targets` is short for devices that have a target alone.
        until: the last stage.
        slurm: what submitit takes of `--launcher slurm`.
    """

    preset: str = "default"
    effort: str = "normal"
    networks: Annotated[tuple[str, ...], Filled] = (settings.SearchSettings().network,)
    methods: Annotated[tuple[Method, ...], Filled] = (settings.SearchSettings().method,)
    seeds: Annotated[tuple[Seed, ...], Filled] = (0,)
    budgets: Annotated[tuple[dict[str, Any], ...], Filled] = ({},)
    targets: tuple[str, ...] = ()
    devices: tuple[dict[str, Any], ...] = ()
    until: Stage = "bench"
    data: dict[str, Any] = {}
    search: dict[str, Any] = {}
    train: dict[str, Any] = {}
    export: dict[str, Any] = {}
    bench: dict[str, Any] = {}
    slurm: dict[str, Any] = {}


@dataclass(frozen=True)
class Device:
    """Where a row's file is measured.

    Attributes:
        name: of the folder in that of the row; empty for the row's own.
        values: of export and of bench, by stage.
    """

    name: str
    values: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One network with its widths.

    Attributes:
        name: of its folder.
        values: of data, search and train.
        limits: its budgets, and the profile.
        leader: the row whose search also gives the widths of this one; None if this one searches.
    """

    name: str
    values: Mapping[str, Mapping[str, Any]]
    limits: Mapping[str, Any]
    devices: Sequence[Device]
    leader: str | None = None

    def settings(self, stage: str, device: Device | None = None) -> Any:
        """The record of a stage, or of "data"."""
        values = device.values[stage] if device else self.values[stage]
        return settings.resolve(options.RECORDS[stage], **values)

    def words(self, stage: str, device: Device | None = None) -> list[str]:
        """The settings of a stage as options of its command."""
        return options.as_words(stage, device.values[stage] if device else self.values[stage])


def read_plan(path: Path) -> tuple[Plan, list[Row]]:
    """A plan and its rows, which have no leaders yet.

    Raises:
        DmsflowError: not a plan, an unknown field, or a value that is not valid.
    """
    if not path.is_file():
        raise DmsflowError(path, "is not a file", "give the path of a plan (docs/sweep.md)")
    values = preset.read_toml(path)
    if unknown := sorted(set(values) - set(Plan.__struct_fields__)):
        right = f"use only {', '.join(Plan.__struct_fields__)}"
        raise DmsflowError(path, f"has an unknown field {unknown[0]!r}", right)
    try:
        plan = settings.resolve(Plan, **values)
        return plan, _list_rows(plan)
    except DmsflowError as error:
        error.args = (f"{path}: {error}",)
        raise


def _list_rows(plan: Plan) -> list[Row]:
    for name in LISTED.keys() & plan.search.keys():
        raise DmsflowError(f"[search] {name}", "has a list of its own", f"use {LISTED[name]}")
    for table in ("train", "bench"):
        for name in {"seed", "profile"} & getattr(plan, table).keys():
            right = "use seeds" if name == "seed" else "give the profile to one of [[devices]]"
            raise DmsflowError(f"[{table}] {name}", "has a list of its own", right)
    devices, rows = _list_devices(plan), list[Row]()
    for network in plan.networks:
        for limits, measured in _list_budgets(plan, devices):
            rows += [
                _make_row(plan, network, limits, measured, each, seed) for each in plan.methods for seed in plan.seeds
            ]
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise DmsflowError(name, "is the name of two rows", "leave one out, or give their files other names")
    return rows


def _list_devices(plan: Plan) -> list[Device]:
    if plan.targets and plan.devices:
        raise DmsflowError("targets", "are named, and devices too", "give each of [[devices]] its target")
    tables = plan.devices or tuple({"target": target} for target in plan.targets) or ({},)
    known, devices = {stage: RECORDS[stage].__struct_fields__ for stage in ("export", "bench")}, list[Device]()
    for number, table in enumerate(tables, 1):
        for name in sorted(table.keys() - {*known["export"], *known["bench"]}):
            raise DmsflowError(f"devices {number}: {name}", "is unknown", "use fields of export and bench")
        given = {stage: {name: table[name] for name in names if name in table} for stage, names in known.items()}
        values = {stage: {**getattr(plan, stage), **given[stage]} for stage in known}
        made = {stage: _resolve(stage, values[stage]) for stage in known}
        _check_device(plan, load_target(made["export"].target), made["bench"])
        where = "" if made["bench"].device == "local" else f"-{made['bench'].device}"
        name = re.sub(r"[^\w.]+", "-", f"{Path(made['export'].target).stem}{where}") if len(tables) > 1 else ""
        devices.append(Device(name, values))
    for name in (names := [device.name for device in devices]):
        if names.count(name) > 1:
            raise DmsflowError(f"device {name}", "is there twice", "leave one of them out")
    return devices


def _check_device(plan: Plan, target: Target, bench: BenchSettings) -> None:
    """Refuse what does not exist, or does not fit, before hours of training and not after them."""
    if plan.train.get("precision") != "float":
        check_takes_binary(target)
    load_plugin("runners", bench.runner or target.runner)
    find_device(bench.device)


def _list_budgets(plan: Plan, devices: Sequence[Device]) -> list[tuple[dict[str, Any], Sequence[Device]]]:
    """Budgets, and the devices that measure what they lead to: milliseconds without a profile are those of each device."""
    found: list[tuple[dict[str, Any], Sequence[Device]]] = []
    for number, table in enumerate(plan.budgets, 1):
        for name in sorted(table.keys() - {*BUDGETS, "profile"}):
            raise DmsflowError(f"budgets {number}: {name}", "is unknown", f"use {', '.join(BUDGETS)} or profile")
        if "latency_ms" not in table or "profile" in table:
            found.append((table, devices))
            continue
        able = [
            (device, device.values["bench"]["profile"]) for device in devices if "profile" in device.values["bench"]
        ]
        if not able:
            right = "give it a profile, or one to each of [[devices]]"
            raise DmsflowError(f"budgets {number}", "has latency_ms and no profile", right)
        found += [({**table, "profile": profile}, [device]) for device, profile in able]
    return found


def _make_row(
    plan: Plan, network: str, limits: Mapping[str, Any], devices: Sequence[Device], method: str, seed: int
) -> Row:
    usual = {
        stage: preset.from_preset(RECORDS[stage], stage, plan.preset, plan.effort) | getattr(plan, stage)
        for stage in ("search", "train")
    }
    kept = {name: value for name, value in usual["search"].items() if name not in LISTED}
    search = {**kept, **limits, "network": network, "method": method, "seed": seed}
    values = {"data": plan.data, "search": search, "train": {**usual["train"], "seed": seed}}
    made = {stage: _resolve(stage, each) for stage, each in values.items()}
    budgets = settings.name_budgets(made["search"]) if limits else "base"
    module = [Path(part).stem for part in network.rpartition(":") if part.strip(":")]  # "net.py:Net" has two parts
    return Row("-".join([*module, budgets, method, str(seed)]), values, limits, devices)


def _resolve(stage: str, values: Mapping[str, Any]) -> Any:
    try:
        return settings.resolve(options.RECORDS[stage], **values)
    except DmsflowError as error:
        error.args = (f"[{stage}] {error}",)
        raise


# --- searches that several rows share -----------------------------------------------------------


def with_leaders(
    rows: Sequence[Row], costs: Callable[[Row], Mapping[str, float]], is_searched: Callable[[Row], bool]
) -> list[Row]:
    """The rows in the order in which they begin: those that search for others first, and those that wait for one last.

    Rows of the gradient search that differ only in their budgets share one search, if what they lead to costs from half
    to twice as much. One that has already searched is preferred, then one that serves more rows, then one in their middle.

    Args:
        costs: memory_mib and macs_m of a network within a row's budgets; empty where there is none.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        search = row.values["search"]
        if search["method"] == "gradient" and costs(row):
            groups.setdefault((search["network"], search["seed"]), []).append(row)

    def distance(leader: Row, others: Sequence[Row]) -> float:
        logs = [[math.log(costs(row)[name]) for name in LEARNED] for row in (leader, *others)]
        return max(abs(each - own) for row in logs for own, each in zip(logs[0], row, strict=True))

    def serves(leader: Row, other: Row) -> bool:
        ratios = [costs(other)[name] / costs(leader)[name] for name in LEARNED]
        has_budget = any(other.limits.get(name) for name in BUDGETS)
        return leader is other or (has_budget and all(1 / REACH <= ratio <= REACH for ratio in ratios))

    leaders: dict[str, str] = {}  # by the name of the row that they serve
    for left in groups.values():
        while left:
            served = {row.name: [other for other in left if serves(row, other)] for row in left}
            first = max(
                left, key=lambda row: (is_searched(row), len(served[row.name]), -distance(row, served[row.name]))
            )
            leaders |= {row.name: first.name for row in served[first.name] if row is not first}
            left = [row for row in left if row not in served[first.name]]
    made = [replace(row, leader=leaders.get(row.name)) for row in rows]
    return sorted(made, key=lambda row: 2 if row.leader else row.name not in leaders.values())

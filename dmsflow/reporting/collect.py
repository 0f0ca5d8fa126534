"""Finds finished runs and running searches in folders, and puts those that differ only in their seed into groups."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from dmsflow import manifest
from dmsflow.errors import DmsflowError
from dmsflow.files import UNREADABLE, hash_file, read_bytes
from dmsflow.importing import load_network
from dmsflow.manifest import Chain, Manifest
from dmsflow.network import profile
from dmsflow.network.network import Network, read_network, with_stem
from dmsflow.plugin import check_trusted
from dmsflow.reporting.runs import BUDGET_UNITS, File, Group, Run
from dmsflow.settings import Data, SearchSettings, TrainSettings, with_present_names
from dmsflow.terminal import print_line

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
    network = with_stem(network, settings["stem"])
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
    found = [file for name in names for file in path.rglob(name) if not _is_beside(file)]
    lasts = {file.parent: file for file in found if file.parent in (path, manifest.home(file.parent))}
    if not lasts:
        right = f"give a folder with one of {', '.join(names[1:])}, or a folder of such folders"
        raise DmsflowError(path, "has no manifest", right)
    return sorted(lasts.values())


def _is_beside(file: Path) -> bool:
    """Whether it is the bench of a bare file that lies in the folder of a run."""
    run = file.with_name("export.json")
    if file.name != "bench.json" or not run.exists():
        return False
    with contextlib.suppress(DmsflowError):  # a damaged one is said where it is read
        return not manifest.load_manifest(file, bare=True).network
    return False


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

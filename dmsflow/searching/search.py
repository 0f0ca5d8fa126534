"""The search stage: from a data set and budgets to a network with chosen widths."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from dmsflow import datasets, manifest
from dmsflow.datasets import Dataset
from dmsflow.environment import describe_environment
from dmsflow.errors import BudgetMissed, DmsflowError
from dmsflow.files import describe_artifact
from dmsflow.manifest import Manifest
from dmsflow.network import profile
from dmsflow.network.latency import Latency, build_latency
from dmsflow.network.network import Network, load_network
from dmsflow.network.profile import Profile
from dmsflow.searching import budget, descent, evolution, round_to_blocks, supernetwork
from dmsflow.searching.budget import Budget, Range
from dmsflow.searching.compare import _print_comparison, choose_row, compare_widths
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.settings import Data, SearchSettings, anchored
from dmsflow.terminal import spelled_threads
from dmsflow.training import checkpoint
from dmsflow.training.place import generator, within_memory

SEARCHES = ("gradient", "evolution")  # methods that train; the others are controls
RANDOM_SPREAD = 0.5  # standard deviation of a random control's log widths around flat


@within_memory()
def run(
    settings: SearchSettings,
    data: Data,
    out: Path,
    *,
    command: tuple[str, ...],
    resume: bool = False,
    force: bool = False,
    download: bool = False,
) -> Path:
    """Choose widths and write `out/search.json`.

    Raises:
        DmsflowError: an infeasible budget (before any training), bad data, a NaN loss, …
    """
    path = out / "search.json"
    if manifest.claim(path, resume=resume, force=force):
        return path
    saved = checkpoint.claim(out / "search.checkpoint", resume=resume, force=force)
    dataset = datasets.load_dataset(data, download)
    network, latency, limits, bounds = _problem(settings, dataset)
    budget.feasibility(network, limits, bounds, latency)
    began = time.monotonic()
    artifacts = {}
    if latency:  # a copy, so that the chain goes on where the profile itself is not
        artifacts["profile"] = describe_artifact(profile.save_profile(out / "profile.json", latency.profile), out)
    if settings.method in SEARCHES:
        widths, metrics, environment = _search(settings, data, dataset, network, latency, limits, bounds, saved, out)
        artifacts["log"] = describe_artifact(out / "search.jsonl", out)
    else:
        widths, metrics, environment = _control(settings, network, limits, bounds), {}, {}
    if not budget.met(network, limits, widths):
        needed = budget.spelled(budget.figures(network, widths, latency), latency)
        raise BudgetMissed(out, f"the chosen widths need {needed}", "search again with more rounds")
    metrics = {**budget.figures(network, widths, latency), "seconds": round(time.monotonic() - began, 1), **metrics}
    manifest.save(
        path,
        Manifest(
            stage="search",
            command=command,
            settings=msgspec.to_builtins(settings),
            network=network,
            widths=widths,
            data=anchored(data),
            artifacts=artifacts,
            metrics=metrics,
            environment=describe_environment(**environment),
        ),
    )
    saved.unlink(missing_ok=True)
    return path


def plan(settings: SearchSettings, data: Data, out: Path) -> list[tuple[str, str]]:
    """What `run` would do, and what the network can cost; raises where it cannot be done."""
    dataset = datasets.load_dataset(data)
    network, latency, limits, bounds = _problem(settings, dataset)
    rows = [
        (
            "network",
            f"{network.name}, {dataset.channels}×{dataset.resolution}×{dataset.resolution} pixels, {len(dataset.classes)} classes",
        ),
        ("data", f"{dataset.name}, {len(dataset.train)} training and {len(dataset.test)} test images"),
        *([("profile", _told(latency.profile))] if latency else []),
        *budget.feasibility(network, limits, bounds, latency),
    ]
    for name, control in (("uniform", budget.uniform), ("flat", budget.flat)):
        widths = budget.round_within(network, limits, control(network, limits, bounds), bounds)
        figures = budget.spelled(budget.figures(network, widths, latency), latency)
        rows.append((name, f"{figures}: {' '.join(map(str, widths.values()))}"))
    return [*rows, ("writes", str(out / "search.json"))]


def _told(measured: Profile) -> str:
    """A profile in a line."""
    processor = measured.environment.get("processor")
    return f"{measured.title}: {processor}, {measured.runtime}, {spelled_threads(measured.threads)}"


def _problem(settings: SearchSettings, dataset: Dataset) -> tuple[Network, Latency | None, tuple[Budget, ...], Range]:
    network = load_network(settings.network, dataset.channels, dataset.resolution, len(dataset.classes))
    if settings.align and (settings.reallocate or settings.method not in SEARCHES):
        what = "is for widths that a search compares on its weights"
        raise DmsflowError("--align", what, "leave it out, or use --method gradient or evolution without --reallocate")
    if settings.min_ratio >= settings.max_ratio:
        raise DmsflowError(
            "--min-ratio", f"{settings.min_ratio:g} is not below --max-ratio {settings.max_ratio:g}", "lower it"
        )
    latency = _latency(settings, network)
    return network, latency, budget.budgets(settings, network, latency), budget.whole_range(network, settings, latency)


def _latency(settings: SearchSettings, network: Network) -> Latency | None:
    if settings.profile is None:
        return None
    measured = profile.load_profile(settings.profile)
    if measured.precision == "float":
        what = "is of float32 networks, and the search is for binary ones"
        raise DmsflowError(f"profile {measured.title}", what, "give one that was measured with --precision binary")
    return build_latency(network, measured)


def _control(settings: SearchSettings, network: Network, limits: tuple[Budget, ...], bounds: Range) -> dict[str, int]:
    """Widths that just meet the budgets without a search: what a search has to beat."""
    control = {"uniform": budget.uniform, "between": budget.between}.get(settings.method, budget.flat)
    ratios = control(network, limits, bounds)
    if settings.method == "random":
        draw = generator(settings.seed, "random control")
        spread = torch.exp(RANDOM_SPREAD * torch.randn(len(ratios), generator=draw, dtype=torch.float64))
        ratios = budget.meet(network, limits, ratios * spread, bounds)
    return budget.round_within(network, limits, ratios, bounds)


def _search(
    settings: SearchSettings,
    data: Data,
    dataset: Dataset,
    network: Network,
    latency: Latency | None,
    limits: tuple[Budget, ...],
    bounds: Range,
    saved: Path,
    out: Path,
) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
    """Search; the chosen widths, what was measured on the way, and where it ran."""
    state = supernetwork.begin(settings, network, limits, bounds, dataset, data.workers, latency)
    if saved.exists():
        supernetwork.restore(state, saved)
    found = descent.descend(state, saved, out / "search.jsonl")
    found = _evolved(state, found)
    if settings.reallocate:  # the super-network has no channels beyond the last windows to compare with
        return budget.round_within(network, limits, found, bounds), {}, state.where.facts()
    candidates: dict[str, Tensor] = {
        "searched": found,
        "flat": budget.flat(network, limits, bounds),
        "uniform": budget.uniform(network, limits, bounds),
    }
    if settings.start == "flat" and len(limits) > 1:
        candidates["start"] = state.start
    rows = compare_widths(state, {name: supernetwork.within_capacity(state, each) for name, each in candidates.items()})
    chosen = choose_row(rows)
    _print_comparison(rows, chosen, state.latency)
    widths = budget.round_within(network, limits, candidates[chosen["name"]], bounds)
    metrics: dict[str, Any] = {"chosen": chosen["name"], "comparison": rows}
    if settings.align:
        widths, metrics["alignment"] = align(state, widths)
    return widths, metrics, state.where.facts()


def _evolved(state: SuperNetwork, found: Tensor) -> Tensor:
    """What evolution makes of it: all there is, or a last step around the gradient's result."""
    if state.settings.method == "evolution":
        controls = [control(state.network, state.limits, state.bounds) for control in (budget.flat, budget.uniform)]
        return evolution.evolve(state, [state.start, *controls], evolution.equal_count(state))
    if state.settings.refine:
        return evolution.evolve(state, [found], state.settings.refine, near=True)
    return found


def align(state: SuperNetwork, widths: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    """Widths on the edges of the kernels' steps, unless they are worse by more than a standard error.

    Returns:
        The widths to keep; and what was compared: "before" and "after", each a row of `compare` with what
        the file stores (bytes) and the kernels do (million multiply-accumulates), and whether "after" was taken.
    """
    settled = round_to_blocks.aligned(state.network, state.limits, widths, state.latency, state.model.widths)
    rows = {
        row["name"]: {
            **row,
            "stored_bytes": round(round_to_blocks.stored_bytes(state.network, row["widths"])),
            "padded_macs_m": round_to_blocks.padded_macs(state.network, row["widths"]) / budget.MEGA,
        }
        for row in compare_widths(state, {"before": widths, "after": settled})
    }
    taken = settled != widths and rows["after"]["loss_difference"] <= rows["after"]["standard_error"]
    print(_aligned(rows, taken), file=sys.stderr)
    return (settled if taken else widths), {**rows, "taken": taken}


def _aligned(rows: dict[str, dict[str, Any]], taken: bool) -> str:
    """What alignment did, in a sentence."""
    before, after = rows["before"], rows["after"]
    if before["widths"] == after["widths"]:
        return "The widths stand where they cost least: nothing to align."
    costs = (
        f"{before['stored_bytes']:,} → {after['stored_bytes']:,} bytes stored, "
        f"{before['padded_macs_m']:.2f} → {after['padded_macs_m']:.2f} M MACs with padding"
    )
    facts = f"loss {after['loss_difference']:+.4f} ± {after['standard_error']:.4f} (standard error, the same images)"
    widths = " ".join(map(str, after["widths"].values()))
    return f"{'Aligned' if taken else 'Not aligned'}, {widths}: {costs}, {facts}."

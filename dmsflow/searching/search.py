"""The search stage: from a data set and budgets to a network with chosen widths."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmsflow import datasets, manifest
from dmsflow.datasets import Dataset
from dmsflow.errors import BudgetMissed, DmsflowError
from dmsflow.manifest import Flow
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.network import load_network
from dmsflow.searching import published, supernetwork
from dmsflow.searching.budget import MEGA, Budgets, Ratios
from dmsflow.searching.compare import choose_row, compare_widths, print_comparison
from dmsflow.searching.descent import Descent
from dmsflow.searching.evolution import count_equal_effort, evolve
from dmsflow.searching.round_to_blocks import padded_macs, round_widths
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.settings import Data, SearchSettings, anchored
from dmsflow.terminal import format_threads, print_line
from dmsflow.training import checkpoint, processes
from dmsflow.training.batches import generator
from dmsflow.training.log import Log

BASELINES = ("uniform", "equal", "interpolated", "random")  # methods that train nothing
RANDOM_SPREAD = 0.5  # standard deviation of a random baseline's log widths around equal ones: from half to twice as wide, most of them


def run_stage(source: Data, settings: SearchSettings, out: Path, flow: Flow) -> Path:
    """Choose widths and write `out/search.json`.

    Raises:
        DmsflowError: an infeasible budget (before any training), bad data, a NaN loss, …
    """
    path, data = out / "search.json", anchored(source)
    if manifest.is_finished(path, settings, flow, source):
        return path
    saved = checkpoint.prepare(out / "search.checkpoint", flow)
    with processes.first_ahead():
        dataset = datasets.load_dataset(source, flow.download)
    budgets = _make_budgets(settings, dataset)
    budgets.check_feasible()
    for line in (describe_search(settings, dataset, budgets), *datasets.describe_images(dataset)):
        print_line(line)
    began = time.monotonic()
    artifacts, metrics, environment = dict[str, Path](), dict[str, Any](), dict[str, Any]()
    if settings.method in BASELINES:
        widths = _fill_budgets(settings, budgets)
    else:
        log = Log(out / "search.jsonl", tensorboard=flow.tensorboard)
        widths, metrics, environment = _search(settings, source, dataset, budgets, saved, log)
        artifacts["log"] = log.path
    if not budgets.met(widths):
        what = f"the chosen widths need {budgets.describe(widths)}"
        raise BudgetMissed(manifest.home(out), what, "search again with more rounds")
    processes.wait()  # nothing is read any more that is written now
    if not processes.is_first():
        return path
    if budgets.latency:  # a copy, so that the chain can be read where the profile itself is not
        artifacts["profile"] = profile.save_profile(out / "profile.json", budgets.latency.profile)
    metrics = {**budgets.figures(widths), "seconds": round(time.monotonic() - began, 1), **metrics}
    metrics["images"] = datasets.count_images(dataset)
    made: dict[str, Any] = {"network": budgets.network, "widths": widths, "data": data}
    manifest.finish_stage(path, settings, flow, manifest.Done(artifacts, metrics, environment), **made)
    saved.unlink(missing_ok=True)
    return path


def plan_stage(source: Data, settings: SearchSettings, out: Path) -> list[tuple[str, str]]:
    """What `run_stage` would do, and what the network can cost; raises where it cannot be done."""
    dataset = datasets.load_dataset(source, planned=True)
    budgets = _make_budgets(settings, dataset)
    side = dataset.resolution
    images = f"{dataset.channels}×{side}×{side} pixels, {len(dataset.classes)} classes"
    rows = [
        ("network", f"{budgets.network.name}, {images}"),
        ("data", dataset.name),
        *(("images", line) for line in datasets.describe_images(dataset)),
    ]
    if budgets.latency:
        used = budgets.latency.profile
        processor = used.environment.get("processor")
        rows.append(("profile", f"{used.title}: {processor}, {used.runtime}, {format_threads(used.threads)}"))
    rows += budgets.check_feasible()
    for name, ratios in (("uniform", budgets.uniform()), ("equal", budgets.equal())):
        widths = budgets.round_within(ratios)
        rows.append((name, f"{budgets.describe(widths)}: {' '.join(map(str, widths.values()))}"))
    return [*rows, ("writes", str(out / "search.json"))]


def describe_search(settings: SearchSettings, dataset: Dataset, budgets: Budgets) -> str:
    """A line that says what is searched on which images, with defaults included."""
    limits = " and ".join(f"{each.limit:.4g} {each.unit}" for each in budgets.limits)
    given = settings.memory_mib or settings.macs_m or settings.latency_ms or settings.file_kib
    whose = "" if given else " (no budget given: the memory of the base widths)"
    images = f"{len(dataset.train):,} images of {dataset.name}"
    return f"search: {budgets.network.name} on {images}, {settings.method}, at most {limits}{whose}"


def _make_budgets(settings: SearchSettings, dataset: Dataset) -> Budgets:
    network = load_network(settings.network, dataset.channels, dataset.resolution, len(dataset.classes))
    if settings.align and settings.method not in ("gradient", "evolution"):
        what = "needs a search that trains shared weights"
        raise DmsflowError("search.align", what, "leave it out, or use --method gradient or evolution")
    if settings.min_ratio >= settings.max_ratio:
        what = f"{settings.min_ratio:g} is not below max_ratio {settings.max_ratio:g}"
        raise DmsflowError("min_ratio", what, "lower it")
    if settings.profile is None:
        return Budgets.from_settings(settings, network)
    measured = profile.load_profile(settings.profile)
    if measured.precision == "float":
        what = "has times of float32 networks, and the search is for binary ones"
        raise DmsflowError(f"profile {measured.title}", what, "use a profile that was measured with --precision binary")
    return Budgets.from_settings(settings, network, build_latency(network, measured))


def _fill_budgets(settings: SearchSettings, budgets: Budgets) -> dict[str, int]:
    """Widths of a baseline: they exhaust the budgets, without a search."""
    baselines = {"uniform": budgets.uniform, "interpolated": budgets.interpolated}
    ratios = baselines.get(settings.method, budgets.equal)()
    if settings.method == "random":
        draw = generator(settings.seed, "random control")
        noise = torch.randn(len(ratios), generator=draw, dtype=torch.float64).numpy()
        ratios = budgets.project(ratios * np.exp(RANDOM_SPREAD * noise))
    return budgets.round_within(ratios)


def _search(
    settings: SearchSettings, source: Data, dataset: Dataset, budgets: Budgets, saved: Path, log: Log
) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
    """Search; the chosen widths, what was measured on the way, and where it ran."""
    as_published = settings.method == "published"
    net = (published if as_published else supernetwork).begin(settings, budgets, dataset, source.workers)
    if saved.exists():
        supernetwork.restore(net, saved)
    if as_published:  # its network has no channels beyond the last candidates, so there is nothing to compare on
        found = published.PublishedSearch(net).search(saved, log)
        return budgets.round_within(found), {}, net.where.facts()
    found = Descent(net, moves=settings.method == "gradient").search(saved, log)
    if settings.method == "evolution":
        found = evolve(net, [net.start, budgets.equal(), budgets.uniform()], count_equal_effort(net))
    candidates: dict[str, Ratios] = {"searched": found, "equal": budgets.equal(), "uniform": budgets.uniform()}
    if len(budgets.limits) > 1:
        candidates["start"] = net.start
    rows = compare_widths(net, {name: net.widths_near(ratios) for name, ratios in candidates.items()})
    chosen = choose_row(rows)
    print_comparison(rows, chosen, budgets.latency)
    widths = budgets.round_within(candidates[chosen["name"]])
    metrics: dict[str, Any] = {"chosen": chosen["name"], "comparison": rows}
    if settings.align:
        widths, metrics["alignment"] = align(net, widths)
    return widths, metrics, net.where.facts()


def align(net: SuperNetwork, widths: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    """Widths rounded to multiples the kernels use, unless their loss is higher by more than a standard error.

    Returns:
        The widths to keep; and what was compared: "before" and "after", each a row of `compare_widths` with what
        the kernels do (million multiply-accumulates), and whether "after" was taken.
    """
    network = net.budgets.network
    rounded = round_widths(net.budgets, widths, net.model.widths)
    rows = {}
    for row in compare_widths(net, {"before": widths, "after": rounded}):
        rows[row["name"]] = {**row, "padded_macs_m": padded_macs(network, row["widths"]) / MEGA}
    taken = rounded != widths and rows["after"]["loss_difference"] <= rows["after"]["standard_error"]
    print_line(_describe_alignment(rows, taken))
    return (rounded if taken else widths), {**rows, "taken": taken}


def _describe_alignment(rows: dict[str, dict[str, Any]], taken: bool) -> str:
    before, after = rows["before"], rows["after"]
    if before["widths"] == after["widths"]:
        return "Rounding the widths to multiples that the kernels use saves nothing."
    stored = f"file {before['file_kib']:.1f} → {after['file_kib']:.1f} KiB"
    macs = f"{before['padded_macs_m']:.2f} → {after['padded_macs_m']:.2f} M MACs with padding"
    loss = f"loss {after['loss_difference']:+.4f} ± {after['standard_error']:.4f} (standard error, the same images)"
    widths = " ".join(map(str, after["widths"].values()))
    return f"{'Aligned' if taken else 'Not aligned'}, {widths}: {stored}, {macs}, {loss}."

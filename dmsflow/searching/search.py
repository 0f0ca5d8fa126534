"""The search stage: from a data set and budgets to a network with chosen widths."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from dmsflow import datasets, manifest
from dmsflow.datasets import Dataset
from dmsflow.errors import BudgetMissed
from dmsflow.importing import load_network
from dmsflow.manifest import Flow
from dmsflow.network import profile
from dmsflow.network.network import has_int8_stem
from dmsflow.searching import published, supernetwork
from dmsflow.searching.budget import Budgets, as_widths
from dmsflow.searching.compare import choose_row, compare_widths, print_comparison
from dmsflow.searching.descent import Descent
from dmsflow.searching.evolution import count_equal_effort, evolve
from dmsflow.searching.slopes import RULES, rule_widths, solve_integers
from dmsflow.searching.widths import make_budgets
from dmsflow.settings import BUDGETS, Data, SearchSettings, anchored
from dmsflow.terminal import format_threads, print_line
from dmsflow.training import checkpoint, processes
from dmsflow.training.batches import generator
from dmsflow.training.log import Log

RANDOM_SPREAD = 0.5  # standard deviation of a random baseline's log widths around balanced ones: from half to twice as wide, most of them


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
    if has_int8_stem(budgets.network):
        dataset = datasets.with_one_mean(dataset)
    budgets.check_feasible()
    for line in (describe_search(settings, dataset, budgets), *datasets.describe_images(dataset)):
        print_line(line)
    began = time.monotonic()
    artifacts, metrics, environment = dict[str, Path](), dict[str, Any](), dict[str, Any]()
    if settings.method in (*RULES, "random"):
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
    rows = [("network", f"{budgets.network.name}, {images}"), ("data", dataset.name)]
    rows += [("images", line) for line in datasets.describe_images(dataset)]
    if budgets.latency:
        used = budgets.latency.profile
        processor = used.environment.get("processor")
        rows.append(("profile", f"{used.title}: {processor}, {used.runtime}, {format_threads(used.threads)}"))
    rows += budgets.check_feasible()
    for rule in ("uniform", "equal"):
        widths = rule_widths(budgets, rule)
        rows.append((rule, f"{budgets.describe(widths)}: {' '.join(map(str, widths.values()))}"))
    return [*rows, ("writes", str(out / "search.json"))]


def describe_search(settings: SearchSettings, dataset: Dataset, budgets: Budgets) -> str:
    """A line that says what is searched on which images, with defaults included."""
    limits = " and ".join(f"{each.limit:.4g} {each.unit}" for each in budgets.limits)
    given = any(getattr(settings, name) for name in BUDGETS)
    whose = "" if given else " (no budget given: the memory of the base widths)"
    images = f"{len(dataset.train):,} images of {dataset.name}"
    return f"search: {budgets.network.name} on {images}, {settings.method}, at most {limits}{whose}"


def _make_budgets(settings: SearchSettings, dataset: Dataset) -> Budgets:
    image = dataset.channels, dataset.resolution, len(dataset.classes)
    return make_budgets(settings, load_network(settings.network, *image))


def _fill_budgets(settings: SearchSettings, budgets: Budgets) -> dict[str, int]:
    """Widths of a baseline: they exhaust the budgets, without a search."""
    if settings.method in RULES:
        return rule_widths(budgets, settings.method)
    draw = generator(settings.seed, "random control")
    noise = torch.randn(len(budgets.base), generator=draw, dtype=torch.float64).numpy()
    balanced = np.array(list(rule_widths(budgets, "balanced").values())) / budgets.base
    return budgets.round_within(budgets.project(balanced * np.exp(RANDOM_SPREAD * noise)))


def _search(
    settings: SearchSettings, source: Data, dataset: Dataset, budgets: Budgets, saved: Path, log: Log
) -> tuple[dict[str, int], dict[str, Any], dict[str, Any]]:
    """Search; the chosen widths, what was measured on the way, and where it ran."""
    as_published = settings.method == "published"
    net = (published if as_published else supernetwork).begin(settings, budgets, dataset, source.workers)
    if saved.exists():
        supernetwork.restore(net, saved)
    if as_published:  # its network has no channels beyond the last candidates, so there is nothing to compare on
        found = published.PublishedSearch(net)
        found.search(saved, log)
        return budgets.round_within(found.result()), {}, net.where.facts()
    descent, within = Descent(net, moves=settings.method == "gradient"), net.allocated()
    descent.search(saved, log)
    metrics: dict[str, Any] = {}
    if settings.method == "evolution":
        first = [net.start, budgets.equal(), budgets.uniform()]
        searched = net.widths_near(evolve(net, first, count_equal_effort(net)))
    else:
        slopes = descent.slopes()
        searched, metrics["slopes"] = solve_integers(within, slopes), msgspec.to_builtins(slopes)
        points = [point["mu"] for row in log.rows for point in row.get("points", ())]
        costs = [budgets.figures(as_widths(budgets.network, point)) for point in points]
        for end, pick in (("least", min), ("most", max)):
            learned = {name: pick(each[name] for each in costs) for name in ("memory_mib", "macs_m")}
            metrics.setdefault("learned", {})[end] = learned
    rows = compare_widths(net, {"searched": searched, **{rule: rule_widths(within, rule) for rule in RULES}})
    chosen = choose_row(rows)
    print_comparison(rows, chosen, budgets.latency)
    metrics |= {"chosen": chosen["name"], "comparison": rows}
    return chosen["widths"], metrics, net.where.facts()

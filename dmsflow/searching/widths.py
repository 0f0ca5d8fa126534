"""Widths for other budgets, from the slopes that a search has learned: in less than a second, without images or torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dmsflow import manifest
from dmsflow.errors import DmsflowError
from dmsflow.manifest import Flow, Manifest
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.network import Network, with_stem
from dmsflow.searching.budget import Budgets
from dmsflow.searching.slopes import RULES, Slopes, rule_widths, solve_integers
from dmsflow.settings import BUDGETS, SearchSettings, resolve, with_present_names
from dmsflow.terminal import print_table

ROOM = 1.02  # how far beyond the range that was learned the costs of a solution may lie: a channel more or less


def make_budgets(settings: SearchSettings, network: Network) -> Budgets:
    """The budgets of a search on a network, with the stem that its settings ask for.

    Raises:
        DmsflowError: a profile that cannot tell the time of this network, or one of float32 networks.
    """
    network = with_stem(network, settings.stem)
    if settings.profile is None:
        return Budgets.from_settings(settings, network)
    measured = profile.load_profile(settings.profile)
    if measured.precision == "float":
        what = "has times of float32 networks, and the search is for binary ones"
        raise DmsflowError(f"profile {measured.title}", what, "use a profile that was measured with --precision binary")
    return Budgets.from_settings(settings, network, build_latency(network, measured, settings.network))


def solve_widths(source: Path, settings: SearchSettings, out: Path, flow: Flow) -> Path:
    """Write `out/search.json` with the best widths for the budgets of `settings`, as the slopes in `source` have it.

    Args:
        source: a search.json of the gradient search.
        settings: its budgets and profile count, the rest is as in `source`.

    Raises:
        DmsflowError: no slopes, no budget, an infeasible one, or one beyond the range that was learned.
    """
    found, chosen, budgets = _prepare(source, settings)
    path = out / "search.json"
    if path.exists() and path.samefile(source):
        raise DmsflowError(source, "is the search from which the widths are taken", "use --out for another folder")
    if manifest.is_finished(path, chosen, flow, found.data):
        return path
    widths, rows = _solve(source, found, budgets)
    print_table(f"Widths from the slopes of {source}", *_table(rows, budgets))
    kept = {name: found.metrics[name] for name in ("slopes", "learned")}
    metrics = {**budgets.figures(widths), "seconds": 0.0, "chosen": "solved", "predicted": rows, **kept}
    files = {"profile": profile.save_profile(out / "profile.json", budgets.latency.profile)} if budgets.latency else {}
    made: dict[str, Any] = {"network": found.network, "widths": widths, "data": found.data}
    return manifest.finish_stage(path, chosen, flow, manifest.Done(files, metrics, {}), **made)


def plan_widths(source: Path, settings: SearchSettings, out: Path) -> list[tuple[str, str]]:
    """What `solve_widths` would find, as rows of a table; writes nothing."""
    found, _, budgets = _prepare(source, settings)
    widths, _ = _solve(source, found, budgets)
    listed = " ".join(map(str, widths.values()))
    return [("widths", listed), ("costs", budgets.describe(widths)), ("writes", str(out / "search.json"))]


def _prepare(source: Path, given: SearchSettings) -> tuple[Manifest, SearchSettings, Budgets]:
    found = manifest.load_manifest(source, "search")
    if "slopes" not in found.metrics:
        right = "give the search.json of a search with --method gradient"
        raise DmsflowError(source, "has no slopes, which only the gradient search learns", right)
    wanted = {name: getattr(given, name) for name in BUDGETS}
    if not any(wanted.values()):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in BUDGETS)
        raise DmsflowError("widths", "has no budget", f"give one or more of {options}")
    kept = {name: value for name, value in with_present_names(found.settings).items() if name not in wanted}
    device = given.profile or (kept["profile"] if given.latency_ms else None)
    settings = resolve(SearchSettings, **{**kept, **wanted, "profile": device})
    return found, settings, make_budgets(settings, found.network)


def _solve(source: Path, found: Manifest, budgets: Budgets) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The widths, and what is predicted of them beside those of rules: rows with name, widths, costs and loss."""
    least, most = (found.metrics["learned"][end] or {} for end in ("least", "most"))
    learned = ", ".join(f"{name} {low:.4g} to {most.get(name, low):.4g}" for name, low in least.items())
    budgets.check_feasible("search again with --set and a", f" (learned: {learned})")
    slopes = _read_slopes(source, found)
    solved = solve_integers(budgets, slopes)
    figures = budgets.figures(solved)
    for name, low in least.items():
        if not low / ROOM <= figures.get(name, low) <= most.get(name, low) * ROOM:
            what = f"these budgets lead to {name} {figures[name]:.4g}, and the search has learned {learned}"
            raise DmsflowError(source, what, "give budgets in that range, or search with budgets near these")
    rows = []
    for name, widths in {"solved": solved, **{rule: rule_widths(budgets, rule) for rule in RULES}}.items():
        loss = slopes.loss(np.log(list(widths.values()) / budgets.base))
        rows.append({"name": name, "widths": widths, **budgets.figures(widths), "predicted_loss": loss})
    return solved, rows


def _read_slopes(source: Path, found: Manifest) -> Slopes:
    try:
        slopes = msgspec.convert(found.metrics["slopes"], Slopes)
    except msgspec.ValidationError as error:
        raise DmsflowError(source, f"has wrong slopes ({error})", "search again") from error
    if any(len(column) != len(found.widths) for column in msgspec.structs.astuple(slopes)):
        raise DmsflowError(source, "has slopes that do not fit its widths", "search again")
    return slopes


def _table(rows: list[dict[str, Any]], budgets: Budgets) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    lowest, cells = rows[0]["predicted_loss"], list[tuple[str, ...]]()
    for row in rows:
        channels, above = " ".join(map(str, row["widths"].values())), f"{row['predicted_loss'] - lowest:+.4f}"
        cells.append((row["name"], budgets.describe(row["widths"]), channels, above))
    return ("widths of", "costs", "channels", "predicted loss − solved"), cells

"""The result of a run in words: its cost, and whether it beat the baselines; or how far a search is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime

from dmsflow.reporting.runs import BUDGET_UNITS, Group, Run, costs_of
from dmsflow.searching.verdict import describe_verdict
from dmsflow.terminal import milliseconds

# By budget: its word, the metric that it limits, and that metric in the log.
BUDGETS = {
    "memory_mib": ("memory", "memory_mib"),
    "macs_m": ("MACs", "macs_m"),
    "file_kib": ("file", "file_kib"),
    "latency_ms": ("latency", "predicted_latency_ms"),
}


def describe_result(group: Group, groups: Sequence[Group]) -> dict[str, str]:
    """Of a group: its widths, files, accuracy and time; minutes and size; and the best baseline beside it.

    Args:
        group: whose search is finished.
        groups: among them the baselines that were trained under the same budgets.
    """
    run, seeds = group.runs[0], {one.seeds for one in group.runs}
    several = f" (of the first of {len(seeds)} seeds)" if len(seeds) > 1 else ""
    memory, macs = run.costs
    base_memory, base_macs = costs_of(run.network, run.network.widths, binary=run.binary)
    facts = {"widths": f"{join_widths(run.widths)}{several}", "base widths": join_widths(run.network.widths)}
    if top1 := [row[2] for row in group.results()]:
        deviation = f" ± {statistics.stdev(top1):.2f} (deviation of {len(top1)} seeds)" if len(top1) > 1 else ""
        facts["top-1"] = f"{statistics.fmean(top1):.2f} %{deviation}"
    for file in run.files:
        found, name = file.metrics, f"file for {file.target or 'a device'}"
        facts.setdefault(name, f"{found['file_bytes']:,} bytes" if "file_bytes" in found else "of unknown size")
        if "latency_ms_median" in found:
            facts[name] += f"; {milliseconds(found['latency_ms_median'])} ms for one image on {file.platform}"
    facts["parameters"] = f"{memory:.4f} MiB (base widths: {base_memory:.4f})"
    facts["multiply-accumulates"] = f"{macs:.2f} million (base widths: {base_macs:.2f})"
    seconds = {"search": run.metrics("search").get("seconds"), "training": run.metrics("train").get("seconds")}
    taken = [f"{count / 60:.1f} min of {stage}" for stage, count in seconds.items() if count is not None]
    facts["took"] = " and ".join(taken) or "–"
    facts["search and baselines"] = describe_comparison(run) + several
    if lead := _describe_trained(group, groups):
        facts["trained baselines"] = lead
    return facts


def describe_comparison(run: Run) -> str:
    """Whether the search was better than no search, on the weights that it shared."""
    metrics = run.metrics("search")
    rows = list(metrics.get("comparison") or ())
    if not rows:
        return "not compared: only a search compares its widths with baselines"
    for row in rows:
        if "budgets_used" not in row:  # of an earlier version
            limited = [(*BUDGETS[name], limit) for name, limit in run.limits.items()]
            row["budgets_used"] = {word: row[metric] / limit for word, metric, limit in limited if metric in row}
    chosen = next((row for row in rows if row["name"] == metrics.get("chosen")), rows[0])
    return describe_verdict(rows, chosen)


def _describe_trained(group: Group, groups: Sequence[Group]) -> str:
    """A searched network beside the best baseline that was trained under the same budgets; empty if none was."""
    results = {
        each.label: [row[2] for row in each.results()]
        for each in groups
        if each.budgets == group.budgets and each.results() and not each.is_searched
    }
    own = [row[2] for row in group.results()]
    if not (results and own and group.is_searched):
        return ""
    best = max(results, key=lambda label: statistics.fmean(results[label]))
    lead = statistics.fmean(own) - statistics.fmean(results[best])
    words = f"top-1 {lead:+.2f} points from {best}, the best of {len(results)}"
    if min(len(own), len(results[best])) < 2:
        return f"{words}; how sure that is, one seed does not say"
    error = math.sqrt(sum(statistics.variance(each) / len(each) for each in (own, results[best])))
    return f"{words}, ± {error:.2f} (standard error, {len(own)} and {len(results[best])} seeds)"


def describe_progress(run: Run) -> dict[str, str]:
    """How far a search is that is not finished, by its log."""
    row, settings = run.rounds[-1], run.settings("search")
    phase = "width" if "width_loss" in row else "weight"
    facts = {"round": f"{row['round']} of {settings['rounds']}"}
    written = (run.folder / "search.jsonl").stat().st_mtime
    facts["last round at"] = datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M:%S")
    facts["loss"] = f"{row[f'{phase}_loss']:.4f}, on the half of the images that trains {phase}s"
    if (top1 := row.get(f"{phase}_top1_percent")) is not None:
        facts["top-1"] = f"{top1:.2f} %, on the same"
    facts["widths"] = join_widths(row["widths"])
    for name, (word, metric) in BUDGETS.items():
        if metric in row:
            limit = f" of {run.limits[name]:.4g}" if name in run.limits else ""
            facts[word] = f"{row[metric]:.4g}{limit} {BUDGET_UNITS[name]}"
    return facts


def join_widths(widths: dict[str, int]) -> str:
    return " ".join(map(str, widths.values()))

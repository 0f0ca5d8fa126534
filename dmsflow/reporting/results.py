"""Sections on what came out: accuracy, latency, the comparison at the end of the search, and the facts of every run."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmsflow.environment import measured_machine
from dmsflow.reporting import page
from dmsflow.reporting.figures import LEGEND_ROWS, Bar, Point, Style, draw_dots, draw_plane
from dmsflow.reporting.runs import Group, Run
from dmsflow.reporting.view import (
    COSTS,
    MOST_PANELS,
    Blocks,
    NoData,
    Panel,
    Panels,
    all_runs,
    describe_count,
    describe_cut,
    style_of,
)
from dmsflow.settings import RENAMED_METHODS
from dmsflow.terminal import milliseconds, spelled_threads

MOST_BARS = 12  # of a chart of latencies
MOST_OPERATIONS = 14  # that a chart names, the slowest; the others are one row
MOST_OPERATION_CHARTS = 3
FRONTS = {"memory_mib": "memory", "macs_m": "MACs"}


# --- accuracy -----------------------------------------------------------------------------------


def accuracy_section(groups: Sequence[Group]) -> Blocks | NoData:
    """Top-1 over memory and MACs, apart for each data set: what is hard on one is easy on another."""
    trained = [
        replace(group, runs=runs)
        for group in groups
        if (runs := tuple(run for run in group.runs if run.top1_percent is not None))
    ]
    if not trained:
        return NoData("no run is trained yet (dmsflow train)")
    blocks: Blocks = []
    for number, data in enumerate(dict.fromkeys(group.runs[0].last.data.name for group in trained)):
        members = [group for group in trained if group.runs[0].last.data.name == data]
        members.sort(key=lambda group: -_mean_top1(group))
        fronts = {name: _front(members, name) for name in FRONTS}
        if len(members) > 1:
            blocks.append(_accuracy_panels(data, members, fronts, f"-{number + 1}" if number else ""))
        blocks.append(page.table(f"Accuracy and cost on {data}", _accuracy_table(members, fronts)))
    return blocks


def _mean_top1(group: Group) -> float:
    return statistics.fmean(group.top1_percent())


def _front(groups: Sequence[Group], name: str) -> list[Group]:
    """From the cheapest on, each group whose mean is above all cheaper ones'."""
    front: list[Group] = []
    for group in sorted(groups, key=lambda group: (group.mean(name), -_mean_top1(group))):
        if not front or _mean_top1(group) > _mean_top1(front[-1]):
            front.append(group)
    return front


def _accuracy_panels(data: str, groups: Sequence[Group], fronts: Mapping[str, list[Group]], ending: str) -> Panels:
    legend = {group.label + _count_draws(group): style_of(group) for group in groups}
    if len(legend) > LEGEND_ROWS:  # too many to name: methods by their markers, and budgets by their colours
        legend = {group.method: replace(style_of(group), index=-1) for group in groups}
        legend |= {group.budgets: Style(group.colour, ".") for group in groups}
    panels = []
    for name, front in fronts.items():
        title, words = COSTS[name]
        points = []
        for group in groups:
            top1 = group.top1_percent()
            each = [(getattr(run, name), run.top1_percent or 0.0) for run in group.runs]
            points.append(Point(group.mean(name), statistics.fmean(top1), style_of(group), _deviation(top1), each))
        corners = [(group.mean(name), _mean_top1(group)) for group in front]
        figure = draw_plane(f"Top-1 against {title.lower()}", words, points, corners, legend)
        stem = f"accuracy-{name.partition('_')[0]}{ending}"
        panels.append(Panel(stem, f"Top-1 against {words}, {data}", figure))
    caption = (
        "Top-1 on the test split. Filled marks are searched, hollow ones are baselines: networks that fill the same "
        "budgets without a search. A mark is the mean of runs that differ in their seed alone, its whisker their "
        "deviation, and small marks are the runs."
    )
    return Panels(panels, caption)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _count_draws(group: Group) -> str:
    if group.method == "random":
        return f", {len(group.top1_percent())} draws"
    return describe_count(len(group.runs))


def _accuracy_table(groups: Sequence[Group], fronts: Mapping[str, list[Group]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for group in groups:
        top1 = group.top1_percent()
        deviation, size = _deviation(top1), _mean(group.runs, "export", "file_bytes")
        rows.append(
            {
                "settings": group.label,
                "top-1 %": f"{statistics.fmean(top1):.2f}",
                "± deviation": None if deviation is None else f"{deviation:.2f}",
                "runs": f"{len(top1)} draws" if group.method == "random" and len(top1) > 1 else len(top1),
                "MiB": f"{group.mean('memory_mib'):.4f}",
                "M MACs": f"{group.mean('macs_m'):.2f}",
                "file, bytes": None if size is None else f"{size:,.0f}",
                "latency ms": _describe_ms(_mean(group.runs, "bench", "latency_ms_median")),
                "on the front of": ", ".join(FRONTS[name] for name, front in fronts.items() if group in front),
            }
        )
    return rows


def _mean(runs: Sequence[Run], stage: str, name: str) -> float | None:
    values = [value for run in runs if (value := run.metrics(stage).get(name)) is not None]
    return statistics.fmean(values) if values else None


def _describe_ms(ms: float | None, *, is_modelled: bool = False) -> str | None:
    """Milliseconds, with the word that must stand beside what nobody measured."""
    return None if ms is None else f"{milliseconds(ms)}{' modelled' * is_modelled}"


# --- latency ------------------------------------------------------------------------------------

# By the words of the legend; the profile of a bench says which of the two predictions it is.
MEASURED, PREDICTED = "1-bit file, median; whisker to p90", "predicted by its profile"
MODELLED, FLOAT32 = "predicted by a modelled profile", "float32 network of these widths"
LATENCY_STYLES = {
    MEASURED: Style(0, "o"),
    PREDICTED: Style(1, "D", False),
    MODELLED: Style(3, "D", False),
    FLOAT32: Style(2, "s", False),
}


def latency_section(groups: Sequence[Group]) -> Blocks | NoData:
    """Measured, predicted and the float32 baseline, a chart for each processor, runtime and number of threads."""
    platforms: dict[str, dict[str, list[Run]]] = {}
    for group in groups:
        for run in group.runs:
            if "bench" in run.stages:
                platforms.setdefault(_describe_platform(run), {}).setdefault(group.label, []).append(run)
    if not platforms:
        return NoData("no run is measured yet (dmsflow bench)")
    panels: list[Panel] = []
    rows: list[dict[str, object]] = []
    for name, labelled in platforms.items():
        measured = [_read_latency(label, runs, name) for label, runs in labelled.items()]
        rows += [row for _, row in measured]
        for start in range(0, len(measured), MOST_BARS):
            bars = [bar for bar, _ in measured[start : start + MOST_BARS]]
            figure = draw_dots(name, "ms for one image", bars, LATENCY_STYLES)
            panels.append(Panel(f"latency-{len(panels) + 1}", f"Latency: {name}", figure))
    caption = "Milliseconds for one image, on one scale from zero; of several seeds the mean."
    caption += describe_cut(MOST_PANELS, len(panels), "charts")
    blocks: Blocks = [Panels(panels[:MOST_PANELS], caption)]
    blocks.append(page.table("Latency: measured, predicted, and beside float32", rows))
    runs = [run for run in all_runs(groups) if run.metrics("bench").get("operations")]
    if runs:
        charts = [_operations_panel(run, number) for number, run in enumerate(runs[:MOST_OPERATION_CHARTS], 1)]
        words = "Time of each operation, in order. Timing them slows the runtime: their sum is not the median above."
        blocks.append(Panels(charts, words + describe_cut(len(charts), len(runs), "runs")))
    return blocks


def _describe_platform(run: Run) -> str:
    """Processor, runtime and threads, and the word where nothing was measured."""
    environment = run.stages["bench"].environment
    machine = measured_machine(environment)
    runtimes = [runtime for label, runtime in environment.get("runtimes", {}).items() if label != "float32"]
    words = [machine.get("processor"), *runtimes, spelled_threads(environment.get("threads", 1))]
    return ", ".join(filter(None, (*words, "modelled" if machine.get("method") == "modelled" else "")))


def _read_latency(label: str, runs: Sequence[Run], platform: str) -> tuple[Bar, dict[str, object]]:
    """A row of the chart and of the table: the means of some runs."""
    environment = runs[0].stages["bench"].environment
    used: dict[str, Any] = environment.get("profile") or {}
    is_modelled = used.get("method") == "modelled"
    names = {
        MEASURED: "latency_ms_median",
        MODELLED if is_modelled else PREDICTED: "predicted_latency_ms",
        FLOAT32: "float32_latency_ms_median",
    }
    median, predicted, float32 = (_mean(runs, "bench", name) for name in names.values())
    values = zip(names, (median, predicted, float32), strict=True)
    p90 = _mean(runs, "bench", "latency_ms_p90")
    whisker = None if p90 is None or median is None else max(0.0, p90 - median)
    bar = Bar(label + describe_count(len(runs)), {part: ms for part, ms in values if ms is not None}, whisker)
    error, ratio = (_mean(runs, "bench", name) for name in ("prediction_error_percent", "latency_ratio_to_float32"))
    return bar, {
        "settings": label,
        "runs": len(runs),
        "median ms": _describe_ms(median),
        "p90 ms": _describe_ms(p90),
        "predicted ms": _describe_ms(predicted, is_modelled=is_modelled),
        "error %": None if error is None else f"{error:+.1f}",
        "float32 ms": _describe_ms(float32),
        "÷ float32": None if ratio is None else f"{ratio:.2f}",
        "on": platform,
        "profile": used.get("name"),
        "date": environment.get("date"),
    }


def _operations_panel(run: Run, number: int) -> Panel:
    operations = run.metrics("bench")["operations"]
    slowest = sorted(range(len(operations)), key=lambda at: -operations[at]["ms"])
    shown = [operations[at] for at in sorted(slowest[:MOST_OPERATIONS])]
    bars = [Bar(f"{row['name']} · {row['op']}", {"time": row["ms"]}) for row in shown]
    if others := slowest[MOST_OPERATIONS:]:
        bars.append(Bar(f"{len(others)} others", {"time": sum(operations[at]["ms"] for at in sorted(others))}))
    figure = draw_dots(f"Operations: {run.label}", "ms", bars, {"time": Style(0)})
    return Panel(f"operations-{number}", f"Time of each operation: {run.label}", figure)


# --- the end of the search, and the facts -------------------------------------------------------


def comparison_section(groups: Sequence[Group]) -> Blocks | NoData:
    """How the result of each search compares with the baselines, weights shared."""
    rows: list[dict[str, object]] = []
    verdicts: dict[str, list[bool]] = {}
    counts: dict[str, None] = {}
    for run in all_runs(groups):
        chosen = run.metrics("search").get("chosen", "")
        chosen = RENAMED_METHODS.get(chosen, chosen)
        for row in run.comparison:
            difference, error = row["loss_difference"], row["standard_error"]
            counts[str(row["images"])] = None
            if row["name"] != "searched":
                verdicts.setdefault(row["name"], []).append(difference > error)
            rows.append(
                {
                    "run": run.label,
                    "widths of": row["name"],
                    "": "chosen" if row["name"] == chosen else "",
                    "loss − searched": f"{difference:+.4f} ± {error:.4f}",
                    "loss": f"{row['loss']:.4f}",
                    "top-1 %": f"{row['top1_percent']:.2f}",
                    "MiB": f"{row['memory_mib']:.4f}",
                    "M MACs": f"{row['macs_m']:.2f}",
                    "predicted ms": _describe_ms(row.get("predicted_latency_ms"), is_modelled=run.is_modelled),
                    "widths": " ".join(map(str, row["widths"].values())),
                }
            )
    if not rows:
        return NoData("no run compared its result with baselines (only a search does)")
    words = (
        f"Shared weights, whole channels, {', '.join(counts)} training images that no search saw. The difference of "
        "losses is paired, with its standard error; above zero, the search’s widths are better. Baselines are networks "
        "that fill the same budgets without a search."
    )
    beaten = (f"{name} in {sum(better)} of {len(better)}" for name, better in verdicts.items())
    words += f" By more than that error the searched widths beat {', '.join(beaten)}." if verdicts else ""
    return [page.paragraph(words), page.table("Loss of the searched widths and of the baselines", rows)]


def facts_section(groups: Sequence[Group]) -> Blocks | NoData:
    """What each run is of, where it ran, and the commands that write it again."""
    rows = []
    for run in all_runs(groups):
        ran = run.last.environment
        versions = ran.get("versions", {})
        seconds = {stage: run.metrics(stage).get("seconds") for stage in ("search", "train")}
        rows.append(
            {
                "run": run.label,
                "folder": run.folder,
                "stages": " → ".join(run.stages),
                "data": run.last.data.name,
                "training images": run.last.data.train_images or "all",
                "search seed": run.settings("search").get("seed"),
                "train seed": run.settings("train").get("seed"),
                "dmsflow": versions.get("dmsflow"),
                "commit": ran.get("commit"),
                "torch": versions.get("torch"),
                "processor": measured_machine(ran).get("processor"),
                "device": ran.get("device" if "bench" in run.stages else "torch_device"),
                "date": ran.get("date"),
                **{f"{stage} s": None if each is None else f"{each:.0f}" for stage, each in seconds.items()},
            }
        )
    commands = [
        page.details(run.label, "\n".join(f"{stage}: {shlex.join(each.command)}" for stage, each in run.stages.items()))
        for run in all_runs(groups)
    ]
    return [page.table("Facts of every run", rows), page.heading(3, "Commands"), *commands]

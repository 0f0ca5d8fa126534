"""Sections on what came out: accuracy, latency, the comparison at the end of the search, and the facts of every run."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dmsflow.environment import measured_machine
from dmsflow.reporting import figures, page
from dmsflow.reporting.figures import Bar, Point, Style
from dmsflow.reporting.runs import Group, Run
from dmsflow.reporting.view import MEASURES, PANELS, TITLES, Absent, Blocks, Figures, Panel, View, numbered, some, times
from dmsflow.settings import RENAMED_METHODS
from dmsflow.terminal import milliseconds, spelled_threads

ROWS = 12  # of a chart of latencies
OPERATIONS = 14  # that a chart names; the rest is one row
OPERATIONS_RUNS = 3  # with such a chart


# --- accuracy -----------------------------------------------------------------------------------


def accuracy(view: View) -> Blocks | Absent:
    """Trained runs, apart by their data set: what is hard on one is easy on another."""
    trained = []
    for group in view.groups:
        if members := tuple(run for run in group.runs if run.top1_percent is not None):
            trained.append(replace(group, runs=members))
    if not trained:
        return Absent("no run is trained yet (dmsflow train)")
    blocks: Blocks = []
    for number, data in enumerate(dict.fromkeys(group.runs[0].last.data.name for group in trained)):
        groups = [group for group in trained if group.runs[0].last.data.name == data]
        fronts = {name: _front(groups, name) for name in ("memory_mib", "macs_m")}
        if len(groups) > 1:
            blocks.append(_planes(view, data, groups, fronts, number))
        blocks.append(_accuracy_table(data, groups, fronts))
    return blocks


def _planes(view: View, data: str, groups: Sequence[Group], fronts: dict[str, list[Group]], number: int) -> Figures:
    marks = _marks(view, groups)
    panels: list[Panel] = []
    for name, front in fronts.items():
        points = [_point(view, group, name) for group in groups]
        corners = [(group.mean(name), _mean_top1(group)) for group in front]
        drawn = figures.plane(f"Top-1 against {TITLES[name]}", MEASURES[name], "top-1, %", points, corners, marks)
        stem = f"accuracy-{name.partition('_')[0]}"
        label = f"Top-1 against {MEASURES[name]}, {data}"
        panels.append(Panel(stem if number == 0 else numbered(stem, number), label, drawn))
    caption = (
        "Top-1 on the test split. Filled marks are searched, hollow ones are baselines: networks that fill the same budgets without a search; a mark is the "
        "mean of runs that differ in their seed alone, its whisker their deviation, and small marks are the runs."
    )
    return Figures(tuple(panels), caption)


def _accuracy_table(data: str, groups: Sequence[Group], fronts: dict[str, list[Group]]) -> str:
    rows = [_accuracy_row(group, fronts) for group in sorted(groups, key=lambda group: -_mean_top1(group))]
    head = (
        "settings",
        "top-1 %",
        "± deviation",
        "runs",
        "MiB",
        "M MACs",
        "file, bytes",
        "latency ms",
        "on the front of",
    )
    return page.table(f"Accuracy and cost on {data}", head, rows)


def _mean_top1(group: Group) -> float:
    return statistics.fmean(group.top1_percent())


def _front(groups: Sequence[Group], name: str) -> list[Group]:
    """From the cheapest on, each group whose mean is above all cheaper ones'."""
    found: list[Group] = []
    for group in sorted(groups, key=lambda group: (group.mean(name), -_mean_top1(group))):
        if not found or _mean_top1(group) > _mean_top1(found[-1]):
            found.append(group)
    return found


def _point(view: View, group: Group, name: str) -> Point:
    top1 = group.top1_percent()
    return Point(
        group.label,
        group.mean(name),
        statistics.fmean(top1),
        view.style(group),
        _deviation(top1),
        [(getattr(run, name), run.top1_percent) for run in group.runs if run.top1_percent is not None],
    )


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _marks(view: View, groups: Sequence[Group]) -> dict[str, Style]:
    """The legend: every group, or where that is long, methods by their shapes and the rest by colours."""
    if len(groups) <= 8:
        return {group.label + _counted(group): view.style(group) for group in groups}
    methods = {group.method: Style(-1, view.style(group).marker, view.style(group).filled) for group in groups}
    rests = {group.rest: Style(view.style(group).index, ".", True) for group in groups if group.rest}
    return {**methods, **rests}


def _counted(group: Group) -> str:
    """What a label says of how many runs there are."""
    return f", {len(group.top1_percent())} draws" if group.method == "random" else times(len(group.runs))


def _accuracy_row(group: Group, fronts: dict[str, list[Group]]) -> tuple[object, ...]:
    top1 = group.top1_percent()
    deviation = _deviation(top1)
    sizes = [size for run in group.runs if (size := run.metrics("export").get("file_bytes")) is not None]
    latencies = [ms for run in group.runs if (ms := run.metrics("bench").get("latency_ms_median")) is not None]
    runs_told = f"{len(top1)} draws" if group.method == "random" and len(top1) > 1 else str(len(top1))
    return (
        group.label,
        f"{statistics.fmean(top1):.2f}",
        None if deviation is None else f"{deviation:.2f}",
        runs_told,
        f"{group.mean('memory_mib'):.4f}",
        f"{group.mean('macs_m'):.2f}",
        f"{statistics.fmean(sizes):,.0f}" if sizes else None,
        milliseconds(statistics.fmean(latencies)) if latencies else None,
        ", ".join(name.partition("_")[0].replace("macs", "MACs") for name, front in fronts.items() if group in front),
    )


# --- latency ------------------------------------------------------------------------------------

LOOKS = {
    "measured": (Style(0, "o"), "1-bit file, median; whisker to p90"),
    "predicted": (Style(1, "D", False), "predicted by its profile"),
    "modelled": (Style(3, "D", False), "predicted by a modelled profile"),
    "float32": (Style(2, "s", False), "float32 network of these widths"),
}


def latency(view: View) -> Blocks | Absent:
    """Predicted, measured and the float32 baseline, one chart a platform."""
    platforms: dict[str, list[tuple[Group, list[Run]]]] = {}
    for group in view.groups:
        here: dict[str, list[Run]] = {}
        for run in group.runs:
            if "bench" in run.stages:
                here.setdefault(_platform(run), []).append(run)
        for name, members in here.items():
            platforms.setdefault(name, []).append((group, members))
    if not platforms:
        return Absent("no run is measured yet (dmsflow bench)")
    panels: list[Panel] = []
    for name, rows in platforms.items():
        for start in range(0, len(rows), ROWS):
            bars = [_latency_bar(group, members) for group, members in rows[start : start + ROWS]]
            figure = figures.dots(name, "ms for one image", bars, LOOKS)
            panels.append(Panel(f"latency-{len(panels) + 1}", f"Latency: {name}", figure))
    caption = "Milliseconds for one image, on one scale from zero; of several seeds the mean."
    caption += some(PANELS, len(panels), "charts")
    blocks: Blocks = [Figures(tuple(panels[:PANELS]), caption), _latency_table(platforms)]
    told = [run for run in view.runs if run.metrics("bench").get("operations")]
    if told:
        charts = tuple(_operations_panel(run, index) for index, run in enumerate(told[:OPERATIONS_RUNS]))
        words = "Time of each operation as the runtime tells it, in order; telling slows it, so their sum is not the median above."
        blocks.append(Figures(charts, words + some(len(charts), len(told), "runs")))
    return blocks


def _platform(run: Run) -> str:
    """What a time is of: processor, runtime, threads, and the word where nothing was measured."""
    ran = run.stages["bench"].environment
    machine = measured_machine(ran)
    runtimes = [runtime for label, runtime in ran.get("runtimes", {}).items() if label != "float32"]
    words = [machine.get("processor"), *runtimes, spelled_threads(ran.get("threads", 1))]
    return ", ".join(filter(None, (*words, "modelled" if machine.get("method") == "modelled" else "")))


def _mean(members: Sequence[Run], name: str) -> float | None:
    values = [value for run in members if (value := run.metrics("bench").get(name)) is not None]
    return statistics.fmean(values) if values else None


def _latency_bar(group: Group, members: Sequence[Run]) -> Bar:
    guess = "modelled" if _modelled(members[0]) else "predicted"
    named = {"measured": "latency_ms_median", guess: "predicted_latency_ms", "float32": "float32_latency_ms_median"}
    values = {part: value for part, name in named.items() if (value := _mean(members, name)) is not None}
    p90 = _mean(members, "latency_ms_p90")
    error = None if p90 is None or "measured" not in values else max(0.0, p90 - values["measured"])
    return Bar(group.label + times(len(members)), values, error)


def _latency_table(platforms: dict[str, list[tuple[Group, list[Run]]]]) -> str:
    rows = []
    for name, found in platforms.items():
        for group, members in found:
            names = ("latency_ms_median", "latency_ms_p90", "predicted_latency_ms", "prediction_error_percent")
            median, p90, predicted, error = (_mean(members, each) for each in names)
            float32, ratio = (
                _mean(members, each) for each in ("float32_latency_ms_median", "latency_ratio_to_float32")
            )
            rows.append(
                (
                    group.label,
                    len(members),
                    *(None if ms is None else milliseconds(ms) for ms in (median, p90)),
                    _told(predicted, _modelled(members[0])),
                    None if error is None else f"{error:+.1f}",
                    None if float32 is None else milliseconds(float32),
                    None if ratio is None else f"{ratio:.2f}",
                    name,
                    _profile_of(members[0]).get("name"),
                    members[0].stages["bench"].environment.get("date"),
                )
            )
    head = (
        "settings",
        "runs",
        "median ms",
        "p90 ms",
        "predicted ms",
        "error %",
        "float32 ms",
        "÷ float32",
        "on",
        "profile",
        "date",
    )
    return page.table("Latency: measured, predicted, and beside float32", head, rows)


def _told(ms: float | None, modelled: bool) -> str | None:
    """Milliseconds, with the word that must stand beside what nobody measured."""
    return None if ms is None else f"{milliseconds(ms)} modelled" if modelled else milliseconds(ms)


def _modelled(run: Run) -> bool:
    return _profile_of(run).get("method") == "modelled"


def _profile_of(run: Run) -> dict[str, Any]:
    return run.stages["bench"].environment.get("profile") or {}


def _operations_panel(run: Run, index: int) -> Panel:
    rows = run.metrics("bench")["operations"]
    shown = sorted(sorted(range(len(rows)), key=lambda at: -rows[at]["ms"])[:OPERATIONS])
    bars = [Bar(f"{rows[at]['name']} · {rows[at]['op']}", {"time": rows[at]["ms"]}) for at in shown]
    if left := sum(row["ms"] for at, row in enumerate(rows) if at not in shown):
        bars.append(Bar(f"{len(rows) - len(shown)} others", {"time": left}))
    figure = figures.dots(f"Operations: {run.label}", "ms", bars, {"time": (Style(0), "time of the operation")})
    return Panel(f"operations-{index + 1}", f"Time of each operation: {run.label}", figure)


# --- the end of the search, and the facts -------------------------------------------------------


def comparison(view: View) -> Blocks | Absent:
    """What each search found when it compared its result with the baselines, weights shared."""
    told = [run for run in view.runs if run.metrics("search").get("comparison")]
    if not told:
        return Absent(
            "no run compared its result with baselines (a baseline has none, nor has the search as published)"
        )
    rows: list[tuple[object, ...]] = []
    verdicts: dict[str, list[bool]] = {}
    for run in told:
        metrics = run.metrics("search")
        for row in metrics["comparison"]:
            name = RENAMED_METHODS.get(row["name"], row["name"])
            difference, error = row["loss_difference"], row["standard_error"]
            if name != "searched":
                verdicts.setdefault(name, []).append(difference > error)
            predicted = row.get("predicted_latency_ms")
            rows.append(
                (
                    run.label,
                    name,
                    "chosen" if row["name"] == metrics.get("chosen") else "",
                    f"{difference:+.4f} ± {error:.4f}",
                    f"{row['loss']:.4f}",
                    f"{row['top1_percent']:.2f}",
                    f"{row['memory_mib']:.4f}",
                    f"{row['macs_m']:.2f}",
                    _told(predicted, run.predicts_modelled),
                    " ".join(map(str, row["widths"].values())),
                )
            )
    head = ("run", "widths of", "", "loss − searched", "loss", "top-1 %", "MiB", "M MACs", "predicted ms", "widths")
    images = ", ".join(dict.fromkeys(str(run.metrics("search")["comparison"][0]["images"]) for run in told))
    words = (
        f"Shared weights, whole widths, {images} training images that chose nothing. The difference of losses is paired, "
        "with its standard error; above zero, the search’s widths are better."
    )
    beaten = (f"{name} in {sum(better)} of {len(better)}" for name, better in verdicts.items())
    words += f" By more than that error they beat {', '.join(beaten)}." if verdicts else ""
    return [page.paragraph(words), page.table("Loss of the searched widths and of the baselines", head, rows)]


def facts(view: View) -> Blocks | Absent:
    """What each run is of, where it ran, and the commands that write it again."""
    rows = [_facts(run) for run in view.runs]
    head = (
        "run",
        "folder",
        "stages",
        "data",
        "training images",
        "search seed",
        "train seed",
        "dmsflow",
        "commit",
        "torch",
        "processor",
        "device",
        "date",
        "search s",
        "train s",
    )
    commands = [
        page.details(run.label, "\n".join(f"{stage}: {shlex.join(each.command)}" for stage, each in run.stages.items()))
        for run in view.runs
    ]
    return [page.table("Facts of every run", head, rows), page.heading(3, "Commands"), *commands]


def _facts(run: Run) -> tuple[object, ...]:
    ran = run.last.environment
    versions = ran.get("versions", {})
    device = run.stages["bench"].environment.get("device") if "bench" in run.stages else ran.get("torch_device")
    seconds = (run.metrics(stage).get("seconds") for stage in ("search", "train"))
    return (
        run.label,
        run.path.parent,
        " → ".join(run.stages),
        run.last.data.name,
        run.last.data.train_images or "all",
        run.settings("search").get("seed"),
        run.settings("train").get("seed"),
        versions.get("dmsflow"),
        ran.get("commit"),
        versions.get("torch"),
        measured_machine(ran).get("processor"),
        device,
        ran.get("date"),
        *(None if each is None else f"{each:.0f}" for each in seconds),
    )

"""Sections on what came out: accuracy, latency, the comparison at the end of the search, and the facts of every run."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmsflow.environment import measured_machine
from dmsflow.reporting import page, view
from dmsflow.reporting.figures import LEGEND_ROWS, Drawing, Series, Style, draw_plane, draw_rows
from dmsflow.reporting.runs import Group, Run
from dmsflow.reporting.view import Blocks, Panel, Panels, Section, all_runs, describe_cut, describe_mean, style_of
from dmsflow.terminal import milliseconds, spelled_threads

MOST_BARS = 12  # rows of a chart of latencies
FRONTS = ("memory", "MACs")  # the first two results of a group, by the name of the front


# --- accuracy -----------------------------------------------------------------------------------


def accuracy_section(groups: Sequence[Group]) -> Section:
    """Top-1 over memory and MACs, apart for each data set: what is hard on one is easy on another."""
    trained = [group for group in groups if group.results()]
    blocks: Blocks = []
    for number, data in enumerate(dict.fromkeys(group.runs[0].last.data.name for group in trained)):
        members = [group for group in trained if group.runs[0].last.data.name == data]
        means = {
            group.label: [statistics.fmean(each) for each in zip(*group.results(), strict=True)] for group in members
        }
        members.sort(key=lambda group: -means[group.label][2])
        # From the cheapest on, each group whose mean is above all cheaper ones'.
        fronts: dict[str, list[str]] = {}
        for at, name in enumerate(FRONTS):
            front = fronts[name] = []
            for label in sorted(means, key=lambda label: (means[label][at], -means[label][2])):
                if not front or means[label][2] > means[front[-1]][2]:
                    front.append(label)
        if len(members) > 1:
            corners = [
                [(means[label][at], means[label][2]) for label in fronts[name]] for at, name in enumerate(FRONTS)
            ]
            blocks.append(_accuracy_panels(data, members, corners, f"-{number + 1}" if number else ""))
        rows = [_accuracy_row(group, means[group.label], fronts) for group in members]
        blocks.append(page.table(f"Accuracy and cost on {data}", rows))
    return blocks or "no run is trained yet (dmsflow train)"


def _accuracy_panels(
    data: str, groups: Sequence[Group], corners: Sequence[Sequence[tuple[float, float]]], ending: str
) -> Panels:
    legend = {f"{group.label}{_count_results(group)}": style_of(group) for group in groups}
    if len(legend) >= LEGEND_ROWS:  # too many to name: methods by their markers, and budgets by their colours
        legend = {group.method: replace(style_of(group), index=-1) for group in groups}
        legend |= {group.budgets: Style(group.colour, ".") for group in groups}
    panels = []
    for at, (name, front) in enumerate(zip(("memory_mib", "macs_m"), corners, strict=True)):
        title, words = view.COSTS[name]
        points = []
        for group in groups:
            results = group.results()
            points.append(Series("", [row[at] for row in results], [row[2] for row in results], style_of(group)))
        figure = draw_plane(f"Top-1 against {title.lower()}", words, points, front, legend)
        stem = f"accuracy-{name.partition('_')[0]}{ending}"
        panels.append(Panel(stem, f"Top-1 against {words}, {data}", figure))
    caption = (
        "Top-1 on the test split. Filled marks are searched, hollow ones are baselines: networks that fill the same "
        "budgets without a search. A mark is the mean of runs that differ in their seed alone, its whisker their "
        "deviation, and small marks are the runs."
    )
    return Panels(panels, caption)


def _count_results(group: Group) -> str:
    count, unit = len(group.results()), "draws" if group.method == "random" else "seeds"
    return f", {count} {unit}" if count > 1 else ""


def _accuracy_row(group: Group, means: Sequence[float], fronts: Mapping[str, list[str]]) -> dict[str, object]:
    memory, macs, top1 = means
    values, size = [row[2] for row in group.results()], _mean(group.runs, "export", "file_bytes")
    return {
        "settings": group.label,
        "top-1 %": f"{top1:.2f}",
        "± deviation": f"{statistics.stdev(values):.2f}" if len(values) > 1 else None,
        "runs": f"{len(values)} draws" if group.method == "random" and len(values) > 1 else len(values),
        "MiB": f"{memory:.4f}",
        "M MACs": f"{macs:.2f}",
        "file, bytes": None if size is None else f"{size:,.0f}",
        "latency ms": _format_ms(_mean(group.runs, "bench", "latency_ms_median")),
        "on the front of": ", ".join(name for name, front in fronts.items() if group.label in front),
    }


def _mean(runs: Sequence[Run], stage: str, name: str) -> float | None:
    values = [value for run in runs if (value := run.metrics(stage).get(name)) is not None]
    return statistics.fmean(values) if values else None


def _format_ms(ms: float | None, word: str = "") -> str | None:
    return None if ms is None else milliseconds(ms) + word


# --- latency ------------------------------------------------------------------------------------

# By metric of a bench: the words of the legend, and the look.
LATENCIES = {
    "latency_ms_median": ("1-bit file, median; whisker to p90", Style(0, "o")),
    "predicted_latency_ms": ("predicted by its profile", Style(1, "D", False)),
    "float32_latency_ms_median": ("float32 network of these widths", Style(2, "s", False)),
}
MODELLED = ("predicted by a modelled profile", Style(3, "D", False))


def latency_section(groups: Sequence[Group]) -> Section:
    """Measured, predicted and the float32 baseline, a chart for each processor, runtime and number of threads."""
    platforms: dict[str, dict[str, list[Run]]] = {}
    for group in groups:
        for run in group.runs:
            if "bench" in run.stages:
                platforms.setdefault(_describe_platform(run), {}).setdefault(group.label, []).append(run)
    if not platforms:
        return "no run is measured yet (dmsflow bench)"
    panels: list[Panel] = []
    rows = []
    for platform, labelled in platforms.items():
        rows += [_latency_row(label, runs, platform) for label, runs in labelled.items()]
        pairs = [*labelled.items()]
        for start in range(0, len(pairs), MOST_BARS):
            figure = _draw_latencies(platform, dict(pairs[start : start + MOST_BARS]))
            panels.append(Panel(f"latency-{len(panels) + 1}", f"Latency: {platform}", figure))
    caption = "Milliseconds for one image, on one scale from zero; of several seeds the mean."
    caption += describe_cut(view.MOST_PANELS, len(panels), "charts")
    table = page.table("Latency: measured, predicted, and beside float32", rows)
    return [Panels(panels[: view.MOST_PANELS], caption), table]


def _describe_platform(run: Run) -> str:
    """Processor, runtime and threads, and the word where nothing was measured."""
    environment = run.stages["bench"].environment
    machine = measured_machine(environment)
    runtimes = [runtime for label, runtime in environment.get("runtimes", {}).items() if label != "float32"]
    words = [machine.get("processor"), *runtimes, spelled_threads(environment.get("threads", 1))]
    return ", ".join(filter(None, (*words, "modelled" if machine.get("method") == "modelled" else "")))


def _profile_of(run: Run) -> dict[str, Any]:
    return run.stages["bench"].environment.get("profile") or {}


def _draw_latencies(platform: str, labelled: Mapping[str, Sequence[Run]]) -> Drawing:
    series = []
    for row, runs in enumerate(labelled.values()):
        for name, look in LATENCIES.items():
            if (ms := _mean(runs, "bench", name)) is not None:
                is_modelled = name.startswith("predicted") and _profile_of(runs[0]).get("method") == "modelled"
                label, style = MODELLED if is_modelled else look
                p90 = _mean(runs, "bench", "latency_ms_p90") if name == "latency_ms_median" else None
                series.append(Series(label, [ms], [row], style, () if p90 is None else [max(0.0, p90 - ms)]))
    labels = [label + describe_mean(len(runs)) for label, runs in labelled.items()]
    return draw_rows(platform, "ms for one image", labels, series)


def _latency_row(label: str, runs: Sequence[Run], platform: str) -> dict[str, object]:
    used = _profile_of(runs[0])
    word = " modelled" if used.get("method") == "modelled" else ""  # must stand beside what nobody measured
    error, ratio = (_mean(runs, "bench", name) for name in ("prediction_error_percent", "latency_ratio_to_float32"))
    return {
        "settings": label,
        "runs": len(runs),
        "median ms": _format_ms(_mean(runs, "bench", "latency_ms_median")),
        "p90 ms": _format_ms(_mean(runs, "bench", "latency_ms_p90")),
        "predicted ms": _format_ms(_mean(runs, "bench", "predicted_latency_ms"), word),
        "error %": None if error is None else f"{error:+.1f}",
        "float32 ms": _format_ms(_mean(runs, "bench", "float32_latency_ms_median")),
        "÷ float32": None if ratio is None else f"{ratio:.2f}",
        "on": platform,
        "profile": used.get("name"),
        "date": runs[0].stages["bench"].environment.get("date"),
    }


# --- the end of the search, and the facts -------------------------------------------------------


def comparison_section(groups: Sequence[Group]) -> Section:
    """How the result of each search compares with the baselines, weights shared."""
    rows: list[dict[str, object]] = []
    verdicts: dict[str, list[bool]] = {}
    counts: dict[str, None] = {}
    for run in all_runs(groups):
        metrics = run.metrics("search")
        for row in metrics.get("comparison") or ():
            difference, error = row["loss_difference"], row["standard_error"]
            counts[str(row["images"])] = None
            if row["name"] != "searched":
                verdicts.setdefault(row["name"], []).append(difference > error)
            rows.append(
                {
                    "run": run.label,
                    "widths of": row["name"],
                    "": "chosen" if row["name"] == metrics.get("chosen") else "",
                    "loss − searched": f"{difference:+.4f} ± {error:.4f}",
                    "loss": f"{row['loss']:.4f}",
                    "top-1 %": f"{row['top1_percent']:.2f}",
                    "MiB": f"{row['memory_mib']:.4f}",
                    "M MACs": f"{row['macs_m']:.2f}",
                    "predicted ms": _format_ms(row.get("predicted_latency_ms"), " modelled" * run.is_modelled),
                    "widths": " ".join(map(str, row["widths"].values())),
                }
            )
    if not rows:
        return "no run compared its result with baselines (only a search does)"
    words = (
        f"Shared weights, whole channels, {', '.join(counts)} training images that no search saw. The difference of "
        "losses is paired, with its standard error; above zero, the search’s widths are better. Baselines are networks "
        "that fill the same budgets without a search."
    )
    beaten = (f"{name} in {sum(better)} of {len(better)}" for name, better in verdicts.items())
    words += f" By more than that error the searched widths beat {', '.join(beaten)}." if verdicts else ""
    return [page.paragraph(words), page.table("Loss of the searched widths and of the baselines", rows)]


def facts_section(groups: Sequence[Group]) -> Section:
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

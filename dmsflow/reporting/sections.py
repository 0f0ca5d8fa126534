"""The sections of a report but for those over the rounds: result, accuracy, widths, size, files, comparison, facts.

Each is made from the runs that have its data, or else says why there is nothing to show.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from dmsflow.environment import measured_machine
from dmsflow.network import cost
from dmsflow.reporting import page
from dmsflow.reporting.figures import MARKERS, Drawing, Series, Style, draw_bars, draw_plane
from dmsflow.reporting.result import describe_comparison, describe_progress, describe_result
from dmsflow.reporting.runs import File, Group, Run, costs_of, uniform_widths
from dmsflow.terminal import milliseconds

MOST_PANELS = 12  # of one figure; a page with more takes long to draw and to read
MOST_GROUPS = 4  # that are drawn layer by layer: a panel for each width
MOST_NAMED = 8  # settings in the legend of a plane; more would be taller than the picture
# By metric: the words of a title, the words beside an axis.
COSTS = {
    "memory_mib": ("Memory", "memory, MiB"),
    "macs_m": ("Multiply-accumulates", "million MACs"),
    "file_kib": ("File", "file, KiB"),
    "predicted_latency_ms": ("Predicted latency", "predicted latency, ms"),
}
# By metric of a bench: the head of the column.
LATENCIES = {
    "latency_ms_median": "median ms",
    "latency_ms_p90": "p90 ms",
    "predicted_latency_ms": "predicted ms",
    "float32_latency_ms_median": "float32 ms",
    "int8_latency_ms_median": "int8 ms",
}


@dataclass(frozen=True)
class Panel:
    """One drawing: the name of its file, what a screen reader says, and the figure."""

    name: str
    label: str
    figure: Drawing


@dataclass(frozen=True)
class Panels:
    """Drawings that belong together, and what to see in them."""

    panels: Sequence[Panel]
    caption: str
    small: bool = False


Blocks: TypeAlias = list[Panels | str]  # strings are finished HTML
Section: TypeAlias = Blocks | str  # a string says why there is nothing to show


def all_runs(groups: Sequence[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


def style_of(group: Group) -> Style:
    """Budgets by colour, methods by marker; searches are filled, baselines hollow."""
    return Style(group.colour, MARKERS.get(group.method, "o"), group.is_searched)


def describe_cut(drawn: int, count: int) -> str:
    """A sentence where not all settings are drawn."""
    return f" Of {count} settings the first {drawn} {'is' if drawn == 1 else 'are'} drawn." if drawn < count else ""


def describe_mean(count: int) -> str:
    """What a label says of a mean of several runs."""
    return f", mean of {count}" if count > 1 else ""


# --- the result ---------------------------------------------------------------------------------


def result_section(groups: Sequence[Group]) -> Section:
    """What was found, what it cost, and whether a search was worth it; of a running search, how far it is."""
    running = [group for group in groups if group.is_running]
    finished = [group for group in groups if not group.is_running]
    chosen = [*running, *([group for group in finished if group.is_searched] or finished)]
    blocks: Blocks = []
    for group in chosen[:MOST_GROUPS]:
        facts = describe_progress(group.runs[0]) if group.is_running else describe_result(group, groups)
        blocks.append(page.facts(group.label, facts))
    if running:
        words = "The search is not finished. To have this page written again as it goes on: dmsflow report RUN --watch"
        blocks.append(page.paragraph(words))
    if cut := describe_cut(MOST_GROUPS, len(chosen)):
        blocks.append(page.paragraph(cut.strip()))
    return blocks


# --- accuracy -----------------------------------------------------------------------------------


def accuracy_section(groups: Sequence[Group]) -> Section:
    """Top-1 over memory and MACs, apart for each data set: what is hard on one is easy on another."""
    trained = [group for group in groups if group.results()]
    caption = (
        "Top-1 on the test split. Filled marks are searched, hollow ones are baselines: networks that fill the same "
        "budgets without a search. A mark is the mean of runs that differ in their seed alone, its whisker their "
        "deviation, and small marks are the runs."
    )
    blocks: Blocks = []
    for number, data in enumerate(dict.fromkeys(group.runs[0].last.data.name for group in trained), 1):
        members = [group for group in trained if group.runs[0].last.data.name == data]
        columns = {group.label: [*zip(*group.results(), strict=True)] for group in members}
        means = {label: [statistics.fmean(column) for column in each] for label, each in columns.items()}
        members.sort(key=lambda group: -means[group.label][2])
        legend = {group.label + _count_results(group): style_of(group) for group in members}
        if len(legend) > MOST_NAMED:  # methods by their markers, and budgets by their colours
            legend = {group.method: replace(style_of(group), index=-1) for group in members}
            legend |= {group.budgets: Style(group.colour, ".") for group in members}
        fronts: dict[str, list[str]] = {"memory": [], "MACs": []}
        panels = []
        for at, (name, front) in enumerate(fronts.items()):
            # From the cheapest on, each group whose mean is above all cheaper ones'.
            for label in sorted(means, key=lambda label: (means[label][at], -means[label][2])):
                if not front or means[label][2] > means[front[-1]][2]:
                    front.append(label)
            title, words = list(COSTS.values())[at]
            points = [Series("", columns[each.label][at], columns[each.label][2], style_of(each)) for each in members]
            corners = [(means[label][at], means[label][2]) for label in front]
            figure = draw_plane(f"Top-1 against {title.lower()}", words, points, corners, legend)
            stem = f"accuracy-{name.lower()}" + (f"-{number}" if number > 1 else "")
            panels.append(Panel(stem, f"Top-1 against {words}, {data}", figure))
        blocks += [Panels(panels, caption)] if len(members) > 1 else []
        rows = [_accuracy_row(group, means[group.label], fronts) for group in members]
        blocks.append(page.table(f"Accuracy and cost on {data}", rows))
    return blocks or "no run is trained yet (dmsflow train)"


def _count_results(group: Group) -> str:
    count, unit = len(group.results()), "draws" if group.method == "random" else "seeds"
    return f", {count} {unit}" if count > 1 else ""


def _accuracy_row(group: Group, means: Sequence[float], fronts: Mapping[str, list[str]]) -> dict[str, object]:
    values = [row[2] for row in group.results()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    count = f"{len(values)} draws" if group.method == "random" and len(values) > 1 else len(values)
    row: dict[str, object] = {"settings": group.label, "top-1 %": f"{means[2]:.2f}", "± deviation": _format(deviation)}
    row |= {"seeds": count, **_cost_cells(means)}
    return row | {"on the front of": ", ".join(name for name, front in fronts.items() if group.label in front)}


def _format(value: float | None, form: str = ".2f") -> str | None:
    return None if value is None else format(value, form)


def _format_ms(ms: float | None, word: str = "") -> str | None:
    return None if ms is None else milliseconds(ms) + word


def _cost_cells(costs: Sequence[float]) -> dict[str, object]:
    return {"MiB": f"{costs[0]:.4f}", "M MACs": f"{costs[1]:.2f}"}


# --- widths and size ----------------------------------------------------------------------------


def _worth_drawing(groups: Sequence[Group]) -> tuple[Sequence[Group], str]:
    """Searched networks, or else all but the uniform one, which others are compared with; and what is cut."""
    searched = [group for group in groups if group.is_searched]
    chosen = searched or [group for group in groups if group.method != "uniform"] or groups
    return chosen[:MOST_PANELS], describe_cut(MOST_PANELS, len(chosen))


def widths_section(groups: Sequence[Group]) -> Section:
    """Channels as bars over the layers, and a table for each network, since each has its own names."""
    chosen, cut = _worth_drawing(groups)
    panels = []
    for number, group in enumerate(chosen, 1):
        uniform = uniform_widths(group.runs[0])
        outline = {"uniform, within the same budgets": [*uniform.values()]} if uniform else None
        each = [[*run.widths.values()] for run in group.runs]
        means = {group.method + describe_mean(len(each)): [statistics.fmean(row) for row in zip(*each, strict=True)]}
        style, dots = style_of(group), each if len(each) > 1 else ()
        figure = draw_bars(group.label, "channels", [*group.runs[0].widths], means, style, dots=dots, outline=outline)
        panels.append(Panel(f"widths-{number}", f"Widths per layer: {group.label}", figure))
    caption = (
        "Channels of each named width, in the order of the layers. The outline is the uniform network within the same "
        "budgets: all base widths times one ratio. Where a bar is above it, the network spends more there."
    )
    blocks: Blocks = [Panels(panels, caption + cut)]
    networks = [run.network for run in all_runs(groups)]
    for network in (each for at, each in enumerate(networks) if each not in networks[:at]):
        base = costs_of(network, network.widths)
        rows: dict[str, dict[str, object]] = {"": {"run": "base widths", **network.widths, **_cost_cells(base)}}
        for group in groups:
            for run in (run for run in group.runs if run.network == network):
                same = all(other.widths == run.widths for other in group.runs)  # then they share a row
                row = {"run": group.label if same else run.label, **run.widths, **_cost_cells(run.costs)}
                rows.setdefault(f"{group.label} {run.widths}", row)
        blocks.append(page.table(f"Widths of {network.name}", [*rows.values()]))
    return blocks


def size_section(groups: Sequence[Group]) -> Section:
    """Bytes of binary and of other parameters, a bar a layer."""
    chosen, cut = _worth_drawing(groups)
    panels = []
    for number, group in enumerate(chosen, 1):
        run = group.runs[0]
        sizes = cost.layer_bytes(run.network, run.widths, binary=run.binary)
        parts = {"binary weights": [each.binary_bytes for each in sizes]}
        parts["other weights and scales"] = [each.float_bytes for each in sizes]
        title = f"{group.label}: {run.costs[0]:.4f} MiB"
        figure = draw_bars(title, "bytes", [each.layer for each in sizes], parts, Style())
        panels.append(Panel(f"size-{number}", f"Bytes per layer: {run.label}", figure))
    caption = (
        "Bytes of each layer’s parameters: 1 bit a binary weight; float32 scales, first convolution and dense layer. "
        "Of several seeds the first is drawn."
    )
    return [Panels(panels, caption + cut)]


# --- files and latency --------------------------------------------------------------------------


def files_section(groups: Sequence[Group]) -> Section:
    """Bytes and milliseconds of the files: a row for each setting, target and platform, which are never averaged."""
    files: dict[tuple[str, str | None, str | None], list[tuple[Run, File]]] = {}
    for group in groups:
        for run in group.runs:
            for file in run.files:
                files.setdefault((group.label, file.target, file.platform), []).append((run, file))
    rows: list[dict[str, object]] = []
    for (label, target, platform), pairs in files.items():
        found = [file.metrics for _, file in pairs]
        bench = pairs[0][1].stages.get("bench")
        ran = bench.environment if bench else {}
        used = ran.get("profile") or {}
        word = " modelled" if used.get("method") == "modelled" else ""  # must stand beside what nobody measured
        row: dict[str, object] = {"settings": label, "target": target, "seeds": len({run.seeds for run, _ in pairs})}
        row["file, bytes"] = _format(_mean(found, "file_bytes"), ",.0f")
        for name, head in LATENCIES.items():
            row[head] = _format_ms(_mean(found, name), word * name.startswith("predict"))
        row["error %"] = _format(_mean(found, "prediction_error_percent"), "+.1f")
        for label in ("float32", "int8"):
            row[f"÷ {label}"] = _format(_mean(found, f"latency_ratio_to_{label}"))
        rows.append({**row, "on": platform, "profile": used.get("name"), "date": ran.get("date")})
    title = "Milliseconds for one image: measured, predicted, and of float32 and int8; of several seeds the mean"
    return [page.table(title, rows)] if rows else "no file is exported yet (dmsflow export)"


def _mean(found: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [metrics[name] for metrics in found if metrics.get(name) is not None]
    return statistics.fmean(values) if values else None


# --- the end of the search, and the facts -------------------------------------------------------


def comparison_section(groups: Sequence[Group]) -> Section:
    """How the result of each search compares with the baselines, weights shared."""
    rows: list[dict[str, object]] = []
    verdicts: list[str] = []
    counts: dict[str, None] = {}
    for run in all_runs(groups):
        metrics = run.metrics("search")
        if metrics.get("comparison"):
            verdicts.append(f"{run.label}: {describe_comparison(run)}")
        for row in metrics.get("comparison") or ():
            difference, error = row["loss_difference"], row["standard_error"]
            counts[str(row["images"])] = None
            chosen = "chosen" if row["name"] == metrics.get("chosen") else ""
            cells = {"run": run.label, "widths of": row["name"], "": chosen}
            apart = None if row["name"] == "searched" else f"{difference:+.4f} ± {error:.4f}"
            cells |= {"loss − searched": apart, "loss": f"{row['loss']:.4f}"}
            cells |= {"top-1 %": f"{row['top1_percent']:.2f}", **_cost_cells((row["memory_mib"], row["macs_m"]))}
            cells["predicted ms"] = _format_ms(row.get("predicted_latency_ms"), " modelled" * run.is_modelled)
            rows.append({**cells, "widths": " ".join(map(str, row["widths"].values()))})
    if not rows:
        return "no run compared its result with baselines (only a search does)"
    words = (
        f"Shared weights, whole channels, {', '.join(counts)} training images held out from the search. The difference of "
        "losses is paired, with its standard error; above zero, the search’s widths are better. Baselines are networks "
        "that fill the same budgets without a search."
    )
    table = page.table("Loss of the searched widths and of the baselines", rows)
    return [page.paragraph(words), page.listing(verdicts), table]


def facts_section(groups: Sequence[Group]) -> Section:
    """What each run is of, where it ran, and the commands that write it again."""
    rows, commands = [], []
    for run in all_runs(groups):
        ran, data = run.last.environment, run.last.data
        versions = ran.get("versions", {})
        row = {"run": run.label, "folder": run.folder, "stages": " → ".join(run.stages), "data": data.name}
        row |= {"training images": data.train_images or "all"}
        row |= {f"{stage} seed": run.settings(stage).get("seed") for stage in ("search", "train")}
        row |= {"dmsflow": versions.get("dmsflow"), "commit": ran.get("commit"), "torch": versions.get("torch")}
        row["processor"] = measured_machine(ran).get("processor")
        row |= {"device": ran.get("device" if "bench" in run.stages else "torch_device"), "date": ran.get("date")}
        row |= {f"{stage} s": _format(run.metrics(stage).get("seconds"), ".0f") for stage in ("search", "train")}
        rows.append(row)
        lines = (f"{stage}: {shlex.join(each.command)}" for stage, each in run.stages.items())
        commands.append(page.details(run.label, "\n".join(lines)))
    return [page.table("Facts of every run", rows), page.heading(3, "Commands"), *commands]

"""The front of each device: top-1 against milliseconds, memory and multiply-accumulates, a look for each method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from dmsflow.reporting import page
from dmsflow.reporting.figures import MARKERS, Series, Style, draw_plane
from dmsflow.reporting.runs import Group
from dmsflow.reporting.sections import Panel, Panels, Section
from dmsflow.terminal import milliseconds

AXES = {"ms": "milliseconds for one image", "MiB": "memory, MiB", "M MACs": "million MACs"}
CAPTION = (
    "Top-1 on the test split against the time of one image on the device, and against memory and multiply-accumulates. "
    "A mark is the mean over seeds of one method within one set of budgets, its whisker the deviation, and small marks "
    "are the runs. Filled marks are searched, hollow ones are baselines within the same budgets."
)

Points = dict[str, list[float]]  # a number for each seed: of every axis, and "top-1"


def fronts_section(groups: Sequence[Group]) -> Section:
    """A drawing for each axis and a table, for every device, network and data set that several groups are measured on."""
    places: dict[tuple[str, ...], dict[str, Points]] = {}
    for group in groups:
        for key, points in _measured(group).items():
            places.setdefault(key, {})[group.label] = points
    by_label = {group.label: group for group in groups}
    methods = list(dict.fromkeys(group.method for group in groups))  # searches first
    blocks, number = list[Panels | str](), 0
    for (platform, target, network, data), found in places.items():
        if len(found) < 2:
            continue
        number += 1
        looks = {label: _style(by_label[label], methods) for label in found}
        legend = {by_label[label].method: look for label, look in looks.items()}
        where, panels = f"{network} on {data}, {platform}", []
        for axis, words in AXES.items():
            words += ", modelled" * (axis == "ms" and platform.endswith("modelled"))
            marks = [Series("", each[axis], each["top-1"], looks[label]) for label, each in found.items()]
            figure = draw_plane(f"{network}, {data}", words, marks, _front(found, axis), legend)
            stem = f"front-{axis.replace('M ', '').lower()}" + (f"-{number}" if number > 1 else "")
            panels.append(Panel(stem, f"Top-1 against {words}, {where}", figure))
        blocks.append(Panels(panels, f"{where} ({target}). {CAPTION}"))
        fronts = {axis: _front(found, axis) for axis in AXES}
        rows = [
            _row(label, each, fronts) for label, each in sorted(found.items(), key=lambda item: _mean(item[1], "ms"))
        ]
        blocks.append(page.table(f"Means and deviations: {where}", rows))
    return blocks or "no two settings are measured on the same device (dmsflow bench)"


def _measured(group: Group) -> dict[tuple[str, ...], Points]:
    """What the seeds of a group have, by platform (which says where it is modelled), target, network and data set.

    The mean of a seed that is there twice.
    """
    found: dict[tuple[str, ...], dict[object, list[tuple[float, ...]]]] = {}
    for run in group.runs:
        for file in run.files:
            ms, top1 = file.metrics.get("latency_ms_median"), run.top1_percent
            if ms is not None and top1 is not None and file.platform is not None:
                key = file.platform, file.target or "", run.network.name, run.last.data.name
                found.setdefault(key, {}).setdefault(run.seeds, []).append((ms, *run.costs, top1))
    means = {
        key: [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in seeds.values()]
        for key, seeds in found.items()
    }
    names = (*AXES, "top-1")
    return {key: dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) for key, rows in means.items()}


def _style(group: Group, methods: Sequence[str]) -> Style:
    """Methods by colour as well as by marker."""
    return Style(methods.index(group.method), MARKERS.get(group.method, "o"), group.is_searched)


def _mean(points: Points, name: str) -> float:
    return statistics.fmean(points[name])


def _front(found: Mapping[str, Points], axis: str) -> list[tuple[float, float]]:
    """The mean costs and top-1 of groups that no cheaper one reaches, from the cheapest on."""
    return find_front([(_mean(each, axis), _mean(each, "top-1")) for each in found.values()])


def find_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of pairs of a cost and top-1 those that no cheaper one reaches, from the cheapest on."""
    front: list[tuple[float, float]] = []
    for cost, loss in sorted((cost, -top1) for cost, top1 in points):
        if not front or -loss > front[-1][1]:
            front.append((cost, -loss))
    return front


def _row(label: str, points: Points, fronts: Mapping[str, list[tuple[float, float]]]) -> dict[str, object]:
    values, top1 = points["top-1"], _mean(points, "top-1")
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else None
    row: dict[str, object] = {
        "settings": label,
        "seeds": len(values),
        "top-1 %": f"{top1:.2f}",
        "± deviation": deviation,
    }
    row |= {"ms": milliseconds(_mean(points, "ms")), "MiB": f"{_mean(points, 'MiB'):.4f}"}
    row["M MACs"] = f"{_mean(points, 'M MACs'):.2f}"
    on = [axis for axis, front in fronts.items() if (_mean(points, axis), top1) in front]
    return row | {"on the front of": ", ".join(on)}

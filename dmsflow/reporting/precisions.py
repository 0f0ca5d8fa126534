"""1-bit, int8 and float32 files on one plane: which is best at which milliseconds, memory and bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from dmsflow.reporting import page
from dmsflow.reporting.figures import Series, Style, draw_plane
from dmsflow.reporting.fronts import find_front
from dmsflow.reporting.runs import Group
from dmsflow.reporting.sections import Panel, Panels, Section
from dmsflow.terminal import milliseconds

MARKERS = {"1-bit": "o", "int8": "s", "float32": "^"}
AXES = {"ms": "milliseconds for one image", "MiB": "memory, MiB", "KiB": "file, KiB"}
Points = Mapping[tuple[str, str], list[dict[str, float]]]  # by precision and settings: each run's axes and "top-1"


def precisions_section(groups: Sequence[Group]) -> Section:
    """A plane for every machine, network and data set of which files of several precisions are measured."""
    several = {
        where: points for where, points in _collect(groups).items() if len({precision for precision, _ in points}) > 1
    }
    blocks: list[Panels | str] = []
    for number, (where, points) in enumerate(several.items(), 1):
        panels = list(_draw(where, points, f"-{number}" * (number > 1)))
        blocks.append(Panels(panels, f"{where}: top-1 of 1-bit, int8 and float32 files, each in its own runtime."))
        blocks.append(page.table(f"1-bit, int8 and float32: {where}", _rows(points)))
    return blocks or "no network is measured in two of 1-bit, int8 and float32 on the same machine (dmsflow bench)"


def _collect(groups: Sequence[Group]) -> dict[str, Points]:
    """What was measured, by network, data set and machine."""
    places: dict[str, dict[tuple[str, str], list[dict[str, float]]]] = {}
    for group in groups:
        for run, file in [(each, file) for each in group.runs for file in each.files]:
            found, precision = file.metrics, file.precision
            if precision is None or found.get("latency_ms_median") is None or run.top1_percent is None:
                continue
            memory = found["memory_mib"] if precision == "int8" else run.costs[0]
            point = {"ms": found["latency_ms_median"], "MiB": memory, "KiB": found["file_bytes"] / 1024}
            point["top-1"] = found.get(
                "top1_percent", run.top1_percent
            )  # rounding may have cost some of the training's
            place = places.setdefault(f"{run.network.name} on {run.last.data.name}, {file.machine}", {})
            place.setdefault((precision, group.label), []).append(point)
    return dict(places)


def _draw(where: str, points: Points, suffix: str) -> Iterator[Panel]:
    looks = {each: Style(at, marker) for at, (each, marker) in enumerate(MARKERS.items())}
    legend = {each: look for each, look in looks.items() if any(each == precision for precision, _ in points)}
    for axis, words in AXES.items():
        marks = [
            Series("", [each[axis] for each in runs], [each["top-1"] for each in runs], looks[precision])
            for (precision, _), runs in points.items()
        ]
        front = find_front([(_mean(runs, axis), _mean(runs, "top-1")) for runs in points.values()])
        figure = draw_plane(where, words, marks, front, legend)
        yield Panel(f"precision-{axis.lower()}{suffix}", f"Top-1 against {words}, {where}", figure)


def _rows(points: Points) -> list[dict[str, str]]:
    return [
        {
            "precision": precision,
            "settings": label,
            "top-1 %": f"{_mean(runs, 'top-1'):.2f}",
            "ms": milliseconds(_mean(runs, "ms")),
            "MiB": f"{_mean(runs, 'MiB'):.4f}",
            "file KiB": f"{_mean(runs, 'KiB'):.1f}",
        }
        for (precision, label), runs in sorted(points.items(), key=lambda item: -_mean(item[1], "top-1"))
    ]


def _mean(runs: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.fmean(each[name] for each in runs)

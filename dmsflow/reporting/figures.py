"""The pictures of a report, drawn by matplotlib from plain numbers.

A figure is small, about as wide as a phone, and a page sets several beside each other. Sizes are in
CSS pixels. Every colour is one of COLOURS by its light value, so that a page can put its own
variables in their places (`inline_svg`); a file keeps them (`write_figure`).
"""

from __future__ import annotations

import io
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dmsflow.errors import printable
from dmsflow.reporting.page import escape

# By name: the value on white and the value on near-black. The six of series are told apart by people
# who see no red or no green (after Okabe and Ito), and have a contrast of 3 to both backgrounds.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2126", "#e6e8ea"),
    "soft": ("#5b6570", "#a3abb3"),
    "rule": ("#dfe3e7", "#32383e"),
    "paper": ("#ffffff", "#16191c"),
    "series1": ("#0069ad", "#5cb3ef"),
    "series2": ("#c44e00", "#f59148"),
    "series3": ("#00795c", "#2fc79b"),
    "series4": ("#a3357d", "#ec8fc6"),
    "series5": ("#876200", "#e0c341"),
    "series6": ("#5a5fd0", "#a9adff"),
}
SERIES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("series"))
INK, SOFT, RULE, PAPER = (COLOURS[name][0] for name in ("ink", "soft", "rule", "paper"))
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = {
    "published": "P",
    "evolution": "*",
    "balanced": "o",
    "uniform": "s",
    "equal": "D",
    "interpolated": "^",
    "random": "X",
}
WIDTH, HEIGHT = 360, 230  # of a panel without its legend
SMALL_WIDTH, SMALL_HEIGHT = 176, 132  # of a panel among many, without names of axes and without a legend
LEGEND_ROWS = 12  # more would be taller than the picture
LEGEND_ROW_HEIGHT = 16.5
LEGEND_LETTERS = 45  # in a line of the legend, at WIDTH
BAR_LETTERS, SMALL_LETTERS = 32, 20  # of the name of a bar and of a small panel; more would leave no room for it
TITLE_LETTERS = 40
TITLE_ROW_HEIGHT = 15.0
WHISKER: Any = {"capsize": 3, "elinewidth": 1.1, "markeredgewidth": 1.5, "linestyle": "none"}
PNG_SCALE = 3  # pixels of a file for one of the page: sharp in print

SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dmsflow",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    **dict.fromkeys(("font.size", "axes.labelsize"), 11.5),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 11),
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.titlecolor"), INK),
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), PAPER),
    "grid.color": RULE,
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.formatter.useoffset", "legend.frameon"), False),
    "axes.formatter.limits": (-4, 6),
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}

Drawing: TypeAlias = Figure


@dataclass(frozen=True)
class Style:
    """How a series looks; colour is never the only difference.

    Attributes:
        index: of the colour and of the dashes; below zero, the colour of text.
    """

    index: int = 0
    marker: str = "o"
    is_filled: bool = True

    @property
    def colour(self) -> str:
        return SERIES[self.index % len(SERIES)] if self.index >= 0 else INK

    @property
    def dash(self) -> Any:
        """Neighbours in the legend have different ones as well as different colours."""
        return DASHES[(self.index + self.index // len(SERIES)) % len(DASHES)]

    def marks(self, size: float) -> dict[str, Any]:
        """What matplotlib takes for points of this look."""
        face = self.colour if self.is_filled else PAPER
        return {"color": self.colour, "marker": self.marker, "markersize": size, "markerfacecolor": face}


@dataclass(frozen=True)
class Series:
    """Points of one look.

    Attributes:
        label: in the legend; series of one label are there once.
        spread: distance of each point to the edges of a band around the line.
        signs: +1, −1 or 0 a point of a line, drawn as ▲, ▼ and nothing; none given, every point has its marker.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    spread: Sequence[float] = ()
    signs: Sequence[int] = ()


def _start(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    return figure, axes


def _finish(figure: Figure, title: str, x_label: str, y_label: str) -> Figure:
    """Title and names of the axes, and below them a legend of all that has a label.

    A second line of the title and every row of the legend make the figure taller.
    """
    (axes,) = figure.axes
    title = _wrapped(title, TITLE_LETTERS)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown: dict[str, Any] = dict([*handles.items()][:LEGEND_ROWS])
    if left := len(handles) - len(shown):
        shown[f"and {left} more"] = Line2D([], [], linestyle="none")
    labels = [_wrapped(label, LEGEND_LETTERS) for label in shown]
    rows = len(labels) + sum(label.count("\n") for label in labels)
    width, height = figure.get_size_inches()
    height += (TITLE_ROW_HEIGHT * title.count("\n") + (LEGEND_ROW_HEIGHT * rows + 6 if rows else 0)) / 72
    figure.set_size_inches(width, height)
    if labels:
        layout: dict[str, Any] = {"borderaxespad": 0.2, "labelspacing": 0.3, "handlelength": 2.6, "borderpad": 0.1}
        figure.legend(list(shown.values()), labels, loc="outside lower left", **layout)
    return figure


def _cut(text: str, letters: int) -> str:
    text = printable(text)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _wrapped(text: str, letters: int) -> str:
    """At most two lines."""
    lines = textwrap.wrap(printable(text), letters, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return "\n".join(lines) or " "


@mpl.rc_context(SETTINGS)
def draw_lines(
    title: str, y_label: str, lines: Sequence[Series], *, limits: Mapping[str, float] | None = None, small: bool = False
) -> Figure:
    """Lines over the rounds of a search; limits are drawn across, with their labels in the legend."""
    figure, axes = _start(SMALL_HEIGHT, SMALL_WIDTH) if small else _start(HEIGHT)
    for line in lines:
        size = 0 if line.signs else 2.5 if len(line.x) > 20 or small else 3.5
        axes.plot(line.x, line.y, linestyle=line.style.dash, label=line.label, **line.style.marks(size))
        if line.spread:
            low = [max(0.0, y - spread) for y, spread in zip(line.y, line.spread, strict=True)]
            high = [y + spread for y, spread in zip(line.y, line.spread, strict=True)]
            axes.fill_between(line.x, low, high, color=line.style.colour, alpha=0.16, linewidth=0)
        for sign, marker in ((1, "^"), (-1, "v")):
            chosen = [(x, y) for x, y, s in zip(line.x, line.y, line.signs, strict=False) if s == sign]
            axes.plot([x for x, _ in chosen], [y for _, y in chosen], marker, color=line.style.colour)
    for index, (label, limit) in enumerate((limits or {}).items()):
        axes.axhline(limit, color=INK, linestyle=DASHES[1 + index % (len(DASHES) - 1)], linewidth=1.2, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(4 if small else 8, integer=True))
    if not small:
        return _finish(figure, title, "round", y_label)
    axes.set_title(_cut(title, SMALL_LETTERS))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure


@mpl.rc_context(SETTINGS)
def draw_bars(
    title: str,
    y_label: str,
    names: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    style: Style,
    *,
    dots: Sequence[Sequence[int]] = (),
    outline: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Bars over the layers of a network.

    Args:
        parts: of each bar by label, end to end: a tint, then hatched.
        style: its colour is that of the first part.
        dots: more values of each bar, e.g. of several runs.
        outline: values by label, as a stepped line across the bars.
    """
    names = [_cut(name, BAR_LETTERS) for name in names]
    letters = max(map(len, names))
    figure, axes = _start(HEIGHT + (5.6 * letters if letters > 3 else 0))
    places, bottom = range(len(names)), [0.0] * len(names)
    for index, (part, values) in enumerate(parts.items()):
        colour = SERIES[index] if index else style.colour
        face: Any = PAPER if index else to_rgba(colour, 0.45)
        axes.bar(places, values, 0.72, bottom, facecolor=face, edgecolor=colour, hatch="////" * index, label=part)
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    for row in dots:
        axes.plot(places, row, "o", color=style.colour, markersize=3.2, label="each of them")
    for label, values in (outline or {}).items():
        edges = [index - 0.5 for index in range(len(names) + 1)]
        axes.stairs(values, edges, color=INK, linewidth=1.6, baseline=None, label=label)
    axes.set_xticks(list(places), names, rotation=90 if letters > 3 else 0)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    return _finish(figure, title, "", y_label)


@mpl.rc_context(SETTINGS)
def draw_plane(
    title: str,
    x_label: str,
    points: Sequence[Series],
    front: Sequence[tuple[float, float]],
    legend: Mapping[str, Style],
) -> Figure:
    """The mean accuracy of each series, its deviation, and faintly its points; and the front that no mean beats."""
    figure, axes = _start(HEIGHT + 50)
    for series in points:
        marks = series.style.marks(9.5 if series.style.marker == "*" else 6.5)
        error = statistics.stdev(series.y) if len(series.y) > 1 else None
        if error is not None:
            faint = {**marks, "markersize": marks["markersize"] / 2, "alpha": 0.5, "markeredgewidth": 0.8}
            axes.plot(series.x, series.y, linestyle="none", **faint)
        axes.errorbar(statistics.fmean(series.x), statistics.fmean(series.y), yerr=error, **WHISKER, **marks)
    for label, style in legend.items():
        axes.plot([], [], linestyle="none", label=label, **style.marks(7))
    looks: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": DASHES[1], "zorder": 1.5}
    axes.step(*zip(*front, strict=True), where="post", label="front: nothing cheaper is as good", **looks)
    axes.margins(x=0.08, y=0.08)
    return _finish(figure, title, x_label, "top-1, %")


# --- what becomes of a figure -------------------------------------------------------------------

NAMES = {light: name for name, (light, _) in COLOURS.items()}
VARIABLE = re.compile("|".join(NAMES), re.IGNORECASE)
REFERENCE = re.compile(r'((?:\bxlink:href="|\burl\()#)([^")]+)')


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The element for a page: colours are the page's variables, its ids its own.

    Args:
        figure: drawn by a function above.
        name: an identifier that no other figure of the page has.
        label: what a screen reader says.
    """
    buffer = io.BytesIO()
    write_figure(figure, buffer, "svg")
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = {reference[2] for reference in REFERENCE.finditer(text)}

    def adapted(tag: re.Match[str]) -> str:
        words = re.sub(r' id="([^"]*)"', lambda own: f' id="{name}-{own[1]}"' if own[1] in used else "", tag[0])
        words = REFERENCE.sub(rf"\1{name}-\2", words)
        return VARIABLE.sub(lambda colour: f"var(--{NAMES[colour[0].lower()]})", words)

    text = re.sub(r"<[^>]*>", adapted, text)  # only in tags: what people wrote is between them
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + text[text.index(">") + 1 :].rstrip()


def write_figure(figure: Figure, path: Path | io.BytesIO, form: str) -> None:
    """Write the figure to a file, in its light colours; the same figure gives the same bytes, without a date.

    Args:
        form: "svg" or "png".
    """
    absent = ("Creator", "Date", "Format", "Type") if form == "svg" else ("Software",)
    with mpl.rc_context(SETTINGS):
        figure.savefig(path, format=form, dpi=72 * (1 if form == "svg" else PNG_SCALE), metadata=dict.fromkeys(absent))

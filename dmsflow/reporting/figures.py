"""The pictures of a report, drawn by matplotlib from plain numbers.

A figure is small, about as wide as a phone, and a page sets several beside each other. Sizes are in
CSS pixels. Every colour is one of COLOURS by its light value, so that a page can put its own
variables in their places (`inline_svg`); a file keeps them (`write`).
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

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
    "gradient": "o",
    "evolution": "*",
    "uniform": "s",
    "published": "P",
    "equal": "D",
    "interpolated": "^",
    "random": "X",
}
WIDTH, HEIGHT = 360, 230  # of a panel without its legend
SMALL = (176, 132)
SMALL_MARGINS = (38, 22, 6, 20)
LEGEND_ROW = 16.5
LEGEND_ROWS = 12
LETTERS = 45  # in a line of a legend
TITLE_LETTERS = 40
PNG_SCALE = 3

SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dmsflow",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11.5,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.edgecolor": SOFT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}


Drawing: TypeAlias = Figure


@dataclass(frozen=True)
class Style:
    """How a series looks: never by colour alone.

    Attributes:
        index: of the colour and of the dashes; below zero, the colour of text.
    """

    index: int = 0
    marker: str = "o"
    filled: bool = True

    @property
    def colour(self) -> str:
        return SERIES[self.index % len(SERIES)] if self.index >= 0 else INK

    @property
    def dash(self) -> Any:
        """Neighbours in the legend have different ones as well as different colours."""
        return DASHES[(self.index + self.index // len(SERIES)) % len(DASHES)]

    @property
    def face(self) -> str:
        return self.colour if self.filled else PAPER


@dataclass(frozen=True)
class Line:
    """A row of points joined by a line.

    Attributes:
        label: in the legend; lines of one label stand there once.
        spread: distance to the edges of a band around it, a number a point.
        signs: +1, −1 or 0 a point, drawn as ▲, ▼ and nothing; none given, every point is marked by the style.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    spread: Sequence[float] = ()
    signs: Sequence[int] = ()


@dataclass(frozen=True)
class Point:
    """Runs in a plane: their mean, its deviation, and each of them."""

    label: str
    x: float
    y: float
    style: Style
    y_error: float | None = None
    each: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Bar:
    """A row of a chart: its label, and values with their words."""

    label: str
    values: Mapping[str, float]
    error: float | None = None  # upwards, of the first value


def _figure(width: float, height: float, margins: Sequence[float] = ()) -> tuple[Figure, Axes]:
    """Axes in a figure of so many pixels; margins (left, bottom, right, top) place them without measuring texts."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout=None if margins else "constrained")
    if not margins:
        return figure, figure.add_subplot()
    left, bottom, right, top = margins
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _lines_of(text: str, letters: int) -> str:
    """At most two lines."""
    rows = textwrap.wrap(text, letters, max_lines=2, placeholder=" …", break_on_hyphens=False)
    return "\n".join(rows) or " "


def _title(figure: Figure, axes: Axes, text: str) -> None:
    """From the left edge; a second line makes the figure taller."""
    words = _lines_of(text, TITLE_LETTERS)
    _grow(figure, 15.0 * words.count("\n"))
    axes.set_title(words)


def _grow(figure: Figure, pixels: float) -> None:
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + pixels / 72)


def _legend(figure: Figure, marks: Mapping[str, Any]) -> None:
    """Below the axes, an entry a row, as many as there is room for; the figure grows by them."""
    if not marks:
        return
    shown = dict(list(marks.items())[:LEGEND_ROWS])
    if left := len(marks) - len(shown):
        shown[f"and {left} more"] = Line2D([], [], linestyle="none")
    labels = [_lines_of(label, LETTERS) for label in shown]
    _grow(figure, LEGEND_ROW * (len(labels) + sum(label.count("\n") for label in labels)) + 6)
    # matplotlib leaves out a label that begins with an underscore.
    figure.legend(
        list(shown.values()),
        [f" {label}" if label.startswith("_") else label for label in labels],
        loc="outside lower left",
        borderaxespad=0.2,
        labelspacing=0.3,
        handlelength=2.6,
        borderpad=0.1,
    )


def _mark(style: Style, *, line: bool) -> Line2D:
    return Line2D(
        [],
        [],
        color=style.colour,
        linestyle=style.dash if line else "none",
        marker=style.marker,
        markerfacecolor=style.face,
        markersize=4.5 if line else 7,
    )


@mpl.rc_context(SETTINGS)
def lines(
    title: str,
    x_label: str,
    y_label: str,
    drawn: Sequence[Line],
    *,
    limits: Mapping[str, float] | None = None,
    small: bool = False,
) -> Figure:
    """Lines over the rounds; limits are drawn across, with their labels in the legend."""
    figure, axes = _figure(*SMALL, SMALL_MARGINS) if small else _figure(WIDTH, HEIGHT)
    marks: dict[str, Any] = {}
    for line in drawn:
        colour = line.style.colour
        size = 0 if line.signs else 2.5 if len(line.x) > 20 or small else 3.5
        axes.plot(
            line.x,
            line.y,
            color=colour,
            linestyle=line.style.dash,
            marker=line.style.marker,
            markersize=size,
            markerfacecolor=line.style.face,
            linewidth=1.3 if small else 1.6,
        )
        if line.spread:
            low = [max(0.0, y - spread) for y, spread in zip(line.y, line.spread, strict=True)]
            high = [y + spread for y, spread in zip(line.y, line.spread, strict=True)]
            axes.fill_between(line.x, low, high, color=colour, alpha=0.16, linewidth=0)
        for sign, marker in ((1, "^"), (-1, "v")):
            chosen = [(x, y) for x, y, s in zip(line.x, line.y, line.signs, strict=False) if s == sign]
            axes.plot(*(zip(*chosen, strict=True) if chosen else ([], [])), marker, color=colour, markersize=4.5)
        marks.setdefault(line.label, _mark(line.style, line=True))
    for index, (label, limit) in enumerate((limits or {}).items()):
        dash = DASHES[1:][index % (len(DASHES) - 1)]
        axes.axhline(limit, color=INK, linestyle=dash, linewidth=1.2)
        marks[label] = Line2D([], [], color=INK, linestyle=dash, linewidth=1.2)
    _title(figure, axes, title)
    axes.set_xlabel("" if small else x_label)
    axes.set_ylabel("" if small else y_label)
    axes.xaxis.set_major_locator(MaxNLocator(4 if small else 8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4 if small else 6))
    if not small:
        _legend(figure, marks)
    return figure


@mpl.rc_context(SETTINGS)
def widths(
    title: str,
    names: Sequence[str],
    means: Sequence[float],
    each: Sequence[Sequence[int]],
    style: Style,
    reference: tuple[str, Sequence[float]] | None,
    label: str,
) -> Figure:
    """Bars of a network's widths, a dot for each of several runs, and a second network as a stepped outline."""
    letters = max(map(len, names))
    figure, axes = _figure(WIDTH, HEIGHT + (5.6 * letters if letters > 3 else 0))
    places = range(len(names))
    axes.bar(places, means, width=0.72, color=style.colour, alpha=0.45, edgecolor=style.colour, linewidth=1.0)
    marks: dict[str, Any] = {label: Patch(facecolor=style.colour, alpha=0.45, edgecolor=style.colour)}
    if len(each) > 1:
        for row in each:
            axes.plot(places, row, "o", color=style.colour, markersize=3.2)
        marks["each of them"] = Line2D([], [], linestyle="none", marker="o", color=style.colour, markersize=3.2)
    if reference:
        name, values = reference
        edges = [index - 0.5 for index in range(len(names) + 1)]
        axes.stairs(values, edges, color=INK, linewidth=1.6, baseline=None)
        marks[name] = Line2D([], [], color=INK, linewidth=1.6)
    axes.set_xticks(list(places), names, rotation=90 if letters > 3 else 0)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("channels")
    _title(figure, axes, title)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _legend(figure, marks)
    return figure


@mpl.rc_context(SETTINGS)
def plane(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Point],
    front: Sequence[tuple[float, float]],
    marks: Mapping[str, Style],
) -> Figure:
    """Means with their deviations, each run faintly beside them, and the front that no other point beats."""
    figure, axes = _figure(WIDTH, HEIGHT + 50)
    if front:
        axes.step(*zip(*front, strict=True), where="post", color=INK, linewidth=1.1, linestyle=DASHES[1], zorder=1.5)
    for point in points:
        style, size = point.style, 9.5 if point.style.marker == "*" else 6.5
        if len(point.each) > 1:
            axes.plot(
                *zip(*point.each, strict=True),
                linestyle="none",
                marker=style.marker,
                markersize=size / 2,
                color=style.colour,
                markerfacecolor=style.face,
                alpha=0.5,
                markeredgewidth=0.8,
            )
        axes.errorbar(
            point.x,
            point.y,
            yerr=point.y_error,
            color=style.colour,
            marker=style.marker,
            markersize=size,
            markerfacecolor=style.face,
            markeredgewidth=1.5,
            capsize=3,
            elinewidth=1.1,
            linestyle="none",
        )
    shown: dict[str, Any] = {label: _mark(style, line=False) for label, style in marks.items()}
    if front:
        shown["front: nothing cheaper is as good"] = Line2D([], [], color=INK, linewidth=1.1, linestyle=DASHES[1])
    _title(figure, axes, title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(x=0.08, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(7))
    _legend(figure, shown)
    return figure


@mpl.rc_context(SETTINGS)
def stacked(title: str, x_label: str, bars: Sequence[Bar]) -> Figure:
    """Horizontal bars, the parts of each set end to end: plain, then hatched."""
    figure, axes = _figure(WIDTH, 70 + 18 * len(bars))
    parts = list(bars[0].values)
    left = [0.0] * len(bars)
    marks: dict[str, Any] = {}
    for index, part in enumerate(parts):
        looks: dict[str, Any] = {"facecolor": SERIES[index], "edgecolor": SERIES[index]}
        if index:
            looks = {"facecolor": PAPER, "edgecolor": SERIES[index], "hatch": "////"}
        sizes = [bar.values[part] for bar in bars]
        axes.barh(range(len(bars)), sizes, left=left, height=0.7, linewidth=0.8, **looks)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
        marks[part] = Patch(linewidth=0.8, **looks)
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(x_label)
    _title(figure, axes, title)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    _legend(figure, marks)
    return figure


@mpl.rc_context(SETTINGS)
def dots(title: str, x_label: str, bars: Sequence[Bar], looks: Mapping[str, tuple[Style, str]]) -> Figure:
    """A row a label, with a mark for each of its values on one scale from zero; the labels stand above their rows."""
    figure, axes = _figure(WIDTH, 66 + 34 * len(bars))
    for row, bar in enumerate(bars):
        axes.text(0, row - 0.27, textwrap.shorten(bar.label, 50, placeholder=" …"), va="bottom", fontsize=10, color=INK)
        axes.plot([0, max(bar.values.values(), default=0)], [row, row], color=RULE, linewidth=1.5, zorder=1)
        for part, value in bar.values.items():
            style, _ = looks[part]
            error: Any = [[0], [bar.error]] if bar.error is not None and part == next(iter(bar.values)) else None
            axes.errorbar(
                value,
                row,
                xerr=error,
                color=style.colour,
                marker=style.marker,
                markerfacecolor=style.face,
                markersize=6.5,
                markeredgewidth=1.5,
                capsize=2.5,
                elinewidth=1.1,
                linestyle="none",
            )
    axes.set_ylim(len(bars) - 0.5, -0.85)
    axes.set_xlim(left=0)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    _title(figure, axes, title)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    used = {part for bar in bars for part in bar.values}
    marks = {words: _mark(style, line=False) for part, (style, words) in looks.items() if part in used}
    _legend(figure, marks if len(looks) > 1 else {})
    return figure


# --- what becomes of a figure -------------------------------------------------------------------

VARIABLE = re.compile("|".join(light for light, _ in COLOURS.values()), re.IGNORECASE)
NAMES = {light: name for name, (light, _) in COLOURS.items()}
REFERENCE = re.compile(r'((?:\bxlink:href="|\burl\()#)([^")]+)')


def _svg(figure: Figure) -> str:
    """The same text for the same figure, without a date."""
    buffer = io.BytesIO()
    with mpl.rc_context(SETTINGS):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue().decode("utf-8")


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The element for a page: colours are the page's variables, its ids its own.

    Args:
        figure: drawn by a function above.
        name: an identifier that no other figure of the page has.
        label: what a screen reader says.
    """
    text = _svg(figure)
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = {found[2] for found in REFERENCE.finditer(text)}

    def own(tag: re.Match[str]) -> str:
        words = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", tag[0])
        words = REFERENCE.sub(rf"\1{name}-\2", words)
        return VARIABLE.sub(lambda found: f"var(--{NAMES[found[0].lower()]})", words)

    text = re.sub(r"<[^>]*>", own, text)  # only in tags: what people wrote stands between them
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
    head += 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + text[text.index(">") + 1 :].rstrip()


def write(figure: Figure, path: Path, form: str) -> None:
    """A file of its own, light, as the page has it."""
    if form == "svg":
        path.write_text(_svg(figure), encoding="utf-8")
        return
    with mpl.rc_context(SETTINGS):
        figure.savefig(path, format="png", dpi=72 * PNG_SCALE, metadata={"Software": None})

"""What the sections of a report are made of, and the words and looks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dmsflow.reporting.figures import MARKERS, Drawing, Style
from dmsflow.reporting.runs import Group, Run

MOST_PANELS = 12  # of one figure; a page with more takes long to draw and to read
# By metric: the words of a title, the words beside an axis.
COSTS = {
    "memory_mib": ("Memory", "memory, MiB"),
    "macs_m": ("Multiply-accumulates", "million MACs"),
    "predicted_latency_ms": ("Predicted latency", "predicted latency, ms"),
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


def describe_cut(drawn: int, count: int, what: str) -> str:
    """A sentence where not everything is drawn."""
    return f" Of {count} {what} the first {drawn} {'is' if drawn == 1 else 'are'} drawn." if drawn < count else ""


def describe_mean(count: int) -> str:
    """What a label says of a mean of several runs."""
    return f", mean of {count}" if count > 1 else ""

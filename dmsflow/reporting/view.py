"""What the sections of a report are made from, and made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dmsflow.reporting import figures, runs
from dmsflow.reporting.figures import Drawing, Style
from dmsflow.reporting.runs import Group, Run

PANELS = 12  # of one figure; more groups are left to the tables
MEASURES = {"memory_mib": "memory, MiB", "macs_m": "million MACs", "predicted_latency_ms": "predicted latency, ms"}
TITLES = {"memory_mib": "memory", "macs_m": "multiply-accumulates", "predicted_latency_ms": "predicted latency"}


@dataclass(frozen=True)
class Panel:
    """One drawing: the name of its file, what a screen reader says, and the figure."""

    name: str
    label: str
    figure: Drawing


@dataclass(frozen=True)
class Figures:
    """Panels that belong together, and what to see in them."""

    panels: tuple[Panel, ...]
    caption: str
    small: bool = False


@dataclass(frozen=True)
class View:
    """All runs, in groups that differ in their seed alone, and how each group looks."""

    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    styles: dict[str, Style]

    @classmethod
    def of(cls, found: Sequence[Run]) -> View:
        made = sorted(runs.groups(found), key=lambda group: not group.searched)  # searches get the first colours
        rests = list(dict.fromkeys(group.rest for group in made))
        styles = {}
        for number, group in enumerate(made):
            index = rests.index(group.rest) if len(rests) > 1 else number
            styles[group.label] = Style(index, figures.MARKERS.get(group.method, "o"), group.searched)
        return cls(tuple(found), tuple(made), styles)

    def style(self, group: Group) -> Style:
        return self.styles[group.label]


@dataclass(frozen=True)
class Absent:
    """Why there is nothing to show."""

    reason: str


Blocks: TypeAlias = list[Figures | str]  # strings are finished HTML


def some(drawn: int, count: int, what: str) -> str:
    """A sentence where not everything is drawn."""
    return f" Of {count} {what} the first {drawn} {'is' if drawn == 1 else 'are'} drawn." if drawn < count else ""


def times(seeds: int, *, mean: bool = False) -> str:
    """What a label of several runs says of their number."""
    return "" if seeds == 1 else f", mean of {seeds}" if mean else f", {seeds} seeds"


def numbered(stem: str, index: int) -> str:
    """The name of a drawing among several of its kind, from 1."""
    return f"{stem}-{index + 1}"

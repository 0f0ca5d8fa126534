"""What runs found, as one HTML page: from widths and training errors to memory, accuracy and latency.

    runs.py        the chains in the folders given, in groups that differ in their seed alone
    view.py        what sections are made from, and made of
    searching.py   widths, size, and what happened over the rounds
    results.py     accuracy, latency, comparison, facts
    figures.py     plain numbers as drawings: matplotlib's home
    page.py        HTML

Each section is made from the runs that have its data; one without any is named at the page's end, with
the reason. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically, writing
from dmsflow.reporting import figures, page, results, runs, searching
from dmsflow.reporting.view import Absent, Blocks, Figures, View

SECTIONS: tuple[tuple[str, str, Callable[[View], Blocks | Absent]], ...] = (
    ("accuracy", "Accuracy against memory", results.accuracy),
    ("widths", "Widths per layer", searching.widths),
    ("error", "Error over the search", searching.errors),
    ("rounds", "μ ± σ of every width", searching.rounds),
    ("budgets", "Cost against the budgets", searching.budgets),
    ("size", "Size per layer", searching.sizes),
    ("latency", "Latency", results.latency),
    ("comparison", "Comparison at the end of the search", results.comparison),
    ("facts", "Facts", results.facts),
)


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    blocks: Blocks


def write_report(sources: Sequence[Path], out: Path | None, *, folder: Path | None = None, form: str = "svg") -> Path:
    """Write the page of some runs.

    Args:
        sources: folders of runs, folders of such folders, or manifests.
        out: the page; report.html beside the first source unless given. An earlier report is overwritten.
        folder: where the figures go as files of their own, if anywhere.
        form: of these files.

    Raises:
        DmsflowError: no runs there, or damaged ones; `out` is a file that is not a report.
    """
    first = sources[0] if sources[0].is_dir() else sources[0].parent
    path = out or first / "report.html"
    view = View.of(runs.collect(sources))
    _claim(path)
    sections, absent = [], []
    for anchor, title, build in SECTIONS:
        blocks = build(view)
        if isinstance(blocks, Absent):
            absent.append(f"{title}: {blocks.reason}.")
        else:
            sections.append(Section(anchor, title, blocks))
    if folder:
        _write_figures(sections, folder, form)
    write_atomically(path, _page(view, sections, absent).encode("utf-8"))
    return path


def _claim(path: Path) -> None:
    """A report can be made again at any time, so it may be overwritten; what else stands there may not."""
    if path.is_dir():
        raise DmsflowError(path, "is a folder", "give --out the name of a file")
    if path.exists() and not page.is_report(path.read_bytes()):
        raise DmsflowError(path, "is there, and is no report of dmsflow", "give --out another name")


def _write_figures(sections: Iterable[Section], folder: Path, form: str) -> None:
    for section in sections:
        for block in section.blocks:
            for panel in block.panels if isinstance(block, Figures) else ():
                with writing(folder / f"{panel.name}.{form}") as partial:
                    figures.write(panel.figure, partial, form)


def _page(view: View, sections: Sequence[Section], absent: Sequence[str]) -> str:
    title = f"dmsflow: {view.runs[0].label}" if len(view.runs) == 1 else f"dmsflow: {len(view.runs)} runs"
    body = [page.heading(1, title), page.paragraph(_summary(view))]
    body.append(page.contents((section.anchor, section.title) for section in sections))
    for section in sections:
        body.append(page.heading(2, section.title, section.anchor))
        body += [_drawn(block) if isinstance(block, Figures) else block for block in section.blocks]
    if absent:
        body += [page.heading(2, "Left out", "left-out"), page.listing(absent)]
    return page.document(title, figures.COLOURS, body)


def _drawn(block: Figures) -> str:
    drawn = [figures.inline_svg(panel.figure, panel.name, panel.label) for panel in block.panels]
    return page.figure(drawn, block.caption, block.panels[0].label, small=block.small)


def _summary(view: View) -> str:
    networks = ", ".join(dict.fromkeys(each.network.name for each in view.runs))
    data = ", ".join(dict.fromkeys(each.last.data.name for each in view.runs))
    words = f"{networks} on {data}"
    if len(view.runs) > 1:
        words += f"; {len(view.runs)} runs, {len(view.groups)} settings (runs that differ in their seed alone stand together)"
    return f"{words}. A deviation is that of the sample, over seeds."

"""What runs found, as one HTML page: from widths and training errors to memory, accuracy and latency.

    collect.py     the chains in the folders given, in groups that differ in their seed alone
    runs.py        a run and a group, and what is known of them
    sections.py    result, accuracy, widths, size, files, comparison, facts
    fronts.py      the front of each device, over milliseconds, memory and MACs
    rounds.py      what happened over the rounds of searches
    result.py      the result in words: its cost, and whether it beat the baselines
    figures.py     plain numbers as drawings, with matplotlib
    page.py        HTML, in the frame of page.html

Each section is made from the runs that have its data; one without any is named at the page's end, with
the reason. The same runs give the same bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dmsflow.errors import DmsflowError
from dmsflow.files import read_bytes, write_atomically, writing
from dmsflow.reporting import fronts, page, precisions, rounds, sections
from dmsflow.reporting.collect import collect
from dmsflow.reporting.figures import COLOURS, inline_svg, write_figure
from dmsflow.reporting.runs import Group
from dmsflow.reporting.sections import Section, all_runs
from dmsflow.reporting.shipped import default_out

SECTIONS: tuple[tuple[str, str, Callable[[Sequence[Group]], Section]], ...] = (
    ("result", "Result", sections.result_section),
    ("accuracy", "Accuracy against memory", sections.accuracy_section),
    ("fronts", "Front of each device", fronts.fronts_section),
    ("precisions", "1-bit, int8 and float32", precisions.precisions_section),
    ("widths", "Widths per layer", sections.widths_section),
    ("error", "Error over the search", rounds.error_section),
    ("rounds", "μ ± σ of every width", rounds.rounds_section),
    ("budgets", "Cost against the budgets", rounds.budgets_section),
    ("size", "Size per layer", sections.size_section),
    ("files", "Files and latency", sections.files_section),
    ("comparison", "Comparison at the end of the search", sections.comparison_section),
    ("facts", "Facts", sections.facts_section),
)
LIVE = ("result", "error", "rounds", "budgets")  # the sections of a search that is not finished
RELOAD_S = 5


def write_report(
    sources: Sequence[Path], out: Path | None, *, folder: Path | None = None, form: str = "svg", watch: bool = False
) -> Path:
    """Write the page of some runs, and give its path.

    Args:
        sources: folders of runs, folders of such folders, or manifests.
        out: the page; report.html beside the first source unless given. An earlier report is overwritten.
        folder: where the figures go as files of their own, if anywhere.
        form: of these files, "svg" or "png".
        watch: write it again every few seconds, until none of the searches is running, or until an interrupt.

    Raises:
        DmsflowError: no runs there, or damaged ones; `out` is a file that is not a report.
    """
    path = out or (sources[0] if sources[0].is_dir() else default_out(sources[0])) / "report.html"
    with contextlib.suppress(KeyboardInterrupt):
        while _write_page(collect(sources), path, folder, form) and watch:
            time.sleep(RELOAD_S)
    return path


def _write_page(groups: Sequence[Group], path: Path, folder: Path | None, form: str) -> bool:
    """Write the page of some groups; whether one of them is running."""
    if path.is_dir():
        raise DmsflowError(path, "is a folder", "give --out the name of a file")
    if path.exists() and not page.is_report(read_bytes(path)):
        raise DmsflowError(path, "exists, and is not a dmsflow report", "give --out another name")
    finished = [group for group in groups if not group.is_running]
    built: list[tuple[str, str, Section]] = []
    for anchor, title, build in SECTIONS:
        shown = groups if anchor in LIVE else finished
        built.append((anchor, title, build(shown) if shown else "the search is not finished"))
    links = [(anchor, title) for anchor, title, blocks in built if not isinstance(blocks, str)]
    runs = all_runs(groups)
    title = f"dmsflow: {runs[0].label}" if len(runs) == 1 else f"dmsflow: {len(runs)} runs"
    networks = ", ".join(dict.fromkeys(run.network.name for run in runs))
    data = ", ".join(dict.fromkeys(run.last.data.name for run in runs if not run.is_running))
    counts = f"; {len(runs)} runs, {len(groups)} settings (runs that differ in their seed alone form one)"
    summary = f"{networks}{data and f' on {data}'}{counts * (len(runs) > 1)}."
    if any(len(group.results()) > 1 for group in groups):
        summary += " A deviation is that of the sample, over seeds."
    body = [page.heading(1, title), page.paragraph(summary), page.contents(links)]
    absent = []
    for anchor, heading, blocks in built:
        if isinstance(blocks, str):
            absent.append(f"{heading}: {blocks}.")
            continue
        body.append(page.heading(2, heading, anchor))
        for block in blocks:
            if isinstance(block, str):
                body.append(block)
                continue
            drawings = []
            for panel in block.panels:
                drawings.append(inline_svg(panel.figure, panel.name, panel.label))
                if folder:
                    with writing(folder / f"{panel.name}.{form}") as partial:
                        write_figure(panel.figure, partial, form)
            body.append(page.figure(drawings, block.caption, block.panels[0].label, small=block.small))
    if absent:
        body += [page.heading(2, "Left out", "left-out"), page.listing(absent)]
    is_running = len(finished) < len(groups)
    write_atomically(path, page.document(title, COLOURS, body, is_running * RELOAD_S).encode("utf-8"))
    return is_running

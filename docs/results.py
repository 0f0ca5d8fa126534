"""Writes docs/results.md, and the results of README.md, from docs/results/*.json: no figure of them is typed.

make docs
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import figures
import timing
from figures import NETWORKS, Row

PAGE = Path(__file__).with_suffix(".md")
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: written by docs/results.py -->", "<!-- end of results -->"
PROTOCOLS = ("quick", "long", "paper")
INTRODUCTION = """\
# Results

<!-- Written by docs/results.py from results/*.json: run those programs, then `make docs`. -->

Every figure here carries the command that makes it, the machine, versions, seeds and date. It was
measured unless it says `modelled` (counted on an emulated processor) or `predicted` (from a profile).
Results of files and of predictions are from LCE's official interpreter unless they say otherwise.
Deviations are standard deviations over seeds. What was not run says so.
"""
Load = Callable[[str], Any]


def page(load: Load = figures.load) -> str:
    """The whole page."""
    return figures.wrapped(
        "\n".join(
            (
                INTRODUCTION,
                accuracy.budgets(load("budgets")),
                accuracy.recipe(load("recipe")),
                accuracy.ablations(load("ablations")),
                accuracy.table1({name: load(f"table1-{name}") for name in PROTOCOLS}),
                accuracy.files(load("cifar10")),
                timing.predicted(load("predict-x86-64-binary-lce")),
                timing.kernels(load("kernels-x86-64"), load("kernels-x86-64-avx2"), load("runtimes-x86-64")),
                timing.arm(load("kernels-aarch64")),
                timing.search_cost(load("search-cost")),
                timing.train_step(load("train-step")),
                timing.elsewhere(load("runtimes-x86-64-intel"), load("train-step-intel")),
                timing.processes(load("processes")),
                timing.startup(load("startup")),
            )
        )
    )


def readme(text: str, load: Load = figures.load) -> str:
    """The README with its results written again."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{_summary(load)}\n{END}{after}"


def _summary(load: Load) -> str:
    content = load("budgets")
    cells = [cell for cell in content["cells"] if accuracy.leads(cell)] if content else []
    papers = accuracy.papers_search(cells)
    first = _under_budgets(content, cells, papers) if cells else _files(load("cifar10"))
    if (long := load("table1-long")) and any(row["jobs"] for row in long["rows"]):
        first = _table1(long) + (_tie(cells) if cells else "")
    return figures.wrapped(f"{first}\n{_runtimes(load('runtimes-x86-64'), load('runtimes-x86-64-intel'))}")


def _table1(content: Row) -> str:
    """The paper's table and ours, of the rows that were run."""
    head = ("CIFAR-10", "widths", "MiB", "M MACs", "top-1 % in the paper, 300 epochs", "top-1 %", "epochs", "minutes")
    done = [row for row in content["rows"] if row["jobs"]]
    lines = []
    for row in done:
        costs = [f"{figures.mean(row['jobs'], key):.{digits}f}" for key, digits in (("memory_mib", 3), ("macs_m", 1))]
        printed = f"{row['paper']['top1_percent']:.2f}" if row["paper"] else ""
        minutes = f"{figures.mean(row['jobs'], 'train_seconds') / 60:.0f}"
        name, kind = f"{NETWORKS[row['network']]} {row['row']}", figures.present_words(row["widths"])
        lines.append((name, kind, *costs, printed, figures.spread(row["jobs"]), str(row["epochs"]), minutes))
    jobs = [job for row in done for job in row["jobs"]]
    counts = figures.listed(len(row["jobs"]) for row in done)
    seeds = f"{counts} seed{'s' * (counts != '1')}"
    return f"""{figures.table(head, lines)}

The DMS paper's Table 1 beside dmsflow's own search and training: all images, no other data; {seeds}. DMS-A is searched
under 0.08 MiB (ResNet-18: 0.1 MiB); *uniform* and *equal* fill the same memory without a search. A training took the
minutes on one core, beside other work ({figures.machine([job["environment"] for job in jobs], "torch")}). Command and every
width: [docs/results.md](docs/results.md).
"""


def _tie(cells: list[Row]) -> str:
    won = [sum(lead.gains for lead in accuracy.leads(cell).values()) for cell in cells]
    over = [len(accuracy.leads(cell)) for cell in cells]
    return f"""
Under memory and compute budgets at once, with short trainings, the search beats {sum(won)} of {sum(over)} baselines by more than
one standard deviation.{_never(cells)}
"""


def _under_budgets(content: Row, cells: list[Row], papers: str) -> str:
    head = ("top-1 % on CIFAR-10", *(accuracy.METHODS[method].format(draws=cells[0]["draws"]) for method in SHOWN))
    rows = [
        [
            f"{accuracy.limits(cell)}, {cell['epochs']} epochs",
            *(_accuracy(cell["methods"].get(method, [])) for method in SHOWN),
        ]
        for cell in cells
    ]
    jobs = [job for cell in cells for made in cell["methods"].values() for job in made]
    seeds = len(cells[0]["seeds"])
    won = [sum(lead.gains for lead in accuracy.leads(cell).values()) for cell in cells]
    over = [len(accuracy.leads(cell)) for cell in cells]
    return f"""{figures.table(head, rows)}

Searched widths beside baselines that meet the same budgets, with the million multiply-accumulates of each:
{content["train_images"]:,} images, mean ± standard deviation of {seeds} seeds. The search beats {sum(won)} of {sum(over)} baselines by more
than one standard deviation.{_never(cells)} {papers} Measured on {figures.machine([job["environment"] for job in jobs], "torch")}. Command, seeds and every width: [docs/results.md](docs/results.md).
"""


def _never(cells: list[Row]) -> str:
    """` Under two budgets it does not beat evolution.`: the baselines that it beats in no such cell."""
    found = [accuracy.leads(cell) for cell in cells if "macs_m" in cell]
    ran = [method for method in accuracy.BASELINES if any(method in leads for leads in found)]
    never = [method for method in ran if not any(leads[method].gains for leads in found if method in leads)]
    titles = [accuracy.METHODS[method].format(draws=cells[0]["draws"]) for method in never]
    words = " or ".join(filter(None, (", ".join(titles[:-1]), *titles[-1:])))
    return f" Under two budgets it does not beat {words}." if titles else ""


SHOWN = ("gradient", "uniform", "flat", "between", "best random", "evolution", "paper")


def _accuracy(rows: list[Row]) -> str:
    return f"{figures.spread(rows)} ({figures.mean(rows, 'macs_m'):.1f} M)" if rows else figures.NONE


def _files(rows: Any) -> str:
    """Of whole chains, as long as no cell of budgets.py is finished."""
    titles = {"memory": "memory budget", "memory+MACs": "memory, and at most 16 M MACs"}
    lines = [
        (
            f"{titles[case]}: {accuracy.METHODS[method]}",
            f"{figures.mean(group, 'macs_m'):.1f}",
            f"**{figures.spread(group)}**" if method == "gradient" else figures.spread(group),
            f"{figures.mean(group, 'latency_ms_median'):.3f} ms",
            f"{figures.mean(group, 'float32_latency_ms_median'):.3f} ms",
        )
        for (case, method), group in accuracy.chains(rows).items()
        if case in titles
    ]
    seeds = len({row["seed"] for row in rows})
    head = (
        "VGG-11 on CIFAR-10, 0.08 MiB",
        "million MACs",
        f"top-1 % (mean ± deviation, {seeds} seeds)",
        "1-bit file",
        "float32",
    )
    first = rows[0]
    return f"""{figures.table(head, lines)}

Widths found by the search beside baselines at equal budgets and schedule: {first["train_images"]:,} images, {first["epochs"]} epochs,
top-1 and latency of the exported file ({first["environment"]["threads"]} thread, {figures.listed(first["runtimes"].values())}; {figures.machine([row["environment"] for row in rows])}).
Command, seeds and every width: [docs/results.md](docs/results.md).
"""


def _runtimes(first: Any, *others: Any) -> str:
    known = (first, *others)
    ratios = [row["lce_over_litert"] for content in known for row in content["networks"]]
    processors = [content["environment"]["machine"]["processor"] for content in known]
    largest = max(first["networks"], key=lambda row: row["litert_ms"])
    return f"""On LiteRT with dmsflow's kernels, the default, the same file runs {min(ratios):.0f}–{max(ratios):.0f} × as fast as in LCE's interpreter (best settings), with
identical outputs (measured on {figures.listed(processors)}). On {processors[0]}, {NETWORKS[largest["network"]]} at {largest["pixels"]} pixels takes
{largest["litert_ms"]:.1f} ms, {largest["lce_ms"]:.1f} ms in LCE's interpreter, and {largest["float32_ms"]:.0f} ms as float32 in onnxruntime.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

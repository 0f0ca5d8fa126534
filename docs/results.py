"""Writes docs/results.md, and the results of README.md, from docs/results/*.json: no figure of them is typed.

make docs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import accuracy
import figures
import picture
import timing
from figures import Row

PAGE = Path(__file__).with_suffix(".md")
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: written by docs/results.py -->", "<!-- end of results -->"
PROTOCOLS = ("quick", "long", "paper")
TIMED = ("runtimes-x86-64", "runtimes-x86-64-avx2")  # complete networks with AVX-512 and with AVX2 alone
INTRODUCTION = """\
# Results

<!-- Written by docs/results.py from results/*.json: run those programs, then `make docs`. -->

Every figure on this page comes with its command, machine, versions, seeds and date. Figures are
measured, except those marked `modelled` (counted on an emulated processor) or `predicted` (from a profile).
Files ran in LCE's official interpreter unless the text says otherwise.
Deviations are standard deviations over seeds. Missing runs are listed. [Concepts](concepts.md) explains the terms.
"""
Load = Callable[[str], Any]


def page(load: Load = figures.load) -> str:
    """The whole page."""
    return figures.wrapped(
        "\n".join(
            (
                INTRODUCTION,
                accuracy.front(load("front")),
                accuracy.kernel_sizes(load("kernel-sizes")),
                accuracy.int8(load("int8"), [load(name) for name in TIMED]),
                accuracy.budgets(load("budgets")),
                accuracy.recipe(load("recipe")),
                accuracy.pairs(load("pairs")),
                accuracy.ablations(load("ablations")),
                accuracy.table1({name: load(f"table1-{name}") for name in PROTOCOLS}),
                accuracy.files(load("cifar10")),
                timing.predicted(load("predict-x86-64-binary-lce")),
                timing.kernels(load("kernels-x86-64"), load("kernels-x86-64-avx2"), load("runtimes-x86-64")),
                timing.arm(load("kernels-aarch64")),
                timing.first_layer(load("first-layer")),
                timing.search_cost(load("search-cost")),
                timing.train_step(load("train-step")),
                timing.elsewhere(load("runtimes-x86-64-intel"), load("train-step-intel")),
                timing.without_avx512(load("runtimes-x86-64-avx2"), load("runtimes-x86-64-avx2-2-threads")),
                timing.processes(load("processes")),
                timing.startup(load("startup")),
                timing.modules(load("modules")),
                timing.larq_zoo(load("larq-zoo")),
                timing.campaign(load("campaign")),
            )
        )
    )


def pictures(load: Load = figures.load) -> dict[str, str]:
    """The pictures of README and docs/concepts.md, by the names of their files."""
    rows = {row["widths"]: row for row in load("table1-long")["rows"] if row["row"] == "DMS-A" and row["jobs"]}
    widths = picture.draw_widths(rows["uniform"], rows["searched"])
    drawn = {"widths.svg": widths, "mask.svg": picture.draw_mask(), "words.svg": picture.draw_words()}
    front = _draw_front(load)
    return drawn | ({"front.svg": front} if front else {})


def _draw_front(load: Load) -> str | None:
    cells = (load("front") or {}).get("drawn")
    return picture.draw_front(cells) if cells else None


def readme(text: str, load: Load = figures.load) -> str:
    """The README with its results written again."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{_summary(load)}\n{END}{after}"


def _summary(load: Load) -> str:
    """A table of the paper's smallest budget with one line below it, and what two budgets give."""
    rows = {row["widths"]: row for row in load("table1-long")["rows"] if row["jobs"] and row["network"] == "vgg11"}
    content = load("budgets")
    cells = [cell for cell in content["cells"] if accuracy.leads(cell)] if content else []
    front = "\n![Top-1 against milliseconds on a device, searched and uniform widths](docs/front.svg)\n"
    drawn = front if _draw_front(load) else ""
    texts = "\n\n".join(
        filter(None, (_tie(cells) if cells else "", _beside_int8(load("int8"), [load(name) for name in TIMED])))
    )
    return f"{_smallest(rows)}{drawn}\n{figures.wrapped(texts)}\n"


WIDTHS = {  # of the table's rows, and what they are
    "base widths × 1": "as the paper's network has them",
    "uniform": "*uniform*: those, times one factor",
    "equal": "*equal*: the same in every layer",
    "searched": "**searched by dmsflow**",
}


BASELINES = {  # in README, which explains no terms
    "uniform": "uniform widths",
    "flat": "equal widths",
    "between": "widths interpolated between uniform and equal ones",
    "random": "random widths",
    "best random": "the best of {draws} random draws",
    "evolution": "evolutionary search",
}


def _smallest(rows: Row) -> str:
    """VGG-11 under 0.08 MiB."""
    found = rows["searched"]
    head = ("widths of a 1-bit VGG-11 on CIFAR-10", "MiB of parameters", "M multiply-accumulates", "top-1 %")
    lines = [
        (title, f"{figures.mean(jobs, 'memory_mib'):.3f}", f"{figures.mean(jobs, 'macs_m'):.1f}", figures.spread(jobs))
        for kind, title in WIDTHS.items()
        if kind in rows and (jobs := rows[kind]["jobs"])
    ]
    lines.append(
        ("searched by the DMS paper, after 300 epochs", "0.08", figures.NONE, f"{found['paper']['top1_percent']:.2f}")
    )
    minutes = figures.mean(found["jobs"], "search_seconds") / 60, figures.mean(found["jobs"], "train_seconds") / 60
    counts = figures.listed(len(row["jobs"]) for row in rows.values())
    where = f"{figures.listed(job['environment']['processor'] for job in found['jobs'])}, {found['jobs'][0]['environment']['date'][:10]}"
    return f"""{figures.table(head, lines)}

Ours: {found["epochs"]} epochs, {counts} seed{"s" * (counts != "1")}, {sum(minutes):.0f} minutes for search and training on one CPU core ({where}): [results](docs/results.md).
"""


def _tie(cells: list[Row]) -> str:
    cells = [cell for cell in cells if "macs_m" in cell]
    won = [sum(lead.gains for lead in accuracy.leads(cell).values()) for cell in cells]
    over = [len(accuracy.leads(cell)) for cell in cells]
    return (
        "The searched network also does more arithmetic: with a budget for that too, and short trainings, the search "
        f"beats {sum(won)} of {sum(over)} baselines by more than two standard errors.{_never(cells)}"
    )


def _never(cells: list[Row]) -> str:
    """` It does not beat evolution.`: the baselines that it beats in no such cell."""
    found = [accuracy.leads(cell) for cell in cells if "macs_m" in cell]
    ran = [method for method in accuracy.BASELINES if any(method in leads for leads in found)]
    never = [method for method in ran if not any(leads[method].gains for leads in found if method in leads)]
    titles = [BASELINES.get(method, method).format(draws=cells[0]["draws"]) for method in never]
    words = " or ".join(filter(None, (", ".join(titles[:-1]), *titles[-1:])))
    return f" It does not beat {words}." if titles else ""


def _beside_int8(content: Any, runtimes: Sequence[Any]) -> str:
    """What one bit gives up and saves beside int8: at equal widths and, where such a network was run, at equal top-1."""
    files = {  # by the factor of the base widths; means over the seeds
        each["scale"]: {
            name: {key: figures.mean([row["files"][name] for row in each["rows"]], key) for key in COMPARED}
            for name in ("1-bit", "int8")
        }
        for each in (content or {"networks": []})["networks"]
        if each["network"] == "vgg11" and each["rows"]
    }
    if 1.0 not in files:
        return ""
    bit, byte = files[1.0]["1-bit"], files[1.0]["int8"]
    longer = _ratios(runtimes, (1.0, "int8"), (1.0, "1-bit"))
    longer = f" that takes {longer} times as long on x86-64{_modelled(content)}" if longer else ""
    seeds = min(len(each["rows"]) for each in content["networks"] if each["network"] == "vgg11" and each["rows"])
    text = (
        f"One bit is not free: after {content['epochs']} epochs of {content['train_images']:,} images ({seeds} "
        f"seed{'s' * (seeds != 1)}), the same network with int8 weights and activations is "
        f"{byte['top1_percent'] - bit['top1_percent']:.0f} points more accurate, in a file "
        f"{byte['file_bytes'] / bit['file_bytes']:.1f} times as large{longer}"
    )
    wider = [scale for scale in sorted(files) if files[scale]["1-bit"]["top1_percent"] >= byte["top1_percent"]]
    if wider:
        other, share = files[wider[0]]["1-bit"], _ratios(runtimes, (wider[0], "1-bit"), (1.0, "int8"))
        text += (
            f"; a 1-bit network {wider[0]:g} times as wide is as accurate, in {other['file_bytes'] / byte['file_bytes']:.2f} "
            f"of its bytes{f' and {share} of its time' if share else ''}"
        )
    return f"{text} ([one bit, int8 or float32](docs/results.md#one-bit-int8-or-float32))."


def _ratios(runtimes: Sequence[Any], above: tuple[float, str], below: tuple[float, str]) -> str:
    """`2.4 to 3.0`: how the times of two VGG-11, each of a scale and a precision, compare on several processors."""
    times = [[accuracy.find_ms(each, "vgg11", *which) for which in (above, below)] for each in runtimes]
    found = sorted(one / other for one, other in times if one and other)
    return " to ".join(dict.fromkeys(f"{ratio:.1f}" for ratio in (found[:1] + found[-1:])))


def _modelled(content: Any) -> str:
    """` and 2.1 to 4.4 times on ARM cores (modelled)`: how int8 compares with one bit, VGG-11 at its base widths."""
    rows = [
        row["files"]
        for each in content["networks"]
        if (each["network"], each["scale"]) == ("vgg11", 1.0)
        for row in each["rows"]
    ]
    times = [(files["int8"].get("modelled_ms", {}), files["1-bit"].get("modelled_ms", {})) for files in rows]
    ratios = sorted(ms / bit[core] for byte, bit in times for core, ms in byte.items() if core in bit)
    return f" and {ratios[0]:.1f} to {ratios[-1]:.1f} times on ARM cores (modelled)" if ratios else ""


COMPARED = ("top1_percent", "file_bytes")


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text("utf-8")), encoding="utf-8")
    for name, drawn in pictures().items():
        PAGE.with_name(name).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()

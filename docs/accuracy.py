"""The parts of docs/results.md about trained networks: budgets, ablations, the paper's Table 1, exported files."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import figures
from figures import NETWORKS, NONE, Lead, Row

from dmsflow import settings

COMMAND = "torchrun --nproc-per-node 2 benchmarks/{} --dataset image-folder:PATH/TO/CIFAR10/FOLDERS"
METHODS = {  # by their keys in the results files
    "gradient": "**searched**",
    "uniform": "uniform",
    "flat": "equal",
    "between": "interpolated",
    "random": "random (mean of {draws})",
    "best random": "random (best of {draws})",
    "evolution": "evolution",
    "paper": "DMS as published",
}
PAST_COMMIT = "c6a9be6"  # the last one with settings that settings.REMOVED_FIELDS lists
BASELINES = tuple(method for method in METHODS if method not in ("gradient", "paper"))
TRAINED = ("python", "torch")
SEEDS_FOR_LESS_THAN_A_POINT = 6


def environments(rows: Sequence[Row]) -> list[Row]:
    return [row["environment"] for row in rows]


# --- two budgets ---------------------------------------------------------------------------------


def leads(cell: Row, methods: Sequence[str] = BASELINES) -> dict[str, Lead]:
    """Of the searched widths over every baseline, where the runs of both are complete."""
    made, seeds = cell["methods"], len(cell["seeds"])
    if len(made["gradient"]) < seeds:
        return {}
    return {
        method: figures.lead(made["gradient"], made[method], paired=method != "random")
        for method in methods
        if len(made.get(method, ())) == (cell["draws"] if method == "random" else seeds)
    }


def together(cells: Sequence[Row]) -> str:
    """`+2.12 ± 0.54 over uniform (15 pairs), …`: the mean difference of all cells, paired by seed, ± standard error."""
    words = []
    for method in BASELINES:
        found = [cell["methods"] for cell in cells if method != "random" and method in leads(cell)]
        gaps = [gap for methods in found for gap in figures.differences(methods["gradient"], methods[method])]
        if len(gaps) > 1:
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            title = METHODS[method].format(draws=cells[0]["draws"])
            words.append(f"{statistics.mean(gaps):+.2f} ± {error:.2f} over {title} ({len(gaps)} pairs)")
    return ", ".join(words)


def limits(cell: Row) -> str:
    """`VGG-11, at most 0.078 MiB and 16 million MACs`."""
    macs = f" and {cell['macs_m']:.3g} million MACs" if "macs_m" in cell else ", memory alone"
    return f"{NETWORKS[cell['network']]}, at most {cell['memory_mib']:g} MiB{macs}"


def budgets(content: Any) -> str:
    """Of benchmarks/budgets.py."""
    jobs = [job for cell in content["cells"] for made in cell["methods"].values() for job in made] if content else []
    title = "## Searched widths and baselines under the same budgets"
    return figures.part(title, COMMAND.format("budgets.py"), _budgets(content, jobs) if jobs else None)


def _budgets(content: Row, jobs: Sequence[Row]) -> tuple[str, str]:
    started = [cell for cell in content["cells"] if any(cell["methods"].values())]
    waiting = [limits(cell) for cell in content["cells"] if cell not in started]
    last = f"\n\nNot run yet: {'; '.join(waiting)}." if waiting else ""
    cells = "\n\n".join(_cell(cell) for cell in started)
    seeds, draws = content["cells"][0]["seeds"], content["cells"][0]["draws"]
    before = f"""\
CIFAR-10, {content["train_images"]:,} training images (the first {content["train_images"] // 10:,} of each class), batch 64,
SGD 0.1 with a cosine (the recipe before 2026-11-29, on JPEG images), the same for all networks. Top-1 is on the full test set. A search uses training images only.
**uniform** scales every layer of the base network by one factor. **equal** makes all layers equally wide.
**interpolated** is the point between those two that exhausts every budget. **random** draws widths around equal ones
({draws} draws, trained with seed {seeds[0]}; the best of them then with every seed). **evolution** tries sub-networks of the same
super-network for as long as the width phases of the gradient take. All are shrunk to fit every budget. **DMS as published** is
not a baseline, but the method from which dmsflow started: DMS with its published settings (`--preset paper`, with phases
shortened to minutes), under the same budgets.

*Gain*: top-1 of the searched widths minus top-1 of that row, ± the standard error of this difference (paired by seed).
*Verdict*: a difference below two standard errors is called no difference.

{_summary(content["cells"])}

{cells}{last}"""
    behind = f"""\
{figures.machine(environments(jobs), *TRAINED)}; seeds {figures.listed(seeds)}; {_times(jobs)}, one thread each.
Every run: [results/budgets.json](results/budgets.json)."""
    return before, behind


def _times(rows: Sequence[Row]) -> str:
    """`a search took 218 to 320 s, a training 138 to 496 s`; choices that took no time are no searches."""
    words = []
    for name, key in (("a search", "search_seconds"), ("a training", "train_seconds")):
        seconds = [row[key] for row in rows if row[key] >= 1]
        ends = dict.fromkeys(f"{one:.0f}" for one in (min(seconds), max(seconds))) if seconds else {}
        words += [f"{name} took {' to '.join(ends)} s"] if seconds else []
    return ", ".join(words)


def _summary(cells: Sequence[Row]) -> str:
    """How many cells the search wins, in words."""
    finished = [cell for cell in cells if leads(cell)]
    if not finished:
        return "No cell is finished yet."
    lines = []
    for cell in finished:
        found, titles = leads(cell), {m: title.format(draws=cell["draws"]) for m, title in METHODS.items()}
        gains = [method for method, one in found.items() if one.gains]
        others = [f"{titles[method]} ({one})" for method, one in found.items() if not one.gains]
        wins = f"better than {len(gains)} of {len(found)} baselines by more than two standard errors"
        without = [titles[method] for method in BASELINES if method not in found]
        parts = (
            wins,
            "not better than " + ", ".join(others) if others else "",
            "not run: " + ", ".join(without) if without else "",
            *(f"over DMS as published {one}, {one.verdict}" for one in leads(cell, ["paper"]).values()),
        )
        lines.append(f"- {limits(cell)}: {'; '.join(filter(None, parts))}.")
    note = f"""All cells together, paired by seed, ± the standard error: {together(finished)}. This total was computed after the
verdicts. Its pairs are not independent, since some trainings are in several rows or cells, so its errors are too small. It
only summarises these runs; the verdicts are those of the cells."""
    return "\n".join(lines) + f"\n\n{note}"


def _cell(cell: Row) -> str:
    head = ("widths", "each seed's", "MiB", "M MACs", "top-1 %, each seed", "mean ± deviation", "gain", "verdict")
    found, rows = leads(cell, tuple(METHODS)[1:]), []
    for method, title in METHODS.items():
        made, over = cell["methods"].get(method, []), found.get(method)
        costs = [
            f"{figures.mean(made, key):.{digits}f}" if made else NONE
            for key, digits in (("memory_mib", 4), ("macs_m", 1))
        ]
        shown = f"{len(made)} draws" if method == "random" else figures.widths(made)
        planned = cell["draws"] if method == "random" else len(cell["seeds"])
        part = f" ({len(made)} of {planned})" if 0 < len(made) < planned else ""
        rows.append(
            (
                title.format(draws=cell["draws"]),
                shown or NONE,
                *costs,
                figures.each(made),
                figures.spread(made) + part,
                str(over) if over else NONE,
                over.verdict if over else NONE,
            )
        )
    return f"### {limits(cell)}: {cell['epochs']} epochs\n\n{figures.table(head, rows)}{_elsewhere(cell)}"


def _elsewhere(cell: Row) -> str:
    """Which rows were trained on another processor than the searched widths, in a paragraph; empty without any."""
    made = {m: figures.listed(job["environment"]["processor"] for job in jobs) for m, jobs in cell["methods"].items()}
    there = {m: processor for m, processor in made.items() if processor and made.get("gradient") not in ("", processor)}
    if not there:
        return ""
    rows = ", ".join(METHODS[method].format(draws=cell["draws"]) for method in there)
    return f"""\n\nTrained on {figures.listed(there.values())}, the searched widths on {made["gradient"]}: {rows}. Processors round
differently, and training amplifies that: there, pairs of one seed share images and their order, not bits."""


# --- one search, many budgets ----------------------------------------------------------------------


def int8(content: Any, runtimes: Sequence[Any]) -> str:
    """Of benchmarks/int8.py, with times of runtimes.py on processors with AVX-512 and without."""
    rows = [row for each in content["networks"] for row in each["rows"]] if content else []
    command = "python benchmarks/int8.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS"
    texts = None
    if rows:
        lines = [line for each in content["networks"] for line in _precisions(each, content["cores"], runtimes)]
        processors = ("AVX-512", "AVX2", *content["cores"])
        head = ("network", "weights", "MiB", "file KiB", "top-1 %", *(f"ms, {each}" for each in processors))
        before = f"""\
The same networks in one bit, in int8 and in float32, {content["train_images"]:,} images of CIFAR-10, the default recipe, {content["epochs"]} epochs. int8
is the float32 network quantised by onnxruntime's own tools (`--target onnx-int8`). 1-bit files, whose stem is int8 too,
run on LiteRT with dmsflow's kernels, the others on onnxruntime; times with AVX-512 and with AVX2 alone are those of complete networks below,
times of ARM cores are modelled. Compare rows of equal memory, of equal time or of equal top-1, not of equal widths.

{figures.table(head, lines)}"""
        made = figures.machine(environments(rows), *TRAINED)
        texts = before, f"{made}, one thread. Every run: [results/int8.json](results/int8.json)."
    return figures.part("## One bit, int8 or float32", command, texts)


def _precisions(network: Row, cores: Sequence[str], runtimes: Sequence[Any]) -> list[tuple[str, ...]]:
    """A line for each precision of one network and scale; the best 1-bit time and memory are not judged here."""
    lines = []
    for precision in network["rows"][0]["files"] if network["rows"] else ():
        files = [row["files"][precision] for row in network["rows"]]
        modelled = next((each["modelled_ms"] for each in files if each["modelled_ms"]), {})
        title = f"{NETWORKS[network['network']]} {network['scale']:g}×"
        memory, size = figures.mean(files, "memory_mib"), figures.mean(files, "file_bytes") / 1024
        here = (find_ms(each, network["network"], network["scale"], precision) for each in runtimes)
        times = (f"{ms:.3f}" if ms else NONE for ms in (*here, *(modelled.get(core) for core in cores)))
        lines.append((title, precision, f"{memory:.3f}", f"{size:.1f}", figures.spread(files), *times))
    return lines


def find_ms(runtimes: Any, network: str, scale: float, precision: str) -> float | None:
    """Milliseconds of a network for 32 pixels in the results of runtimes.py; None: it was not measured."""
    label = {"1-bit": "litert_int8_stem"}.get(precision, precision)
    rows = runtimes["networks"] if runtimes else ()
    same = (row for row in rows if (row["network"], row["pixels"], row["ratio"]) == (network, 32, scale))
    return next((float(row[f"{label}_ms"]) for row in same if f"{label}_ms" in row), None)


def kernel_sizes(content: Any) -> str:
    """Of benchmarks/kernel_sizes.py."""
    rows = [row for cell in content["cells"] for each in cell["choices"] for row in each["rows"]] if content else []
    command = "python benchmarks/kernel_sizes.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS"
    texts = None
    if rows:
        lines = [line for cell in content["cells"] for line in _kernel_choices(cell, len(content["seeds"]))]
        head = ("budgets", "kernels of the eight convolutions", "widths", "M MACs", "top-1 %", "less 3 everywhere", "")
        before = f"""\
Would a search over kernel sizes gain? VGG-11 with the balanced widths of each choice of kernels under the same budgets,
{content["train_images"]:,} images of CIFAR-10, the default recipe, {content["epochs"]} epochs. Differences are paired by seed, ± their standard error. Only
a difference beyond {content["errors"]:g} standard errors counts.

{figures.table(head, lines)}"""
        made = figures.machine(environments(rows), *TRAINED)
        texts = before, f"{made}, one thread. Every run: [results/kernel-sizes.json](results/kernel-sizes.json)."
    return figures.part("## Other kernel sizes", command, texts)


def _kernel_choices(cell: Row, seeds: int) -> list[tuple[str, ...]]:
    lines = []
    for each in cell["choices"]:
        rows, gain = each["rows"], _judged(each["gain"])
        title = f"{' '.join(each['kernels'])} ({each['choice']})"
        if not rows:
            lines.append((_limits(cell), title, *[NONE] * 2, "not run", NONE, ""))
            continue
        same = each["choice"] == cell["choices"][0]["choice"]
        widths = " ".join(map(str, rows[0]["widths"]))
        found = (NONE, "") if same else (gain[0], gain[-1])
        lines.append(
            (_limits(cell), title, widths, f"{figures.mean(rows, 'macs_m'):.1f}", _of_seeds(rows, seeds), *found)
        )
    return lines


def front(content: Any) -> str:
    """Of benchmarks/front.py."""
    rows = [row for cell in content["cells"] for made in cell["methods"].values() for row in made] if content else []
    command = "python benchmarks/front.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS"
    return figures.part("## One search, many budgets", command, _front(content, rows) if rows else None)


def _front(content: Row, rows: Sequence[Row]) -> tuple[str, str]:
    seeds, errors = len(content["seeds"]), content["errors"]
    begun = (cell for cell in content["cells"] if any(cell["methods"].values()))
    lines = [line for cell in begun for line in _front_cell(cell, seeds)]
    head = ("budgets", "widths", "MiB", "M MACs", "ms", "top-1 %", "searched − these", "")
    pooled = [(rule, *_judged(found)) for rule, found in content["pooled"].items()]
    searched = content["search"]
    before = f"""\
{NETWORKS[content["network"]]} on {content["train_images"]:,} images of CIFAR-10, the default recipe, {content["epochs"]} epochs. For each seed, one search (at most
{searched["memory_mib"]:g} MiB and {searched["macs_m"]:g} million MACs) serves all budgets: `dmsflow widths` solves for each from what the search has
learned. The rules need no training. The *best draw* is the best of {content["draws"]} random draws around balanced widths, chosen
after training all of them with a seed of their own. *Searched − these*: the difference in top-1, paired by seed, ± its standard
error. Only a difference beyond {errors:g} standard errors counts. Interpolated widths are equal ones where equal widths
exhaust a budget first.

{figures.table(head, lines)}

All budgets together, each seed's mean over them:

{figures.table(("rule", "searched − rule", "seeds", ""), pooled)}

{_refused(content["cells"])}{_prediction(content["prediction"])}{_front_cost(content["cost"])}"""
    made = figures.machine(environments(rows), *TRAINED)
    return before, f"{made}, one thread. Every run: [results/front.json](results/front.json)."


def _front_cell(cell: Row, seeds: int) -> list[tuple[str, ...]]:
    lines = []
    for method in cell["methods"]:
        rows, title = cell["methods"][method], "**searched**" if method == "searched" else method
        if not rows:
            why = "refused" if method == "searched" and cell["refused"] else "not run"
            lines.append((_limits(cell), title, *[NONE] * 3, why, NONE, ""))
            continue
        costs = [f"{figures.mean(rows, 'memory_mib'):.3f}", f"{figures.mean(rows, 'macs_m'):.1f}"]
        costs.append(f"{figures.mean(rows, 'predicted_latency_ms'):.3f}" if "profile" in cell else NONE)
        gain = (NONE, "") if method == "searched" else _judged(cell["gains"][method])
        lines.append((_limits(cell), title, *costs, _of_seeds(rows, seeds), gain[0], gain[-1]))
    return lines


def _limits(cell: Row) -> str:
    """`0.078 MiB, 0.055 ms on epyc-litert`."""
    words = [f"{cell['memory_mib']:g} MiB"]
    words += [f"{cell['macs_m']:g} M MACs"] if "macs_m" in cell else []
    return ", ".join(words + ([f"{cell['latency_ms']:g} ms on {cell['profile']}"] if "profile" in cell else []))


def _of_seeds(rows: Sequence[Row], seeds: int) -> str:
    """Top-1 of the seeds that were run, and how many of them where some were not."""
    return figures.spread(rows) + (f" ({len(rows)} of {seeds})" if 0 < len(rows) < seeds else "")


def _judged(found: Row) -> tuple[str, str, str]:
    """Points, seeds and verdict."""
    if found["error"] is None:
        return NONE, str(found["seeds"]), found["verdict"]
    return f"{found['points']:+.2f} ± {found['error']:.2f}", str(found["seeds"]), found["verdict"]


def _refused(cells: Sequence[Row]) -> str:
    words = [
        f"{_limits(cell)} (seed {', '.join(str(row['seed']) for row in cell['refused'])}: {cell['refused'][0]['refused']})"
        for cell in cells
        if cell["refused"]
    ]
    return f"Refused by `dmsflow widths`, beyond what the search has learned: {'; '.join(words)}.\n\n" if words else ""


def _prediction(found: Sequence[Row]) -> str:
    """Rank correlations of every seed."""
    if not found:
        return ""
    each = {name: ", ".join(f"{row[name]:.2f}" for row in found) for name in ("searched", "equal")}
    counts = figures.listed(row["networks"] for row in found)
    return (
        f"Rank correlation (Spearman) of trained top-1 with the loss that slopes predict, over the {counts} networks of each "
        f"seed: {each['searched']} with the slopes that its search learned, {each['equal']} with equal slopes.\n\n"
    )


def _front_cost(found: Any) -> str:
    if not found:
        return "What a front costs was not measured yet."
    draws = ""
    if found["draws_seconds"]:
        draws = (
            f" Choosing the best of {found['draws']} random draws for each, by training them all for as long as above, would take "
            f"{found['draws_seconds'] / 60:,.0f} minutes ({found['draws_ratio']:.0f} × as long)."
        )
    refused = f"; {found['refused']} were refused" if found["refused"] else ""
    return f"""\
**What a front costs** (processor time of one core, start of the program included, mean of {found["seeds"]} seeds): {found["budgets"]} budgets,
6 on each of 2 devices, take one search ({found["search_seconds"]:.0f} s) and {found["budgets"]} solutions ({found["solution_seconds"]:.1f} s each{refused}): {found["front_seconds"]:.0f} s. A
search for each budget would take {found["searches_seconds"]:.0f} s, {found["ratio"]:.1f} × as long.{draws}"""


# --- ablations -----------------------------------------------------------------------------------


def ablations(content: Any) -> str:
    """Of benchmarks/ablations.py."""
    default = {row["variant"]: row["runs"] for row in content or []}.get("default")
    texts = _ablations(content, default) if default else None
    return figures.part("## What each part of the search is worth", COMMAND.format("ablations.py"), texts)


def _ablations(content: Sequence[Row], default: Sequence[Row]) -> tuple[str, str]:
    head = (
        "variant",
        "what it changes",
        "seeds",
        "MiB",
        "M MACs",
        "top-1 %, each seed",
        "mean ± deviation",
        "against the default",
        "verdict",
        "search s",
    )
    rows = []
    for row in content:
        runs = row["runs"]
        over = figures.lead(runs, default) if runs is not default else None
        rows.append(
            (
                row["variant"] + (f" (at {PAST_COMMIT})" if settings.REMOVED_FIELDS.keys() & row["settings"] else ""),
                figures.present_words(row["what"]),
                str(len(runs)),
                f"{figures.mean(runs, 'memory_mib'):.4f}",
                f"{figures.mean(runs, 'macs_m'):.1f}",
                figures.each(runs),
                figures.spread(runs),
                str(over) if over else NONE,
                over.verdict if over else NONE,
                f"{figures.mean(runs, 'search_seconds'):.0f}",
            )
        )
    runs = [run for row in content for run in row["runs"]]
    before = f"""\
VGG-11 under the first cell's budgets above, trained for {default[0]["epochs"]} epochs, with one setting changed at
a time. *Against the default*: difference of top-1, ± its standard error (paired by seed). We keep the default unless a
variant is better by more than two standard errors, which with three seeds some of {len(content) - 1} rows pass by chance. Variants marked "at {PAST_COMMIT}"
need settings that were removed later; check out that commit to run them.

{figures.table(head, rows)}"""
    made = figures.machine(environments(runs), *TRAINED)
    return before, f"{made}. Every run: [results/ablations.json](results/ablations.json)."


# --- the recipe ----------------------------------------------------------------------------------


def recipe(content: Any) -> str:
    """Of benchmarks/recipe.py."""
    texts = _recipe(content) if content else None
    command = "python benchmarks/recipe.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS --epochs 4 12 36"
    return figures.part("## What each part of the training recipe is worth", command, texts)


def _recipe(content: Row) -> tuple[str, str]:
    lines = [[NONE if cell is None else NETWORKS.get(cell, str(cell)) for cell in line] for line in content["table"]]
    before = f"""\
CIFAR-10, lossless pixels, base widths, one change at a time. Top-1 is on a tenth of the training images, on which no run
trains; the test images are not read. For other data (`--dataset digits --data digits --epochs 0`, or a folder) top-1 is on the
test images, which no choice depends on. *By effort*: the epochs of `--effort normal`. *Gain*: over the default, paired by seed, ± its standard error. A difference below two
standard errors does not count. The default is Adam at 0.005 with a cosine to 0, no weight decay, centred quantisers, batches of
64, flips, and crops that grow with the epochs.

{figures.table(tuple(content["head"]), lines)}"""
    made = figures.machine(environments(content["rows"]), *TRAINED)
    return before, f"{made}, one thread. Every run: [results/recipe.json](results/recipe.json)."


# --- pairs ----------------------------------------------------------------------------------

CHOSEN = {"quantize": "{0, α}", "sign": "±1", "float": "float stem", "int8": "int8 stem"}


def pairs(content: Any) -> str:
    """Of benchmarks/pairs.py."""
    rows = [row for each in content["networks"] for made in each["rows"].values() for row in made] if content else []
    title, texts = "## Activations of ±1, and an int8 stem", _pairs(content, rows) if rows else None
    return figures.part(title, COMMAND.format("pairs.py"), texts)


def _pairs(content: Row, rows: Sequence[Row]) -> tuple[str, str]:
    lines, sentences = [], []
    for each in content["networks"]:
        name = NETWORKS[each["network"]]
        undecided = {**each["gain"], "verdict": "not decided"}
        judged = each["gain"] if each["gain"]["seeds"] == len(content["seeds"]) else undecided
        sentences.append(_better(name, list(each["rows"]), judged))
        for position, (choice, made) in enumerate(each["rows"].items()):
            gain = _judged(judged) if position else (NONE, "", "")
            cells = [NONE] * 3
            if made:
                costs = f"{figures.mean(made, 'memory_mib'):.4f}", f"{figures.mean(made, 'macs_m'):.1f}"
                cells = [figures.widths(made), *costs]
            lines.append((name, CHOSEN[choice], *cells, _of_seeds(made, len(content["seeds"])), gain[0], gain[2]))
    head = ("network", "choice", "widths", "MiB", "M MACs", "top-1 %", "gain", "")
    before = f"""\
CIFAR-10, {content["train_images"]:,} training images (the first {content["train_images"] // 10:,} of each class), {content["epochs"]} epochs, the default
recipe, base widths. The networks of a pair differ in one choice: activations of {{0, α}} with one learned α a layer, or of ±1
with a learned shift for each channel (four bytes more a channel); a first convolution and a dense layer of float32, or
with 8-bit weights on uint8 pixels (`search --stem int8`). *gain*: the difference in top-1 to the other of the pair, by
seed, ± its standard error. Only a difference beyond {content["errors"]:g} standard errors counts, once all seeds were run.

{"; ".join(sentences)}.

{figures.table(head, lines)}"""
    made = figures.machine(environments(rows), *TRAINED)
    behind = f"{made}; seeds {figures.listed(content['seeds'])}, one thread each. Every run: [results/pairs.json](results/pairs.json)."
    return before, behind


def _better(name: str, pair: Sequence[str], gain: Row) -> str:
    """`ResNet-20: ±1 is better by 2.33 ± 0.33 points`."""
    if gain["verdict"] == "not decided":
        return f"{name}, {CHOSEN[pair[1]]}: not decided"
    if gain["verdict"] == "no difference shown":
        return f"{name}, {CHOSEN[pair[1]]}: no difference is shown ({gain['points']:+.2f} ± {gain['error']:.2f})"
    better = CHOSEN[pair[gain["verdict"] == "above"]]
    few = abs(gain["points"]) < 1 and gain["seeds"] < SEEDS_FOR_LESS_THAN_A_POINT
    unproven = f", which {gain['seeds']} seeds alone do not prove" if few else ""
    return f"{name}: {better} is better by {abs(gain['points']):.2f} ± {gain['error']:.2f} points{unproven}"


# --- Table 1 -------------------------------------------------------------------------------------


def table1(contents: dict[str, Any]) -> str:
    intro = """## The paper's Table 1, and baselines

CIFAR-10. *full precision* to *4×* scale the base network uniformly; *DMS-A* and *DMS-B* are searched under the memory that
the paper prints. Below each are DMS with its published settings (`--preset paper`, for as long as the
protocol allows) and the baselines, all at the same memory and with the same training. Memory is counted as in the paper; the
paper's figures for ResNet-18's 2× to 4× fit no uniformly scaled network.
"""
    return "\n".join((intro, *(_protocol(name, content) for name, content in contents.items())))


def _protocol(name: str, content: Any) -> str:
    jobs = [job for row in content["rows"] for job in row["jobs"]] if content else []
    command = COMMAND.format(f"table1.py --protocol {name}")
    return figures.part(f"### Protocol `{name}`", command, _table1(name, content, jobs) if jobs else None)


def _table1(name: str, content: Row, jobs: Sequence[Row]) -> tuple[str, str]:
    images = (
        f"the first {content['train_images'] // 10:,} training images of each class"
        if content["train_images"]
        else "all training images"
    )
    head = (
        "network",
        "row",
        "widths",
        "paper MiB",
        "paper top-1 %",
        "MiB",
        "M MACs",
        "top-1 %",
        "seeds or draws",
        "epochs",
        "search s",
        "training s",
    )
    missing = _not_run(content["rows"])
    before = [
        f"{images[0].upper()}{images[1:]}. Compare rows of equal epochs only.",
        figures.table(head, [_table1_row(row) for row in content["rows"] if row["jobs"]]),
        *([f"Not run yet: {'; '.join(missing)}."] if missing else []),
        *(
            f"{NETWORKS[row['network']]} {row['row']} is left out: {figures.present_words(row['left_out'])}."
            for row in content["rows"]
            if row["left_out"]
        ),
    ]
    behind = f"""\
{figures.machine(environments(jobs), *TRAINED)}, {figures.listed(job["environment"]["torch_device"] for job in jobs)};
{_times(jobs)}. Every run: [results/table1-{name}.json](results/table1-{name}.json)."""
    return "\n\n".join(before), behind


def _not_run(rows: Sequence[Row]) -> list[str]:
    """`VGG-11 2×` where nothing of a row was run, `VGG-11 DMS-A (equal, uniform)` where some lines of it were not."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{NETWORKS[row['network']]} {row['row']}", []).append(row)
    missing = []
    for title, group in lines.items():
        without = [figures.present_words(row["widths"]) for row in group if not row["jobs"] and not row["left_out"]]
        missing += [title if len(without) == len(group) else f"{title} ({', '.join(without)})"] if without else []
    return missing


def _table1_row(row: Row) -> tuple[str, ...]:
    done, paper = row["jobs"], row["paper"]
    printed = [f"{paper[key]:.2f}" for key in ("memory_mib", "top1_percent")] if paper else ["", ""]
    costs = [f"{figures.mean(done, key):.{digits}f}" for key, digits in (("memory_mib", 4), ("macs_m", 1))]
    count = f"{len(done)}" if len(done) == row["planned"] else f"{len(done)} of {row['planned']}"
    seconds = [figures.mean(done, key) for key in ("search_seconds", "train_seconds")]
    took = [f"{one:.0f}" if one >= 1 else NONE for one in seconds]
    top1, epochs = figures.spread(done), str(row["epochs"])
    return (
        NETWORKS[row["network"]],
        row["row"],
        figures.present_words(row["widths"]),
        *printed,
        *costs,
        top1,
        count,
        epochs,
        *took,
    )


# --- exported files ------------------------------------------------------------------------------

CASES = ("memory", "memory+MACs", "memory+latency")
WIDTHS = ("uniform", "flat", "gradient")


def papers_search(cells: Sequence[Row]) -> str:
    """How often dmsflow's search beats DMS as published; empty where no cell has both."""
    found = [(cell["methods"], lead) for cell in cells for lead in leads(cell, ["paper"]).values()]
    if not found:
        return ""
    won = [
        [figures.mean(methods[kind], "macs_m") for kind in ("paper", "gradient")]
        for methods, lead in found
        if lead.gains
    ]
    fewer = (
        "; in each of these DMS as published used fewer MACs"
        if won and all(theirs < ours for theirs, ours in won)
        else ""
    )
    return f"""Searched widths beat DMS as published (its settings as printed, its phases shortened to minutes, the same budgets) in {len(won)} of {len(found)}
cells by more than two standard errors{fewer}."""


def files(rows: Any) -> str:
    """Of benchmarks/cifar10.py: chains up to the exported file's own accuracy and latency."""
    groups = chains(rows)
    searched, flat, uniform = (groups["memory+latency", method] for method in ("gradient", "flat", "uniform"))
    over_flat, over_uniform = figures.lead(searched, flat), figures.lead(searched, uniform)
    errors = [abs(row["predicted_latency_ms"] / row["latency_ms_median"] - 1) for row in (*searched, *flat, *uniform)]
    beaten = [_beaten(row) for row in searched]
    both, wide = groups["memory+MACs", "gradient"], groups["memory+MACs", "flat"]
    longer = figures.mean(both, "latency_ms_median") / figures.mean(wide, "latency_ms_median") - 1
    head = (
        "budgets",
        "widths",
        "MiB",
        "M MACs",
        "top-1 %, each seed",
        "mean ± deviation",
        "predicted ms",
        "ms",
        "float32 ms",
    )
    first = rows[0]
    return f"""## Exported files, and a budget of milliseconds

Complete runs at an earlier commit: search, training and export. Top-1 and latency are those of the **exported 1-bit
file**. VGG-11 on {first["train_images"]:,} training images, {first["epochs"]} epochs, under three budgets: at most 0.08 MiB alone, with at most 16 million
multiply-accumulates too, or with at most 0.3 ms too, predicted by the profile `epyc-lce`.

{figures.table(head, [_chain(case, method, group) for (case, method), group in groups.items()])}

- predicted ms: the prediction of the search's profile. ms: median of the file in the LCE interpreter, and of the float32
  network of the same widths in onnxruntime, in turns; 1 thread; mean over the seeds.
- The images are CIFAR-10 as JPEG folders, so compare these numbers with each other, not with papers.

**Memory alone**: searched widths are {figures.lead(groups["memory", "gradient"], groups["memory", "uniform"]).sentence("uniform ones")}, and
{figures.lead(groups["memory", "gradient"], groups["memory", "flat"]).sentence("equal ones")}, at {figures.more(figures.mean(groups["memory", "gradient"], "macs_m") / figures.mean(groups["memory", "flat"], "macs_m") - 1, "fewer")} multiply-accumulates than equal ones.

**Memory and MACs**: {figures.lead(both, groups["memory+MACs", "uniform"]).sentence("uniform")}, and {figures.lead(both, wide).sentence("equal")}; MACs are not
milliseconds, and the searched files take {figures.more(longer)} time than equal ones.

**Memory and latency**: {over_uniform.sentence("uniform")}, and {over_flat.sentence("equal")} (paired by seed {over_flat}
over equal, {over_uniform} over uniform). All {len(errors)} files were predicted within {100 * max(errors):.1f} % of what was measured
afterwards. In the search's own comparison, on held-out training images, its result beat its start by more than a
standard error in {sum(beaten)} of {len(beaten)} runs. {len(searched)} seeds are few.

    python benchmarks/cifar10.py --data PATH/TO/CIFAR10/FOLDERS

measures memory+latency again. For the other two budgets, with more baselines, see benchmarks/budgets.py above.

{figures.machine(environments(rows), *TRAINED, "larq-compute-engine", "onnxruntime")};
seeds {figures.listed(sorted(row["seed"] for row in rows))}; {_times(rows)}. Every run:
[results/cifar10.json](results/cifar10.json).
"""


def chains(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """By budgets and method, in the order of the seeds."""
    return {
        (case, method): sorted(
            (row for row in rows if (row["case"], row["method"]) == (case, method)), key=lambda row: row["seed"]
        )
        for case in CASES
        for method in WIDTHS
    }


def _chain(case: str, method: str, group: Sequence[Row]) -> tuple[str, ...]:
    predicted = [row for row in group if row["predicted_latency_ms"]]
    return (
        case,
        f"{METHODS[method].strip('*')}: {figures.widths(group)}",
        f"{figures.mean(group, 'memory_mib'):.4f}",
        f"{figures.mean(group, 'macs_m'):.1f}",
        figures.each(group),
        figures.spread(group),
        f"{figures.mean(predicted, 'predicted_latency_ms'):.3f}" if predicted else NONE,
        f"{figures.mean(group, 'latency_ms_median'):.3f}",
        f"{figures.mean(group, 'float32_latency_ms_median'):.3f}",
    )


def _beaten(row: Row) -> bool:
    """Whether the search found its start worse by more than a standard error."""
    (start,) = (one for one in row["comparison"] if one["name"] == "start")
    return bool(start["loss_difference"] > start["standard_error"])

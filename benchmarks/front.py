"""One search, many budgets: widths of `dmsflow widths` beside rules that need no training, trained at the same budgets.

For each seed one search learns what the widths are worth, `dmsflow widths` solves for every cell from it, and these
widths are trained beside those of four rules, and beside the best of eight random draws. VGG-11 on CIFAR-10, the
default recipe, short trainings. Each seed also measures what a front costs: one search and a solution for each budget.
Everything that is compared, and the rule of decision, is a constant here. A seed is done before the next begins; a
finished row is a small file, and none is run twice, nor any that the results file has from another machine (see
`restore`). On a machine without a seed's search, the seed is searched again if any of its rows is missing:

    python benchmarks/front.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
    python benchmarks/front.py --tabulate

The second runs nothing: it writes docs/results/front.json from the rows that are done.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import msgspec
import numpy as np
import scipy.stats
import script

from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.manifest import load_manifest
from dmsflow.searching.budget import Budgets
from dmsflow.searching.slopes import RULES, Slopes, equal_slopes, rule_widths
from dmsflow.searching.widths import make_budgets
from dmsflow.settings import SearchSettings, resolve
from dmsflow.terminal import print_table

NETWORK = "vgg11"
SEEDS = (0, 1, 2, 3, 4, 5)
TRAIN_IMAGES = 20_000  # the first 2,000 of each class
EPOCHS = 3
# One search a seed serves all cells: their costs, 0.05 to 0.078 MiB and 10 to 34 M MACs, are in what it learns.
SEARCH: dict[str, Any] = {"memory_mib": 0.078, "macs_m": 28.0}
SETTINGS: tuple[str, ...] = ()  # of searches and trainings beside the defaults, as `search.rounds=2`
# Whether the search is better: the differences of one seed are paired (same budgets, images and order); over several
# cells they are first averaged for each seed, since cells share the search. Beyond so many standard errors it counts.
ERRORS = 2.0


@dataclass(frozen=True)
class Cell:
    """Budgets, and the name of their folder."""

    name: str
    budgets: dict[str, Any]

    def options(self) -> list[str]:
        return [text for name, value in self.budgets.items() for text in (f"--{name.replace('_', '-')}", str(value))]

    def rule(self, rule: str) -> dict[str, int]:
        """The widths of a rule, which need no training."""
        return rule_widths(self.limits(), rule)

    def limits(self) -> Budgets:
        settings = resolve(SearchSettings, network=NETWORK, stem=jobs.STEM, **self.budgets)
        return make_budgets(settings, load_network(NETWORK, 3, 32, 10))


def _timed(profile: str, latency_ms: float, memory_mib: float = 0.078) -> Cell:
    budgets = {"memory_mib": memory_mib, "profile": profile, "latency_ms": latency_ms}
    return Cell(f"{profile}-{latency_ms:g}ms", budgets)


# Just before a step of a device, where rules stop; a tight budget of MACs; memory alone.
CELLS = (
    _timed("epyc-litert", 0.055),
    _timed("cortex-a53", 1.301),
    _timed("cortex-a76", 0.202),
    Cell("10M", {"memory_mib": 0.078, "macs_m": 10.0}),
    Cell("0.05MiB", {"memory_mib": 0.05}),
)
BEST_DRAW = "best draw"
METHODS = ("searched", *RULES, BEST_DRAW)
OTHERS = METHODS[1:]  # what the search is compared with
DRAWS = 8  # of random widths around balanced ones at each budget
DRAW_SEED = 6  # of SEEDS none: the draws are trained with it, and the best of them then with every seed
# Two devices with six budgets each: what `cost` is about.
FRONT = tuple(
    _timed(profile, limit)
    for profile, limits in (
        ("cortex-a76", (0.150, 0.170, 0.190, 0.210, 0.230, 0.250)),
        ("epyc-litert", (0.030, 0.035, 0.040, 0.045, 0.050, 0.055)),
    )
    for limit in limits
)
# The picture of README: the budgets of one device, trained with the first seeds, after all cells.
DRAWN, DRAWN_METHODS, DRAWN_SEEDS = FRONT[:6], ("searched", "balanced", "uniform"), SEEDS[:3]
FEWEST_RANKED = 5  # networks of a seed whose order is worth a correlation
REFUSED = "the search has learned"  # how `dmsflow widths` refuses a budget beyond its range

# Of each row that a study makes: its file, what names it, and what makes the rest of it.
Rows = Iterable[tuple[Path, dict[str, Any], Callable[[], dict[str, Any]]]]


@dataclass(frozen=True)
class Place:
    """Where rows are, and the images.

    Attributes:
        out: folder of everything.
        data: options that name the images.
    """

    out: Path
    data: tuple[str, ...] = ()

    def seed(self, seed: int) -> Path:
        return self.out / f"seed-{seed}"

    def searched(self, seed: int) -> Path:
        return self.seed(seed) / "search" / "search.json"

    def cost(self, seed: int) -> Path:
        return self.seed(seed) / "cost.json"

    def row(self, seed: int, cell: Cell, method: str) -> Path:
        return self.seed(seed) / "rows" / f"{cell.name}-{method}.json"

    def draw(self, cell: Cell, number: int) -> Path:
        return self.out / "draws" / cell.name / f"{number}.json"


# --- running ----------------------------------------------------------------------------------------


def run_seed(seed: int, where: Place) -> int:
    """Search, measure what a front costs, then do every row that is left of one seed; how many failed."""
    with jobs.lock(where.seed(seed)) as free:
        if not free:  # another process is at it
            return 0
        left = [row for row in seed_rows(seed, where) if not row[0].exists()]
        if left and not where.searched(seed).exists():
            search(seed, where)
        return fill(left)


def seed_rows(seed: int, where: Place) -> Rows:
    """What a front costs, then what is trained with one seed."""
    yield where.cost(seed), {"measured": "cost", "seed": seed}, partial(measure_cost, seed, where)
    pairs = [(cell, method) for cell in CELLS for method in METHODS]
    pairs += [(cell, method) for cell in DRAWN for method in DRAWN_METHODS if seed in DRAWN_SEEDS]
    for cell, method in pairs:
        named = {"cell": cell.name, "method": method, "seed": seed}
        yield where.row(seed, cell, method), named, partial(make_row, seed, cell, method, where)


def draw_rows(cell: Cell, where: Place) -> Rows:
    """The draws of a cell."""
    for number in range(DRAWS):
        named = {"cell": cell.name, "method": "random", "draw": number, "seed": DRAW_SEED}
        yield where.draw(cell, number), named, partial(make_draw, cell, number, where)


def all_rows(where: Place) -> Rows:
    for cell in CELLS:
        yield from draw_rows(cell, where)
    for seed in SEEDS:
        yield from seed_rows(seed, where)


def search(seed: int, where: Place) -> None:
    """The one search of a seed; its seconds are kept beside it unless it was interrupted."""
    out = where.searched(seed).parent
    whole = not (out / "search.checkpoint").exists()
    options = Cell("search", SEARCH).options()
    took = call("search", *_search(where), *options, "--seed", str(seed), "--resume", "--out", str(out))
    write(out / "seconds.json", {**took, "whole": whole})


def _search(where: Place) -> list[str]:
    changes = [f"data.train_images={TRAIN_IMAGES}", "search.threads=1", f"search.stem={jobs.STEM}", *_changes("search")]
    return ["--network", NETWORK, *where.data, *(f"--set={change}" for change in changes)]


def _changes(stage: str) -> list[str]:
    return [change for change in SETTINGS if change.startswith(f"{stage}.")]


def measure_cost(seed: int, where: Place) -> dict[str, Any]:
    """Seconds of the search, and of a solution for every budget of FRONT: processor time and time on the clock."""
    searched, solutions = where.searched(seed), []
    for cell in FRONT:
        took, refused = solve(searched, cell, where.seed(seed) / "front" / cell.name)
        solutions.append({"cell": cell.name, **took, **({"refused": refused} if refused else {})})
    return {"search": read(searched.with_name("seconds.json")), "solutions": solutions}


def solve(searched: Path, cell: Cell, out: Path) -> tuple[dict[str, float], str]:
    """Write out/search.json with `dmsflow widths`; what it took, and why it was refused (empty: it was not)."""
    try:
        return call("widths", str(searched), *cell.options(), "--resume", "--out", str(out)), ""
    except DmsflowError as error:
        if REFUSED not in str(error):
            raise
        return {}, str(error).partition(f"{searched}: ")[2].partition("; ")[0]  # without the path: rows are published


def make_row(seed: int, cell: Cell, method: str, where: Place) -> dict[str, Any]:
    """Choose the widths of a method and train them, unless the same widths were trained with this seed.

    Returns what the row holds; `refused`, in place of results, where the search cannot answer for a budget.
    """
    folder, searched = where.seed(seed), where.searched(seed)
    if method == "searched":
        choice = folder / "solved" / cell.name / "search.json"
        _, refused = solve(searched, cell, choice.parent)
        if refused:
            return {"refused": refused}
        widths = load_manifest(choice, "search").widths
    elif method == BEST_DRAW:
        best = best_draw(cell, where)
        choice = choose(cell, "random", best["draw"], where, where.draw(cell, best["draw"]).with_suffix(""))
        widths = load_manifest(choice, "search").widths
        if list(widths.values()) != best["widths"]:
            raise DmsflowError(choice, "has other widths than the row of the draw", "remove its folder, or that row")
    else:
        widths = cell.rule(method)
        choice = choose(cell, method, 0, where, folder / "rules" / "-".join(map(str, widths.values())))
        if load_manifest(choice, "search").widths != widths:
            raise DmsflowError(choice, "has other widths than the rule", "remove its folder")
    out = train(choice, seed, folder / "trainings" / "-".join(map(str, widths.values())))
    return {
        "widths": list(widths.values()),
        "predicted": predict_losses(searched, widths),
        **_costs(cell, widths),
        **_trained(out),
    }


def make_draw(cell: Cell, number: int, where: Place) -> dict[str, Any]:
    """Draw random widths within the budgets, and train them with the seed of all draws."""
    choice = choose(cell, "random", number, where, where.draw(cell, number).with_suffix(""))
    widths = load_manifest(choice, "search").widths
    out = train(choice, DRAW_SEED, choice.parent)
    return {"widths": list(widths.values()), **_costs(cell, widths), **_trained(out)}


def predict_losses(searched: Path, widths: dict[str, int]) -> dict[str, float]:
    """The loss that slopes predict for widths, above that of the base widths, which all searches of a seed share.

    Returns it for `searched`, the slopes that the search has learned, and for `equal` ones, which need no training.
    """
    network = load_network(NETWORK, 3, 32, 10)
    learned = msgspec.convert(load_manifest(searched, "search").metrics["slopes"], Slopes)
    ratios = np.log([width / network.widths[name] for name, width in widths.items()])
    both = {"searched": learned, "equal": equal_slopes(network)}
    return {name: slopes.loss(ratios) - slopes.loss(np.zeros_like(ratios)) for name, slopes in both.items()}


def choose(cell: Cell, method: str, seed: int, where: Place, out: Path) -> Path:
    """The search.json of widths that need no training."""
    if not (out / "search.json").exists():
        options = [*cell.options(), "--method", method, "--seed", str(seed), "--out", str(out)]
        call("search", *_search(where), *options, "--resume")
    return out / "search.json"


def train(choice: Path, seed: int, out: Path) -> Path:
    """Train the widths of a search.json, unless that is done; its folder."""
    if not (out / "train.json").exists():
        whole = not any(out.glob("*.checkpoint"))
        changes = ("train.threads=1", *_changes("train"))
        options = ["--epochs", str(EPOCHS), "--seed", str(seed), *(f"--set={change}" for change in changes)]
        took = call("train", str(choice), *options, "--resume", "--out", str(out))
        write(out / "seconds.json", {**took, "whole": whole})
    return out


def best_draw(cell: Cell, where: Place) -> dict[str, Any]:
    """The row of the draw that is best after training with a seed of its own; all draws are trained first."""
    with jobs.lock(folder := where.draw(cell, 0).parent) as free:
        if not free:
            raise DmsflowError(folder, "is being worked on by another process", "start again when that has finished")
        if failed := fill(draw_rows(cell, where)):
            raise DmsflowError(folder, f"{failed} draws failed", "read their messages, and start again")
        return max(finished(draw_rows(cell, where)), key=lambda row: row["top1_percent"])


def _costs(cell: Cell, widths: dict[str, int]) -> dict[str, Any]:
    """What the widths cost, and what they take of each budget: the same program for all methods."""
    budgets = cell.limits()
    if not budgets.met(widths):
        raise DmsflowError(cell.name, f"is not met by {widths}", "correct the program that chose them")
    used = {each.name: each.cost(widths) / each.limit for each in budgets.limits}
    return {**budgets.figures(widths), "budgets_used": used}


def _trained(out: Path) -> dict[str, Any]:
    done = load_manifest(out / "train.json", "train")
    environment = {key: value for key, value in done.environment.items() if key in jobs.KEPT}
    took = read(out / "seconds.json") if (out / "seconds.json").exists() else None
    return {
        "top1_percent": done.metrics["top1_percent"],
        "epochs": done.metrics["epochs"],
        "train_images": TRAIN_IMAGES,
        "training": took,
        "environment": environment,
    }


def call(*words: str) -> dict[str, float]:
    """Run a command of dmsflow; its seconds on the clock and of the processor.

    Raises:
        DmsflowError: with its message.
    """
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)
    began = time.monotonic(), _processor_seconds()
    done = subprocess.run([sys.executable, "-m", "dmsflow", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise DmsflowError(f"dmsflow {words[0]}", lines[-1].removeprefix("dmsflow: "), "correct that, and start again")
    return {"seconds": time.monotonic() - began[0], "cpu_seconds": _processor_seconds() - began[1]}


def _processor_seconds() -> float:
    """Of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def restore(results: Path, rows: Rows) -> None:
    """Write the files of the rows that are in the results file but not here: a row made on another machine stays.

    To have it made again, remove it from the results file.
    """
    published = list(jobs.objects(results))
    for path, named, _ in rows:
        found = next((part for part in published if part.items() >= named.items()), None)
        if found is not None and not path.exists():
            write(path, found)


def finished(rows: Rows) -> list[dict[str, Any]]:
    """The rows whose files are there."""
    return [read(path) for path, *_ in rows if path.exists()]


def fill(rows: Rows) -> int:
    """Make the rows of which no file is there yet; how many failed."""
    failed = 0
    for path, named, make in rows:
        if path.exists():
            continue
        try:
            found = make()
        except DmsflowError as error:  # say out of memory: the others need not wait
            print(error, file=sys.stderr, flush=True)
            failed += 1
        else:
            write(path, {**named, **found})
    return failed


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# --- the table --------------------------------------------------------------------------------------


def tabulate(where: Place) -> dict[str, Any]:
    """What docs/results.py reads: every row that is done, what the search gains over each rule, and the cost."""
    cells = []
    for cell in CELLS:
        found = {"cell": cell.name, **cell.budgets, **done_rows(where, cell, METHODS)}
        gains = {rule: judge(differences([found["methods"]], rule)) for rule in OTHERS}
        cells.append({**found, "draws": finished(draw_rows(cell, where)), "gains": gains})
    costs = [read(path) for seed in SEEDS if (path := where.cost(seed)).exists()]
    pooled = {rule: judge(differences([cell["methods"] for cell in cells], rule)) for rule in OTHERS}
    return {
        "network": NETWORK,
        "train_images": TRAIN_IMAGES,
        "epochs": EPOCHS,
        "seeds": SEEDS,
        "search": SEARCH,
        "draws": DRAWS,
        "errors": ERRORS,
        "cells": cells,
        "pooled": pooled,
        "drawn": [{**cell.budgets, **done_rows(where, cell, DRAWN_METHODS)} for cell in DRAWN],
        "prediction": prediction(cells),
        "costs": costs,
        "cost": cost(costs, cells),
    }


def done_rows(where: Place, cell: Cell, methods: Sequence[str]) -> dict[str, Any]:
    """The trained rows of each method, and the rows of the seeds whose search cannot answer, which say why."""
    rows = [read(path) for method in methods for seed in SEEDS if (path := where.row(seed, cell, method)).exists()]
    trained = [row for row in rows if "refused" not in row]
    return {
        "methods": {method: [row for row in trained if row["method"] == method] for method in methods},
        "refused": [row for row in rows if "refused" in row],
    }


def prediction(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each seed, Spearman's rank correlation of the top-1 of its trained networks with what slopes predict.

    `searched` with the slopes that the seed's search has learned, `equal` with equal slopes, which need no training.
    """
    found = []
    for seed in SEEDS:
        rows = (row for cell in cells for made in cell["methods"].values() for row in made if row["seed"] == seed)
        trained = list({tuple(row["widths"]): row for row in rows}.values())
        if len(trained) < FEWEST_RANKED:
            continue
        top1 = [row["top1_percent"] for row in trained]
        ranks: dict[str, Any] = {"seed": seed, "networks": len(trained)}
        for name in ("searched", "equal"):
            better = [-row["predicted"][name] for row in trained]
            ranks[name] = float(scipy.stats.spearmanr(better, top1).statistic)
        found.append(ranks)
    return found


def differences(cells: Sequence[dict[str, list[dict[str, Any]]]], rule: str) -> list[float]:
    """Points of top-1 of the search above a rule, one a seed: the mean over the cells that have both."""
    found: dict[int, list[float]] = {}
    for methods in cells:
        others = {row["seed"]: row["top1_percent"] for row in methods[rule]}
        for row in methods["searched"]:
            if row["seed"] in others:
                found.setdefault(row["seed"], []).append(row["top1_percent"] - others[row["seed"]])
    return [statistics.mean(gaps) for _, gaps in sorted(found.items())]


def judge(gaps: Sequence[float]) -> dict[str, Any]:
    """Mean and standard error of paired differences, and whether they are beyond ERRORS of those."""
    if len(gaps) < 2:
        return {"seeds": len(gaps), "points": gaps[0] if gaps else None, "error": None, "verdict": "not decided"}
    points, error = statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5
    beyond = abs(points) > ERRORS * error
    verdict = ("above" if points > 0 else "below") if beyond else "no difference shown"
    return {"seeds": len(gaps), "points": points, "error": error, "verdict": verdict}


def cost(known: Sequence[dict[str, Any]], cells: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Means over the seeds, in seconds of one core: a search, a solution, a training; and what a front takes of each."""
    searches = [each["search"]["cpu_seconds"] for each in known if each["search"]["whole"]]
    solutions = [one["cpu_seconds"] for each in known for one in each["solutions"] if "refused" not in one]
    trainings = [
        row["training"]["cpu_seconds"]
        for cell in cells
        for rows in cell["methods"].values()
        for row in rows
        if row["training"] and row["training"]["whole"]
    ]
    if not (searches and solutions):
        return None
    budgets, one, solution = len(FRONT), statistics.mean(searches), statistics.mean(solutions)
    here, before = one + budgets * solution, budgets * one
    draws = budgets * DRAWS * statistics.mean(trainings) if trainings else None
    return {
        "budgets": budgets,
        "seeds": len(searches),
        "search_seconds": one,
        "solution_seconds": solution,
        "refused": sum("refused" in one for each in known for one in each["solutions"]),
        "front_seconds": here,
        "searches_seconds": before,
        "ratio": before / here,
        "draws": DRAWS,
        "draws_seconds": draws,
        "draws_ratio": draws / here if draws else None,
        "environment": next((row["environment"] for row in cells[0]["methods"]["balanced"]), None),
    }


def show(content: dict[str, Any]) -> None:
    """What is done, and the verdicts, on stdout."""
    cells = []
    for part in (*content["cells"], {"cell": "all", "gains": content["pooled"]}):
        counts = [str(len(rows)) for rows in part["methods"].values()] if "methods" in part else [""] * len(METHODS)
        cells.append((part["cell"], *counts, *(describe_gain(part["gains"][rule]) for rule in OTHERS)))
    head = ("cell", *METHODS, *(f"searched − {rule}" for rule in OTHERS))
    print_table(f"Trainings done of {len(SEEDS)} seeds, and gains in top-1", head, cells, stream=sys.stdout)
    if found := content["cost"]:
        head = ("search s", "solution s", f"search + {found['budgets']} solutions s", "a search each s", "ratio")
        keys = ("search_seconds", "solution_seconds", "front_seconds", "searches_seconds", "ratio")
        row = tuple(f"{found[key]:.1f}" for key in keys)
        print_table("A front, processor time", head, [row], stream=sys.stdout)


def describe_gain(found: dict[str, Any]) -> str:
    if found["error"] is None:
        return "–"
    return f"{found['points']:+.2f} ± {found['error']:.2f} {found['verdict']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="as in dmsflow search: cifar10, or image-folder:PATH")
    parser.add_argument("--data-dir", help="as in dmsflow search")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--out", type=Path, default=Path("runs/front"), help="folder of all runs; done ones are kept")
    parser.add_argument("--tabulate", action="store_true", help="run nothing; write what is done")
    parser.add_argument("--results", type=Path, default=jobs.RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    folder = ("--data-dir", arguments.data_dir) if arguments.data_dir else ()
    where = Place(arguments.out, ("--dataset", arguments.dataset or "", *folder))
    results = arguments.results / "front.json"
    restore(results, all_rows(where))
    if not arguments.tabulate:
        if not arguments.dataset:
            raise DmsflowError("--dataset", "is not given", "give --dataset image-folder:PATH, or --tabulate")
        os.environ["OMP_NUM_THREADS"] = "1"  # of the commands: cost is that of one core
        if failed := sum(run_seed(seed, where) for seed in arguments.seeds):
            raise DmsflowError(arguments.out, f"{failed} rows failed", "read their messages, and start again")
        return
    content = tabulate(where)
    write(results, content)
    show(content)


if __name__ == "__main__":
    script.run(main)

"""Searched widths against every baseline that meets the same budgets, cell by cell.

A cell is a network and its budgets. In each one the widths of the search are trained beside uniform, equal
and interpolated ones, the best of eight random draws around equal widths, evolution with as many evaluations,
and the search as published; the same schedule and images for all. It continues where it was stopped:

    torchrun --nproc-per-node 2 benchmarks/budgets.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jobs
import script
from jobs import Job, Runs

from dmsflow import preset, settings
from dmsflow.importing import load_network
from dmsflow.searching import budget
from dmsflow.searching.budget import Budgets
from dmsflow.settings import SearchSettings

# Fixed choices, by the word for each in folders and results files, which keep the names that they began with.
KEYS = {"uniform": "uniform", "equal": "flat", "interpolated": "between"}
TRAIN_IMAGES = 20_000  # the first 2,000 of each class
SEEDS = (0, 1, 2)
DRAWS = 8
PAPER_STEP_SIZE = {"vgg11": 0.002, "resnet18": 0.001}
# The paper's 50 rounds remain, their phases become shorter, so that a search takes minutes on one core.
PAPER_PHASES: dict[str, dict[str, Any]] = {
    name: {"weight_epochs": None, "weight_steps": steps, "width_batches": steps}
    for name, steps in (("vgg11", 30), ("resnet18", 8))
}


@dataclass(frozen=True)
class Cell:
    """A network, its course, its budgets; `macs_m` "uniform": those of the uniform network at that memory.

    `former`: by the recipe of then (jobs.FORMER_TRAIN).
    """

    network: str
    epochs: int
    memory_mib: float
    macs_m: float | str | None = None
    former: bool = True

    @property
    def name(self) -> str:
        macs = f"+{self.macs_m:g}M" if isinstance(self.macs_m, float) else f"+{self.macs_m}" if self.macs_m else ""
        return f"{self.network}/{self.memory_mib:g}MiB{macs}"

    def budgets(self) -> dict[str, Any]:
        """Settings of a search within them."""
        found: dict[str, Any] = {"network": self.network, "memory_mib": self.memory_mib}
        if self.macs_m == "uniform":
            found["macs_m"] = _uniform_macs_m(self.network, self.memory_mib)
        elif self.macs_m is not None:
            found["macs_m"] = self.macs_m
        return found

    def searching(self, method: str, **others: Any) -> dict[str, Any]:
        """Settings of a search that trains."""
        return {**(jobs.FORMER_SEARCH if self.former else {}), **self.budgets(), "method": method, **others}

    def training(self, seed: int) -> dict[str, Any]:
        """Settings of one of its trainings."""
        return {**(jobs.FORMER_TRAIN if self.former else {}), "epochs": self.epochs, "seed": seed}


# The first is that of ablations.py as well, trained the longest; all of it is a night on two cores.
CELLS = (
    Cell("vgg11", 12, 0.078, 16.0),
    Cell("vgg11", 6, 0.078, 10.0),
    Cell("vgg11", 4, 0.078, 25.0),
    Cell("vgg11", 6, 0.078),
    Cell("resnet18", 3, 0.10, "uniform"),
)


def _uniform_macs_m(name: str, memory_mib: float) -> float:
    network = load_network(name, 3, 32, 10)
    chosen = settings.resolve(SearchSettings, network=name, memory_mib=memory_mib)
    budgets = Budgets.from_settings(chosen, network)
    widths = budgets.round_within(budgets.uniform())
    return float(budget.macs_m(network, widths))


def baseline(cell: Cell, method: str, seed: int) -> Job:
    """A fixed choice, trained with a seed; under one budget interpolated widths are equal ones."""
    if method == "interpolated" and cell.macs_m is None:
        method = "equal"
    return Job(f"{cell.name}/{KEYS[method]}", {**cell.budgets(), "method": method}, cell.training(seed))


def draw(cell: Cell, number: int, seed: int) -> Job:
    """A random choice, trained with a seed."""
    drawn = {**cell.budgets(), "method": "random", "seed": number}
    return Job(f"{cell.name}/random-{number}", drawn, cell.training(seed))


def searched(cell: Cell, method: str, seed: int) -> Job:
    """Searched and trained with a seed."""
    return Job(f"{cell.name}/{method}-{seed}", cell.searching(method, seed=seed), cell.training(seed))


def papers(cell: Cell, seed: int, **others: Any) -> Job:
    """Searched as the paper says, literally, with other settings where they differ from its preset; and trained."""
    search = {
        **preset.load_preset("search", "paper"),
        "step_size": PAPER_STEP_SIZE[cell.network],
        **others,
        **cell.budgets(),
        "seed": seed,
    }
    return Job(f"{cell.name}/literal-{seed}", search, cell.training(seed))


def waves(cells: Sequence[Cell], methods: Sequence[str], where: Runs) -> Iterator[list[Job]]:
    """Cell by cell; the best draw's other seeds come last, for the draws decide which it is."""
    for cell in cells:
        yield first_wave(cell, methods)
        if "random" in methods:
            yield best_draw(cell, where)


def first_wave(cell: Cell, methods: Sequence[str]) -> list[Job]:
    """Everything but the best draw's other seeds."""
    found = [baseline(cell, method, seed) for seed in SEEDS for method in KEYS if method in methods]
    found += [draw(cell, number, SEEDS[0]) for number in range(DRAWS) if "random" in methods]
    found += [searched(cell, m, seed) for seed in SEEDS for m in ("gradient", "evolution") if m in methods]
    return found + [papers(cell, seed, **PAPER_PHASES[cell.network]) for seed in SEEDS if "paper" in methods]


def best_draw(cell: Cell, where: Runs) -> list[Job]:
    """The draw that its one training found best, with every seed; none before all of them were trained."""
    found = jobs.finished([draw(cell, number, SEEDS[0]) for number in range(DRAWS)], where)
    if len(found) < DRAWS:
        return []
    best = max(range(DRAWS), key=lambda number: found[number]["top1_percent"])
    return [draw(cell, best, seed) for seed in SEEDS]


def one_cell(cell: Cell, where: Runs) -> dict[str, Any]:
    """What docs/results.py reads: the jobs of each method that are done, in the order of the seeds or draws."""
    methods = {key: [baseline(cell, method, seed) for seed in SEEDS] for method, key in KEYS.items()}
    methods["random"] = [draw(cell, number, SEEDS[0]) for number in range(DRAWS)]
    methods["best random"] = best_draw(cell, where)
    methods |= {method: [searched(cell, method, seed) for seed in SEEDS] for method in ("evolution", "gradient")}
    methods["paper"] = [papers(cell, seed, **PAPER_PHASES[cell.network]) for seed in SEEDS]
    return {
        "cell": cell.name,
        **cell.budgets(),
        "epochs": cell.epochs,
        "seeds": SEEDS,
        "draws": DRAWS,
        "methods": {method: jobs.finished(made, where) for method, made in methods.items()},
    }


def tabulate(where: Runs) -> dict[str, Any]:
    cells = [one_cell(cell, where) for cell in CELLS]
    return {"command": "python benchmarks/budgets.py", "train_images": TRAIN_IMAGES, "cells": cells}


METHODS = (*KEYS, "random", "evolution", "gradient", "paper")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_options(parser, "runs/quick")
    parser.add_argument("--cells", nargs="+", choices=[cell.name for cell in CELLS], default=[c.name for c in CELLS])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = parser.parse_args()
    where = jobs.runs("budgets", arguments, TRAIN_IMAGES)
    asked = [cell for cell in CELLS if cell.name in arguments.cells]
    jobs.study("budgets", waves(asked, arguments.methods, where), lambda: tabulate(where), where, arguments)


if __name__ == "__main__":
    script.run(main)

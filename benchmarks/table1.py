"""Every CIFAR-10 row of the DMS paper's Table 1, and baselines at the memory of its searched networks.

Protocols: `paper`, with the paper's schedules, for a GPU; `quick`, for two CPU cores: the first 2,000 training
images of each class, and so few epochs that no job takes ten minutes on one core; and `long`, for two cores and a
few nights: all images, by dmsflow's own recipe (`toy` only tries this program). What is compared (all rows of one memory
size) is trained alike. Done jobs are kept, and it goes on where it was stopped:

    torchrun --nproc-per-node 2 benchmarks/table1.py --protocol quick --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
    python benchmarks/table1.py --protocol paper --dataset cifar10

Starting it twice spreads it too. `--tabulate` runs nothing: it writes docs/results/table1-PROTOCOL.json from
what is done.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import budgets
import jobs
import script
from budgets import Cell
from jobs import Job, Runs

from dmsflow import preset
from dmsflow.importing import load_network
from dmsflow.searching import budget
from dmsflow.terminal import print_table

# MiB and top-1 % as printed in the paper.
PAPER = {
    "vgg11": {
        "full": (2.20, 88.10),
        "1x": (0.08, 78.31),
        "2x": (0.29, 85.37),
        "3x": (0.65, 88.17),
        "4x": (1.14, 88.68),
        "dms-a": (0.08, 84.16),
        "dms-b": (0.64, 89.10),
    },
    "resnet18": {
        "full": (2.67, 92.75),
        "1x": (0.09, 85.33),
        "2x": (0.40, 90.25),
        "3x": (0.98, 92.25),
        "4x": (1.92, 93.01),
        "dms-a": (0.10, 89.32),
        "dms-b": (0.84, 92.70),
    },
}
ROWS = tuple(PAPER["vgg11"])
TITLES = {"full": "full precision", "1x": "1×", "2x": "2×", "3x": "3×", "4x": "4×", "dms-a": "DMS-A", "dms-b": "DMS-B"}
# Rows of one memory size are compared with each other, and trained alike.
SIZES = {"full": "A", "1x": "A", "2x": "2x", "3x": "B", "4x": "4x", "dms-a": "A", "dms-b": "B"}
START_RATIO = {"dms-a": 1.5, "dms-b": 2.5}
BASELINES = ("uniform", "equal")
DRAWS = budgets.DRAWS
EXACTLY = 1 + 1e-9  # a budget that whole widths meet exactly, in spite of rounding


@dataclass(frozen=True)
class Protocol:
    """How long everything takes, and on which images.

    Attributes:
        train_images: None for all of them.
        memory_mib: budgets that differ from what Table 1 prints, by network and row.
        train: settings of trainings, by network and memory size.
        ranges: search settings of everything chosen at a row's memory, baselines too, by network and row.
        search: of dmsflow's own search beside the defaults, by network and row.
        literal: of the paper's search beside its preset, by network and row.
        left_out: why a network's row is not in the protocol.
        former: by the recipe of before 2026-11-29 (jobs.FORMER_TRAIN).
        without: lines that take too long, by their widths.
        seeds: of trainings and searches, unless others are requested.
    """

    train_images: int | None
    train: dict[tuple[str, str], dict[str, Any]]
    memory_mib: dict[tuple[str, str], float] = field(default_factory=dict)
    ranges: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    search: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    literal: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    former: bool = False
    without: tuple[str, ...] = ()
    seeds: tuple[int, ...] = budgets.SEEDS


def _phases(weight_steps: int, width_batches: int, **others: Any) -> dict[str, Any]:
    return {"weight_steps": weight_steps, "width_batches": width_batches, **others}


_SCHEDULE = preset.load_preset("train", "paper")
_FROM_FLOAT = {"from_float": True, "float_epochs": 200}
_TOY: dict[str, Any] = {"rounds": 1, "weight_steps": 1, "width_batches": 1, "batch_size": 4}
_LARGE = {"weight_decay": 2e-4}  # what the paper says of DMS-B; here of all as large, and of 4×
_VGG_SMALL = {"epochs": budgets.CELLS[3].epochs}  # memory alone, whose baselines it shares
PROTOCOLS = {
    # One epoch of 20,000 images takes about 0.9 s per million MACs on one core: the largest network of a memory size
    # (equal widths, or 4×) sets its epochs. The paper's 50 rounds remain, their phases become shorter.
    "quick": Protocol(
        train_images=budgets.TRAIN_IMAGES,
        former=True,
        # 1× is as large as "0.08", and budgets.py has the baselines at that memory.
        memory_mib={("vgg11", "dms-a"): 0.078},
        train={
            ("vgg11", "A"): _VGG_SMALL,
            ("vgg11", "2x"): _VGG_SMALL,
            ("vgg11", "B"): {"epochs": 3},
            ("vgg11", "4x"): {"epochs": 3},
            ("resnet18", "A"): {"epochs": 2},
            ("resnet18", "2x"): {"epochs": 2},
            ("resnet18", "B"): {"epochs": 1},
            ("resnet18", "4x"): {"epochs": 1},
        },
        search={("vgg11", "dms-b"): _phases(12, 12, rounds=12), ("resnet18", "dms-a"): _phases(8, 8, rounds=12)},
        literal={
            ("vgg11", "dms-a"): budgets.PAPER_PHASES["vgg11"],
            ("vgg11", "dms-b"): _phases(12, 12, weight_epochs=None),
            ("resnet18", "dms-a"): budgets.PAPER_PHASES["resnet18"],
        },
        left_out={("resnet18", "dms-b"): "one epoch of its flat control takes longer than ten minutes on a core"},
    ),
    "paper": Protocol(
        train_images=None,
        train={
            (network, size): {**_SCHEDULE, **(_FROM_FLOAT if network == "resnet18" else {}), **large}
            for network in PAPER
            for size, large in (("A", {}), ("2x", {}), ("B", _LARGE), ("4x", _LARGE))
        },
        ranges={
            ("vgg11", "dms-b"): {"max_ratio": 32.0},
            ("resnet18", "dms-b"): {"max_ratio": 32.0},
        },  # equal widths are 18× there
    ),
    "long": Protocol(
        train_images=None,
        train={
            (network, size): {"epochs": epochs}
            for network, size, epochs in (
                *(("vgg11", "A", 60), ("vgg11", "2x", 60), ("vgg11", "B", 20), ("vgg11", "4x", 20)),
                *(("resnet18", "A", 20), ("resnet18", "2x", 20), ("resnet18", "B", 10), ("resnet18", "4x", 10)),
            )
        },
        ranges={("vgg11", "dms-b"): {"max_ratio": 32.0}, ("resnet18", "dms-b"): {"max_ratio": 32.0}},
        without=("the paper's search, literally", f"random, {DRAWS} draws around flat"),
    ),
}
PROTOCOLS["toy"] = Protocol(
    train_images=20,
    train={key: {"epochs": 1, "batch_size": 4} for key in PROTOCOLS["paper"].train},
    memory_mib={("vgg11", "dms-b"): 0.12, ("resnet18", "dms-b"): 0.12},
    search={(network, row): _TOY for network in PAPER for row in START_RATIO},
    literal={(network, row): {**_TOY, "weight_epochs": None} for network in PAPER for row in START_RATIO},
)


@dataclass(frozen=True)
class Line:
    """A line of the table: networks that are chosen alike, one a seed or draw.

    Attributes:
        row: of the paper's table, or the one it is a baseline of.
        widths: how they are chosen, as in the results file.
        paper: whether it is a row of the paper's table.
    """

    network: str
    row: str
    widths: str
    paper: bool
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Request:
    """What was requested on the command line."""

    protocol: Protocol
    seeds: Sequence[int]
    draws: int

    def trained(self, network: str, row: str, seed: int) -> dict[str, Any]:
        recipe = jobs.FORMER_TRAIN if self.protocol.former else {}
        found = {**recipe, **self.protocol.train[network, SIZES[row]], "seed": seed}
        if row == "full":
            found = {key: value for key, value in found.items() if key not in _FROM_FLOAT} | {"precision": "float"}
        return found

    def lines(self, network: str, row: str) -> list[Line]:
        if (network, row) in self.protocol.left_out:
            return [Line(network, row, "searched", True, ())]
        found = self._lines(network, row)
        return [line for line in found if line.widths not in self.protocol.without]

    def _lines(self, network: str, row: str) -> list[Line]:
        return self._searched(network, row) if row.startswith("dms") else [self._widened(network, row)]

    def _widened(self, network: str, row: str) -> Line:
        factor = 1 if row == "full" else int(row[0])
        search = {"network": network, "method": "uniform", "memory_mib": memory_mib(network, factor)}
        made = tuple(Job(f"{network}/{factor}x", search, self.trained(network, row, seed)) for seed in self.seeds)
        return Line(network, row, f"base widths × {factor}", True, made)

    def _searched(self, network: str, row: str) -> list[Line]:
        """The searched row, the search as published, and the baselines at the same memory."""
        key, protocol = (network, row), self.protocol
        memory = protocol.memory_mib.get(key, PAPER[network][row][0])
        cell = Cell(network, protocol.train[network, SIZES[row]]["epochs"], memory, former=protocol.former)
        span, own = protocol.ranges.get(key, {}), protocol.search.get(key, {})

        def fitted(job: Job, seed: int, **search: Any) -> Job:
            return replace(job, search={**job.search, **search}, train=self.trained(network, row, seed))

        searched = [fitted(budgets.searched(cell, "gradient", seed), seed, **span, **own) for seed in self.seeds]
        if own:  # not what budgets.py would search for under this name
            searched = [
                replace(job, choice=f"{cell.name}/short-{seed}") for job, seed in zip(searched, self.seeds, strict=True)
            ]
        found = [Line(network, row, "searched", True, tuple(searched))]
        literal = [
            fitted(budgets.papers(cell, seed), seed, start_ratio=START_RATIO[row], **protocol.literal.get(key, {}))
            for seed in self.seeds
        ]
        found.append(Line(network, row, "the paper's search, literally", False, tuple(literal)))
        for method in BASELINES:
            made = [fitted(budgets.baseline(cell, method, seed), seed, **span) for seed in self.seeds]
            found.append(Line(network, row, budgets.KEYS[method], False, tuple(made)))
        first = self.seeds[0]
        drawn = [fitted(budgets.draw(cell, number, first), first, **span) for number in range(self.draws)]
        return [*found, Line(network, row, f"random, {self.draws} draws around flat", False, tuple(drawn))]


def memory_mib(name: str, factor: int) -> float:
    """A memory budget that is used up by `factor` times the base widths."""
    network = load_network(name, 3, 32, 10)
    widths = {key: factor * width for key, width in network.widths.items()}
    return EXACTLY * float(budget.memory_mib(network, widths))


def tabulated(lines: Sequence[Line], request: Request, where: Runs) -> list[dict[str, Any]]:
    """What docs/results.py reads: a row a line, with the jobs that are done."""
    rows = []
    for line in lines:
        mib, top1 = PAPER[line.network][line.row]
        rows.append(
            {
                "network": line.network,
                "row": TITLES[line.row],
                "widths": line.widths,
                "paper": {"memory_mib": mib, "top1_percent": top1} if line.paper else None,
                "epochs": request.protocol.train[line.network, SIZES[line.row]]["epochs"],
                "left_out": request.protocol.left_out.get((line.network, line.row)),
                "planned": len(line.jobs),
                "jobs": jobs.finished(line.jobs, where),
            }
        )
    return rows


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    head = ("network", "row", "widths", "paper MiB", "paper top-1", "MiB", "M MACs", "top-1 %", "jobs", "epochs")
    cells = []
    for row in rows:
        printed = [f"{value:.2f}" for value in row["paper"].values()] if row["paper"] else [None, None]
        means = [
            f"{statistics.mean(job[key] for job in row['jobs']):.{digits}f}" if row["jobs"] else None
            for key, digits in (("memory_mib", 4), ("macs_m", 1))
        ]
        cells.append(
            (
                row["network"],
                row["row"],
                row["widths"],
                *printed,
                *means,
                _top1(row),
                f"{len(row['jobs'])} of {row['planned']}",
                row["epochs"],
            )
        )
    print_table(title, head, cells, stream=sys.stdout)


def _top1(row: dict[str, Any]) -> str:
    values = [job["top1_percent"] for job in row["jobs"]]
    if not values:
        return "left out" if row["left_out"] else "not run"
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    jobs.add_options(parser, "runs")
    parser.set_defaults(out=None)
    parser.add_argument("--networks", nargs="+", choices=PAPER, default=list(PAPER))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="dms-a and dms-b with their baselines")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: those of the protocol")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of random widths, each trained with the first seed")
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path("runs") / arguments.protocol
    protocol = PROTOCOLS[arguments.protocol]
    request = Request(protocol, arguments.seeds or protocol.seeds, arguments.draws)
    name = f"table1-{arguments.protocol}"
    where = jobs.runs(name, arguments, protocol.train_images)
    chosen = {(network, row): request.lines(network, row) for network in PAPER for row in ROWS}
    wanted = [chosen[network, row] for network in arguments.networks for row in arguments.rows]
    wave = [job for lines in wanted for line in lines for job in line.jobs]

    def tabulate() -> dict[str, Any]:
        rows = tabulated([line for lines in chosen.values() for line in lines], request, where)
        show(f"Table 1 of the DMS paper, CIFAR-10, protocol {arguments.protocol}", rows)
        command = f"python benchmarks/table1.py --protocol {arguments.protocol}"
        return {"command": command, "train_images": protocol.train_images, "rows": rows}

    jobs.study(name, [wave], tabulate, where, arguments)


if __name__ == "__main__":
    script.run(main)

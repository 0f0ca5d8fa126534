"""Would a search over kernel sizes gain? VGG-11 with other kernels in some layers, beside kernels of 3 everywhere.

If no choice of kernels that a search could make beats kernels of 3 under the same budgets, none can gain by searching
them. Each choice gets the balanced widths of its own network under the same budgets, and is trained by the default
recipe on CIFAR-10. The choices, budgets, seeds and rule of decision are constants here. A finished row is a small
file, and none is run twice, nor any that the results file has from another machine:

    python benchmarks/kernel_sizes.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
    python benchmarks/kernel_sizes.py --tabulate

The second runs nothing: it writes docs/results/kernel-sizes.json from the rows that are done.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import front
import jobs
import msgspec
import script
from front import ERRORS, Cell, Place, Rows, call, fill, judge, read, restore, write
from msgspec.structs import replace

from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.manifest import load_manifest
from dmsflow.network import Network
from dmsflow.network.architectures import vgg11
from dmsflow.terminal import print_table

SEEDS = (0, 1, 2, 3, 4, 5)
TRAIN_IMAGES, EPOCHS = front.TRAIN_IMAGES, front.EPOCHS
SETTINGS: tuple[str, ...] = ()  # of trainings beside the defaults
CELLS = (Cell("16M", {"memory_mib": 0.078, "macs_m": 16.0}), Cell("0.078MiB", {"memory_mib": 0.078}))
# Kernels of the eight convolutions, which read 32, 16, 8, 8, 4, 4, 2 and 2 pixels a side.
SAME = "33333333"
CHOICES = {
    "3 everywhere": SAME,
    "5 in the first layer": "53333333",
    "5 in the second and third": "35533333",
    "5 in the first four": "55553333",
    "1 in the last two": "33333311",
    "1 in the last four": "33331111",
    "1 in every other one from the fourth": "33313131",
    "5 in the first two, 1 in the last two": "55333311",
}


def make_network(kernels: str) -> Network:
    """VGG-11 for CIFAR-10 with kernels of these sizes, padded to keep the size."""
    network = vgg11.build(3, 32, 10)
    layers = []
    for layer in network.layers:
        if layer.op in ("conv", "binary_conv"):
            kernel = int(kernels[int(layer.name.removeprefix("conv"))])
            layer = replace(layer, kernel=kernel, padding=kernel // 2)
        layers.append(layer)
    return replace(network, name=f"vgg11-kernels-{kernels}", layers=tuple(layers))


def row_path(seed: int, cell: Cell, kernels: str, out: Path) -> Path:
    return out / "rows" / f"{cell.name}-{kernels}-{seed}.json"


def make_row(seed: int, cell: Cell, kernels: str, where: Place) -> dict[str, Any]:
    """Choose balanced widths and train them."""
    folder = where.out / f"{cell.name}-{kernels}"
    network = where.out / f"{kernels}.json"
    write_atomically(network, msgspec.json.encode(make_network(kernels)))
    choice = folder / "search.json"
    if not choice.exists():
        images = [*where.data, "--set", f"data.train_images={TRAIN_IMAGES}"]
        options = [*cell.options(), "--method", "balanced", "--stem", jobs.STEM, "--out", str(folder), "--resume"]
        call("search", "--network", str(network), *images, *options)
    out = folder / f"seed-{seed}"
    if not (out / "train.json").exists():
        changes = [f"--set={change}" for change in ("train.threads=1", *SETTINGS)]
        options = ["--epochs", str(EPOCHS), "--seed", str(seed), *changes]
        call("train", str(choice), *options, "--resume", "--out", str(out))
    chosen, done = load_manifest(choice, "search"), load_manifest(out / "train.json", "train")
    return {
        "widths": list(chosen.widths.values()),
        **{name: chosen.metrics[name] for name in ("memory_mib", "macs_m")},
        "top1_percent": done.metrics["top1_percent"],
        "train_seconds": done.metrics["seconds"],
        "environment": {key: value for key, value in done.environment.items() if key in jobs.KEPT},
    }


def all_rows(where: Place) -> Rows:
    for seed, cell, kernels in itertools.product(SEEDS, CELLS, CHOICES.values()):
        named = {"cell": cell.name, "kernels": kernels, "seed": seed}
        yield row_path(seed, cell, kernels, where.out), named, partial(make_row, seed, cell, kernels, where)


def run(where: Place) -> int:
    """Every row that is left; how many failed."""
    with jobs.lock(where.out) as free:
        return fill(all_rows(where) if free else ())  # another process is at it


def tabulate(out: Path) -> dict[str, Any]:
    """What docs/results.py reads: every row that is done, and what each choice gains over kernels of 3."""
    cells = []
    for cell in CELLS:
        choices = []
        same: dict[int, float] = {}
        for title, kernels in CHOICES.items():
            paths = (row_path(seed, cell, kernels, out) for seed in SEEDS)
            rows = [read(path) for path in paths if path.exists()]
            if kernels == SAME:
                same = {row["seed"]: row["top1_percent"] for row in rows}
            gain = judge([row["top1_percent"] - same[row["seed"]] for row in rows if row["seed"] in same])
            choices.append({"choice": title, "kernels": kernels, "rows": rows, "gain": gain})
        cells.append({"cell": cell.name, **cell.budgets, "choices": choices})
    facts = {"train_images": TRAIN_IMAGES, "epochs": EPOCHS, "seeds": SEEDS, "errors": ERRORS}
    return {"network": "vgg11", **facts, "cells": cells}


def show(content: dict[str, Any]) -> None:
    """What is done, on stdout."""
    rows = [
        (cell["cell"], each["choice"], str(len(each["rows"])), front.describe_gain(each["gain"]))
        for cell in content["cells"]
        for each in cell["choices"]
    ]
    head = ("cell", "kernels", "seeds", "gain over 3 everywhere")
    print_table(f"Trainings done of {len(SEEDS)} seeds", head, rows, stream=sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="as in dmsflow search: cifar10, or image-folder:PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/kernel-sizes"), help="folder of all runs")
    parser.add_argument("--tabulate", action="store_true", help="run nothing; write what is done")
    parser.add_argument("--results", type=Path, default=jobs.RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    where = Place(arguments.out, ("--dataset", arguments.dataset or ""))
    results = arguments.results / "kernel-sizes.json"
    restore(results, all_rows(where))
    if not arguments.tabulate:
        if not arguments.dataset:
            raise DmsflowError("--dataset", "is not given", "give --dataset image-folder:PATH, or --tabulate")
        os.environ["OMP_NUM_THREADS"] = "1"
        if failed := run(where):
            raise DmsflowError(arguments.out, f"{failed} rows failed", "read their messages, and start again")
        return
    content = tabulate(arguments.out)
    write(results, content)
    show(content)


if __name__ == "__main__":
    script.run(main)

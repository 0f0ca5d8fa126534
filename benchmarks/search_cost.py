"""What the search pays for searching: one weight step under masks ÷ one plain training step.

Both steps run at the same largest widths on the same batch, in turns; the window of every mask
holds 3 widths in one row and all of them in the next. The cost does not depend on their number.

    python benchmarks/search_cost.py --out docs/results/search-cost.json
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import script
import torch

from dmsflow import datasets
from dmsflow.environment import describe_environment
from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.searching import budget, supernetwork
from dmsflow.searching.budget import Budgets, Range
from dmsflow.searching.descent import Descent
from dmsflow.searching.file_size import FileSize
from dmsflow.searching.supernetwork import Schedule
from dmsflow.settings import Data, SearchSettings, TrainSettings
from dmsflow.terminal import print_table
from dmsflow.training.mask import exact_masks
from dmsflow.training.model import Model
from dmsflow.training.step import make_optimiser, weight_step

# The largest widths, and images in a batch.
CASES = (((128,) * 8, 64), ((128,) * 4 + (1024,) * 4, 32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=21, help="of each kind; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    rows = [
        row(largest, batch, narrow, arguments.steps, arguments.threads)
        for largest, batch in CASES
        for narrow in (True, False)
    ]
    head = ("largest widths", "widths in the window of the last layer", "search step ms", "plain step ms", "ratio")
    cells = [
        (
            " ".join(map(str, one["largest_widths"])),
            one["window"],
            f"{one['search_ms']:.1f}",
            f"{one['plain_ms']:.1f}",
            f"{one['ratio']:.3f}",
        )
        for one in rows
    ]
    print_table(
        f"float32, {arguments.threads} thread(s), processor time, medians of {arguments.steps} steps", head, cells
    )
    if arguments.out:
        content = {
            "environment": describe_environment(),
            "threads": arguments.threads,
            "steps": arguments.steps,
            "rows": rows,
        }
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


def row(largest: tuple[int, ...], batch: int, narrow: bool, steps: int, threads: int) -> dict[str, Any]:
    search = prepared(largest, batch, narrow, threads)
    net, window = search.net, search.make_window(search.net.at.centre, search.net.widths)
    where = net.where
    plain = Model(net.model.network, net.model.widths).to(where.device)
    optimiser = make_optimiser(plain, TrainSettings())
    images, labels = next(net.weight_batches.run(0, 1))

    def search_step() -> None:
        active = net.place_masks(exact_masks(torch.tensor(net.at.mu), window))
        weight_step(net.model, net.optimiser, (images, labels), where, active)

    def plain_step() -> None:
        weight_step(plain, optimiser, (images, labels), where)

    searched, trained = interleaved(search_step, plain_step, steps)
    return {
        "largest_widths": largest,
        "window": int(window.high[-1] - window.low[-1]) + 1,
        "search_ms": 1e3 * statistics.median(searched),
        "plain_ms": 1e3 * statistics.median(trained),
        "ratio": statistics.median(a / b for a, b in zip(searched, trained, strict=True)),
    }


def prepared(largest: tuple[int, ...], batch: int, narrow: bool, threads: int) -> Descent:
    """A search whose every layer may become as wide as `largest`, in a window of three widths or of all."""
    settings = SearchSettings(batch_size=batch, threads=threads, amp="off")
    dataset = datasets.load_dataset(Data(name="digits"))
    network = load_network("vgg11", dataset.channels, dataset.resolution, len(dataset.classes))
    bases, most = (np.array(values, np.float64) for values in (list(network.widths.values()), largest))
    limits = (budget.Budget("memory", "MiB", 1e9, functools.partial(budget.memory_mib, network)),)
    net = supernetwork.begin(
        settings, Budgets(network, limits, Range(1 / bases, most / bases), FileSize(network)), dataset, 0
    )
    # Around the widest but one: a channel on each side, or everything down to one channel.
    net.at = Schedule((most - 1) / bases, (most - 1) / bases)
    reach = np.ones_like(most) if narrow else most
    search = Descent(net)
    sigma = reach / bases / search.REACH
    search.sigma = lambda centre: sigma  # type: ignore[method-assign]
    return search


def interleaved(first: Callable[[], None], second: Callable[[], None], steps: int) -> tuple[list[float], list[float]]:
    """Seconds of processor time of each, one after the other, the first two rounds left out: other programs may run."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(steps + 2):
        for step, kept in zip((first, second), seconds, strict=True):
            began = time.process_time()
            step()
            kept.append(time.process_time() - began)
    return seconds[0][2:], seconds[1][2:]


if __name__ == "__main__":
    script.run(main)

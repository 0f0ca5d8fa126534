"""Activations of ±1 (`sign`) beside {0, α} (`quantize`), in the same networks at the same widths, on CIFAR-10.

The networks are resnet20 and reactnet18 at their base widths, each with either quantiser and otherwise equal: the
shortcuts, the RPReLU of reactnet18, the recipe, the images and their order. Memory differs by the shifts of the signs,
four bytes a channel. What is compared is fixed here. A finished training is kept, and none is run twice; it continues
where it was stopped:

    torchrun --nproc-per-node 2 benchmarks/quantisers.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
    python benchmarks/quantisers.py --dataset cifar10 --tabulate

The second runs nothing: it writes docs/results/quantisers.json from the trainings that are done.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import front
import jobs
import msgspec
import script
from jobs import Job, Runs

from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.network.network import QUANTISERS, Network

FRAMES = ("resnet20", "reactnet18")
IMAGES = (3, 32, 10)  # channels, pixels a side and classes
TRAIN_IMAGES = 20_000  # the first 2,000 of each class
SEEDS = (0, 1, 2)
TRAIN: dict[str, Any] = {"epochs": 12}  # settings beside the default recipe


def variant(frame: str, quantiser: str) -> Network:
    """A network with that quantiser in place of its own."""
    network = load_network(frame, *IMAGES)
    layers = [msgspec.structs.replace(each, op=quantiser) if each.op in QUANTISERS else each for each in network.layers]
    return msgspec.structs.replace(network, name=f"{frame}-{quantiser}", layers=tuple(layers))


def job(frame: str, quantiser: str, seed: int, where: Runs) -> Job:
    """The training of a network at its base widths: uniform ones at its own memory."""
    search = {"network": str(_file(where.out, frame, quantiser)), "method": "uniform"}
    return Job(f"{frame}/{quantiser}", search, {**TRAIN, "seed": seed})


def _file(out: Path, frame: str, quantiser: str) -> Path:
    return out / "networks" / f"{frame}-{quantiser}.json"


def wave(where: Runs) -> list[Job]:
    """Every training; a seed is done before the next begins."""
    return [job(frame, each, seed, where) for seed in SEEDS for frame in FRAMES for each in QUANTISERS]


def tabulate(where: Runs) -> dict[str, Any]:
    """What docs/results.py reads: the trainings that are done, and what ±1 gains over {0, α}, paired by seed."""
    networks = []
    for frame in FRAMES:
        rows = {each: jobs.finished([job(frame, each, seed, where) for seed in SEEDS], where) for each in QUANTISERS}
        top1 = {each: {row["seed"]: row["top1_percent"] for row in rows[each]} for each in QUANTISERS}
        gaps = [
            top1["sign"][seed] - top1["quantize"][seed] for seed in SEEDS if all(seed in top1[q] for q in QUANTISERS)
        ]
        networks.append({"network": frame, "rows": rows, "gain": front.judge(gaps)})
    return {"train_images": TRAIN_IMAGES, **TRAIN, "seeds": SEEDS, "errors": front.ERRORS, "networks": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_options(parser, "runs/quantisers")
    arguments = parser.parse_args()
    where = jobs.runs("quantisers", arguments, TRAIN_IMAGES)
    for frame in FRAMES:
        for quantiser in QUANTISERS:
            path = _file(where.out, frame, quantiser)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(variant(frame, quantiser)))
    jobs.study("quantisers", [wave(where)], lambda: tabulate(where), where, arguments)


if __name__ == "__main__":
    script.run(main)

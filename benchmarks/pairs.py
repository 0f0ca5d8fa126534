"""Pairs of networks that differ in one choice, at the same widths, on CIFAR-10.

Activations are {0, α} (`quantize`) or ±1 (`sign`) in resnet20 and reactnet18; the first convolution and the dense layer
of vgg11 and resnet18 have weights of float32 or of 8 bits (`search --stem`). All else is equal: widths, shortcuts, the
recipe, the images and their order. What is compared is fixed here. A finished training is kept, and none is run twice; it continues
where it was stopped:

    torchrun --nproc-per-node 2 benchmarks/pairs.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
    python benchmarks/pairs.py --dataset cifar10 --tabulate

The second runs nothing: it writes docs/results/pairs.json from the trainings that are done.
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
from dmsflow.network.network import QUANTISERS, Network, with_stem

STEMS = ("float", "int8")
CHOICES = {"vgg11": STEMS, "resnet20": QUANTISERS, "reactnet18": QUANTISERS, "resnet18": STEMS}
IMAGES = (3, 32, 10)  # channels, pixels a side and classes
TRAIN_IMAGES = 20_000  # the first 2,000 of each class
SEEDS = (0, 1, 2)
TRAIN: dict[str, Any] = {"epochs": 12}  # settings beside the default recipe


def variant(frame: str, choice: str) -> Network:
    """A network with that quantiser in place of its own, or that stem."""
    network = load_network(frame, *IMAGES)
    if choice in STEMS:
        return msgspec.structs.replace(with_stem(network, choice), name=f"{frame}-{choice}")
    layers = [msgspec.structs.replace(each, op=choice) if each.op in QUANTISERS else each for each in network.layers]
    return msgspec.structs.replace(network, name=f"{frame}-{choice}", layers=tuple(layers))


def job(frame: str, choice: str, seed: int, where: Runs) -> Job:
    """The training of a network at its base widths: uniform ones at its own memory."""
    search = {"network": str(_file(where.out, frame, choice)), "method": "uniform"}
    search |= {"stem": choice} if choice in STEMS else {}
    return Job(f"{frame}/{choice}", search, {**TRAIN, "seed": seed})


def _file(out: Path, frame: str, choice: str) -> Path:
    return out / "networks" / f"{frame}-{choice}.json"


def wave(where: Runs) -> list[Job]:
    """Every training; a network is done before the next begins."""
    return [job(frame, each, seed, where) for frame, pair in CHOICES.items() for seed in SEEDS for each in pair]


def tabulate(where: Runs) -> dict[str, Any]:
    """What docs/results.py reads: the trainings that are done, and what the second of a pair gains, paired by seed."""
    networks = []
    for frame, pair in CHOICES.items():
        rows = {each: jobs.finished([job(frame, each, seed, where) for seed in SEEDS], where) for each in pair}
        first, second = ({row["seed"]: row["top1_percent"] for row in made} for made in rows.values())
        gaps = [second[seed] - first[seed] for seed in SEEDS if seed in first and seed in second]
        networks.append({"network": frame, "rows": rows, "gain": front.judge(gaps)})
    return {"train_images": TRAIN_IMAGES, **TRAIN, "seeds": SEEDS, "errors": front.ERRORS, "networks": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_options(parser, "runs/pairs")
    arguments = parser.parse_args()
    where = jobs.runs("pairs", arguments, TRAIN_IMAGES)
    for frame, pair in CHOICES.items():
        for choice in pair:
            path = _file(where.out, frame, choice)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(variant(frame, choice)))
    jobs.study("pairs", [wave(where)], lambda: tabulate(where), where, arguments)


if __name__ == "__main__":
    script.run(main)

"""What each choice of the search is worth: one setting changed at a time, under two budgets.

Every variant searches and trains VGG-11 under 0.078 MiB and 16 million MACs, as budgets.py does, which
shares its searches; the trainings are shorter. It continues where it was stopped:

    torchrun --nproc-per-node 2 benchmarks/ablations.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import jobs
import script
from budgets import CELLS, SEEDS, TRAIN_IMAGES, searched
from jobs import Job, Runs

from dmsflow import settings

CELL = CELLS[0]
EPOCHS = 6
# What each changes, and the settings that do it, named as in docs/results/ablations.json; all others are the defaults.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("what dmsflow does", {}),
    "no-head-start": ("widths move from the first round on", {"head_start": 0.0}),
    "long": ("twice as many rounds", {"rounds": 32}),
    "weights": ("three times as many weight steps in a round", {"weight_steps": 120}),
    "evolution": ("evolution on the same super-network, as many evaluations", {"method": "evolution"}),
}
# Variants whose settings are gone since: PAST_COMMIT is the last one that runs them. Their rows stay in the results.
PAST_COMMIT = "c6a9be6"
PAST_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "clustered": (
        "three candidates and Gumbel noise (Eq. 4-6) instead of the exact mixture",
        {"estimator": "clustered"},
    ),
    "adam": ("Adam on every batch instead of one bounded step a round", {"step": "adam", "step_size": 2e-3}),
    "last-round": ("the last round's gradient alone, with the error between its batches", {"gradient_decay": 0.0}),
    "shift": ("one shift of all widths holds the tightest budget; what is left of the other stays", {"hold": "shift"}),
    "penalty": ("the hinge of Eq. 7 instead of projection", {"hold": "penalty"}),
    "reallocate": (
        "a network rebuilt every round, with best-effort initialisation, instead of one of fixed capacity",
        {"reallocate": True, "subnetworks": False},
    ),
    "reallocate-afresh": (
        "the same without best-effort initialisation",
        {"reallocate": True, "subnetworks": False, "best_effort": False},
    ),
    "mask-only": ("weights trained under the mask alone, no sub-networks", {"subnetworks": False}),
    "band-start": ("sub-networks drawn around the start instead of between the controls", {"band": "start"}),
    "start-uniform": ("from the uniform network instead of the point between flat and uniform", {"start": "base"}),
    "start-uniform-band": (
        "from the uniform network, with sub-networks drawn around it: all that the paper sees",
        {"start": "base", "band": "start"},
    ),
    "first-gain": ("the first two widths' gradient times 3", {"first_gain": 3.0}),
    "refine": ("96 sub-networks near the result tried at the end", {"refine": 96}),
}
# In the order of the results file.
ALL_VARIANTS = {"default": VARIANTS["default"], **PAST_VARIANTS, **VARIANTS}


def job(variant: str, seed: int) -> Job:
    """The searches of default and evolution are those of budgets.py; a past variant can only be tabulated."""
    changes = settings.with_present_names(ALL_VARIANTS[variant][1])
    training = {**jobs.FORMER_TRAIN, "epochs": EPOCHS, "seed": seed}
    if variant in ("default", "evolution"):
        return replace(searched(CELL, changes.get("method", "gradient"), seed), train=training)
    search = {} if variant in PAST_VARIANTS else {**CELL.searching("gradient", seed=seed), **changes}
    return Job(f"{CELL.name}/ablations/{variant}-{seed}", search, training)


def tabulate(where: Runs) -> list[dict[str, Any]]:
    """A row a variant, of the seeds that are done."""
    rows = []
    for name, (what, changes) in ALL_VARIANTS.items():
        if done := jobs.finished([job(name, seed) for seed in SEEDS], where):
            rows.append({"variant": name, "what": what, "settings": changes, "runs": done})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs.add_options(parser, "runs/quick")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    where = jobs.runs("ablations", arguments, TRAIN_IMAGES)
    asked = [job(variant, seed) for seed in SEEDS for variant in arguments.variants]
    jobs.study("ablations", [asked], lambda: tabulate(where), where, arguments)


if __name__ == "__main__":
    script.run(main)

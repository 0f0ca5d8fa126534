"""What a sweep will do and about how long that takes, without doing it."""

from __future__ import annotations

import functools
import math
from pathlib import Path

from dmsflow import datasets, manifest
from dmsflow.datasets import Dataset
from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.searching.budget import Budgets
from dmsflow.searching.slopes import POINTS, rule_widths
from dmsflow.searching.widths import make_budgets
from dmsflow.settings import Data
from dmsflow.sweeping.plan import Row

# Of one core of an AMD EPYC; finished rows correct it.
MACS_PER_S = 45e9  # forward and backward
BACKWARD = 3.0  # times the multiply-accumulates of an image that only passes forward
STEP_S = 0.012  # of every step, however small the network is
SEARCH_WIDTH = (
    2.0  # times the multiply-accumulates of the widths that are found: sub-networks reach to twice the budgets
)


class Costs:
    """What rows cost, by data set, network and budgets; each is computed once."""

    def __init__(self) -> None:
        self._dataset = functools.cache(lambda data: datasets.load_dataset(data, planned=True))
        self._budgets: dict[str, tuple[dict[str, float], str]] = {}

    def dataset(self, row: Row) -> Dataset:
        data: Data = row.settings("data")
        found: Dataset = self._dataset(data)
        return found

    def budgets(self, row: Row) -> Budgets:
        """The budgets of a row on its network."""
        dataset, chosen = self.dataset(row), row.settings("search")
        network = load_network(chosen.network, dataset.channels, dataset.resolution, len(dataset.classes))
        return make_budgets(chosen, network)

    def describe(self, row: Row) -> tuple[dict[str, float], str]:
        """What the balanced network within a row's budgets costs, and in words; no costs where there is none.

        Raises:
            DmsflowError: no such network or profile. An infeasible budget is what the words say.
        """
        key = repr((row.values["search"]["network"], sorted(row.limits.items())))
        if key not in self._budgets:
            budgets = self.budgets(row)
            try:
                budgets.check_feasible()
                widths = rule_widths(budgets, "balanced")
                self._budgets[key] = budgets.figures(widths), budgets.describe(widths)
            except DmsflowError as error:
                self._budgets[key] = {}, str(error)
        return self._budgets[key]

    def seconds(self, row: Row, stage: str) -> float:
        """Of a search or a training on one core, roughly."""
        costs, dataset, chosen = self.describe(row)[0], self.dataset(row), row.settings(stage)
        if not costs or (
            stage == "search" and (row.leader or chosen.method not in ("gradient", "published", "evolution"))
        ):
            return 0.0
        in_epoch = max(1, len(dataset.train) // chosen.batch_size)
        if stage == "train":
            epochs = chosen.epochs or max(chosen.normal_epochs, math.ceil(chosen.min_steps / in_epoch))
            steps, macs = epochs * in_epoch, costs["macs_m"] * 1e6
        else:
            weights = chosen.weight_epochs * in_epoch / 2 if chosen.weight_epochs else chosen.weight_steps
            steps = chosen.rounds * (weights + POINTS * (chosen.width_batches or in_epoch / 2))
            macs = SEARCH_WIDTH * costs["macs_m"] * 1e6
        return float(steps * (STEP_S + chosen.batch_size * BACKWARD * macs / MACS_PER_S))


def estimate(rows: list[Row], out: Path, until: str, costs: Costs) -> tuple[dict[str, float], float]:
    """Seconds that each row still needs for search and training, and by how much finished stages corrected them.

    Args:
        out: where finished rows lie.
    """
    stages = ("search",) if until == "search" else ("search", "train")
    left, needed, expected = dict.fromkeys((row.name for row in rows), 0.0), 0.0, 0.0
    for row in rows:
        for stage in stages:
            path, seconds = out / row.name / f"{stage}.json", costs.seconds(row, stage)
            if not path.exists():
                left[row.name] += seconds
            elif seconds:
                needed += manifest.load_manifest(path).metrics.get("seconds", 0.0)
                expected += seconds
    factor = needed / expected if needed and expected else 1.0
    return {name: seconds * factor for name, seconds in left.items()}, factor

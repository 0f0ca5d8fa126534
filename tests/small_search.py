"""A search that takes seconds: of VGG11 on 120 digits, at its first round or with all its settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dmsflow import datasets
from dmsflow.importing import load_network
from dmsflow.searching import published, supernetwork
from dmsflow.searching.budget import Budgets
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.settings import Data, SearchSettings

DATA = Data(name="digits", train_images=120)
SMALL: dict[str, Any] = {
    "memory_mib": 0.03,
    "rounds": 3,
    "weight_steps": 2,
    "width_batches": 2,
    "batch_size": 12,
    "threads": 1,
    "amp": "off",
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """For a file that imports it: its searches set the threads of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def begin_search(**changes: Any) -> SuperNetwork:
    settings = SearchSettings(**{**SMALL, **changes})
    dataset = datasets.load_dataset(DATA)
    network = load_network("vgg11", dataset.channels, dataset.resolution, len(dataset.classes))
    start = published if settings.method == "published" else supernetwork
    return start.begin(settings, Budgets.from_settings(settings, network), dataset, workers=0)

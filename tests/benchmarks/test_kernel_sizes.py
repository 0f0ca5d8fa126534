"""benchmarks/kernel_sizes.py: its networks, and a run of it at toy size."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from studies import Calls, draw_images, front, kernel_sizes

from dmsflow.network import network as networks
from dmsflow.network.architectures import vgg11

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import accuracy  # noqa: E402

sys.path.remove(str(DOCS))


def test_the_networks_have_the_kernels_and_the_sizes() -> None:
    assert kernel_sizes.make_network(kernel_sizes.SAME).layers == vgg11.build(3, 32, 10).layers
    made = kernel_sizes.make_network("55333311")
    convs = [layer for layer in made.layers if layer.op in ("conv", "binary_conv")]
    assert [layer.kernel for layer in convs] == [5, 5, 3, 3, 3, 3, 1, 1]
    assert networks.resolutions(made) == networks.resolutions(vgg11.build(3, 32, 10))


@pytest.mark.slow
def test_a_row_is_run_once_and_tabulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Calls()
    monkeypatch.setattr(kernel_sizes, "call", commands)
    small = {
        "SEEDS": (0, 1),
        "TRAIN_IMAGES": 20,
        "EPOCHS": 1,
        "SETTINGS": ("train.batch_size=4", "train.min_steps=1"),
        "CELLS": (front.Cell("small", {"memory_mib": 0.01}),),
        "CHOICES": {"3 everywhere": "33333333", "1 at the end": "33333311"},
    }
    for name, value in small.items():
        monkeypatch.setattr(kernel_sizes, name, value)
    where = front.Place(tmp_path / "runs", ("--dataset", draw_images(tmp_path / "images", train=2, test=1)))
    where.out.mkdir()
    assert kernel_sizes.run(where) == 0
    assert commands == ["search", "train"] * 2 + ["train"] * 2
    assert kernel_sizes.run(where) == 0 and len(commands) == 6
    content = kernel_sizes.tabulate(where.out)
    same, other = content["cells"][0]["choices"]
    assert same["gain"]["points"] == 0 and len(other["rows"]) == 2
    assert max(row["memory_mib"] for each in (same, other) for row in each["rows"]) <= 0.01
    page = accuracy.kernel_sizes(content)
    assert page.count("0.01 MiB") == 2 and "3 3 3 3 3 3 1 1 (1 at the end)" in page

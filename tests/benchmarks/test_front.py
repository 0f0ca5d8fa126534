"""benchmarks/front.py: a run of it at toy size that is interrupted, goes on and is tabulated; and its rule of decision."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from studies import Calls, draw_images, front

from dmsflow.errors import DmsflowError

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import accuracy  # noqa: E402

sys.path.remove(str(DOCS))

CELLS = (
    front.Cell("small", {"memory_mib": 0.078, "macs_m": 12.0, "profile": "epyc-litert", "latency_ms": 0.05}),
    front.Cell("far", {"memory_mib": 0.01}),
)
SETTINGS = ("search.rounds=3", "search.weight_steps=1", "search.width_batches=4", "search.batch_size=4")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands, which run in this process; the sizes are a thousandth of the real ones."""
    commands = Calls()
    for name, value in (
        ("call", commands),
        ("CELLS", CELLS),
        ("FRONT", CELLS[:1]),
        ("DRAWN", CELLS[:1]),
        ("SEEDS", (0, 1)),
        ("TRAIN_IMAGES", 20),
        ("EPOCHS", 1),
        ("SETTINGS", (*SETTINGS, "train.batch_size=4")),
    ):
        monkeypatch.setattr(front, name, value)
    return commands


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten classes of grey images, and a command line for them; the folder of the results."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = draw_images(tmp_path / "images", train=2, test=2)
    words = ["front.py", "--dataset", images, "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0", "--results", str(tmp_path)])
    return tmp_path


@pytest.mark.slow
def test_interrupted_and_started_again_it_does_nothing_twice(
    called: list[str], arguments: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = front.write

    def interrupted(path: Path, content: Any) -> None:
        if path.name == "small-uniform.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(front, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        front.main()
    monkeypatch.setattr(front, "write", write)
    before = len(called)
    front.main()
    assert "search" in called[:before] and before < len(called)
    done = list((arguments / "runs" / "seed-0" / "rows").glob("*.json"))
    assert len(done) == len(front.CELLS) * len(front.METHODS)
    trained = list((arguments / "runs").rglob("train.json"))
    assert called.count("train") == len(trained), "each set of widths is trained once"
    before = len(called)
    front.main()
    assert len(called) == before, "all of it is done"

    monkeypatch.setattr(
        "sys.argv", ["front.py", "--tabulate", "--out", str(arguments / "runs"), "--results", str(arguments)]
    )
    front.main()
    content = json.loads((arguments / "front.json").read_text("utf-8"))
    small, far = content["cells"]
    assert [len(rows) for rows in small["methods"].values()] == [1] * len(front.METHODS)
    for rows in small["methods"].values():
        assert max(rows[0]["budgets_used"].values()) <= 1 and rows[0]["predicted_latency_ms"] <= 0.05
    assert not far["methods"]["searched"] and len(far["methods"]["equal"]) == 1
    assert far["refused"]["0"].startswith("these budgets lead to memory_mib 0.0")
    assert str(arguments) not in json.dumps(content), "no path of this machine is published"
    page = accuracy.front(content)
    assert "0.01 MiB (seed 0: these budgets lead to" in page and "| **searched** | 0.0" in page
    (ranked,) = content["prediction"]
    assert ranked["networks"] >= 5 and -1 <= ranked["searched"] <= 1 and "Rank correlation" in page
    assert [len(rows) for rows in content["drawn"][0]["methods"].values()] == [1, 1, 1]
    assert content["cost"]["search_seconds"] == 1.0 and content["cost"]["front_seconds"] == 2.0


def rows(method: str, *top1: float) -> list[dict[str, Any]]:
    return [{"method": method, "seed": seed, "top1_percent": value} for seed, value in enumerate(top1)]


def test_seeds_are_paired_and_cells_of_one_seed_are_one_difference() -> None:
    first = {"searched": rows("searched", 51, 52, 53), "equal": rows("equal", 50, 50)}
    second = {"searched": rows("searched", 55, 50), "equal": rows("equal", 50, 50, 50)}
    assert front.differences([first], "equal") == [1, 2]
    assert front.differences([first, second], "equal") == [3, 1]


def test_a_difference_counts_beyond_two_standard_errors() -> None:
    assert front.judge([1.0])["verdict"] == "not decided"
    found = front.judge([1.0, 2.0, 3.0])
    assert (found["points"], round(found["error"], 3), found["verdict"]) == (2.0, 0.577, "above")
    assert front.judge([-1.0, -2.0, -3.0])["verdict"] == "below"
    assert front.judge([0.0, 1.0, 2.0])["verdict"] == "no difference shown"


@pytest.mark.slow
@pytest.mark.parametrize("cell", (*front.CELLS, *front.FRONT), ids=lambda cell: cell.name)
def test_rules_meet_the_budgets_of_every_cell(cell: front.Cell) -> None:
    for rule in front.RULES if cell in front.CELLS else ("balanced",):
        assert max(front._costs(cell, cell.rule(rule))["budgets_used"].values()) <= 1


def test_without_images_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["front.py"])
    with pytest.raises(DmsflowError, match="--dataset: is not given"):
        front.main()

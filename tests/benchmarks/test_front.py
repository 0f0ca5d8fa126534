"""benchmarks/front.py: a run of it at toy size that is interrupted, goes on and is tabulated; and its rule of decision."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
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

    asked = list(sys.argv)
    monkeypatch.setattr("sys.argv", [*asked, "--tabulate"])
    front.main()
    content = json.loads((arguments / "front.json").read_text("utf-8"))
    assert str(arguments) not in json.dumps(content), "no path of this machine is published"
    check_content(content)

    # A new machine goes on from the published file: of a draw it has widths and top-1, not the choice.
    small = content["cells"][0]
    best = small["methods"]["best draw"].pop()
    assert best["widths"] in [row["widths"] for row in small["draws"]] and len(small["draws"]) == front.DRAWS
    front.write(arguments / "front.json", content)
    monkeypatch.setattr("sys.argv", [*asked, "--out", str(arguments / "new")])
    called.clear()
    front.main()
    assert called == ["search", "search", "train"], "the search of the seed, the choice of the draw, its training"
    again = front.read(arguments / "new" / "seed-0" / "rows" / "small-best draw.json")
    assert [again[key] for key in ("widths", "top1_percent")] == [best[key] for key in ("widths", "top1_percent")]
    assert again["predicted"] == pytest.approx(best["predicted"])


def check_content(content: dict[str, Any]) -> None:
    """What is published of one seed, and its page."""
    small, far = content["cells"]
    assert [len(rows) for rows in small["methods"].values()] == [1] * len(front.METHODS)
    for rows in small["methods"].values():
        assert max(rows[0]["budgets_used"].values()) <= 1 and rows[0]["predicted_latency_ms"] <= 0.05
    assert not far["methods"]["searched"] and len(far["methods"]["equal"]) == 1
    assert [row["seed"] for row in far["refused"]] == [0]
    assert far["refused"][0]["refused"].startswith("these budgets lead to memory_mib 0.0")
    page = accuracy.front(content)
    assert "0.01 MiB (seed 0: these budgets lead to" in page and "| **searched** | 0.0" in page
    (ranked,) = content["prediction"]
    assert ranked["networks"] >= 5 and -1 <= ranked["searched"] <= 1 and "Rank correlation" in page
    assert [len(rows) for rows in content["drawn"][0]["methods"].values()] == [1, 1, 1]
    assert content["cost"]["search_seconds"] == 1.0 and content["cost"]["front_seconds"] == 2.0


def publish(where: front.Place, seeds: int) -> None:
    """Made-up rows of some seeds; the far cell is refused."""
    environment = {"processor": "Z80"}
    training = {"cpu_seconds": 9.0, "whole": True}
    for number, (path, named, _) in enumerate(front.all_rows(where)):
        row: dict[str, Any] = {"widths": [number], "top1_percent": number**2 % 7, "training": training}
        row |= {"predicted": {"searched": 0.1 * number, "equal": number % 3}, "environment": environment}
        if "measured" in named:
            row = {"search": training, "solutions": [{"cell": "small", "cpu_seconds": 1.0}]}
        elif (named["cell"], named["method"]) == ("far", "searched"):
            row = {"refused": "too far"}
        if named["seed"] < seeds or named["seed"] == front.DRAW_SEED:
            front.write(path, {**named, **row})


def test_a_bare_machine_reproduces_what_was_published_and_runs_only_the_rest(
    called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(out: str, *words: str) -> bytes:
        monkeypatch.setattr("sys.argv", ["front.py", "--out", str(tmp_path / out), "--results", str(tmp_path), *words])
        front.main()
        return (tmp_path / "front.json").read_bytes()

    publish(front.Place(tmp_path / "first"), seeds=1)
    published = run("first", "--tabulate")
    content = json.loads(published)
    assert len(content["costs"]) == len(content["prediction"]) == 1 and len(content["cells"][1]["draws"]) == front.DRAWS
    assert [cell["refused"] != [] for cell in content["cells"]] == [False, True]
    assert run("second", "--tabulate") == published

    searched: list[int] = []
    monkeypatch.setattr(front, "search", lambda seed, _: searched.append(seed))
    for name in ("make_row", "make_draw", "measure_cost"):
        monkeypatch.setattr(front, name, lambda *which: {"which": str(which[0])})
    run("third", "--dataset", "digits")
    assert searched == [1], "seed 0 has all its rows"
    rows = front.finished(front.all_rows(front.Place(tmp_path / "third")))
    assert {row["seed"] for row in rows if "which" in row} == {1} and called == []

    cells = content["cells"]
    cells[0]["methods"]["equal"].clear()
    front.write(tmp_path / "front.json", content)
    run("fourth", "--dataset", "digits", "--seeds", "0")
    assert searched == [1, 0]
    (made,) = (row for row in front.finished(front.all_rows(front.Place(tmp_path / "fourth"))) if "which" in row)
    assert made["method"] == "equal"


def test_a_draw_whose_widths_are_no_longer_drawn_is_refused(
    called: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, cell = front.Place(tmp_path / "runs"), CELLS[0]
    publish(where, seeds=1)
    monkeypatch.setattr(front, "choose", lambda *_: tmp_path / "search.json")
    monkeypatch.setattr(front, "load_manifest", lambda *_: SimpleNamespace(widths={"conv0": 999}))
    with pytest.raises(DmsflowError, match=r"search\.json: has other widths than the row of the draw"):
        front.make_row(1, cell, front.BEST_DRAW, where)
    assert called == []


def test_losses_are_predicted_from_the_base_widths_on(monkeypatch: pytest.MonkeyPatch) -> None:
    base = front.load_network(front.NETWORK, 3, 32, 10).widths
    slopes = {"centre": [0.5] * 8, "slope": [2.0] * 8, "error": [0.0] * 8, "curvature": [1.0] * 8}
    monkeypatch.setattr(front, "load_manifest", lambda *_: SimpleNamespace(metrics={"slopes": slopes}))
    assert front.predict_losses(Path(), base) == {"searched": 0.0, "equal": 0.0}
    first = {name: 2 * width if name == "conv0" else width for name, width in base.items()}
    # −slope (x − centre) + ½ curvature (x − centre)² at x = log 2, less the same at x = 0.
    wider = -2 * math.log(2) + (math.log(2) - 0.5) ** 2 / 2 - 0.5**2 / 2
    assert front.predict_losses(Path(), first) == pytest.approx({"searched": wider, "equal": -math.log(2)})


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

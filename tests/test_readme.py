"""The README's commands are run, word for word; only schedules are shortened, through the environment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmsflow import cli
from dmsflow.manifest import load_manifest

ROOT = Path(__file__).parent.parent
SHORT = {
    "SEARCH": "search.rounds=1 search.weight_steps=1 search.width_batches=1 search.threads=1 search.batch_size=4",
    "TRAIN": "train.threads=1 train.min_steps=200",
}


def commands(page: str) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.fixture
def _flowers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes that differ in colour."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    draw = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        for label, name in enumerate(("aster", "rose")):
            folder = tmp_path / "flowers" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 120, (32, 32, 3)) + 120 * np.eye(3, dtype=int)[label]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


@pytest.mark.usefixtures("_flowers")
def test_the_commands_for_own_images_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command, assignments in SHORT.items():
        monkeypatch.setenv(f"DMSFLOW_{command}_SET", assignments)
    ran = []
    for program, *arguments in commands((ROOT / "README.md").read_text("utf-8")):
        if program == "dmsflow":
            assert cli.main(arguments) == 0, capsys.readouterr().err
            ran.append(arguments[0])
    assert ran == ["search", "train", "export", "bench", "list", "bench", "doctor"]
    found = load_manifest(Path("runs/flowers/bench.json"), "bench")
    assert found.metrics["top1_percent"] == 100
    assert found.metrics["latency_ms_median"] > 0


def test_make_has_the_targets_that_are_promised() -> None:
    promised = [words[1] for words in commands((ROOT / "README.md").read_text("utf-8")) if words[0] == "make"]
    assert promised == ["demo", "test"]
    recipes = (ROOT / "Makefile").read_text("utf-8")
    assert all(re.search(rf"^{target}:", recipes, re.MULTILINE) for target in promised)
    assert "make test" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_demo_ends_with_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The very command of `make demo`, on a short schedule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "DMSFLOW_RUN_SET", " ".join((*SHORT.values(), "train.epochs=1", "bench.runs=5", "export.check_images=20"))
    )
    (recipe,) = re.findall(r"^\t\$\(BIN\)/dmsflow (run .*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert cli.main(shlex.split(recipe.replace("$(TARGET)", "x86-64"))) == 0
    written = capsys.readouterr()
    assert written.out == f"{Path('runs/demo/bench.json')}\n"
    for label in ("widths", "memory", "file", "multiply-accumulates", "top-1, trained network", "top-1, exported file"):
        assert re.search(rf"^ {label}  +\S", written.err, re.MULTILINE), label
    assert re.search(r"^ latency, float32 of these widths +[\d.]+ ms", written.err, re.MULTILINE)

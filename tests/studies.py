"""The studies of benchmarks/, which are scripts there and modules here."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dmsflow import cli
from dmsflow.errors import DmsflowError

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import ablations  # noqa: E402
import budgets  # noqa: E402
import front  # noqa: E402
import int8  # noqa: E402
import jobs  # noqa: E402
import kernel_sizes  # noqa: E402
import larq_zoo  # noqa: E402
import modules  # noqa: E402
import pairs  # noqa: E402
import recipe  # noqa: E402
import search_cost  # noqa: E402
import table1  # noqa: E402
import take_home  # noqa: E402

sys.path.remove(str(BENCHMARKS))

__all__ = [
    "BENCHMARKS",
    "Calls",
    "ablations",
    "budgets",
    "draw_images",
    "front",
    "int8",
    "jobs",
    "kernel_sizes",
    "larq_zoo",
    "modules",
    "pairs",
    "recipe",
    "search_cost",
    "table1",
    "take_home",
]


class Calls(list[str]):
    """The commands that a study calls, run in this process."""

    def __call__(self, *words: str) -> dict[str, float]:
        self.append(words[0])
        with contextlib.redirect_stderr(stderr := io.StringIO()):
            if cli.main(list(words)):
                raise DmsflowError(f"dmsflow {words[0]}", stderr.getvalue().splitlines()[-1], "correct that")
        return {"seconds": 2.0, "cpu_seconds": 1.0}


def draw_images(folder: Path, **counts: int) -> str:
    """Ten classes of grey images, `counts` of each class by split; the data set's name."""
    draw = np.random.default_rng(0)
    for part, count in counts.items():
        for label in range(10):
            (place := folder / part / str(label)).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 25, (32, 32, 3)) + 23 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return f"image-folder:{folder}"

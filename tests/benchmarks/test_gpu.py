"""benchmarks/gpu.sh at toy size, on this machine's processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies import BENCHMARKS, table1

SCRIPT = BENCHMARKS / "gpu.sh"


@pytest.mark.slow
def test_a_slice_ends_in_time_and_the_next_one_goes_on(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "images" / part / str(label)
            folder.mkdir(parents=True)
            for index in range(2):
                Image.fromarray(draw.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(folder / f"{index}.png")
    environment = {**os.environ, "PYTHON": sys.executable, "PROTOCOLS": "toy", "XDG_CACHE_HOME": str(tmp_path)}
    command = [str(SCRIPT), f"image-folder:{tmp_path / 'images'}", str(tmp_path / "out")]

    def trained(seconds: str) -> set[tuple[str, str, str]]:
        done = subprocess.run([*command, seconds], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        rows = json.loads((tmp_path / "out" / "results" / "table1-toy.json").read_text("utf-8"))["rows"]
        return {(row["network"], row["row"], row["widths"]) for row in rows if row["jobs"]}

    first: set[tuple[str, str, str]] = set()
    for _ in range(10):  # a slow machine may need several for a row
        first = first or trained("12")
    assert 0 < len(first) < 2 * len(table1.ROWS)
    later = first
    for _ in range(10):
        later = later if later > first else trained("12")
    assert later > first


def test_it_says_what_it_needs() -> None:
    done = subprocess.run([str(SCRIPT)], capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpu.sh: DATASET and OUT are missing; benchmarks/gpu.sh DATASET OUT [SECONDS]\n"

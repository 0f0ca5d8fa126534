"""Random LCE operators: the delegate against the official interpreter, for as long as you like.

    python tests/native/fuzz.py --seconds 600 [--seed 1] [--library PATH]
    python tests/native/fuzz.py --write FOLDER --cases 300     files for check.py, on another machine

Prints each case that differs, and counts; exit code 1 where one did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import lce_cases

from dmsflow import native


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; each next one has the next seed")
    parser.add_argument("--library", default="", help="of the delegate; dmsflow's own")
    parser.add_argument(
        "--write", type=Path, help="a folder for files and what they are to put out; nothing is compared"
    )
    parser.add_argument("--cases", type=int, default=300, help="with --write")
    given = parser.parse_args()
    if given.write:
        return write(given.write, given.seed, given.cases)
    return compare(given.library or str(native.library()), given.seed, given.seconds)


def compare(library: str, seed: int, seconds: float) -> int:
    with lce_cases.silent():
        kernels = lce_cases.available(library)
    same: Counter[str] = Counter()
    differ = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        wrong = lce_cases.difference(seed, library, kernels, same)
        if wrong:
            differ += 1
            print(wrong, flush=True)
        seed += 1
    for name, count in sorted(same.items()):
        print(f"{count:8} {name}")
    print(f"{sum(same.values())} equal, {differ} different; next seed {seed}")
    return int(differ > 0)


def write(folder: Path, seed: int, cases: int) -> int:
    """A file a case, its input and its expected output."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(seed, seed + cases):
        case = lce_cases.random_case(np.random.default_rng(number))
        (folder / f"{number}.tflite").write_bytes(case.graph.dumps())
        np.savez(folder / f"{number}.npz", values=case.values, expected=lce_cases.expected(case), name=case.name)
    print(f"{cases} cases in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

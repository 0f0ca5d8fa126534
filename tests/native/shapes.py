"""Training's operations on random tensors, beside torch's: LIBRARY is training.cc built with sanitizers.

    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \\
        python tests/native/shapes.py LIBRARY --cases 2000

The cases are those of tests/training/test_cpp.py, as many of each operation. A sanitizer ends this program; exit code 1
also where a result is not torch's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

from dmsflow import native
from dmsflow.training import fast_ops


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    native.training = lambda: given.library
    if fast_ops.library() is None:
        sys.exit(f"{given.library} cannot be loaded")
    hypothesis.settings.register_profile("campaign", max_examples=given.cases, database=None)
    hypothesis.settings.load_profile("campaign")
    import test_cpp  # its tests take the profile that is loaded

    tests = (test_cpp.test_binarising_is_torchs, test_cpp.test_quantising_is_torchs, test_cpp.test_signs_are_torchs)
    for test in (*tests, test_cpp.test_pooling_is_torchs_to_the_last_bit):
        try:
            hypothesis.seed(given.seed)(test)()
        except AssertionError as error:
            print(f"seed {given.seed}: {test.__name__}: {' '.join(str(error).split())[:500]}")
            return 1
    print(f"{given.cases} cases of {len(tests) + 1} operations")
    return 0


if __name__ == "__main__":
    sys.exit(main())

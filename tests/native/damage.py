"""Files with flipped bytes, or tables that lie, in the real runtime: what of its crashes are the delegate's?

    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \\
        python tests/native/damage.py LIBRARY --cases 2000

LIBRARY is the delegate built with -fsanitize=address,undefined -fno-sanitize-recover=all. Each file runs in
a process of its own: the runtime itself does crash on some. Exit code 1 where a report of a sanitizer has the
delegate among its innermost frames; where a process hangs, ASAN_OPTIONS=handle_abort=1 makes such a report.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import lce_cases
import mutation
import stems

OURS = re.compile(r"#[0-3] .*dmsflow::|native/\w+\.(cc|h):\d+")
HANG_S = 30.0
MOST_VALUES = 2**24  # of a tensor that is computed: with sanitizers more takes minutes, which is no hang


def damaged(rng: np.random.Generator, model: bytes) -> bytes:
    if rng.random() < 0.7:
        return mutation.damage_structure(model, random.Random(int(rng.integers(2**62))))
    data = np.frombuffer(model, np.uint8).copy()
    for _ in range(int(rng.integers(1, 5))):
        data[rng.integers(len(data))] ^= np.uint8(1 << rng.integers(8))
    return data[: rng.integers(len(data))].tobytes() if rng.random() < 0.1 else data.tobytes()


def run(model: bytes, library: str, values: np.ndarray) -> int:
    try:
        interpreter = lce_cases.open_litert(model, library)
        if (
            max(int(np.prod(each["shape"], dtype=np.float64)) for each in interpreter.get_tensor_details())
            > MOST_VALUES
        ):
            return 4
        given = interpreter.get_input_details()[0]
        if tuple(given["shape"]) == values.shape:
            interpreter.set_tensor(given["index"], values.astype(given["dtype"]))
        interpreter.invoke()
    except (RuntimeError, ValueError, IndexError):
        return 3
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    first = lce_cases.random_case(np.random.default_rng(0))
    with contextlib.suppress(RuntimeError):
        lce_cases.open_litert(first.graph.dumps(), given.library)  # so that children need not load the runtime
    outcomes: Counter[str] = Counter()
    for seed in range(given.seed, given.seed + given.cases):
        outcomes[one(seed, given.library)] += 1
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    return int(outcomes["crashed in the delegate"] > 0)


def one(seed: int, library: str) -> str:
    rng = np.random.default_rng(seed)
    if seed % 10 == 5:
        whole, values, _ = stems.random_float_stem(rng)
    elif seed % 5:
        case = lce_cases.random_case(rng)
        whole, values = case.graph.dumps(), case.values
    else:
        stem = stems.random_stem(rng)
        whole, values = stem.graph().dumps(), stem.values(rng)
    model = damaged(rng, whole)
    with tempfile.TemporaryFile() as written:
        child = os.fork()
        if child == 0:
            os.dup2(written.fileno(), 2)
            os._exit(run(model, library, values))
        alarm = threading.Timer(HANG_S, os.kill, (child, signal.SIGABRT))
        alarm.start()
        status = os.waitpid(child, 0)[1]
        alarm.cancel()
        written.seek(0)
        text = written.read().decode("utf-8", "replace")
    if status == 0:
        return "run"
    if (code := os.waitstatus_to_exitcode(status)) in (3, 4):
        return "refused" if code == 3 else "too large to compute here"
    if OURS.search(text):
        print(f"seed {seed}:\n{text[:3000]}")
        return "crashed in the delegate"
    return "crashed in the runtime"


if __name__ == "__main__":
    sys.exit(main())

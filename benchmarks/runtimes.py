"""Whole networks, one run of each runtime in turn: LiteRT with dmsflow's kernels, the official interpreter, float32.

The official interpreter runs in its best mode on x86-64 (indirect kernels and XNNPACK); float32 is the network of
the same widths in onnxruntime. Weights are random: they change no time. All are in one process, so that whatever
disturbs the machine disturbs all alike; the ratios are those of the medians. The two that run the same file must
give the same classes, and logits that differ by no more than the rounding of the float layers.

    python benchmarks/runtimes.py
    python benchmarks/runtimes.py --out docs/results/runtimes-x86-64.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dmsflow import folding, manifest, plugin
from dmsflow.devices import _program
from dmsflow.network import load_network
from dmsflow.runners import lce, litert, onnxruntime
from dmsflow.table import milliseconds, print_table

# Network, pixels, classes, widths over those of the paper.
NETWORKS = (
    ("vgg11", 32, 10, 1.0), ("vgg11", 32, 10, 3.0),
    ("resnet18", 32, 10, 1.0), ("resnet18", 32, 10, 3.0), ("resnet18", 224, 1000, 1.0),
)  # fmt: skip
RUNNERS = {"litert": litert, "lce": lce, "float32": onnxruntime}
IMAGES = 20  # on which logits are compared
WARM_UP = 10
MEAN, STD = (128,) * 3, (64.0,) * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="of each network of 32 pixels; of larger ones a fifth")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(Path(folder), *one, arguments) for one in NETWORKS]
    head = ("network", "pixels", "widths", *(f"{name} ms" for name in RUNNERS), "lce ÷ litert", "float32 ÷ litert", "classes")  # fmt: skip
    cells = [
        (row["network"], row["pixels"], f"{row['ratio']:g}×", *(milliseconds(row[f"{name}_ms"]) for name in RUNNERS),
         f"{row['lce_over_litert']:.2f}", f"{row['float32_over_litert']:.2f}", "equal" if row["classes_equal"] else "differ")
        for row in rows
    ]  # fmt: skip
    runtimes = {name: runner.version() for name, runner in RUNNERS.items()}
    print_table(f"{', '.join(runtimes.values())}; {arguments.threads} thread(s), runs in turns", head, cells)
    if arguments.out:
        told = manifest.environment(machine=_program.machine(), threads=arguments.threads, runtimes=runtimes)
        content = {
            "command": shlex.join(["python", *sys.argv]),
            "environment": told,
            "runs": arguments.runs,
            "networks": rows,
        }
        manifest.write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())
        print(arguments.out)


def compared(
    folder: Path, name: str, pixels: int, classes: int, ratio: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Medians of one network in each runtime, and whether the runtimes agree."""
    sessions = opened(folder, name, pixels, classes, ratio, arguments.threads)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 1, pixels, pixels, 3)).astype(np.float32)
    logits = {label: np.concatenate([sessions[label].run(image) for image in images]) for label in ("litert", "lce")}
    ms: dict[str, list[float]] = {label: [] for label in sessions}
    runs = arguments.runs if pixels <= 64 else max(1, arguments.runs // 5)
    for turn in range(WARM_UP + runs):
        for label, session in sessions.items():
            began = time.perf_counter_ns()
            session.run(images[0])
            if turn >= WARM_UP:
                ms[label].append((time.perf_counter_ns() - began) / 1e6)
    medians = {label: statistics.median(times) for label, times in ms.items()}
    return {
        "network": name, "pixels": pixels, "ratio": ratio, "runs": runs,
        **{f"{label}_ms": median for label, median in medians.items()},
        **{f"{label}_ms_minimum": min(times) for label, times in ms.items()},
        **{f"{label}_over_litert": medians[label] / medians["litert"] for label in ("lce", "float32")},
        "largest_logit_difference": float(abs(logits["litert"] - logits["lce"]).max()),
        "largest_logit": float(abs(logits["lce"]).max()),
        "classes_equal": bool((logits["litert"].argmax(1) == logits["lce"].argmax(1)).all()),
    }  # fmt: skip


def opened(folder: Path, name: str, pixels: int, classes: int, ratio: float, threads: int) -> dict[str, Any]:
    """A session of each runner, of one network with random weights."""
    network = load_network(name, 3, pixels, classes)
    widths = {key: round(ratio * width) for key, width in network.widths.items()}
    packed, floats = folder / "network.tflite", folder / "network.onnx"
    form = folding.fold(network, widths, folding.random_weights(network, widths), MEAN, STD)
    plugin.load("exporters", "lce").write(form, packed)
    plugin.load("exporters", "onnx").write_float(network, widths, None, MEAN, STD, floats)
    paths = {"litert": packed, "lce": packed, "float32": floats}
    return {label: runner.open(paths[label], threads) for label, runner in RUNNERS.items()}


if __name__ == "__main__":
    main()

"""Whole networks, one run of each runtime in turn: float32, both forms of ONNX, and the .tflite file in each runner.

float32 is the network of the same widths in onnxruntime, to which all ratios are. The official interpreter runs in
its best mode on x86-64 (indirect kernels and XNNPACK), in the Python of `make witness`; a runner that is not installed
in the Python that runs this is left out. Weights are
random: they change no time. All are in one process, so that whatever disturbs the machine disturbs all alike; the
ratios are those of the medians. All files of a network must give the classes of its integer graph, and logits that
differ by no more than the rounding of the float layers.

    .witness/bin/python benchmarks/runtimes.py
    .witness/bin/python benchmarks/runtimes.py --out docs/results/runtimes-x86-64.json
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
import script

from dmsflow.deploying import folding, integer_graph
from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.measuring.devices import _program
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.network.network import Network
from dmsflow.plugin import load_plugin
from dmsflow.terminal import milliseconds, print_table

# Network, pixels, classes, widths over those of the paper.
NETWORKS = (
    ("vgg11", 32, 10, 1.0),
    ("vgg11", 32, 10, 3.0),
    ("resnet18", 32, 10, 1.0),
    ("resnet18", 32, 10, 3.0),
    ("resnet18", 224, 1000, 1.0),
)
# Exporter, arguments of its `write` (None: it writes the float32 network), and the runner.
FILES: dict[str, tuple[str, dict[str, str] | None, str]] = {
    "float32": ("onnx", None, "onnxruntime"),
    "onnx_mixed": ("onnx", {}, "onnxruntime"),  # the name of its results since there were two forms
    "litert": ("lce", {}, "litert"),
    "lce": ("lce", {}, "lce"),
}
BASE = "float32"
IMAGES = 20  # on which logits are compared
WARM_UP = 10
MEAN, STD = (128,) * 3, (64.0,) * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="of each network of 32 pixels; of larger ones a fifth")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    runtimes = usable()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(Path(folder), *one, list(runtimes), arguments) for one in NETWORKS]
    head = ("network", "pixels", "widths", *(f"{label} ms" for label in runtimes), "classes")
    cells = [
        (
            row["network"],
            row["pixels"],
            f"{row['ratio']:g}×",
            *(told_ms(row, label) for label in runtimes),
            "equal" if row["classes_equal"] else "differ",
        )
        for row in rows
    ]
    versions = ", ".join(dict.fromkeys(runtimes.values()))
    print_table(f"{versions}; {arguments.threads} thread(s), runs in turns; (÷ {BASE})", head, cells)
    if arguments.out:
        environment = describe_environment(
            machine=_program.describe_machine(), threads=arguments.threads, runtimes=runtimes
        )
        content = {
            "command": shlex.join(["python", *sys.argv]),
            "environment": environment,
            "runs": arguments.runs,
            "networks": rows,
        }
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())
        print(arguments.out)


def told_ms(row: dict[str, Any], label: str) -> str:
    """A median, and in brackets its ratio to float32."""
    ratio = "" if label == BASE else f" ({row[f'{label}_over_{BASE}']:.2f})"
    return milliseconds(row[f"{label}_ms"]) + ratio


def usable() -> dict[str, str]:
    """The files that can run here, with the versions of what runs them."""
    versions = {}
    for label, (_, _, name) in FILES.items():
        try:
            runner = load_plugin("runners", name)
            if hasattr(runner, "is_here") and not runner.is_here():  # a pipe to another process takes time
                raise DmsflowError(f"runner {name}", "is not in this process", "run this by .witness/bin/python")
            versions[label] = runner.version()
        except DmsflowError as error:
            print(f"without {label}: {error}", file=sys.stderr)
    return versions


def compared(
    folder: Path, name: str, pixels: int, classes: int, ratio: float, labels: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Medians of one network in each runtime, and whether the runtimes agree with the integer graph."""
    network = load_network(name, 3, pixels, classes)
    widths = {key: round(ratio * width) for key, width in network.widths.items()}
    form = folding.fold(network, widths, draw_weights(network, widths), MEAN, STD)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 1, pixels, pixels, 3)).astype(np.float32)
    sessions, loads = {}, {}
    for label in labels:
        sessions[label], loads[label] = opened(folder, network, widths, form, label, arguments.threads)
    runs = arguments.runs if pixels <= 64 else max(1, arguments.runs // 5)
    ms = timed(sessions, images[0], runs)
    medians = {label: statistics.median(times) for label, times in ms.items()}
    expected = integer_graph.compute_logits(form, images[:, 0])
    logits = [
        np.concatenate([session.run(image) for image in images]) for label, session in sessions.items() if label != BASE
    ]
    over = {f"{label}_over_{BASE}": medians[label] / medians[BASE] for label in labels if label != BASE}
    if {"lce", "litert"} <= set(labels):
        over["lce_over_litert"] = medians["lce"] / medians["litert"]
    return {
        "network": name,
        "pixels": pixels,
        "ratio": ratio,
        "runs": runs,
        **{f"{label}_ms": median for label, median in medians.items()},
        **{f"{label}_ms_minimum": min(times) for label, times in ms.items()},
        **{f"{label}_load_ms": load for label, load in loads.items()},
        **over,
        "largest_logit_difference": max(float(abs(found - expected).max()) for found in logits),
        "largest_logit": float(abs(expected).max()),
        "classes_equal": all(bool((found.argmax(1) == expected.argmax(1)).all()) for found in logits),
    }


def opened(
    folder: Path, network: Network, widths: dict[str, int], form: integer_graph.IntegerGraph, label: str, threads: int
) -> tuple[Any, float]:
    """A session of one network, and the milliseconds that it took to make from a file."""
    exporter, arguments, runner = FILES[label]
    path = folder / (f"{label}.onnx" if exporter == "onnx" else f"{label}.tflite")
    if arguments is None:
        load_plugin("exporters", exporter).write_float(network, widths, draw_weights(network, widths), MEAN, STD, path)
    else:
        load_plugin("exporters", exporter).write(form, path, **arguments)
    began = time.perf_counter_ns()
    session = load_plugin("runners", runner).open(path, threads)
    return session, (time.perf_counter_ns() - began) / 1e6


def timed(sessions: dict[str, Any], image: Any, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run but the first few, the sessions in turns."""
    ms: dict[str, list[float]] = {label: [] for label in sessions}
    for turn in range(WARM_UP + runs):
        for label, session in sessions.items():
            began = time.perf_counter_ns()
            session.run(image)
            if turn >= WARM_UP:
                ms[label].append((time.perf_counter_ns() - began) / 1e6)
    return ms


if __name__ == "__main__":
    script.run(main)

"""Whole networks, one run of each runtime in turn: float32, int8, and 1-bit files in each runner.

float32 is the network of the same widths in onnxruntime, to which all ratios are; int8 is that one, quantised by
onnxruntime's own tools. The official interpreter runs in
its best mode on x86-64 (indirect kernels and XNNPACK), in the Python of `make witness`; a runner that is not installed
in the Python that runs this is left out. "int8 stem" is the file of `search --stem int8`, which takes uint8 pixels.
Weights are random: they change no time. In the same turns rates.c measures how fast the processor counts bits and
multiplies bytes at best. A network's limit is its binary MACs at the first rate and those of its stem at the second.
All are in one process, so that whatever disturbs the machine disturbs all alike; the ratios are those of the medians.
"batch" is one image's share of a run of the "litert" file with its input resized to BATCH images. All files of a
network must give the classes of its integer graph, and logits that differ by no more than the rounding of the float
layers; float32 and int8 are other networks, and are not compared.

    .witness/bin/python benchmarks/runtimes.py
    .witness/bin/python benchmarks/runtimes.py --out docs/results/runtimes-x86-64.json
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
from dmsflow.modelfile.inputs import inputs_of
from dmsflow.modelfile.runners import litert
from dmsflow.network import cost
from dmsflow.network.network import INPUT, Network, resolutions, with_stem
from dmsflow.plugin import load_plugin
from dmsflow.terminal import milliseconds, print_table

# Network, pixels, classes, widths over those of the paper.
NETWORKS = (
    *(("vgg11", 32, 10, ratio) for ratio in (0.5, 1.0, 2.0, 3.0)),
    *(("resnet18", 32, 10, ratio) for ratio in (0.5, 1.0, 2.0, 3.0)),
    ("resnet18", 224, 1000, 1.0),
)
# Exporter, what it writes, and the runner.
FILES = {
    "float32": ("onnx", "float", "onnxruntime"),
    "int8": ("onnx-int8", "float", "onnxruntime"),
    "onnx_mixed": ("onnx", "binary", "onnxruntime"),  # the name of its results since there were two forms
    "litert": ("lce", "binary", "litert"),
    "litert_int8_stem": ("lce", "int8 stem", "litert"),
    "lce": ("lce", "binary", "lce"),
}
BASE = "float32"
IMAGES = 20  # on which logits are compared
BATCH = 8
WARM_UP = 10
LOOPS = ("count_bits", "multiply_bytes")  # of rates.c; each returns how many products it made
ROUNDS = 200_000  # 0.2 ms or more, of which a cold start is little
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
    head = ("network", "pixels", "widths", *(f"{label} ms" for label in runtimes), "batch ms", "limit ms", "classes")
    cells = [
        (
            row["network"],
            row["pixels"],
            f"{row['ratio']:g}×",
            *(told_ms(row, label) for label in runtimes),
            milliseconds(row["batch_image_ms"]) if "batch_image_ms" in row else "",
            milliseconds(row["limit_ms"]) if "limit_ms" in row else "",
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
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 1, pixels, pixels, 3)).astype(np.float32)
    sessions, loads = {}, {}
    for label in labels:
        sessions[label], loads[label] = opened(folder, network, widths, images[:, 0], label, arguments.threads)
    runs = arguments.runs if pixels <= 64 else max(1, arguments.runs // 5)
    loops = {name: partial(loop, ROUNDS) for name, loop in rates().items()}
    calls: dict[str, Callable[[], object]] = {**loops}
    calls |= {label: partial(run, session, images[0]) for label, session in sessions.items()}
    if "litert" in sessions:
        calls["batch"] = batched(sessions["litert"], images[:BATCH, 0])
    ms = timed(calls, runs)
    medians = {label: statistics.median(times) for label, times in ms.items()}
    found = dict[str, float]()
    if "batch" in medians:
        found["batch_image_ms"] = medians.pop("batch") / BATCH
    if loops:
        fastest = (medians.pop(name) / loop() for name, loop in loops.items())
        found["limit_ms"] = limit_ms(network, widths, *fastest) / arguments.threads
    expected, logits = dict[str, Any](), dict[str, Any]()
    for label, session in sessions.items():
        if (kind := FILES[label][1]) != "float":
            expected[label] = integer_graph.compute_logits(make_graph(network, widths, kind), images[:, 0])
            logits[label] = np.concatenate([run(session, image) for image in images])
    differences = [float(abs(given - expected[label]).max()) for label, given in logits.items()]
    over = {f"{label}_over_{BASE}": medians[label] / medians[BASE] for label in labels if label != BASE}
    if {"lce", "litert"} <= set(labels):
        over["lce_over_litert"] = medians["lce"] / medians["litert"]
    return {
        "network": name,
        "pixels": pixels,
        "ratio": ratio,
        "runs": runs,
        **{f"{label}_ms": median for label, median in medians.items()},
        **{f"{label}_ms_minimum": min(ms[label]) for label in medians},
        **{f"{label}_load_ms": load for label, load in loads.items()},
        **over,
        **found,
        "operations_ms": time_operations(sessions, images[0], max(10, runs // 5)),
        "largest_logit_difference": max(differences),
        "largest_logit": max(float(abs(each).max()) for each in expected.values()),
        "classes_equal": all(
            bool((given.argmax(1) == expected[label].argmax(1)).all()) for label, given in logits.items()
        ),
    }


def make_graph(network: Network, widths: dict[str, int], kind: str) -> integer_graph.IntegerGraph:
    """The integer graph of a 1-bit file."""
    network = with_stem(network, "int8") if kind == "int8 stem" else network
    return folding.fold(network, widths, draw_weights(network, widths), MEAN, STD)


def run(session: Any, image: Any) -> Any:
    """The logits of an image of pixels."""
    return session.run(image.astype(inputs_of(session)[0].dtype, copy=False))


def batched(session: litert.Session, images: Any) -> Callable[[], object]:
    """A run of several images by a file that takes one: its input is resized, as LiteRT allows.

    Raises:
        DmsflowError: its logits are others than those of one image after the other.
    """
    many = litert.open(session.path, session.threads)
    many.interpreter.resize_tensor_input(many.numbers[0], images.shape)
    many.interpreter.allocate_tensors()
    alone = np.concatenate([session.run(image[None]) for image in images])
    if not np.allclose(many.run(images), alone, rtol=0, atol=1e-4 * abs(alone).max()):
        raise DmsflowError(session.path, "computes other logits in a batch", "correct the delegate")
    return partial(many.run, images)


@functools.cache
def rates() -> dict[str, Callable[[int], int]]:
    """Loops of rates.c, for so many rounds; none where there is no compiler, or no loop for the processor."""
    compiler = shutil.which("cc")
    if not compiler:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "rates.so")
        source = Path(__file__).with_name("rates.c")
        subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", source, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
    loops = {name: getattr(loaded, name) for name in LOOPS}
    for loop in loops.values():
        loop.restype, loop.argtypes = ctypes.c_int64, [ctypes.c_int64]
    return loops if all(loop(1) for loop in loops.values()) else {}


def time_operations(sessions: dict[str, Any], image: Any, runs: int) -> dict[str, float]:
    """Milliseconds of each kind of operation of the file with an int8 stem, largest first."""
    label = "litert_int8_stem"
    if label not in sessions:
        return {}
    kinds: dict[str, float] = {}
    for position, (kind, _, ms) in enumerate(sessions[label].operations(image.astype(np.uint8), runs)):
        name = "before the first operation of the delegate" if (position, kind) == (0, litert.OTHER_OPS) else kind
        kinds[name] = kinds.get(name, 0.0) + ms
    return dict(sorted(kinds.items(), key=lambda row: -row[1]))


def limit_ms(network: Network, widths: dict[str, int], bit_ms: float, byte_ms: float) -> float:
    """What a network takes if its binary layers do nothing but count, and its stem nothing but multiply bytes.

    Args:
        bit_ms, byte_ms: milliseconds of one product.
    """
    sizes, limit = resolutions(network), 0.0
    for layer, count in cost.weights(network, widths):
        products = count * sizes[layer.name] ** 2
        if layer.op == "binary_conv":
            limit += bit_ms * products
        elif INPUT in layer.inputs:
            limit += byte_ms * products
    return limit


def opened(
    folder: Path, network: Network, widths: dict[str, int], images: Any, label: str, threads: int
) -> tuple[Any, float]:
    """A session of one network, and the milliseconds that it took to make from a file."""
    exporter, kind, runner = FILES[label]
    path, writer = folder / f"{label}{'.tflite' if exporter == 'lce' else '.onnx'}", load_plugin("exporters", exporter)
    if kind == "float":
        calibration = [images.astype(np.uint8)] if exporter == "onnx-int8" else []
        writer.write_float(network, widths, draw_weights(network, widths), MEAN, STD, path, *calibration)
    else:
        writer.write(make_graph(network, widths, kind), path)
    began = time.perf_counter_ns()
    session = load_plugin("runners", runner).open(path, threads)
    return session, (time.perf_counter_ns() - began) / 1e6


def timed(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run but the first few, in turns."""
    ms: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(WARM_UP + runs):
        for label, call in calls.items():
            began = time.perf_counter_ns()
            call()
            if turn >= WARM_UP:
                ms[label].append((time.perf_counter_ns() - began) / 1e6)
    return ms


if __name__ == "__main__":
    script.run(main)

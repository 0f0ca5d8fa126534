"""The first convolution, from pixels to bits: float32 and int8 by LiteRT's XNNPACK, and int8 as one operation of dmsflow.

Three files of each layer, by one interpreter each, run in turns with a loop of nothing but products of bytes (rates.c):
what the layer takes at least. The int8 file whose sums are read too is left to XNNPACK and LceQuantize; all give the
same bits. On emulated ARM cores the cycles are modelled, and the bound is that of their instructions (SDOT, 16
multiply-accumulates, two at a time; without it SMULL, 8, one at a time):

    python benchmarks/first_layer.py --out docs/results/first-layer.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import runtimes
import script

from dmsflow import native
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.environment import describe_environment
from dmsflow.files import write_atomically
from dmsflow.measuring import devices
from dmsflow.measuring.devices import _program, qemu
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import litert
from dmsflow.terminal import print_table

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
lce_cases, stems = importlib.import_module("lce_cases"), importlib.import_module("stems")

LAYERS = ((32, 3, 1, 128), (32, 3, 1, 64), (224, 7, 2, 64))  # pixels, kernel, stride, filters
FILES = {"float32": "float32", "apart": "int8, XNNPACK", "together": "int8, dmsflow"}
BOUND = "bound"
MACS_A_CYCLE = {"cortex-a53": None, "cortex-a72": 8, "cortex-a76": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--cores", nargs="*", default=list(MACS_A_CYCLE), choices=MACS_A_CYCLE, help="emulated ones")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(*layer, arguments.runs) for layer in LAYERS]
        found: list[dict[str, Any]] = [{"device": "local", "unit": "ms", "layers": rows}]
        for core in arguments.cores:
            found.append({"device": core, "unit": "million cycles", "layers": modelled(Path(folder), core)})
    head = ("device", "layer", *FILES.values(), "bound", "dmsflow ÷ bound")
    cells = [
        (
            f"{each['device']}, {each['unit']}",
            row["layer"],
            *(f"{row[label]:.4f}" for label in FILES),
            *((f"{row[BOUND]:.4f}", f"{row['together'] / row[BOUND]:.2f}") if row[BOUND] else ("", "")),
        )
        for each in found
        for row in each["layers"]
    ]
    print_table(f"{litert.version()}, one thread", head, cells)
    if arguments.out:
        environment = describe_environment(
            machine=_program.describe_machine(), threads=1, runtimes={"litert": litert.version()}
        )
        content = {
            "command": shlex.join(["python", *sys.argv]),
            "environment": environment,
            "runs": arguments.runs,
            "devices": found,
        }
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


def measured(pixels: int, kernel: int, stride: int, filters: int, runs: int) -> dict[str, Any]:
    """Medians of one layer, in ms."""
    stem, models = make_files(pixels, kernel, stride, filters)
    values = stem.values(np.random.default_rng(1))
    tasks: dict[str, Callable[[], Any]] = {}
    for label, model in models.items():
        with lce_cases.silent():
            interpreter = lce_cases.open_litert(model, str(native.library()), {"threads": "1"}, 1)
        image = values.astype(np.float32) if label == "float32" else values
        if not np.array_equal(lce_cases.run_litert(interpreter, image), stem.bits(values)):
            raise SystemExit(f"{label}: other bits than by the definition")
        tasks[label] = interpreter.invoke
    if loop := runtimes.rates().get("multiply_bytes"):
        tasks[BOUND] = partial(loop, macs(stem) // loop(1))
    ms: dict[str, list[float]] = {label: [] for label in tasks}
    for _ in range(runs):
        for label, task in tasks.items():
            task()  # what ran before has left its data in the caches
            began = time.perf_counter_ns()
            task()
            ms[label].append((time.perf_counter_ns() - began) / 1e6)
    medians = {label: statistics.median(times) for label, times in ms.items()}
    return {"layer": describe(pixels, kernel, stride, filters), BOUND: None, **medians}


def modelled(folder: Path, core: str) -> list[dict[str, Any]]:
    """Million cycles of each layer, one run of it counted."""
    files, rows = [], []
    for layer in LAYERS:
        stem, models = make_files(*layer)
        rate = MACS_A_CYCLE[core]
        rows.append({"layer": describe(*layer), BOUND: macs(stem) / rate / 1e6 if rate else None})
        for label, model in models.items():
            path = folder / f"{len(rows)}-{label}.tflite"
            path.write_bytes(model)
            files.append(devices.File(path=str(path), runner="litert"))
    job = devices.Job(files=tuple(files), threads=1, warm_up=1, runs=1, memory=False, operations=False)
    with devices.connect(f"qemu://{core}") as measure:
        found = measure(job)
    for at, timing in enumerate(found.timings):
        rows[at // len(FILES)][list(FILES)[at % len(FILES)]] = timing.runs_ms[0] * qemu.CORES[core].ghz
    return rows


def describe(pixels: int, kernel: int, stride: int, filters: int) -> str:
    return f"{pixels}×{pixels}×3, {kernel}×{kernel}, stride {stride}, {filters} filters"


def macs(stem: Any) -> int:
    return int(stem.weights.size * np.prod(stem.placed()[1]))


def make_files(pixels: int, kernel: int, stride: int, filters: int) -> tuple[Any, dict[str, bytes]]:
    """A layer, and the files of FILES."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (filters, kernel, kernel, 3)).astype(np.int8)
    middle = 121 * weights.reshape(filters, -1).astype(np.int32).sum(1)
    thresholds = (middle + rng.integers(-20_000, 20_000, filters)).astype(np.int32)
    stem = stems.Stem(
        (1, pixels, pixels, 3), weights, thresholds, stride=(stride, stride), pads=(kernel // 2,) * stems.SIDES
    )
    together = stem.graph().dumps()
    apart = tflite.parse_model(together)
    graph = apart["subgraphs"][0]
    graph["outputs"].append(graph["operators"][-2]["outputs"][0])
    return stem, {"float32": make_float(stem), "apart": _flatbuffer.dumps(apart), "together": together}


def make_float(stem: Any) -> bytes:
    """The same layer of float32."""
    graph = stem.graph()
    quantize, pad, conv = graph.nodes[:3]
    pad.inputs[0] = quantize.inputs[0]
    graph.nodes.remove(quantize)
    for number in {*pad.inputs, pad.output, *conv.inputs, conv.output} - {pad.inputs[1]}:
        tensor = graph.tensors[number]
        zero = tensor.zero_point if tensor.dtype == lce_cases.BYTES else 0
        tensor.data = None if tensor.data is None else tensor.data.astype(np.float32) - np.float32(zero)
        tensor.dtype, tensor.scale = lce_cases.FLOATS, None
    model: bytes = graph.dumps()
    return model


if __name__ == "__main__":
    script.run(main)

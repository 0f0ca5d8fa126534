"""The four 3×3 layers of a ResNet, one at a time: dmsflow's kernels in LiteRT beside the official interpreter.

A file with one convolution is mostly the copying of its input and output. So each layer is timed as the
difference between a chain of nine and a chain of one, in one process and in turns: bits to bits, and bits to
floats with the LceQuantize that turns them into bits again. The interpreter runs in its best mode on x86-64,
indirect kernels and XNNPACK. Outputs of all must be equal, bit for bit.

    make witness
    .witness/bin/python benchmarks/kernels.py
    .witness/bin/python benchmarks/kernels.py --kernels avx2 --out docs/results/kernels-x86-64-avx2.json

On an emulated ARM core the cycles of each layer are modelled, beside those of LCE's best kernels in the same
model (measured by hand once, with LCE's own benchmark program) and beside what counting alone takes, three
instructions for 128 bits on two pipes:

    python benchmarks/kernels.py --device qemu://cortex-a76
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import script
from numpy.typing import NDArray

from dmsflow import native
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.environment import describe_environment, witness_command
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.measuring import devices
from dmsflow.measuring.devices import _program, qemu
from dmsflow.modelfile.runners import lce, litert
from dmsflow.terminal import print_table

LAYERS = ((56, 64), (28, 128), (14, 256), (7, 512))  # size, channels
# Million cycles in LLVM 19's neoverse-n1 model: LCE's best kernels with floats and with bits as output.
LCE_FLOATS, LCE_BITS = (2.41, 1.64, 1.47, 1.49), (2.29, 1.58, 1.44, 1.48)
BOUND = 1.355
LONG = 9  # convolutions of the longer chain; of the shorter one 1
FLOAT, BITS = 0, 2  # types of tensors
ABSENT, CUSTOM, SAME = -1, 32, 0
OPTIONS = {
    "dilation_height_factor": 1,
    "dilation_width_factor": 1,
    "fused_activation_function": 0,
    "pad_values": 1,
    "padding": SAME,
    "stride_height": 1,
    "stride_width": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", choices=native.KERNELS, help="of dmsflow; by default the best for this processor")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--device", default="local", help="local, or qemu://cortex-a76 for modelled cycles")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    if arguments.device != "local":
        modelled(arguments.device, arguments.out)
        return
    if not lce.is_here():
        what = "times two runtimes in one process, and this Python has no larq-compute-engine with NumPy 1"
        raise DmsflowError(sys.executable, what, f"{witness_command()}, and then .witness/bin/python {sys.argv[0]}")
    options = {"threads": "1"} | ({"kernels": arguments.kernels} if arguments.kernels else {})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, channels in LAYERS:
            for floats in (False, True):
                rows.append(compared(Path(folder), size, channels, floats, options, arguments.runs))
                print_row(rows[-1])
    head = ("layer", "out", "LCE ms", "dmsflow ms", "LCE ÷ dmsflow", "equal")
    cells = [
        (
            row["layer"],
            row["out"],
            f"{row['lce_ms']:.4f}",
            f"{row['dmsflow_ms']:.4f}",
            f"{row['ratio']:.1f}",
            row["equal"],
        )
        for row in rows
    ]
    kernels = arguments.kernels or native.kernels()
    print_table(f"dmsflow {kernels} and {lce.version()}, 1 thread, {arguments.runs} runs in turns", head, cells)
    if arguments.out:
        content = {
            "command": "python benchmarks/kernels.py" + (f" --kernels {kernels}" if arguments.kernels else ""),
            "environment": describe_environment(
                machine=_program.describe_machine(),
                threads=1,
                runtimes={"dmsflow": litert.version(), "lce": lce.version()},
            ),
            "kernels": kernels,
            "runs": arguments.runs,
            "layers": rows,
        }
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['layer']} {row['out']}: {row['lce_ms']:.4f} {row['dmsflow_ms']:.4f} ms", flush=True)


def compared(
    folder: Path, size: int, channels: int, floats: bool, options: dict[str, str], runs: int
) -> dict[str, Any]:
    """Times of one layer by both, and whether their outputs are equal."""
    random = np.random.default_rng(0)
    image = bits(random, (1, size, size, channels // 32))
    sessions: list[Callable[[], NDArray[Any]]] = []
    for count in (1, LONG):
        path = folder / f"{size}-{floats}-{count}.tflite"
        path.write_bytes(chain(size, channels, floats, count))
        sessions += [official(path, image), delegated(path, image, options)]
    equal = all(np.array_equal(sessions[at](), sessions[at + 1]()) for at in (0, 2))
    ms: list[list[float]] = [[] for _ in sessions]
    for turn in range(runs + 10):
        for times, session in zip(ms, sessions, strict=True):
            began = time.perf_counter_ns()
            session()
            if turn >= 10:
                times.append((time.perf_counter_ns() - began) / 1e6)
    short_lce, short, long_lce, long = map(statistics.median, ms)
    by_lce, by_dmsflow = (long_lce - short_lce) / (LONG - 1), (long - short) / (LONG - 1)
    return {
        "layer": f"{size}×{size}×{channels}",
        "out": "floats, quantised" if floats else "bits",
        "lce_ms": by_lce,
        "dmsflow_ms": by_dmsflow,
        "ratio": by_lce / by_dmsflow,
        "equal": equal,
    }


def official(path: Path, image: NDArray[np.int32]) -> Callable[[], NDArray[Any]]:
    """Threads, reference kernels, indirect kernels, XNNPACK."""
    interpreter = lce._interpreter()(path.read_bytes(), 1, False, True, True)
    return lambda: np.asarray(interpreter.predict([image])[0])


def delegated(path: Path, image: NDArray[np.int32], options: dict[str, str]) -> Callable[[], NDArray[Any]]:
    runtime = litert._runtime()
    delegate = runtime.load_delegate(str(native.library()), options)
    interpreter = runtime.Interpreter(model_path=str(path), num_threads=1, experimental_delegates=[delegate])
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run() -> NDArray[Any]:
        interpreter.set_tensor(taken, image)
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(given))

    return run


# --- on an emulated core ------------------------------------------------------------------------


def modelled(address: str, out: Path | None) -> None:
    """Cycles of each layer, one run of it counted."""
    core = qemu.CORES[address.partition("://")[2] or qemu.DEFAULT]
    kinds = [(layer, floats) for floats in (True, False) for layer in range(len(LAYERS))]
    with tempfile.TemporaryDirectory() as folder, devices.connect(address) as measure:
        files = []
        for layer, floats in kinds:
            path = Path(folder, f"{layer}-{floats}.tflite")
            path.write_bytes(chain(*LAYERS[layer], floats, 1, quantized=True))
            files.append(devices.File(path=str(path), runner="litert"))
        job = devices.Job(files=tuple(files), threads=1, warm_up=1, runs=1, memory=False, operations=True)
        measured = measure(job)
    rows: list[dict[str, Any]] = []
    for (layer, floats), timing in zip(kinds, measured.timings, strict=True):
        (ms,) = (one.ms for one in timing.operations if one.op == "LceBconv2d")
        size, channels = LAYERS[layer]
        rows.append(
            {
                "layer": f"{size}×{size}×{channels}",
                "out": "floats" if floats else "bits",
                "million_cycles": ms * core.ghz,
                "lce_million_cycles": (LCE_FLOATS if floats else LCE_BITS)[layer],
            }
        )
    cells = [
        (
            row["layer"],
            row["out"],
            f"{row['million_cycles']:.3f}",
            f"{row['lce_million_cycles']:.2f}",
            f"{row['million_cycles'] / BOUND:.2f}",
        )
        for row in rows
    ]
    head = ("layer", "out", "dmsflow M cycles", "LCE M cycles", "÷ bound")
    print_table(f"modelled: {measured.machine.processor}", head, cells)
    if out:
        content = {
            "command": f"python benchmarks/kernels.py --device {address}",
            "method": "modelled",
            "environment": describe_environment(
                device=address,
                machine=msgspec.to_builtins(measured.machine),
                runtimes={"dmsflow": measured.timings[0].runtime},
            ),
            "bound_million_cycles": BOUND,
            "layers": rows,
        }
        write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


# --- files --------------------------------------------------------------------------------------


def bits(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int32]:
    return random.integers(-(2**31), 2**31, shape).astype(np.int32)


def chain(size: int, channels: int, floats: bool, count: int, quantized: bool = False) -> bytes:
    """A file of `count` convolutions of bits.

    Args:
        floats: they put out floats, and all but the last have an LceQuantize behind them.
        quantized: the input is floats too, with an LceQuantize in front.
    """
    random = np.random.default_rng(1)
    packed, whole = (1, size, size, channels // 32), (1, size, size, channels)
    tensors: list[dict[str, Any]] = []
    buffers: list[dict[str, Any]] = [{}]
    operators: list[dict[str, Any]] = []

    def tensor(shape: tuple[int, ...], kind: int, data: NDArray[Any] | None = None) -> int:
        if data is not None:
            buffers.append({"data": data.tobytes()})
        place = 0 if data is None else len(buffers) - 1
        tensors.append({"shape": shape, "type": kind, "buffer": place, "name": f"t{len(tensors)}"})
        return len(tensors) - 1

    def quantize(taken: int) -> int:
        given = tensor(packed, BITS)
        operators.append({"opcode_index": 1, "inputs": [taken], "outputs": [given], "custom_options": b""})
        return given

    at = quantize(tensor(whole, FLOAT)) if quantized else tensor(packed, BITS)
    for number in range(count):
        weights = tensor((channels, 3, 3, channels // 32), BITS, bits(random, (channels, 3, 3, channels // 32)))
        inputs = [at, weights, ABSENT, ABSENT, ABSENT]
        if floats:
            scale = random.uniform(0.5, 1.5, channels).astype(np.float32)
            inputs[2:4] = tensor((channels,), FLOAT, scale), tensor((channels,), FLOAT, scale - 1)
        else:
            thresholds = random.integers(4 * channels, 5 * channels, channels).astype(np.int32)
            inputs[4] = tensor((channels,), BITS, thresholds)
        at = tensor(whole, FLOAT) if floats else tensor(packed, BITS)
        options = _flatbuffer.flexible({"channels_in": channels, **OPTIONS})
        operators.append({"opcode_index": 0, "inputs": inputs, "outputs": [at], "custom_options": options})
        if floats and number + 1 < count:
            at = quantize(at)
    codes = [
        {"deprecated_builtin_code": CUSTOM, "version": 1, "builtin_code": CUSTOM, "custom_code": op}
        for op in ("LceBconv2d", "LceQuantize")
    ]
    graph = {"tensors": tensors, "inputs": [0], "outputs": [at], "operators": operators, "name": "main"}
    return _flatbuffer.dumps(
        {"version": 3, "operator_codes": codes, "subgraphs": [graph], "description": "a chain", "buffers": buffers}
    )


if __name__ == "__main__":
    script.run(main)

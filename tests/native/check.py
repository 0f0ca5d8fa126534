"""Runs the files that fuzz.py --write left in a folder, and compares what they put out bit for bit.

    python check.py FOLDER LIBRARY [THREADS]

Needs NumPy and a TFLite runtime only, so that it also runs on a device or in an emulator. Any kernels
that the processor has are tried. Exit code 1 where a bit differs.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite.python.interpreter")
KERNELS = ("avx512", "avx2", "neon-dotprod", "neon", "portable")


def runtime():
    for name in RUNTIMES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    sys.exit("there is no TFLite runtime: pip install ai-edge-litert")


def available(tflite, library: str) -> list[str]:
    found = []
    for name in KERNELS:
        try:
            tflite.load_delegate(library, {"kernels": name})
        except ValueError:
            continue
        found.append(name)
    return found


def run(tflite, model: Path, library: str, options: dict[str, str], values: np.ndarray) -> np.ndarray:
    delegate = tflite.load_delegate(library, options)
    interpreter = tflite.Interpreter(model_path=str(model), experimental_delegates=[delegate])
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def main(folder: str, library: str, threads: str = "1") -> int:
    tflite = runtime()
    kernels = available(tflite, library)
    models = sorted(Path(folder).glob("*.tflite"))
    differ = 0
    for model in models:
        case = np.load(model.with_suffix(".npz"))
        for name in kernels:
            output = run(tflite, model, library, {"kernels": name, "threads": threads}, case["values"])
            if output.dtype != case["expected"].dtype or output.tobytes() != case["expected"].tobytes():
                differ += 1
                print(f"{model.name} ({case['name']}) differs with kernels {name}")
    print(f"{len(models)} files with kernels {', '.join(kernels)}: {differ} different")
    return int(differ > 0 or not models or not kernels)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

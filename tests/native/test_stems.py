"""Files with an int8 stem, or with constants of int8, in the static benchmark program: under sanitizers, and on ARM."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import lce_cases
import mutation
import numpy as np
import pytest
import stems
from lce_cases import FLOATS, Graph, Node, Tensor

from dmsflow import native
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.modelfile import tflite

CONV, DENSE = 1, 8  # in tflite.OPTIONS


def run(program: tuple[str, ...], folder: Path, model: bytes, values: np.ndarray, *more: str) -> bytes:
    paths = [folder / name for name in ("model.tflite", "in", "out")]
    paths[0].write_bytes(model)
    paths[1].write_bytes(values.tobytes())
    files = (f"--graph={paths[0]}", f"--input_file={paths[1]}", f"--output_file={paths[2]}")
    done = subprocess.run((*program, *files, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return paths[2].read_bytes()


def with_sums(stem: stems.Stem) -> bytes:
    """The stem's file, which also puts its sums out: nothing is taken together."""
    graph = stem.graph()
    model = tflite.parse_model(graph.dumps())
    model["subgraphs"][0]["outputs"].append(graph.nodes[-2].output)
    return _flatbuffer.dumps(model)


def compare(program: tuple[str, ...], folder: Path, seed: int, *more: str) -> None:
    rng = np.random.default_rng(seed)
    stem = stems.random_stem(rng)
    values = stem.values(rng)
    bits, sums = stem.bits(values).tobytes(), np.clip(stem.sums(values), -128, 127).astype(np.int8).tobytes()
    assert run(program, folder, stem.graph().dumps(), values, *more) == bits, f"seed {seed}"
    assert run(program, folder, with_sums(stem), values, *more) == bits + sums, f"seed {seed}"


def test_stems_give_the_bits_of_their_definition(sanitized_benchmark: tuple[str, ...], tmp_path: Path) -> None:
    for seed, kernels in zip(range(30), itertools.cycle(["avx512", "avx2", "portable"])):
        own = (f"--kernels={kernels}",) if kernels in lce_cases.available(str(native.library())) else ()
        compare(sanitized_benchmark, tmp_path, seed, f"--num_threads={1 + seed % 2}", *own)


def test_stems_on_arm(arm: tuple[str, ...], tmp_path: Path) -> None:
    for seed, kernels in zip(range(100, 112), itertools.cycle(["neon-dotprod", "neon", "portable"])):
        compare(arm, tmp_path, seed, f"--kernels={kernels}")


@stems.TAKEN
def test_a_stem_is_one_row_of_the_table(sanitized_benchmark: tuple[str, ...], tmp_path: Path) -> None:
    weights = np.ones((40, 3, 3, 3), np.int8)
    stem = stems.Stem((1, 9, 8, 3), weights, np.zeros(40, np.int32), pads=(1, 1, 1, 1))
    rows = {}
    for name, model in {"together": stem.graph().dumps(), "apart": with_sums(stem)}.items():
        path = tmp_path / "model.tflite"
        path.write_bytes(model)
        command = (
            *sanitized_benchmark,
            f"--graph={path}",
            "--num_runs=2",
            "--min_secs=0",
            "--enable_op_profiling=true",
        )
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows[name] = [line.split()[0] for line in text.partition("[Name]")[2].splitlines() if line.strip()]
    assert rows == {"together": ["LceQuantize"], "apart": ["QUANTIZE", "PADV2", "CONV_2D", "LceQuantize"]}


def dequantised(rng: np.random.Generator, dense: bool) -> tuple[Graph, np.ndarray]:
    """A float convolution or a dense layer with weights of int8."""
    sides = () if dense else (3, 3)
    filters, channels = int(rng.integers(1, 20)), int(rng.integers(1, 30))
    image = (2, channels) if dense else (1, 6, 5, channels)
    graph = Graph([Tensor(image, FLOATS)], [])
    weights = rng.integers(-128, 128, (filters, *sides, channels), np.int8)
    packed = graph.constant(weights, scale=0.5, zero_point=int(rng.integers(-9, 9)))
    unpacked = graph.add(weights.shape, FLOATS)
    graph.nodes.append(Node("DEQUANTIZE", [packed], unpacked))
    out = graph.add((2, filters) if dense else (1, 6, 5, filters), FLOATS)
    inputs = [0, unpacked, graph.constant(rng.integers(-9, 9, filters).astype(np.float32))]
    options = {} if dense else {"padding": 0, "stride_w": 1, "stride_h": 1}
    options |= {} if dense else {"dilation_w_factor": 1, "dilation_h_factor": 1}
    graph.nodes.append(
        Node(*(("FULLY_CONNECTED" if dense else "CONV_2D"), inputs, out, options), DENSE if dense else CONV)
    )
    return graph, rng.integers(-9, 9, image).astype(np.float32)


@pytest.mark.parametrize("dense", [True, False])
def test_int8_constants_are_made_float_once(
    sanitized_benchmark: tuple[str, ...], arm: tuple[str, ...], tmp_path: Path, dense: bool
) -> None:
    """Sums of whole numbers and halves: exact in any order."""
    for seed in range(8):
        graph, values = dequantised(np.random.default_rng(seed), dense)
        model = graph.dumps()
        with lce_cases.silent():
            wanted = lce_cases.run_litert(lce_cases.open_litert(model, str(native.library())), values)
        for program in (sanitized_benchmark, arm) if seed < 2 else (sanitized_benchmark,):
            both = run(program, tmp_path, model, np.stack([values, values]))  # the second run reads them again
            assert both == 2 * wanted.tobytes(), seed


def test_damaged_stems_are_refused_or_run(sanitized_benchmark: tuple[str, ...], tmp_path: Path) -> None:
    path, told = tmp_path / "damaged.tflite", {0: 0, 1: 0}
    for seed in range(150):
        rng = np.random.default_rng(seed)
        model = stems.random_stem(rng).graph().dumps()
        path.write_bytes(mutation.damage_structure(model, random.Random(seed)))
        command = (*sanitized_benchmark, f"--graph={path}", "--num_runs=1", "--min_secs=0")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        assert done.returncode == len(lines) and all(line.startswith("ERROR: ") for line in lines), done.stderr[-2000:]
        told[done.returncode] += 1
    assert min(told.values()) > 10, told

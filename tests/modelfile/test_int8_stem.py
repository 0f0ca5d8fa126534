"""Files with an int8 stem, from pixels to bits: in LiteRT with our delegate and in the official interpreter."""

from __future__ import annotations

import lce_cases
import numpy as np
import pytest
import stems

from dmsflow import native
from dmsflow.modelfile import tflite

LIBRARY = str(native.library())


@pytest.fixture(scope="module")
def kernels() -> list[str]:
    with lce_cases.silent():
        return lce_cases.available(LIBRARY)


def in_delegate(model: bytes, values: np.ndarray, **options: str) -> np.ndarray:
    with lce_cases.silent():
        return lce_cases.run_litert(lce_cases.open_litert(model, LIBRARY, options), values)


def test_scales_are_written_and_read() -> None:
    weights = np.random.default_rng(0).integers(-9, 9, (4, 3, 3, 3), np.int8)
    stem = stems.Stem((1, 5, 5, 3), weights, np.arange(4, dtype=np.int32), zero=121, fill=None, by_channel=True)
    graph = tflite.parse_model(stem.graph().dumps())["subgraphs"][0]
    read = [tensor.get("quantization", {}) for tensor in graph["tensors"]]
    assert read[0] == {"scale": [1.0], "zero_point": [121], "quantized_dimension": 0}
    assert read[1]["zero_point"] == [-7] and read[2]["scale"] == [1.0] * 4 and read[2]["zero_point"] == [0] * 4
    assert tflite.read_port(graph["tensors"][0]).dtype == "uint8"


def test_random_stems_give_the_bits_of_their_definition(kernels: list[str]) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        stem = stems.random_stem(rng)
        model, values = stem.graph().dumps(), stem.values(rng)
        for name in kernels:
            got = in_delegate(model, values, kernels=name, threads=str(1 + seed % 3))
            assert lce_cases.same_bits(got, stem.bits(values)), f"seed {seed}, {name}"


def test_random_stems_give_the_official_interpreters_bits(lce: None) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        stem = stems.random_stem(rng)
        values = stem.values(rng)
        assert lce_cases.same_bits(lce_cases.run_lce(stem.graph().dumps(), values), stem.bits(values)), f"seed {seed}"

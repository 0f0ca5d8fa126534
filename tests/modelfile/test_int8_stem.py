"""Files with an int8 stem, from pixels to bits: in LiteRT with our delegate and in the official interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lce_cases
import numpy as np
import pytest
import stems
from lce_cases import BYTES, FLOATS, RELU, Graph

from dmsflow import native
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.modelfile import tflite
from dmsflow.modelfile.runners import litert

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


# --- one operation of the delegate ------------------------------------------------------------------------------


def a_stem(filters: int = 40, **fields: Any) -> stems.Stem:
    rng = np.random.default_rng(1)
    weights = rng.integers(-127, 128, (filters, 3, 3, 3), np.int8)
    thresholds = rng.integers(-9999, 30_000, filters, np.int32)
    return stems.Stem((1, 9, 8, 3), weights, thresholds, pads=fields.pop("pads", (1, 1, 1, 1)), **fields)


def open_stem(model: bytes) -> Any:
    with lce_cases.silent():
        return lce_cases.open_litert(model, LIBRARY)


def delegated(interpreter: Any) -> list[tuple[int, int]]:
    """First input and output of each node of a delegate."""
    nodes = [node for node in interpreter._get_ops_details() if node["op_name"] == "DELEGATE"]
    return [(node["inputs"][0], node["outputs"][0]) for node in nodes]


@stems.TAKEN
@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({}, 0),
        ({"fill": None, "zero": 9}, 0),
        ({"pads": None, "fill": None}, 0),
        ({"pads": (0, 0, 0, 0)}, 0),
        ({"dtype": FLOATS}, 1),
        ({"dtype": BYTES}, 0),
    ],
)
def test_a_stem_is_one_operation(fields: dict[str, Any], first: int) -> None:
    stem = a_stem(**fields)
    graph = stem.graph()
    interpreter, values = open_stem(graph.dumps()), stem.values(np.random.default_rng(0))
    assert (first, len(graph.tensors) - 1) in delegated(interpreter)
    assert lce_cases.same_bits(lce_cases.run_litert(interpreter, values), stem.bits(values))


def rounded(graph: Graph) -> None:
    graph.tensors[graph.nodes[-1].inputs[0]].scale = 4.0


def activated(graph: Graph) -> None:
    graph.nodes[-2].options["fused_activation_function"] = RELU


def dilated(graph: Graph) -> None:
    graph.nodes[-2].options["dilation_w_factor"] = 2
    graph.tensors[graph.nodes[-2].output].shape = (1, 9, 6, 40)
    graph.tensors[graph.nodes[-1].output].shape = (1, 9, 6, 2)


def lowest(graph: Graph) -> None:
    graph.tensors[graph.nodes[-2].inputs[1]].data[7] = -128


def far(graph: Graph) -> None:
    graph.tensors[graph.nodes[-2].inputs[2]].data[5] = 2**29 + 1


def without_zero(graph: Graph) -> None:
    graph.tensors[graph.nodes[-1].inputs[0]].zero_point = -128


def channels_padded(graph: Graph) -> None:
    graph.tensors[graph.nodes[1].inputs[1]].data[3] = 0, 1
    weights = graph.tensors[graph.nodes[2].inputs[1]]
    weights.data = np.concatenate([weights.data, weights.data[..., :1]], -1)
    weights.shape = weights.data.shape
    padded = graph.tensors[graph.nodes[1].output]
    padded.shape = (*padded.shape[:3], 4)


def wide(graph: Graph) -> None:
    graph.tensors[0].shape = graph.tensors[1].shape = (1, 9, 8, 99)
    weights = graph.tensors[graph.nodes[-2].inputs[1]]
    weights.data = np.resize(weights.data, (40, 3, 3, 99))
    weights.shape = weights.data.shape
    graph.tensors[graph.nodes[1].output].shape = (1, 11, 10, 99)


@stems.TAKEN
@pytest.mark.parametrize(
    "change",
    [rounded, activated, dilated, lowest, far, without_zero, channels_padded, wide],
    ids=lambda each: each.__name__,
)
def test_what_it_does_not_calculate_exactly_is_left_to_the_runtime(lce: None, change: Callable[[Graph], None]) -> None:
    graph = a_stem().graph()
    change(graph)
    model = graph.dumps()
    interpreter = open_stem(model)
    own = graph.nodes[-2 if change is channels_padded else -1]  # the first that it takes
    assert (own.inputs[0], len(graph.tensors) - 1) in delegated(interpreter)
    values = np.random.default_rng(0).integers(0, 256, graph.tensors[0].shape).astype(np.uint8)
    assert lce_cases.same_bits(lce_cases.run_litert(interpreter, values), lce_cases.run_lce(model, values))


@stems.TAKEN
@pytest.mark.parametrize("what", ["sums", "padded"])
def test_what_others_read_is_still_calculated(what: str) -> None:
    stem = a_stem()
    graph = stem.graph()
    model = tflite.parse_model(graph.dumps())
    sums, padded = graph.nodes[-2].output, graph.nodes[1].output
    read = sums if what == "sums" else padded
    model["subgraphs"][0]["outputs"].append(read)
    interpreter, values = open_stem(_flatbuffer.dumps(model)), stem.values(np.random.default_rng(0))
    assert (read, len(graph.tensors) - 1) in delegated(interpreter)
    assert lce_cases.same_bits(lce_cases.run_litert(interpreter, values), stem.bits(values))
    if what == "sums":
        np.testing.assert_array_equal(interpreter.get_tensor(sums), np.clip(stem.sums(values), -128, 127))


def test_an_image_is_resized_back_and_forth() -> None:
    interpreter = open_stem(a_stem(pads=None, fill=None).graph().dumps())
    for image in [(1, 9, 8, 3), (2, 30, 21, 3), (1, 4, 5, 3), (1, 9, 8, 3)]:
        stem = replace(a_stem(pads=None, fill=None), image=image)
        interpreter.resize_tensor_input(0, image)
        interpreter.allocate_tensors()
        values = stem.values(np.random.default_rng(0))
        assert lce_cases.same_bits(lce_cases.run_litert(interpreter, values), stem.bits(values))


def test_stems_with_sums_of_floats_give_them(kernels: list[str]) -> None:
    for seed in range(40):
        model, image, sums = stems.random_float_stem(np.random.default_rng(seed))
        for name in kernels:
            got = in_delegate(model, image, kernels=name, threads=str(1 + seed % 3))
            assert lce_cases.same_bits(got, sums), f"seed {seed}, {name}"


@stems.TAKEN
@pytest.mark.parametrize(
    ("pixels", "means", "taken"), [("uint8", None, True), ("float32", None, False), ("uint8", (9, 8, 9, 9), False)]
)
def test_sums_of_floats_are_one_operation_if_pixels_are_whole_and_have_one_mean(
    pixels: str, means: tuple[int, ...] | None, taken: bool, tmp_path: Path
) -> None:
    model, image, sums = stems.random_float_stem(np.random.default_rng(3), pixels, means)
    assert image.shape[3] > 1
    path = tmp_path / "stem.tflite"
    path.write_bytes(model)
    session = litert.open(path)
    assert ("CONV_2D" in [kind for kind, _, _ in session.operations(image, 1)]) is taken
    assert lce_cases.same_bits(session.run(image), sums)


@stems.TAKEN
def test_the_time_of_a_float_stem_is_that_of_its_convolution(tmp_path: Path) -> None:
    path = tmp_path / "stem.tflite"
    model, image, _ = stems.random_float_stem(np.random.default_rng(3))
    path.write_bytes(model)
    assert [kind for kind, _, _ in litert.open(path).operations(image, 3)] == [litert.OTHER_OPS, "CONV_2D"]
    assert [kind for kind, _, _ in litert.name_operations(path, [1.0, 2.0, 3.0])] == [litert.OTHER_OPS, "CONV_2D"]


def test_its_time_is_that_of_the_quantize(tmp_path: Path) -> None:
    path, stem = tmp_path / "stem.tflite", a_stem()
    path.write_bytes(stem.graph().dumps())
    session = litert.open(path)
    rows = session.operations(stem.values(np.random.default_rng(0)), 3)
    assert [kind for kind, _, _ in rows] == [litert.OTHER_OPS, "LceQuantize"] and rows[1][2] > 0

"""The operators of the static benchmark program, against LiteRT: random shapes, and files that lie.

The program is built with AddressSanitizer and UBSan, which end it at the first wrong step.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lce_cases
import numpy as np
import pytest
from one_operator import Tensor, constant, dumps, in_litert

from dmsflow import native
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.modelfile import tflite
from dmsflow.modelfile.tflite import OPERATORS

Case = tuple[list[Tensor | None], list[Tensor], dict[str, Any]]
TRIES = 15
CASES_FOLDER = Path(__file__).parents[1] / "modelfile" / "cases"
SAME, VALID = 0, 1


def sides(rng: np.random.Generator, rank: int, most: int = 6) -> list[int]:
    return [int(side) for side in rng.integers(1, most + 1, rank)]


def any_shape(rng: np.random.Generator, most_rank: int = 4) -> list[int]:
    return sides(rng, int(rng.integers(1, most_rank + 1)))


def quantised(rng: np.random.Generator, shape: list[int], scale: float | None = None) -> Tensor:
    zero_point = int(rng.integers(-128, 128))
    return Tensor(shape, "int8", scale=float(rng.uniform(0.01, 0.1)) if scale is None else scale, zero_point=zero_point)


def like(tensor: Tensor) -> Tensor:
    """An output of the same type and scale."""
    return Tensor(dtype=tensor.dtype, scale=tensor.scale, zero_point=tensor.zero_point)


def any_type(rng: np.random.Generator, shape: list[int]) -> Tensor:
    kind = rng.choice(["float32", "int32", "int8"])
    return quantised(rng, shape) if kind == "int8" else Tensor(shape, kind)


# --- a random case of each operator ---------------------------------------------------------------------------


def arithmetic(rng: np.random.Generator, kind: str) -> Case:
    shape = any_shape(rng)
    left, right = ([side if rng.random() < 0.7 else 1 for side in shape] for _ in range(2))
    if rng.random() < 0.3:
        right = right[int(rng.integers(len(right))) :]
    if kind == "int8":
        return (
            [quantised(rng, left), quantised(rng, right)],
            [quantised(rng, [], 0.05)],
            {"fusedActivationFunction": int(rng.integers(4))},
        )
    options = {} if kind == "int32" else {"fusedActivationFunction": int(rng.integers(4))}
    return [Tensor(left, kind), Tensor(right, kind)], [Tensor(dtype=kind)], options


def extremes(rng: np.random.Generator, kind: str) -> Case:
    operands, outputs, _ = arithmetic(rng, kind)
    return operands, [like(outputs[0])], {}


def products(rng: np.random.Generator, image: Tensor, shape: list[int], side: int, biases: float = 0.7) -> Case:
    """A filter of that shape and in this share of cases a bias; outputs with a fitting scale."""
    filters, kind, with_bias = shape[side], image.dtype, rng.random() < biases
    if kind == "float32":
        bias = constant(rng.normal(size=filters), kind) if with_bias else None
        return [image, constant(rng.normal(size=shape), kind), bias], [Tensor()], {}
    scale = rng.uniform(0.001, 0.01, filters if rng.random() < 0.7 else 1)
    weights = constant(rng.integers(-127, 128, shape), kind, scale=scale, side=side)
    bias_scale = scale * image.scale
    bias = constant(rng.integers(-9999, 10000, filters), scale=bias_scale) if with_bias else None
    out = quantised(rng, [], float(scale.mean() * image.scale * 30 * np.sqrt(np.prod(shape) / filters)))
    return [image, weights, bias], [out], {}


def windows(rng: np.random.Generator, image: list[int], kernel: list[int]) -> dict[str, Any]:
    fits = all(side >= reach for side, reach in zip(image, kernel, strict=True))
    dilation = 1 if rng.random() < 0.7 or not fits else 2
    if any(side < (reach - 1) * dilation + 1 for side, reach in zip(image, kernel, strict=True)):
        padding = SAME
    else:
        padding = int(rng.integers(2))
    stride = int(rng.integers(1, 4)) if dilation == 1 else 1
    fields = {"padding": padding, "strideW": stride, "strideH": int(rng.integers(1, 4)) if dilation == 1 else 1}
    fields["fusedActivationFunction"] = int(rng.integers(4))
    return fields | {"dilationWFactor": dilation, "dilationHFactor": dilation}


def an_image(rng: np.random.Generator, kind: str, channels: int) -> Tensor:
    shape = [int(rng.integers(1, 3)), int(rng.integers(1, 10)), int(rng.integers(1, 10)), channels]
    return quantised(rng, shape) if kind == "int8" else Tensor(shape)


def conv(rng: np.random.Generator, kind: str) -> Case:
    """LiteRT wants a bias."""
    groups, read = int(rng.choice([1, 1, 2, 3])), int(rng.integers(1, 9))
    image, kernel = an_image(rng, kind, groups * read), sides(rng, 2, 4)
    operands, outputs, _ = products(rng, image, [groups * int(rng.integers(1, 40)), *kernel, read], 0, 1)
    return operands, outputs, windows(rng, list(image.shape[1:3]), kernel)


def depthwise(rng: np.random.Generator, kind: str) -> Case:
    image, multiplier = an_image(rng, kind, int(rng.integers(1, 80))), int(rng.choice([1, 1, 2, 3]))
    kernel = sides(rng, 2, 4)
    operands, outputs, _ = products(rng, image, [1, *kernel, image.shape[3] * multiplier], 3)
    options = windows(rng, list(image.shape[1:3]), kernel)
    options["strideH"] = options["strideW"]
    return [each for each in operands if each], outputs, options | {"depthMultiplier": multiplier}


def dense(rng: np.random.Generator, kind: str) -> Case:
    shape, filters = [int(rng.integers(1, 4)), int(rng.integers(1, 80))], int(rng.integers(1, 20))
    image = quantised(rng, shape) if kind == "int8" else Tensor(shape)
    operands, outputs, _ = products(rng, image, [filters, shape[1]], 0)
    return operands, outputs, {"fusedActivationFunction": int(rng.integers(4))}


def pool(rng: np.random.Generator, kind: str) -> Case:
    image = an_image(rng, kind, int(rng.integers(1, 9)))
    height, width = (min(side, int(rng.integers(1, 5))) for side in image.shape[1:3])
    fields = windows(rng, list(image.shape[1:3]), [height, width])
    del fields["dilationWFactor"], fields["dilationHFactor"]
    return [image], [like(image)], fields | {"filterHeight": height, "filterWidth": width}


def reduction(rng: np.random.Generator, kind: str) -> Case:
    shape = any_shape(rng)
    rank = len(shape)
    axes = rng.choice(rank, int(rng.integers(1, rank + 1)), replace=False)
    axes = np.where(rng.random(len(axes)) < 0.5, axes, axes - rank)
    tensor = quantised(rng, shape) if kind == "int8" else Tensor(shape)
    out = quantised(rng, [], 0.08) if kind == "int8" else Tensor()
    return [tensor, constant(axes)], [out], {"keepDims": bool(rng.random() < 0.5)}


def each(rng: np.random.Generator, kind: str, scale: float = 0.05, zero_point: int | None = None) -> Case:
    shape = any_shape(rng)
    if kind == "float32":
        return [Tensor(shape)], [Tensor()], {}
    out = quantised(rng, [], scale)
    if zero_point is not None:
        out.zero_point = zero_point
    return [quantised(rng, shape)], [out], {}


def softmax(rng: np.random.Generator, kind: str) -> Case:
    return *each(rng, kind, 1 / 256, -128)[:2], {"beta": float(rng.choice([1.0, 0.5, 2.0]))}


def leaky(rng: np.random.Generator, kind: str) -> Case:
    return *each(rng, kind)[:2], {"alpha": float(rng.uniform(0, 0.5))}


def prelu(rng: np.random.Generator, kind: str) -> Case:
    shape = sides(rng, 4)
    slopes = rng.normal(size=[1, 1, shape[3]] if rng.random() < 0.7 else shape[1:])
    if kind == "float32":
        return [Tensor(shape), constant(slopes, kind)], [Tensor()], {}
    return (
        [quantised(rng, shape), constant(np.clip(slopes * 40, -128, 127), kind, scale=0.02)],
        [quantised(rng, [], 0.1)],
        {},
    )


def concatenation(rng: np.random.Generator, kind: str) -> Case:
    shape = any_shape(rng)
    side = int(rng.integers(len(shape)))
    first = any_type(rng, shape)
    others = [
        Tensor([*shape[:side], int(rng.integers(1, 5)), *shape[side + 1 :]], first.dtype, None, first.scale)
        for _ in range(int(rng.integers(0, 4)))
    ]
    for other in others:
        other.zero_point = first.zero_point
    return [first, *others], [like(first)], {"axis": side - len(shape) * int(rng.integers(2))}


def split(rng: np.random.Generator, kind: str) -> Case:
    shape, count = any_shape(rng), int(rng.integers(1, 5))
    side = int(rng.integers(len(shape)))
    shape[side] *= count
    whole = any_type(rng, shape)
    axis = constant(side - len(shape) * int(rng.integers(2)))
    return [axis, whole], [like(whole) for _ in range(count)], {"numSplits": count}


def split_v(rng: np.random.Generator, kind: str) -> Case:
    shape, pieces = any_shape(rng), [int(each) for each in rng.integers(1, 5, int(rng.integers(1, 4)))]
    side = int(rng.integers(len(shape)))
    shape[side] = sum(pieces)
    whole = any_type(rng, shape)
    return ([whole, constant(pieces), constant(side)], [like(whole) for _ in pieces], {"numSplits": len(pieces)})


def pad(rng: np.random.Generator, kind: str) -> Case:
    shape = any_shape(rng)
    whole = any_type(rng, shape)
    return [whole, constant(rng.integers(0, 3, (len(shape), 2)))], [like(whole)], {}


def pad_v2(rng: np.random.Generator, kind: str) -> Case:
    operands, outputs, _ = pad(rng, kind)
    whole = operands[0]
    assert whole
    fill = constant(rng.integers(-9, 9, 1), whole.dtype, scale=whole.scale, zero_point=whole.zero_point)
    return [*operands, fill], outputs, {}


def transpose(rng: np.random.Generator, kind: str) -> Case:
    whole = any_type(rng, any_shape(rng))
    return [whole, constant(rng.permutation(len(whole.shape)))], [like(whole)], {}


def reshape(rng: np.random.Generator, kind: str) -> Case:
    whole = any_type(rng, any_shape(rng))
    shape = [int(np.prod(whole.shape[:2])), *whole.shape[2:]]
    return [whole, constant(shape)], [like(whole)], {"newShape": shape}


def squeeze(rng: np.random.Generator, kind: str) -> Case:
    whole = any_type(rng, [1, *any_shape(rng, 3)])
    return [whole], [like(whole)], {"squeezeDims": [0]}


def expand(rng: np.random.Generator, kind: str) -> Case:
    whole = any_type(rng, any_shape(rng, 3))
    return [whole, constant(int(rng.integers(len(whole.shape) + 1)))], [like(whole)], {}


def strided_slice(rng: np.random.Generator, kind: str) -> Case:
    shape = any_shape(rng)
    whole, masks = any_type(rng, shape), [int(mask) for mask in rng.integers(0, 1 << len(shape), 2)]
    begins, ends, strides = [], [], []
    for side in shape:
        first, last = sorted(int(place) for place in rng.integers(0, side, 2))
        stride = int(rng.integers(1, 3))
        back = rng.random() < 0.3
        begins.append((last if back else first) - side * int(rng.integers(2)))
        ends.append(first - side - 1 if back else last + 1)
        strides.append(-stride if back else stride)
    shrinks = int(rng.integers(0, 1 << len(shape))) if rng.random() < 0.3 and min(strides) > 0 else 0
    if shrinks:
        masks = [0, 0]
    options = {"beginMask": masks[0], "endMask": masks[1], "shrinkAxisMask": shrinks}
    return [whole, *map(constant, (begins, ends, strides))], [like(whole)], options


def plain_slice(rng: np.random.Generator, kind: str) -> Case:
    whole = any_type(rng, any_shape(rng))
    begins = [int(rng.integers(side)) for side in whole.shape]
    counts = [int(rng.integers(1, side - begin + 1)) for side, begin in zip(whole.shape, begins, strict=True)]
    return [whole, constant(begins), constant(counts)], [like(whole)], {}


def resize(rng: np.random.Generator, kind: str) -> Case:
    image = an_image(rng, kind, int(rng.integers(1, 9)))
    corners = int(rng.integers(3))
    size = constant(sides(rng, 2, 20))
    return [image, size], [like(image)], {"alignCorners": corners == 1, "halfPixelCenters": corners == 2}


def quantise(rng: np.random.Generator, kind: str) -> Case:
    whole = Tensor(any_shape(rng)) if kind == "float32" else quantised(rng, any_shape(rng))
    if kind == "uint8":
        whole.dtype, whole.zero_point = kind, int(rng.integers(256))
    out = quantised(rng, [])
    if kind == "uint8" and rng.random() < 0.5:  # the same numbers
        out.scale, out.zero_point = whole.scale, whole.zero_point - 128
    return [whole], [out], {}


def cast(rng: np.random.Generator, kind: str) -> Case:
    numbers = quantised(rng, any_shape(rng))
    if kind == "uint8":
        numbers.dtype, numbers.zero_point = kind, 0
    return [numbers], [Tensor()], {}


def dequantise(rng: np.random.Generator, kind: str) -> Case:
    return [quantised(rng, any_shape(rng))], [Tensor()], {}


FLOATS, BOTH, ALL = ("float32",), ("float32", "int8"), ("float32", "int32", "int8")
CASES: dict[str, tuple[tuple[str, ...], Callable[..., Case]]] = {
    "ADD": (ALL, arithmetic),
    "SUB": (ALL, arithmetic),
    "MUL": (ALL, arithmetic),
    "DIV": (FLOATS, arithmetic),
    "MAXIMUM": (FLOATS, extremes),
    "MINIMUM": (FLOATS, extremes),
    "PRELU": (BOTH, prelu),
    "CONV_2D": (BOTH, conv),
    "DEPTHWISE_CONV_2D": (BOTH, depthwise),
    "FULLY_CONNECTED": (BOTH, dense),
    "AVERAGE_POOL_2D": (BOTH, pool),
    "MAX_POOL_2D": (BOTH, pool),
    "MEAN": (BOTH, reduction),
    "SUM": (FLOATS, reduction),
    "SOFTMAX": (BOTH, softmax),
    "RELU": (BOTH, each),
    "RELU6": (BOTH, each),
    "RELU_N1_TO_1": (FLOATS, each),
    "LEAKY_RELU": (BOTH, leaky),
    "LOGISTIC": (BOTH, lambda rng, kind: each(rng, kind, 1 / 256, -128)),
    "TANH": (BOTH, lambda rng, kind: each(rng, kind, 1 / 128, 0)),
    "CONCATENATION": (("any",), concatenation),
    "SPLIT": (("any",), split),
    "SPLIT_V": (("any",), split_v),
    "PAD": (("any",), pad),
    "PADV2": (("any",), pad_v2),
    "TRANSPOSE": (("any",), transpose),
    "RESHAPE": (("any",), reshape),
    "SQUEEZE": (("any",), squeeze),
    "EXPAND_DIMS": (("any",), expand),
    "STRIDED_SLICE": (("any",), strided_slice),
    "SLICE": (("any",), plain_slice),
    "RESIZE_BILINEAR": (BOTH, resize),
    "RESIZE_NEAREST_NEIGHBOR": (BOTH, resize),
    "QUANTIZE": ((*BOTH, "uint8"), quantise),
    "DEQUANTIZE": (("int8",), dequantise),
    "CAST": (("uint8", "int8"), cast),
}
# int8 is calculated as TFLite's reference kernels do: the same bits. The others go through float32.
EXACT = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "QUANTIZE", "DEQUANTIZE", "CAST", "MAX_POOL_2D"}
EXACT |= {name for name, (kinds, _) in CASES.items() if kinds == ("any",)} | {"RESIZE_NEAREST_NEIGHBOR"}


# --- running them ---------------------------------------------------------------------------------------------


def random_values(rng: np.random.Generator, tensor: Tensor) -> np.ndarray:
    if tensor.dtype == "float32":
        return rng.normal(size=tensor.shape).astype(np.float32) * 3
    ends = np.iinfo(tensor.dtype)
    low, high = ends.min, ends.max + 1
    return rng.integers(low, high, tensor.shape).astype(tensor.dtype)


def make(op: str, kind: str, seed: int) -> tuple[bytes, list[np.ndarray], list[np.ndarray]]:
    """A file with the shapes of its outputs, inputs, and the outputs of TFLite's reference kernels."""
    rng = np.random.default_rng(seed)
    operands, outputs, options = CASES[op][1](rng, kind)
    inputs = [random_values(rng, tensor) for tensor in operands if tensor and tensor.data is None]
    wanted = in_litert(dumps(op, operands, outputs, **options), inputs)
    for tensor, values in zip(outputs, wanted, strict=True):
        tensor.shape = values.shape
    return dumps(op, operands, outputs, **options), inputs, wanted


def run(program: tuple[str, ...], folder: Path, model: bytes, inputs: list[np.ndarray], *more: str) -> bytes:
    paths = [folder / name for name in ("model.tflite", "in", "out")]
    paths[0].write_bytes(model)
    paths[1].write_bytes(b"".join(values.tobytes() for values in inputs))
    files = (f"--graph={paths[0]}", f"--input_file={paths[1]}", f"--output_file={paths[2]}")
    done = subprocess.run((*program, *files, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return paths[2].read_bytes()


def compare(program: tuple[str, ...], folder: Path, op: str, kind: str, seed: int, *more: str) -> None:
    model, inputs, wanted = make(op, kind, seed)
    told = run(program, folder, model, inputs, *more)
    assert len(told) == sum(values.nbytes for values in wanted)
    for values in wanted:
        got = np.frombuffer(told[: values.nbytes], values.dtype).reshape(values.shape)
        told = told[values.nbytes :]
        if values.dtype == np.float32:
            np.testing.assert_allclose(got, values, rtol=2e-5, atol=2e-5, err_msg=f"seed {seed}")
        elif values.dtype == np.int8 and op not in EXACT:
            steps = 2 if op == "RESIZE_BILINEAR" else 1  # the reference kernel rounds the places of pixels to 10 bits
            assert np.abs(got.astype(int) - values).max() <= steps, f"seed {seed}"
        else:
            np.testing.assert_array_equal(got, values, err_msg=f"seed {seed}")


@pytest.mark.parametrize(("op", "kind"), [(op, kind) for op, (kinds, _) in CASES.items() for kind in kinds])
def test_an_operator_gives_the_numbers_of_litert(
    sanitized_benchmark: tuple[str, ...], tmp_path: Path, op: str, kind: str
) -> None:
    for seed in range(TRIES):
        compare(sanitized_benchmark, tmp_path, op, kind, seed, *(("--num_threads=2",) if seed % 4 == 0 else ()))


def test_on_arm_the_numbers_are_the_same(arm: tuple[str, ...], tmp_path: Path) -> None:
    for op, (kinds, _) in CASES.items():
        compare(arm, tmp_path, op, kinds[-1], 100)


@pytest.mark.parametrize("name", ["mean-softmax", "int8-io"])
def test_files_of_larq_run_as_on_litert(sanitized_benchmark: tuple[str, ...], tmp_path: Path, name: str) -> None:
    model = (CASES_FOLDER / f"{name}.tflite").read_bytes()
    with lce_cases.silent():
        interpreter = lce_cases.open_litert(model, str(native.library()))
    (given,) = interpreter.get_input_details()
    rng = np.random.default_rng(0)
    for _ in range(10):
        values = random_values(rng, Tensor(given["shape"], np.dtype(given["dtype"]).name))
        wanted = lce_cases.run_litert(interpreter, values)
        got = np.frombuffer(run(sanitized_benchmark, tmp_path, model, [values]), wanted.dtype).reshape(wanted.shape)
        if wanted.dtype == np.int8:  # XNNPACK rounds int8 otherwise than TFLite's kernels; a bit that falls here counts
            assert np.abs(got.astype(int) - wanted).max() <= 2 and (got == wanted).mean() >= 0.9
        else:
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


# --- what can go wrong -----------------------------------------------------------------------------------------


def refusal(program: tuple[str, ...], path: Path) -> str:
    """The error of a file that is refused, one line; empty: it is run."""
    command = (*program, f"--graph={path}", "--num_runs=1", "--min_secs=0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == len(lines) and all(line.startswith("ERROR: ") for line in lines), done.stderr[-2000:]
    return "".join(lines)


def test_all_operators_that_are_lacking_are_named_at_once(sanitized_benchmark: tuple[str, ...], tmp_path: Path) -> None:
    lacking, path = (
        [name for name in OPERATORS.values() if name not in CASES and name != "CUSTOM"],
        tmp_path / "lacking",
    )
    codes = {name: code for code, name in OPERATORS.items()}
    for first in range(0, len(lacking), 20):
        names = lacking[first : first + 20]
        model = tflite.parse_model(dumps("TANH", [Tensor([1])], [Tensor([1])]))
        model["operator_codes"] = [
            {"deprecated_builtin_code": min(codes[name], 127), "builtin_code": codes[name]} for name in names
        ]
        model["operator_codes"].append({"deprecated_builtin_code": 32, "builtin_code": 32, "custom_code": "Conv2D"})
        (graph,) = model["subgraphs"]
        count = 20 if len(names) == 20 else len(names) + 1
        graph["operators"] = [graph["operators"][0] | {"opcode_index": index} for index in range(count)] * 2
        path.write_bytes(_flatbuffer.dumps(model))
        named = ", ".join(names + ["custom Conv2D"] * (count - len(names)))
        assert refusal(sanitized_benchmark, path) == (
            f"ERROR: it needs operators that dmsflow's benchmark program lacks: {named}; "
            "run it on LiteRT, or where there is none (a phone) give LCE's lce_benchmark_model as --runner-file"
        )


@pytest.mark.parametrize(
    ("op", "operands", "options", "what"),
    [
        ("MEAN", [Tensor([2, 3]), constant([2])], {}, "MEAN along side 2 of 2"),
        ("MEAN", [Tensor([2, 3]), Tensor([1], "int32")], {}, "no constant"),
        ("MEAN", [Tensor([2, 3])], {}, "MEAN has 1 inputs"),
        ("CONCATENATION", [Tensor([2, 3])], {"axis": 9}, "a side that is not there"),
        ("CONCATENATION", [Tensor([2, 3]), Tensor([2, 3, 1])], {"axis": 0}, "shapes that do not fit"),
        ("SPLIT", [constant(7), Tensor([2, 3])], {"numSplits": 1}, "a side that is not there"),
        ("TRANSPOSE", [Tensor([2, 3]), constant([0, 0])], {}, "shapes that do not fit"),
        ("SLICE", [Tensor([2, 3]), constant([-1, 0]), constant([1, 1])], {}, "shapes that do not fit"),
        ("STRIDED_SLICE", [Tensor([2, 3]), *[constant([0, 0])] * 3], {}, "a stride of 0"),
        ("ADD", [Tensor([2, 3]), Tensor([2, 4])], {}, "shapes that do not fit"),
        ("ADD", [Tensor([2, 3]), Tensor([2, 3], "int32")], {}, "types of numbers"),
        ("RELU", [Tensor([2, 0])], {}, "empty or too large"),
        ("RELU", [Tensor([1 << 20, 1 << 20])], {}, "empty or too large"),
        ("RELU", [Tensor([2, 3], "int8")], {}, "int8 without a scale"),
        ("RELU", [Tensor([2, 3], "uint8")], {}, "uint8 without a scale"),
        (
            "RELU",
            [Tensor([2, 3], "uint8", scale=1.0)],
            {},
            "RELU on uint8, which this program only takes to make int8 or float32",
        ),
        ("QUANTIZE", [Tensor([2, 3], "int8", scale=[1.0, 2.0])], {}, "QUANTIZE with a scale for each channel"),
        ("RELU", [Tensor([2, 3], "float16")], {}, "is float16; this program takes float32, int32 and int8"),
        ("RESHAPE", [Tensor([7, 3])], {}, "shapes that do not fit"),
        ("RESIZE_BILINEAR", [Tensor([2, 3]), constant([1, 1])], {}, "shapes that do not fit"),
        ("RESIZE_BILINEAR", [Tensor([1, 9, 9, 5]), constant([2, 3])], {}, "shapes that do not fit"),
        ("PAD", [Tensor([2, 3]), constant([[0, 0], [0, -1]])], {}, "shapes that do not fit"),
        ("PAD", [Tensor([2, 3]), constant([[2**31 - 1, 2**31 - 1]] * 2)], {}, "shapes that do not fit"),
        ("DEPTHWISE_CONV_2D", [Tensor([1, 2, 2, 3]), constant(np.ones((1, 1, 1, 3)), "float32")], {}, "a stride"),
        ("SOFTMAX", [Tensor([2, 3]), Tensor([2, 3])], {}, "SOFTMAX has 2 inputs"),
    ],
)
def test_a_file_that_lies_is_refused_in_a_line(
    sanitized_benchmark: tuple[str, ...],
    tmp_path: Path,
    op: str,
    operands: list[Tensor],
    options: dict[str, Any],
    what: str,
) -> None:
    path = tmp_path / "lie.tflite"
    path.write_bytes(dumps(op, operands, [Tensor([2, 3])], **options))
    assert what in refusal(sanitized_benchmark, path)


def test_damaged_operators_are_refused_or_run(sanitized_benchmark: tuple[str, ...], tmp_path: Path) -> None:
    path, told = tmp_path / "damaged.tflite", {True: 0, False: 0}
    for number, (op, (kinds, _)) in enumerate(CASES.items()):
        whole = make(op, kinds[-1], 200)[0]
        rng = np.random.default_rng(number)
        for _ in range(12):
            data = bytearray(whole)
            for _ in range(int(rng.integers(1, 4))):
                at = 4 * int(rng.integers(len(data) // 4))
                number = rng.choice([0, 1, 2, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, rng.integers(len(whole))])
                data[at : at + 4] = int(number).to_bytes(4, "little")
            path.write_bytes(data)
            told[bool(refusal(sanitized_benchmark, path))] += 1
    assert min(told.values()) > 20, told

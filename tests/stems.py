"""Files of an int8 stem, as dmsflow writes them, random ones, and what they calculate.

[QUANTIZE of uint8 pixels, or of float32 ones,] [PAD or PADV2,] CONV_2D of int8 with all scales 1 and int32 biases,
LceQuantize.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from lce_cases import BITS, BYTES, FLOATS, PIXELS, Graph, Node, Tensor, words

from dmsflow import native
from dmsflow.deploying import integer_graph
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters.lce import SAME, VALID, LceWriter, pack

CONV_OPTIONS, PAD_OPTIONS, SUB_OPTIONS, PAD_V2_OPTIONS = 1, 22, 28, 43  # in tflite.OPTIONS
SIDES = 4  # of an image
TAKEN = pytest.mark.skipif(native.kernels() == "portable", reason="portable kernels leave stems to the runtime")


@dataclass
class Stem:
    """A stem.

    Attributes:
        weights: int8 [filters, height, width, channels].
        thresholds: int32 [filters], with a sum of products below its threshold, bit 1.
        zero: the pixel that counts as 0.
        fill: the pixel around the image, by a PADV2. None: `zero`, by a PAD.
        pads: pixels around the image: above, below, left, right. None: as TFLite's SAME has it, without a `fill`.
        dtype: of the input: PIXELS, FLOATS, or BYTES without a QUANTIZE.
        by_channel: whether each filter has a scale of its own.
    """

    image: tuple[int, int, int, int]
    weights: np.ndarray
    thresholds: np.ndarray
    zero: int = 0
    fill: int | None = 121
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] | None = (0, 0, 0, 0)
    dtype: str = PIXELS
    by_channel: bool = False

    def placed(self) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """The pixels around the image, and the size of the output."""
        sides = list(zip(self.image[1:3], self.weights.shape[1:3], self.stride, strict=True))
        if self.pads is not None:
            around, (above, below, left, right) = self.pads, self.pads
            extra = above + below, left + right
            size = [(side + more - reach) // step + 1 for (side, reach, step), more in zip(sides, extra, strict=True)]
            return around, (size[0], size[1])
        size = [-(-side // step) for side, _, step in sides]
        missing = [
            max((count - 1) * step + reach - side, 0) for count, (side, reach, step) in zip(size, sides, strict=True)
        ]
        up, left = missing[0] // 2, missing[1] // 2
        return (up, missing[0] - up, left, missing[1] - left), (size[0], size[1])

    def graph(self) -> Graph:
        quantized = {"scale": 1.0, "zero_point": self.zero - 128}
        offset = {PIXELS: self.zero, BYTES: self.zero - 128}
        scaled = {"scale": 1.0, "zero_point": offset[self.dtype]} if self.dtype in offset else {}
        graph = Graph([Tensor(self.image, self.dtype, **scaled)], [])
        at = 0
        if self.dtype == FLOATS and self.zero:
            zero, at = graph.constant(np.array([self.zero], np.float32)), graph.add(self.image, FLOATS)
            graph.nodes.append(Node("SUB", [0, zero], at, {}, SUB_OPTIONS))
        if self.dtype != BYTES:
            graph.nodes.append(Node("QUANTIZE", [at], graph.add(self.image, BYTES, **quantized)))
            at = graph.nodes[-1].output
        if self.pads and any(self.pads):
            at = self.add_pad(graph, at, quantized)
        sums = self.add_conv(graph, at)
        filters = len(self.weights)
        bits = graph.add((*graph.tensors[sums].shape[:3], words(filters)), BITS)
        graph.nodes.append(Node("LceQuantize", [sums], bits))
        return graph

    def add_pad(self, graph: Graph, image: int, quantized: dict[str, float]) -> int:
        """Append the PAD or PADV2; the number of its output."""
        assert self.pads
        batch, height, width, channels = self.image
        above, below, left, right = self.pads
        inputs = [image, graph.constant(np.array([[0, 0], [above, below], [left, right], [0, 0]], np.int32))]
        if self.fill is not None:
            inputs.append(graph.constant(np.array([self.fill - 128], np.int8), **quantized))
        padded = graph.add((batch, height + above + below, width + left + right, channels), BYTES, **quantized)
        op, kind = ("PAD", PAD_OPTIONS) if self.fill is None else ("PADV2", PAD_V2_OPTIONS)
        graph.nodes.append(Node(op, inputs, padded, {}, kind))
        return padded

    def add_conv(self, graph: Graph, image: int) -> int:
        """Append the CONV_2D; the number of its output."""
        filters = len(self.weights)
        scale = np.ones(filters if self.by_channel else 1)
        inputs = [image, graph.constant(self.weights, scale=scale), graph.constant(-self.thresholds, scale=scale)]
        output = graph.add((self.image[0], *self.placed()[1], filters), BYTES, scale=1.0)
        options = {"padding": SAME if self.pads is None else VALID, "stride_w": self.stride[1]}
        options |= {"stride_h": self.stride[0], "dilation_w_factor": 1, "dilation_h_factor": 1}
        graph.nodes.append(Node("CONV_2D", inputs, output, options, CONV_OPTIONS))
        return output

    def values(self, rng: np.random.Generator) -> np.ndarray:
        """Random pixels, as the file takes them."""
        values = rng.integers(0, 256, self.image)
        return (values - 128 if self.dtype == BYTES else values).astype(self.dtype)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of products, minus thresholds, int64 [batch, height, width, filters]."""
        pixels = values.astype(np.int64) - (self.zero - 128 if self.dtype == BYTES else self.zero)
        fill = 0 if self.fill is None else self.fill - self.zero
        (above, below, left, right), (height, width) = self.placed()
        pixels = np.pad(pixels, ((0, 0), (above, below), (left, right), (0, 0)), constant_values=fill)
        total = np.zeros((self.image[0], height, width, len(self.weights)), np.int64)
        for y, x in np.ndindex(*self.weights.shape[1:3]):
            seen = pixels[:, y : y + (height - 1) * self.stride[0] + 1 : self.stride[0]]
            seen = seen[:, :, x : x + (width - 1) * self.stride[1] + 1 : self.stride[1]]
            total += seen @ self.weights[:, y, x].astype(np.int64).T
        return total - self.thresholds

    def bits(self, values: np.ndarray) -> np.ndarray:
        return pack(self.sums(values) < 0)


def random_stem(rng: np.random.Generator) -> Stem:
    """Of any shape; some of its thresholds are met exactly, some never."""
    channels, kernel = (
        int(rng.choice([1, 3, 3, 4])),
        (int(rng.choice([1, 3, 3, 5, 7])), int(rng.choice([1, 3, 3, 5, 7]))),
    )
    height, width = (int(side) for side in rng.integers(1, 20, 2))
    pads = None if rng.random() < 0.4 else tuple(int(pad) for pad in rng.integers(0, 4, SIDES))
    if pads:  # so that the filter fits
        height, width = max(height, kernel[0]), max(width, kernel[1])
    filters = int(rng.integers(1, 150))
    weights = rng.integers(-127, 128, (filters, *kernel, channels))
    if rng.random() < 0.3:
        weights = rng.choice([-127, 127], weights.shape)
    made = Stem(
        (int(rng.choice([1, 1, 2])), height, width, channels),
        weights.astype(np.int8),
        np.zeros(filters, np.int32),
        zero=int(rng.choice([0, 0, 255, rng.integers(256)])),
        fill=int(rng.integers(256)) if pads and rng.random() < 0.6 else None,
        stride=(int(rng.integers(1, 3)), int(rng.integers(1, 3))),
        pads=pads,
        dtype=str(rng.choice([PIXELS, PIXELS, FLOATS, BYTES])),
        by_channel=bool(rng.random() < 0.5),
    )
    sums = made.sums(made.values(rng)).reshape(-1, filters)
    thresholds = sums[rng.integers(len(sums), size=filters), np.arange(filters)] + rng.integers(-1, 2, filters)
    rare = rng.random(filters) < 0.1
    thresholds[rare] = rng.choice([-(2**24), 2**24], rare.sum())
    return replace(made, thresholds=thresholds.astype(np.int32))


def random_float_stem(
    rng: np.random.Generator, pixels: str = PIXELS, means: tuple[int, ...] | None = None
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file whose stem puts out its sums as floats, as dmsflow writes it, an image, and these sums."""
    channels, kernel = int(rng.choice([1, 3, 3, 4])), int(rng.choice([1, 3, 3, 5, 7]))
    size, filters = int(rng.integers(kernel, kernel + 20)), int(rng.integers(1, 150))
    stem = integer_graph.Stem(
        name="stem",
        inputs=("input",),
        weight=rng.integers(-127, 128, (filters, kernel, kernel, channels), np.int8),
        stride=int(rng.integers(1, 3)),
        padding=int(rng.integers(0, kernel // 2 + 1)),
        mean=np.array(means or [rng.integers(256)] * channels, np.float32)[:channels],
    )
    graph = integer_graph.IntegerGraph(
        name="stem", channels=channels, resolution=size, classes=filters, ops=(stem,), pixels=pixels
    )
    image = rng.integers(0, 256, (1, size, size, channels)).astype(pixels)
    sums = integer_graph.compute_op(stem, image.astype(np.float32))
    return _flatbuffer.dumps(LceWriter(graph).model()), image, sums

"""Writes a float32 network as an .onnx file in int8, by onnxruntime's own static quantisation: the rival of a 1-bit one.

Weights are int8 with a scale for each output channel, activations uint8 with one for each tensor. Only the
normalisation of the pixels is float. Of what onnxruntime offers, this was best for a VGG-11 and a ResNet-18 on CIFAR-10
(10,000 and 4,000 test images; about 2 % change their class, top-1 moves by no more than 0.3 points; docs/results.md):

- the smallest and largest values as range (MinMax). Entropy finds the same; Percentile changes 2 to 4 % of the classes.
- 7 bits of the weights (`reduce_range`). On x86-64 without VNNI, as most PCs of before 2020 are, sums of 8 bits saturate:
  these change 21 % of the classes on an AMD EPYC with AVX2 alone. Elsewhere they change 1.7 %, and 7 bits 2.2 %, in
  the same time. Weights of uint8 do not saturate and change 1.7 %, but take 15 % longer there.
- every layer in int8. With the first or the last in float 1.4 to 1.6 % change; a float first layer is a little
  quicker at 32 pixels, and makes the network slower by half at 224.
- Q and DQ nodes, which other runtimes read too: as operators, the logits and times are the same, and the file 2 to 4 % smaller.
- ReLUs in front of max pools, and the mean and std of pixels spread over a row of them: otherwise onnxruntime leaves
  float max pools between int8 convolutions, and takes more time for the pixels than for the first layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying.exporters._onnx_float32 import write_float as write_float32
from dmsflow.deploying.exporters.onnx import layer_bytes as layer_bytes
from dmsflow.deploying.folding import Weights
from dmsflow.files import writing
from dmsflow.modelfile.onnx_reader import import_onnx
from dmsflow.network.network import INPUT, Network

REQUIRES: tuple[str, ...] = ("onnx", "onnxruntime")
PRECISION = "int8"
CALIBRATION_IMAGES = 256
MOST_CHANGED_PERCENT = 10.0  # trained networks change 2; beyond this, quantisation has broken one
PREPARED = {"key": "onnx.quant.pre_process", "value": "onnxruntime.quant"}  # shapes are fixed and batch norms folded


def write_float(
    network: Network,
    widths: Mapping[str, int],
    weights: Weights,
    mean: Any,
    std: Any,
    path: Path,
    images: NDArray[np.uint8],
) -> None:
    """Write a float32 network in int8; arguments and errors as of `onnx.write_float`.

    Args:
        images: [N, H, W, C] for calibration; the same ones give the same file.
    """
    onnx = import_onnx()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            return next(({INPUT: image[None].astype(np.float32)} for image in self.left), None)

    with tempfile.TemporaryDirectory() as folder:
        write_float32(network, widths, weights, mean, std, Path(folder, "float.onnx"))
        model = onnx.load(Path(folder, "float.onnx"))
    model.metadata_props.add(**PREPARED)
    _put_relus_first(model.graph)
    for constant in model.graph.initializer:
        if constant.name in ("input.mean", "input.std"):  # [C, 1, 1] -> [C, 1, W]
            row = np.repeat(onnx.numpy_helper.to_array(constant), network.resolution, 2)
            constant.CopyFrom(onnx.numpy_helper.from_array(row, constant.name))
    types = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    with writing(path) as partial:
        quantization.quantize_static(model, partial, Reader(), per_channel=True, reduce_range=True, **types)


def _put_relus_first(graph: Any) -> None:
    """Exchange each max pool that only a ReLU reads with that ReLU: the same function."""
    pools = {node.output[0]: node for node in graph.node if node.op_type == "MaxPool"}
    read = [name for node in graph.node for name in node.input]
    for node in graph.node:
        if node.op_type == "Relu" and node.input[0] in pools and read.count(node.input[0]) == 1:
            pool = pools[node.input[0]]
            pool.op_type, node.op_type = "Relu", "MaxPool"
            node.attribute.extend(pool.attribute)
            del pool.attribute[:]

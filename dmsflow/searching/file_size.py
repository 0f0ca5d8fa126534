"""The size of the .tflite file that a network becomes, before it is trained: constants, padded to words, and the graph.

The constants follow from the widths. The rest, tensors, operators and names, hardly depends on them: it is measured
once, on a file that the exporter writes of the network with few channels and random weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dmsflow.deploying import folding
from dmsflow.deploying.exporters import _flatbuffer
from dmsflow.deploying.exporters.lce import LceWriter
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.network.blocks import FusedBlock, fused_blocks
from dmsflow.network.cost import FLOAT_BYTES, PER_CHANNEL
from dmsflow.network.network import QUANTISERS, WORD, Network, value

KIB = 1024
FEW_CHANNELS = 8  # of every layer of the file that is written to measure the graph


def _words(channels: Any) -> Any:
    """Words of 32 bits for some channels; the derivative of a step would be zero, so of a tensor there is none."""
    return channels / WORD if hasattr(channels, "detach") else math.ceil(channels / WORD)


class FileSize:
    """Predicts the bytes of the file of a network at any widths, to 2 %."""

    def __init__(self, network: Network) -> None:
        self.network, self.blocks = network, fused_blocks(network)

    @functools.cached_property
    def graph_bytes(self) -> int:
        """All but the constants, in a file of few channels."""
        network, widths = self.network, dict.fromkeys(self.network.widths, FEW_CHANNELS)
        noise = np.random.default_rng(0)
        # Equal constants are stored once, and those of a trained network never are equal.
        weights = {
            name: (array + noise.uniform(0.01, 0.3, array.shape)).astype(np.float32) if array.ndim == 1 else array
            for name, array in draw_weights(network, widths).items()
        }
        graph = folding.fold(network, widths, weights, np.zeros(network.channels), np.ones(network.channels))
        return len(_flatbuffer.dumps(LceWriter(graph).model())) - int(self.constant_bytes(widths))

    def kib(self, widths: Mapping[str, Any]) -> Any:
        """KiB of the file; of tensors a smooth stand-in, in which words are not whole."""
        return (self.constant_bytes(widths) + self.graph_bytes) / KIB

    def kib_without_steps(self, widths: Mapping[str, Any]) -> Any:
        """The same with words that are not whole: never more, and with a slope everywhere."""
        return (self.constant_bytes(widths, lambda channels: channels / WORD) + self.graph_bytes) / KIB

    def constant_bytes(self, widths: Mapping[str, Any], words: Callable[[Any], Any] = _words) -> Any:
        """Bytes of weights, thresholds and factors."""
        channels = [(value(widths, block.reads), value(widths, block.writes)) for block in self.blocks]
        return sum(_constants(block, *both, words) for block, both in zip(self.blocks, channels, strict=True))


def _constants(block: FusedBlock, reads: Any, writes: Any, words: Callable[[Any], Any]) -> Any:
    """Bytes of the constants of a fused block, at channels that are whole or not; `words` of 32 bits for channels."""
    ops, kernel = {layer.op for layer in block.layers}, block.layers[0].kernel
    to_bits = not ops.isdisjoint(QUANTISERS)
    per_channel = 1 if to_bits else 2  # a threshold, or a factor and a bias
    match block.op:
        case "conv" if not block.reads_image:  # the batch norm is part of the weights and the bias
            thresholds = writes if "sign" in ops else int(to_bits)
            return FLOAT_BYTES * (kernel**2 * reads * writes / block.layers[0].groups + writes + thresholds)
        case "depthwise_conv":
            return FLOAT_BYTES * (kernel**2 + 1) * reads
        case "conv":  # with the mean of the image; the bias is there beside a factor and a bias too
            after = 0 if to_bits or "batch_norm" not in ops else 2 * writes
            weights = block.layers[0].bits // 8 * kernel**2 * reads * writes
            return weights + FLOAT_BYTES * (writes + reads + after)
        case "binary_conv":
            ones = words(writes) if to_bits and "max_pool" in ops else 0  # which a pool of bits is inverted with
            weights = kernel**2 * words(reads) * writes / block.layers[0].groups
            return FLOAT_BYTES * (weights + per_channel * writes + ones)
        case "batch_norm":
            return FLOAT_BYTES * 2 * reads
        case "quantize":
            return FLOAT_BYTES
        case "sign" | "prelu":
            return FLOAT_BYTES * PER_CHANNEL[block.op] * reads
        case _:
            dense = block.layers[-1]
            return (dense.bits // 8 * reads + FLOAT_BYTES) * writes if dense.op == "dense" else 0

"""Weights, and files, of networks that are only timed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmsflow.deploying import folding
from dmsflow.deploying.target import Target
from dmsflow.measuring.devices import File
from dmsflow.network.network import Network, out_widths, value, weight_shape
from dmsflow.plugin import load_plugin

FEW = 4  # images for calibration: ranges change no time


def draw_weights(network: Network, widths: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
    """Weights as a training could leave them, for measuring time: activations keep a normal size."""
    random = np.random.default_rng(0)
    keys = out_widths(network)
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in network.layers:
        c_in, c_out = (value(widths, keys[name]) for name in (layer.inputs[0], layer.name))
        if shape := weight_shape(layer, c_in, c_out):
            deviation = np.float32((2 / math.prod(shape[1:])) ** 0.5)
            weights[f"{layer.name}.weight"] = random.standard_normal(shape, np.float32) * deviation
        if layer.op == "dense":
            weights[f"{layer.name}.bias"] = np.zeros(c_out, np.float32)
        if layer.op == "quantize":
            weights[f"{layer.name}.alpha"] = np.array(random.uniform(0.9, 1.1), np.float32)  # no two equal
        if layer.op == "sign":
            weights[f"{layer.name}.shift"] = random.uniform(-0.1, 0.1, c_out).astype(np.float32)
        if layer.op == "prelu":
            for name, low, high in (("slope", 0.1, 0.4), ("before", -0.1, 0.1), ("after", -0.1, 0.1)):
                weights[f"{layer.name}.{name}"] = random.uniform(low, high, c_out).astype(np.float32)
        if layer.op == "batch_norm":
            for name, constant in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                weights[f"{layer.name}.{name}"] = np.full(c_out, constant, np.float32)
    return weights


def write_random(target: Target, precision: str, network: Network, widths: Mapping[str, int], stem: Path) -> File:
    """Write a network with random weights, as export would; `stem` is its path without the target's suffix."""
    path, exporter = Path(f"{stem}{target.suffix}"), load_plugin("exporters", target.exporter)
    weights = draw_weights(network, widths)
    mean, std = (128,) * network.channels, (64.0,) * network.channels
    if precision == "float":
        count = min(getattr(exporter, "CALIBRATION_IMAGES", 0), FEW)
        shape = count, network.resolution, network.resolution, network.channels
        images = [np.random.default_rng(1).integers(0, 256, shape, np.uint8)] if count else []
        exporter.write_float(network, widths, weights, mean, std, path, *images)
    else:
        exporter.write(folding.fold(network, widths, weights, mean, std), path)
    return File(path=str(path), runner=target.runner)

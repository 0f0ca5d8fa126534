"""The integer graph against the plain mathematics in float64."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from made_up import MEAN, STD, odd_widths, pixels, plain, small_network, trained

from dmsflow.deploying import folding, integer_graph
from dmsflow.deploying.exporters import lce
from dmsflow.deploying.size_report import measure_ops
from dmsflow.network.architectures import resnet18, vgg11
from dmsflow.network.network import INPUT, Layer, Network
from dmsflow.network.profile import Granularity

CHAIN = Network(
    name="chain",
    channels=1,
    resolution=3,
    classes=2,
    widths={"a": 1, "b": 1},
    layers=(
        Layer(name="stem", op="conv", inputs=(INPUT,), width="a"),
        Layer(name="quantize1", op="quantize", inputs=("stem",)),
        Layer(name="conv", op="binary_conv", inputs=("quantize1",), width="b", kernel=3),
        Layer(name="norm", op="batch_norm", inputs=("conv",)),
        Layer(name="quantize2", op="quantize", inputs=("norm",)),
        Layer(name="last", op="binary_conv", inputs=("quantize2",), width="b"),
        Layer(name="average", op="average_pool", inputs=("last",)),
        Layer(name="dense", op="dense", inputs=("average",), width=2),
    ),
)


# --- what the integer graph computes --------------------------------------------------------------


@pytest.mark.parametrize(("seed", "magnitude"), [(0, 1.0), (1, 1e-3), (2, 300.0)])
def test_vgg11_is_the_trained_network(seed, magnitude):
    network = vgg11.build(3, 32, 10)
    widths, images = odd_widths(network, seed), pixels(network, 60)
    weights = trained(network, widths, seed, magnitude, images)
    form = folding.fold(network, widths, weights, MEAN, STD)
    expected = plain(network, weights, images)
    assert expected.std(0).min() > 0.1  # the images do differ
    np.testing.assert_allclose(integer_graph.compute_logits(form, images), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("seed", "magnitude"), [(0, 1.0), (1, 20.0)])
def test_resnet18_is_the_trained_network_but_for_float32_sums(seed, magnitude):
    network = resnet18.build(3, 32, 10)
    widths, images = odd_widths(network, seed), pixels(network, 40)
    weights = trained(network, widths, seed, magnitude, images)
    form = folding.fold(network, widths, weights, MEAN, STD)
    moved = abs(integer_graph.compute_logits(form, images) - plain(network, weights, images)).max(1) > 1e-3
    assert moved.sum() <= 2  # a residual sum within float32's rounding of alpha / 2


@pytest.mark.parametrize("seed", range(12))
def test_small_networks_are_the_trained_ones(seed):
    network = small_network(seed)
    images = pixels(network, 8)
    weights = trained(network, network.widths, seed, images=images)
    form = folding.fold(network, network.widths, weights, MEAN, STD)
    np.testing.assert_allclose(
        integer_graph.compute_logits(form, images), plain(network, weights, images), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("build", [vgg11.build, resnet18.build])
def test_images_of_224_pixels(build):
    network = build(3, 224, 5)
    widths = {name: 3 + 2 * index for index, name in enumerate(network.widths)}
    images = pixels(network, 2)
    weights = trained(network, widths, 3, images=images)
    form = folding.fold(network, widths, weights, MEAN, STD)
    np.testing.assert_allclose(
        integer_graph.compute_logits(form, images), plain(network, weights, images), rtol=1e-4, atol=1e-3
    )


def test_images_are_computed_one_by_one(monkeypatch):
    network = vgg11.build(3, 32, 10)
    images = pixels(network, 5)
    form = folding.fold(network, network.widths, trained(network, network.widths, images=images), MEAN, STD)
    whole = integer_graph.compute_logits(form, images)
    monkeypatch.setattr(integer_graph, "CHUNK", 1)
    np.testing.assert_allclose(integer_graph.compute_logits(form, images), whole, rtol=1e-6)
    assert integer_graph.compute_logits(form, images[:0]).shape == (0, 10)


def test_the_examples_of_the_docstrings():
    for module in (integer_graph, lce):
        results = doctest.testmod(module)
        assert results.attempted and not results.failed


# --- sizes ----------------------------------------------------------------------------------------------


def test_sizes_count_bits_and_words():
    widths = {"a": 3, "b": 5}
    rows = measure_ops(folding.fold(CHAIN, widths, trained(CHAIN, widths), (0,), (1.0,)), Granularity())
    assert [(row.layer, row.binary_bytes, row.float_bytes) for row in rows] == [
        ("stem", 0, 4 * (3 + 1 + 3)),  # weights, mean, thresholds
        ("conv", math.ceil(3 * 9 * 5 / 8), 4 * 5),  # thresholds
        ("last", math.ceil(5 * 5 / 8), 4 * (5 + 5)),  # a multiplier and a bias
        ("dense", 0, 4 * (5 * 2 + 2)),
    ]

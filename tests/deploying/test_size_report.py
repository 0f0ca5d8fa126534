"""The size report of an export, and its warnings: there where something is wasted, and silent elsewhere."""

from __future__ import annotations

import pytest

from dmsflow.deploying import folding, integer_graph, size_report
from dmsflow.deploying.exporters.lce import GRANULARITY
from dmsflow.importing import load_network
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.network.network import Network
from dmsflow.network.profile import Granularity

MEAN, STD = (128.0, 128.0, 128.0), (64.0, 64.0, 64.0)


def form_of(network: Network, widths: dict[str, int]) -> integer_graph.IntegerGraph:
    return folding.fold(network, widths, draw_weights(network, widths), MEAN, STD)


def find_warnings(name: str, widths: tuple[int, ...], steps: Granularity = GRANULARITY) -> list[str]:
    network = load_network(name, 3, 32, 10)
    form = form_of(network, dict(zip(network.widths, widths, strict=True)))
    return size_report.find_warnings(form, size_report.measure_ops(form, steps), steps)


def test_widths_on_edges_are_silent() -> None:
    assert find_warnings("vgg11", (32, 64, 96, 64, 128, 128, 128, 128)) == []


def test_a_width_just_over_an_edge_is_reported_with_the_edges_around_it() -> None:
    (read,) = find_warnings("vgg11", (32, 97, 96, 64, 128, 128, 128, 128))
    assert read == (
        "conv2: 97 channels read as 128: 24% of their stored weights and work is padding; use 96 or 128 (search --file-kib counts padding)"
    )
    narrow = find_warnings("vgg11", (32, 64, 96, 64, 17, 128, 128, 128))
    assert any(line.startswith("conv5: 17 channels read as 32: 47%") for line in narrow)
    assert (
        "conv4: 17 channels written as 24: 29% of the work is padding; use 16 or 24 (search --file-kib counts padding)"
        in narrow
    )


def test_kernels_without_steps_waste_nothing() -> None:
    assert find_warnings("vgg11", (33, 97, 95, 65, 129, 127, 17, 128), Granularity()) == []


def test_a_float_layer_that_dominates_is_reported() -> None:
    lines = find_warnings("vgg11", (16, 16, 16, 16, 16, 16, 16, 512), Granularity())
    assert [line.partition(":")[0] for line in lines] == ["dense"]
    assert "use fewer channels in the layer before it to make it smaller" in lines[0]


def test_floats_between_binary_convolutions_are_reported_in_one_line() -> None:
    network = load_network("resnet18", 3, 32, 10)
    lines = find_warnings("resnet18", tuple(network.widths.values()), Granularity())
    assert len(lines) == 1
    assert lines[0].startswith("stage0_block0_conv2, stage0_block1_conv2, ")
    assert " and 8 more: writes float32, 32 times the bits, for an addition; a quantizer directly behind" in lines[0]


def test_floats_for_a_depthwise_convolution_are_not_reported() -> None:
    network = load_network("mobilenet", 3, 32, 10)
    assert not [
        line for line in find_warnings("mobilenet", tuple(network.widths.values()), Granularity()) if "32 times" in line
    ]


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mobilenet"])
def test_the_account_adds_up(name: str) -> None:
    network = load_network(name, 3, 32, 10)
    form = form_of(network, {key: base + 1 for key, base in network.widths.items()})
    rows = size_report.measure_ops(form, GRANULARITY)
    assert [(row.binary_bytes, row.float_bytes) for row in rows] == [
        (each.binary_bytes, each.float_bytes) for each in size_report.measure_ops(form, Granularity())
    ]
    for row in rows:
        assert row.padded_bytes >= row.binary_bytes
        if row.op == "BinaryConv":
            assert row.padded_reads % 32 == row.padded_writes % 8 == 0
            assert row.shape.endswith(f"×{row.writes}")

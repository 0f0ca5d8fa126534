"""On a device whose times add up, the probes give back exactly the times that they were added from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmsflow.measuring import microbenchmarks
from dmsflow.measuring.microbenchmarks import Probe, Sum
from dmsflow.network.blocks import fused_blocks
from dmsflow.network.network import Network, load_network, value

NETWORKS = {
    f"{name}-{resolution}": load_network(name, 3, resolution, 10)
    for name, resolution in (("vgg11", 32), ("resnet18", 32), ("resnet18", 64))
}


def additive_ms(network: Network, widths: Mapping[str, int]) -> float:
    """A device for which every block has a time of its own, bilinear in its widths; of a pixel, none."""
    total = 0.7
    for block in fused_blocks(network):
        if block.layers[0].name.startswith(("leave_", "sum_")) and block.op != "quantize":
            total += 0.05 if block.op == "binary_conv" else 0
            continue
        a, b, c, d = (byte / 100 for byte in hashlib.sha256(block.name.encode()).digest()[:4])
        reads, writes = value(widths, block.reads), value(widths, block.writes)
        total += a + b * reads + (c * writes + d * reads * writes if block.grows else 0)
    return total


@functools.cache
def told_of(probe: Probe) -> float:
    return additive_ms(probe.network, {})


def told(total: Sum) -> float:
    return sum(times * told_of(probe) for probe, times in total.items())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@settings(max_examples=5)
@given(data=st.data())
def test_the_pieces_of_a_network_add_up_to_it(network: Network, data: st.DataObject) -> None:
    widths = {name: data.draw(st.integers(1, 300)) for name in network.widths}
    predicted = told(microbenchmarks.overhead()) + sum(
        told(microbenchmarks.of_piece(block, value(widths, block.reads), value(widths, block.writes)))
        for block in fused_blocks(network)
    )
    assert predicted == pytest.approx(additive_ms(network, widths), rel=1e-9)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_probe_is_a_network_that_deploys(network: Network) -> None:
    from dmsflow.deploying import folding

    for block in fused_blocks(network):
        for probe in microbenchmarks.of_piece(block, 5, 9):
            form = folding.fold(
                probe.network,
                {},
                folding.random_weights(probe.network, {}),
                (128,) * probe.channels,
                (64.0,) * probe.channels,
            )
            assert form.ops[-1].name == probe.layers[-1].name


def test_a_probe_is_known_by_what_it_holds() -> None:
    (block, *_) = fused_blocks(NETWORKS["vgg11-32"])
    assert microbenchmarks.of_piece(block, 3, 9) == microbenchmarks.of_piece(block, 3, 9)
    assert microbenchmarks.of_piece(block, 3, 9) != microbenchmarks.of_piece(block, 3, 10)

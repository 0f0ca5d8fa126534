"""On a device whose times add up, the micro-benchmarks give back exactly the times that they were added from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import gated
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import with_signs

from dmsflow.importing import load_network
from dmsflow.measuring import microbenchmarks
from dmsflow.measuring.microbenchmarks import MicroBenchmark, Sum
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.network.blocks import fused_blocks
from dmsflow.network.network import QUANTISERS, Network, value, with_stem

NETWORKS = {
    f"{name}-{resolution}": load_network(name, 3, resolution, 10)
    for name, resolution in (
        *(("vgg11", 32), ("resnet18", 32), ("resnet18", 64), ("reactnet18", 32), ("densenet", 32)),
        *(("birealnet18", 32), ("mobilenet", 32), ("quicknet", 32)),
    )
}
NETWORKS["vgg11-signs"] = with_signs(load_network("vgg11", 3, 32, 10))

NETWORKS["gated"] = gated.build(3, 32, 10)
NETWORKS |= {f"{name}-int8": with_stem(NETWORKS[name], "int8") for name in ("vgg11-32", "resnet18-64", "densenet-32")}


def additive_ms(network: Network, widths: Mapping[str, int]) -> float:
    """A device for which every block has a time of its own, bilinear in its widths; of a pixel, none."""
    total = 0.7
    for block in fused_blocks(network):
        if block.layers[0].name.startswith(("leave_", "sum_")) and block.op not in QUANTISERS:
            total += 0.05 if block.op == "binary_conv" else 0
            continue
        a, b, c, d = (byte / 100 for byte in hashlib.sha256(block.name.encode()).digest()[:4])
        reads, writes = value(widths, block.reads), value(widths, block.writes)
        total += a + b * reads + (c * writes + d * reads * writes if block.grows else 0)
    return total


@functools.cache
def time_of(benchmark: MicroBenchmark) -> float:
    return additive_ms(benchmark.network, {})


def time(total: Sum) -> float:
    return sum(times * time_of(benchmark) for benchmark, times in total.items())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@settings(max_examples=5)
@given(data=st.data())
def test_the_blocks_of_a_network_add_up_to_it(network: Network, data: st.DataObject) -> None:
    widths = {name: data.draw(st.integers(1, 300)) for name in network.widths}
    predicted = time(microbenchmarks.isolate_overhead()) + sum(
        time(microbenchmarks.isolate_block(block, value(widths, block.reads), value(widths, block.writes)))
        for block in fused_blocks(network)
    )
    assert predicted == pytest.approx(additive_ms(network, widths), rel=1e-9)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_every_micro_benchmark_is_a_network_that_deploys(network: Network) -> None:
    from dmsflow.deploying import folding, integer_graph

    for block in fused_blocks(network):
        for benchmark in microbenchmarks.isolate_block(block, 5, 9):
            form = folding.fold(
                benchmark.network,
                {},
                draw_weights(benchmark.network, {}),
                (128,) * benchmark.channels,
                (64.0,) * benchmark.channels,
            )
            assert form.ops[-1].name == benchmark.layers[-1].name
            sizes = form.shapes()  # interpreters refuse a stride beyond the image
            assert all(op.stride <= sizes[op.inputs[0]][0] for op in form.ops if isinstance(op, integer_graph.Conv))


def test_a_micro_benchmark_is_known_by_what_it_holds() -> None:
    (block, *_) = fused_blocks(NETWORKS["vgg11-32"])
    assert microbenchmarks.isolate_block(block, 3, 9) == microbenchmarks.isolate_block(block, 3, 9)
    assert microbenchmarks.isolate_block(block, 3, 9) != microbenchmarks.isolate_block(block, 3, 10)

"""Widths rounded to blocks cost no more than the widths before, by any count, and lie on multiples."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsflow.deploying import folding
from dmsflow.deploying.exporters import lce
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.network import cost
from dmsflow.network.network import Network, load_network
from dmsflow.network.profile import PACKED_GRANULARITY
from dmsflow.searching.budget import Budgets, macs_m, memory_mib
from dmsflow.searching.round_to_blocks import LARGEST_CHANGE, BlockRounding, padded_macs, stored_bytes
from dmsflow.settings import SearchSettings

NETWORKS = {name: load_network(name, 3, 32, 10) for name in ("vgg11", "resnet18")}


def rounding(network: Network, widths: dict[str, int]) -> BlockRounding:
    """Under budgets that these widths exactly exhaust."""
    chosen = SearchSettings(memory_mib=memory_mib(network, widths), macs_m=macs_m(network, widths))
    return BlockRounding(Budgets.from_settings(chosen, network), PACKED_GRANULARITY)


def stored(network: Network, widths: dict[str, int]) -> float:
    return stored_bytes(network, widths, PACKED_GRANULARITY)


@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
def test_no_cost_grows(name: str, data: st.DataObject) -> None:
    network = NETWORKS[name]
    widths = {key: data.draw(st.integers(1, 300), label=key) for key in network.widths}
    rule = rounding(network, widths)
    found = rule.round_widths(widths)
    assert rule.budgets.met(found)
    macs = [padded_macs(network, each, PACKED_GRANULARITY) for each in (widths, found)]
    saved = [stored(network, widths) - stored(network, found), macs[0] - macs[1]]
    assert min(saved) >= 0
    assert found == widths or max(saved) > 0  # nothing is given up for nothing
    for key, width in found.items():
        assert width == widths[key] or width % 8 == 0
        assert (1 - LARGEST_CHANGE) * widths[key] <= width <= (1 + LARGEST_CHANGE) * widths[key]


def test_a_width_just_over_a_multiple_goes_back_and_the_others_get_what_that_frees() -> None:
    network = NETWORKS["vgg11"]
    widths = dict(zip(network.widths, (33, 65, 65, 63, 100, 100, 100, 100), strict=True))
    found = rounding(network, widths).round_widths(widths)
    assert list(found.values())[:3] == [32, 64, 64]
    assert stored(network, found) < 0.9 * stored(network, widths)


def test_the_most_channels_are_kept_to() -> None:
    network = NETWORKS["vgg11"]
    widths = dict.fromkeys(network.widths, 60)
    narrow = rounding(network, widths).round_widths(widths, widest=widths)
    assert set(narrow.values()) == {56}


def test_stored_bytes_are_those_of_a_file(tmp_path: Path) -> None:
    """But for its graph and names, and for batch norms folded into thresholds."""
    network = NETWORKS["vgg11"]
    widths = {key: 3 * base + 1 for key, base in network.widths.items()}
    graph = folding.fold(network, widths, draw_weights(network, widths), (128.0,) * 3, (64.0,) * 3)
    lce.write(graph, tmp_path / "model.tflite")
    in_file = sum(lce.layer_bytes(tmp_path / "model.tflite").values())
    assert in_file == pytest.approx(stored(network, widths), rel=0.01)
    assert stored(network, widths) > 1.05 * cost.memory_bytes(network, widths)

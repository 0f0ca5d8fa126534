"""Aligned widths cost no more than the widths before, by any count, and lie on edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsflow import settings
from dmsflow.deploying import folding
from dmsflow.deploying.exporters import lce
from dmsflow.network import cost
from dmsflow.network.network import load_network
from dmsflow.searching import budget, round_to_blocks
from dmsflow.settings import SearchSettings

NETWORKS = {name: load_network(name, 3, 32, 10) for name in ("vgg11", "resnet18")}


def limits_of(name: str, widths: dict[str, int]) -> tuple[budget.Budget, ...]:
    """Budgets that these widths just meet."""
    network = NETWORKS[name]
    memory, macs = budget.memory_mib(network, widths), budget.macs_m(network, widths)
    chosen = settings.resolve(SearchSettings, network=name, memory_mib=memory, macs_m=macs)
    return budget.budgets(chosen, network)


@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
def test_no_cost_grows(name: str, data: st.DataObject) -> None:
    network = NETWORKS[name]
    widths = {key: data.draw(st.integers(1, 300), label=key) for key in network.widths}
    limits = limits_of(name, widths)
    found = round_to_blocks.aligned(network, limits, widths)
    assert budget.met(network, limits, found)
    saved = [
        measure(network, widths) - measure(network, found)
        for measure in (round_to_blocks.stored_bytes, round_to_blocks.padded_macs)
    ]
    assert min(saved) >= 0
    assert found == widths or max(saved) > 0  # nothing is given up for nothing
    for key, width in found.items():
        assert width == widths[key] or width % 8 == 0
        assert (1 - round_to_blocks.REACH) * widths[key] <= width <= (1 + round_to_blocks.REACH) * widths[key]


def test_a_width_just_over_an_edge_goes_back_and_the_others_get_what_that_frees() -> None:
    network = NETWORKS["vgg11"]
    widths = dict(zip(network.widths, (33, 65, 65, 63, 100, 100, 100, 100), strict=True))
    found = round_to_blocks.aligned(network, limits_of("vgg11", widths), widths)
    assert list(found.values())[:3] == [32, 64, 64]
    assert round_to_blocks.stored_bytes(network, found) < 0.9 * round_to_blocks.stored_bytes(network, widths)


def test_the_most_channels_are_kept_to() -> None:
    network = NETWORKS["vgg11"]
    widths = dict.fromkeys(network.widths, 60)
    narrow = round_to_blocks.aligned(network, (), widths, widest=dict.fromkeys(network.widths, 60))
    assert set(narrow.values()) == {56}


def test_stored_bytes_are_those_of_a_file(tmp_path) -> None:
    """But for its graph and names, and for batch norms folded into thresholds."""
    network = NETWORKS["vgg11"]
    widths = {key: 3 * base + 1 for key, base in network.widths.items()}
    form = folding.fold(network, widths, folding.random_weights(network, widths), (128.0,) * 3, (64.0,) * 3)
    lce.write(form, tmp_path / "model.tflite")
    held = sum(lce.layer_bytes(tmp_path / "model.tflite").values())
    assert held == pytest.approx(round_to_blocks.stored_bytes(network, widths), rel=0.01)
    assert round_to_blocks.stored_bytes(network, widths) > 1.05 * cost.memory_bytes(network, widths)

"""Widths rounded to blocks cost no more than the widths before, by any count, and lie on multiples."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmsflow.network.network import Network, load_network
from dmsflow.searching.budget import Budgets, macs_m, memory_mib
from dmsflow.searching.round_to_blocks import LARGEST_CHANGE, padded_macs, round_widths
from dmsflow.settings import SearchSettings

NETWORKS = {name: load_network(name, 3, 32, 10) for name in ("vgg11", "resnet18")}
FREE = dict.fromkeys((*NETWORKS["vgg11"].widths, *NETWORKS["resnet18"].widths), 1000)


def exhausted(network: Network, widths: dict[str, int]) -> Budgets:
    """Budgets that these widths exactly exhaust."""
    chosen = SearchSettings(memory_mib=memory_mib(network, widths), macs_m=macs_m(network, widths))
    return Budgets.from_settings(chosen, network)


@pytest.mark.parametrize("name", NETWORKS)
@given(data=st.data())
def test_no_cost_grows(name: str, data: st.DataObject) -> None:
    network = NETWORKS[name]
    widths = {key: data.draw(st.integers(1, 300), label=key) for key in network.widths}
    budgets = exhausted(network, widths)
    found = round_widths(budgets, widths, FREE)
    assert budgets.met(found)
    macs = [padded_macs(network, each) for each in (widths, found)]
    file = [budgets.file_size.kib(network, each) for each in (widths, found)]
    saved = [file[0] - file[1], macs[0] - macs[1]]
    assert min(saved) >= 0
    assert found == widths or max(saved) > 0  # nothing is given up for nothing
    for key, width in found.items():
        assert width == widths[key] or width % 8 == 0
        assert (1 - LARGEST_CHANGE) * widths[key] <= width <= (1 + LARGEST_CHANGE) * widths[key]


def test_a_width_just_over_a_multiple_goes_back_and_the_others_get_what_that_frees() -> None:
    network = NETWORKS["vgg11"]
    widths = dict(zip(network.widths, (33, 65, 65, 63, 100, 100, 100, 100), strict=True))
    budgets = exhausted(network, widths)
    found = round_widths(budgets, widths, FREE)
    assert list(found.values())[:3] == [32, 64, 64]
    assert budgets.file_size.constant_bytes(found) < 0.9 * budgets.file_size.constant_bytes(widths)


def test_the_most_channels_are_kept_to() -> None:
    network = NETWORKS["vgg11"]
    widths = dict.fromkeys(network.widths, 60)
    narrow = round_widths(exhausted(network, widths), widths, widths)
    assert set(narrow.values()) == {56}

"""The latency model: exact where it was measured, never falling with a width, the same for ints and tensors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.network import latency
from dmsflow.network.blocks import fused_blocks
from dmsflow.network.latency import Grid, Latency, build_latency
from dmsflow.network.network import Network, with_stem
from dmsflow.network.profile import Granularity, Profile, Table
from dmsflow.searching import budget
from dmsflow.searching.budget import Budgets
from dmsflow.settings import SearchSettings

NETWORKS = {name: load_network(name, 3, 32, 10) for name in ("vgg11", "resnet18")}
EACH_NETWORK = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
GRANULARITY = {"binary_conv": Granularity(inputs=32, outputs=4), "conv": Granularity(outputs=16)}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, Granularity]:
    """Any sound table, with its steps."""
    steps = Granularity(inputs=draw(st.sampled_from([1, 4, 32])), outputs=draw(st.sampled_from([1, 8, 16])))
    widths = []
    for step in (steps.inputs, steps.outputs):
        edges = draw(st.lists(st.integers(1, 40), max_size=5, unique=True))
        widths.append(tuple(edge * step - draw(st.integers(0, step - 1)) for edge in sorted(edges)))
    rises = st.floats(0, 3, allow_subnormal=False)
    shape = max(1, len(widths[0])), max(1, len(widths[1]))
    ms = np.array([[draw(rises) for _ in range(shape[1])] for _ in range(shape[0])]).cumsum(0).cumsum(1)
    rows = tuple(tuple(map(float, row)) for row in ms)
    return Table(block="p", inputs=widths[0], outputs=widths[1], ms=rows, spread_percent=rows), steps


def close(a: Any, b: Any) -> bool:
    return math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-9)


def within(grid: Grid, reads: Any, writes: Any) -> tuple[Any, Any]:
    """The widths, or the widest that were measured."""
    return tuple(  # type: ignore[return-value]
        min(width, edges[-1]) if edges else width for width, edges in ((reads, grid.inputs), (writes, grid.outputs))
    )


@given(tables())
def test_exact_at_measured_points(case: tuple[Table, Granularity]) -> None:
    table, steps = case
    grid = Grid.from_table(table, steps)
    for (row, reads), (column, writes) in itertools.product(
        enumerate(table.inputs or (1,)), enumerate(table.outputs or (1,))
    ):
        assert grid(reads, writes) == table.ms[row][column]


@given(tables(), st.data())
def test_never_falls_with_a_width(case: tuple[Table, Granularity], data: st.DataObject) -> None:
    table, steps = case
    grid = Grid.from_table(table, steps)
    real = st.floats(1, 1300)
    low, high = ((data.draw(real), data.draw(real)) for _ in range(2))
    (reads, wider_reads), (writes, wider_writes) = sorted(low), sorted(high)
    wider_reads, wider_writes = within(grid, wider_reads, wider_writes)
    reads, writes = min(reads, wider_reads), min(writes, wider_writes)
    assert grid(reads, writes) <= grid(wider_reads, wider_writes) * (1 + 1e-9) + 1e-12


@given(tables(), st.integers(1, 1200), st.integers(1, 1200))
def test_all_widths_of_a_step_take_one_time(case: tuple[Table, Granularity], reads: int, writes: int) -> None:
    table, steps = case
    grid = Grid.from_table(table, steps)
    reads, writes = within(grid, reads, writes)
    edge = -(-reads // steps.inputs) * steps.inputs, -(-writes // steps.outputs) * steps.outputs
    assert close(grid(reads, writes), grid(*edge))


@given(tables(), st.floats(1, 1200), st.floats(1, 1200))
def test_ints_floats_and_tensors_agree(case: tuple[Table, Granularity], reads: float, writes: float) -> None:
    table, steps = case
    grid = Grid.from_table(table, steps)
    reads, writes = within(grid, reads, writes)
    pair = [torch.tensor(width, dtype=torch.float64, requires_grad=True) for width in (reads, writes)]
    found = grid(*pair)
    assert close(found.detach() if isinstance(found, torch.Tensor) else found, grid(reads, writes))
    whole = [torch.tensor(int(width), dtype=torch.float64) for width in (reads, writes)]
    assert close(grid(int(reads), int(writes)), grid(*whole))


@given(tables(), st.floats(1, 1200), st.floats(1, 1200))
def test_the_slope_is_that_between_the_edges_even_where_the_staircase_is_flat(
    case: tuple[Table, Granularity], reads: float, writes: float
) -> None:
    table, steps = case
    grid = Grid.from_table(table, steps)
    if len(grid.outputs) < 2 or (grid.inputs and reads > grid.inputs[-1]) or writes > grid.outputs[-1]:
        return
    width = torch.tensor(writes, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(grid(reads, width), width)
    edge = max(
        -(-int(writes + latency.EDGE_TOLERANCE) // steps.outputs) * steps.outputs if steps.outputs > 1 else writes,
        grid.outputs[0],
    )
    above = max(1, int(np.searchsorted(grid.outputs, edge - 1e-6)))
    if abs(edge - grid.outputs[min(above, len(grid.outputs) - 1)]) < 1e-5 or above >= len(grid.outputs):
        return  # at an edge there are two
    low, high = grid.outputs[above - 1], grid.outputs[above]
    assert float(slope) == pytest.approx((grid(reads, high) - grid(reads, low)) / (high - low), rel=1e-6, abs=1e-9)


# --- a whole network ----------------------------------------------------------------------------


def make_profile(network: Network, top: int = 1024) -> Profile:
    """A profile in which every block takes a nanosecond for each product of its padded channels."""
    rows = []
    for block in {block.name: block for block in fused_blocks(network)}.values():
        inputs = () if block.op == "conv" else (17, 49, top)
        outputs = (3, 63, top) if block.grows else ()
        step = GRANULARITY.get(block.op, Granularity())
        ms = tuple(
            tuple(
                1e-6 * -(-reads // step.inputs) * step.inputs * (-(-writes // step.outputs) * step.outputs)
                for writes in outputs or (1,)
            )
            for reads in inputs or (3,)
        )
        rows.append(Table(block=block.name, inputs=inputs, outputs=outputs, ms=ms, spread_percent=ms))
    return Profile(
        name="board",
        target="x86-64",
        device="local",
        threads=1,
        runtime="LCE",
        overhead_ms=0.5,
        steps=GRANULARITY,
        tables=tuple(rows),
        drift_percent=0,
        commands=(),
        environment={},
    )


def make_latency(network: Network, top: int = 1024) -> Latency:
    return build_latency(network, make_profile(network, top))


def draw_widths(network: Network, data: st.DataObject) -> dict[str, int]:
    return {name: data.draw(st.integers(1, 1000)) for name in network.widths}


@EACH_NETWORK
def test_a_network_costs_its_fused_blocks_and_the_overhead(network: Network) -> None:
    latency = make_latency(network)
    parts = latency.by_block(network.widths)
    assert len(parts) == len(fused_blocks(network))
    assert latency(network.widths) == pytest.approx(0.5 + sum(ms for _, ms in parts))


@EACH_NETWORK
def test_times_of_float_weights_stand_for_those_of_8_bits_where_these_are_missing(network: Network) -> None:
    int8, measured = with_stem(network, "int8"), make_profile(network)
    assert build_latency(int8, measured)(network.widths) == make_latency(network)(network.widths)
    fast = {
        table.block: replace(table, ms=tuple(tuple(0.0 for _ in row) for row in table.ms))
        for table in make_profile(int8).tables
    }
    added = [table for name, table in fast.items() if name.startswith("int8_")]
    assert added
    both = replace(measured, tables=(*measured.tables, *added))
    assert build_latency(int8, both)(network.widths) < build_latency(network, both)(network.widths)


@EACH_NETWORK
@settings(max_examples=30)
@given(data=st.data())
def test_a_network_never_gets_faster_by_a_width(network: Network, data: st.DataObject) -> None:
    latency = make_latency(network)
    widths = draw_widths(network, data)
    name = data.draw(st.sampled_from(list(widths)))
    wider = {**widths, name: data.draw(st.integers(widths[name], 1024))}
    assert latency(widths) <= latency(wider) * (1 + 1e-9)


@EACH_NETWORK
@settings(max_examples=20)
@given(data=st.data())
def test_tensors_cost_what_ints_cost_and_every_width_has_a_slope(network: Network, data: st.DataObject) -> None:
    latency = make_latency(network)
    widths = draw_widths(network, data)
    tensors = {
        name: torch.tensor(float(width), dtype=torch.float64, requires_grad=True) for name, width in widths.items()
    }
    ms = latency(tensors)
    assert close(ms.detach(), latency(widths))
    assert all(float(slope) > 0 for slope in torch.autograd.grad(ms, list(tensors.values())))


def test_an_op_that_was_not_measured_is_named_with_the_command_that_adds_it() -> None:
    with pytest.raises(DmsflowError) as caught:
        build_latency(load_network("vgg11", 3, 64, 10), make_profile(NETWORKS["vgg11"]))
    line = str(caught.value)
    assert line.startswith("profile board: has not measured 'conv 3x3 of 3 channels")
    words = (
        "--name board --target x86-64 --precision binary --device local --threads 1 --networks vgg11 --resolutions 64"
    )
    assert f"dmsflow profile --add {words} --channels 3 --classes 10" in line
    with pytest.raises(DmsflowError, match="--networks torchvision:resnet18 --resolutions"):
        build_latency(NETWORKS["resnet18"], make_profile(NETWORKS["vgg11"]), "torchvision:resnet18")


@pytest.mark.parametrize("runner", [("--runner", "lce"), ("--runner=lce", "--add")])
def test_the_command_that_adds_to_a_profile_names_its_runner_and_can_be_pasted(runner: tuple[str, ...]) -> None:
    command = ("dmsflow", "profile", "--name", "board", *runner)
    made = msgspec.structs.replace(make_profile(NETWORKS["vgg11"]), commands=(command,))
    with pytest.raises(DmsflowError, match=r"--networks 'my net\.py:Net' .* --runner lce$"):
        build_latency(NETWORKS["resnet18"], made, "my net.py:Net")


def test_widths_beyond_those_measured_are_refused() -> None:
    network = NETWORKS["vgg11"]
    latency = make_latency(network, top=512)
    assert latency.widest() == dict.fromkeys(network.widths, 512)
    latency({**network.widths, "conv3": 512})
    with pytest.raises(
        DmsflowError, match="up to 512 channels, not 513; measure wider ones: dmsflow profile .*--max-ratio"
    ):
        latency({**network.widths, "conv3": 513})


def test_a_modelled_profile_says_so_in_its_errors() -> None:
    modelled = msgspec.structs.replace(make_profile(NETWORKS["vgg11"]), method="modelled")
    with pytest.raises(DmsflowError, match=r"profile board \(modelled\): has not measured"):
        build_latency(NETWORKS["resnet18"], modelled)


# --- as a budget --------------------------------------------------------------------------------


@EACH_NETWORK
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_memory_and_latency_budgets_are_both_kept(network: Network, data: st.DataObject) -> None:
    latency = make_latency(network)
    smallest = dict.fromkeys(network.widths, 48)
    chosen = SearchSettings(
        memory_mib=budget.memory_mib(network, smallest) * data.draw(st.floats(1, 10)),
        latency_ms=latency(smallest) * data.draw(st.floats(1, 3)),
        profile="board",
    )
    budgets = Budgets.from_settings(chosen, network, latency)
    budgets.check_feasible()
    spread = np.array([data.draw(st.floats(-1, 1)) for _ in network.widths])
    for ratios in (budgets.uniform(), budgets.interpolated(), budgets.bounds.clip(np.exp(spread))):
        projected = budgets.project(ratios)
        assert budgets.utilisation(projected).max() <= 1
        widths = budgets.round_within(projected)
        assert budget.memory_mib(network, widths) <= chosen.memory_mib
        assert latency(widths) <= chosen.latency_ms


def test_the_range_ends_where_the_profile_does() -> None:
    network = NETWORKS["vgg11"]
    latency = make_latency(network, top=256)
    budgets = Budgets.from_settings(SearchSettings(profile="board"), network, latency)
    widest = (budgets.bounds.high * budgets.base).tolist()
    assert widest == [min(8 * base, 256) for base in network.widths.values()]


def test_joined_widths_share_what_was_measured() -> None:
    network = load_network("densenet", 3, 32, 10)
    latency = make_latency(network, top=256)
    widest = latency.widest()
    assert latency(widest) > 0 and widest["block0_5"] == 256 * 16 // 112 and widest["narrow1"] == 256 * 40 // (40 + 96)
    with pytest.raises(DmsflowError, match="has measured 'concat of 2 on 32x32' up to 256 channels, not 25"):
        latency({**widest, "block0_5": widest["block0_5"] + 5})


def test_a_latency_budget_needs_a_profile() -> None:
    with pytest.raises(DmsflowError, match="--latency-ms: needs --profile"):
        Budgets.from_settings(SearchSettings(latency_ms=1.0), NETWORKS["vgg11"])


@pytest.mark.parametrize(("memory", "ms", "named"), [(0.08, 0.5, "latency"), (0.0001, 5.0, "memory")])
def test_an_infeasible_pair_is_refused_with_what_is_possible(memory: float, ms: float, named: str) -> None:
    network = NETWORKS["vgg11"]
    latency = make_latency(network)
    chosen = SearchSettings(memory_mib=memory, latency_ms=ms, profile="board")
    with pytest.raises(DmsflowError) as caught:
        Budgets.from_settings(chosen, network, latency).check_feasible()
    line = str(caught.value)
    assert line.startswith(f"{named} budget of ") and "smallest" in line and " ms" in line and "allow at least" in line


def test_the_feasibility_table_has_every_cost_and_what_each_budget_leaves() -> None:
    network = NETWORKS["vgg11"]
    latency = make_latency(network)
    chosen = SearchSettings(memory_mib=0.08, latency_ms=0.6, profile="board")
    rows = dict(Budgets.from_settings(chosen, network, latency).check_feasible())
    assert list(rows) == ["smallest", "base", "largest", "memory budget", "latency budget"]
    for name in ("smallest", "base", "largest"):
        assert all(unit in rows[name] for unit in (" MiB", " M MACs", " ms"))
    assert "0.08 MiB" in rows["memory budget"] and "× the base widths" in rows["memory budget"]
    assert "0.6 ms" in rows["latency budget"] and "× the base widths" in rows["latency budget"]

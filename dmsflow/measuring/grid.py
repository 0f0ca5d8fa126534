"""The tables of a profile: at which widths a block is measured, and what fits the times that were found.

Each width stands in the middle of a step of its kernels, since widths on an edge itself can take
faster paths than all others do. Nothing here measures; `profiling` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.measuring import microbenchmarks
from dmsflow.measuring.microbenchmarks import Sum
from dmsflow.network.blocks import FusedBlock, fused_blocks
from dmsflow.network.network import Layer, Network, load_network
from dmsflow.network.profile import Granularity, Profile, Table
from dmsflow.settings import ProfileSettings

EVENINGS = 50  # of rows and columns each
GRANULARITY = (4, 8, 16, 32, 64)  # that kernels may have
STEP_WIDTHS = 65, 129  # steps are looked for from the first, and the slope is taken up to the second
STEP_RISE = 0.35  # of what the slope lets expect, up to which two widths count as one step

# --- which widths -------------------------------------------------------------------------------

Bases = tuple[int, int]  # widest base channels that a block reads and writes in the networks asked for


def networks(settings: ProfileSettings) -> list[Network]:
    """Every network to cover, at every resolution."""
    return [
        load_network(name, settings.channels, resolution, settings.classes)
        for name in settings.networks
        for resolution in settings.resolutions
    ]


def wanted(settings: ProfileSettings, before: Profile | None) -> list[tuple[FusedBlock, Bases]]:
    """Every block once, less those that are measured as wide as is asked for."""
    found: dict[str, tuple[FusedBlock, Bases]] = {}
    for network in networks(settings):
        for block in fused_blocks(network):
            bases = _base(network, block.reads), _base(network, block.writes)
            _, known = found.get(block.name, (block, (0, 0)))
            found[block.name] = block, (max(bases[0], known[0]), max(bases[1], known[1]))
    return [
        (block, bases)
        for name, (block, bases) in found.items()
        if before is None or not _covers(before.table(name), block, bases, settings.max_ratio, before.steps)
    ]


def _base(network: Network, key: str | int) -> int:
    return key if isinstance(key, int) else network.widths[key]


def _covers(table: Table | None, block: FusedBlock, bases: Bases, ratio: float, steps: dict[str, Granularity]) -> bool:
    if table is None:
        return False
    step = steps.get(block.op, Granularity())
    return all(
        not widths or _up(widths[-1], each) >= base * ratio
        for widths, base, each in ((table.inputs, bases[0], step.inputs), (table.outputs, bases[1], step.outputs))
    )


@dataclass(frozen=True)
class Plane:
    """The points of one block."""

    block: FusedBlock
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def rows(self) -> Iterator[list[Sum]]:
        """A row for each of `inputs`, in it a sum of probes for each of `outputs`."""
        for reads in self.inputs or (0,):
            yield [microbenchmarks.of_piece(self.block, reads, writes or reads) for writes in self.outputs or (0,)]

    def sums(self) -> Iterator[Sum]:
        for row in self.rows():
            yield from row


def planes(
    asked: Sequence[tuple[FusedBlock, Bases]],
    settings: ProfileSettings,
    steps: dict[str, Granularity],
    before: Profile | None,
) -> list[Plane]:
    """The points of every block that is `wanted`.

    Args:
        asked: the fused blocks.
        settings: how wide, and how many points.
        steps: of the kernels.
        before: the profile that these are added to.
    """
    return [
        _plane(block, bases, settings, steps, before.table(block.name) if before else None) for block, bases in asked
    ]


def _plane(
    block: FusedBlock,
    bases: Bases,
    settings: ProfileSettings,
    steps: dict[str, Granularity],
    known: Table | None = None,
) -> Plane:
    """The points to measure; those of a table that is known, but not wide enough, are measured again."""
    step = steps.get(block.op, Granularity())
    inputs, outputs = (known.inputs, known.outputs) if known else ((), ())
    reads = () if block.op == "conv" else _widths(bases[0], step.inputs, settings, inputs)
    return Plane(block, reads, _widths(bases[1], step.outputs, settings, outputs) if block.grows else ())


def _widths(base: int, step: int, settings: ProfileSettings, known: Sequence[int]) -> tuple[int, ...]:
    """Widths in the middle of steps: from the first, as if in geometric progression, to the last; of the base's, and those known."""
    last = _up(math.ceil(base * settings.max_ratio), step)
    first = min(step if step > 1 else 3, last)
    edges = {_up(round(width), step) for width in (*np.geomspace(first, last, settings.points), *known)}
    return tuple(sorted({_middle(edge, step) for edge in edges | {_up(base, step), last}}))


def _up(width: int, step: int) -> int:
    return -(-width // step) * step


def _middle(edge: int, step: int) -> int:
    """An odd width in the middle of the step that ends at an edge: no kernel has it easier than with others.

    Without steps it is the next odd one, so that a table reaches to its last edge.
    """
    width = edge - step // 2
    return width + 1 - width % 2 if step == 1 else max(1, width - 1 + width % 2)


# --- what fits their times ----------------------------------------------------------------------


def table_of(
    plane: Plane, ms: NDArray[np.float64], noise_ms: NDArray[np.float64], spread_percent: Sequence[Sequence[float]]
) -> Table:
    """A block's times, evened out where noise would let them fall with a width.

    Args:
        plane: its points.
        ms: their times, [rows, columns] as in `plane.rows`.
        noise_ms: how far off these may be, up to a factor.
        spread_percent: of the runs behind them.
    """
    even = rising(ms, 1 / noise_ms**2)
    return Table(
        block=plane.block.name,
        inputs=plane.inputs,
        outputs=plane.outputs,
        ms=tuple(tuple(round(float(cell), 6) for cell in row) for row in even),
        spread_percent=tuple(tuple(round(percent, 2) for percent in row) for row in spread_percent),
    )


def rising(ms: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest table, in weighted squares, that falls with no width; and none of it below zero.

    Rows and columns take turns (Dykstra's projections). To raise whatever falls would be simpler, and
    biased: of noisy times the largest would stay.
    """
    table, corrections = ms, [np.zeros_like(ms), np.zeros_like(ms)]
    for turn in range(2 * EVENINGS):
        axis = turn % 2
        offered = table + corrections[axis]
        lines = zip(np.moveaxis(offered, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
        table = np.moveaxis(np.array([nearest_rising(*line) for line in lines]), -1, axis)
        corrections[axis] = offered - table
    # What is left to the last turns is less than a rounding.
    return np.maximum.accumulate(np.maximum.accumulate(np.maximum(table, 0), 0), 1)


def nearest_rising(line: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Isotonic regression by its formula: of the means from j to k around i, the largest over j of the least over k."""
    sums, weight = (np.concatenate([[0.0], values.cumsum()]) for values in (line * weights, weights))
    first, last = np.indices((len(line), len(line)))
    inside = first <= last
    means = np.full(inside.shape, np.inf)
    begin, end = first[inside], last[inside] + 1
    means[inside] = (sums[end] - sums[begin]) / (weight[end] - weight[begin])
    least = np.minimum.accumulate(means[:, ::-1], 1)[:, ::-1]  # over k from i on
    found: NDArray[np.float64] = np.maximum.accumulate(np.where(inside, least, -np.inf), 0).diagonal()
    return found


def step_probes(channels: int) -> dict[tuple[str, str], list[Sum]]:
    """The probes that tell the steps of kernels, by op and side: a sum for each width, as `step_of` takes their times.

    Args:
        channels: of the image.
    """
    window: dict[str, Any] = {"inputs": ("x",), "width": 64, "kernel": 3, "padding": 1}
    norm, quantize = Layer(name="n", op="batch_norm", inputs=("c",)), Layer(name="q", op="quantize", inputs=("n",))
    binary = FusedBlock(
        (Layer(name="c", op="binary_conv", **window), norm, quantize), microbenchmarks.CHANNELS, 32, 64, 64
    )
    stem = FusedBlock((Layer(name="c", op="conv", **window), norm, quantize), channels, 64, 3, 64)
    first, last = STEP_WIDTHS
    widths = (first, *(first + step - 2 for step in GRANULARITY), last)
    return {
        ("binary_conv", "inputs"): [microbenchmarks.of_piece(binary, width, 64) for width in widths],
        ("binary_conv", "outputs"): [microbenchmarks.of_piece(binary, 64, width) for width in widths],
        ("conv", "outputs"): [microbenchmarks.of_piece(stem, 0, width) for width in widths],
    }


def step_of(ms: Sequence[float]) -> int:
    """The largest of GRANULARITY within which the time hardly rises; 1: there are none."""
    first, *inside, last = ms
    slope = (last - first) / (STEP_WIDTHS[1] - STEP_WIDTHS[0])
    level = [
        step for step, time in zip(GRANULARITY, inside, strict=True) if time - first < STEP_RISE * slope * (step - 2)
    ]
    return max(level, default=1)

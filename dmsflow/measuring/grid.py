"""The points of a profile: at which widths blocks are timed, the steps kernels work in, tables fitted to the times.

Each width lies in the middle of a step, since widths on its edge can take faster paths than all others
do. In steps of 32 up to 128 channels these are 15, 47, 79 and 111. Nothing here measures; `profiling` does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmsflow.importing import load_network
from dmsflow.measuring import microbenchmarks
from dmsflow.measuring.microbenchmarks import Sum, isolate_block
from dmsflow.network.blocks import FusedBlock, fused_blocks
from dmsflow.network.network import INPUT, MOST_INT8_PRODUCTS, Layer, Network, value, with_stem
from dmsflow.network.profile import Granularity, Profile, round_up
from dmsflow.settings import ProfileSettings

STEPS = (4, 8, 16, 32, 64)  # that kernels may work in
STEP_WIDTHS = 65, 129  # steps are looked for from the first, and the slope is taken up to the second
STEP_RISE = 0.35  # two widths lie in one step if the time rises by less than this part of what the slope predicts
FIRST_WIDTH = 3  # the narrowest point where kernels have no steps
PROJECTIONS = 50  # on the tables whose rows rise, and as many on those whose columns do

# --- which widths -------------------------------------------------------------------------------

Bases = tuple[int, int]  # widest base channels that a block reads and writes in the networks asked for


def load_networks(settings: ProfileSettings) -> list[Network]:
    """Every network to cover, at every resolution, with the stem that a search gives it."""
    each = itertools.product(settings.networks, settings.resolutions)
    networks = [load_network(name, settings.channels, pixels, settings.classes) for name, pixels in each]
    return networks if settings.precision == "float" else [with_stem(network, "int8") for network in networks]


def find_missing(settings: ProfileSettings, before: Profile | None) -> list[tuple[FusedBlock, Bases]]:
    """Every block of the networks once, without those that a profile covers as widely as is asked for.

    What has weights of 8 bits is measured with float weights too.
    """
    asked: dict[str, tuple[FusedBlock, Bases]] = {}
    for network in load_networks(settings):
        for block in fused_blocks(network):
            bases = [value(network.widths, key) for key in (block.reads, block.writes)]
            for each in (block, block.in_float):
                _, known = asked.get(each.name, (each, (0, 0)))
                asked[each.name] = each, (max(bases[0], known[0]), max(bases[1], known[1]))
    return [
        (block, bases)
        for block, bases in asked.values()
        if before is None or not _covers(before, block, bases, settings.max_ratio)
    ]


def _covers(before: Profile, block: FusedBlock, bases: Bases, ratio: float) -> bool:
    table, step = before.table(block.name), before.steps.get(block.kind, Granularity())
    return table is not None and all(
        not widths or round_up(widths[-1], each) >= base * ratio
        for widths, base, each in ((table.inputs, bases[0], step.inputs), (table.outputs, bases[1], step.outputs))
    )


@dataclass(frozen=True)
class Plane:
    """The points of one block."""

    block: FusedBlock
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def rows(self) -> Iterator[list[Sum]]:
        """A row for each of `inputs`, in it a sum of micro-benchmarks for each of `outputs`."""
        for reads in self.inputs or (0,):
            yield [isolate_block(self.block, reads, writes or reads) for writes in self.outputs or (0,)]


def lay_out(
    missing: Sequence[tuple[FusedBlock, Bases]],
    settings: ProfileSettings,
    steps: dict[str, Granularity],
    before: Profile | None,
) -> list[Plane]:
    """The points of every block that `find_missing` found.

    `before` is the profile that these are added to; points of a table that is too narrow are timed again.
    """
    planes = []
    for block, bases in missing:
        step, table = steps.get(block.kind, Granularity()), before.table(block.name) if before else None
        inputs = _choose_widths(bases[0], step.inputs, settings, table.inputs if table else ())
        outputs = _choose_widths(bases[1], step.outputs, settings, table.outputs if table else ())
        reads_any = not (block.reads_image or block.is_fixed)
        planes.append(Plane(block, inputs if reads_any else (), outputs if block.grows else ()))
    return planes


def _choose_widths(base: int, step: int, settings: ProfileSettings, known: Sequence[int]) -> tuple[int, ...]:
    """Widths in the middle of steps, as in geometric progression from the first step to the last, and the base's."""
    last = round_up(math.ceil(base * settings.max_ratio), step)
    first = min(step if step > 1 else FIRST_WIDTH, last)
    edges = {round_up(round(width), step) for width in (*np.geomspace(first, last, settings.points), *known)}
    return tuple(sorted({_middle_of_step(edge, step) for edge in edges | {round_up(base, step), last}}))


def _middle_of_step(edge: int, step: int) -> int:
    """An odd width in the middle of the step that ends at an edge: no kernel is faster for it than for others.

    Without steps it is the next odd one, so that a table reaches to its last edge.
    """
    width = edge - step // 2
    return width + 1 - width % 2 if step == 1 else max(1, width - 1 + width % 2)


# --- steps of kernels ---------------------------------------------------------------------------


def isolate_steps(channels: int) -> dict[tuple[str, str], list[Sum]]:
    """Micro-benchmarks that show the steps of kernels: by kind of block and side a sum for each width of `find_step`."""
    window: dict[str, Any] = {"inputs": ("x",), "width": 64, "kernel": 3, "padding": 1}
    rest = Layer(name="n", op="batch_norm", inputs=("c",)), Layer(name="q", op="quantize", inputs=("n",))
    binary = FusedBlock((Layer(name="c", op="binary_conv", **window), *rest), microbenchmarks.CHANNELS, 32, 64, 64)
    kernel = 3 if 9 * channels <= MOST_INT8_PRODUCTS else 1
    conv = Layer(name="c", op="conv", inputs=(INPUT,), width=64, kernel=kernel, padding=kernel // 2, bits=8)
    stem = FusedBlock((conv, *rest), channels, 64, 3, 64)
    first, last = STEP_WIDTHS
    widths = (first, *(first + step - 2 for step in STEPS), last)
    return {
        ("binary_conv", "inputs"): [isolate_block(binary, width, 64) for width in widths],
        ("binary_conv", "outputs"): [isolate_block(binary, 64, width) for width in widths],
        ("conv", "outputs"): [isolate_block(stem.in_float, 0, width) for width in widths],
        ("int8_conv", "outputs"): [isolate_block(stem, 0, width) for width in widths],
    }


def find_step(ms: Sequence[float]) -> int:
    """The largest of STEPS within which the time hardly rises; 1: there are none."""
    first, *inside, last = ms
    slope = (last - first) / (STEP_WIDTHS[1] - STEP_WIDTHS[0])
    level = [step for step, time in zip(STEPS, inside, strict=True) if time - first < STEP_RISE * slope * (step - 2)]
    return max(level, default=1)


# --- tables -------------------------------------------------------------------------------------


def fit_rising_table(ms: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest table, in weighted squares, that falls along no row and no column, and nowhere below zero.

    Rows and columns are fitted by turns (Dykstra's projections). To raise whatever falls would be simpler,
    and biased: of noisy times the largest would stay. Weights are above zero.

    [1, 3, 2, 4]  ->  [1, 2.5, 2.5, 4]       what falls in a line is replaced by its mean, weighted
    """
    from scipy.optimize import isotonic_regression

    table, corrections = ms, [np.zeros_like(ms), np.zeros_like(ms)]
    for index in range(2 * PROJECTIONS):
        axis = index % 2
        offered = table + corrections[axis]
        lines = zip(np.moveaxis(offered, axis, -1), np.moveaxis(weights, axis, -1), strict=True)
        table = np.moveaxis(np.array([isotonic_regression(line, weights=weight).x for line, weight in lines]), -1, axis)
        corrections[axis] = offered - table
    # What is left to the last projections is less than a rounding.
    return np.maximum.accumulate(np.maximum.accumulate(np.maximum(table, 0), 0), 1)

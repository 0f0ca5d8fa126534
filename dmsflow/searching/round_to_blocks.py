"""Widths rounded to multiples that the kernels use (`search.align`), where that costs nothing.

A width just over a multiple pays for a whole block more: in the words of a file, and in the time of the
kernels. So every width is rounded down to a near multiple, and what that saves is spent on the
widths that lost most, block by block, as long as no cost is above that of the widths before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from dmsflow.network import cost
from dmsflow.network.network import Network, out_widths, resolutions, value
from dmsflow.network.profile import PACKED_GRANULARITY, round_up
from dmsflow.searching.budget import Budgets

BLOCKS = PACKED_GRANULARITY  # of the kernels of binary convolutions
LARGEST_CHANGE = 0.2  # of a width: further away it would be another network, not a rounded one

Widths = dict[str, int]


def padded_macs(network: Network, widths: Mapping[str, int]) -> float:
    """Multiply-accumulates for one image as the kernels do them: binary ones on whole words and blocks."""
    keys, sizes, total = out_widths(network), resolutions(network), 0.0
    for layer, count in cost.weights(network, widths):
        reads, writes = value(widths, keys[layer.inputs[0]]), value(widths, keys[layer.name])
        work = count * sizes[layer.name] ** 2
        if layer.op == "binary_conv":
            work *= round_up(reads, BLOCKS.inputs) / reads * round_up(writes, BLOCKS.outputs) / writes
        total += work
    return total


def round_widths(budgets: Budgets, widths: Widths, widest: Mapping[str, int]) -> Widths:
    """Widths on multiples of the blocks, as near to the given ones as no cost allows to grow.

    The costs are the size of the file, and time: by the profile, or without one the multiply-accumulates that the
    kernels do. The given widths are returned where no others stay within these and every budget.

    Args:
        widest: the most channels that each width may get; it does not get more than LARGEST_CHANGE allows either.
    """

    def costs(each: Widths) -> tuple[float, float]:
        time = float(budgets.latency(each)) if budgets.latency else padded_macs(budgets.network, each)
        return budgets.file_size.kib(budgets.network, each), time

    limits = costs(widths)
    top = {name: min(math.floor(width * (1 + LARGEST_CHANGE)), widest[name]) for name, width in widths.items()}

    def allowed(wider: Widths) -> bool:
        return all(a <= b for a, b in zip(costs(wider), limits, strict=True)) and budgets.met(wider)

    found = []
    for step in (BLOCKS.inputs, BLOCKS.outputs):
        low = {name: _round_down(width, step) for name, width in widths.items()}
        found.append(_grow(low, widths, top, allowed))
    return max(found, key=lambda each: math.fsum(map(math.log, each.values())))


def _round_down(width: int, step: int) -> int:
    """The multiple of `step` below where it is near, that of a block where that is, or the width itself."""
    multiples = (width // each * each for each in (step, BLOCKS.outputs))
    return next((multiple for multiple in multiples if multiple >= (1 - LARGEST_CHANGE) * width), width)


def _grow(found: Widths, before: Widths, top: Mapping[str, int], allowed: Callable[[Widths], bool]) -> Widths:
    """The width furthest below what it was before grows by a block, again and again, while that is allowed."""
    stuck: set[str] = set()
    while len(stuck) < len(found):
        name = min((each for each in found if each not in stuck), key=lambda each: found[each] / before[each])
        higher = {**found, name: round_up(found[name] + 1, BLOCKS.outputs)}
        if higher[name] <= top[name] and allowed(higher):
            found = higher
        else:
            stuck.add(name)
    return found

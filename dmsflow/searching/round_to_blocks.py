"""Widths rounded to multiples that the kernels use (`search --align`), where that costs nothing.

A width just over a multiple pays for a whole block more: in the words of a file, and in the time of the
kernels. So every width is rounded down to a near multiple, and what that saves is spent on the
widths that lost most, block by block, as long as no cost is above that of the widths before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dmsflow.network import cost
from dmsflow.network.network import Network, out_widths, resolutions, value
from dmsflow.network.profile import Granularity, round_up
from dmsflow.searching.budget import Budgets

LARGEST_CHANGE = 0.2  # of a width: further away it would be another network, not a rounded one

Widths = dict[str, int]


def stored_bytes(network: Network, widths: Mapping[str, int], blocks: Granularity) -> float:
    """Bytes of all parameters as a file stores them: `cost.memory_bytes` with binary convs' inputs in whole words."""
    keys, total = out_widths(network), 0.0
    for size in cost.layer_bytes(network, widths):
        reads = value(widths, keys[network.layer(size.layer).inputs[0]])
        total += size.float_bytes + size.binary_bytes * round_up(reads, blocks.inputs) / reads
    return total


def padded_macs(network: Network, widths: Mapping[str, int], blocks: Granularity) -> float:
    """Multiply-accumulates for one image as the kernels do them: binary ones on whole words and blocks."""
    keys, sizes, total = out_widths(network), resolutions(network), 0.0
    for layer, count in cost.weights(network, widths):
        reads, writes = value(widths, keys[layer.inputs[0]]), value(widths, keys[layer.name])
        work = count * sizes[layer.name] ** 2
        if layer.op == "binary_conv":
            work *= round_up(reads, blocks.inputs) / reads * round_up(writes, blocks.outputs) / writes
        total += work
    return total


@dataclass(frozen=True)
class BlockRounding:
    """What rounded widths must stay within: every budget, and the costs of the widths before.

    Attributes:
        blocks: of the kernels of binary convolutions.
    """

    budgets: Budgets
    blocks: Granularity

    def costs(self, widths: Mapping[str, int]) -> tuple[float, float]:
        """Bytes stored, and time: by the profile, or without one the multiply-accumulates that the kernels do."""
        network, latency = self.budgets.network, self.budgets.latency
        time = float(latency(widths)) if latency else padded_macs(network, widths, self.blocks)
        return stored_bytes(network, widths, self.blocks), time

    def round_widths(self, widths: Widths, widest: Mapping[str, int] | None = None) -> Widths:
        """Widths on multiples of the blocks, as near to the given ones as no cost allows to grow.

        The given widths are returned where no others stay within all of that.

        Args:
            widest: the most channels that each width may get; without it, what LARGEST_CHANGE allows.
        """
        limits = self.costs(widths)
        top = {name: math.floor(width * (1 + LARGEST_CHANGE)) for name, width in widths.items()}
        if widest:
            top = {name: min(top[name], widest[name]) for name in top}

        def allowed(wider: Widths) -> bool:
            return all(a <= b for a, b in zip(self.costs(wider), limits, strict=True)) and self.budgets.met(wider)

        found = []
        for step in (self.blocks.inputs, self.blocks.outputs):
            low = {name: self._round_down(width, step) for name, width in widths.items()}
            found.append(self._grow(low, widths, top, allowed))
        return max(found, key=lambda each: math.fsum(map(math.log, each.values())))

    def _round_down(self, width: int, step: int) -> int:
        """The multiple of `step` below where it is near, that of a block where that is, or the width itself."""
        multiples = (width // each * each for each in (step, self.blocks.outputs))
        return next((multiple for multiple in multiples if multiple >= (1 - LARGEST_CHANGE) * width), width)

    def _grow(self, found: Widths, before: Widths, top: Mapping[str, int], allowed: Callable[[Widths], bool]) -> Widths:
        """The width furthest below what it was before grows by a block, again and again, while that is allowed."""
        stuck: set[str] = set()
        while len(stuck) < len(found):
            name = min((each for each in found if each not in stuck), key=lambda each: found[each] / before[each])
            higher = {**found, name: round_up(found[name] + 1, self.blocks.outputs)}
            if higher[name] <= top[name] and allowed(higher):
                found = higher
            else:
                stuck.add(name)
        return found

"""Widths settled on the edges of the kernels' steps (`search --align`), where that costs nothing.

A width just over an edge pays for a whole step more: in the words of a file, and in the time of the
kernels. So every width goes down to an edge that is near, and what that sets free is spent on the
widths that lost most, edge by edge, as long as no cost is above that of the widths before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from dmsflow.deploying.exporters.lce import GRANULARITY
from dmsflow.network import cost
from dmsflow.network.latency import Latency
from dmsflow.network.network import Network, out_widths, resolutions, value
from dmsflow.searching import budget
from dmsflow.searching.budget import Budget

REACH = 0.2  # of a width may go when it moves to an edge below, or come when it moves to one above

Widths = dict[str, int]
Cost = Callable[[Mapping[str, int]], float]


def stored_bytes(network: Network, widths: Mapping[str, int]) -> float:
    """Bytes of all parameters as a file holds them: `cost.memory_bytes` with binary convs' inputs in whole words."""
    keys, total = out_widths(network), 0.0
    for size in cost.layer_bytes(network, widths):
        reads = value(widths, keys[network.layer(size.layer).inputs[0]])
        total += size.float_bytes + size.binary_bytes * _up(reads, GRANULARITY.inputs) / reads
    return total


def padded_macs(network: Network, widths: Mapping[str, int]) -> float:
    """Multiply-accumulates for one image as the kernels do them: binary ones on whole words and blocks."""
    keys, sizes, total = out_widths(network), resolutions(network), 0.0
    for layer, count in cost.weights(network, widths):
        reads, writes = value(widths, keys[layer.inputs[0]]), value(widths, keys[layer.name])
        work = count * sizes[layer.name] ** 2
        if layer.op == "binary_conv":
            work *= _up(reads, GRANULARITY.inputs) / reads * _up(writes, GRANULARITY.outputs) / writes
        total += work
    return total


def _up(width: int, step: int) -> int:
    """The edge of its step."""
    return -(-width // step) * step


def aligned(
    network: Network,
    limits: Sequence[Budget],
    widths: Widths,
    latency: Latency | None = None,
    widest: Mapping[str, int] | None = None,
) -> Widths:
    """Widths on edges, as near to the given ones as no cost allows to grow.

    Every budget is met, the file is no larger, and the network is predicted to be no slower: by the
    profile, or without one by the multiply-accumulates that the kernels do. The given widths are
    returned where no others stay within all of that.

    Args:
        widest: the most channels that each width may get; without it, what REACH allows.
    """
    costs: list[Cost] = [lambda found: stored_bytes(network, found)]
    costs.append((lambda found: float(latency(found))) if latency else (lambda found: padded_macs(network, found)))
    before = [one(widths) for one in costs]

    def allowed(found: Widths) -> bool:
        within = all(one(found) <= most for one, most in zip(costs, before, strict=True))
        return within and budget.met(network, limits, found)

    top = {name: math.floor(width * (1 + REACH)) for name, width in widths.items()}
    if widest:
        top = {name: min(top[name], widest[name]) for name in top}
    found = [_grown(_down(widths, step), widths, top, allowed) for step in (GRANULARITY.inputs, GRANULARITY.outputs)]
    return max(found, key=_size, default=widths)


def _down(widths: Widths, step: int) -> Widths:
    """Every width at the edge below: that of `step` where it is near, that of a block where that is, or where it was."""
    low = {}
    for name, width in widths.items():
        edges = (width // each * each for each in (step, GRANULARITY.outputs))
        low[name] = next((edge for edge in edges if edge >= (1 - REACH) * width), width)
    return low


def _grown(found: Widths, wanted: Widths, top: Mapping[str, int], allowed: Callable[[Widths], bool]) -> Widths:
    """The width furthest below what was wanted goes up to its next edge, again and again, while that is allowed."""
    stuck: set[str] = set()
    while len(stuck) < len(found):
        name = min((each for each in found if each not in stuck), key=lambda each: found[each] / wanted[each])
        higher = {**found, name: _up(found[name] + 1, GRANULARITY.outputs)}
        if higher[name] <= top[name] and allowed(higher):
            found = higher
        else:
            stuck.add(name)
    return found


def _size(widths: Widths) -> float:
    return math.fsum(math.log(width) for width in widths.values())

"""How long a network takes on a device, as its profile predicts it."""

from __future__ import annotations

import math
import shlex
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from dmsflow.errors import DmsflowError
from dmsflow.network.blocks import FusedBlock, fused_blocks
from dmsflow.network.network import Network, key_parts, value
from dmsflow.network.profile import Granularity, Profile, Table, round_up

EDGE_TOLERANCE = 1e-6  # channels: a continuous width so little below an integer counts as that integer


@dataclass(frozen=True)
class Grid:
    """The time of one block at any widths: its table, read as a staircase.

    A width costs what the edge of its kernels' step costs (33 channels in words of 32 cost what 64 do; a
    continuous width counts its whole channels), and between two measured edges the time is bilinear. That
    is the value; the slope is the one between the edges, as if there were no steps, since a staircase has
    no slope that a search could use. Never falls with a width.

    Attributes:
        inputs, outputs: measured edges, rising; empty where the time depends on no such width.
        ms: as in `profile.Table`.
        steps: widths from one edge to the next.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    steps: Granularity

    @classmethod
    def from_table(cls, table: Table, steps: Granularity) -> Grid:
        inputs = tuple(round_up(width, steps.inputs) for width in table.inputs)
        outputs = tuple(round_up(width, steps.outputs) for width in table.outputs)
        return cls(inputs, outputs, table.ms, steps)

    def __call__(self, reads: Any, writes: Any) -> Any:
        """Milliseconds when `reads` channels come in and `writes` go out; ints or tensors."""
        row, down = _locate(self.inputs, _move_to_edge(reads, self.steps.inputs))
        column, along = _locate(self.outputs, _move_to_edge(writes, self.steps.outputs))
        return _interpolate([_interpolate(line, column, along) for line in self.ms[row : row + 2]], 0, down)


def _number(width: Any) -> float:
    """A width without its gradient."""
    return float(width.detach() if hasattr(width, "detach") else width)


def _move_to_edge(width: Any, step: int) -> Any:
    """The width, moved up to the edge of the whole channels in it; its derivative stays 1."""
    if step == 1:
        return width
    number = _number(width)
    return width + (round_up(math.floor(number + EDGE_TOLERANCE), step) - number)


def _locate(edges: Sequence[int], width: Any) -> tuple[int, Any]:
    """Index of the edge below a width, and which part of the way to the next it is; None: there is only one."""
    if len(edges) < 2:
        return 0, None
    number = _number(width)
    if number < edges[0]:  # nothing narrower was measured: it costs as much, and keeps the first slope
        width, number = width + (edges[0] - number), edges[0]
    low = min(max(0, bisect_left(edges, number) - 1), len(edges) - 2)
    return low, (width - edges[low]) / (edges[low + 1] - edges[low])


def _interpolate(values: Sequence[Any], index: int, part: Any) -> Any:
    """Between a value and the next; exact at both ends."""
    return values[index] if part is None else values[index] * (1 - part) + values[index + 1] * part


@dataclass(frozen=True)
class Latency:
    """The time of one network on one device, as a function of its widths; `given` is how the user names the network."""

    network: Network
    profile: Profile
    parts: tuple[tuple[FusedBlock, Grid], ...]
    given: str = ""

    def __call__(self, widths: Mapping[str, Any]) -> Any:
        """Milliseconds for one image.

        Raises:
            DmsflowError: a width beyond those that were measured.
        """
        return sum((ms for _, ms in self.by_block(widths)), self.profile.overhead_ms)

    def by_block(self, widths: Mapping[str, Any]) -> list[tuple[FusedBlock, Any]]:
        """Milliseconds of each block, in order; the overhead is not among them."""
        rows = []
        for block, grid in self.parts:
            reads, writes = value(widths, block.reads), value(widths, block.writes)
            for edges, width in ((grid.inputs, reads), (grid.outputs, writes)):
                if edges and _number(width) >= edges[-1] + 1:
                    what = f"has measured {block.name!r} up to {edges[-1]} channels, not {math.floor(_number(width))}"
                    ratio = math.ceil(max(widths[name] / base for name, base in self.network.widths.items()))
                    command = f"{_profile_command(self.network, self.profile, self.given)} --max-ratio {ratio}"
                    raise DmsflowError(f"profile {self.profile.title}", what, f"measure wider ones: {command}")
            rows.append((block, grid(reads, writes)))
        return rows

    def without_steps(self) -> Latency:
        """The same between the measured edges, as if kernels had no steps: never more, and with a slope everywhere."""
        return replace(self, parts=tuple((block, replace(grid, steps=Granularity())) for block, grid in self.parts))

    @property
    def unit(self) -> str:
        """The unit, with the word that must stand beside it if nothing was measured."""
        return "ms (modelled)" if self.profile.method == "modelled" else "ms"

    def widest(self) -> dict[str, int]:
        """The largest value of each named width that was measured; those of a concatenation share what was, by their base."""
        limits: dict[str, int] = {}
        for block, grid in self.parts:
            for edges, key in ((grid.inputs, block.reads), (grid.outputs, block.writes)):
                named = [part for part in key_parts(key) if isinstance(part, str)]
                fixed = sum(part for part in key_parts(key) if isinstance(part, int))
                total = sum(self.network.widths[name] for name in named)
                for name in named if edges else ():
                    most = (edges[-1] - fixed) * self.network.widths[name] // total
                    limits[name] = min(limits.get(name, most), most)
        return limits


def build_latency(network: Network, profile: Profile, given: str = "") -> Latency:
    """The latency model of a network on a profile.

    Raises:
        DmsflowError: a block of the network was not measured.
    """
    parts = []
    for block in fused_blocks(network):
        # Where a profile has no times of weights of 8 bits, those of float weights stand for them: they are longer.
        for known in (block, block.in_float):
            if table := profile.table(known.name):
                break
        else:
            command = _profile_command(network, profile, given)
            raise DmsflowError(f"profile {profile.title}", f"has not measured {block.name!r}", f"add it: {command}")
        parts.append((known, Grid.from_table(table, profile.steps.get(known.kind, Granularity()))))
    return Latency(network, profile, tuple(parts), given)


def _profile_command(network: Network, profile: Profile, given: str) -> str:
    """The command that adds what a network needs to a profile."""
    options = {name: getattr(profile, name) for name in ("name", "target", "precision", "device", "threads")}
    options |= {"networks": given or network.name, "resolutions": network.resolution}
    options |= {"channels": network.channels, "classes": network.classes}
    for word, following in pairwise((*profile.commands[-1], "") if profile.commands else ()):
        if word.partition("=")[0] == "--runner":
            options["runner"] = word.partition("=")[2] or following
    written = (f"--{option} {shlex.quote(str(chosen))}" for option, chosen in options.items())
    return " ".join(["dmsflow profile --add", *written])

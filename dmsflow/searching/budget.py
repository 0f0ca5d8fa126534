"""Memory, MAC and latency budgets: which widths are within them, and the baselines that fill them.

Widths are ratios to their base, one entry a named width, in the order of `network.widths`; NumPy only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dmsflow.errors import DmsflowError
from dmsflow.network import cost
from dmsflow.network.latency import Latency
from dmsflow.network.network import Network
from dmsflow.searching.file_size import FileSize
from dmsflow.settings import SearchSettings

Ratios: TypeAlias = NDArray[np.float64]  # [n]
Cost: TypeAlias = Callable[[Mapping[str, Any]], Any]

MEGA = 10**6  # MACs are counted in millions
GROWTH_PROBE = 1e-3  # a budget is active if growing every width by this much breaks it
BISECTIONS = 45  # 24 / 2^45 is below float64's resolution of a log ratio of 1
INTERPOLATIONS = 40  # points between equal and uniform widths that are tried
NOISE_CHANNELS = 1e-6  # of a channel: arithmetic noise, not a reason for a whole one


@dataclass(frozen=True)
class Budget:
    """A limit on one cost.

    Attributes:
        name, unit: for tables and metrics ("memory", "MiB").
        limit: in that unit.
        cost: at given widths, in that unit; numbers or tensors.
        smooth: the same without steps, where the cost has any.
    """

    name: str
    unit: str
    limit: float
    cost: Cost
    smooth: Cost | None = None


def memory_mib(network: Network, widths: Mapping[str, Any]) -> Any:
    """Size of the parameters in MiB, see `cost.memory_bytes`."""
    return cost.memory_bytes(network, widths) / cost.MIB


def macs_m(network: Network, widths: Mapping[str, Any]) -> Any:
    """Million multiply-accumulates for one image."""
    return cost.macs(network, widths) / MEGA


@dataclass(frozen=True, eq=False)
class Range:
    """The smallest and largest ratio of each width, [n] each."""

    low: Ratios
    high: Ratios

    def clip(self, ratios: Ratios) -> Ratios:
        return np.clip(ratios, self.low, self.high)


@dataclass(frozen=True)
class Budgets:
    """The limits of a search on one network, and the range of its widths.

    >>> from dmsflow.network.architectures import vgg11
    >>> budgets = Budgets.from_settings(SearchSettings(memory_mib=0.08), vgg11.build(3, 32, 10))
    >>> budgets.round_within(budgets.equal())["conv0"]
    93
    >>> budgets.met({name: 94 for name in budgets.network.widths})
    False

    Attributes:
        limits: at least one.
        bounds: from min_ratio to max_ratio, but never below one channel nor wider than the profile has measured.
        file_size: of the .tflite file.
        latency: the prediction of the profile, if there is one.
    """

    network: Network
    limits: tuple[Budget, ...]
    bounds: Range
    file_size: FileSize
    latency: Latency | None = None

    @classmethod
    def from_settings(cls, settings: SearchSettings, network: Network, latency: Latency | None = None) -> Budgets:
        """The budgets of these settings; without any, the memory of the base network.

        Raises:
            DmsflowError: a latency budget, and no profile to predict with; a range of ratios that is empty.
        """
        if settings.min_ratio >= settings.max_ratio:
            what = f"{settings.min_ratio:g} is not below max_ratio {settings.max_ratio:g}"
            raise DmsflowError("min_ratio", what, "lower it")
        if settings.latency_ms is not None and latency is None:
            right = "name a profile (dmsflow list profiles), or measure your device: dmsflow profile"
            raise DmsflowError("--latency-ms", "needs --profile, the times of a device", right)
        file_size, memory = FileSize(network), functools.partial(memory_mib, network)
        known: list[tuple[Any, ...]] = [
            ("memory", "MiB", settings.memory_mib, memory),
            ("MACs", "M", settings.macs_m, functools.partial(macs_m, network)),
            *([("latency", latency.unit, settings.latency_ms, latency, latency.without_steps())] if latency else ()),
            ("file", "KiB", settings.file_kib, file_size.kib, file_size.kib_without_steps),
        ]
        limits = [Budget(*each) for each in known if each[2] is not None]
        limits = limits or [Budget("memory", "MiB", memory(network.widths), memory)]
        bases = np.array(list(network.widths.values()), np.float64)
        low, high = np.maximum(settings.min_ratio, 1 / bases), np.full_like(bases, settings.max_ratio)
        if latency:
            high = np.minimum(high, np.array([latency.widest()[name] for name in network.widths]) / bases)
        return cls(network, tuple(limits), Range(low, np.maximum(low, high)), file_size, latency)

    @functools.cached_property
    def base(self) -> Ratios:
        """Channels at ratio 1, [n]."""
        return np.array(list(self.network.widths.values()), np.float64)

    @functools.cached_property
    def smallest(self) -> dict[str, int]:
        """The narrowest integer widths."""
        return self._integers(self.bounds.low, up=True)

    def scaled(self, factors: Ratios) -> Budgets:
        """With each limit multiplied by its factor, [budgets], but no smaller than what the smallest network takes."""

        def scale(each: Budget, factor: float) -> Budget:
            return replace(each, limit=max(each.limit * factor, each.cost(self.smallest)))

        return replace(self, limits=tuple(map(scale, self.limits, factors.tolist())))

    # --- what widths cost ---

    def figures(self, widths: Mapping[str, Any]) -> dict[str, float]:
        """What the network costs at integer widths, by the name of the metric."""
        found = {"memory_mib": memory_mib(self.network, widths), "macs_m": macs_m(self.network, widths)}
        found["file_kib"] = self.file_size.kib(widths)
        return found if self.latency is None else {**found, "predicted_latency_ms": self.latency(widths)}

    def describe(self, widths: Mapping[str, int], *, with_file: bool = True) -> str:
        """The same in a line: `0.0778 MiB, file 86.7 KiB, 9.90 M MACs, 0.131 ms`, and the word where that is modelled."""
        figures = self.figures(widths)
        latency = f", {figures['predicted_latency_ms']:.3f} {self.latency.unit}" if self.latency else ""
        size = f", file {figures['file_kib']:.1f} KiB" if with_file else ""
        return f"{figures['memory_mib']:.4f} MiB{size}, {figures['macs_m']:.2f} M MACs{latency}"

    def met(self, widths: Mapping[str, float]) -> bool:
        """Whether widths are within every budget."""
        return all(budget.cost(widths) <= budget.limit for budget in self.limits)

    def utilisation(self, ratios: Ratios, *, smooth: bool = False) -> Ratios:
        """The fraction of each budget that is used, [budgets]: at most 1 within it; `smooth`: of costs without steps."""
        widths = as_widths(self.network, ratios.tolist())
        costs = [((smooth and each.smooth) or each.cost)(widths) for each in self.limits]
        return np.array(costs) / [each.limit for each in self.limits]

    # --- widths within the budgets ---

    def project(self, ratios: Ratios) -> Ratios:
        """Shift all log ratios by one amount until a budget is exhausted; then those go on that break none, in the range.

        A cost that moves in steps (a device's milliseconds, words of a file) is exhausted for some widths long before
        the others: a width that stands at the edge of such a step is held there.
        """
        # Every weight step asks for this, so it computes in plain numbers: arrays this small are slow.
        entries = list(zip(ratios.tolist(), self.bounds.low.tolist(), self.bounds.high.tolist(), strict=True))
        found, free = [low for _, low, _ in entries], set(range(len(entries)))

        def shifted(shift: float) -> list[float]:
            factor, ratios = math.exp(shift), found.copy()
            for place in free:
                ratio, low, high = entries[place]
                ratios[place] = min(max(ratio * factor, low), high)
            return ratios

        def grows(place: int) -> bool:
            wider = found.copy()
            wider[place] *= 1 + GROWTH_PROBE
            return wider[place] <= entries[place][2] and self.met(as_widths(self.network, wider))

        low = -12.0
        while free:
            high = 12.0
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                low, high = (middle, high) if self.met(as_widths(self.network, shifted(middle))) else (low, middle)
            found = shifted(low)
            # Each can grow, but not all of them, where several stand at an edge: the first one stays.
            free -= {place for place in free if not grows(place)} or {min(free)}
        return np.array(found)

    def round_within(self, ratios: Ratios) -> dict[str, int]:
        """Integer widths within every budget: rounded down, then the largest remainders up while they fit."""
        ratios = self.bounds.clip(ratios)
        real = as_widths(self.network, ratios.tolist())
        widths = {name: max(width, self.smallest[name]) for name, width in self._integers(ratios).items()}
        for name in sorted(real, key=lambda name: widths[name] - real[name]):
            wider = {**widths, name: widths[name] + 1}
            if real[name] > widths[name] and self.met(wider):
                widths = wider
        while not self.met(widths):  # only where min_ratio kept widths up
            narrower = (name for name in widths if widths[name] > self.smallest[name])
            widths[max(narrower, key=lambda name: widths[name] / self.network.widths[name])] -= 1
        return widths

    def _integers(self, ratios: Ratios, *, up: bool = False) -> dict[str, int]:
        widths = ratios * self.base
        rounded = np.ceil(widths - NOISE_CHANNELS) if up else np.floor(widths + NOISE_CHANNELS)
        return {name: max(1, int(width)) for name, width in zip(self.network.widths, rounded, strict=True)}

    # --- the baselines ---

    def uniform(self) -> Ratios:
        """Every layer's base width times one ratio."""
        return self.project(np.ones_like(self.base))

    def equal(self) -> Ratios:
        """Every layer equally wide."""
        return self.project(1 / self.base)

    def interpolated(self) -> Ratios:
        """The point from equal towards uniform widths that first exhausts every budget; equal under one budget.

        Under memory and MACs, equal widths exhaust the MACs and leave memory, uniform ones the other way round;
        on the geometric line between them both are exhausted. A search that starts there starts no worse than
        either of the two.
        """
        best, best_used = self.equal(), -1.0
        for step in range(INTERPOLATIONS + 1):
            ratios = self.project(self.base ** (step / INTERPOLATIONS - 1))
            used = float(self.utilisation(ratios).min())
            if used > best_used + GROWTH_PROBE:
                best, best_used = ratios, used
        return best

    # --- whether there is anything to search ---

    def check_feasible(self, change: str = "set a", known: str = "") -> list[tuple[str, str]]:
        """What the network can cost, and how wide each budget alone leaves it, as rows for a table.

        Args:
            change: what is said to do with another ratio.
            known: follows in the message.

        Raises:
            DmsflowError: even the smallest network exceeds a budget (the message has these figures),
                or even the largest is within all of them; or there are no widths.
        """
        if not self.network.widths:
            right = "use another: numbers, and the widths around a convolution with groups, are not searched"
            raise DmsflowError(f"network {self.network.name}", "has no width to search", right)
        largest = self._integers(self.bounds.high)
        named = {"smallest": self.smallest, "base": self.network.widths, "largest": largest}
        rows = [(name, self.describe(widths)) for name, widths in named.items()]
        for budget in self.limits:
            least = budget.cost(self.smallest)
            if least > budget.limit:
                where = f"{budget.name} budget of {budget.limit:g} {budget.unit}"
                facts = ", ".join(f"{name} {figures}" for name, figures in rows)
                unit = 10.0 ** (math.floor(math.log10(least)) - 3)  # of the fourth digit, rounded up: it must suffice
                least = math.ceil(least / unit) * unit
                right = f"allow at least {least:.4g} {budget.unit}, or {change} smaller search.min_ratio{known}"
                raise DmsflowError(where, f"{self.network.name} cannot be that small ({facts})", right)
        if self.met(largest):
            what = f"even the largest {self.network.name} is within the budgets ({rows[2][1]})"
            raise DmsflowError("budgets", what, f"give a smaller budget, or {change} larger search.max_ratio{known}")
        for budget in self.limits:
            share = budget.limit / budget.cost(self.network.widths)
            words = f"{budget.limit:g} {budget.unit}, {share:.2f} × what the base widths take"
            alone = replace(self, limits=(budget,))
            allows = "the largest network is within it"
            if not alone.met(largest):
                # The lower median, where their number is even: a ratio that a width has.
                ratio = float(np.sort(alone.uniform())[(len(self.base) - 1) // 2])
                allows = f"alone it allows {ratio:.2f} × the base widths"
            rows.append((f"{budget.name} budget", f"{words}; {allows}"))
        return rows


def as_widths(network: Network, ratios: Sequence[Any]) -> dict[str, Any]:
    """Continuous widths at ratios [n]; differentiable where these are tensors."""
    return {name: base * ratio for (name, base), ratio in zip(network.widths.items(), ratios, strict=True)}

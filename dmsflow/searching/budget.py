"""Memory, MAC and latency budgets, and how a search stays within them.

Widths are ratios to their base, one entry a named width, in the order of `network.widths`. Moving
along a budget is easiest in log ratios: its normal is then the elasticity of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmsflow.errors import DmsflowError
from dmsflow.network import cost
from dmsflow.network.latency import Latency
from dmsflow.network.network import Network
from dmsflow.settings import SearchSettings

MEGA = 10**6
ACTIVE = 1e-3  # a budget is active if growing every width by this much breaks it
BISECTIONS = 45
SWEEPS = 12
NEWTON_STEPS = 8
NEARBY = 0.2  # change of a log width that using budgets up may take
GROWTH = 2.0  # a bounded move may grow a width this many times further than it may shrink it


@dataclass(frozen=True)
class Budget:
    """A limit on one cost.

    Attributes:
        name, unit: for tables and metrics ("memory", "MiB").
        limit: in that unit.
        cost: of a network at given widths, in that unit; ints and tensors alike.
    """

    name: str
    unit: str
    limit: float
    cost: Callable[[Network, Mapping[str, Any]], Any]


def memory_mib(network: Network, widths: Mapping[str, Any]) -> Any:
    return cost.memory_bytes(network, widths) / cost.MIB


def macs_m(network: Network, widths: Mapping[str, Any]) -> Any:
    return cost.macs(network, widths) / MEGA


def figures(network: Network, widths: Mapping[str, Any], latency: Latency | None) -> dict[str, float]:
    """What a network costs at whole widths, by the name of the metric."""
    found = {"memory_mib": memory_mib(network, widths), "macs_m": macs_m(network, widths)}
    return found if latency is None else {**found, "predicted_latency_ms": latency(widths)}


def spelled(figures: Mapping[str, float], latency: Latency | None) -> str:
    """Figures in a line: `0.0778 MiB, 9.90 M MACs, 0.131 ms`, and the word for it where that is modelled."""
    words = [f"{figures['memory_mib']:.4f} MiB", f"{figures['macs_m']:.2f} M MACs"]
    if latency:
        words.append(f"{figures['predicted_latency_ms']:.3f} {latency.unit}")
    return ", ".join(words)


def budgets(settings: SearchSettings, network: Network, latency: Latency | None = None) -> tuple[Budget, ...]:
    """The budgets that were asked for; without any, the memory of the base network.

    Raises:
        DmsflowError: a latency budget, and no profile to predict with.
    """
    chosen = []
    if settings.memory_mib is not None:
        chosen.append(Budget("memory", "MiB", settings.memory_mib, memory_mib))
    if settings.macs_m is not None:
        chosen.append(Budget("MACs", "M", settings.macs_m, macs_m))
    if settings.latency_ms is not None:
        if latency is None:
            right = "name a profile (dmsflow list profiles), or measure your device: dmsflow profile"
            raise DmsflowError("--latency-ms", "needs --profile, the device to predict for", right)
        chosen.append(Budget("latency", latency.unit, settings.latency_ms, lambda _, widths: latency(widths)))
    if not chosen:
        chosen.append(Budget("memory", "MiB", memory_mib(network, network.widths), memory_mib))
    return tuple(chosen)


def widths_at(network: Network, ratios: Tensor) -> dict[str, Tensor]:
    """Real-valued widths at ratios [n]; differentiable."""
    return {name: base * ratio for (name, base), ratio in zip(network.widths.items(), ratios, strict=True)}


def use(network: Network, limits: Sequence[Budget], ratios: Tensor) -> float:
    """The largest fraction of a budget that is used: at most 1 where all are met."""
    widths = dict(zip(network.widths, (ratios * base_widths(network)).tolist(), strict=True))
    return float(max(budget.cost(network, widths) / budget.limit for budget in limits))


def base_widths(network: Network) -> Tensor:
    """Channels at ratio 1, [n] float64."""
    return torch.tensor(list(network.widths.values()), dtype=torch.float64)


@dataclass(frozen=True)
class Range:
    """The smallest and largest ratio of each width, [n] float64 each."""

    low: Tensor
    high: Tensor

    def clip(self, ratios: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(ratios, self.low), self.high)


def whole_range(network: Network, settings: SearchSettings, latency: Latency | None = None) -> Range:
    """From --min-ratio to --max-ratio, but never below one channel nor wider than the profile has measured."""
    bases = base_widths(network)
    low = torch.maximum(torch.full_like(bases, settings.min_ratio), 1 / bases)
    high = torch.full_like(bases, settings.max_ratio)
    if latency:
        widest = latency.widest()
        high = torch.minimum(high, torch.tensor([widest[name] for name in network.widths], dtype=torch.float64) / bases)
    return Range(low, torch.maximum(low, high))


def feasibility(
    network: Network, limits: Sequence[Budget], bounds: Range, latency: Latency | None = None
) -> list[tuple[str, str]]:
    """What the network can cost, and how wide each budget alone leaves it, as rows for a table.

    Raises:
        DmsflowError: not even the smallest network meets a budget (the line carries these figures),
            or even the largest meets all of them.
    """
    smallest = _integers(network, bounds.low, torch.ceil)
    largest = _integers(network, bounds.high, torch.floor)
    rows = [
        (name, spelled(figures(network, widths, latency), latency))
        for name, widths in (("smallest", smallest), ("base", network.widths), ("largest", largest))
    ]
    for budget in limits:
        if budget.cost(network, smallest) > budget.limit:
            facts = ", ".join(f"{name} {figures}" for name, figures in rows)
            raise DmsflowError(
                f"{budget.name} budget of {budget.limit:g} {budget.unit}",
                f"{network.name} cannot be that small ({facts})",
                f"allow at least {budget.cost(network, smallest):.4g} {budget.unit}, or lower --min-ratio",
            )
    if met(network, limits, largest):
        what = f"even the largest {network.name} is within the budgets ({rows[2][1]})"
        raise DmsflowError("budgets", what, "give a smaller one, or raise --max-ratio")
    return rows + [_left(network, budget, bounds, largest) for budget in limits]


def _left(network: Network, budget: Budget, bounds: Range, largest: dict[str, int]) -> tuple[str, str]:
    """What one budget leaves if it were the only one."""
    share = budget.limit / budget.cost(network, network.widths)
    words = f"{budget.limit:g} {budget.unit}, {share:.2f} times what the base widths take"
    if met(network, [budget], largest):
        return f"{budget.name} budget", f"{words}; the largest network meets it"
    ratio = float(uniform(network, [budget], bounds).median())
    return f"{budget.name} budget", f"{words}; alone it leaves {ratio:.2f} times the base widths"


def _integers(network: Network, ratios: Tensor, rounding: Callable[[Tensor], Tensor]) -> dict[str, int]:
    # A millionth of a channel is arithmetic noise, not a reason for a whole one.
    nudge = -1e-6 if rounding is torch.ceil else 1e-6
    return {
        name: max(1, int(width))
        for name, width in zip(network.widths, rounding(ratios * base_widths(network) + nudge).tolist(), strict=True)
    }


def meet(network: Network, limits: Sequence[Budget], ratios: Tensor, bounds: Range) -> Tensor:
    """Shift all log ratios by one amount so that the tightest budget is just met, within bounds."""

    # Every weight step asks for this, so it reckons in plain numbers: tensors this small are slow.
    bases, entries = (
        list(network.widths.items()),
        list(zip(*(t.tolist() for t in (ratios, bounds.low, bounds.high)), strict=True)),
    )

    def at(shift: float) -> list[float]:
        factor = math.exp(shift)
        return [min(max(ratio * factor, low), high) for ratio, low, high in entries]

    low, high = -12.0, 12.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        widths = {name: base * ratio for (name, base), ratio in zip(bases, at(middle), strict=True)}
        fits = all(budget.cost(network, widths) <= budget.limit for budget in limits)
        low, high = (middle, high) if fits else (low, middle)
    return torch.tensor(at(low), dtype=torch.float64)


def round_within(network: Network, limits: Sequence[Budget], ratios: Tensor, bounds: Range) -> dict[str, int]:
    """Whole widths within every budget: rounded down, then the largest remainders up while they fit."""
    real = dict(zip(network.widths, (bounds.clip(ratios) * base_widths(network)).tolist(), strict=True))
    widths = _integers(network, bounds.clip(ratios), torch.floor)
    smallest = _integers(network, bounds.low, torch.ceil)
    widths = {name: max(width, smallest[name]) for name, width in widths.items()}
    for name in sorted(real, key=lambda name: widths[name] - real[name]):
        wider = {**widths, name: widths[name] + 1}
        if real[name] > widths[name] and met(network, limits, wider):
            widths = wider
    while not met(network, limits, widths):  # only where min_ratio held widths up
        name = max((n for n in widths if widths[n] > smallest[n]), key=lambda n: widths[n] / network.widths[n])
        widths = {**widths, name: widths[name] - 1}
    return widths


def met(network: Network, limits: Sequence[Budget], widths: Mapping[str, int]) -> bool:
    return all(budget.cost(network, widths) <= budget.limit for budget in limits)


def uniform(network: Network, limits: Sequence[Budget], bounds: Range) -> Tensor:
    """Ratios of the control that widens every layer alike."""
    return meet(network, limits, torch.ones(len(network.widths), dtype=torch.float64), bounds)


def flat(network: Network, limits: Sequence[Budget], bounds: Range) -> Tensor:
    """Ratios of the control in which every layer is equally wide."""
    return meet(network, limits, 1 / base_widths(network), bounds)


def between(network: Network, limits: Sequence[Budget], bounds: Range) -> Tensor:
    """The point from flat towards uniform that first uses every budget up; flat under one budget.

    Under memory and MACs flat spends the MACs and leaves memory, uniform the other way round; on
    the geometric line between them both are spent. A search that starts there starts from the
    better heuristic of the two.
    """
    best, best_used = flat(network, limits, bounds), -1.0
    for step in range(41):
        exponent = step / 40
        ratios = meet(network, limits, base_widths(network) ** (exponent - 1), bounds)
        used = min(use(network, [budget], ratios) for budget in limits)
        if used > best_used + ACTIVE:
            best, best_used = ratios, used
    return best


def normals(network: Network, limits: Sequence[Budget], ratios: Tensor) -> Tensor:
    """d log cost / d log ratio of every budget, [budgets, n]."""
    log_ratios = ratios.detach().log().requires_grad_()
    rows = []
    for budget in limits:
        value = torch.log(budget.cost(network, widths_at(network, log_ratios.exp())))
        rows.append(torch.autograd.grad(value, log_ratios)[0])
    return torch.stack(rows) if rows else torch.zeros(0, len(ratios), dtype=torch.float64)


def penalty(network: Network, limits: Sequence[Budget], ratios: Tensor, weight: float) -> Tensor:
    """weight · Σ max(0, cost - limit), the hinge of Eq. 7, evaluated at mu itself."""
    excess = [torch.relu(budget.cost(network, widths_at(network, ratios)) - budget.limit) for budget in limits]
    total: Tensor = torch.stack(excess).sum()
    return weight * total


def active(network: Network, limits: Sequence[Budget], ratios: Tensor, bounds: Range) -> list[Budget]:
    """The budgets that bind at `ratios`.

    A latency moves in steps, so a budget may bind well below its limit: where growing breaks it.
    """
    grown = bounds.clip(ratios.detach() * (1 + ACTIVE))
    return [budget for budget in limits if use(network, [budget], grown) > 1]


def slack(network: Network, limits: Sequence[Budget], ratios: Tensor, bounds: Range) -> Tensor:
    """log(limit / cost) of every budget, [budgets]; 0 where it binds."""
    binding = active(network, limits, ratios, bounds)
    left = [0.0 if budget in binding else -math.log(use(network, [budget], ratios)) for budget in limits]
    return torch.tensor(left, dtype=torch.float64)


def use_up(network: Network, limits: Sequence[Budget], ratios: Tensor, bounds: Range) -> Tensor:
    """The nearest log ratios at which every budget is just met; those of `meet` where there are none near.

    A common shift meets the tightest budget and leaves something of the others. Newton steps along the
    normals of all of them spend that too.
    """
    found = met_by_shift = meet(network, limits, ratios, bounds)
    if len(limits) == 1:
        return found
    for _ in range(NEWTON_STEPS):
        rows = normals(network, limits, found)
        left = torch.tensor([-math.log(use(network, [budget], found)) for budget in limits], dtype=torch.float64)
        step = torch.linalg.lstsq(rows, left[:, None]).solution[:, 0]
        found = bounds.clip(found * torch.exp(step))
        if not bool((torch.log(found / met_by_shift).abs() < NEARBY).all()):
            return met_by_shift
    found = meet(network, limits, found, bounds)
    used = min(use(network, [budget], found) for budget in limits)
    return found if used > min(use(network, [budget], met_by_shift) for budget in limits) else met_by_shift


def tangent(gradient: Tensor, normal_rows: Tensor) -> Tensor:
    """The gradient [n] without its part along the normals: what moves along the budgets."""
    if not len(normal_rows):
        return gradient
    basis, _ = torch.linalg.qr(normal_rows.T)
    along: Tensor = basis @ (basis.T @ gradient)
    return gradient - along


def bounded_move(
    gradient: Tensor, error: Tensor, normal_rows: Tensor, slack: Tensor, size: float, growth: float = GROWTH
) -> Tensor:
    """How far every log ratio moves: along the budgets, by at most `size` down and `growth`·size up.

    d = -(g + λn) / (|g| + λn + SE), zero where the evidence is thin: growing asks for one standard
    error, shrinking for two. λ ≥ 0 is found by bisection, one for each budget: the smallest that
    keeps the budget to first order (Σ n·d ≤ what is left of it), so zero where enough is left.

    Args:
        gradient, error: of the loss in log ratios and its standard error, [n].
        normal_rows: of the budgets, [budgets, n].
        slack: log(limit / cost) of each budget, [budgets].
    """

    def move(prices: Tensor) -> Tensor:
        pull = prices @ normal_rows if len(normal_rows) else torch.zeros_like(gradient)
        force = gradient + pull
        threshold = torch.where(force > 0, 2 * error, error)
        step = -force / (gradient.abs() + pull + error).clamp(min=1e-300)
        step = size * torch.where(step > 0, growth * step, step)
        return torch.where(force.abs() < threshold, torch.zeros_like(step), step)

    prices = torch.zeros(len(normal_rows), dtype=gradient.dtype)
    ceiling = (
        float(gradient.abs().max() + 2 * error.max()) / max(float(normal_rows.clamp(min=1e-6).min()), 1e-6)
        if len(prices)
        else 0.0
    )
    for _ in range(SWEEPS if len(prices) > 1 else min(1, len(prices))):
        for index, row in enumerate(normal_rows):
            low, high = 0.0, ceiling
            for _ in range(BISECTIONS):
                prices[index] = (low + high) / 2
                over = row @ move(prices) > slack[index]
                low, high = (float(prices[index]), high) if over else (low, float(prices[index]))
    return move(prices)

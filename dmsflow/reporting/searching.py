"""Sections on the search: the widths that were chosen, and what happened on the way to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from dmsflow.network import cost
from dmsflow.reporting import page, view
from dmsflow.reporting.figures import Series, Style, draw_bars, draw_lines
from dmsflow.reporting.runs import BUDGET_UNITS, Group, Run, costs_of, uniform_widths
from dmsflow.reporting.view import Blocks, Panel, Panels, Section, all_runs, describe_cut, describe_mean, style_of

MOST_GROUPS = 4  # whose rounds are drawn layer by layer: a panel for each width
NO_ROUNDS = "no run has a log of moving widths; a gradient search writes one, evolution and baselines do not"
MOST_LINES = 16  # of one panel; of more runs, only the mean of each group


def _worth_drawing(groups: Sequence[Group]) -> Sequence[Group]:
    """Searched networks, or else all but the uniform one, which others are compared with."""
    searched = [group for group in groups if group.is_searched]
    return searched or [group for group in groups if group.method != "uniform"] or groups


def widths_section(groups: Sequence[Group]) -> Section:
    """Channels as bars over the layers, and a table for each network, since each has its own names."""
    chosen = _worth_drawing(groups)
    panels = []
    for number, group in enumerate(chosen[: view.MOST_PANELS], 1):
        uniform = uniform_widths(group.runs[0])
        outline = {"uniform, within the same budgets": [*uniform.values()]} if uniform else None
        each = [[*run.widths.values()] for run in group.runs]
        means = {group.method + describe_mean(len(each)): [statistics.fmean(row) for row in zip(*each, strict=True)]}
        style, dots = style_of(group), each if len(each) > 1 else ()
        figure = draw_bars(group.label, "channels", [*group.runs[0].widths], means, style, dots=dots, outline=outline)
        panels.append(Panel(f"widths-{number}", f"Widths per layer: {group.label}", figure))
    caption = (
        "Channels of each named width, in the order of the layers. The outline is the uniform network within the same "
        "budgets: all base widths times one ratio. Where a bar is above it, the network spends more there."
    )
    blocks: Blocks = [Panels(panels, caption + describe_cut(len(panels), len(chosen), "settings"))]
    networks = [run.network for run in all_runs(groups)]
    for network in (each for at, each in enumerate(networks) if each not in networks[:at]):
        rows = {"": ("base widths", network.widths, costs_of(network, network.widths))}
        for group in groups:
            for run in group.runs:
                if run.network == network:  # runs of a group with the same widths share a row
                    same = all(other.widths == run.widths for other in group.runs)
                    label = group.label if same else run.label
                    rows.setdefault(f"{group.label} {run.widths}", (label, run.widths, run.costs))
        cells = [
            {"run": label, **widths, "MiB": f"{memory:.4f}", "M MACs": f"{macs:.2f}"}
            for label, widths, (memory, macs) in rows.values()
        ]
        blocks.append(page.table(f"Widths of {network.name}", cells))
    return blocks


def size_section(groups: Sequence[Group]) -> Section:
    """Bytes of binary and of float parameters, a bar a layer."""
    chosen = _worth_drawing(groups)
    panels = []
    for number, group in enumerate(chosen[: view.MOST_PANELS], 1):
        run = group.runs[0]
        sizes = cost.layer_bytes(run.network, run.widths, binary=run.binary)
        parts = {"binary weights": [each.binary_bytes for each in sizes]}
        parts["float weights and scales"] = [each.float_bytes for each in sizes]
        title = f"{group.label}: {run.costs[0]:.4f} MiB"
        figure = draw_bars(title, "bytes", [each.layer for each in sizes], parts, Style())
        panels.append(Panel(f"size-{number}", f"Bytes per layer: {run.label}", figure))
    caption = (
        "Bytes of each layer’s parameters: 1 bit a binary weight; float32 scales, first convolution and dense layer."
    )
    caption += " Of several seeds the first is drawn." if any(len(group.runs) > 1 for group in chosen) else ""
    return [Panels(panels, caption + describe_cut(len(panels), len(chosen), "settings"))]


# --- over the rounds ----------------------------------------------------------------------------


def _logged(groups: Sequence[Group], key: str) -> list[tuple[Group, list[Run]]]:
    """Groups with the runs whose logs have a number."""
    pairs = [(group, [run for run in group.runs if run.rounds and key in run.rounds[-1]]) for group in groups]
    return [(group, runs) for group, runs in pairs if runs]


def _lines(groups: Sequence[Group], key: str, convert: Callable[[float], float]) -> list[Series]:
    """A line a run; the mean of each group if that were too many."""
    logged = _logged(groups, key)
    as_means = sum(len(runs) for _, runs in logged) > MOST_LINES
    lines = []
    for group, runs in logged:
        rows = [[(row["round"], convert(row[key])) for row in run.rounds if key in row] for run in runs]
        if as_means:
            # The rounds that all of them have.
            rows = [[(each[0][0], statistics.fmean(y for _, y in each)) for each in zip(*rows, strict=False)]]
        label = group.label + describe_mean(len(runs) if as_means else 1)
        lines += [Series(label, [x for x, _ in row], [y for _, y in row], style_of(group)) for row in rows]
    return lines


def error_section(groups: Sequence[Group]) -> Section:
    """Top-1 error of the shared weights over the rounds, on both halves of the training set."""
    panels: list[Panel] = []
    for key, half in (("weight_top1_percent", "weights’ half, in training"), ("width_top1_percent", "widths’ half")):
        if lines := _lines(groups, key, lambda percent: 100 - percent):
            figure = draw_lines(f"Error on the {half}", "top-1 error, %", lines)
            panels.append(Panel(f"error-{len(panels) + 1}", f"Top-1 error over the search, {half}", figure))
    if not panels:
        return NO_ROUNDS
    caption = (
        "Top-1 error of the shared weights over the rounds of the search: in training, on the half of the training set "
        "that trains weights, and on the half that chooses widths. Lower is better."
    )
    return [Panels(panels, caption)]


def rounds_section(groups: Sequence[Group]) -> Section:
    """How each width moved: a small panel a width, a line a run."""
    logged = _logged(groups, "gradient")
    if not logged:
        return NO_ROUNDS
    blocks: Blocks = []
    for number, (group, runs) in enumerate(logged[:MOST_GROUPS], 1):
        panels = []
        for index, (name, base) in enumerate(runs[0].network.widths.items()):
            figure = draw_lines(name, "", [_mu_line(run, index, base, at) for at, run in enumerate(runs)], small=True)
            panels.append(Panel(f"mu-{number}-{name}", f"{name}: μ ± σ over the rounds, {group.label}", figure))
        caption = "Channels over the rounds: μ, and ± σ as a band" + (", a line a seed." if len(runs) > 1 else ".")
        caption += (
            " ▲ the loss asks for a wider layer, ▼ for a narrower one, by more than the gradient’s standard error."
        )
        blocks += [page.heading(3, group.label), Panels(panels, caption, small=True)]
    if cut := describe_cut(MOST_GROUPS, len(logged), "settings"):
        blocks.append(page.paragraph(cut.strip()))
    return blocks


def _mu_line(run: Run, index: int, base: int, number: int) -> Series:
    """One width over the rounds; ▲ where the loss falls as it grows (a negative gradient)."""
    rows = [row for row in run.rounds if "gradient" in row]
    signs = []
    for row in rows:
        gradient, error = row["gradient"][index], row["gradient_error"][index]
        signs.append(0 if abs(gradient) <= error else -1 if gradient > 0 else 1)
    mu, sigma = ([base * row[key][index] for row in rows] for key in ("mu", "sigma"))
    return Series(run.label, [row["round"] for row in rows], mu, Style(number), sigma, signs)


def budgets_section(groups: Sequence[Group]) -> Section:
    """Memory, and MACs and latency where they have a budget, round by round."""
    runs = [run for _, members in _logged(groups, "gradient") for run in members]
    if not runs:
        return NO_ROUNDS
    limits: dict[str, dict[str, float]] = {}
    for run in runs:
        for name, limit in run.limits.items():
            key = "predicted_latency_ms" if name == "latency_ms" else name
            limits.setdefault(key, {})[f"budget, {limit:.4g} {BUDGET_UNITS[name]}"] = limit
    panels = []
    for key, (title, words) in view.COSTS.items():
        if (key == "memory_mib" or key in limits) and (lines := _lines(groups, key, float)):
            if key == "predicted_latency_ms" and any(run.is_modelled for run in runs):
                title += ", modelled"
            figure = draw_lines(title, words, lines, limits=limits.get(key))
            label = f"{title} over the rounds, against the budgets"
            panels.append(Panel(f"budget-{key.partition('_')[0]}", label, figure))
    caption = (
        "What the widths of each round cost, rounded to whole channels, and the budgets across, each for the runs that "
        "have it. A search that projects onto its budgets is never above them."
    )
    return [Panels(panels, caption)]

"""Sections on the search: the widths that were chosen, and what happened on the way to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from dmsflow.network import cost
from dmsflow.reporting import figures, page
from dmsflow.reporting.figures import Bar, Line, Style
from dmsflow.reporting.runs import BASELINES, LIMITS, Group, Run
from dmsflow.reporting.view import MEASURES, PANELS, TITLES, Absent, Blocks, Figures, Panel, View, numbered, some, times

SMALL_GROUPS = 4  # whose rounds are drawn layer by layer
LINES = 16  # runs with a line of their own; of more, only the mean of each group
BUDGET_OF = {"memory_mib": "memory_mib", "macs_m": "macs_m", "latency_ms": "predicted_latency_ms"}


# --- widths -------------------------------------------------------------------------------------


def _chosen(view: View) -> list[Group]:
    """Groups whose networks are worth a picture: those searched, or else all but the uniform one."""
    searched = [group for group in view.groups if group.searched]
    return searched or [group for group in view.groups if group.method != "uniform"] or list(view.groups)


def widths(view: View) -> Blocks | Absent:
    chosen = _chosen(view)
    panels = tuple(_widths_panel(view, group, index) for index, group in enumerate(chosen[:PANELS]))
    caption = (
        "Channels of each named width, in the order of the layers. The outline is the uniform network within the same "
        "budgets: all base widths times one ratio. Where a bar is above it, the network spends more there."
    )
    caption += some(len(panels), len(chosen), "settings")
    return [Figures(panels, caption), *_widths_tables(view)]


def _widths_panel(view: View, group: Group, index: int) -> Panel:
    names = list(group.runs[0].widths)
    each = [list(run.widths.values()) for run in group.runs]
    means = [statistics.fmean(column) for column in zip(*each, strict=True)]
    uniform = group.runs[0].uniform()
    reference = ("uniform, within the same budgets", list(uniform.values())) if uniform else None
    label = f"{group.method}{times(len(each), mean=True)}"
    drawn = figures.widths(group.label, names, means, each, view.style(group), reference, label)
    return Panel(numbered("widths", index), f"Widths per layer: {group.label}", drawn)


def _widths_tables(view: View) -> Iterator[str]:
    """One for each network, since each has its own names; a group that only repeats a network has one row."""
    networks = [run.network for run in view.runs]
    for network in (each for at, each in enumerate(networks) if each not in networks[:at]):
        rows: dict[tuple[object, ...], tuple[object, ...]] = {}
        for group in view.groups:
            for each in group.runs:
                if each.network == network:
                    same = all(other.widths == each.widths for other in group.runs)
                    row = (
                        group.label if same else each.label,
                        *each.widths.values(),
                        f"{each.memory_mib:.4f}",
                        f"{each.macs_m:.2f}",
                    )
                    rows.setdefault((group.label, *each.widths.values()), row)
        base = cost.memory_bytes(network, network.widths) / cost.MIB, cost.macs(network, network.widths) / 1e6
        base_row = ("base widths", *network.widths.values(), f"{base[0]:.4f}", f"{base[1]:.2f}")
        yield page.table(
            f"Widths of {network.name}", ("run", *network.widths, "MiB", "M MACs"), [base_row, *rows.values()]
        )


# --- size ---------------------------------------------------------------------------------------


def sizes(view: View) -> Blocks | Absent:
    chosen = _chosen(view)
    panels: list[Panel] = []
    for index, group in enumerate(chosen[:PANELS]):
        run = group.runs[0]
        parts = [
            Bar(size.layer, {"binary weights": size.binary_bytes, "float weights and scales": size.float_bytes})
            for size in cost.layer_bytes(run.network, run.widths, binary=run.binary)
        ]
        figure = figures.stacked(f"{group.label}: {run.memory_mib:.4f} MiB", "bytes", parts)
        panels.append(Panel(numbered("size", index), f"Bytes per layer: {run.label}", figure))
    caption = (
        "Bytes of each layer’s parameters: 1 bit a binary weight; float32 scales, first convolution and dense layer."
    )
    caption += " Of several seeds the first is drawn." if any(len(group.runs) > 1 for group in chosen) else ""
    caption += some(len(panels), len(chosen), "settings")
    return [Figures(tuple(panels), caption)]


# --- over the rounds ----------------------------------------------------------------------------


def _logged(view: View, key: str) -> list[tuple[Group, list[Run]]]:
    """Groups with the runs whose rounds tell a number."""
    found = [(group, [run for run in group.runs if run.rounds and key in run.rounds[-1]]) for group in view.groups]
    return [(group, members) for group, members in found if members]


def _lines(view: View, key: str, of: Callable[[float], float]) -> list[Line]:
    """A line a run; the mean of each group if that were too many."""
    found = _logged(view, key)
    count = sum(len(members) for _, members in found)
    drawn = []
    for group, members in found:
        rows = [[(row["round"], of(row[key])) for row in run.rounds if key in row] for run in members]
        if count > LINES:
            shortest = min(map(len, rows))
            rows = [[(rows[0][at][0], statistics.fmean(row[at][1] for row in rows)) for at in range(shortest)]]
        for row in rows:
            x, y = zip(*row, strict=True)
            drawn.append(Line(group.label + times(len(members), mean=count > LINES), x, y, view.style(group)))
    return drawn


def errors(view: View) -> Blocks | Absent:
    panels: list[Panel] = []
    for key, half in (("weight_top1_percent", "weights’ half, in training"), ("width_top1_percent", "widths’ half")):
        if drawn := _lines(view, key, lambda percent: 100 - percent):
            figure = figures.lines(f"Error on the {half}", "round", "top-1 error, %", drawn)
            panels.append(Panel(numbered("error", len(panels)), f"Top-1 error over the search, {half}", figure))
    if not panels:
        return _no_rounds(view)
    caption = (
        "Top-1 error of the shared weights over the rounds of the search: in training, on the half of the training set "
        "that trains weights, and on the half that chooses widths. Lower is better; a jump upwards is what a rebuilt "
        "network forgot."
    )
    if not _logged(view, "weight_top1_percent"):
        caption += " These logs were written by a version that kept no error of the weights’ half."
    return [Figures(tuple(panels), caption)]


def _no_rounds(view: View) -> Absent:
    if any(run.rounds for run in view.runs):
        return Absent("no run moved its widths by a gradient")
    if any("search" in run.stages and run.method not in BASELINES for run in view.runs):
        return Absent("the log of the search has no rounds")
    return Absent("no run has a log of a search; baselines have none")


def rounds(view: View) -> Blocks | Absent:
    found = _logged(view, "gradient")
    if not found:
        return _no_rounds(view)
    blocks: Blocks = []
    for number, (group, members) in enumerate(found[:SMALL_GROUPS]):
        panels: list[Panel] = []
        for index, (name, base) in enumerate(group.runs[0].network.widths.items()):
            figure = figures.lines(
                name, "round", "channels", [_mu(run, index, base, at) for at, run in enumerate(members)], small=True
            )
            panels.append(Panel(f"mu-{number + 1}-{name}", f"{name}: μ ± σ over the rounds, {group.label}", figure))
        blocks.append(page.heading(3, group.label))
        caption = "Channels over the rounds: μ, and ± σ as a band" + (", a line a seed." if len(members) > 1 else ".")
        caption += (
            " ▲ the loss asks for a wider layer, ▼ for a narrower one, by more than the gradient’s standard error."
        )
        blocks.append(Figures(tuple(panels), caption, small=True))
    if rest := some(SMALL_GROUPS, len(found), "settings"):
        blocks.append(page.paragraph(rest.strip()))
    return blocks


def _mu(run: Run, index: int, base: int, at: int) -> Line:
    rows = [row for row in run.rounds if "gradient" in row]
    signs = [
        0 if abs(row["gradient"][index]) <= row["gradient_error"][index] else (-1 if row["gradient"][index] > 0 else 1)
        for row in rows
    ]
    return Line(
        run.label,
        [row["round"] for row in rows],
        [base * row["mu"][index] for row in rows],
        Style(at),
        spread=[base * row["sigma"][index] for row in rows],
        signs=signs,
    )


def budgets(view: View) -> Blocks | Absent:
    moving = _logged(view, "gradient")
    if not moving:
        return _no_rounds(view)
    members = [run for _, group in moving for run in group]
    limits: dict[str, dict[str, float]] = {}
    for run in members:
        for name, limit in run.limits.items():
            limits.setdefault(BUDGET_OF[name], {})[f"budget, {limit:.4g} {LIMITS[name]}"] = limit
    modelled = any(run.predicts_modelled for run in members)
    panels: list[Panel] = []
    for key, words in MEASURES.items():
        if (key == "memory_mib" or key in limits) and (drawn := _lines(view, key, float)):
            title = TITLES[key].capitalize() + (", modelled" if modelled and key == "predicted_latency_ms" else "")
            figure = figures.lines(title, "round", words, drawn, limits=limits.get(key))
            panels.append(
                Panel(f"budget-{key.partition('_')[0]}", f"{title} over the rounds, against the budgets", figure)
            )
    caption = (
        "What the widths of each round cost, rounded to whole channels, and the budgets across, each for the runs that "
        "have it. Under projection no round is above its own."
    )
    return [Figures(tuple(panels), caption)]

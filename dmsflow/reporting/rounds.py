"""The sections of a report over the rounds of searches: error, widths, costs against the budgets."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence

from dmsflow.reporting import page, sections
from dmsflow.reporting.figures import Series, Style, draw_lines
from dmsflow.reporting.runs import BUDGET_UNITS, Group, Run
from dmsflow.reporting.sections import Panel, Panels, Section

SAFE = re.compile("[A-Za-z][A-Za-z0-9_-]*")  # in an identifier and as the name of a file
MOST_LINES = 16  # of one panel; of more runs, only the mean of each group
NO_ROUNDS = "no run has a log of moving widths; a gradient search writes one, evolution and baselines do not"


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
        label = group.label + sections.describe_mean(len(runs) if as_means else 1)
        lines += [Series(label, [x for x, _ in row], [y for _, y in row], sections.style_of(group)) for row in rows]
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
    caption = (
        "Channels over the rounds: μ, and ± σ as a band, a line a seed. ▲ the loss falls as the layer grows, ▼ as it "
        "shrinks, by more than the gradient’s standard error."
    )
    blocks: sections.Blocks = []
    for number, (group, runs) in enumerate(logged[: sections.MOST_GROUPS], 1):
        panels = []
        for index, (name, base) in enumerate(runs[0].network.widths.items()):
            figure = draw_lines(name, "", [_mu_line(run, index, base, at) for at, run in enumerate(runs)], small=True)
            safe = name if SAFE.fullmatch(name) else str(index)
            panels.append(Panel(f"mu-{number}-{safe}", f"{name}: μ ± σ over the rounds, {group.label}", figure))
        blocks += [page.heading(3, group.label), Panels(panels, caption, small=True)]
    if cut := sections.describe_cut(sections.MOST_GROUPS, len(logged)):
        blocks.append(page.paragraph(cut.strip()))
    return blocks


def _mu_line(run: Run, index: int, base: int, number: int) -> Series:
    """One width over the rounds; ▲ where the loss falls as it grows (a negative gradient)."""
    rows = [row for row in run.rounds if "gradient" in row]
    pairs = ((row["gradient"][index], row["gradient_error"][index]) for row in rows)
    signs = [0 if abs(gradient) <= error else -1 if gradient > 0 else 1 for gradient, error in pairs]
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
    for key, (title, words) in sections.COSTS.items():
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

"""The result of the comparison at the end of a search, in a sentence. No torch, for the report prints it too."""

from __future__ import annotations

from typing import Any

CLEAR_ERRORS = 2  # standard errors from which on a lower loss is called better
UNUSED_SHARE = 0.9  # a baseline that takes less of a budget is named: it could have been wider


def describe_verdict(rows: list[dict[str, Any]], chosen: dict[str, Any]) -> str:
    """Whether the searched widths (the first row) beat the best baseline, or which widths were kept instead.

    Baselines that leave a budget unused are named: where a cost moves in steps, a step can stop all their widths at once.
    """
    searched, *baselines = rows
    best = min(baselines, key=lambda row: row["loss_difference"]) if chosen is searched else chosen
    name, lead, error = (best[key] for key in ("name", "loss_difference", "standard_error"))
    kept_better = chosen is not searched and lead < 0
    if kept_better:
        verdict = f"The widths of {name} were kept instead of the searched ones: their loss is"
    elif chosen is not searched:
        verdict = (
            f"The search did not beat {name} by two standard errors, so those widths were kept: the searched loss is"
        )
    elif lead > 0 and is_beaten(best):
        verdict = f"The search beat the best baseline, {name}: the searched loss is"
    else:
        verdict = f"The search did not beat the best baseline, {name}, by two standard errors: the searched loss is"
    side = "lower" if kept_better or lead > 0 else "higher"
    verdict += f" {abs(lead):.4f} ± {error:.4f} {side} (standard error, the same images)."
    used = ((row["name"], *each) for row in baselines for each in (row.get("budgets_used") or {}).items())
    unused = [f"{rule} takes {100 * part:.0f} % of the {budget}" for rule, budget, part in used if part < UNUSED_SHARE]
    return verdict + (f" Budgets that a baseline does not fill: {', '.join(unused)}." if unused else "")


def is_beaten(row: dict[str, Any]) -> bool:
    """Whether the searched widths have a loss lower than a baseline's by CLEAR_ERRORS standard errors."""
    return bool(row["loss_difference"] >= CLEAR_ERRORS * row["standard_error"])

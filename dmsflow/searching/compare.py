"""The searched widths beside the baselines, on images that chose nothing."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from dmsflow.network.latency import Latency
from dmsflow.searching import budget
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.terminal import print_table


@torch.no_grad()
def compare_widths(state: SuperNetwork, candidates: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Hard-width loss of each candidate on images that chose nothing, against the first of them.

    Returns a row a candidate: name, widths, loss, top1_percent, and the paired difference of its
    loss to the first one's with its standard error.
    """
    rows: list[dict[str, Any]] = []
    reference = None
    for name, widths in candidates.items():
        losses, right = _per_image(state, widths)
        reference = losses if reference is None else reference
        difference = losses - reference
        rows.append(
            {
                "name": name,
                "widths": widths,
                **budget.figures(state.network, widths, state.latency),
                "loss": float(losses.mean()),
                "top1_percent": 100 * float(right.mean()),
                "loss_difference": float(difference.mean()),
                "standard_error": float(difference.std() / math.sqrt(len(difference))),
                "images": len(losses),
            }
        )
    return rows


def _per_image(state: SuperNetwork, widths: dict[str, int]) -> tuple[Tensor, Tensor]:
    losses, right = [], []
    for images, labels in state.held_out:
        logits = state.model(images, widths).float()
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().cpu())
        right.append((logits.argmax(1) == labels).double().cpu())
    return torch.cat(losses), torch.cat(right)


def choose_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The searched widths (the first row), unless another row's loss is lower by more than its standard error."""
    better = [row for row in rows[1:] if row["loss_difference"] < -row["standard_error"]]
    return min(better, key=lambda row: row["loss"]) if better else rows[0]


def _print_comparison(rows: list[dict[str, Any]], chosen: dict[str, Any], latency: Latency | None) -> None:
    head = (
        "widths of",
        "MiB",
        "M MACs",
        *([latency.unit] if latency else []),
        "top-1 %",
        "loss",
        "loss − searched",
        "",
    )
    cells = [
        (
            row["name"],
            f"{row['memory_mib']:.4f}",
            f"{row['macs_m']:.2f}",
            *([f"{row['predicted_latency_ms']:.3f}"] if latency else []),
            f"{row['top1_percent']:.2f}",
            f"{row['loss']:.4f}",
            f"{row['loss_difference']:+.4f} ± {row['standard_error']:.4f}",
            "chosen" if row is chosen else "",
        )
        for row in rows
    ]
    print_table(f"Shared weights, hard widths, {rows[0]['images']} training images held out", head, cells)
    print(verdict(rows), file=sys.stderr)


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the searched widths beat the flat ones, in a sentence."""
    flat = next(row for row in rows if row["name"] == "flat")
    lead, error = flat["loss_difference"], flat["standard_error"]
    facts = f"its loss is {abs(lead):.4f} ± {error:.4f} {'lower' if lead > 0 else 'higher'} (standard error, the same images)"
    if lead > error:
        return f"The search beat flat widths: {facts}."
    return f"The search did not beat flat widths by more than a standard error: {facts}."

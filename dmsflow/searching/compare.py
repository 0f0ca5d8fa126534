"""Compares the searched widths with the baselines, on images that the search did not use."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F

from dmsflow.network.latency import Latency
from dmsflow.searching.supernetwork import SuperNetwork
from dmsflow.searching.verdict import describe_verdict, is_beaten
from dmsflow.terminal import print_line, print_table
from dmsflow.training.step import evaluate, top1_percent


def compare_widths(net: SuperNetwork, candidates: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Loss of each candidate's integer widths on held-out images, against the first of them.

    Returns a row a candidate: name, widths, costs, what it takes of each budget, loss, top1_percent, and the paired
    difference of its loss to the first one's with its standard error.
    """
    rows: list[dict[str, Any]] = []
    reference, budgets = None, net.budgets
    for name, widths in candidates.items():
        logits, labels = evaluate(net.model, net.held_out, widths)
        losses = F.cross_entropy(logits, labels, reduction="none").double()
        reference = losses if reference is None else reference
        difference = losses - reference
        used = {each.name: each.cost(widths) / each.limit for each in budgets.limits}
        row: dict[str, Any] = {"name": name, "widths": widths, **budgets.figures(widths), "budgets_used": used}
        row |= {"loss": float(losses.mean()), "top1_percent": top1_percent(logits, labels)}
        error = float(difference.std() / math.sqrt(len(difference)))
        row |= {"loss_difference": float(difference.mean()), "standard_error": error, "images": len(losses)}
        rows.append(row)
    return rows


def choose_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The searched widths (the first row), where they clearly beat the balanced ones and no baseline is better.

    A baseline is better if its loss is lower by more than its standard error. Balanced widths need no search, so it is
    for the search to show that its own are better.
    """
    better = [row for row in rows[1:] if row["loss_difference"] < -row["standard_error"]]
    if better:
        return min(better, key=lambda row: row["loss"])
    not_beaten = (row for row in rows if row["name"] == "balanced" and not is_beaten(row))
    return next(not_beaten, rows[0])


def print_comparison(rows: list[dict[str, Any]], chosen: dict[str, Any], latency: Latency | None) -> None:
    """The rows as a table, and a sentence on the searched widths, on stderr."""
    predicted = [latency.unit] if latency else []
    head = ("widths of", "MiB", "file KiB", "M MACs", *predicted, "top-1 %", "loss", "loss − searched", "")
    cells = []
    for row in rows:
        costs = [f"{row['memory_mib']:.4f}", f"{row['file_kib']:.1f}", f"{row['macs_m']:.2f}"]
        costs += [f"{row['predicted_latency_ms']:.3f}"] if latency else []
        difference = f"{row['loss_difference']:+.4f} ± {row['standard_error']:.4f}"
        mark = "chosen" if row is chosen else ""
        cells.append((row["name"], *costs, f"{row['top1_percent']:.2f}", f"{row['loss']:.4f}", difference, mark))
    print_table(f"Shared weights, integer widths, {rows[0]['images']} held-out training images", head, cells)
    print_line(describe_verdict(rows, chosen))

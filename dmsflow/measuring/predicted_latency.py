"""Predicts the time of a file with a profile: the one of --profile, or the one that its search used.

A profile predicts only for files like those it was measured with: the same exporter, precision and
number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsflow import manifest
from dmsflow.deploying.target import load_target
from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.files import hash_file
from dmsflow.manifest import Manifest
from dmsflow.measuring.devices import Machine, Timing
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.network import value
from dmsflow.network.profile import Profile
from dmsflow.settings import BenchSettings
from dmsflow.terminal import format_method, format_threads, milliseconds, print_line, print_table, share_percent


@dataclass(frozen=True)
class Prediction:
    """A profile's prediction for one file.

    Attributes:
        sha256: of the profile's file.
        ms: for one image.
        blocks: a row for each fused block: its name, widths in and out, ms and share of the total.
    """

    profile: Profile
    sha256: str
    ms: float
    blocks: list[dict[str, Any]]

    def metrics(self, measured_ms: float) -> dict[str, Any]:
        """The prediction as a manifest keeps it; its error is below zero where the file took longer."""
        error = 100 * (self.ms / measured_ms - 1)
        return {"predicted_latency_ms": self.ms, "prediction_error_percent": error, "pieces": self.blocks}


def predict(source: Path, export: Manifest | None, settings: BenchSettings) -> Prediction | None:
    """Predict with the profile of --profile, or else with the search's.

    None: there is no profile, or it is of files that cannot be compared (a line on stderr says so).

    Raises:
        DmsflowError: the profile lacks a block of the network, is damaged, or is the one asked for
            and is of files that cannot be compared.
    """
    if export is None:
        if settings.profile:
            what = f"cannot predict the time of {source}: no manifest has its widths"
            raise DmsflowError("--profile", what, "give the export.json of the file, or leave it out")
        return None
    chain = manifest.chain(source, whole=settings.profile is not None)
    path = profile.find_profile(settings.profile) if settings.profile else manifest.inherited(chain, "profile")
    if path is None:
        if missing := chain[0][1].parent:
            print_line(
                f"no prediction: {chain[0][0]} was made from {missing.path}, which is missing, so the profile is unknown"
            )
        return None
    used = profile.load_profile(str(path))
    of_stage = {each.stage: each.settings for _, each in chain}
    target_name, precision = of_stage["export"]["target"], of_stage["train"]["precision"]
    if why := why_not_comparable(used, target_name, precision, settings.threads):
        if settings.profile:
            raise DmsflowError(f"--profile {settings.profile}", why, "choose another: dmsflow list profiles")
        print_line(f"no prediction: the search's profile {used.title} {why}")
        return None
    given = of_stage.get("search", {}).get("network", "")
    latency, widths = build_latency(export.network, used, given), export.widths
    total = latency(widths)
    timed = latency.by_block(widths)
    parts = [(block.name, value(widths, block.reads), value(widths, block.writes), ms) for block, ms in timed]
    parts = [*parts, ("overhead of a run", None, None, used.overhead_ms)]
    head = ("piece", "input_width", "output_width", "predicted_ms", "share_percent")
    blocks = [dict(zip(head, (*part, share_percent(part[-1], total)), strict=True)) for part in parts]
    return Prediction(used, hash_file(path), total, blocks)


def why_not_comparable(used: Profile, target_name: str, precision: str, threads: int) -> str | None:
    """Why a profile does not predict a network trained, exported and run in this way; None: it does."""
    if used.precision != precision:
        return f"has times of {used.precision} networks, and this network is {precision}"
    if used.target != target_name and load_target(used.target).exporter != load_target(target_name).exporter:
        return f"has times of files for {used.target}, and this file is for {target_name}"
    if used.threads != threads:
        return f"was measured with {format_threads(used.threads)}, and bench uses {format_threads(threads)}"
    return None


def print_beside(prediction: Prediction, measured: Timing, measured_ms: float, machine: Machine) -> None:
    """Print the predicted and the measured time, where the prediction comes from, and the share of each block.

    `measured_ms` is the number of the file's timing to compare with.
    """
    used, title = prediction.profile, prediction.profile.title
    error = f"{prediction.metrics(measured_ms)['prediction_error_percent']:+.1f}"
    row = title, milliseconds(prediction.ms), milliseconds(measured_ms), error
    print_table("Predicted and measured", ("profile", "predicted ms", "measured ms", "error %"), [row])
    origin, date = measured_machine(used.environment).get("processor"), used.environment.get("date")
    where = f"{format_method(used.method)} {used.device} ({origin})"
    print_line(f"{title}: {where}, {used.runtime}, {format_threads(used.threads)}, {date}")
    for what, theirs, ours in (("processor", origin, machine.processor), ("runtime", used.runtime, measured.runtime)):
        if theirs != ours:
            print_line(f"{title} is of another {what}: {theirs}, and this is {ours}")
    cells = []
    for block in prediction.blocks:
        name, reads, writes, ms, share = block.values()
        cells.append((name, reads, writes, milliseconds(ms), f"{share:.1f}"))
    print_table(f"Predicted by block, profile {title}", ("block", "width in", "width out", "ms", "share %"), cells)

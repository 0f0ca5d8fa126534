"""How long a file should take, by a profile: the one asked for, or the one that its search used.

A profile predicts for the files that it was measured with: of another target's kind, another precision
or another number of threads it says nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmsflow import manifest
from dmsflow.deploying import target
from dmsflow.environment import measured_machine
from dmsflow.errors import DmsflowError
from dmsflow.files import hash_file
from dmsflow.manifest import Chain, Manifest
from dmsflow.measuring.devices import Machine, Timing
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.network import value
from dmsflow.network.profile import Profile
from dmsflow.settings import BenchSettings
from dmsflow.terminal import milliseconds, print_table, share_percent, spelled_method, spelled_threads


@dataclass(frozen=True)
class Prediction:
    """What a profile says of a file.

    Attributes:
        sha256: of the profile's file.
        ms: for one image.
        blocks: a row for each part of the network: what it is, widths in and out, time and share of it.
    """

    profile: Profile
    sha256: str
    ms: float
    blocks: list[dict[str, Any]]

    def error_percent(self, measured_ms: float) -> float:
        """Below zero where the file took longer."""
        return 100 * (self.ms / measured_ms - 1)

    def metrics(self, measured_ms: float) -> dict[str, Any]:
        """What a manifest says of it, beside what was measured."""
        return {
            "predicted_latency_ms": self.ms,
            "prediction_error_percent": self.error_percent(measured_ms),
            "pieces": self.blocks,
        }

    def facts(self) -> dict[str, Any]:
        """The profile, as a manifest names it."""
        return {"name": self.profile.name, "method": self.profile.method, "sha256": self.sha256}


def of(source: Path, export: Manifest | None, settings: BenchSettings) -> Prediction | None:
    """With the profile asked for, else the search's; None: there is none, or it is of other files (a line says so).

    Args:
        source: an export.json, or a file of its own.
        export: its manifest; None: it has none.
        settings: of the bench.

    Raises:
        DmsflowError: the profile lacks a part of the network, is damaged, or is the one asked for
            and says nothing of this file.
    """
    if export is None:
        if settings.profile:
            what = f"cannot tell the time of {source}, whose widths no manifest tells"
            raise DmsflowError("--profile", what, "give the export.json of the file, or leave it out")
        return None
    chain = manifest.chain(source, whole=settings.profile is not None)
    path = profile.find_profile(settings.profile) if settings.profile else manifest.inherited(chain, "profile")
    if path is None:
        if missing := chain[0][1].parent:
            _say(f"no prediction: {missing.path}, which {chain[0][0]} was made from, is not there to name a profile")
        return None
    found = profile.load_profile(str(path))
    if why := _why_not(found, chain, settings):
        if settings.profile:
            raise DmsflowError(f"--profile {settings.profile}", why, "choose another: dmsflow list profiles")
        _say(f"no prediction: the search's profile {found.title} {why}")
        return None
    return _predicted(found, hash_file(path), export)


def _why_not(found: Profile, chain: Chain, settings: BenchSettings) -> str | None:
    by_stage = {each.stage: each for _, each in chain}
    aim, precision = by_stage["export"].settings["target"], by_stage["train"].settings["precision"]
    return other_files(found, aim, precision, settings.threads)


def other_files(found: Profile, aim: str, precision: str, threads: int) -> str | None:
    """Why the times of a profile are not those of a network that is trained, exported and run so; None: they are.

    Args:
        found: the profile.
        aim: the target's name.
        precision: "binary" or "float".
        threads: of the runtime.
    """
    if found.precision != precision:
        return f"is of {found.precision} networks, and this one is {precision}"
    if found.target != aim and target.load(found.target).exporter != target.load(aim).exporter:
        return f"is of files for {found.target}, and this one is for {aim}"
    if found.threads != threads:
        return f"is of {spelled_threads(found.threads)}, and this bench of {spelled_threads(threads)}"
    return None


def _predicted(found: Profile, sha256: str, export: Manifest) -> Prediction:
    latency = build_latency(export.network, found)
    total = latency(export.widths)
    parts = [
        (block.name, value(export.widths, block.reads), value(export.widths, block.writes), ms)
        for block, ms in latency.by_block(export.widths)
    ]
    head = ("piece", "input_width", "output_width", "predicted_ms")
    rows = [dict(zip(head, row, strict=True)) for row in (*parts, ("overhead of a run", None, None, found.overhead_ms))]
    return Prediction(
        found, sha256, total, [{**row, "share_percent": share_percent(row["predicted_ms"], total)} for row in rows]
    )


def print_beside(prediction: Prediction, measured: Timing, measured_ms: float, machine: Machine) -> None:
    """Print it beside what was measured, where it comes from, and what each part of the network takes of it.

    Args:
        prediction: of the file.
        measured: the file's own timing.
        measured_ms: what of that is compared.
        machine: that measured it.
    """
    used, title = prediction.profile, prediction.profile.title
    error = f"{prediction.error_percent(measured_ms):+.1f}"
    row = title, milliseconds(prediction.ms), milliseconds(measured_ms), error
    print_table("Predicted and measured", ("profile", "predicted ms", "measured ms", "error %"), [row])
    origin = measured_machine(used.environment).get("processor")
    date = used.environment.get("date")
    how, threads = spelled_method(used.method), spelled_threads(used.threads)
    _say(f"{title}: {how} {used.device} ({origin}), {used.runtime}, {threads}, {date}")
    if origin != machine.processor:
        _say(f"{title} is of another processor: {origin}, and this is {machine.processor}")
    if used.runtime != measured.runtime:
        _say(f"{title} is of another runtime: {used.runtime}, and this is {measured.runtime}")
    cells = [
        (
            *(part[key] for key in ("piece", "input_width", "output_width")),
            milliseconds(part["predicted_ms"]),
            f"{part['share_percent']:.1f}",
        )
        for part in prediction.blocks
    ]
    print_table(f"Predicted by block, profile {title}", ("piece", "width in", "width out", "ms", "share %"), cells)


def _say(line: str) -> None:
    print(line, file=sys.stderr)

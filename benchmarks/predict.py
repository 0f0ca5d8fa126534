"""How well a profile predicts networks that it has not seen, measured in the same run.

Measures this machine (at most some minutes), then at least 30 networks of random widths, and
prints predicted, measured and the error of each; docs/results.md has its figures from the JSON
that this writes:

    python benchmarks/predict.py --target x86-64
    python benchmarks/predict.py --target x86-64 --runner lce
    python benchmarks/predict.py --target onnx
    python benchmarks/predict.py --target onnx --precision float
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import script

from dmsflow.deploying.target import load_target
from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.measuring import devices, profiling
from dmsflow.measuring.devices import Access
from dmsflow.measuring.random_weights import write_random
from dmsflow.measuring.timing import History
from dmsflow.network import profile
from dmsflow.network.latency import build_latency
from dmsflow.network.network import Network
from dmsflow.network.profile import Checked, Profile
from dmsflow.settings import ProfileSettings
from dmsflow.terminal import print_table

NETWORKS = "vgg11", "resnet18"
RATIOS = {32: 8.0, 48: 8.0, 64: 2.0}  # largest, by resolution: 64 pixels and more have the ImageNet widths
EACH = 6  # networks of each architecture at each resolution
SEED = 20_000  # the profile checks itself on other widths
RESULTS = Path(__file__).parent.parent / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="x86-64")
    parser.add_argument("--precision", choices=("binary", "float"), default="binary")
    parser.add_argument("--runner", help="litert, lce or onnxruntime; the target's own unless given")
    parser.add_argument("--runs", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        made = measured(arguments, Path(folder))
        seconds = time.monotonic() - began
        rows = checked(arguments, made, Path(folder))
    summary = summed_up(arguments, made, rows, seconds)
    show(rows, summary)
    names = filter(None, ("predict", arguments.target, arguments.precision, arguments.runner))
    path = RESULTS / f"{'-'.join(names)}.json"
    content = {
        **summary,
        "networks": [{**msgspec.to_builtins(row), "error_percent": row.error_percent} for row in rows],
    }
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    print(path)


def settings(arguments: argparse.Namespace, resolution: int) -> ProfileSettings:
    return ProfileSettings(
        target=arguments.target,
        precision=arguments.precision,
        networks=NETWORKS,
        resolutions=(resolution,),
        max_ratio=RATIOS[resolution],
        check=0,
        runner=arguments.runner,
    )


def measured(arguments: argparse.Namespace, folder: Path) -> Profile:
    """A fresh profile of this machine."""
    for index, resolution in enumerate(RATIOS):
        path = profiling.measure_profile(settings(arguments, resolution), "host", folder, command=(), add=index > 0)
    return profile.load_profile(str(path))


def checked(arguments: argparse.Namespace, made: Profile, folder: Path) -> list[Checked]:
    """Networks of random widths, predicted and measured beside the profile's own reference."""
    draw = np.random.default_rng(SEED)
    chosen = settings(arguments, 32)
    target = load_target(arguments.target)
    target = msgspec.structs.replace(target, runner=devices.runner_of(target, chosen))
    rows = []
    with devices.connect("local", Access()) as measure:
        watch = profiling.start_stopwatch(chosen, target, measure, folder, History())
        for resolution in RATIOS:
            for network in (load_network(name, 3, resolution, 10) for name in NETWORKS):
                latency = build_latency(network, made)
                for _ in range(EACH):
                    widths = profiling.draw_widths(network, latency.widest(), draw)
                    file = write_random(target, chosen.precision, network, widths, folder / "network")
                    (timing,) = watch.time_files([file], arguments.runs)
                    rows.append(row(network, widths, latency(widths), timing.ms))
    return rows


def row(network: Network, widths: dict[str, int], predicted_ms: float, measured_ms: float) -> Checked:
    return Checked(
        network=network.name,
        resolution=network.resolution,
        widths=tuple(widths.values()),
        predicted_ms=round(predicted_ms, 6),
        measured_ms=round(measured_ms, 6),
    )


def summed_up(arguments: argparse.Namespace, made: Profile, rows: list[Checked], seconds: float) -> dict[str, Any]:
    errors = [abs(row.error_percent) for row in rows]
    return {
        "target": arguments.target,
        "precision": arguments.precision,
        "runtime": made.runtime,
        "threads": made.threads,
        "profile_seconds": round(seconds),
        "points": sum(len(line) for table in made.tables for line in table.ms),
        "count": len(rows),
        "median_error_percent": round(statistics.median(errors), 2),
        "largest_error_percent": round(max(errors), 2),
        "within_10_percent": sum(error <= 10 for error in errors),
        "needed_within_10_percent": math.ceil(0.9 * len(rows)),
        "drift_percent": made.drift_percent,
        "environment": made.environment,
    }


def show(rows: list[Checked], summary: dict[str, Any]) -> None:
    print_table(
        f"{summary['runtime']}, {summary['threads']} thread, {summary['environment']['processor']}",
        ("network", "pixels", "widths", "predicted ms", "measured ms", "error %"),
        [
            (
                row.network,
                row.resolution,
                " ".join(map(str, row.widths)),
                f"{row.predicted_ms:.4f}",
                f"{row.measured_ms:.4f}",
                f"{row.error_percent:+.1f}",
            )
            for row in rows
        ],
    )
    print(
        f"profile: {summary['points']} points in {summary['profile_seconds']} s; {summary['count']} networks: median error "
        f"{summary['median_error_percent']} %, {summary['within_10_percent']} within 10 %, largest {summary['largest_error_percent']} %"
    )


if __name__ == "__main__":
    script.run(main)

"""Searched widths against uniform and equal ones under memory and milliseconds, up to the exported file.

Runs `dmsflow search | train | export | bench` on CIFAR-10 for every method and seed, `--jobs` at a time and one
thread each, goes on where it was stopped, and puts the rows into docs/results/cifar10.json:

    python benchmarks/cifar10.py --data PATH/TO/CIFAR10/FOLDERS --out runs/cifar10

Latency is predicted with the profile of another machine, unless yours is named: `dmsflow profile --name mine`, then
`--profile mine`. That file also keeps rows of "memory" and "memory+MACs", of an earlier commit; those budgets, with
more baselines, are now benchmarks/budgets.py's.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import script

from dmsflow.manifest import load_manifest

CASE = "memory+latency"
BUDGETS = ("--memory-mib", "0.08", "--latency-ms", "0.3")
STAGES = ("search", "train", "export", "bench")
METHODS = {"uniform": "uniform", "flat": "equal", "gradient": "gradient"}  # by their keys in the results
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "cifar10.json"
KEPT = ("versions", "processor", "cores", "threads", "mixed", "commit", "date")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/ and test/, a folder per class in each")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--train-images", default="20000")
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--profile", default="epyc-lce", help="that predicts the milliseconds")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    jobs = list(itertools.product(arguments.seeds, arguments.methods))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        exports = list(pool.map(lambda job: run(arguments, *job), jobs))
    # Latency is measured at the end, one file after the other, with nothing beside it.
    rows = [row(job, stage("bench", export, "--out", export.parent)) for job, export in zip(jobs, exports, strict=True)]
    others = [row for row in json.loads(RESULTS.read_text("utf-8")) if row["case"] != CASE]
    RESULTS.write_text(json.dumps([*others, *rows], indent=1) + "\n", encoding="utf-8")
    print("make docs writes the tables")


def run(arguments: argparse.Namespace, seed: int, method: str) -> Path:
    """One chain up to its export, or what is left of it."""
    out = arguments.out / f"{CASE}-{method}-{seed}"
    data = ["--dataset", f"image-folder:{arguments.data}", "--set", f"data.train_images={arguments.train_images}"]
    seeded = ["--seed", str(seed)]
    budgets = [*BUDGETS, "--profile", arguments.profile]
    search = stage(
        "search", *data, *budgets, "--method", METHODS[method], *seeded, "--set", "search.threads=1", "--out", out
    )
    train = stage("train", search, "--epochs", arguments.epochs, *seeded, "--set", "train.threads=1", "--out", out)
    return stage("export", train, "--target", "x86-64", "--out", out)


def row(job: tuple[int, str], measured: Path) -> dict[str, Any]:
    """What is kept of a chain, by the manifest of its bench."""
    seed, method = job
    search, train, export, bench = (load_manifest(measured.with_name(f"{name}.json")) for name in STAGES)
    found = search.metrics
    return {
        "case": CASE,
        "method": method,
        "seed": seed,
        "widths": list(search.widths.values()),
        "memory_mib": found["memory_mib"],
        "macs_m": found["macs_m"],
        "top1_percent": bench.metrics["top1_percent"],
        "trained_top1_percent": train.metrics["top1_percent"],
        "file_bytes": export.metrics["file_bytes"],
        "predicted_latency_ms": found.get("predicted_latency_ms"),
        "latency_ms_median": bench.metrics["latency_ms_median"],
        "float32_latency_ms_median": bench.metrics["float32_latency_ms_median"],
        "search_seconds": found["seconds"],
        "train_seconds": train.metrics["seconds"],
        "comparison": found.get("comparison"),
        "chosen": found.get("chosen"),
        "train_images": search.data.train_images,
        "epochs": train.settings["epochs"],
        "runtimes": bench.environment["runtimes"],
        "environment": {key: value for key, value in train.environment.items() if key in KEPT},
    }


def stage(name: str, *words: object) -> Path:
    """Run one stage, or find it done; its manifest."""
    out = Path(str(words[-1]))
    path = out / f"{name}.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        with (out / f"{name}.log").open("a") as log:
            command = [sys.executable, "-m", "dmsflow", name, *map(str, words), "--resume"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} failed, see {out / f'{name}.log'}")
    return path


if __name__ == "__main__":
    script.run(main)

"""Searched widths against uniform and flat ones on CIFAR-10, at equal budgets and schedule.

Runs `dmsflow search | train | export | bench` for every method and seed, `--jobs` at a time and
one thread each, and goes on where it was stopped. Every figure of docs/results/cifar10.json, from
which docs/results.md has its table, comes from here:

    python benchmarks/cifar10.py --data PATH/TO/CIFAR10/FOLDERS --out runs/cifar10

The case "memory+latency" is predicted with the profile of another machine, unless yours is named:
`dmsflow profile --name mine`, then `--profile mine`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dmsflow import manifest

CASES = {
    "memory": ("--memory-mib", "0.08"),
    "memory+MACs": ("--memory-mib", "0.08", "--macs-m", "16"),
    "memory+latency": ("--memory-mib", "0.08", "--latency-ms", "0.3"),
}
STAGES = ("search", "train", "export", "bench")
METHODS = ("uniform", "flat", "gradient")
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "cifar10.json"
KEPT = ("versions", "processor", "cores", "threads", "mixed", "commit", "date")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder with train/ and test/, a folder per class in each")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--train-images", default="20000")
    parser.add_argument("--epochs", default="8")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--profile", default="epyc-lce", help="for the budget of the case memory+latency")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    jobs = list(itertools.product(arguments.seeds, arguments.methods, arguments.cases))
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        exports = list(pool.map(lambda job: run(arguments, *job), jobs))
    # Latency is measured at the end, one file after the other, with nothing beside it.
    rows = [row(job, stage("bench", export, "--out", export.parent)) for job, export in zip(jobs, exports, strict=True)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def run(arguments: argparse.Namespace, seed: int, method: str, case: str) -> Path:
    """One chain up to its export, or what is left of it."""
    out = arguments.out / f"{case}-{method}-{seed}"
    data = ["--dataset", f"image-folder:{arguments.data}", "--train-images", arguments.train_images]
    computing = ["--seed", str(seed), "--threads", "1"]
    budgets = [*CASES[case], *(["--profile", arguments.profile] if case == "memory+latency" else [])]
    search = stage("search", *data, *budgets, "--method", method, *computing, "--out", out)
    train = stage("train", search, "--epochs", arguments.epochs, *computing, "--out", out)
    return stage("export", train, "--target", "x86-64", "--out", out)


def row(job: tuple[int, str, str], measured: Path) -> dict[str, Any]:
    """What is kept of a chain, by the manifest of its bench."""
    seed, method, case = job
    search, train, export, bench = (manifest.load(measured.with_name(f"{name}.json")) for name in STAGES)
    found = search.metrics
    return {
        "case": case, "method": method, "seed": seed, "widths": list(search.widths.values()),
        "memory_mib": found["memory_mib"], "macs_m": found["macs_m"],
        "top1_percent": bench.metrics["top1_percent"], "trained_top1_percent": train.metrics["top1_percent"],
        "file_bytes": export.metrics["file_bytes"],
        "predicted_latency_ms": found.get("predicted_latency_ms"),
        "latency_ms_median": bench.metrics["latency_ms_median"],
        "float32_latency_ms_median": bench.metrics["float32_latency_ms_median"],
        "search_seconds": found["seconds"], "train_seconds": train.metrics["seconds"],
        "comparison": found.get("comparison"), "chosen": found.get("chosen"),
        "train_images": search.data.train_images, "epochs": train.settings["epochs"],
        "runtimes": bench.environment["runtimes"],
        "environment": {key: value for key, value in train.environment.items() if key in KEPT},
    }  # fmt: skip


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


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| budgets | widths | MiB | M MACs | top-1 %, each seed | mean ± deviation | predicted ms | ms | float32 ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (case, method), group in grouped(rows):
        top1 = [row["top1_percent"] for row in group]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""

        def mean(key: str, group: Sequence[dict[str, Any]] = group) -> float:
            return statistics.mean(row[key] for row in group)

        cells = (
            case, f"{'searched' if method == 'gradient' else method}: {'; '.join(unique(group))}",
            f"{mean('memory_mib'):.4f}", f"{mean('macs_m'):.1f}", ", ".join(f"{one:.2f}" for one in top1),
            f"{statistics.mean(top1):.2f}{spread}", _predicted(group), f"{mean('latency_ms_median'):.3f}", f"{mean('float32_latency_ms_median'):.3f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _predicted(group: Sequence[dict[str, Any]]) -> str:
    """The mean of what the searches predicted; those without a profile predict nothing."""
    told = [row["predicted_latency_ms"] for row in group if row.get("predicted_latency_ms")]
    return f"{statistics.mean(told):.3f}" if told else "–"


def grouped(rows: Sequence[dict[str, Any]]) -> Iterable[tuple[tuple[str, str], list[dict[str, Any]]]]:
    def key(row: dict[str, Any]) -> tuple[int, int]:
        return list(CASES).index(row["case"]), METHODS.index(row["method"])

    for _, group in itertools.groupby(sorted(rows, key=key), key):
        members = list(group)
        yield (members[0]["case"], members[0]["method"]), members


def unique(group: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(" ".join(map(str, row["widths"])) for row in group))


if __name__ == "__main__":
    main()

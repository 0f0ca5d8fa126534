"""Modules that nobody here wrote, through all stages: twelve classifiers of torchvision, with random images.

Each goes from `search --dry-run` over widths, a training of a few steps and an export to a benched file, or is refused
in one line that names the operation:

    python benchmarks/modules.py --out runs/modules
    python benchmarks/modules.py --out runs/modules --tabulate

A network that is done is a small file, and is not run again, nor one that the results file has from another machine. The
second command writes docs/results/modules.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import script
from front import Rows, fill, finished, restore, write
from PIL import Image

from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.manifest import load_manifest
from dmsflow.terminal import print_table

MODULES = (
    *("vgg11_bn", "resnet18", "resnet34", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x1_0", "squeezenet1_0", "googlenet", "efficientnet_b0", "regnet_x_400mf"),
)
RESOLUTION, CLASSES, IMAGES = 224, 10, {"train": 4, "test": 2}  # images of each class
TRAIN = ("--epochs", "1", "--set", "train.min_steps=1", "--set", "train.batch_size=8", "--set", "train.threads=1")
EXPORT = ("--target", "x86-64", "--check-images", "4", "--close-percent", "100")
BENCH = ("--runs", "10", "--warm-up", "2", "--threads", "1")


def draw_images(folder: Path) -> None:
    """Class folders of noise."""
    random = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for label in range(CLASSES):
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = random.integers(0, 256, (RESOLUTION, RESOLUTION, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")


def all_rows(out: Path) -> Rows:
    for name in MODULES:
        yield out / "rows" / f"{name}.json", {"module": name}, partial(make_row, name, out)


def make_row(name: str, out: Path) -> dict[str, Any]:
    return {**go_through(name, out / "images", out / name), "environment": describe_environment()}


def go_through(name: str, images: Path, out: Path) -> dict[str, Any]:
    """What came of one module: what refused it, or its costs and its file's."""
    data = ("--dataset", f"image-folder:{images}", "--resolution", str(RESOLUTION))
    search = ("search", "--network", f"torchvision:{name}", *data, "--method", "equal", "--out", str(out))
    began = time.monotonic()
    stages = [
        (*search, "--dry-run"),
        (*search, "--resume"),
        ("train", str(out / "search.json"), *TRAIN, "--resume"),
        ("export", str(out / "train.json"), *EXPORT, "--resume"),
        ("bench", str(out / "export.json"), *BENCH, "--resume"),
    ]
    for words in stages:
        print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", "dmsflow", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            line = [each for each in done.stderr.splitlines() if each.strip()][-1]
            return {"stage": words[0], "code": done.returncode, "refused": line.replace(str(out), out.name)}
    chosen, benched = (load_manifest(out / f"{stage}.json", stage).metrics for stage in ("search", "bench"))
    ratio = benched.get("latency_ratio_to_float32")
    return {
        **{name: chosen[name] for name in ("memory_mib", "macs_m")},
        **{name: benched[name] for name in ("file_bytes", "latency_ms_median")},
        "latency_ratio_to_float32": ratio,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--out", type=Path, default=Path("runs/modules"), help="folder of all runs; done ones are kept")
    parser.add_argument("--tabulate", action="store_true", help="run nothing; write what is done")
    parser.add_argument("--results", type=Path, default=jobs.RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    results = arguments.results / "modules.json"
    restore(results, all_rows(arguments.out))
    if not arguments.tabulate:
        os.environ["OMP_NUM_THREADS"] = "1"
        draw_images(arguments.out / "images")
        if failed := fill(row for row in all_rows(arguments.out) if row[1]["module"] in arguments.modules):
            raise DmsflowError(arguments.out, f"{failed} rows failed", "read their messages, and start again")
        return
    content = finished(all_rows(arguments.out))
    write(results, {"resolution": RESOLUTION, "classes": CLASSES, "rows": content})
    cells = [(row["module"], row.get("refused", f"{row.get('file_bytes', 0) / 2**20:.2f} MiB")) for row in content]
    print_table("Classifiers of torchvision", ("module", "file, or why it is refused"), cells, stream=sys.stdout)


if __name__ == "__main__":
    script.run(main)

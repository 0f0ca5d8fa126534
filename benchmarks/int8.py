"""1-bit, int8 and float32 networks of several widths: which is best at which memory, file and time?

VGG-11 and ResNet-18 on CIFAR-10, the default recipe. Each network of a scale (its base widths times a factor) is trained
twice for each seed, in one bit and in float; the float one is written in float32 and, quantised by onnxruntime's own
tools, in int8. Every file's bytes and top-1 are measured, and its instructions are counted on emulated ARM cores
(modelled). How long such files take on this processor is in the results of runtimes.py, so that rows of any machine
stand side by side. Scales, seeds and epochs are constants here. A finished row is a small file, and none is run twice,
nor any that the results file has from another machine:

    python benchmarks/int8.py --dataset image-folder:PATH/TO/CIFAR10/FOLDERS
    python benchmarks/int8.py --tabulate

The second runs nothing: it writes docs/results/int8.json from the rows that are done.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import script
from front import Place, Rows, call, fill, read, restore, write

from dmsflow.errors import DmsflowError
from dmsflow.importing import load_network
from dmsflow.manifest import load_manifest
from dmsflow.network import cost
from dmsflow.network.network import with_stem
from dmsflow.terminal import print_table

NETWORKS = {"vgg11": (0.5, 1.0, 2.0, 3.0), "resnet18": (0.5, 1.0, 2.0)}  # and the factors of their base widths
SEEDS = (0, 1, 2)
TRAIN_IMAGES, EPOCHS = 20_000, 12
SETTINGS: tuple[str, ...] = ()  # of trainings beside the defaults
PRECISIONS = {"1-bit": ("binary", "x86-64"), "int8": ("float", "onnx-int8"), "float32": ("float", "onnx")}
ARM = {"1-bit": "arm64", "int8": "onnx-int8", "float32": "onnx"}  # targets of the same networks for ARM
CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
RUNS = ("--runs", "20", "--baseline", "none", "--threads", "1")


def choose(network: str, scale: float, where: Place) -> Path:
    """The search.json of base widths times a factor: uniform widths that fill their memory."""
    out = where.out / f"{network}-{scale:g}"
    base = with_stem(load_network(network, 3, 32, 10), "int8")
    widths = {name: round(scale * width) for name, width in base.widths.items()}
    memory = cost.memory_bytes(base, widths) / cost.MIB * (1 + 1e-9)
    if not (out / "search.json").exists():
        images = [*where.data, "--set", f"data.train_images={TRAIN_IMAGES}"]
        options = ["--network", network, "--method", "uniform", "--memory-mib", repr(memory), "--out", str(out)]
        call("search", *options, *images, "--resume")
    return out / "search.json"


def make_row(network: str, scale: float, seed: int, where: Place) -> dict[str, Any]:
    """Train in one bit and in float, write and measure the files."""
    choice = choose(network, scale, where)
    found: dict[str, Any] = {}
    for precision, (trained_in, target) in PRECISIONS.items():
        out = choice.parent / f"{trained_in}-{seed}"
        changes = [f"--set={change}" for change in ("train.threads=1", *SETTINGS)]
        options = ["--precision", trained_in, "--epochs", str(EPOCHS), "--seed", str(seed), *changes]
        call("train", str(choice), *options, "--resume", "--out", str(out))
        written = measure(out / "train.json", target, ("local",))
        modelled = measure(out / "train.json", ARM[precision], [f"qemu://{core}" for core in CORES]) if not seed else {}
        modelled_ms = {name: each["ms"] for name, each in modelled.items()}
        found[precision] = {**written["local"], "modelled_ms": modelled_ms}
        del found[precision]["ms"]  # of this processor alone
    done = load_manifest(choice.parent / f"binary-{seed}" / "train.json", "train")
    environment = {key: value for key, value in done.environment.items() if key in jobs.KEPT}
    return {"widths": list(done.widths.values()), "files": found, "environment": environment}


def measure(train: Path, target: str, devices: Any) -> dict[str, Any]:
    """What a file is on each device: bytes, memory, top-1 and milliseconds."""
    out = train.parent / target
    call("export", str(train), "--target", target, "--resume", "--out", str(out))
    found = {}
    for device in devices:
        place = out / device.rpartition("/")[2]
        options = [*RUNS, "--device", device, *([] if device == "local" else ["--no-accuracy"])]
        call("bench", str(out / "export.json"), *options, "--resume", "--out", str(place))
        chosen, benched = (
            load_manifest(out / "export.json", "export").metrics,
            load_manifest(place / "bench.json", "bench"),
        )
        names = {"ms": "latency_ms_median", "file_bytes": "file_bytes", "top1_percent": "top1_percent"}
        found[device.rpartition("/")[2]] = {
            "memory_mib": chosen["memory_mib"],
            **{name: benched.metrics[key] for name, key in names.items() if key in benched.metrics},
        }
    return found


def row_path(network: str, scale: float, seed: int, out: Path) -> Path:
    return out / "rows" / f"{network}-{scale:g}-{seed}.json"


def all_rows(where: Place) -> Rows:
    scales = [(network, scale) for network, each in NETWORKS.items() for scale in each]
    for seed, (network, scale) in itertools.product(SEEDS, scales):
        named = {"network": network, "scale": scale, "seed": seed}
        yield row_path(network, scale, seed, where.out), named, partial(make_row, network, scale, seed, where)


def run(where: Place) -> int:
    """Every row that is left; how many failed."""
    with jobs.lock(where.out) as free:
        return fill(all_rows(where) if free else ())  # another process is at it


def tabulate(out: Path) -> dict[str, Any]:
    """What docs/results.py reads: the rows that are done, by network and scale."""
    networks = []
    for name, scales in NETWORKS.items():
        for scale in scales:
            paths = (row_path(name, scale, seed, out) for seed in SEEDS)
            networks.append({"network": name, "scale": scale, "rows": [read(path) for path in paths if path.exists()]})
    return {"train_images": TRAIN_IMAGES, "epochs": EPOCHS, "seeds": SEEDS, "cores": CORES, "networks": networks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="as in dmsflow search: cifar10, or image-folder:PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/int8"), help="folder of all runs; done ones are kept")
    parser.add_argument("--tabulate", action="store_true", help="run nothing; write what is done")
    parser.add_argument("--results", type=Path, default=jobs.RESULTS, help="folder of the results file")
    arguments = parser.parse_args()
    where = Place(arguments.out, ("--dataset", arguments.dataset or ""))
    results = arguments.results / "int8.json"
    restore(results, all_rows(where))
    if not arguments.tabulate:
        if not arguments.dataset:
            raise DmsflowError("--dataset", "is not given", "give --dataset image-folder:PATH, or --tabulate")
        os.environ["OMP_NUM_THREADS"] = "1"
        if failed := run(where):
            raise DmsflowError(arguments.out, f"{failed} rows failed", "read their messages, and start again")
        return
    content = tabulate(arguments.out)
    write(results, content)
    cells = [(each["network"], f"{each['scale']:g}", str(len(each["rows"]))) for each in content["networks"]]
    print_table(f"Rows done of {len(SEEDS)} seeds", ("network", "× base widths", "seeds"), cells, stream=sys.stdout)


if __name__ == "__main__":
    script.run(main)

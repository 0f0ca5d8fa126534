"""Networks of larq-zoo, written by dmsflow and by LCE's official converter: bytes, operators and milliseconds.

Bi-Real-18 and QuickNet small for ImageNet, as dmsflow has them, with random weights: they change no time. Both files
compute the same integer graph. All sessions are in one process and run in turns, with one thread: both files in LCE's
interpreter (its best mode on x86-64: indirect kernels and XNNPACK) and in LiteRT with dmsflow's kernels. So it needs the
Python of `make witness`. Times are of the processor, which other programs on the machine change little:

    .witness/bin/python benchmarks/larq_zoo.py
    .witness/bin/python benchmarks/larq_zoo.py --out docs/results/larq-zoo.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import runtimes
import script

from dmsflow.deploying import check, folding, integer_graph
from dmsflow.deploying.exporters import lce
from dmsflow.environment import describe_environment
from dmsflow.files import write_atomically
from dmsflow.importing import load_network
from dmsflow.measuring.devices import _program
from dmsflow.measuring.random_weights import draw_weights
from dmsflow.modelfile.tflite_reader import read_graph
from dmsflow.network import cost
from dmsflow.plugin import load_plugin
from dmsflow.terminal import milliseconds, print_table

NETWORKS = ("birealnet18", "quicknet-small")
RESOLUTION, CLASSES, IMAGES = 224, 1000, 4
WRITERS = {"dmsflow": "direct", "official": "official"}  # the values are those of `export --converter`
RUNNERS = ("lce", "litert")


def compare(name: str, folder: Path, runs: int) -> dict[str, Any]:
    """Both files of one network, and what they take in each runner that is here.

    Raises:
        DmsflowError: a file differs from the integer graph by more than rounding explains.
    """
    network = load_network(name, 3, RESOLUTION, CLASSES)
    graph = folding.fold(network, network.widths, draw_weights(network, network.widths), runtimes.MEAN, runtimes.STD)
    shape = IMAGES, 1, RESOLUTION, RESOLUTION, 3
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    wanted, margins = integer_graph.compute_with_margins(graph, images[:, 0])
    sessions, files = {}, {}
    for writer, converter in WRITERS.items():
        path = folder / f"{name}-{writer}.tflite"
        lce.write(graph, path, converter)
        check.check_packed(lce, graph, path)
        nodes = read_graph(path, path.read_bytes()).nodes
        files[writer] = {"file_bytes": path.stat().st_size, "operators": dict(Counter(node.op for node in nodes))}
        for runner in (each for each in RUNNERS if each in runtimes.usable()):
            session = sessions[writer, runner] = load_plugin("runners", runner).open(path, 1)
            logits = np.concatenate([session.run(image) for image in images])
            check.compare_with_graph(f"{path.name} in {runner}", logits, wanted, margins, 100)
    for (writer, runner), ms in time_turns(sessions, images[0], runs).items():
        files[writer] |= {f"{runner}_ms": statistics.median(ms), f"{runner}_ms_minimum": min(ms)}
    memory = cost.memory_bytes(network, network.widths) / cost.MIB
    return {"network": name, "memory_mib": memory, "macs_m": cost.macs(network, network.widths) / 1e6, "files": files}


def time_turns(sessions: dict[Any, Any], image: Any, runs: int) -> dict[Any, list[float]]:
    """Milliseconds of processor time of each run but the first few, the sessions in turns."""
    ms: dict[Any, list[float]] = {key: [] for key in sessions}
    for turn in range(runtimes.WARM_UP + runs):
        for key, session in sessions.items():
            began = time.process_time_ns()
            session.run(image)
            if turn >= runtimes.WARM_UP:
                ms[key].append((time.process_time_ns() - began) / 1e6)
    return ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of each file in each runner")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    versions = {name: version for name, version in runtimes.usable().items() if name in RUNNERS}
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(name, Path(folder), arguments.runs) for name in NETWORKS]
    cells = [
        (
            row["network"],
            writer,
            f"{file['file_bytes']:,}",
            sum(file["operators"].values()),
            *(milliseconds(file[f"{runner}_ms"]) for runner in versions),
        )
        for row in rows
        for writer, file in row["files"].items()
    ]
    title = f"{', '.join(versions.values())}; one thread, runs in turns, processor time"
    head = ("network", "written by", "bytes", "operators", *(f"{runner} ms" for runner in versions))
    print_table(title, head, cells, stream=sys.stdout)
    if arguments.out:
        command = shlex.join(["python", *sys.argv])
        machine = _program.describe_machine()
        environment = describe_environment(machine=machine, threads=1, runtimes=versions)
        images = {"resolution": RESOLUTION, "classes": CLASSES, "runs": arguments.runs}
        content = {"command": command, "environment": environment, **images, "rows": rows}
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    script.run(main)

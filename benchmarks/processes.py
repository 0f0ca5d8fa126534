"""Images a second of a training: one process with every thread, beside as many processes with one thread each.

Both are `dmsflow train` as a user calls it, and take turns; the median of the epochs of all turns counts, without
the first epoch of each, which warms up.

    python benchmarks/processes.py --out docs/results/processes.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import script

from dmsflow.environment import describe_environment
from dmsflow.errors import DmsflowError
from dmsflow.files import write_atomically
from dmsflow.terminal import print_table

DMSFLOW = ("-m", "dmsflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="as in dmsflow search")
    parser.add_argument("--data-dir", help="as in dmsflow search")
    parser.add_argument("--count", type=int, default=2, help="processes, and threads of the single one")
    parser.add_argument("--batch", type=int, default=64, help="images, in all processes together")
    parser.add_argument("--epochs", type=int, default=6, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    arguments = parser.parse_args()
    count, speeds = arguments.count, {1: list[float](), arguments.count: list[float]()}
    with tempfile.TemporaryDirectory() as folder:
        data = ["--dataset", arguments.dataset, *(["--data-dir", arguments.data_dir] if arguments.data_dir else [])]
        call([*DMSFLOW, "search", *data, "--method", "equal", "--out", folder])
        for turn in range(arguments.turns):
            for processes, kept in speeds.items():
                out = Path(folder, f"{turn}-{processes}")
                options = ["--epochs", str(arguments.epochs), "--out", str(out)]
                options += [f"--set=train.batch_size={arguments.batch}", f"--set=train.threads={count // processes}"]
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
                call([*(launcher if processes > 1 else []), *DMSFLOW, "train", f"{folder}/search.json", *options])
                rows = map(json.loads, (out / "train.jsonl").read_text().splitlines())
                kept += [row["images_per_second"] for row in rows if row["epoch"] > 1]
    medians = {processes: statistics.median(kept) for processes, kept in speeds.items()}
    cells = [(processes, count // processes, f"{median:,.0f}") for processes, median in medians.items()]
    title = f"{arguments.dataset}, batch {arguments.batch}, median of {arguments.turns} turns"
    print_table(title, ("processes", "threads of each", "images a second"), cells)
    if arguments.out:
        content = {**vars(arguments), "out": None, "environment": describe_environment()}
        content["rows"] = [
            {
                "processes": processes,
                "threads": count // processes,
                "images_per_second": median,
                "all": speeds[processes],
            }
            for processes, median in medians.items()
        ]
        write_atomically(arguments.out, (json.dumps(content, indent=1) + "\n").encode())


def call(words: list[str]) -> None:
    """Run Python with these words.

    Raises:
        DmsflowError: it failed.
    """
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("dmsflow: ")] or done.stderr.splitlines()
        raise DmsflowError(" ".join(words), lines[0] if lines else "failed", "correct that")


if __name__ == "__main__":
    script.run(main)
